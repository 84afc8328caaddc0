"""A slide of squares with measured cells or spots; every number can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest


def make_slide(*, spots=False, n_types=3, n_genes=4, side=400, pitch=20, mpp=0.5, seed=0):
    """Squares of 8 px, ids 1000, 1003 …; some nuclei are not measured and some cells have no nucleus."""
    from ghistpy.data.slide import CellTargets, Slide, SpotTargets
    from ghistpy.geometry import MemorySource, find_nuclei
    from ghistpy.imaging.stain import StainStats

    rng = np.random.default_rng(seed)
    image = rng.integers(60, 240, (3, side, side), dtype=np.uint8)
    labels = np.zeros((side, side), dtype=np.int64)
    corners = [(y, x) for y in range(4, side - 8, pitch) for x in range(4, side - 8, pitch)]
    for i, (y, x) in enumerate(corners):
        labels[y : y + 8, x : x + 8] = 1000 + 3 * i
    source = MemorySource(labels)
    nuclei = find_nuclei(source)
    if spots:
        # squares of 60 µm stand in for circles; uneven, as nuclei are
        yx = nuclei.centroid_px * mpp
        across = int(np.ceil(side * mpp / 60))
        spot = (yx[:, 0] // 60).astype(int) * across + (yx[:, 1] // 60).astype(int)
        kept = rng.random(len(nuclei)) < 0.7
        n = across**2
        targets = SpotTargets(
            rng.poisson(5, (n, n_genes)).astype(np.float32),
            rng.integers(100, 200, n).astype(np.float32),
            np.array([True] * (n_genes - 1) + [False]),
            np.append(nuclei.ids[kept], 7),  # 7 is no nucleus: the first spot has lost one
            np.append(spot[kept], 0),
            rng.dirichlet(np.ones(n_types), n).astype(np.float32),
            np.zeros((n, 2)),
        )
    else:
        ids = rng.permutation(np.concatenate([nuclei.ids[::2], [5, 10**15]]))
        targets = CellTargets(
            ids,
            rng.poisson(3, (len(ids), n_genes)).astype(np.float32),
            np.array([True] * (n_genes - 1) + [False]),
            rng.choice([-1, *range(n_types)], len(ids), p=[0.1, *(np.array([0.8, 0.15, 0.05])[:n_types] * 0.9)]),
        )
    stain = StainStats((255.0, 255.0, 255.0), (1.0, 1.0, 1.0))
    return Slide("s", MemorySource(image), source, mpp, nuclei, targets, stain=stain)


@pytest.fixture(scope="package")
def slide_maker():
    """(spots=, mpp=, …) -> Slide."""
    return make_slide
