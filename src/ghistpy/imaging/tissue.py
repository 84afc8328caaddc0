"""Where the tissue is: a mask at low resolution and its outlines."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ghistpy.geometry.source import ArraySource, Window
from ghistpy.imaging.stain import white_balance

# Otsu's threshold on the mean OD is trusted in this range: below lies glass with dust and haze, and on a slide
# full of tissue it would separate nuclei from stroma.
_THRESHOLD_RANGE = (0.08, 0.16)
_SMOOTH_CELLS = 1.0
# Ink absorbs other colours than haematoxylin and eosin, which both absorb most green. Blue and green ink: red over
# green (haematoxylin alone reaches 1.3 on bluish scans); red ink: nearly as
# much blue as green, hardly any red (darker red looks like blood, and stays); black: all alike.
_INK_RED_OVER_GREEN = (1.2, 1.5)  # grows from the second to the first
_INK_BLUE_OVER_GREEN = 0.85
_INK_BLACK = 0.9
_INK_MIN_OD = 0.25
_BLACK_MIN_OD = 1.0
_INK_MIN_UM2 = 4_000.0
_INK_MARGIN_UM = 16.0


def read_coarse(source: ArraySource, factor: int) -> np.ndarray:
    """The image with every block of ``factor`` x ``factor`` px averaged.

    Parameters
    ----------
    source
        (c, y, x) uint8.
    factor
        Side of a block in px. Blocks at the far edges average the pixels they have.

    Returns
    -------
    numpy.ndarray
        (c, ceil(y / factor), ceil(x / factor)) uint8. Memory: one row of chunks of the source.
    """
    height, width = source.shape[-2:]
    columns = np.arange(0, width, factor)
    step = max(1, source.chunks[-2] // factor) * factor
    bands = []
    for y in range(0, height, step):
        band = source.read(Window(y, 0, min(y + step, height), width))
        rows = np.arange(0, band.shape[1], factor)
        total = np.add.reduceat(band, columns, axis=2, dtype=np.uint32)
        total = np.add.reduceat(total, rows, axis=1)
        size_y = np.diff(rows, append=band.shape[1])[:, None]
        size_x = np.diff(columns, append=width)[None, :]
        bands.append(np.rint(total / (size_y * size_x)).astype(np.uint8))
    return np.concatenate(bands, axis=1)


def sample_mask(source: ArraySource, mask: np.ndarray, *, windows: int = 256, side: int = 64) -> np.ndarray:
    """Pixels of full resolution where a coarse mask is set.

    Parameters
    ----------
    source
        (3, y, x) uint8.
    mask
        (h, w) bool over the same area at a lower resolution, with at least one pixel set.
    windows
        So many windows are read at most, spread evenly over the pixels of the mask.
    side
        Of a window in px of ``source``.

    Returns
    -------
    numpy.ndarray
        (n, 3) uint8: pixels inside the mask, every second along both axes; the same for the same input.
    """
    height, width = source.shape[-2:]
    fy, fx = height / mask.shape[0], width / mask.shape[1]
    at = np.flatnonzero(mask)
    at = at[np.unique(np.linspace(0, len(at) - 1, windows).round().astype(int))]
    parts = []
    for row, column in zip(*np.divmod(at, mask.shape[1]), strict=True):
        y, x = int((row + 0.5) * fy), int((column + 0.5) * fx)
        window = Window(y - side // 2, x - side // 2, y + side // 2, x + side // 2).clip(height, width)
        rows = np.minimum(np.arange(window.y0, window.y1, 2) / fy, mask.shape[0] - 1).astype(int)
        columns = np.minimum(np.arange(window.x0, window.x1, 2) / fx, mask.shape[1] - 1).astype(int)
        parts.append(source.read(window)[:, ::2, ::2][:, mask[np.ix_(rows, columns)]].T)
    return np.concatenate(parts)


def tissue_mask(
    coarse: np.ndarray, mpp: float, *, min_area_um2: float = 20_000.0, min_hole_um2: float = 10_000.0
) -> np.ndarray:
    """Pixels of a low-resolution image that are tissue, and not pen.

    Parameters
    ----------
    coarse
        (3, h, w) uint8, at about 8 µm/px.
    mpp
        µm per px of ``coarse``.
    min_area_um2
        Smaller pieces are dust.
    min_hole_um2
        Smaller holes are filled; larger ones (lumina, tears) stay holes.

    Returns
    -------
    numpy.ndarray
        (h, w) bool.
    """
    from skimage.filters import threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    density = coarse_density(coarse)
    ink = ink_mask(density, mpp)
    mean = ndimage.gaussian_filter(np.maximum(density, 0).mean(axis=0), _SMOOTH_CELLS)
    # values beyond 1 are folds; they would pull the threshold up
    values = np.minimum(mean, 1.0)
    paper = values[~ink]
    threshold = threshold_otsu(paper) if paper.size and np.ptp(paper) > 0 else np.inf
    mask = mean > np.clip(threshold, *_THRESHOLD_RANGE)
    mask = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), iterations=2)[4:-4, 4:-4]
    mask = remove_small_holes(mask, max_size=int(min_hole_um2 / mpp**2)) & ~ink
    return remove_small_objects(mask, max_size=int(min_area_um2 / mpp**2))


def coarse_density(coarse: np.ndarray) -> np.ndarray:
    """Optical density (3, h, w) of a low-resolution image against its own glass."""
    stats = white_balance(np.ascontiguousarray(coarse.reshape(3, -1).T))
    background = np.array(stats.background)[:, None, None]
    return -np.log((coarse + 1.0) / (background + 1.0))


def ink_mask(density: np.ndarray, mpp: float) -> np.ndarray:
    """Where pen or margin ink covers the slide.

    Parameters
    ----------
    density
        (3, h, w) optical density in R, G, B at about 8 µm/px.
    mpp
        µm per px.

    Returns
    -------
    numpy.ndarray
        (h, w) bool, with a margin of 16 µm. Spots below 4,000 µm² (pigment, dust) are no ink.
    """
    from skimage.filters import apply_hysteresis_threshold
    from skimage.morphology import remove_small_objects

    red, green, blue = np.maximum(density, 0.02)
    mean = density.mean(axis=0)
    dark = mean > _INK_MIN_OD
    ratio = np.where(dark, red / green, 0)
    ink = apply_hysteresis_threshold(ratio, *_INK_RED_OVER_GREEN)
    ink |= dark & (blue > _INK_BLUE_OVER_GREEN * green) & (red < 0.3 * green)
    ink |= (mean > _BLACK_MIN_OD) & (np.minimum(np.minimum(red, green), blue) > _INK_BLACK * np.maximum(red, green))
    ink = remove_small_objects(ndimage.binary_closing(ink), max_size=int(_INK_MIN_UM2 / mpp**2), connectivity=2)
    steps = round(_INK_MARGIN_UM / mpp)
    return ndimage.binary_dilation(ink, iterations=steps) if steps and ink.any() else ink


def outlines(mask: np.ndarray, mpp: float) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outlines of the pieces of a mask.

    Parameters
    ----------
    mask
        (h, w) bool.
    mpp
        µm per px of ``mask``.

    Returns
    -------
    list
        For each piece its outer ring and the rings of its holes, (k, 2) float64 x, y in µm, closed (the
        last point is the first). A pixel covers ``[i, i + 1) * mpp``, so a piece at the edge of the mask
        ends at the edge.
    """
    from skimage.measure import find_contours

    pieces = []
    components, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        piece = np.pad(components[box] == number, 1).astype(np.float64)
        corner = np.array([box[0].start, box[1].start]) - 1
        rings = [(ring + corner + 0.5)[:, ::-1] * mpp for ring in find_contours(piece, 0.5)]
        # the outer ring is the one that encloses most
        rings.sort(key=lambda ring: -abs(_ring_area(ring)))
        pieces.append((rings[0], rings[1:]))
    return pieces


def _ring_area(ring: np.ndarray) -> float:
    x, y = ring[:-1].T
    x_next, y_next = ring[1:].T
    return float(np.sum(x * y_next - x_next * y) / 2)
