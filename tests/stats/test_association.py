"""Welch by matrix products against scipy, covariates against statsmodels, tails against mpmath, calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from ghistpy.stats.adjusted import adjusted_welch, residuals
from ghistpy.stats.association import modal_mass, prepare, rank_normal, welch
from ghistpy.stats.permuted import Design, family_wise, permutation_null
from ghistpy.stats.tails import inflation, log_bh, log_two_sided_t


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    calls = rng.choice([-1, 0, 1], size=(12, 90), p=[0.3, 0.3, 0.4])
    values = rng.gamma(2, 3, size=(90, 7)) + 100
    values[rng.random(90) < 0.2, 1:4] = np.nan
    values[rng.random(90) < 0.1, 5] = np.nan
    return calls, values


@pytest.mark.parametrize("df", [3.0, 7.3, 40.0, 521.7])
@pytest.mark.parametrize("t", [0.0, 1e-3, -2.0, 30.0, 200.0, -5e3, 1e8])
def test_tail_of_t_in_log_space(t, df):
    import mpmath

    mpmath.mp.dps = 60
    x = mpmath.mpf(df) / (mpmath.mpf(df) + mpmath.mpf(t) ** 2)
    expected = float(mpmath.log(mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, x, regularized=True)))
    assert log_two_sided_t(np.array([t]), np.array([df])).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_tail_of_t_at_its_ends():
    found = log_two_sided_t(np.array([np.nan, np.inf, 1.0]), np.array([5.0, 5.0, np.nan]))
    np.testing.assert_array_equal(found, [np.nan, -np.inf, np.nan])


def test_bh_is_that_of_scipy_and_leaves_nan_out():
    p = np.random.default_rng(1).uniform(size=(30, 5)) ** 3
    np.testing.assert_allclose(np.exp(log_bh(np.log(p))), stats.false_discovery_control(p.ravel()).reshape(p.shape))
    holes = p.copy()
    holes[3:9, 2] = np.nan
    found = np.exp(log_bh(np.log(holes)))
    kept = ~np.isnan(holes)
    np.testing.assert_allclose(found[kept], stats.false_discovery_control(holes[kept]))
    assert np.isnan(found[~kept]).all()


def test_inflation_of_uniform_and_of_doubled_statistics():
    z = stats.norm.ppf((np.arange(9999) + 0.5) / 9999)
    for factor in (1.0, 2.0):
        assert inflation(np.log(2 * stats.norm.sf(np.abs(z) * factor**0.5))) == pytest.approx(factor, rel=1e-3)


def test_rank_normal_is_blom_with_ties_and_holes():
    x = np.array([3.0, 1.0, 3.0, np.nan, 9.0])
    expected = stats.norm.ppf((np.array([2.5, 1, 2.5, np.nan, 4]) - 0.375) / 4.25)
    np.testing.assert_allclose(rank_normal(x[:, None])[:, 0], expected)
    np.testing.assert_allclose(modal_mass(np.column_stack([x, np.full(5, np.nan)])), [0.5, np.nan])


def test_welch_is_that_of_scipy(table):
    calls, values = table
    found = welch(calls < 0, calls > 0, prepare(values), min_samples=5)
    for k, f in np.ndindex(len(calls), values.shape[1]):
        here = np.isfinite(values[:, f])
        low, high = values[(calls[k] < 0) & here, f], values[(calls[k] > 0) & here, f]
        expected = stats.ttest_ind(high, low, equal_var=False)
        np.testing.assert_allclose(found.t[k, f], expected.statistic, rtol=1e-10)
        np.testing.assert_allclose(np.exp(found.log_p[k, f]), expected.pvalue, rtol=1e-9)
        np.testing.assert_allclose(found.difference[k, f], high.mean() - low.mean(), rtol=1e-10)


def test_small_groups_are_no_test(table):
    calls, values = table
    smallest = min(((calls == c).sum(axis=1)).min() for c in (-1, 1))
    found = welch(calls < 0, calls > 0, prepare(values[:, :1]), min_samples=int(smallest) + 1)
    enough = np.minimum((calls < 0).sum(axis=1), (calls > 0).sum(axis=1)) > smallest
    np.testing.assert_array_equal(np.isnan(found.t[:, 0]), ~enough)
    assert 0 < enough.sum() < len(enough)


def test_covariates_are_least_squares_with_hc2_errors(table):
    import statsmodels.api as sm

    calls, values = table
    rng = np.random.default_rng(3)
    covariates = np.column_stack([rng.normal(size=90) + calls[0], rng.integers(0, 2, 90)])
    found = adjusted_welch(calls < 0, calls > 0, prepare(values), covariates, min_samples=5)
    for k, f in ((0, 0), (3, 2), (11, 5)):
        rows = np.isfinite(values[:, f]) & (calls[k] != 0)
        design = np.column_stack([np.ones(rows.sum()), calls[k, rows] > 0, covariates[rows]])
        fit = sm.OLS(values[rows, f], design).fit(cov_type="HC2")
        np.testing.assert_allclose(found.difference[k, f], fit.params[1], rtol=1e-8)
        np.testing.assert_allclose(found.t[k, f], fit.params[1] / fit.bse[1], rtol=1e-8)


def test_without_covariates_the_adjusted_test_is_welch(table):
    calls, values = table
    plain = welch(calls < 0, calls > 0, prepare(values), min_samples=5)
    found = adjusted_welch(calls < 0, calls > 0, prepare(values), np.zeros((90, 0)), min_samples=5)
    np.testing.assert_allclose(found.t, plain.t, rtol=1e-9)
    np.testing.assert_allclose(found.log_p, plain.log_p, rtol=1e-8)


def _degrees_of_freedom(y, group, covariates):
    """Bell and McCaffrey with a variance for each group, from n x n matrices."""
    X = np.column_stack([np.ones(len(y)), group, covariates])
    inverse = np.linalg.inv(X.T @ X)
    M = np.eye(len(y)) - X @ inverse @ X.T
    weight = inverse[1] @ X.T
    D = weight**2 / np.diag(M)
    parts, sigma = D * (M @ y) ** 2, np.empty(len(y))
    for of_group in (group, ~group):
        sigma[of_group] = parts[of_group].sum() / (weight[of_group] ** 2).sum()
    G = (M * D) @ M * sigma
    return weight @ y / np.sqrt(parts.sum()), np.trace(G) ** 2 / np.trace(G @ G)


def test_degrees_of_freedom_are_those_of_the_quadratic_form(table):
    calls, values = table
    rng = np.random.default_rng(3)
    covariates = np.column_stack([rng.normal(size=90) + calls[0], rng.integers(0, 2, 90)])
    found = adjusted_welch(calls < 0, calls > 0, prepare(values), covariates, min_samples=5)
    for k, f in np.ndindex(found.t.shape):
        rows = np.isfinite(values[:, f]) & (calls[k] != 0)
        t, df = _degrees_of_freedom(values[rows, f], calls[k, rows] > 0, covariates[rows])
        np.testing.assert_allclose(found.t[k, f], t, rtol=1e-7)
        np.testing.assert_allclose(found.log_p[k, f], np.log(2 * stats.t.sf(abs(t), df)), rtol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("n", [25, 40, 80])  # patients of the smaller group: 7, 12, 25
def test_adjusted_p_values_of_small_groups(n, spread):
    """Groups and features that follow the same covariate; losses vary as much as gains, or three times as much."""
    levels, below, smaller = np.array([0.05, 0.01, 0.001]), [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        burden = rng.normal(size=n)
        calls = np.clip(np.rint(0.8 * rng.normal(size=(1, n)) + burden), -1, 1)
        values = burden[:, None] + rng.normal(size=(n, 200)) * np.where(calls[0] < 0, spread, 1.0)[:, None]
        found = adjusted_welch(calls < 0, calls > 0, prepare(values), burden[:, None], min_samples=5)
        p = np.exp(found.log_p[np.isfinite(found.log_p)])
        below.append((p[:, None] < levels).sum(axis=0))
        smaller.append(min(found.n_low.item(), found.n_high.item()))
    assert abs(np.median(smaller) - n * 0.3) <= 3
    tests = 200 * sum(s >= 5 for s in smaller)
    # features are independent given the groups, tests are too
    assert (np.sum(below, axis=0) <= stats.binom.ppf(0.999, tests, levels)).all()


@pytest.mark.parametrize("holes", [False, True])
def test_permuted_regressions_are_those_of_a_plain_loop(table, holes):
    calls, values = table
    values = values if holes else np.nan_to_num(values, nan=100.0)
    covariates = np.column_stack([np.random.default_rng(3).normal(size=90) + calls[0]])
    ties = np.array([False, True, False, True, False, False, False])
    features = prepare(values)
    design = Design(calls < 0, calls > 0, ties, 5, covariates=covariates)
    null = permutation_null(design, features, n_permutations=19, seed=4)
    rest = residuals(features, covariates)

    def deviates(features):
        found = adjusted_welch(calls < 0, calls > 0, features, covariates, min_samples=5)
        z = np.abs(special.ndtri_exp(found.log_p - np.log(2)))
        spread = np.sqrt(found.spread[:, features.pattern])
        return np.where(ties, np.abs(found.difference) / features.scale / spread, z)

    observed = deviates(features)
    np.testing.assert_allclose(null.deviate, observed, rtol=2e-3)
    exceed = np.zeros((12, 2))
    for b, seed in enumerate(np.random.SeedSequence(4).spawn(19)):
        permuted = deviates(rest.permuted(np.random.default_rng(seed).permutation(90)))
        np.testing.assert_allclose(null.largest[b], [permuted[:, ~ties].max(), permuted[:, ties].max()], rtol=2e-3)
        exceed += permuted[:, ties] >= observed[:, ties]
    np.testing.assert_allclose(np.exp(null.log_p_ties), (1 + exceed) / 20)


def test_a_group_that_a_covariate_gives_away_is_no_test(table):
    calls, values = table
    found = adjusted_welch(calls < 0, calls > 0, prepare(values), (calls[4] > 0)[:, None] * 1.0, min_samples=5)
    assert np.isnan(found.t[4]).all()
    assert np.isfinite(found.t[5]).all()


def _fwer(transform, n_jobs=1, *, seeds=60, n=120):
    """Share of null data sets with some Bonferroni-significant test, and some by the largest statistic."""
    rng = np.random.default_rng(5)
    plain, largest = 0, 0
    for seed in range(seeds):
        calls = rng.choice([-1, 0, 1], size=(40, n), p=[0.2, 0.2, 0.6])
        values = rng.gamma(0.3, size=(n, 25))
        features = prepare(transform(values))
        found = welch(calls < 0, calls > 0, features, min_samples=5)
        p = found.log_p[np.isfinite(found.log_p)]
        plain += p.min() < np.log(0.05 / len(p))
        design = Design(calls < 0, calls > 0, np.zeros(25, bool), 5)
        null = permutation_null(design, features, n_permutations=39, seed=seed, n_jobs=n_jobs)
        largest += np.nanmin(family_wise(null.deviate, null.largest, np.zeros(25, bool))) <= 0.05
    return plain / seeds, largest / seeds


def test_family_wise_error_under_the_null():
    """Skewed values break Welch with Bonferroni; the largest statistic holds for them, too."""
    raw, raw_largest = _fwer(lambda x: x)
    normal, normal_largest = _fwer(rank_normal)
    bound = stats.binom.ppf(0.999, 60, 0.05) / 60
    assert raw > 0.25
    assert normal <= bound
    assert raw_largest <= bound
    assert normal_largest <= bound


@pytest.mark.parametrize("holes", [False, True])
def test_permuted_ties_are_those_of_a_plain_loop(table, holes):
    calls, values = table
    features = prepare(values if holes else np.nan_to_num(values, nan=100.0))
    null = permutation_null(Design(calls < 0, calls > 0, np.ones(7, bool), 5), features, n_permutations=19, seed=4)

    def deviates(features):
        found = welch(calls < 0, calls > 0, features, min_samples=5)
        return np.abs(found.difference) / features.scale / np.sqrt(found.spread[:, features.pattern])

    observed = deviates(features)
    np.testing.assert_allclose(null.deviate, observed, rtol=1e-3, atol=1e-5)
    exceed = sum(
        deviates(features.permuted(np.random.default_rng(seed).permutation(90))) >= observed
        for seed in np.random.SeedSequence(4).spawn(19)
    )
    np.testing.assert_allclose(np.exp(null.log_p_ties), (1 + exceed) / 20)


def test_permutations_do_not_depend_on_threads(table):
    calls, values = table
    design = Design(calls < 0, calls > 0, np.array([True, *[False] * 6]), 5)
    one, two = (permutation_null(design, prepare(values), n_permutations=12, seed=3, n_jobs=j) for j in (1, 2))
    np.testing.assert_array_equal(one.largest, two.largest)
    np.testing.assert_array_equal(one.log_p_ties, two.log_p_ties)


def test_permutation_p_of_a_feature_with_ties_is_that_of_a_plain_loop():
    rng = np.random.default_rng(8)
    calls = rng.choice([-1, 1], size=(1, 40))
    values = np.where(rng.random((40, 1)) < 0.6, 0.0, rng.gamma(1, 2, (40, 1))) + 0.8 * (calls.T > 0)
    features = prepare(rank_normal(values))
    null = permutation_null(Design(calls < 0, calls > 0, np.ones(1, bool), 5), features, n_permutations=1999)
    found = stats.permutation_test(
        (features.z[calls[0] > 0, 0], features.z[calls[0] < 0, 0]),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="independent",
        n_resamples=4999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    assert np.exp(null.log_p_ties.item()) == pytest.approx(found.pvalue, abs=0.03)
