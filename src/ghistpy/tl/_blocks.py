"""Cross-fitting inside one slide: spatial blocks, a buffer between them, neighbours beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

BUFFER_UM = 50.0
_MIN_OBSERVATIONS = 12


class LeftOut(Exception):
    """A baseline that cannot be built on this slide, and why."""


def _n_side(n: int) -> int:
    """Blocks along one axis: some twenty observations in each, 2 x 2 to 6 x 6 of them."""
    return int(np.clip(np.round(np.sqrt(n / 20)), 2, 6))


def spatial_folds(xy: np.ndarray, *, n_folds: int = 5) -> np.ndarray:
    """Fold (n,) of every observation: blocks of equal size, dealt so that neighbouring blocks differ."""
    n, side = len(xy), _n_side(len(xy))

    def strips(order: np.ndarray) -> np.ndarray:
        out = np.empty(len(order), dtype=np.int64)
        out[order] = np.arange(len(order)) * side // len(order)
        return out

    column = strips(np.lexsort((xy[:, 1], xy[:, 0])))
    row = np.empty(n, dtype=np.int64)
    for c in range(side):
        inside = np.flatnonzero(column == c)
        row[inside] = strips(np.lexsort((xy[inside, 0], xy[inside, 1])))
    return (column + 2 * row) % n_folds


class CrossFit:
    """Folds of the slide, and for each the rows to predict and the rows one may learn from.

    ``fold`` (n,) is 0 … K-1. Rows nearer than ``buffer_um`` to a row that is predicted are not learnt from.
    """

    def __init__(self, xy: np.ndarray | None) -> None:
        from scipy.spatial import KDTree

        if xy is None:
            raise LeftOut("the predicted table has no usable obsm['spatial'], so there are no spatial blocks")
        if len(xy) < _MIN_OBSERVATIONS:
            raise LeftOut(f"{len(xy)} observations are too few to cross-fit ({_MIN_OBSERVATIONS} needed)")
        self.xy = xy
        self.fold = np.unique(spatial_folds(xy), return_inverse=True)[1]
        self.n_folds = int(self.fold.max()) + 1
        # a small field of view keeps most of its blocks
        block = np.sqrt(np.prod(np.maximum(np.ptp(xy, axis=0), 1e-9))) / _n_side(len(xy))
        self.buffer_um = float(min(BUFFER_UM, block / 4))
        self.splits: list[tuple[np.ndarray, np.ndarray]] = []
        for name in range(self.n_folds):
            test, others = np.flatnonzero(self.fold == name), np.flatnonzero(self.fold != name)
            nearest, _ = KDTree(xy[test]).query(xy[others], distance_upper_bound=self.buffer_um * 1.001)
            train = others[nearest > self.buffer_um]
            if len(train) < 3:
                raise LeftOut(f"fewer than 3 observations lie beyond the buffer of {self.buffer_um:g} µm")
            self.splits.append((train, test))

    def neighbours(self, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Distances and rows of the k nearest rows one may learn from, for every split."""
        from scipy.spatial import KDTree

        distances, rows = [], []
        for train, test in self.splits:
            take = np.arange(1, min(k, len(train)) + 1)
            distance, index = KDTree(self.xy[train]).query(self.xy[test], k=take)
            distances.append(distance)
            rows.append(train[index])
        return distances, rows

    def smoother(self, distances: list[np.ndarray], rows: list[np.ndarray], k: int) -> sparse.csr_array:
        """(n, n) Gaussian weights of the first k of those neighbours; every row sums to 1."""
        from scipy import sparse

        parts = []
        for (_, test), distance, index in zip(self.splits, distances, rows, strict=True):
            # distances are measured from the nearest one, or deep inside a block all weights would vanish
            beyond = distance[:, :k] - distance[:, :1]
            width = np.maximum(beyond[:, -1:] / 2, 1e-9)
            weight = np.exp(-0.5 * (beyond / width) ** 2)
            weight /= weight.sum(1, keepdims=True)
            parts.append((weight.ravel(), np.repeat(test, weight.shape[1]), index[:, :k].ravel()))
        data, row, column = (np.concatenate(p) for p in zip(*parts, strict=True))
        return sparse.csr_array((data, (row, column)), shape=(len(self.xy),) * 2)
