"""Intervals of cross-validated accuracy: the formula, and what they cover in cohorts of one population."""

import numpy as np
import pytest
from scipy import stats

from ghistpy.cohort_stats.intervals import cross_validated_interval
from ghistpy.cohort_stats.survival_cv import Design, Procedure, bootstrap_c_index, cross_validate


def test_equals_the_formula():
    rng = np.random.default_rng(0)
    per_fold = rng.normal(0.6, 0.05, (2, 4, 3))
    folds = np.stack([rng.permutation(np.arange(30) % 3) for _ in range(4)])
    low, high = cross_validated_interval(per_fold.mean((1, 2)), per_fold, folds, np.full((2, 5), 0.6))
    error = np.sqrt((1 / 12 + 10 / 20) * per_fold.reshape(2, -1).var(1, ddof=1))
    np.testing.assert_allclose((high - low) / 2, stats.t.ppf(0.975, 11) * error)
    # the bootstrap where it is wider, and repeats of one partition count once
    wide = rng.normal(0.6, 0.5, (2, 200))
    low, high = cross_validated_interval(per_fold.mean((1, 2)), per_fold, folds, wide)
    np.testing.assert_allclose((high - low) / 2, stats.t.ppf(0.975, 11) * wide.std(1))
    once = np.repeat(folds[:1], 4, axis=0)
    low, high = cross_validated_interval(per_fold.mean((1, 2)), per_fold, once, np.full((2, 5), 0.6))
    error = np.sqrt((1 / 3 + 1 / 2) * per_fold.reshape(2, -1).var(1, ddof=1))
    np.testing.assert_allclose((high - low) / 2, stats.t.ppf(0.975, 2) * error)


@pytest.mark.parametrize("n_cohorts", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_coverage(n_cohorts):
    """The mean over cohorts of one population is in about 95 % of the intervals; with models as fitted it is not."""
    rows = {"model": [], "clinical+model - clinical": []}
    plain = []
    for seed in range(n_cohorts):
        rng = np.random.default_rng(seed)
        X, age = rng.normal(size=(100, 20)), rng.normal(size=(100, 1))
        months = rng.exponential(np.exp(-0.6 * X[:, 0] - 0.5 * age[:, 0]))
        stop = rng.uniform(0.1, 2, 100)
        design = Design(X, np.minimum(months, stop), months <= stop, clinical=age)
        how = Procedure(n_features=3, n_repeats=3, models=("model", "clinical", "clinical+model"))
        found = cross_validate(design, how, tau=None)
        samples = bootstrap_c_index(found, design.time, design.event, n_bootstraps=100, seed=seed)
        plain.append(np.quantile(samples[0], [0.025, 0.975]))
        for name, values, sample in (
            ("model", found.harrell[:1], samples[:1]),
            ("clinical+model - clinical", found.harrell[2:] - found.harrell[1:2], samples[2:] - samples[1:2]),
        ):
            estimate = values.mean((1, 2))
            low, high = cross_validated_interval(estimate, values, found.folds, sample)
            rows[name].append((estimate[0], low[0], high[0]))
    for values in rows.values():
        estimate, low, high = np.array(values).T
        covered = ((low <= estimate.mean()) & (estimate.mean() <= high)).mean()
        assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / n_cohorts)
    low, high = np.array(plain).T
    truth = np.mean([row[0] for row in rows["model"]])
    assert ((low <= truth) & (truth <= high)).mean() < 0.92
