"""Local Moran's I against its definition; conditional permutations against enumeration and their level."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import chi2

from ghistpy.geometry import knn_graph, radius_graph
from ghistpy.stats import local_moran, morans_i, row_standardised
from ghistpy.stats.local_autocorrelation import _draws


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 400, (600, 2))
    return xy, knn_graph(xy, 5).weights


def test_definition_and_its_mean_is_morans_i(points):
    _, w = points
    values = np.random.default_rng(1).poisson(2.0, (600, 7)).astype(float)
    z = values - values.mean(axis=0)
    expected = z * (w.toarray() / 5 @ z) / (z**2).mean(axis=0)
    for given in (values, sparse.csr_matrix(values)):
        np.testing.assert_allclose(local_moran(given, w).score, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(local_moran(values, w).score.mean(axis=0), morans_i(values, row_standardised(w)))


def test_quadrants(points):
    _, w = points
    values = np.random.default_rng(2).normal(size=(600, 1))
    z, lag = values - values.mean(), w.toarray() @ (values - values.mean())
    quadrant = local_moran(values, w).quadrant
    for code, own, around in ((1, z > 0, lag > 0), (2, z <= 0, lag > 0), (3, z <= 0, lag <= 0), (4, z > 0, lag <= 0)):
        assert ((quadrant == code) == (own & around)).all()


def test_p_is_that_of_all_draws_of_neighbours():
    """Six points, two neighbours each: 20 ordered draws can be listed."""
    values = np.array([3.0, 1.0, 0.0, 2.0, 5.0, 1.5])[:, None]
    w = sparse.csr_array((np.full(12, 0.5), np.array([1, 2, 0, 2, 3, 4, 4, 5, 5, 0, 1, 3]), np.arange(0, 13, 2)))
    z = values[:, 0] - values.mean()
    lag = w @ z
    found = local_moran(values, w, n_perms=20_000).pval[:, 0]
    for i in range(6):
        draws = np.array([(z[a] + z[b]) / 2 for a, b in permutations([j for j in range(6) if j != i], 2)])
        exact = min(1.0, 2 * min((draws >= lag[i] - 1e-9).mean(), (draws <= lag[i] + 1e-9).mean()))
        assert found[i] == pytest.approx(exact, abs=0.02)


def _counts(kind, rng, n_genes=40):
    """Values that ignore the places: Gaussian, skewed and positive everywhere, or counts of a few positive points."""
    if kind == "gaussian":
        return rng.normal(size=(600, n_genes))
    if kind == "all":
        return 1.0 + rng.gamma(0.5, 2.0, (600, n_genes))
    ranks = rng.random((600, n_genes)).argsort(axis=0)
    return np.where(ranks < kind, 1.0 + rng.poisson(1.0, (600, n_genes)), 0.0)


@pytest.mark.parametrize("kind", ["gaussian", "all", 400, 80, 20, 5])
def test_level(points, kind):
    """At 1, 5 and 10 %, over all points and over those that are positive; sparse genes may be conservative."""
    _, w = points
    values = _counts(kind, np.random.default_rng(3))
    pval = local_moran(values, w, n_perms=199).pval
    positive = values > 0
    for level in (0.01, 0.05, 0.1):
        for chosen in (np.ones_like(positive), positive):
            # points share neighbours, genes are independent
            rates = ((pval <= level) & chosen).sum(axis=0) / chosen.sum(axis=0)
            slack = 4 * rates.std(ddof=1) / np.sqrt(rates.size) + 0.001
            assert rates.mean() <= level + slack
            if kind in ("gaussian", "all"):
                assert rates.mean() >= level - slack


def test_depth_and_blur_are_rejected_as_patterns_are(points):
    """What a small p does not claim: that the *gene* has a pattern, or that values were measured apart."""
    xy, w = points
    rng = np.random.default_rng(7)
    depth = np.exp(1.2 * np.sin(xy[:, :1] / 60))
    blurred = (w.toarray() + np.eye(600)) @ rng.normal(size=(600, 40))
    for values in (rng.poisson(4 * depth, (600, 40)), blurred):
        assert (local_moran(values, w, n_perms=99).pval <= 0.05).mean() > 0.15


@pytest.mark.parametrize("degree", [1, 3, 145, 700, 999])
def test_draws_are_even_and_without_repeats(degree):
    drawn = _draws(1000, degree, 400, np.random.default_rng(0))
    assert all(len(np.unique(row)) == degree for row in drawn[:50])
    assert drawn.min() >= 0
    assert drawn.max() < 999
    for part in (drawn, drawn[:, : max(1, degree // 2)]):  # points of lower degree take the first ones
        expected = part.size / 999
        n = np.bincount(part.ravel(), minlength=999)
        assert ((n - expected) ** 2 / max(expected, 1e-9)).sum() < chi2.ppf(0.9999, 998)


def test_a_large_radius_ends():
    xy = np.random.default_rng(0).uniform(0, 577, (1000, 2))
    found = local_moran(xy[:, :1], radius_graph(xy, 110).weights, n_perms=99)
    assert (found.pval <= 0.05).mean() > 0.7  # a gradient


def test_a_slide_among_others_is_as_alone(points):
    xy, _ = points
    groups = np.repeat(["b", "a"], [250, 350])
    w = knn_graph(xy, 5, groups=groups).weights
    values = np.random.default_rng(8).poisson(2.0, (600, 3)) + 5.0 * (groups == "a")[:, None]
    for given in (values, sparse.csr_array(values)):
        both = local_moran(given, w, groups=groups, n_perms=49)
        for name in "ab":
            rows = np.flatnonzero(groups == name)
            alone = local_moran(values[rows], w[rows][:, rows], n_perms=49)
            np.testing.assert_allclose(both.score[rows], alone.score)
            np.testing.assert_array_equal(both.pval[rows], alone.pval)
            np.testing.assert_array_equal(both.quadrant[rows], alone.quadrant)
    with pytest.raises(ValueError, match="edges join points of different groups"):
        local_moran(values, knn_graph(xy, 5).weights, groups=groups)


def test_progress_wraps_genes_and_batches(points):
    seen = []
    local_moran(
        np.random.default_rng(0).normal(size=(600, 2)),
        points[1],
        n_perms=120,
        progress=lambda v: seen.append(len(v)) or v,
    )
    assert seen == [6]


def test_finds_a_hot_spot_and_not_its_surroundings(points):
    xy, w = points
    hot = np.hypot(*(xy - 200).T) < 80
    found = local_moran((4.0 * hot + np.random.default_rng(4).normal(size=600))[:, None], w, n_perms=199)
    called = (found.pval[:, 0] <= 0.01) & (found.quadrant[:, 0] == 1)
    assert called[np.hypot(*(xy - 200).T) < 65].mean() > 0.8
    assert called[np.hypot(*(xy - 200).T) > 120].mean() < 0.03


def test_isolated_points_and_constant_genes_are_nan(points):
    _, w = points
    cut = w.toarray()
    cut[0] = 0
    values = np.column_stack([np.random.default_rng(5).normal(size=600), np.full(600, 0.3)])
    found = local_moran(values, sparse.csr_array(cut), n_perms=9)
    for array in (found.score, found.pval):
        assert np.isnan(array[0, 0])
        assert np.isfinite(array[1:, 0]).all()
        assert np.isnan(array[:, 1]).all()
    assert (found.quadrant[0] == 0).all()


def test_threads_do_not_change_p(points):
    _, w = points
    values = np.random.default_rng(6).poisson(1.0, (600, 4)).astype(float)
    assert (
        local_moran(values, w, n_perms=49, n_jobs=1).pval == local_moran(values, w, n_perms=49, n_jobs=3).pval
    ).all()


def test_graph_of_other_points(points):
    with pytest.raises(ValueError, match="weights: expected"):
        local_moran(np.ones((5, 1)), points[1])
