"""Whether measured positions lie on the nuclei of an image, and which transformation would put them there.

The evidence is the haematoxylin of the image itself: it knows neither the table nor any segmentation. A
placement (axes swapped, flipped, scaled) is scored by the mean evidence under the cells, for every shift at
once by a Fourier transform; the scores of the many wrong shifts are the null distribution of the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from ghistpy.geometry.source import ArraySource
from ghistpy.imaging.stain import StainStats, hematoxylin, sample_pixels, to_od, white_balance
from ghistpy.imaging.tissue import read_coarse, tissue_mask

# side of the screening map in px: large enough for cells in groups, small enough for a hundred transforms
_SCREEN_PX = 640
_FINEST_UM = 2.0
# structure wider than this is tissue, not nuclei
_HIGHPASS_UM = 25.0
_TISSUE_UM = 8.0


@dataclass(frozen=True)
class Placement:
    """How points (x, y) are put on an image of known size: swap, scale, flip, shift, in this order.

    ``shift_um`` is (x, y); flips are about the middle of the image.
    """

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False
    scale: float = 1.0
    shift_um: tuple[float, float] = (0.0, 0.0)

    def matrix(self, size_um: tuple[float, float]) -> np.ndarray:
        """The placement as a (3, 3) affine matrix on (x, y, 1) for an image of (width, height) µm."""
        out = np.eye(3)
        out[:2, :2] = np.array([[0, 1], [1, 0]]) if self.swap else np.eye(2)
        out[:2, :2] *= self.scale
        for axis, flip in enumerate((self.flip_x, self.flip_y)):
            if flip:
                out[axis] = [*-out[axis, :2], size_um[axis]]
        out[:2, 2] += self.shift_um
        return out

    def apply(self, xy: np.ndarray, size_um: tuple[float, float]) -> np.ndarray:
        """Points (n, 2) after the placement."""
        matrix = self.matrix(size_um)
        return xy @ matrix[:2, :2].T + matrix[:2, 2]

    @property
    def is_identity(self) -> bool:
        """Whether nothing but a shift is done."""
        return not (self.swap or self.flip_x or self.flip_y) and self.scale == 1.0

    def describe(self) -> str:
        """The placement in words."""
        parts = ["x and y swapped"] if self.swap else []
        parts += [f"{axis} flipped" for axis, flip in (("x", self.flip_x), ("y", self.flip_y)) if flip]
        if self.scale != 1.0:
            parts.append(f"scaled by {self.scale:.4g}")
        if any(self.shift_um):
            parts.append(f"shifted by ({self.shift_um[0]:+.1f}, {self.shift_um[1]:+.1f}) µm in (x, y)")
        return ", ".join(parts) or "as it is"


@dataclass(frozen=True)
class Evidence:
    """A map of nuclei, high where there is a nucleus; mean 0 and standard deviation 1 over the image.

    map (h, w) float32; resolution_um µm per px of the map; size_um (width, height) of the image.
    """

    map: np.ndarray
    resolution_um: float
    size_um: tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """How well a placement fits.

    ``placement`` includes the best shift. ``score``: mean evidence under the points there, in standard
    deviations of the map; ``z`` the same in standard deviations of the scores of wrong shifts; ``z_zero`` the
    best z within the tolerance of no shift at all. ``resolvable``: the z that points on nuclei would reach at
    half a standard deviation of the map. ``inside``: share of the points inside the image.
    """

    placement: Placement
    score: float
    z: float
    z_zero: float
    resolvable: float
    inside: float


def nuclear_evidence(
    source: ArraySource, mpp: float, *, resolution_um: float | None = None, stats: StainStats | None = None
) -> Evidence:
    """Where an image has nuclei: haematoxylin against its surroundings of about 25 µm.

    Parameters
    ----------
    source
        (3, y, x) uint8 image.
    mpp
        µm per pixel.
    resolution_um
        µm per px of the map. Default: 2 µm, coarser for images wider than 640 such pixels.
    stats
        Of the slide; measured when None.

    Returns
    -------
    Evidence
        For a blank image the map is 0 everywhere.
    """
    height, width = source.shape[-2:]
    if resolution_um is None:
        resolution_um = max(_FINEST_UM, max(height, width) * mpp / _SCREEN_PX)
    factor = max(1, round(resolution_um / mpp))
    stats = stats or white_balance(sample_pixels(source))
    coarse = read_coarse(source, factor)
    return Evidence(contrast_map(coarse, stats, factor * mpp), factor * mpp, (width * mpp, height * mpp))


def contrast_map(rgb: np.ndarray, stats: StainStats, resolution_um: float) -> np.ndarray:
    """Haematoxylin of (3, h, w) uint8 pixels against its surroundings: (h, w) float32, mean 0 and SD 1."""
    stain = np.clip(hematoxylin(to_od(rgb, stats)), 0, 2)
    smooth = ndimage.gaussian_filter(stain, max(1.5 / resolution_um, 0.5))
    around = ndimage.gaussian_filter(stain, max(_HIGHPASS_UM / resolution_um, 6.0))
    contrast = smooth - around
    contrast -= contrast.mean()
    spread = float(contrast.std())
    return (contrast / spread if spread > 1e-6 else np.zeros_like(contrast)).astype(np.float32)


def placements(mpp: float) -> list[Placement]:
    """What goes wrong in practice: every swap and flip, each at the scales of a mixed-up unit.

    Parameters
    ----------
    mpp
        µm per pixel of the image: pixels that were taken for µm, and the other way round.
    """
    # 0.2125 µm/px is the pixel of Xenium, 2 and 4 the steps of a pyramid
    scales = {1.0, mpp, 1 / mpp, 0.2125, 1 / 0.2125, 0.25, 0.5, 2.0, 4.0}
    distinct = []
    for scale in sorted(scales, key=lambda s: (abs(np.log(s)), s)):
        if all(abs(np.log(scale / other)) > 0.01 for other in distinct):
            distinct.append(scale)
    flips = [(s, x, y) for s in (False, True) for x in (False, True) for y in (False, True)]
    out = [Placement(*flip, scale=scale) for scale in distinct for flip in flips]
    # a µm/px that is a little wrong
    near = [round(1 + step / 100, 2) for step in range(-15, 16) if step]
    return out + [Placement(scale=s) for s in near if all(abs(np.log(s / other)) > 0.004 for other in distinct)]


def finer_scales(best: Placement) -> list[Placement]:
    """Scales in steps of 0.1 % around that of a placement which is a scale only, near 1 but not 1."""
    if best.swap or best.flip_x or best.flip_y or best.scale == 1.0 or abs(np.log(best.scale)) > 0.2:
        return []  # a scale far from 1 is a mixed-up unit, and known exactly
    steps = [step for step in range(-9, 10) if step]
    found = [round(best.scale * (1 + step / 1000), 6) for step in steps]
    return [Placement(scale=scale) for scale in found if abs(scale - 1) > 5e-4]


def screen(
    xy_um: np.ndarray, evidence: Evidence, candidates: Sequence[Placement], *, search_um: float, tolerance_um: float
) -> list[Fit]:
    """Score placements of points on a map of nuclei, each at its best shift.

    Parameters
    ----------
    xy_um
        (n, 2) x, y in µm.
    evidence
        From :func:`nuclear_evidence`.
    candidates
        What to try.
    search_um
        Shifts up to this far are tried; those that do not fit are the null distribution.
    tolerance_um
        A shift up to this counts as none.

    Returns
    -------
    list of Fit
        In the order of ``candidates``.

    Notes
    -----
    O(k · a log a) for k candidates and a map of a px.
    """
    height, width = evidence.map.shape
    resolution = evidence.resolution_um
    margin = max(int(np.ceil(search_um / resolution)), 24)
    shape = tuple(fft.next_fast_len(n + 2 * margin, real=True) for n in (height, width))
    padded = np.zeros(shape, np.float32)
    padded[margin : margin + height, margin : margin + width] = evidence.map
    spectrum = fft.rfft2(padded)
    near = max(1, int(tolerance_um / resolution))
    fits = []
    for candidate in candidates:
        xy = candidate.apply(xy_um, evidence.size_um)
        inside = ((xy >= 0) & (xy < evidence.size_um)).all(axis=1).mean()
        if inside < 0.1:
            fits.append(Fit(candidate, 0.0, 0.0, 0.0, 0.0, float(inside)))
            continue
        scores = _scores(xy, spectrum, shape, margin, resolution)
        fits.append(_fit_of(candidate, scores, margin, near, resolution, float(inside)))
    return fits


def _scores(xy: np.ndarray, spectrum: np.ndarray, shape: tuple[int, ...], margin: int, resolution: float) -> np.ndarray:
    """Mean evidence under the points for shifts of -margin .. margin px, (2 margin + 1, 2 margin + 1)."""
    column, row = (np.floor(xy / resolution).astype(np.int64) + margin).T
    keep = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    counts = np.bincount(row[keep] * shape[1] + column[keep], minlength=shape[0] * shape[1])
    transform = fft.rfft2(counts.reshape(shape).astype(np.float32))
    full = fft.irfft2(spectrum * np.conj(transform), s=shape) / max(len(xy), 1)
    around = np.arange(-margin, margin + 1)
    return full[np.ix_(around % shape[0], around % shape[1])]


def peak_of(scores: np.ndarray, exclude: int) -> tuple[tuple[int, int], float, float]:
    """Row and column of the highest score, and mean and standard deviation of the scores away from it."""
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    y, x = np.ogrid[: scores.shape[0], : scores.shape[1]]
    away = scores[(y - row) ** 2 + (x - column) ** 2 > exclude**2]
    if away.size == 0:
        away = scores
    return (int(row), int(column)), float(away.mean()), float(away.std())


def _fit_of(candidate: Placement, scores: np.ndarray, margin: int, near: int, resolution: float, inside: float) -> Fit:
    (row, column), mean, spread = peak_of(scores, max(5, near))
    spread = max(spread, 1e-9)
    centre = scores[margin - near : margin + near + 1, margin - near : margin + near + 1]
    shift = (float((column - margin) * resolution), float((row - margin) * resolution))
    return Fit(
        replace(candidate, shift_um=shift),
        float(scores[row, column]),
        float((scores[row, column] - mean) / spread),
        float((centre.max() - mean) / spread),
        0.5 / spread if spread > 1e-6 else 0.0,
        inside,
    )


@dataclass(frozen=True)
class TileShifts:
    """Residual shift of each tile that has enough cells.

    xy_um (t, 2) centres; n_cells (t,); shift_um (t, 2) x, y that moves the cells onto the nuclei; z (t,) of
    that shift among all that were tried; score (t,) mean evidence under the cells there; ``shift_all_um`` the
    one shift that fits all tiles best, with its ``z_all``; ``resolution_um`` of the search.
    """

    xy_um: np.ndarray
    n_cells: np.ndarray
    shift_um: np.ndarray
    z: np.ndarray
    score: np.ndarray
    shift_all_um: tuple[float, float]
    z_all: float
    resolution_um: float
    tile_um: float

    @property
    def reliable(self) -> np.ndarray:
        """(t,) whether the shift of a tile stands out from chance."""
        # at the border of tissue some shift of random cells stands out too, but puts few of them on nuclei
        return (self.z >= 5) & (self.score >= 0.5)


def tile_shifts(
    xy_um: np.ndarray,
    source: ArraySource,
    mpp: float,
    *,
    tile_um: float | None = None,
    search_um: float = 30.0,
    min_cells: int = 20,
    max_tiles: int = 64,
    stats: StainStats | None = None,
) -> TileShifts:
    """Residual shift tile by tile, at about 1 µm.

    Parameters
    ----------
    xy_um
        (n, 2) x, y in µm.
    source
        (3, y, x) uint8 image.
    mpp
        µm per pixel.
    tile_um
        Side of a tile. Default: 250 µm, more where so many cells would not lie in it.
    search_um
        Shifts up to this far are tried.
    min_cells
        Tiles with fewer cells say nothing and are left out.
    max_tiles
        At most so many tiles are read, evenly over those there are.
    stats
        Of the slide; measured when None.

    Returns
    -------
    TileShifts
        Without a tile: arrays of length 0, shift and z NaN.
    """
    height, width = source.shape[-2:]
    size = np.array([width, height]) * mpp
    inside = ((xy_um >= 0) & (xy_um < size)).all(axis=1)
    points = xy_um[inside]
    factor = max(1, round(1.0 / mpp))
    resolution = factor * mpp
    if tile_um is None:
        tile_um = max(250.0, 40 * resolution, float(np.sqrt(2 * min_cells * size.prod() / max(len(points), 1))))
    stats = stats or white_balance(sample_pixels(source))
    grid = np.floor(points / tile_um).astype(np.int64)
    tiles, index, n_cells = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    chosen = np.flatnonzero(n_cells >= min_cells)
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), max_tiles)).astype(int))]
    shifts, peaks, zs, total = [], [], [], 0.0
    for tile in chosen:
        scores, margin = _tile_scores(
            points[index == tile], tiles[tile] * tile_um, tile_um, source, mpp, factor, search_um, stats
        )
        (row, column), mean, spread = peak_of(scores, max(4, int(4 / resolution)))
        shifts.append([(column - margin) * resolution, (row - margin) * resolution])
        peaks.append(scores[row, column])
        zs.append((scores[row, column] - mean) / max(spread, 1e-9))
        total = total + scores * n_cells[tile]
    if not len(chosen):
        nan = float("nan")
        empty = np.zeros((0, 2))
        return TileShifts(
            empty, np.zeros(0, int), empty, np.zeros(0), np.zeros(0), (nan, nan), nan, resolution, tile_um
        )
    (row, column), mean, spread = peak_of(total, max(4, int(4 / resolution)))
    return TileShifts(
        (tiles[chosen] + 0.5) * tile_um,
        n_cells[chosen],
        np.array(shifts, dtype=np.float64),
        np.array(zs),
        np.array(peaks),
        (float((column - margin) * resolution), float((row - margin) * resolution)),
        float((total[row, column] - mean) / max(spread, 1e-9)),
        resolution,
        tile_um,
    )


def _tile_scores(
    points: np.ndarray,
    origin_um: np.ndarray,
    tile_um: float,
    source: ArraySource,
    mpp: float,
    factor: int,
    search_um: float,
    stats: StainStats,
) -> tuple[np.ndarray, int]:
    """Scores of all shifts of the points of one tile."""
    from ghistpy.geometry.source import Window, read_padded

    resolution = factor * mpp
    margin = max(8, int(np.ceil(search_um / resolution)))
    side = int(np.ceil(tile_um / resolution))
    x0, y0 = (int(v) for v in np.floor(origin_um / resolution))
    # glass beyond the image: 255
    window = Window(*((v - margin) * factor for v in (y0, x0, y0 + side + 2 * margin, x0 + side + 2 * margin)))
    rgb = read_padded(source, window, 255)
    blocks = rgb.reshape(3, side + 2 * margin, factor, side + 2 * margin, factor)
    rgb = np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
    evidence = contrast_map(rgb, stats, resolution)
    local = points - np.array([x0, y0]) * resolution
    # the evidence fills its margin, so there are one and a half margins of nothing around everything
    shape = tuple(fft.next_fast_len(side + 4 * margin, real=True) for _ in range(2))
    padded = np.zeros(shape, np.float32)
    padded[: side + 2 * margin, : side + 2 * margin] = evidence
    return _scores(local, fft.rfft2(padded), shape, margin, resolution), margin


def tissue_at(source: ArraySource, mpp: float, xy_um: np.ndarray) -> tuple[np.ndarray, float]:
    """Whether each point (n, 2), x, y in µm, lies on tissue, and the share of the image that is tissue."""
    factor = max(1, round(_TISSUE_UM / mpp))
    mask = tissue_mask(read_coarse(source, factor), factor * mpp)
    column, row = np.floor(xy_um / (factor * mpp)).astype(np.int64).T
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    out = np.zeros(len(xy_um), dtype=bool)
    out[inside] = mask[row[inside], column[inside]]
    return out, float(mask.mean())
