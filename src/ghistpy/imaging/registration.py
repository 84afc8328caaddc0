"""Coarse registration of measured positions to an image, by their densities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from ghistpy.geometry.affine import apply_affine
from ghistpy.geometry.source import ArraySource
from ghistpy.imaging.matching import Evidence, _scores, nuclear_evidence, peak_of, tile_shifts
from ghistpy.imaging.stain import sample_pixels, white_balance

_COARSE_PX = 192
_REFINED = 3
_Start = tuple[bool, float, float]  # mirrored, scale, angle
_REACH = 0.35  # of the longer side of the image


@dataclass(frozen=True)
class Registration:
    """A similarity that puts points on an image.

    ``matrix`` (3, 3) on (x, y, 1) in µm; ``z`` and ``score`` as in :class:`ghistpy.imaging.matching.Fit`.
    """

    matrix: np.ndarray
    score: float
    z: float

    @property
    def convincing(self) -> bool:
        """Whether chance is ruled out: it reaches a z of 5 to 9 at scores below 0.4 among all that is tried."""
        return (self.z >= 10.0 and self.score >= 0.5) or self.z >= 30.0


def register_density(
    xy_um: np.ndarray,
    source: ArraySource,
    mpp: float,
    *,
    flips: bool = True,
    scales: tuple[float, ...] = (1.0,),
    angle_step_deg: float = 1.5,
) -> Registration:
    """Find rotation, flip, shift and one of some scales that put points on the nuclei of an image.

    Parameters
    ----------
    xy_um
        (n, 2) x, y in µm.
    source
        (3, y, x) uint8 image.
    mpp
        µm per pixel.
    flips
        Also try the mirror image.
    scales
        Scales to try.
    angle_step_deg
        Step of the rotations of the first pass, over the whole circle.

    Returns
    -------
    Registration
        The best, convincing or not.

    Notes
    -----
    First pass on a map of 192 px; the three best are refined on maps of 640 px in rotation (0.05°) and scale (0.2 %),
    and the shift of the best by tiles at about 1 µm. O(angles · a log a) for a map of a px.
    """
    stats = white_balance(sample_pixels(source))
    size = max(source.shape[-2:]) * mpp
    coarse = nuclear_evidence(source, mpp, resolution_um=max(2.0, size / _COARSE_PX), stats=stats)
    fine = nuclear_evidence(source, mpp, stats=stats)
    angles = np.arange(0, 360, angle_step_deg)
    mirrors = (False, True) if flips else (False,)
    starts = [(m, s, a) for m in mirrors for s in scales for a in angles]
    first = _try(xy_um, coarse, starts, _REACH * size)
    best = sorted(first, key=lambda found: -found[2].z)[:_REFINED]
    reach = 4 * coarse.resolution_um + 24 * fine.resolution_um
    refined = [_refine(xy_um, fine, start, shift, reach, angle_step_deg) for start, shift, _ in best]
    winner = max(refined, key=lambda found: found.z)
    tiles = tile_shifts(apply_affine(winner.matrix, xy_um), source, mpp, stats=stats)
    matrix = winner.matrix.copy()
    if tiles.z_all >= 6:
        matrix[:2, 2] += tiles.shift_all_um
    return Registration(matrix, winner.score, winner.z)


def similarity_about(
    xy_um: np.ndarray, size_um: tuple[float, float], mirror: bool, scale: float, angle_deg: float
) -> np.ndarray:
    """(3, 3): points mirrored (x), scaled and turned about their middle, which comes to the middle of the image."""
    a = np.radians(angle_deg)
    linear = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    if mirror:
        linear = linear @ np.diag([-1.0, 1.0])
    middle = (xy_um.min(axis=0) + xy_um.max(axis=0)) / 2
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = np.array(size_um) / 2 - linear @ middle
    return out


def _try(
    xy: np.ndarray, evidence: Evidence, starts: list[_Start], reach_um: float, shift: np.ndarray | None = None
) -> list[tuple[_Start, np.ndarray, Registration]]:
    """Each start at its best shift (x, y in µm) within reach of one."""
    height, width = evidence.map.shape
    margin = max(24, int(np.ceil(reach_um / evidence.resolution_um)))
    shape = tuple(fft.next_fast_len(n + 2 * margin, real=True) for n in (height, width))
    padded = np.zeros(shape, np.float32)
    padded[margin : margin + height, margin : margin + width] = evidence.map
    spectrum = fft.rfft2(padded)
    base = np.zeros(2) if shift is None else shift
    out = []
    for start in starts:
        matrix = similarity_about(xy, evidence.size_um, *start)
        matrix[:2, 2] += base
        scores = _scores(apply_affine(matrix, xy), spectrum, shape, margin, evidence.resolution_um)
        (row, column), mean, spread = peak_of(scores, 5)
        found = np.array([column - margin, row - margin]) * evidence.resolution_um
        matrix[:2, 2] += found
        z = (scores[row, column] - mean) / max(spread, 1e-9)
        out.append((start, base + found, Registration(matrix, float(scores[row, column]), float(z))))
    return out


def _refine(
    xy: np.ndarray, evidence: Evidence, start: _Start, shift: np.ndarray, reach_um: float, step: float
) -> Registration:
    """Rotation and scale in ever smaller steps around a start."""
    mirror, scale, angle = start
    best = None
    for angle_step, scale_step in ((step / 4, 0.005), (step / 10, 0.002), (0.05, 0.001)):
        grid = [
            (mirror, scale * (1 + j * scale_step), angle + i * angle_step) for i in range(-4, 5) for j in range(-2, 3)
        ]
        tried = _try(xy, evidence, grid, reach_um, shift)
        (mirror, scale, angle), shift, best = max(tried, key=lambda found: found[2].z)
    assert best is not None
    return best
