"""Concordance against lifelines and scikit-survival; folds; adjusted p-values."""

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw
from sksurv.util import Surv

from ghistpy.cohort_stats.concordance import Censoring, Pairs, bootstrap_counts
from ghistpy.cohort_stats.folds import repeated_folds
from ghistpy.stats.multiple import adjust_pvalues


@pytest.mark.parametrize("ties", [False, True])
def test_harrell_and_uno_equal_libraries(cohort, ties):
    X, time, event = cohort(ties=ties)
    score = np.round(X[:, 0], 1)  # ties in the score too
    own = Pairs.of(time, event).index(score)
    assert own == pytest.approx(concordance_index_censored(event, time, score)[0], abs=1e-12)
    if not ties:  # lifelines leaves out pairs with the same time
        assert own == pytest.approx(concordance_index(time, -score, event), abs=1e-12)
    train, test = np.arange(120) < 80, np.arange(120) >= 80
    tau = np.quantile(time[train], 0.7)
    want = concordance_index_ipcw(
        Surv.from_arrays(event[train], time[train]), Surv.from_arrays(event[test], time[test]), score[test], tau=tau
    )[0]
    censoring = Censoring.of(time[train], event[train])
    got = Pairs.of(time[test], event[test], tau=tau, censoring=censoring).index(score[test])
    assert got == pytest.approx(want, abs=1e-9)


def test_sign_and_ties_of_the_score():
    time, event = np.array([1.0, 2, 3]), np.array([True, True, True])
    pairs = Pairs.of(time, event)
    assert pairs.index(np.array([3.0, 2, 1])) == 1  # a high risk is an early event
    assert pairs.index(np.array([1.0, 2, 3])) == 0
    assert pairs.index(np.zeros(3)) == 0.5
    assert np.isnan(Pairs.of(time[:1], event[:1]).index(np.zeros(1)))


def test_bootstrap_equals_repeating_patients(cohort):
    X, time, event = cohort(n=40)
    counts = bootstrap_counts(40, 5, seed=0)
    got = Pairs.of(time, event).resampled(X[:, 0], counts)
    for c, value in zip(counts, got, strict=True):
        rows = np.repeat(np.arange(40), c.astype(int))
        assert value == pytest.approx(Pairs.of(time[rows], event[rows]).index(X[rows, 0]), abs=1e-12)


def test_folds_are_balanced_and_keep_groups():
    rng = np.random.default_rng(0)
    event, group = rng.random(300) < 0.2, rng.integers(0, 25, 300)
    folds = repeated_folds(event, n_splits=3, n_repeats=20, seed=1, groups=group)
    for fold in folds:
        assert all(len(set(fold[group == g])) == 1 for g in range(25))
        assert min((event & (fold == k)).sum() for k in range(3)) >= 0.5 * event.sum() / 3
    # repeats are different: two of three pairs of patients are apart by chance
    together = [(f[:, None] == f) for f in folds]
    assert np.mean(together[0] == together[1]) < 0.8
    plain = repeated_folds(event, n_splits=3, n_repeats=2, seed=1)
    assert np.ptp([(event & (plain[0] == k)).sum() for k in range(3)]) <= 1
    np.testing.assert_array_equal(plain, repeated_folds(event, n_splits=3, n_repeats=2, seed=1))


def test_folds_that_cannot_be():
    event = np.r_[np.ones(2, bool), np.zeros(20, bool)]
    with pytest.raises(ValueError, match="the rarest outcome has 2 patients"):
        repeated_folds(event, n_splits=3, n_repeats=1, seed=0)
    with pytest.raises(ValueError, match="only 2 groups"):
        repeated_folds(np.arange(9) % 3 == 0, n_splits=3, n_repeats=1, seed=0, groups=np.arange(9) // 5)


def test_adjusted_pvalues_leave_out_missing_and_keep_families():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    p, family = rng.random(60) ** 2, np.repeat(["a", "b"], 30)
    p[::7] = np.nan
    known = ~np.isnan(p)
    for method, name in (("bh", "fdr_bh"), ("by", "fdr_by"), ("bonferroni", "bonferroni")):
        got = adjust_pvalues(p, family=family, method=method)
        for f in "ab":
            rows = known & (family == f)
            np.testing.assert_allclose(got[rows], multipletests(p[rows], method=name)[1], rtol=1e-12)
        assert np.isnan(got[~known]).all()


@pytest.mark.parametrize("n_cohorts", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_bootstrap_of_a_fixed_score_covers(n_cohorts):
    """What a locked model is worth for patients like these: percentiles of a bootstrap of patients."""
    rows = []
    for seed in range(n_cohorts):
        rng = np.random.default_rng(seed)
        score = rng.normal(size=100)
        time, stop = rng.exponential(np.exp(-0.7 * score)), rng.uniform(0.1, 2, 100)
        pairs = Pairs.of(np.minimum(time, stop), time <= stop)
        samples = pairs.resampled(score, bootstrap_counts(100, 200, seed))
        rows.append((pairs.index(score), *np.quantile(samples, [0.025, 0.975])))
    index, low, high = np.array(rows).T
    covered = ((low <= index.mean()) & (index.mean() <= high)).mean()
    assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / n_cohorts)
