"""Nuclei and tiles of a label array that would never fit into memory."""

from __future__ import annotations

import tracemalloc

import numpy as np

from ghistpy.geometry import find_nuclei, plan_tiles

LARGEST = 2**63 - 1
SIDE = 60_000


class Sparse:
    """A (60000, 60000) int64 array, 29 GB, of which only a few boxes are not 0."""

    shape, dtype, chunks = (SIDE, SIDE), np.dtype(np.int64), (2048, 2048)

    def __init__(self, boxes):
        self.boxes, self.reads = boxes, []

    def read(self, window):
        self.reads.append(window)
        out = np.broadcast_to(np.int64(0), window.shape)  # what holds nothing costs nothing
        for name, (y0, x0, y1, x1) in self.boxes.items():
            a, b, c, d = max(y0, window.y0), max(x0, window.x0), min(y1, window.y1), min(x1, window.x1)
            if a < c and b < d:
                out = out.copy()
                out[a - window.y0 : c - window.y0, b - window.x0 : d - window.x0] = name
        return out


def test_a_label_array_larger_than_memory():
    boxes = {
        5: (0, 0, 10, 12),
        LARGEST: (SIDE - 7, SIDE - 9, SIDE, SIDE),  # in the last corner
        LARGEST - 1: (2040, 4090, 2060, 4100),  # over the corner of four chunks
        2**53 + 1: (30_000, 30_000, 30_020, 33_000),  # larger than a tile
        2**53: (30_100, 30_000, 30_110, 30_010),
    }
    labels = Sparse(boxes)
    tracemalloc.start()
    nuclei = find_nuclei(labels)
    plan = plan_tiles(nuclei, core=1024, halo=64, align=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # a few chunks of 34 MB
    assert nuclei.ids.tolist() == sorted(boxes)
    for row, name in enumerate(nuclei.ids.tolist()):
        y0, x0, y1, x1 = boxes[name]
        assert nuclei.bbox[row].tolist() == [y0, x0, y1, x1]
        assert nuclei.area_px[row] == (y1 - y0) * (x1 - x0)
        np.testing.assert_allclose(nuclei.centroid_px[row], [(y0 + y1) / 2, (x0 + x1) / 2])
    assert sorted(np.concatenate([plan.owned(t) for t in range(len(plan))])) == [0, 1, 2, 3, 4]
    assert len(plan) <= 5
    assert max(w.shape for w in labels.reads) == (2048, 2048)
