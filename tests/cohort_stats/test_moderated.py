"""Moderated t-tests against the formulae of the article, written a second time, gene by gene."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from ghistpy.cohort_stats.moderated import fit_prior, moderated_t, patient_weights, squeeze


def _reference(values, design, contrast, weights=None):
    """Smyth (2004), equations of sections 3 and 6.2, one gene after the other by normal equations."""
    w = np.ones(len(values)) if weights is None else weights
    rows = []
    for y in values.T:
        k = np.isfinite(y)
        xtwx = (design[k] * w[k, None]).T @ design[k]
        beta = np.linalg.solve(xtwx, design[k].T @ (w[k] * y[k]))
        d = k.sum() - design.shape[1]
        rows.append(
            (
                contrast @ beta,
                contrast @ np.linalg.solve(xtwx, contrast),
                (w[k] * (y[k] - design[k] @ beta) ** 2).sum() / d,
                d,
            )
        )
    effect, v, s2, d = np.array(rows).T
    e = np.log(s2) - special.psi(d / 2) + np.log(d / 2)
    excess = np.mean((e - e.mean()) ** 2 * len(e) / (len(e) - 1) - special.polygamma(1, d / 2))
    half = optimize.bisect(lambda x: special.polygamma(1, x) - excess, 1e-6, 1e6, xtol=1e-13, maxiter=500)
    d0, s02 = 2 * half, np.exp(e.mean() + special.psi(half) - np.log(half))
    post = (d0 * s02 + d * s2) / (d0 + d)
    t = effect / np.sqrt(post * v)
    return t, d0, s02, 2 * stats.t.sf(np.abs(t), np.minimum(d0 + d, d.sum()))


def _data(n=14, genes=300, seed=0):
    rng = np.random.default_rng(seed)
    sd = np.sqrt(0.5 * 6 / rng.chisquare(6, genes))
    group = np.arange(n) % 2.0
    return rng.normal(size=(n, genes)) * sd, np.column_stack([np.ones(n), group, rng.normal(size=n)])


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_formulae(weighted):
    values, design = _data()
    values[np.random.default_rng(1).random(values.shape) < 0.05] = np.nan
    weights = np.random.default_rng(2).integers(10, 100, len(values)).astype(float) if weighted else None
    contrast = np.array([0.0, 1, 0])
    got = moderated_t(values, design, contrast, weights=weights)
    t, d0, s02, p = _reference(values, design, contrast, weights)
    assert got.prior.df == pytest.approx(d0, rel=1e-6)
    assert got.prior.variance == pytest.approx(s02, rel=1e-6)
    np.testing.assert_allclose(got.t, t, rtol=1e-6)
    np.testing.assert_allclose(got.pval, p, rtol=1e-5)
    np.testing.assert_array_equal(got.n, np.isfinite(values).sum(0))


def test_calibrated_under_the_null():
    values, design = _data(n=8, genes=6000, seed=3)
    p = moderated_t(values, design[:, :2], np.array([0.0, 1])).pval
    for level in (0.05, 0.01):
        assert abs((p < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p))
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_more_power_than_the_plain_t_and_the_prior_of_the_simulation():
    values, design = _data(n=8, genes=4000, seed=4)
    found = moderated_t(values, design[:, :2], np.array([0.0, 1]))
    assert found.prior.df == pytest.approx(6, rel=0.25)
    assert found.prior.variance == pytest.approx(0.5, rel=0.1)


def test_infinite_prior():
    """One variance for all genes: a z-test on the pooled variance."""
    rng = np.random.default_rng(7)
    s2 = np.full(50, 2.0)
    prior = fit_prior(s2, np.full(50, 10.0))
    assert np.isinf(prior.df)
    assert prior.variance == pytest.approx(2.0)
    np.testing.assert_allclose(squeeze(s2, np.full(50, 10.0), prior), 2.0)
    values = rng.normal(size=(40, 3))
    found = moderated_t(values, np.ones((40, 1)), np.ones(1))
    assert np.isfinite(found.pval).all()
    assert (found.df <= 39 * 3).all()


def test_zero_variance_and_constant_genes():
    values, design = _data()
    values[:, 0] = 5.0
    values[:, 1] = design[:, 1] * 2  # no residual at all
    found = moderated_t(values, design, np.array([0.0, 1, 0]))
    assert np.isnan(found.pval[0])  # what does not vary is no test
    without = moderated_t(values[:, 1:], design, np.array([0.0, 1, 0]))
    assert without.prior == found.prior
    assert np.isfinite(found.t[1])  # the prior keeps it finite
    assert found.effect[1] == pytest.approx(2)


def test_genes_that_cannot_be_tested():
    values, design = _data()
    values[design[:, 1] == 1, 0] = np.nan  # one group only
    values[:, 1] = np.nan
    values[3:, 2] = np.nan  # three patients, three coefficients
    found = moderated_t(values, design, np.array([0.0, 1, 0]))
    assert np.isnan(found.pval[:2]).all()
    assert np.isfinite(found.pval[2])  # by the prior alone
    assert found.df[2] == pytest.approx(found.prior.df)
    assert np.isfinite(found.pval[3:]).all()


def _rejected(pvalues, level):
    return np.mean(np.concatenate(pvalues) < level)


@pytest.mark.parametrize("between", [1.0, 0.2, 0.0])
def test_weighted_is_calibrated_whatever_varies_between_patients(between):
    """Weights of estimated variances; numbers of cells as weights reject a quarter at 5 %."""
    rng = np.random.default_rng(8)
    design, contrast = np.column_stack([np.ones(12), np.arange(12) % 2]), np.array([0.0, 1])
    weighted, by_cells = [], []
    for _ in range(60):
        cells = rng.choice([15, 30, 100, 600], 12)
        values = between * rng.normal(size=(12, 200)) + rng.normal(size=(12, 200)) / np.sqrt(cells)[:, None]
        weights = patient_weights(values, design, cells)
        weighted.append(moderated_t(values, design, contrast, weights=weights).pval)
        by_cells.append(moderated_t(values, design, contrast, weights=cells).pval)
    for level in (0.01, 0.05, 0.1):
        bound = 4 * np.sqrt(level * (1 - level) / 12_000)
        assert _rejected(weighted, level) < level + bound
        if between == 1.0:
            assert _rejected(weighted, level) > level - bound
    assert (_rejected(by_cells, 0.05) > 0.15) == (between > 0)


def test_weights_gain_power_where_cells_are_few():
    rng = np.random.default_rng(2)
    design, contrast = np.column_stack([np.ones(16), np.arange(16) % 2]), np.array([0.0, 1])
    cells = np.tile([10, 10, 1000, 1000], 4)
    values = 0.05 * rng.normal(size=(16, 600)) + rng.normal(size=(16, 600)) / np.sqrt(cells)[:, None]
    values += 0.15 * design[:, [1]]
    weights = patient_weights(values, design, cells)
    assert weights.mean() == pytest.approx(1)
    assert 10 < weights[2] / weights[0] < 40  # (0.05² + 1 / 10) / (0.05² + 1 / 1000) = 29
    power = [(moderated_t(values, design, contrast, weights=w).pval < 0.05).mean() for w in (None, weights)]
    assert power[1] > power[0] + 0.3


def test_weights_leave_out_who_is_not_known():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 50))
    values[3] = np.nan
    weights = patient_weights(values, np.ones((10, 1)), np.full(10, 50))
    assert weights[3] == 0
    np.testing.assert_allclose(np.delete(weights, 3), 1.0)


def test_paired_is_calibrated():
    rng = np.random.default_rng(6)
    pair = np.arange(16) // 2
    design = np.column_stack([np.ones(16), np.arange(16) % 2, np.eye(8)[pair][:, 1:]])
    contrast = np.eye(design.shape[1])[1]
    sd = np.sqrt(0.5 * 6 / rng.chisquare(6, 6000))
    values = (rng.normal(size=(16, 6000)) + 3 * rng.normal(size=(8, 6000))[pair]) * sd
    p = moderated_t(values, design, contrast).pval
    for level in (0.01, 0.05, 0.1):
        assert abs((p < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p))


@pytest.mark.parametrize(("n", "weighted", "plain"), [(8, 0.072, 0.057), (12, 0.065, 0.053)])
def test_excess_where_groups_differ_in_cells_is_as_documented(n, weighted, plain):
    """10 to 20 cells against 300 to 600, patients alike but for their cells: both tests reject too often."""
    rng = np.random.default_rng(5)
    design, contrast = np.column_stack([np.ones(2 * n), np.repeat([0.0, 1], n)]), np.array([0.0, 1])
    found = {True: [], False: []}
    for _ in range(60):
        cells = np.r_[rng.integers(10, 21, n), rng.integers(300, 601, n)]
        values = rng.normal(size=(2 * n, 200)) / np.sqrt(cells)[:, None]
        for own in found:
            weights = patient_weights(values, design, cells) if own else None
            found[own].append(moderated_t(values, design, contrast, weights=weights).pval)
    bound = 4 * np.sqrt(0.06 * 0.94 / 12_000)
    assert _rejected(found[True], 0.05) == pytest.approx(weighted, abs=bound)
    assert _rejected(found[False], 0.05) == pytest.approx(plain, abs=bound)
    assert _rejected(found[True], 0.05) > 0.05 + bound / 2


def test_few_patients_with_few_cells_need_weights():
    """4 patients of 10 to 20 cells against 12 of 300 to 600: unweighted the test is none, weighted 11 % at 5 %."""
    rng = np.random.default_rng(6)
    design, contrast = np.column_stack([np.ones(16), np.arange(16) >= 4]), np.array([0.0, 1])
    weighted, plain = [], []
    for _ in range(60):
        cells = np.r_[rng.integers(10, 21, 4), rng.integers(300, 601, 12)]
        values = rng.normal(size=(16, 200)) / np.sqrt(cells)[:, None]
        weights = patient_weights(values, design, cells)
        weighted.append(moderated_t(values, design, contrast, weights=weights).pval)
        plain.append(moderated_t(values, design, contrast).pval)
    assert _rejected(weighted, 0.05) == pytest.approx(0.113, abs=0.015)
    assert _rejected(plain, 0.05) == pytest.approx(0.297, abs=0.02)
