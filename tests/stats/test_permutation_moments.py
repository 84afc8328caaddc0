"""Moments of a quadratic form against all permutations of small sets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import sparse

from ghistpy.stats.permutation_moments import form_moments, graph_sums


def _powers(z):
    return np.array([[(z**k).sum()] for k in range(2, 7)])


@pytest.mark.parametrize("n", [4, 5, 6, 7])
@pytest.mark.parametrize("with_loops", [False, True])
def test_equal_those_over_all_permutations(n, with_loops):
    rng = np.random.default_rng(n)
    s = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.7), 1)
    s = s + s.T
    loops = rng.random(n) if with_loops else None
    z = rng.gamma(0.5, size=n)
    z -= z.mean()
    drawn = z[np.array(list(permutations(range(n))))]
    form = 0.5 * np.einsum("pi,ij,pj->p", drawn, s, drawn)
    if with_loops:
        form += drawn**2 @ loops
    mean, variance, skewness = form_moments(graph_sums(sparse.csr_array(np.triu(s, 1)), loops), _powers(z))
    assert mean[0] == pytest.approx(form.mean(), rel=1e-9)
    assert variance[0] == pytest.approx(form.var(), rel=1e-9)
    assert skewness[0] == pytest.approx(((form - form.mean()) ** 3).mean() / form.std() ** 3, rel=1e-7)


def test_hold_for_many_points_within_the_error_of_random_permutations():
    rng = np.random.default_rng(0)
    n = 400
    s = sparse.random_array((n, n), density=0.01, random_state=1)
    s = sparse.csr_array(s + s.T)
    s.setdiag(0)
    s.eliminate_zeros()
    z = (rng.random(n) < 0.03) * 1.0
    z -= z.mean()
    drawn = z[np.argsort(rng.random((40_000, n)), axis=1)]
    form = 0.5 * np.einsum("pi,pi->p", drawn, (s @ drawn.T).T)
    mean, variance, skewness = form_moments(graph_sums(sparse.csr_array(sparse.triu(s, 1))), _powers(z))
    assert mean[0] == pytest.approx(form.mean(), abs=4 * form.std() / 200)
    assert variance[0] == pytest.approx(form.var(), rel=0.06)
    assert skewness[0] == pytest.approx(((form - form.mean()) ** 3).mean() / form.std() ** 3, rel=0.15)


def test_a_constant_has_no_skewness():
    ring = sparse.csr_array(np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0))
    mean, variance, skewness = form_moments(graph_sums(sparse.csr_array(sparse.triu(ring, 1))), np.zeros((5, 1)))
    assert mean[0] == variance[0] == 0
    assert np.isnan(skewness[0])
