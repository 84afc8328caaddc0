"""Folds of groups, and permutations within them."""

import numpy as np
import pytest

from ghistpy.cohort_stats.folds import distinct_partitions, permute_within, repeated_folds


@pytest.mark.parametrize(("n_groups", "most"), [(3, 1), (4, 6), (12, 100)])
def test_few_groups_have_few_partitions(n_groups, most):
    """Three groups in three folds: a hundred repeats are one; four in three: two of six pairs share a fold."""
    rng = np.random.default_rng(0)
    event, groups = rng.random(300) < 0.3, rng.integers(0, n_groups, 300)
    folds = repeated_folds(event, n_splits=3, n_repeats=100, seed=0, groups=groups)
    found = distinct_partitions(folds)
    same = {tuple((fold[:, None] == fold).ravel()) for fold in folds}
    assert found == len(same) <= most
    assert found > 50 or n_groups < 12


def test_names_of_folds_do_not_matter():
    folds = np.array([[0, 1, 2, 0], [2, 0, 1, 2], [0, 0, 1, 2]], dtype=np.int8)
    assert distinct_partitions(folds) == 2


def test_permutations_stay_within_groups():
    rng = np.random.default_rng(1)
    groups = rng.choice(list("abcd"), 200)
    order = permute_within(groups, 200, rng)
    assert sorted(order) == list(range(200))
    np.testing.assert_array_equal(groups[order], groups)
    assert (order != np.arange(200)).mean() > 0.9
    # every order of a group is equally likely
    first = [permute_within(np.array([0, 1, 0, 1, 0]), 5, rng)[0] for _ in range(3000)]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 3000, [1 / 3, 0, 1 / 3, 0, 1 / 3], atol=0.04)
    assert len(set(permute_within(None, 50, rng))) == 50
