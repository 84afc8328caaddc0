"""Maps against stationary maps with their variogram: equations, level on tissues of any shape, power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from ghistpy.geometry import knn_graph
from ghistpy.stats import row_standardised
from ghistpy.stats.coordinate_tests import coordinate_kernels
from ghistpy.stats.map_shift import map_shift_test
from ghistpy.stats.variogram import variogram_test


def by_equations(y, xy, tile, side, block):
    """One gene and one part, from full matrices: tile sums, least squares of R y y' R, Wald, Satterthwaite."""
    names, code = np.unique(tile, return_inverse=True)
    count = np.bincount(code)
    pool = (code == np.arange(len(names))[:, None]) / np.sqrt(count)[:, None]
    centre = pool @ xy / np.sqrt(count)[:, None]
    distance = np.linalg.norm(centre[:, None] - centre, axis=2)
    kernels = [np.eye(len(names))]
    kernels += [np.sqrt(np.outer(count, count)) * np.exp(-0.5 * (distance / (f * side)) ** 2) for f in (1, 2, 4)]
    y, block, mean = pool @ y, pool @ block, np.sqrt(count / count.sum())
    block = block - np.outer(mean, mean @ block)
    q = np.linalg.qr(np.column_stack([mean, block]))[0]
    r = np.eye(len(names)) - q @ q.T
    left = np.stack([(r @ k @ r).ravel() for k in kernels], axis=1)
    s = optimize.nnls(left, np.outer(r @ y, r @ y).ravel(), maxiter=1000)[0]
    basis = np.linalg.qr(block)[0]
    a, cov = basis.T @ y, basis.T @ sum(w * k for w, k in zip(s, kernels, strict=True)) @ basis
    # the variance of the estimated mean variance of the part: it is a quadratic form y'Ay in the residual
    free = s > 0
    weight = np.array([np.trace(basis.T @ k @ basis) for k in kernels])
    form = (left[:, free] @ np.linalg.solve(left[:, free].T @ left[:, free], weight[free])).reshape(r.shape)
    residual = r @ sum(w * k for w, k in zip(s, kernels, strict=True)) @ r
    freedom = max(2 * (weight @ s) ** 2 / (2 * np.trace(form @ residual @ form @ residual)), 1.0)
    p = block.shape[1]
    return s, freedom, stats.f.sf(a @ np.linalg.solve(cov, a) / p, p, freedom)


def test_equals_the_equations(stationary):
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 600, (900, 2))
    values = stationary(rng, xy, 25, 6) + rng.normal(size=(900, 6))
    found = variogram_test(values, xy, [xy])
    cells = np.floor((xy - xy.min(axis=0)) / found.side).astype(int)
    for g in range(6):
        s, freedom, p = by_equations(values[:, g], xy, cells[:, 0] * 1000 + cells[:, 1], found.side, xy)
        np.testing.assert_allclose(found.variance[:, g], s, atol=1e-6)
        np.testing.assert_allclose(found.freedom[0, g], freedom, rtol=1e-4)
        np.testing.assert_allclose(found.pval[g], p, rtol=1e-4)


@pytest.mark.parametrize("shape", ["square", "L", "ring"])
def test_level_with_smooth_maps_on_any_shape(shape, tissue, stationary, assert_level):
    rng = np.random.default_rng(1)
    for reach in (15, 45):
        by_kernels, by_layout = [], []
        for _ in range(6):
            xy = tissue(rng, shape, 800)
            maps = stationary(rng, xy, reach, 30) + 0.3 * rng.normal(size=(800, 30))
            by_kernels.append(variogram_test(maps, xy, coordinate_kernels(xy)).pval)
            by_layout.append(variogram_test(maps, xy, [stationary(rng, xy, 50, 3)]).pval)
        assert_level(by_kernels, reach)
        assert_level(by_layout, reach)


