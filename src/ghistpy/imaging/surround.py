"""What the tissue around a nucleus looks like: simple pixel statistics in a square of 40 µm."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ghistpy.imaging.stain import TISSUE_OD

CELL_UM = 8.0  # the statistics are averaged in cells of that size first
_CELLS = 5  # and then over 5 x 5 of them

SURROUND: tuple[str, ...] = (
    "around_od_r",
    "around_od_g",
    "around_od_b",
    "around_od2_r",
    "around_od2_g",
    "around_od2_b",
    "around_gradient",
    "around_nuclear_fraction",
    "around_tissue_fraction",
)


def reach_px(mpp: float) -> int:
    """How far from a centroid pixels matter, in px."""
    return (_CELLS // 2 + 1) * cell_px(mpp) + 1


def cell_px(mpp: float) -> int:
    """Side of a cell in px: the power of two nearest to ``CELL_UM``, so that it divides the tiles' grid."""
    return int(2 ** np.clip(np.round(np.log2(CELL_UM / mpp)), 0, 4))


def surround_features(od: np.ndarray, labels: np.ndarray, centroid: np.ndarray, mpp: float) -> np.ndarray:
    """Mean density, its second moment, gradient, nuclear and tissue share around each centroid.

    Parameters
    ----------
    od
        (3, h, w) float32 optical density of :func:`~ghistpy.imaging.stain.to_od`; the window starts at
        a multiple of 16 px of the model's grid.
    labels
        (h, w) int, 0 = background.
    centroid
        (n, 2) y, x in px of the window.
    mpp
        µm per px.

    Returns
    -------
    numpy.ndarray
        (n, 9) float32, columns as in ``SURROUND``.
    """
    cell = cell_px(mpp)
    height, width = od.shape[1] // cell * cell, od.shape[2] // cell * cell
    grey = od.mean(axis=0)
    maps = np.empty((9, *grey.shape), dtype=np.float32)
    maps[0:3] = od
    maps[3:6] = od**2
    maps[6] = 0.0
    maps[6, 1:-1, 1:-1] = np.hypot(grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]) / 2
    maps[7] = labels > 0
    maps[8] = grey > TISSUE_OD
    cells = maps[:, :height, :width].reshape(9, height // cell, cell, width // cell, cell).mean(axis=(2, 4))
    cells = ndimage.uniform_filter1d(cells, _CELLS, axis=1, mode="nearest")
    cells = ndimage.uniform_filter1d(cells, _CELLS, axis=2, mode="nearest")
    at = np.clip(centroid // cell, 0, [height // cell - 1, width // cell - 1]).astype(np.int64)
    return np.ascontiguousarray(cells[:, at[:, 0], at[:, 1]].T)
