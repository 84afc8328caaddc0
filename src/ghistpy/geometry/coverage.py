"""Which positions of a feature map a nucleus covers, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Coverage:
    """A sparse (nuclei x positions) matrix in CSR form; every row sums to 1.

    indptr (n + 1,), index (nnz,) flat position in the feature map, weight (nnz,) float32.
    """

    indptr: np.ndarray
    index: np.ndarray
    weight: np.ndarray


def cover(labels: np.ndarray, n_nuclei: int, stride: int, centroid: np.ndarray) -> Coverage:
    """Share of each nucleus' pixels that falls into each cell of ``stride`` x ``stride`` px.

    Parameters
    ----------
    labels
        (h, w) int, local ids 1..n_nuclei; h and w are multiples of ``stride``.
    n_nuclei
        Rows of the result.
    stride
        Px between feature positions.
    centroid
        (n_nuclei, 2) y, x in px of the window: where a nucleus without a pixel here is read.
    """
    height, width = labels.shape[0] // stride, labels.shape[1] // stride
    y, x = np.nonzero(labels)
    nucleus = labels[y, x].astype(np.int64) - 1
    cell = (y // stride) * width + x // stride
    empty = np.setdiff1d(np.arange(n_nuclei), nucleus)
    if len(empty):
        at = np.clip(np.floor(centroid[empty] / stride).astype(np.int64), 0, [height - 1, width - 1])
        nucleus = np.concatenate([nucleus, empty])
        cell = np.concatenate([cell, at[:, 0] * width + at[:, 1]])
    key, count = np.unique(nucleus * (height * width) + cell, return_counts=True)
    row, index = np.divmod(key, height * width)
    total = np.bincount(row, count, n_nuclei)
    indptr = np.searchsorted(row, np.arange(n_nuclei + 1))
    return Coverage(indptr, index, (count / total[row]).astype(np.float32))
