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


def tissue_mask(
    coarse: np.ndarray, mpp: float, *, min_area_um2: float = 20_000.0, min_hole_um2: float = 10_000.0
) -> np.ndarray:
    """Pixels of a low-resolution image that are tissue.

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

    stats = white_balance(np.ascontiguousarray(coarse.reshape(3, -1).T))
    background = np.array(stats.background)[:, None, None]
    density = np.maximum(-np.log((coarse + 1.0) / (background + 1.0)), 0).mean(axis=0)
    density = ndimage.gaussian_filter(density, _SMOOTH_CELLS)
    # values beyond 1 are ink and folds; they would pull the threshold up
    values = np.minimum(density, 1.0)
    threshold = threshold_otsu(values) if np.ptp(values) > 0 else np.inf
    mask = density > np.clip(threshold, *_THRESHOLD_RANGE)
    mask = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), iterations=2)[4:-4, 4:-4]
    mask = remove_small_holes(mask, max_size=int(min_hole_um2 / mpp**2))
    return remove_small_objects(mask, max_size=int(min_area_um2 / mpp**2))


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