@pytest.mark.parametrize("n_positive", [5, 20, 80, 400, 800])
def test_level_by_detection_rate(n_positive, stationary, assert_level):
    """Positive cells lie where a smooth map is high."""
    rng = np.random.default_rng(n_positive)
    pvals = []
    for _ in range(6):
        xy = rng.uniform(0, 600, (800, 2))
        order = stationary(rng, xy, 30, 60) + rng.gumbel(size=(800, 60))
        positive = np.argsort(np.argsort(-order, axis=0), axis=0) < n_positive
        pvals.append(variogram_test(positive * (1.0 + rng.poisson(1, (800, 60))), xy, coordinate_kernels(xy)).pval)
    assert_level(pvals)


@pytest.mark.parametrize("what", ["blur", "depth", "wrong types"])
def test_level_with_what_defeats_value_permutation(what, stationary, assert_level):
    """Noise through a blur, counts under smooth depth, and types in patches: smooth, but unrelated to the layout."""
    rng = np.random.default_rng(2)
    pvals = []
    for _ in range(6):
        xy = rng.uniform(0, 600, (800, 2))
        if what == "blur":
            values = row_standardised(knn_graph(xy, 12).weights) @ rng.normal(size=(800, 40))
        elif what == "depth":
            values = np.log1p(rng.poisson(np.exp(0.5 * stationary(rng, xy, 40, 40))))
        else:
            values = (stationary(rng, xy, 30, 40) > 0) + 0.3 * rng.normal(size=(800, 40))
        pvals.append(variogram_test(values, xy, coordinate_kernels(xy)).pval)
    assert_level(pvals, what)


def test_finds_more_than_shifted_maps(stationary):
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 600, (1200, 2))
    noise = stationary(rng, xy, 15, 40) + 0.3 * rng.normal(size=(1200, 40))
    trend, layout = xy[:, :1] / 300, stationary(rng, xy, 50, 1)
    kernels = coordinate_kernels(xy)
    found = (variogram_test(noise + trend, xy, kernels).pval <= 0.05).mean()
    assert found > 0.6
    assert found > (map_shift_test(noise + trend, xy, kernels, n_shifts=99).pval <= 0.05).mean() + 0.2
    assert (variogram_test(noise + 0.6 * layout, xy, [layout]).pval <= 0.01).mean() > 0.8


def test_a_map_that_reaches_over_the_slide_is_a_pattern(stationary):
    """What the claim says it cannot tell: a range of half the slide."""
    rng = np.random.default_rng(4)
    rates = []
    for _ in range(6):
        xy = rng.uniform(0, 600, (600, 2))
        maps = stationary(rng, xy, 300, 40) + 0.3 * rng.normal(size=(600, 40))
        rates.append((variogram_test(maps, xy, coordinate_kernels(xy)).pval <= 0.05).mean())
    assert np.mean(rates) > 0.2


def test_sparse_equals_dense_and_the_unit_does_not_matter():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 600, (700, 2))
    counts = rng.poisson(0.5, (700, 8)).astype(np.float32)
    reference = variogram_test(counts, xy, coordinate_kernels(xy)).log_p
    np.testing.assert_allclose(
        variogram_test(sparse.csr_matrix(counts), xy, coordinate_kernels(xy)).log_p, reference, rtol=1e-5
    )
    moved = xy * 0.2 + 700
    np.testing.assert_allclose(variogram_test(3 * counts, moved, coordinate_kernels(moved)).log_p, reference, rtol=1e-4)


def test_constant_genes_and_genes_that_are_the_layout():
    rng = np.random.default_rng(6)
    xy = rng.uniform(0, 600, (500, 2))
    found = variogram_test(np.column_stack([np.full(500, 2.0), xy[:, 0], rng.normal(size=500)]), xy, [xy])
    assert np.isnan(found.pval).tolist() == [True, False, False]
    assert found.pval[1] < 1e-10


def test_errors():
    xy = np.random.default_rng(0).random((300, 2))
    with pytest.raises(ValueError, match="expected 300 rows"):
        variogram_test(np.ones((300, 1)), xy[:5], [xy])
    with pytest.raises(ValueError, match=r"50 points fill \d+ tiles, a variogram needs 100"):
        variogram_test(np.ones((50, 1)), xy[:50], [xy[:50]])
    with pytest.raises(ValueError, match="fill 1 tiles"):
        variogram_test(np.ones((300, 1)), np.ones((300, 2)), [xy])
