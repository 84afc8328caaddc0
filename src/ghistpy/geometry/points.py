"""Points in µm: what is asked of them before neighbours are looked for, and how dense they lie."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

MOST_EDGES = 500_000_000  # 6 GB of indices and weights
_PROBES = 1000  # points from which the number of edges and the density are judged


def check_coordinates(coordinates: np.ndarray, argument: str = "coordinates") -> np.ndarray:
    """Coordinates as (n, 2) float64, or an error.

    Raises
    ------
    ValueError
        Another shape, or values that are NaN or infinite (counted).
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        more = "; keep the two columns that hold x and y" if xy.ndim == 2 and xy.shape[1] > 2 else ""
        raise ValueError(f"{argument}: expected (n, 2) x and y in µm, got shape {xy.shape}{more}")
    bad = int((~np.isfinite(xy)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{argument}: {bad} of {len(xy)} rows are NaN or infinite; remove those rows first")
    return xy


def check_length(value: float, argument: str = "radius") -> float:
    """A length in µm that is a positive finite number, or an error.

    Examples
    --------
    >>> check_length("30")
    Traceback (most recent call last):
    ...
    ValueError: radius='30': expected a positive distance in µm
    """
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{argument}={value!r}: expected a positive distance in µm")
    return float(value)


def _is_number(value: object) -> bool:
    known = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))
    return bool(known and np.isfinite(value))


def check_n_neighbors(value: int) -> int:
    """A whole number of neighbours of at least 1, or an error."""
    if not _is_number(value) or int(value) != value or value < 1:
        raise ValueError(f"n_neighbors={value!r}: expected a whole number of at least 1")
    return int(value)


def rows_of_groups(groups: np.ndarray | None, n: int) -> list[np.ndarray]:
    """Rows of every group, in the order of the labels; all rows without groups."""
    if groups is None:
        return [np.arange(n)]
    values = np.asarray(groups)
    if values.shape != (n,):
        raise ValueError(f"groups: expected one label per point ({n}), got shape {values.shape}")
    code = np.unique(values, return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    return np.split(order, np.cumsum(np.bincount(code))[:-1])


def mean_within(
    coordinates: np.ndarray,
    radius: float,
    *,
    groups: np.ndarray | None = None,
    argument: str = "radius",
    most_edges: float = MOST_EDGES,
) -> float:
    """How many others of its group a point has within ``radius`` µm: the mean, from a thousand points.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    radius
        µm.
    groups
        (n,) labels of slides or regions.
    argument
        What errors call the radius.
    most_edges
        Directed edges that fit into memory.

    Raises
    ------
    ValueError
        A radius that is no positive number, or that makes more edges.

    Examples
    --------
    >>> mean_within([[0, 0], [1, 0], [3, 0], [4, 0]], 1.5)
    1.0
    """
    xy = check_coordinates(coordinates)
    radius = check_length(radius, argument)
    total = 0.0
    for rows in filter(len, rows_of_groups(groups, len(xy))):
        probes = xy[rows[:: max(1, len(rows) // _PROBES)]]
        tree = cKDTree(xy[rows], balanced_tree=False, compact_nodes=False)  # built for a few queries only
        total += (tree.query_ball_point(probes, radius, return_length=True).mean() - 1) * len(rows)
    if total > most_edges:
        raise ValueError(
            f"{argument}={radius:g} µm makes about {total:.2g} edges among {len(xy)} points "
            f"({total / len(xy):.0f} each); is it in µm, as the coordinates are? Take a smaller one"
        )
    return float(total / max(len(xy), 1))


def local_density(coordinates: np.ndarray, n_neighbors: int = 6) -> float:
    """Points per mm² where the points are: the median over points of k / (π r_k²).

    Empty parts of a slide do not count, unlike in n / area. NaN for fewer than ``n_neighbors`` + 1 points;
    infinite when most points share their place with that many others.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.random.default_rng(0).uniform(0, 1000, (5000, 2))
    >>> bool(4500 < local_density(points) < 6500)
    True
    """
    xy = check_coordinates(coordinates)
    if len(xy) <= n_neighbors:
        return float("nan")
    probes = xy[:: max(1, len(xy) // _PROBES)]
    tree = cKDTree(xy, balanced_tree=False, compact_nodes=False)  # built for a few queries only
    reach = float(np.median(tree.query(probes, n_neighbors + 1)[0][:, -1]))
    return n_neighbors / (np.pi * reach**2) * 1e6 if reach > 0 else float("inf")


def count_duplicates(coordinates: np.ndarray) -> int:
    """Points that lie exactly where another one lies.

    Examples
    --------
    >>> count_duplicates([[0, 0], [1, 0], [0, 0]])
    2
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    if len(np.unique(xy[:, 0])) == len(xy):  # quicker by far, and usual
        return 0
    repeats = np.unique(xy[:, 0] + 1j * xy[:, 1], return_counts=True)[1]
    return int(repeats[repeats > 1].sum())
