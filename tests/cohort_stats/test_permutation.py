"""The p-value of a whole procedure under permuted outcomes, also within sites; what is no test."""

import numpy as np
import pytest

from ghistpy.cohort_stats.outcome import Classifier, Outcomes, permuted
from ghistpy.cohort_stats.permutation import permute
from ghistpy.cohort_stats.survival_cv import (
    Design,
    Procedure,
    combine_risk,
    cross_validate,
    signed_logrank,
    split_risk,
)


def _sites(rng, n=60, p=10, n_sites=8):
    """Features and hazard differ between sites, and have nothing to do with each other within them."""
    site = rng.permutation(np.arange(n) % n_sites)
    X = rng.normal(size=(n, p)) + rng.normal(size=(n_sites, p))[site]
    level = rng.normal(size=n_sites)
    return X, site, (level - level.mean())[site]


def _uniform(pvalues, n_permutations):
    """Rejections at 5 and 10 % within binomial bounds, and the mean of a p-value on 1/(P+1) … 1."""
    p = np.array(pvalues)
    for level in (0.05, 0.1):
        assert (p <= level + 1e-9).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))
    assert abs(p.mean() - (n_permutations + 2) / (2 * n_permutations + 2)) < 3.5 * 0.29 / np.sqrt(len(p))


@pytest.mark.parametrize("n_cohorts", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_survival_is_calibrated_within_groups(n_cohorts):
    rng = np.random.default_rng(3)
    pvalues = []
    for _ in range(n_cohorts):
        X, site, hazard = _sites(rng)
        months, stop = rng.exponential(np.exp(-hazard)), rng.uniform(0.5, 3, len(X))
        design = Design(X, np.minimum(months, stop), months <= stop, groups=site)
        found = permute(design, Procedure(n_features=2, n_repeats=1), n_permutations=19)
        pvalues.append(found.pvalue("c_index"))
    _uniform(pvalues, 19)


@pytest.mark.parametrize("n_cohorts", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_classes_are_calibrated_within_groups(n_cohorts):
    rng = np.random.default_rng(5)
    pvalues = []
    for _ in range(n_cohorts):
        X, site, level = _sites(rng)
        label = (rng.normal(size=len(X)) + level > 0).astype(np.int64)
        observed, null = permuted(Outcomes(X, label, groups=site), Classifier(3, n_repeats=1), n_permutations=19)
        pvalues.append((1 + np.sum(~(null < observed))) / 20)
    _uniform(pvalues, 19)


def test_association_within_groups_is_found():
    rng = np.random.default_rng(0)
    X, site, hazard = _sites(rng, n=96)
    months, stop = rng.exponential(np.exp(-hazard - 1.5 * X[:, 4])), rng.uniform(0.5, 5, len(X))
    design = Design(X, np.minimum(months, stop), months <= stop, groups=site)
    assert permute(design, Procedure(n_features=2, n_repeats=1), n_permutations=19).pvalue("c_index") == 0.05


def _null(n, p, rng):
    time, stop = rng.exponential(1.0, n), rng.uniform(0.2, 2, n)
    return Design(rng.normal(size=(n, p)), np.minimum(time, stop), time <= stop)


@pytest.mark.parametrize("n_cohorts", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_permutation_p_is_calibrated_without_association(n_cohorts):
    """The whole procedure on many cohorts: 5 % are rejected, inside binomial bounds."""
    rng = np.random.default_rng(11)
    how = Procedure(n_features=2, n_repeats=1)
    p = {"c_index": [], "logrank_median": []}
    for _ in range(n_cohorts):
        found = permute(_null(45, 15, rng), how, n_permutations=19)
        for name, values in p.items():
            values.append(found.pvalue(name))
    for values in p.values():
        rejected = np.mean(np.array(values) <= 0.05)
        assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n_cohorts)
        assert abs(np.mean(values) - 0.525) < 3.5 * 0.29 / np.sqrt(n_cohorts)  # uniform on 1/20 … 1


def test_log_rank_on_cross_validated_risk_is_no_test():
    """Why it is called descriptive: it rejects far more than 5 % without any association."""
    rng = np.random.default_rng(5)
    how = Procedure(n_features=3, n_repeats=3)
    rejected, wrong_sign = [], []
    for _ in range(120):
        design = _null(90, 20, rng)
        found = cross_validate(design, how, tau=1.0)
        risk = combine_risk(found.score[0], found.folds)
        z = signed_logrank(design.time, design.event, split_risk(risk, "median"))
        rejected.append(abs(z) > 1.96)
        wrong_sign.append(z < -1.96)
    assert np.mean(rejected) > 0.08
    assert sum(wrong_sign) > 0


def test_power_of_the_permutation():
    rng = np.random.default_rng(2)
    base = _null(80, 15, rng)
    time = base.time * np.exp(-1.5 * base.X[:, 4])
    found = permute(Design(base.X, time, base.event), Procedure(n_features=2, n_repeats=1), n_permutations=19)
    assert found.pvalue("c_index") == 0.05
    # the wrong way round is not significant: one-sided
    found.observed["c_index"] = 0.1
    assert found.pvalue("c_index") == 1.0


def test_risk_scales():
    score = np.array([[1.0, 2, 30, 40], [1, 2, 30, 40]])
    folds = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    np.testing.assert_allclose(combine_risk(score, folds), [1 / 3, (2 + 1) / 6, (1 + 2) / 6, 2 / 3])
    np.testing.assert_allclose(combine_risk(score, folds, scale="centre"), [-7.5, -9.25, 4.75, 12.0])
    np.testing.assert_allclose(combine_risk(score, folds, scale="none"), [1, 2, 30, 40])
    risk = np.r_[np.arange(8.0), np.nan]
    assert split_risk(risk, "median").tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert split_risk(np.arange(5.0), "quartiles").tolist() == [0, 0, -1, 1, 1]
