"""Coverage equals counting pixels one by one."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.geometry import cover


def counted(labels, n, stride, centroid):
    """(n, positions) share of each nucleus in each cell, pixel by pixel."""
    height, width = labels.shape[0] // stride, labels.shape[1] // stride
    out = np.zeros((n, height * width))
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x]:
                out[labels[y, x] - 1, (y // stride) * width + x // stride] += 1
    for row in np.flatnonzero(out.sum(axis=1) == 0):
        y = min(max(int(np.floor(centroid[row, 0] / stride)), 0), height - 1)
        x = min(max(int(np.floor(centroid[row, 1] / stride)), 0), width - 1)
        out[row, y * width + x] = 1
    return out / out.sum(axis=1, keepdims=True)


def dense(coverage, n, positions):
    out = np.zeros((n, positions))
    row = np.repeat(np.arange(n), np.diff(coverage.indptr))
    np.add.at(out, (row, coverage.index), coverage.weight)
    return out


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
def test_equals_a_plain_loop(stride, fill):
    rng = np.random.default_rng(stride)
    n = 9
    labels = np.kron(rng.integers(1, n + 1, (8, 6)), np.ones((5, 8), int))[:40, :48]
    labels = np.where(rng.random(labels.shape) < fill, labels, 0)
    labels[labels == 4] = 0  # a nucleus without a pixel
    centroid = np.column_stack([rng.uniform(-5, 45, n), rng.uniform(-5, 55, n)])
    coverage = cover(labels, n, stride, centroid)
    positions = (40 // stride) * (48 // stride)
    np.testing.assert_allclose(
        dense(coverage, n, positions), counted(labels, n, stride, centroid), rtol=1e-6, atol=1e-7
    )
    assert coverage.weight.dtype == np.float32
    assert (coverage.indptr[0], coverage.indptr[-1]) == (0, len(coverage.index))


def test_no_nucleus():
    coverage = cover(np.zeros((8, 8), int), 0, 4, np.zeros((0, 2)))
    assert (coverage.indptr.tolist(), len(coverage.index)) == ([0], 0)
