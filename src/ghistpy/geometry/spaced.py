"""Nearest neighbours that keep a distance."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ghistpy.geometry.points import check_coordinates, check_length, check_n_neighbors, rows_of_groups

_MOST_VALUES = 20_000_000  # candidate neighbours in memory at once


def spaced_knn(
    coordinates: np.ndarray, n_neighbors: int, min_distance: float, *, groups: np.ndarray | None = None
) -> sparse.csr_array:
    """The nearest neighbours of every point that lie at least ``min_distance`` away.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    n_neighbors
        Neighbours of a point; fewer where there are fewer.
    min_distance
        µm, inclusive.
    groups
        (n,) labels of slides or regions; neighbours are looked for within a group only.

    Returns
    -------
    (n, n) CSR with the distances in µm; a point without a neighbour so far away has an empty row.

    Notes
    -----
    The points nearer than ``min_distance`` are counted first, so that one query of known size per point
    suffices: O(n · (n_neighbors + crowd)).

    Examples
    --------
    >>> spaced_knn([[0, 0], [1, 0], [5, 0]], 1, 3.0).toarray().tolist()
    [[0.0, 0.0, 5.0], [0.0, 0.0, 4.0], [0.0, 4.0, 0.0]]
    """
    xy = check_coordinates(coordinates)
    min_distance, n_neighbors = check_length(min_distance, "min_distance"), check_n_neighbors(n_neighbors)
    parts = [_of_group(xy, rows, n_neighbors, min_distance) for rows in rows_of_groups(groups, len(xy))]
    row, col, length = (np.concatenate([p[i] for p in parts]) for i in range(3))
    return sparse.csr_array((length, (row, col)), shape=(len(xy), len(xy)))


def _of_group(xy: np.ndarray, rows: np.ndarray, k: int, min_distance: float) -> tuple[np.ndarray, ...]:
    tree = cKDTree(xy[rows])
    # strictly nearer, the point itself among them
    crowd = tree.query_ball_point(xy[rows], np.nextafter(min_distance, 0), return_length=True)
    order = np.argsort(crowd, kind="stable")  # points of like crowds share a query
    found, start = [], 0
    while start < len(rows):
        reach = _MOST_VALUES // (int(crowd[order[-1]]) + k)
        part = order[start : start + max(1, min(reach, 20_000))]
        start += len(part)
        ask = min(int(crowd[part].max()) + k, len(rows))
        length, index = tree.query(xy[rows[part]], np.arange(1, ask + 1))
        far = length >= min_distance
        far &= np.cumsum(far, axis=1) <= k
        at, which = np.nonzero(far)
        found.append((rows[part[at]], rows[index[at, which]], length[at, which]))
    return tuple(np.concatenate([f[i] for f in found]) for i in range(3))
