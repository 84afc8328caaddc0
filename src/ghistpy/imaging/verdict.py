"""What the evidence of a match says in words: matched, or what is wrong and what puts it right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ghistpy.imaging.matching import Fit, Placement, TileShifts, placements

# z of the identity from which it counts as a match; the best of about a hundred placements times ten thousand
# shifts of random points reaches 5 to 9, but at less than 0.4 standard deviations of the map
_SUPPORTED = 5.0
_CONVINCING = 8.0
_CONVINCING_SCORE = 0.5
_OVERWHELMING = 25.0
# z that cells on nuclei would reach: below it, an image cannot tell
_TELLING = 10.0


@dataclass(frozen=True)
class Evidences:
    """Everything that a verdict rests on.

    ``size_um`` (width, height) of the image; ``pairs_um`` positions (n, 2) of the table and of the labels that
    it is linked to, when they disagree.
    """

    fits: Sequence[Fit]
    tiles: TileShifts
    mpp: float
    size_um: tuple[float, float]
    max_shift_um: float
    pairs_um: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Verdict:
    """``kind`` is matched, inconclusive, swapped, flipped, scaled, shifted, distorted or unmatched.

    ``matrix`` (3, 3) puts the cells onto the nuclei (x, y in µm), None when nothing is known to.
    """

    kind: str
    message: str
    matrix: np.ndarray | None
    shift_um: tuple[float, float]
    z: float

    @property
    def mismatch(self) -> bool:
        """Whether the cells should not be used as they are."""
        return self.kind not in ("matched", "inconclusive")


def judge(found: Evidences) -> Verdict:
    """Weigh the evidence: the labels the table is linked to first, then the image, then its tiles."""
    verdict = _judge_link(found)
    if verdict is not None:
        return verdict
    identity = next(fit for fit in found.fits if fit.placement.is_identity)
    other = max((f for f in found.fits if not f.placement.is_identity), key=lambda f: f.z if _convinces(f) else -1.0)
    own = max(identity.z_zero, identity.z if _convinces(identity) else 0.0)
    if _convinces(other) and other.z > 1.25 * own + 2:
        return _mismatch(found, other, identity)
    shift = _global_shift(found, identity)
    if shift is not None and float(np.hypot(*shift)) > found.max_shift_um:
        return _shifted(found, shift, identity)
    if identity.z_zero >= _SUPPORTED:
        return _judge_tiles(found, identity, shift or (0.0, 0.0))
    return _without_support(identity)


def _convinces(fit: Fit) -> bool:
    return (fit.z >= _CONVINCING and fit.score >= _CONVINCING_SCORE) or fit.z >= _OVERWHELMING


def _global_shift(found: Evidences, identity: Fit) -> tuple[float, float] | None:
    """The shift of all cells as far as it is known: from the tiles, which are finer, else from the whole."""
    coarse = identity.placement.shift_um
    # far shifts are outside the search of the tiles
    far = float(np.hypot(*coarse)) > 25 and identity.z > 1.25 * identity.z_zero + 2
    if found.tiles.z_all >= 6 and not (far and _convinces(identity)):
        return found.tiles.shift_all_um
    return coarse if _convinces(identity) else None


def _judge_tiles(found: Evidences, identity: Fit, shift: tuple[float, float]) -> Verdict:
    """Whether a match as a whole is one everywhere."""
    tiles = found.tiles
    reliable = tiles.reliable
    off = reliable & (np.hypot(*tiles.shift_um.T) > found.max_shift_um)
    evidence = f"mean haematoxylin under the cells {identity.score:+.2f} SD, z {identity.z_zero:.1f}"
    if reliable.sum() >= 4 and off.sum() > 0.25 * reliable.sum():
        worst = float(np.hypot(*tiles.shift_um[reliable].T).max())
        message = (
            f"the cells fit the image as a whole ({evidence}) but {off.sum()} of {reliable.sum()} tiles are off by "
            "more "
            f"than {found.max_shift_um:g} µm (up to {worst:.0f} µm){_trend(tiles, reliable)}: the registration is "
            "distorted; look at pl.matching, register again with pp.align_landmarks(model='affine'), or raise "
            "max_shift_um="
        )
        return Verdict("distorted", message, None, shift, identity.z_zero)
    message = (
        f"the cells lie on the nuclei ({evidence}; best shift ({shift[0]:+.1f}, {shift[1]:+.1f}) µm; "
        f"{reliable.sum()} of "
        f"{len(reliable)} tiles conclusive, {off.sum()} of them off by more than {found.max_shift_um:g} µm)"
    )
    return Verdict("matched", message, np.eye(3), shift, identity.z_zero)


def _trend(tiles: TileShifts, reliable: np.ndarray) -> str:
    """Scale and rotation that the shifts of the tiles follow, in words."""
    if reliable.sum() < 6:
        return ""
    at = tiles.xy_um[reliable] - tiles.xy_um[reliable].mean(axis=0)
    design = np.column_stack([at, np.ones(len(at))])
    slope = np.linalg.lstsq(design, tiles.shift_um[reliable], rcond=None)[0]
    scale = 1 + (slope[0, 0] + slope[1, 1]) / 2
    angle = np.degrees((slope[0, 1] - slope[1, 0]) / 2)
    return f"; their shifts follow a scale of {scale:.4f} and a rotation of {angle:+.2f}°"


def _without_support(identity: Fit) -> Verdict:
    if identity.resolvable < _TELLING:
        message = (
            f"inconclusive: the cells show no match with the image (z {identity.z_zero:.1f}), but even cells on "
            f"nuclei would reach only z {identity.resolvable:.1f} here: too few cells, or an image too coarse or pale"
        )
        return Verdict("inconclusive", message, None, identity.placement.shift_um, identity.z_zero)
    message = (
        f"the cells have nothing to do with the nuclei of this image: z {identity.z_zero:.1f} where cells on nuclei "
        f"would reach {identity.resolvable:.0f} or more, and no swap, flip, scale or shift that was tried fits. Is it "
        "the right image? A rotation is set by pp.align_landmarks or pp.align_density"
    )
    return Verdict("unmatched", message, None, identity.placement.shift_um, identity.z_zero)


def _mismatch(found: Evidences, other: Fit, identity: Fit) -> Verdict:
    placement = other.placement
    # what is left of a shift within a pixel of the map is the grid of the search
    if np.hypot(*placement.shift_um) <= max(found.max_shift_um, 0.01 * max(found.size_um)):
        placement = replace(placement, shift_um=(0.0, 0.0))
    kind = "swapped" if placement.swap else "flipped" if placement.flip_x or placement.flip_y else "scaled"
    message = (
        f"the cells do not lie on the nuclei of the image as they are (z {identity.z_zero:.1f}, "
        f"{1 - identity.inside:.0%} outside the image), but do with "
        f"{placement.describe()} (z {other.z:.1f}, mean haematoxylin under the cells {other.score:+.2f} SD). "
        f"{remedy(placement, found.mpp, found.size_um)}"
    )
    return Verdict(kind, message, placement.matrix(found.size_um), placement.shift_um, other.z)


def _shifted(found: Evidences, shift: tuple[float, float], identity: Fit) -> Verdict:
    placement = Placement(shift_um=shift)
    z = max(identity.z, found.tiles.z_all if np.isfinite(found.tiles.z_all) else 0.0)
    message = (
        f"the cells lie on the nuclei of the image only when {placement.describe()} (z {z:.1f}; more than "
        f"max_shift_um={found.max_shift_um:g}). {remedy(placement, found.mpp, found.size_um)}"
    )
    return Verdict("shifted", message, placement.matrix(found.size_um), shift, z)


def remedy(placement: Placement, mpp: float, size_um: tuple[float, float]) -> str:
    """The lines that put obsm["spatial"] right."""
    steps = []
    if placement.swap:
        steps.append("exchange the columns, xy = xy[:, ::-1] (x is the column of the image, y its row)")
    if placement.scale != 1.0:
        s = placement.scale
        known = {mpp: "they are pixels of this image", 0.2125: "they are pixels of the Xenium morphology image"}
        why = next((text for value, text in known.items() if abs(np.log(s / value)) < 0.01), None)
        if why is None and abs(np.log(s)) < 0.2:
            why = f"or µm/px of the image is {mpp / s:.4g} instead of {mpp:.4g}"
        steps.append(f"multiply them by {s:.4g}" + (f" ({why})" if why else ""))
    for axis, flip, extent in zip("xy", (placement.flip_x, placement.flip_y), size_um, strict=True):
        if flip:
            steps.append(f"mirror them, {axis} = {extent:.1f} - {axis}")
    if any(placement.shift_um):
        steps.append(f"add ({placement.shift_um[0]:.1f}, {placement.shift_um[1]:.1f}) µm to (x, y)")
    return f"To fix obsm['spatial']: {'; then '.join(steps)}. pp.align_density(sdata) finds and stores the same"


def _judge_link(found: Evidences) -> Verdict | None:
    """Positions of a table against the labels that its ids name."""
    if found.pairs_um is None:
        return None
    ours, labels = found.pairs_um
    best, residual = None, np.inf
    for candidate in placements(found.mpp):
        offset = labels - candidate.apply(ours, found.size_um)
        distance = float(np.median(np.linalg.norm(offset, axis=1)))
        if distance < residual:
            best, residual = candidate, distance
    assert best is not None
    distance = float(np.median(np.linalg.norm(labels - ours, axis=1)))
    start = f"obsm['spatial'] and the labels that the table is linked to disagree by a median of {distance:.0f} µm"
    if residual > 10.0:
        shift = np.median(labels - ours, axis=0)
        left = float(np.median(np.linalg.norm(labels - ours - shift, axis=1)))
        if left <= 10.0:
            best, residual = Placement(shift_um=(float(shift[0]), float(shift[1]))), left
        else:
            message = f"{start}, and no swap, flip, scale or shift joins them: do the ids belong to these labels?"
            return Verdict("unmatched", message, None, (0.0, 0.0), float("nan"))
    kind = (
        "swapped"
        if best.swap
        else "flipped"
        if best.flip_x or best.flip_y
        else "scaled"
        if best.scale != 1.0
        else "shifted"
    )
    message = (
        f"{start}; they agree to {residual:.1f} µm with {best.describe()}. {remedy(best, found.mpp, found.size_um)}"
    )
    return Verdict(kind, message, best.matrix(found.size_um), best.shift_um, float("nan"))
