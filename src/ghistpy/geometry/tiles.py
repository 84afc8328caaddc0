"""Which window is read, at which scale, and which tile owns which nucleus: planned before a pixel is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ghistpy.geometry.nuclei import Nuclei
from ghistpy.geometry.source import Window


@dataclass(frozen=True)
class TilePlan:
    """Windows of one slide and the owner of every nucleus.

    Two pixel grids are in play: the slide's own ("slide px") and the model's ("model px"), which
    share their origin; one model px is ``scale`` slide px. Every window starts at a multiple of
    ``align`` model px, so the features of a nucleus do not depend on the tile it falls into.

    Attributes
    ----------
    scale
        Slide px per model px = model µm/px / slide µm/px.
    windows
        (T, 4) int64, rows (y0, x0, y1, x1) in model px; may reach beyond the slide.
    order
        (n,) int64: rows of the nuclei, sorted by tile and then by id.
    start
        (T + 1,) int64: tile ``t`` owns the nuclei ``order[start[t]:start[t + 1]]``.
    """

    scale: float
    windows: np.ndarray
    order: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    def owned(self, tile: int) -> np.ndarray:
        """Rows of the nuclei that tile ``tile`` owns."""
        return self.order[self.start[tile] : self.start[tile + 1]]

    def model_window(self, tile: int) -> Window:
        """The tile's window in model px."""
        return Window(*(int(v) for v in self.windows[tile]))

    def slide_window(self, tile: int) -> Window:
        """The slide px that the tile's model px are computed from."""
        return slide_window(self.model_window(tile), self.scale)


def model_scale(slide_mpp: float, model_mpp: float) -> float:
    """Slide px per model px; within 1 % the slide is taken as it is (scanners round their µm/px)."""
    scale = model_mpp / slide_mpp
    return 1.0 if abs(scale - 1) < 0.01 else scale


def slide_window(window: Window, scale: float) -> Window:
    """Slide px needed to resample ``window`` (model px): its extent plus the resampling kernel."""
    if scale == 1.0:
        return window
    reach = max(1.0, scale) + 1.0
    return Window(
        math.floor(window.y0 * scale - reach),
        math.floor(window.x0 * scale - reach),
        math.ceil(window.y1 * scale + reach),
        math.ceil(window.x1 * scale + reach),
    )


def plan_tiles(nuclei: Nuclei, *, scale: float = 1.0, core: int = 512, halo: int = 64, align: int = 16) -> TilePlan:
    """Plan the tiles of a slide so that every nucleus is owned exactly once.

    The plane is cut into squares of ``core`` model px; the square that holds a nucleus' centroid
    owns it. A window is its square plus a margin of ``halo`` and room for an ordinary nucleus. A
    nucleus whose box plus halo does not fit (it is large, or lies far over the border) gets a
    window of its own size, so that nothing is ever cut. Squares without nuclei are not planned.

    Parameters
    ----------
    nuclei
        Nuclei in slide px.
    scale
        Slide px per model px.
    core
        Side of a square in model px, a multiple of ``align``.
    halo
        Model px that must be seen around a nucleus: the receptive field of the network.
    align
        All windows start at multiples of it: the total stride of the network.

    Returns
    -------
    TilePlan

    Raises
    ------
    ValueError
        If ``scale`` is not positive or ``core`` is not a positive multiple of ``align``.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale}: expected a positive number of slide px per model px")
    if align < 1 or core < align or core % align:
        raise ValueError(f"core={core}: expected a positive multiple of align={align} model px")
    if halo < 0:
        raise ValueError(f"halo={halo}: expected 0 or more model px")
    n = len(nuclei)
    if n == 0:
        return TilePlan(scale, np.zeros((0, 4), np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64))

    need = np.empty((n, 4), dtype=np.int64)  # model px that the nucleus has to see
    need[:, :2] = np.floor(nuclei.bbox[:, :2] / scale) - halo
    need[:, 2:] = np.ceil(nuclei.bbox[:, 2:] / scale) + halo
    square = np.floor(nuclei.centroid_px / scale / core).astype(np.int64)
    # Half a typical large nucleus (12 µm across at 0.5 µm/px) beside the halo, rounded up to the grid.
    margin = math.ceil((halo + 24) / align) * align
    windows = np.concatenate([square * core - margin, (square + 1) * core + margin], axis=1)
    large = (need[:, :2] < windows[:, :2]).any(1) | (need[:, 2:] > windows[:, 2:]).any(1)
    windows[large] = _own_windows(need[large], align, step=core)

    # No nucleus looks beyond these borders of all nuclei together, so no window has to.
    windows[:, :2] = np.maximum(windows[:, :2], need[:, :2].min(axis=0) // align * align)
    windows[:, 2:] = np.minimum(windows[:, 2:], -(-need[:, 2:].max(axis=0) // align) * align)

    # Tiles in raster order; nuclei in id order within a tile.
    unique, tile = np.unique(windows, axis=0, return_inverse=True)
    order = np.lexsort((nuclei.ids, tile.ravel()))
    start = np.searchsorted(tile.ravel()[order], np.arange(len(unique) + 1))
    return TilePlan(float(scale), unique, order.astype(np.int64), start.astype(np.int64))


def _own_windows(need: np.ndarray, align: int, step: int) -> np.ndarray:
    """Aligned squares that hold ``need``; sides are multiples of ``step`` so that shapes repeat."""
    lo = need[:, :2] // align * align
    side = (need[:, 2:] - lo).max(axis=1)
    side = -(-side // step) * step
    return np.concatenate([lo, lo + side[:, None]], axis=1)
