"""The p-value of a whole procedure where patients come from different sites."""

import numpy as np
import pytest

from ghistpy.cohort_stats.outcome import Classifier, Outcomes, permuted
from ghistpy.cohort_stats.permutation import permute
from ghistpy.cohort_stats.survival_cv import Design, Procedure


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
