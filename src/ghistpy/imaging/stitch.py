"""Segmentation tile by tile, in which every nucleus comes out whole and exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghistpy.geometry.source import ArraySource, Window

# open_edges: whether the slide goes on beyond the top, left, bottom and right edge of the window
Segment = Callable[[np.ndarray, tuple[bool, bool, bool, bool]], np.ndarray]

# A nucleus that two tiles outlined differently, so that this share of it is taken already, is not written again.
_TAKEN = 0.25


@dataclass(frozen=True)
class StitchReport:
    """What came out: nuclei written; objects left out as too small, too large, or claimed by two tiles."""

    n_nuclei: int
    n_small: int
    n_large: int
    n_conflicts: int
    n_tiles: int


@dataclass(frozen=True)
class _Tile:
    core: Window
    window: Window
    open_edges: tuple[bool, bool, bool, bool]


def plan(height: int, width: int, tile_px: int, margin_px: int) -> list[_Tile]:
    """Tiles in rows from the top left: a core that owns nuclei, and the window that is read for it."""
    tiles = []
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            core = Window(y, x, min(y + tile_px, height), min(x + tile_px, width))
            window = Window(y - margin_px, x - margin_px, core.y1 + margin_px, core.x1 + margin_px).clip(height, width)
            edges = (window.y0 > 0, window.x0 > 0, window.y1 < height, window.x1 < width)
            tiles.append(_Tile(core, window, edges))
    return tiles


def _segmented(source: ArraySource, segment: Segment, tiles: list[_Tile], n_jobs: int) -> Iterator[np.ndarray]:
    """Labels of the tiles, in order, with at most ``n_jobs`` tiles in work and one waiting."""

    def work(tile: _Tile) -> np.ndarray:
        return segment(source.read(tile.window), tile.open_edges)

    if n_jobs == 1:
        yield from map(work, tiles)
        return
    with ThreadPoolExecutor(n_jobs) as pool:
        waiting: deque = deque()
        try:
            for tile in tiles:
                waiting.append(pool.submit(work, tile))
                if len(waiting) > n_jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _check_labels(labels: Any, window: Window) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != window.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"method: expected labels of shape {window.shape} and an integer dtype for an image of that size, "
            f"got shape {labels.shape}, dtype {labels.dtype}"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"method: expected labels of 0 (background) and above, got {labels.min()}")
    return labels


def renumber(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids above 0 as 1..n in ascending order, (h, w) int32, and n."""
    at = np.flatnonzero(labels)
    ids, index = np.unique(labels.ravel()[at], return_inverse=True)
    out = np.zeros(labels.shape, dtype=np.int32)
    out.ravel()[at] = index + 1
    return out, len(ids)


def _owned(objects: np.ndarray, n: int, tile: _Tile) -> tuple[np.ndarray, np.ndarray]:
    """Pixels per object, and whether its centroid lies in the core of the tile."""
    at = np.flatnonzero(objects)
    of = objects.ravel()[at] - 1
    y, x = np.divmod(at, objects.shape[1])
    size = np.bincount(of, minlength=n)
    # integer sums: the same comparison, whatever the window
    centre_y = (np.bincount(of, y, n) + 0.5 * size) / size + tile.window.y0
    centre_x = (np.bincount(of, x, n) + 0.5 * size) / size + tile.window.x0
    core = tile.core
    inside = (centre_y >= core.y0) & (centre_y < core.y1) & (centre_x >= core.x0) & (centre_x < core.x1)
    return size, inside


def segment_tiles(
    source: ArraySource,
    segment: Segment,
    out: Any,
    *,
    mpp: float,
    area_um2: tuple[float, float] = (0.0, np.inf),
    tile_px: int = 1024,
    margin_um: float = 30.0,
    n_jobs: int = 1,
    progress: bool = False,
) -> StitchReport:
    """Segment an image tile by tile into one label array.

    Parameters
    ----------
    source
        (c, y, x) image.
    segment
        ``segment(pixels (c, h, w), open_edges) -> (h, w)`` integer labels, 0 = background. Called from
        ``n_jobs`` threads.
    out
        (y, x) int32 zeros, a numpy or zarr array; written in place.
    mpp
        µm per px.
    area_um2
        Smallest and largest area of a nucleus; others are counted and left out.
    tile_px
        Side of the square in which a tile owns the nuclei.
    margin_um
        How far a tile reads beyond that square: at least the diameter of a nucleus.
    n_jobs
        Threads.
    progress
        Show a progress bar.

    Returns
    -------
    StitchReport

    Raises
    ------
    ValueError
        ``segment`` returned something other than labels of the window, or more than 2**31 - 1 nuclei.

    Notes
    -----
    A nucleus belongs to the tile whose square contains its centroid, so that it is written once and whole.
    Where two tiles outlined the same place differently, the tile that comes first (rows from the top
    left) keeps its pixels: a later object loses the contested pixels, or is left out and counted when they
    are more than a quarter of it. Ids are 1..n in the order of tiles. The result does not depend on
    ``n_jobs``, and depends on ``tile_px`` only for objects wider than the margin. Memory: ``out`` and
    ``n_jobs + 1`` tiles.
    """
    from tqdm.auto import tqdm

    if tile_px < 64 or n_jobs < 1:
        raise ValueError(f"tile_px and n_jobs: expected at least 64 and 1, got {tile_px} and {n_jobs}")
    height, width = source.shape[-2:]
    if tuple(out.shape) != (height, width):
        raise ValueError(f"out: expected shape {(height, width)}, got {tuple(out.shape)}")
    tiles = plan(height, width, tile_px, int(np.ceil(margin_um / mpp)))
    n = n_small = n_large = n_conflicts = 0
    done = tqdm(_segmented(source, segment, tiles, n_jobs), total=len(tiles), disable=not progress, unit="tile")
    for tile, labels in zip(tiles, done, strict=True):
        objects, count = renumber(_check_labels(labels, tile.window))
        if count == 0:
            continue
        size, owned = _owned(objects, count, tile)
        small, large = size * mpp**2 < area_um2[0], size * mpp**2 > area_um2[1]
        n_small, n_large = n_small + int((owned & small).sum()), n_large + int((owned & large).sum())
        where = (slice(tile.window.y0, tile.window.y1), slice(tile.window.x0, tile.window.x1))
        written = np.asarray(out[where])
        taken = np.bincount(objects[written > 0], minlength=count + 1)[1:]
        keep = owned & ~small & ~large
        conflict = keep & (taken > _TAKEN * size)
        n_conflicts += int(conflict.sum())
        keep &= ~conflict
        if n + int(keep.sum()) > np.iinfo(np.int32).max:
            raise ValueError("more than 2**31 - 1 nuclei: segment parts of the slide")
        number = np.append(0, np.where(keep, n + np.cumsum(keep), 0)).astype(np.int32)
        out[where] = np.where(written > 0, written, number[objects])
        n += int(keep.sum())
    return StitchReport(n, n_small, n_large, n_conflicts, len(tiles))
