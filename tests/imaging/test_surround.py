"""What surrounds a nucleus: equal to means over cells computed one by one, and bounded in reach."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.imaging.stain import TISSUE_OD
from ghistpy.imaging.surround import CELL_UM, SURROUND, cell_px, reach_px, surround_features

SIDE = 256


def scene(seed=0):
    rng = np.random.default_rng(seed)
    od = np.abs(rng.normal(0.3, 0.3, (3, SIDE, SIDE))).astype(np.float32)
    labels = (rng.random((SIDE, SIDE)) < 0.3) * rng.integers(1, 50, (SIDE, SIDE))
    centroid = rng.uniform(0, SIDE, (40, 2))
    return od, labels, centroid


def one_by_one(od, labels, centroid, mpp):
    """From the definition: mean over 5 x 5 cells, each averaged first; the border repeats the last cell."""
    cell = cell_px(mpp)
    grey = od.astype(np.float64).mean(axis=0)
    gradient = np.zeros_like(grey)
    for y in range(1, SIDE - 1):
        for x in range(1, SIDE - 1):
            dy, dx = grey[y + 1, x] - grey[y - 1, x], grey[y, x + 1] - grey[y, x - 1]
            gradient[y, x] = np.sqrt(dy**2 + dx**2) / 2
    maps = [*od, *od.astype(np.float64) ** 2, gradient, labels > 0, grey > TISSUE_OD]
    last = SIDE // cell - 1
    out = np.zeros((len(centroid), len(maps)))
    for i, (cy, cx) in enumerate(centroid):
        for j, values in enumerate(maps):
            means = []
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    a = min(max(int(cy // cell) + dy, 0), last) * cell
                    b = min(max(int(cx // cell) + dx, 0), last) * cell
                    means.append(values[a : a + cell, b : b + cell].mean())
            out[i, j] = np.mean(means)
    return out


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.687, 1.0])
def test_equals_the_definition(mpp):
    od, labels, centroid = scene()
    got = surround_features(od, labels, centroid, mpp)
    assert (got.shape, got.dtype) == ((40, len(SURROUND)), np.float32)
    np.testing.assert_allclose(got, one_by_one(od, labels, centroid, mpp), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mpp", [0.2, 0.25, 0.4, 0.5, 0.687, 1.0, 2.0, 9.0])
def test_cells_divide_the_grid_of_tiles(mpp):
    assert 16 % cell_px(mpp) == 0
    if 0.5 <= mpp <= 8:
        assert CELL_UM / np.sqrt(2) <= cell_px(mpp) * mpp <= CELL_UM * np.sqrt(2)


@pytest.mark.parametrize("shift", [(16, 0), (0, 48), (32, 16)])
def test_the_place_of_the_window_does_not_matter(shift):
    od, labels, centroid = scene()
    inside = (centroid > reach_px(0.5) + 50).all(axis=1) & (centroid < SIDE - reach_px(0.5)).all(axis=1)
    crop = np.s_[..., shift[0] :, shift[1] :]
    got = surround_features(od[crop], labels[crop], centroid[inside] - shift, 0.5)
    np.testing.assert_allclose(got, surround_features(od, labels, centroid[inside], 0.5), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_reach_bounds_what_matters(mpp):
    od, labels, _ = scene()
    reach = reach_px(mpp)
    farthest = 0.0
    for centroid in np.random.default_rng(2).uniform(100, 150, (8, 2)):
        before = surround_features(od, labels, centroid[None], mpp)
        y, x = np.abs(np.arange(SIDE) + 0.5 - centroid[0]), np.abs(np.arange(SIDE) + 0.5 - centroid[1])
        distance = np.maximum(y[:, None], x[None, :])
        changed, relabelled = od.copy(), labels.copy()
        changed[:, distance > reach] = 3.0
        relabelled[distance > reach] = 1
        np.testing.assert_allclose(surround_features(changed, relabelled, centroid[None], mpp), before, rtol=1e-6)
        # the bound is not idle: a little nearer something does change
        changed[:, distance > reach - cell_px(mpp) - 2] = 3.0
        farthest += np.abs(surround_features(changed, labels, centroid[None], mpp) - before).max()
    assert farthest > 1e-3
