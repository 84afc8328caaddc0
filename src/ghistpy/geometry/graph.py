"""Neighbour graphs of points in µm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ghistpy.geometry.points import check_coordinates, check_n_neighbors, count_duplicates, mean_within, rows_of_groups

_PROBES = 1000  # edges by which a graph is judged
_DENSE_SHARE = 0.25  # a graph with more of all pairs than this is not judged by the length of its edges
_AS_RANDOM = 0.8  # edges whose median reaches this share of that of random pairs belong to other points


@dataclass(frozen=True)
class SpatialGraph:
    """Who is whose neighbour.

    Attributes
    ----------
    weights
        (n, n) CSR float32, 1 for every edge: row i holds the neighbours of point i. No diagonal.
    distances
        Lengths of the same edges in µm (float64, same pattern; 0 between points at one place is stored),
        None unless asked for.
    symmetric
        True when j is a neighbour of i whenever i is one of j.
    n_isolated
        Points without a neighbour.
    n_duplicates
        Points that lie exactly where another one lies.
    """

    weights: sparse.csr_array
    distances: sparse.csr_array | None
    symmetric: bool
    n_isolated: int
    n_duplicates: int

    @property
    def n(self) -> int:
        """Number of points."""
        return self.weights.shape[0]

    @property
    def degree(self) -> np.ndarray:
        """Number of neighbours of each point, (n,) int64."""
        return np.diff(self.weights.indptr).astype(np.int64)


def knn_graph(
    coordinates: np.ndarray,
    n_neighbors: int = 6,
    *,
    groups: np.ndarray | None = None,
    symmetric: bool = False,
    distances: bool = False,
) -> SpatialGraph:
    """The nearest neighbours of every point.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    n_neighbors
        Neighbours of a point, the point itself not counted; ties at the last one are broken arbitrarily.
    groups
        (n,) labels of slides or regions; neighbours are looked for within a group only. A group of m
        points gives min(n_neighbors, m - 1) neighbours.
    symmetric
        False: exactly ``n_neighbors`` edges leave each point, and i may be a neighbour of j but not j of i.
        True: an edge in either direction becomes one in both.
    distances
        Also return the lengths of the edges.

    Returns
    -------
    SpatialGraph

    Raises
    ------
    ValueError
        Coordinates that are not (n, 2) or not finite; more neighbours than there are other points.

    Notes
    -----
    O(n log n) by a k-d tree. Points at one place are neighbours at distance 0 and are counted.

    Examples
    --------
    >>> graph = knn_graph([[0, 0], [1, 0], [3, 0]], 1, distances=True)
    >>> graph.weights.toarray().astype(int).tolist()
    [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    >>> graph.distances.data.tolist()
    [1.0, 1.0, 2.0]
    """
    xy = check_coordinates(coordinates)
    n_neighbors = check_n_neighbors(n_neighbors)
    if len(xy) <= n_neighbors:
        raise ValueError(
            f"n_neighbors={n_neighbors}: there are only {len(xy)} points, so at most {max(len(xy) - 1, 0)} neighbours"
        )
    parts = [_nearest(xy, rows, n_neighbors) for rows in rows_of_groups(groups, len(xy))]
    row, col, length = (np.concatenate([p[i] for p in parts]) for i in range(3))
    if symmetric:
        row, col, length = _both_ways(row, col, length, len(xy))
    return _graph(xy, row, col, length, symmetric, distances)


def radius_graph(
    coordinates: np.ndarray,
    radius: float,
    *,
    groups: np.ndarray | None = None,
    distances: bool = False,
) -> SpatialGraph:
    """All pairs of points that are no further apart than ``radius``.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    radius
        Largest distance in µm, inclusive.
    groups
        (n,) labels of slides or regions; neighbours are looked for within a group only.
    distances
        Also return the lengths of the edges.

    Returns
    -------
    SpatialGraph
        Symmetric. Points may be isolated, and are counted.

    Raises
    ------
    ValueError
        Coordinates that are not (n, 2) or not finite; a radius that is not positive or that makes more
        than 500 million edges.

    Examples
    --------
    >>> graph = radius_graph([[0, 0], [1, 0], [3, 0]], 1.5)
    >>> graph.weights.nnz, graph.n_isolated, graph.symmetric
    (2, 1, True)
    """
    xy = check_coordinates(coordinates)
    mean_within(xy, radius, groups=groups)
    found = [
        rows[cKDTree(xy[rows]).query_pairs(radius, output_type="ndarray")] for rows in rows_of_groups(groups, len(xy))
    ]
    pair = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    length = np.hypot(*(xy[pair[:, 0]] - xy[pair[:, 1]]).T)
    row, col = np.concatenate([pair, pair[:, ::-1]]).T
    return _graph(xy, row, col, np.concatenate([length, length]), True, distances)


def check_graph(
    weights: sparse.sparray | sparse.spmatrix | np.ndarray,
    n: int,
    *,
    coordinates: np.ndarray | None = None,
    argument: str = "graph",
) -> sparse.csr_array:
    """Spatial weights as CSR without diagonal, or an error that says why they are not those of these points.

    Parameters
    ----------
    weights
        (n, n) sparse or dense, non-negative.
    n
        Number of points.
    coordinates
        (n, d) µm. When given, edges must be shorter than random pairs are: a graph that was made for
        other points, or for the same ones in another order, has the right shape only.
    argument
        What errors call the graph.

    Raises
    ------
    TypeError
        Neither an array nor a sparse matrix.
    ValueError
        Another shape, weights that are negative or not finite, no edge, edges as long as random pairs, or weights
        that are the lengths of the edges.
    """
    if not hasattr(weights, "shape"):
        raise TypeError(
            f"{argument}: expected an (n, n) array or sparse matrix of weights, got {type(weights).__name__}"
        )
    if weights.shape != (n, n):
        raise ValueError(
            f"{argument} has shape {weights.shape}, expected {(n, n)}: it was made for another table; build it again "
            "from this one"
        )
    given = sparse.csr_array(weights)
    if not np.isfinite(given.data).all() or (given.data < 0).any():
        raise ValueError(f"{argument}: weights must be finite and at least 0")
    edges = given.tocoo()
    kept = (edges.row != edges.col) & (edges.data > 0)
    if not kept.any():
        raise ValueError(
            f"{argument} has no edge between two of the {n} points; take more neighbours or a larger radius"
        )
    whole = bool(kept.all())
    row, col = (edges.row, edges.col) if whole else (edges.row[kept], edges.col[kept])
    if coordinates is not None:
        xy = np.asarray(coordinates, dtype=np.float64)
        _check_no_lengths(xy, row, col, edges.data if whole else edges.data[kept], argument)
        if len(row) < _DENSE_SHARE * n * (n - 1):
            _check_lengths(xy, row, col, argument)
    if whole:
        return given
    return sparse.csr_array((edges.data[kept], (row, col)), shape=(n, n))


def _check_no_lengths(xy: np.ndarray, row: np.ndarray, col: np.ndarray, weight: np.ndarray, argument: str) -> None:
    """Weights proportional to the lengths of the edges make the farthest neighbours count most."""
    picked = np.random.default_rng(0).integers(0, len(row), _PROBES)
    length, w = np.linalg.norm(xy[row[picked]] - xy[col[picked]], axis=1), weight[picked]
    scale = w.sum() / length.sum() if length.sum() > 0 else 0.0
    if length.std() > 1e-3 * length.mean() and np.allclose(w, scale * length, rtol=1e-3):
        raise ValueError(
            f"{argument} holds the distances to the neighbours, so that the farthest would count most; give weights "
            "that are 1 for a neighbour, as obsp['spatial_connectivities'] of squidpy, or that fall with distance"
        )


def _check_lengths(xy: np.ndarray, row: np.ndarray, col: np.ndarray, argument: str) -> None:
    rng = np.random.default_rng(0)
    n, draws = len(xy), 5 * _PROBES
    picked = rng.integers(0, len(row), draws)
    edge = np.median(np.linalg.norm(xy[row[picked]] - xy[col[picked]], axis=1))
    first = rng.integers(0, n, draws)
    other = (first + rng.integers(1, n, draws)) % n
    random = np.median(np.linalg.norm(xy[first] - xy[other], axis=1))
    if n >= 30 and edge >= _AS_RANDOM * random:
        raise ValueError(
            f"{argument}: its edges (median {edge:.3g} µm) are as long as random pairs of these points "
            f"({random:.3g} µm), so it belongs to another table or to another order of the rows; build it again from "
            "this one"
        )


def _nearest(xy: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (row, col, length) from each of ``rows`` to its nearest others among them."""
    k = min(k, len(rows) - 1)
    if k < 1:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0)
    length, index = cKDTree(xy[rows]).query(xy[rows], k + 1)
    # among points at one place the point itself need not come first, or at all
    other = index != np.arange(len(rows))[:, None]
    other[other.all(axis=1), -1] = False
    return np.repeat(rows, k), rows[index[other]], length[other]


def _both_ways(row: np.ndarray, col: np.ndarray, length: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    key = np.concatenate([row * n + col, col * n + row])
    key, first = np.unique(key, return_index=True)
    return key // n, key % n, np.concatenate([length, length])[first]


def _graph(
    xy: np.ndarray, row: np.ndarray, col: np.ndarray, length: np.ndarray, symmetric: bool, distances: bool
) -> SpatialGraph:
    n = len(xy)
    lengths = sparse.coo_array((length, (row, col)), shape=(n, n)).tocsr()  # keeps lengths of 0
    lengths.sort_indices()
    weights = sparse.csr_array((np.ones(lengths.nnz, np.float32), lengths.indices, lengths.indptr), shape=(n, n))
    isolated = int((np.diff(lengths.indptr) == 0).sum())
    return SpatialGraph(weights, lengths if distances else None, symmetric, isolated, count_duplicates(xy))
