"""SPARK-X against a small independent implementation; its level and its power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ghistpy.stats.coordinate_tests import KERNELS, explained_share, orthonormal_blocks, rows_with_values, sparkx

LEVELS = (0.01, 0.05, 0.1)


def small_sparkx(y, xy):
    """One gene, by the equations of the paper: K as an n x n matrix, λ, the χ² tail, Cauchy combination."""
    from scipy.stats import chi2

    n = len(y)
    x = xy - xy.mean(axis=0)
    functions = [lambda v, l: v]
    functions += [lambda v, l, i=i: np.exp(-(v**2) / (2 * l[i] ** 2)) for i in range(5)]
    functions += [lambda v, l, i=i: np.cos(2 * np.pi * v / l[i]) for i in range(5)]
    p = []
    for function in functions:
        z = np.column_stack(
            [function(x[:, a], np.quantile(np.abs(x[:, a]), [0.2, 0.4, 0.6, 0.8, 1.0])) for a in range(2)]
        )
        z = z - z.mean(axis=0)
        k = z @ np.linalg.inv(z.T @ z) @ z.T
        statistic = n * (y @ k @ y) / (y @ y)
        weight = 1 - n * y.mean() ** 2 / (y @ y)
        p.append(chi2.sf(statistic / weight, 2))
    return np.array(p), 0.5 - np.arctan(np.mean(np.tan((0.5 - np.array(p)) * np.pi))) / np.pi


@pytest.fixture(scope="module")
def slide():
    rng = np.random.default_rng(0)
    xy = rng.uniform([0, 500], [900, 1100], (700, 2))
    trend = np.stack([np.full(700, 1.0), 1 + xy[:, 0] / 2000, 1 + 0.5 * np.sin(xy[:, 1] / 60)], axis=1)
    return xy, rng.poisson(0.8 * np.tile(trend, 8)).astype(np.float32)


def test_equals_the_equations_dense_and_sparse(slide):
    xy, counts = slide
    kept = counts.sum(axis=1) > 0
    expected = [small_sparkx(column, xy[kept]) for column in counts[kept].astype(float).T]
    for values in (counts, sparse.csr_matrix(counts), sparse.csc_array(counts.astype(np.int64))):
        found = sparkx(values, xy)
        np.testing.assert_allclose(np.exp(found.kernel_log_p), np.stack([e[0] for e in expected], axis=1), rtol=1e-6)
        np.testing.assert_allclose(found.pval, [e[1] for e in expected], rtol=1e-6)
    assert len(found.kernel_log_p) == len(KERNELS) == 11


def test_empty_cells_and_genes_are_left_out_and_counted(slide):
    xy, counts = slide
    counts = counts.copy()
    counts[:40] = 0
    counts[:, 3] = 0
    found = sparkx(counts, xy)
    assert (~found.kept).sum() == 40
    assert (found.n_empty_genes, found.n_constant_genes) == (1, 0)
    assert np.isnan(found.pval[3])
    rest = sparkx(counts[40:], xy[40:])
    np.testing.assert_allclose(found.log_p, rest.log_p, rtol=1e-9)
    counts[40:, 5] = 2
    assert sparkx(counts, xy).n_constant_genes == 1


def test_which_cells_are_used_does_not_depend_on_the_genes_that_are_asked_for(slide):
    xy, counts = slide
    everything = sparkx(counts, xy)
    for values in (counts, sparse.csc_array(counts)):
        kept = rows_with_values(values)
        np.testing.assert_array_equal(kept, counts.any(axis=1))
        np.testing.assert_allclose(sparkx(values[:, [2]], xy, kept=kept).log_p, everything.log_p[[2]], rtol=1e-9)
    assert rows_with_values(np.array([[0.0, 0.0], [-1.0, 1.0]])).tolist() == [False, True]
    with pytest.raises(ValueError, match="one bool per point"):
        sparkx(counts, xy, kept=np.ones(3, bool))


@pytest.mark.parametrize("n_positive", [5, 20, 80, 400, 1500])
def test_level_by_detection_rate(n_positive):
    rng = np.random.default_rng(n_positive)
    n, n_genes = 1500, 3000
    xy = rng.uniform(0, 600, (n, 2))
    rows = np.argsort(rng.random((n_genes, n)), axis=1)[:, :n_positive]
    values = sparse.csc_array(
        (1.0 + rng.poisson(0.5, rows.size), (rows.ravel(), np.repeat(np.arange(n_genes), n_positive))), (n, n_genes)
    )
    pval = sparkx(values, xy).pval
    for level in LEVELS:
        sd = np.sqrt(level * (1 - level) / n_genes)
        rate = (pval <= level).mean()
        # with a handful of positive cells the χ² tail is not reached: conservative
        assert rate <= level + 4 * sd
        if n_positive >= 80:
            assert abs(rate - level) <= 5 * sd, (level, rate)


def test_smooth_depth_is_a_pattern_unless_it_is_a_covariate():
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 600, (2000, 2))
    depth = np.exp(0.4 * np.sin(xy[:, 0] / 150))
    counts = rng.poisson(0.5 * depth[:, None], (2000, 400)).astype(float)
    total = np.log(rng.poisson(300 * depth))
    assert (sparkx(counts, xy).pval <= 0.05).mean() > 0.8
    # log1p makes the dependence on log depth straight and the spread even
    adjusted = sparkx(np.log1p(counts), xy, covariates=np.column_stack([total, total**2])).pval
    for level in LEVELS:
        assert (adjusted <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 400)


def test_covariates_are_projected_out():
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 600, (500, 2))
    covariate = rng.normal(size=(500, 2))
    values = rng.normal(size=(500, 3)) + covariate @ rng.normal(size=(2, 3)) + 5
    fixed = np.linalg.qr(np.column_stack([np.ones(500), covariate]))[0]
    y, z = (v - fixed @ (fixed.T @ v) for v in (values, xy - xy.mean(axis=0)))
    fitted = z @ np.linalg.lstsq(z, y, rcond=None)[0]
    expected = (fitted**2).sum(axis=0) / (y**2).sum(axis=0)
    share, _ = explained_share(values, orthonormal_blocks([xy], fixed), fixed)
    np.testing.assert_allclose(share[0], expected, rtol=1e-9)
    found = sparkx(values - values.min(), xy, covariates=covariate)
    np.testing.assert_allclose(found.kernel_log_p[0], -0.5 * 500 * expected, rtol=1e-8)


@pytest.mark.parametrize("pattern", ["gradient", "hot spot", "streak", "periodic"])
def test_power_on_planted_patterns(pattern):
    """Fold changes of 2 at most, in genes of 0.5 counts a cell."""
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 1000, (3000, 2))
    x, y = xy.T
    fold = {
        "gradient": 1 + x / 1000,
        "hot spot": 1 + 1.0 * (np.hypot(x - 500, y - 500) < 200),
        "streak": 1 + 1.0 * (np.abs(y - 700) < 100),
        "periodic": 1 + 0.6 * np.sin(2 * np.pi * x / 500),
    }[pattern]
    counts = rng.poisson(0.5 * fold[:, None], (3000, 60)).astype(float)
    pval = sparkx(counts, xy).pval
    assert (pval <= 0.001).mean() > 0.8
    assert small_sparkx(counts[:, 0], xy)[1] == pytest.approx(pval[0], rel=1e-4)


def test_depends_on_how_the_slide_is_turned():
    """As the original does; documented. A shift or a change of unit changes nothing."""
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 1000, (1500, 2))
    counts = rng.poisson(1 + 0.8 * np.sin((xy[:, :1] + xy[:, 1:]) / 80) ** 2, (1500, 5)).astype(float)
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    reference = sparkx(counts, xy).log_p
    np.testing.assert_allclose(sparkx(counts, xy * 0.2 + 700).log_p, reference, rtol=1e-6)
    assert np.abs(sparkx(counts, xy @ turn).log_p - reference).max() > 1


def test_a_very_strong_pattern_does_not_underflow():
    rng = np.random.default_rng(6)
    xy = rng.uniform(0, 1000, (20_000, 2))
    found = sparkx((xy[:, :1] > 500) * 5.0 + rng.poisson(1.0, (20_000, 1)), xy)
    assert found.pval[0] == 0
    assert -np.inf < found.log_p[0] < -2000


@pytest.mark.parametrize(
    ("values", "xy", "message"),
    [
        (np.ones((5, 2)), np.ones((4, 2)), "expected \\(n, G\\) and \\(n, 2\\)"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), "10 are NaN"),
        (np.ones((5, 2)), np.full((5, 2), np.inf), "coordinates: 10 are NaN"),
        (np.eye(5)[:, :3], np.random.default_rng(0).random((5, 2)), "at least 4 are needed"),
    ],
)
def test_errors(values, xy, message):
    with pytest.raises(ValueError, match=message):
        sparkx(values, xy)
