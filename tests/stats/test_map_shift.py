"""Shifted maps: the level with smooth maps, where value permutation always rejects, and the power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ghistpy.geometry import knn_graph
from ghistpy.stats.coordinate_tests import coordinate_kernels
from ghistpy.stats.map_shift import map_shift_test
from ghistpy.stats.spatial_autocorrelation import autocorrelation_test


def stationary(rng, xy, reach, n_maps):
    """Smooth Gaussian maps of correlation exp(-d² / 4 reach²), alike everywhere, also at the borders."""
    out = np.empty((len(xy), n_maps))
    for k in range(n_maps):
        waves = rng.normal(size=(2, 120)) / (reach * np.sqrt(2))
        out[:, k] = np.cos(xy @ waves + rng.uniform(0, 2 * np.pi, 120)).sum(axis=1) / np.sqrt(60)
    return out


@pytest.mark.parametrize("reach", [15, 30, 60])
def test_level_with_smooth_maps(reach):
    """Slides of 600 µm; several of them, because the genes of one slide share its layout and its shifts."""
    rng = np.random.default_rng(reach)
    by_kernels, by_layout, permuted = [], [], []
    for slide in range(6):
        xy = rng.uniform(0, 600, (600, 2))
        maps = stationary(rng, xy, reach, 40) + 0.3 * rng.normal(size=(600, 40))
        layout = stationary(rng, xy, 50, 3)
        by_kernels.append(map_shift_test(maps, xy, coordinate_kernels(xy), n_shifts=99, seed=slide).pval)
        by_layout.append(map_shift_test(maps, xy, [layout], n_shifts=99, seed=slide).pval)
        if slide < 2:
            permuted.append(autocorrelation_test(maps, knn_graph(xy, 6).weights).pval)
    assert (np.concatenate(permuted) < 0.001).all()  # what value permutation says of the same maps
    for pvals in (by_kernels, by_layout):
        for level in (0.01, 0.05, 0.1):
            rates = np.array([(p <= level).mean() for p in pvals])
            # the spread between slides, and a tolerance of 2 % that is documented
            error = max(rates.std(ddof=1), np.sqrt(level / 40)) / np.sqrt(len(rates))
            assert rates.mean() <= level + 3 * error + 0.02, (level, rates)


def test_power():
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


def test_errors():
    xy = np.random.default_rng(0).random((10, 2))
    with pytest.raises(ValueError, match="expected 10 rows"):
        map_shift_test(np.ones((10, 1)), xy[:5], [xy], n_shifts=5)
    with pytest.raises(ValueError, match="at least one shift"):
        map_shift_test(np.ones((10, 1)), xy, [xy], n_shifts=0)
