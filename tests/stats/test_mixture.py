"""Mixture proportions against a general optimiser of the same likelihood."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.stats.mixture import mixture_proportions


def cost(share, counts, shape):
    expected = share @ shape
    return counts.sum() * np.log(expected.sum()) - (counts * np.log(expected)).sum()


def test_equals_a_general_optimiser():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    profiles = rng.gamma(1, 3, (4, 30))
    shape = profiles / profiles.sum(axis=1, keepdims=True)
    true = rng.dirichlet(np.ones(4), 6)
    counts = rng.poisson(500 * true @ shape)
    got = mixture_proportions(counts, profiles)
    np.testing.assert_allclose(got.sum(axis=1), 1)
    for row, share in zip(counts, got, strict=True):
        best = minimize(lambda z, row=row: cost(np.exp(z) / np.exp(z).sum(), row, shape), np.zeros(4))
        assert cost(share, row, shape) < best.fun + 0.01
        np.testing.assert_allclose(share, np.exp(best.x) / np.exp(best.x).sum(), atol=0.01)
    assert np.abs(got - true).max() < 0.15


def test_the_scale_of_counts_and_profiles_does_not_matter():
    rng = np.random.default_rng(1)
    profiles, counts = rng.gamma(1, 3, (3, 10)), rng.poisson(20, (5, 10))
    got = mixture_proportions(counts, profiles)
    np.testing.assert_allclose(mixture_proportions(counts * 7, profiles * [[1], [100], [0.01]]), got, rtol=1e-6)


def test_empty_rows_and_empty_profiles():
    got = mixture_proportions(np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(got[0], 0.5)
    np.testing.assert_allclose(got[1], [1.0, 0.0], atol=1e-6)
    # counts of a gene that no profile has
    lost = mixture_proportions(np.array([[0.0, 5.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(lost, 0.5)
    assert mixture_proportions(np.zeros((0, 3)), np.ones((2, 3))).shape == (0, 2)


@pytest.mark.parametrize(
    ("counts", "profiles", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), r"expected \(n, G\) and \(K, G\), got \(2, 3\) and \(2, 4\)"),
        (np.ones(3), np.ones((2, 3)), r"expected \(n, G\)"),
        (np.array([[np.nan, 1]]), np.ones((2, 2)), "expected finite values of 0 and above"),
        (np.array([[-1.0, 1]]), np.ones((2, 2)), "expected finite values of 0 and above"),
        (np.ones((1, 2)), np.array([[-1.0, 1]]), "expected finite values of 0 and above"),
    ],
)
def test_refuses(counts, profiles, message):
    with pytest.raises(ValueError, match=message):
        mixture_proportions(counts, profiles)
