"""Graphs against scikit-learn and brute force, with duplicates, groups and isolated points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from ghistpy.geometry.graph import check_graph, knn_graph, radius_graph
from ghistpy.geometry.points import count_duplicates, local_density, mean_within


@pytest.fixture
def points():
    return np.random.default_rng(0).uniform(0, 300, (250, 2))


def test_knn_is_that_of_scikit_learn(points):
    from sklearn.neighbors import kneighbors_graph

    graph = knn_graph(points, 5, distances=True)
    assert abs(graph.weights - kneighbors_graph(points, 5)).sum() == 0
    np.testing.assert_allclose(
        graph.distances.toarray(), kneighbors_graph(points, 5, mode="distance").toarray(), atol=1e-12
    )
    assert not graph.symmetric
    assert (graph.degree == 5).all()


def test_symmetric_knn_holds_every_edge_both_ways(points):
    one_way = knn_graph(points, 4).weights
    graph = knn_graph(points, 4, symmetric=True, distances=True)
    expected = ((one_way + one_way.T) > 0).toarray()
    assert (graph.weights.toarray() == expected).all()
    assert abs(graph.distances - graph.distances.T).max() < 1e-12


def test_radius_is_all_pairs_within(points):
    graph = radius_graph(points, 20.0, distances=True)
    apart = cdist(points, points)
    expected = (apart <= 20) & ~np.eye(len(points), dtype=bool)
    assert (graph.weights.toarray() == expected).all()
    np.testing.assert_allclose(graph.distances.toarray(), np.where(expected, apart, 0), atol=1e-9)
    assert graph.n_isolated == int((~expected.any(1)).sum()) > 0


def test_points_at_one_place_are_neighbours_but_not_of_themselves():
    graph = knn_graph(np.zeros((12, 2)), 3, distances=True)
    assert (graph.degree == 3).all()
    assert graph.weights.diagonal().sum() == 0
    assert graph.n_duplicates == 12
    assert graph.distances.nnz == 36  # lengths of 0 are stored
    assert count_duplicates([[0, 0], [1, 1], [0, 0], [2, 2]]) == 2


def test_no_edge_leaves_its_group(points):
    groups = np.where(np.arange(len(points)) % 3 == 0, "a", "b")
    for graph in (knn_graph(points, 4, groups=groups), radius_graph(points, 25, groups=groups)):
        edges = graph.weights.tocoo()
        assert (groups[edges.row] == groups[edges.col]).all()
    own = knn_graph(points[groups == "a"], 4).weights
    assert abs(knn_graph(points, 4, groups=groups).weights[groups == "a"][:, groups == "a"] - own).sum() == 0
    tiny = np.where(np.arange(len(points)) == 0, 1, 0)
    assert knn_graph(points, 4, groups=tiny).n_isolated == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: knn_graph(p, 250), "only 250 points"),
        (lambda p: knn_graph(p, 0), "at least 1"),
        (lambda p: knn_graph(p, 1.5), "whole number"),
        (lambda p: knn_graph(p[:, :1], 2), "expected \\(n, 2\\)"),
        (lambda p: knn_graph(np.where(p > 290, np.nan, p), 2), "rows are NaN or infinite"),
        (lambda p: radius_graph(p, 0), "positive distance"),
        (lambda p: radius_graph(p, np.inf), "positive distance"),
        (lambda p: radius_graph(p, "30"), "radius='30': expected a positive distance"),
        (lambda p: radius_graph(p, True), "positive distance"),
        (lambda p: knn_graph(p, 3, groups=np.zeros(3)), "one label per point"),
    ],
)
def test_errors_say_what_is_wrong(points, call, message):
    with pytest.raises(ValueError, match=message):
        call(points)


def test_a_radius_of_too_many_edges_is_refused():
    points = np.random.default_rng(0).uniform(0, 100, (40_000, 2))
    with pytest.raises(ValueError, match="is it in µm"):
        radius_graph(points, 1000.0)


@pytest.mark.parametrize("grouped", [False, True])
def test_mean_within_is_the_degree_of_the_graph(grouped):
    points = np.random.default_rng(3).uniform(0, 1000, (4000, 2))
    groups = np.arange(4000) % 2 if grouped else None
    exact = radius_graph(points, 30.0, groups=groups).degree.mean()
    assert mean_within(points, 30.0, groups=groups) == pytest.approx(exact, rel=0.05)
    with pytest.raises(ValueError, match="reach=30 µm makes about"):
        mean_within(points, 30.0, argument="reach", most_edges=1000)


def test_density_ignores_empty_parts():
    rng = np.random.default_rng(1)
    dense = rng.uniform(0, 500, (2500, 2))  # 10,000 per mm²
    spread = np.concatenate([dense, [[1e5, 1e5]]])
    assert 8000 < local_density(spread) < 13_000
    assert np.isnan(local_density(np.zeros((3, 2))))
    assert np.isinf(local_density(np.zeros((30, 2))))


class TestGivenGraph:
    def test_diagonal_and_zeros_are_dropped(self, points):
        weights = sparse.csr_array(knn_graph(points, 3).weights + sparse.eye_array(len(points)))
        assert abs(check_graph(weights, len(points), coordinates=points) - knn_graph(points, 3).weights).sum() == 0

    def test_shape(self, points):
        with pytest.raises(ValueError, match="made for another table"):
            check_graph(knn_graph(points[:100], 3).weights, len(points))

    def test_order_of_the_rows(self, points):
        order = np.random.default_rng(2).permutation(len(points))
        with pytest.raises(ValueError, match="another order of the rows"):
            check_graph(knn_graph(points[order], 3).weights, len(points), coordinates=points)

    def test_negative_weights_and_no_edge(self, points):
        with pytest.raises(ValueError, match="at least 0"):
            check_graph(-knn_graph(points, 3).weights, len(points))
        with pytest.raises(ValueError, match="no edge"):
            check_graph(sparse.csr_array((250, 250)), len(points))

    def test_all_pairs_are_not_judged_by_their_length(self, points):
        weights = 1 / (cdist(points, points) + 1)
        assert check_graph(weights, len(points), coordinates=points).nnz == 250 * 249

    def test_distances_are_no_weights(self, points):
        lengths = knn_graph(points, 4, distances=True).distances
        for given in (lengths, lengths * 3.7):
            with pytest.raises(ValueError, match="the farthest would count most"):
                check_graph(given, len(points), coordinates=points)
        falling = lengths.copy()
        falling.data = 1 / (1 + falling.data)
        assert check_graph(falling, len(points), coordinates=points).nnz == 1000
        square = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
        assert check_graph(radius_graph(square, 1.0).weights, 100, coordinates=square).nnz == 360

    def test_points_in_three_dimensions(self, points):
        xyz = np.column_stack([points, np.zeros(len(points))])
        assert check_graph(knn_graph(points, 3).weights, len(points), coordinates=xyz).nnz == 750

    def test_what_is_no_matrix(self):
        with pytest.raises(TypeError, match="expected an \\(n, n\\) array or sparse matrix of weights, got int"):
            check_graph(3, 10)
