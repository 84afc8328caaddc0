"""Ids, boxes, areas and centroids of all nuclei, gathered block by block from a label source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghistpy.geometry.source import ArraySource, NamedSource, Window


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of a label array, in ascending id.

    ids (n,) int64; bbox (n, 4) int64 rows (y0, x0, y1, x1), half open, px;
    area_px (n,) int64; centroid_px (n, 2) float64 (y, x), pixel centres at +0.5.
    """

    ids: np.ndarray
    bbox: np.ndarray
    area_px: np.ndarray
    centroid_px: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def index_of(self, ids: np.ndarray) -> np.ndarray:
        """Row (m,) int64 of each of the integer ``ids`` (m,), -1 where there is no such nucleus."""
        if len(self.ids) == 0:
            return np.full(len(ids), -1, dtype=np.int64)
        # int64 and uint64 together would be compared as float64, which merges ids above 2**53
        ids = as_int64(ids)
        row = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[row] == ids, row, -1)

    def take(self, rows: np.ndarray) -> Nuclei:
        """The nuclei in those rows (an index or a mask)."""
        return Nuclei(self.ids[rows], self.bbox[rows], self.area_px[rows], self.centroid_px[rows])


def as_int64(ids: np.ndarray) -> np.ndarray:
    """Integer ids or labels as int64; what does not fit (no nucleus has such an id) becomes -1."""
    ids = np.asarray(ids)
    if ids.dtype != np.uint64:
        return ids.astype(np.int64, copy=False)
    out = ids.view(np.int64)  # above 2**63 - 1 the sign turns
    return np.where(out < 0, -1, out) if (out < 0).any() else out


def _block_windows(height: int, width: int, step: tuple[int, int]) -> list[Window]:
    return [
        Window(y, x, min(y + step[0], height), min(x + step[1], width))
        for y in range(0, height, step[0])
        for x in range(0, width, step[1])
    ]


def _scan_block(block: np.ndarray, window: Window) -> tuple[np.ndarray, ...] | None:
    if not block.any():  # most of a slide is glass, and this is much faster than a search
        return None
    y, x = np.nonzero(block)
    ids, index = np.unique(block[y, x], return_inverse=True)
    n = len(ids)
    y, x = y + window.y0, x + window.x0
    area = np.bincount(index, minlength=n)
    sum_y, sum_x = np.bincount(index, y, n), np.bincount(index, x, n)
    bbox = np.empty((n, 4), dtype=np.int64)
    bbox[:, :2], bbox[:, 2:] = np.iinfo(np.int64).max, -1
    np.minimum.at(bbox[:, 0], index, y)
    np.minimum.at(bbox[:, 1], index, x)
    np.maximum.at(bbox[:, 2], index, y + 1)
    np.maximum.at(bbox[:, 3], index, x + 1)
    return ids, bbox, area, sum_y, sum_x


def find_nuclei(labels: ArraySource, *, block: int = 1024) -> Nuclei:
    """Gather the nuclei of a label array without holding it in memory.

    A nucleus that crosses blocks is merged by id, so an id that stands for two separate pieces is one
    nucleus with one box.

    Parameters
    ----------
    labels
        (y, x) integers of any width; 0 is background, every other value the id of a nucleus.
    block
        Px of a block's side, taken down to a multiple of the source's chunks (one chunk at least).

    Returns
    -------
    Nuclei
        Ids ascending; boxes, areas and centroids in px of the array.

    Raises
    ------
    ValueError
        ``labels`` are not (y, x) integers, or hold an id below 0 or above 2**63 - 1.
    UnreadableError
        A block cannot be read; it is named.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.geometry import MemorySource, find_nuclei
    >>> nuclei = find_nuclei(MemorySource(np.array([[0, 7, 7], [0, 7, 2**40]])))
    >>> nuclei.ids.tolist(), nuclei.area_px.tolist()
    ([7, 1099511627776], [3, 1])
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected an integer array, got dtype {labels.dtype}; "
            "float labels merge ids above 2**24, convert them where they were made"
        )
    if len(labels.shape) != 2:
        raise ValueError(f"labels: expected shape (y, x), got {labels.shape}")
    height, width = labels.shape
    step = tuple(max(c, (block // c) * c) for c in labels.chunks[-2:])
    labels = NamedSource(labels, "labels")
    parts = []
    for window in _block_windows(height, width, step):
        part = _scan_block(labels.read(window), window)
        if part is not None:
            parts.append(part)
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return Nuclei(empty, np.zeros((0, 4), np.int64), empty, np.zeros((0, 2)))
    ids, bbox, area, sum_y, sum_x = (np.concatenate(p) for p in zip(*parts, strict=True))
    if ids.min() < 0:
        raise ValueError(f"labels: negative id {ids.min()}; nuclei need ids of 1 and above, 0 is background")
    if ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels: id {ids.max()} is above 2**63 - 1, the largest that a table can hold")
    unique, index = np.unique(ids.astype(np.int64), return_inverse=True)
    order = np.argsort(index, kind="stable")
    start = np.searchsorted(index[order], np.arange(len(unique)))
    lo = np.minimum.reduceat(bbox[order, :2], start)
    hi = np.maximum.reduceat(bbox[order, 2:], start)
    total = np.add.reduceat(area[order], start)
    centroid = (
        np.stack([np.add.reduceat(sum_y[order], start), np.add.reduceat(sum_x[order], start)], axis=1) / total[:, None]
        + 0.5
    )
    return Nuclei(unique, np.concatenate([lo, hi], axis=1), total, centroid)
