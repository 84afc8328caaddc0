"""Shifted maps: the level with smooth maps, where value permutation always rejects, and the power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ghistpy.geometry import knn_graph
from ghistpy.stats import row_standardised
from ghistpy.stats.coordinate_tests import coordinate_kernels
from ghistpy.stats.map_shift import map_shift_test, strays
from ghistpy.stats.spatial_autocorrelation import autocorrelation_test


@pytest.mark.parametrize("shape", ["square", "L", "ring"])
def test_level_with_smooth_maps_on_any_shape(shape, tissue, stationary, assert_level):
    """Several slides, because the genes of one slide share its layout and its shifts."""
    rng = np.random.default_rng(0)
    by_kernels, by_layout = [], []
    for slide in range(6):
        xy = tissue(rng, shape, 600)
        maps = stationary(rng, xy, 60, 30) + 0.3 * rng.normal(size=(600, 30))
        layout = stationary(rng, xy, 50, 3)
        by_kernels.append(map_shift_test(maps, xy, coordinate_kernels(xy), n_shifts=99, seed=slide).pval)
        by_layout.append(map_shift_test(maps, xy, [layout], n_shifts=99, seed=slide).pval)
    assert_level(by_kernels)
    assert_level(by_layout)
    # what value permutation says of such maps
    assert (autocorrelation_test(maps, knn_graph(xy, 6).weights).pval < 0.001).all()


def test_exceeds_its_level_with_short_maps_on_a_square(stationary):
    """Documented: a copy is a folded function, which follows a map of short range less than a straight one."""
    rng = np.random.default_rng(8)
    rates = []
    for slide in range(6):
        xy = rng.uniform(0, 600, (600, 2))
        maps = stationary(rng, xy, 15, 40) + 0.3 * rng.normal(size=(600, 40))
        pval = map_shift_test(maps, xy, coordinate_kernels(xy), n_shifts=99, seed=slide).pval
        rates.append((pval <= 0.05).mean())
    assert 0.05 < np.mean(rates) < 0.2


@pytest.mark.parametrize("n_positive", [5, 20, 80, 400, 600])
def test_level_by_detection_rate(n_positive, stationary, assert_level):
    """Positive cells lie where a smooth map is high."""
    rng = np.random.default_rng(n_positive)
    pvals = []
    for slide in range(6):
        xy = rng.uniform(0, 600, (600, 2))
        order = stationary(rng, xy, 30, 40) + rng.gumbel(size=(600, 40))
        positive = np.argsort(np.argsort(-order, axis=0), axis=0) < n_positive
        values = positive * (1.0 + rng.poisson(1, (600, 40)))
        pvals.append(map_shift_test(values, xy, coordinate_kernels(xy), n_shifts=99, seed=slide).pval)
    assert_level(pvals)


@pytest.mark.parametrize("what", ["blur", "depth", "wrong types"])
def test_level_with_what_defeats_value_permutation(what, stationary, assert_level):
    rng = np.random.default_rng(2)
    pvals = []
    for slide in range(6):
        xy = rng.uniform(0, 600, (600, 2))
        if what == "blur":
            values = row_standardised(knn_graph(xy, 12).weights) @ rng.normal(size=(600, 40))
        elif what == "depth":
            values = np.log1p(rng.poisson(np.exp(0.5 * stationary(rng, xy, 40, 40))))
        else:
            values = (stationary(rng, xy, 30, 40) > 0) + 0.3 * rng.normal(size=(600, 40))
        pvals.append(map_shift_test(values, xy, coordinate_kernels(xy), n_shifts=99, seed=slide).pval)
    assert_level(pvals, what)


def test_power(stationary):
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 600, (1200, 2))
    noise = stationary(rng, xy, 15, 40)
    trend = xy[:, :1] / 300
    centre = np.exp(-((xy - 300) ** 2).sum(axis=1, keepdims=True) / (2 * 80**2))
    assert (map_shift_test(noise + 4 * trend, xy, coordinate_kernels(xy), n_shifts=99).pval <= 0.05).mean() > 0.9
    assert (map_shift_test(noise + 4 * centre, xy, coordinate_kernels(xy), n_shifts=99).pval <= 0.05).mean() > 0.9
    niche = (stationary(rng, xy, 40, 1) > 0.8) * 1.0
    assert (map_shift_test(noise + niche, xy, [niche], n_shifts=99).pval <= 0.05).mean() > 0.9


def test_sparse_dense_and_repeats_give_one_result():
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 300, (300, 2))
    counts = rng.poisson(0.5, (300, 20)).astype(np.float32)
    layout = [np.eye(3)[rng.integers(0, 3, 300)]]
    dense, thin = (map_shift_test(v, xy, layout, n_shifts=49) for v in (counts, sparse.csr_matrix(counts)))
    np.testing.assert_allclose(dense.share, thin.share, rtol=1e-4)
    assert np.abs(dense.pval - thin.pval).max() <= 0.021  # a tie may fall on either side
    assert (map_shift_test(counts, xy, layout, n_shifts=49).pval == dense.pval).all()


def test_share_is_r_squared():
    rng = np.random.default_rng(3)
    xy, layout = rng.uniform(0, 300, (200, 2)), rng.normal(size=(200, 3))
    values = rng.normal(size=(200, 4)) + layout[:, :1]
    design = np.column_stack([np.ones(200), layout])
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    found = map_shift_test(values, xy, [layout], n_shifts=1)
    np.testing.assert_allclose(found.share[0], 1 - left.var(axis=0) / values.var(axis=0), rtol=1e-9)


def test_constant_genes_are_nan_and_holes_are_left_out():
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 600, (3000, 2))
    ring = xy[np.hypot(*(xy - 300).T) > 120]  # a hole in the middle
    values = rng.normal(size=(len(ring), 3))
    values[:, 1] = 2.0
    found = map_shift_test(values, ring, [ring / 600], n_shifts=19)
    assert np.isnan(found.pval).tolist() == [False, True, False]


def test_a_tissue_that_cannot_be_shifted_is_refused():
    t = np.random.default_rng(5).uniform(0, 1000, 2000)
    line = np.column_stack([t, t + np.random.default_rng(6).normal(size=2000)])
    with pytest.raises(ValueError, match="too far from a rectangle"):
        map_shift_test(np.ones((2000, 1)) * t[:, None], line, [t[:, None]], n_shifts=5)


def test_strays_and_cells_at_one_place():
    rng = np.random.default_rng(7)
    xy = rng.uniform(0, 600, (800, 2))
    values = rng.normal(size=(800, 2))
    away = xy.copy()
    away[[3, 70]] = [[9000, 9000], [9010, 9000]]
    assert np.flatnonzero(strays(away)).tolist() == [3, 70]
    assert not strays(xy).any()
    with pytest.raises(ValueError, match="too far from a rectangle"):
        map_shift_test(values, away, [away], n_shifts=5)
    xy[:300] = xy[0]
    assert not strays(xy).any()
    assert np.isfinite(map_shift_test(values, xy, [xy], n_shifts=5).pval).all()
    with pytest.raises(ValueError, match="800 points lie on top of each other"):
        map_shift_test(values, np.ones((800, 2)), [xy], n_shifts=5)


def test_errors():
    xy = np.random.default_rng(0).random((10, 2))
    with pytest.raises(ValueError, match="expected 10 rows"):
        map_shift_test(np.ones((10, 1)), xy[:5], [xy], n_shifts=5)
    with pytest.raises(ValueError, match="at least one shift"):
        map_shift_test(np.ones((10, 1)), xy, [xy], n_shifts=0)
