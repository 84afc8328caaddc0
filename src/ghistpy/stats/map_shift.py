"""Maps against copies of the layout of the tissue that are laid elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.multiple import cauchy_combination

_FAR = 3.0  # typical distances between points beyond which a shifted point has left the tissue
_OVERLAP = 0.5  # share of points that must stay in the tissue
_DRAWS = 20  # shifts tried for one that keeps that share
_NEAR = 6  # neighbours that a point of the tissue has within _STRAY times the usual distance to the last of them
_STRAY = 10.0
_RANK = 1e-10


@dataclass(frozen=True)
class MapShift:
    """Result of :func:`map_shift_test`.

    Attributes
    ----------
    share
        (k, G) share of the variance of each gene that each part of the layout explains where it lies; NaN
        for constant genes.
    pval
        (G,) p-values of the parts together.
    n_shifts
        Shifts that were compared.
    n_redrawn
        Shifts left out because less than half of the points stayed in the tissue.
    overlap
        Share of the points that stayed in the tissue, mean over shifts.
    """

    share: np.ndarray
    pval: np.ndarray
    n_shifts: int
    n_redrawn: int
    overlap: float


def map_shift_test(
    values: Matrix,
    coordinates: np.ndarray,
    layout: list[np.ndarray],
    *,
    n_shifts: int,
    seed: int = 0,
    progress: Callable[[Iterator[int]], Iterator[int]] | None = None,
) -> MapShift:
    """Test whether genes follow a layout, against copies of the layout that are shifted.

    The null hypothesis: the map of the gene and the layout are unrelated, each with whatever smoothness it
    has of its own. In a copy every point takes the layout of the point that lies nearest to it after a
    toroidal shift of the slide, which is continued by its mirror images so that nothing is cut where the
    sides meet. Both maps keep their autocorrelation, so smoothness alone, of a prediction or of depth, is
    no evidence.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite.
    coordinates
        (n, 2), µm.
    layout
        Parts of the layout, (n, p) columns each, such as the cell types around each point, or pairs of
        functions of the coordinates. Parts are combined as in SPARK-X.
    n_shifts
        Copies.
    seed
        Of the shifts.
    progress
        Wraps the iteration over shifts.

    Returns
    -------
    MapShift

    Raises
    ------
    ValueError
        Shapes that do not fit, no shift, or a tissue in which no shift keeps half of the points.

    Notes
    -----
    The statistic is R² of the gene on the columns of a part; with several parts their χ² p-values enter a
    Cauchy combination that serves as statistic only. p = (1 + copies at least as large) / (1 + n_shifts).
    Points that leave the tissue (further from the nearest point than three times the typical distance
    between points) are left out of that comparison, and the layout where it lies is scored on the same points
    as its copy: on fewer points, in pieces, any layout explains less.

    A slide of few correlation lengths has few really different shifts. In simulations with stationary maps the
    test rejected 4 to 9 % instead of 5 % on a square (functions of the coordinates; 5 to 7 % with a smooth layout)
    and 0 to 5 % on tissues that are no rectangle (``benchmarks/calibration.py``; docs: spatially variable genes).
    :func:`ghistpy.stats.variogram_test` asks the same and finds more. Maps are assumed to be alike in all
    directions: a mirror image turns stripes.

    O(n_shifts x (stored values x p + n log n)).

    References
    ----------
    Lotwick and Silverman, J. R. Stat. Soc. B 44:406 (1982), doi:10.1111/j.2517-6161.1982.tb01221.x. Harms
    et al., J. Ecol. 89:947 (2001), doi:10.1111/j.1365-2745.2001.00615.x (torus translation).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> xy = rng.uniform(0, 1000, (1500, 2))
    >>> niche = ((xy - 500) ** 2).sum(axis=1, keepdims=True) < 300**2
    >>> values = np.column_stack([niche + rng.normal(size=(1500, 1)), rng.normal(size=(1500, 1))])
    >>> result = map_shift_test(values, xy, [niche.astype(float)], n_shifts=99)
    >>> bool(result.pval[0] < 0.05), bool(result.pval[1] > 0.05)
    (True, True)
    """
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    xy = np.asarray(coordinates, dtype=np.float64)
    n = values.shape[0]
    if xy.shape != (n, 2) or not layout or any(len(part) != n for part in layout):
        raise ValueError(f"coordinates, layout: expected {n} rows, got {xy.shape} and {[np.shape(p) for p in layout]}")
    if n_shifts < 1:
        raise ValueError(f"n_shifts={n_shifts}: at least one shift is needed, better 199 or more")
    parts = [np.asarray(part, dtype=np.float64) for part in layout]
    squares = _squared(values)
    share = _share(values, squares, parts, np.ones(n, dtype=bool))
    tree = cKDTree(xy)
    reach = _FAR * _spacing(tree)
    at_least, redrawn, kept = np.ones(values.shape[1]), 0, 0.0
    seeds = np.random.SeedSequence(seed).spawn(n_shifts)
    for i in progress(range(n_shifts)) if progress else range(n_shifts):
        source, inside, skipped = _draw(tree, reach, np.random.default_rng(seeds[i]))
        redrawn, kept = redrawn + skipped, kept + inside.mean() / n_shifts
        both = _share(values, squares, [*parts, *(part[source] for part in parts)], inside)
        here, there = (_statistic(half, inside) for half in np.split(both, 2))
        at_least += ~(there < here - 1e-9 * np.abs(here))
    pval = np.where(np.isnan(share[0]), np.nan, at_least / (1 + n_shifts))
    return MapShift(share, pval, n_shifts, redrawn, kept)


def strays(coordinates: np.ndarray) -> np.ndarray:
    """Points far from all others, (n,) bool: one of them would stretch the slide that shifts are drawn from.

    Examples
    --------
    >>> import numpy as np
    >>> xy = np.random.default_rng(0).uniform(0, 500, (200, 2))
    >>> xy[3] = 9000
    >>> np.flatnonzero(strays(xy))
    array([3])
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    k = min(_NEAR, len(xy) - 1)
    distance = cKDTree(xy).query(xy, k + 1)[0][:, k]
    return distance > _STRAY * np.median(distance[distance > 0]) if distance.any() else np.zeros(len(xy), dtype=bool)


def _spacing(tree: cKDTree) -> float:
    """Median distance to the nearest point that lies elsewhere."""
    n = tree.n
    distance = tree.query(tree.data[:: max(1, n // 2000)], 2)[0][:, 1]
    if not distance.any():
        raise ValueError(f"coordinates: the {n} points lie on top of each other; there is nothing to shift")
    return float(np.median(distance[distance > 0]))


def _draw(tree: cKDTree, reach: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """The point whose layout each point takes, which points stay in the tissue, and shifts that failed."""
    xy = tree.data
    low, side = xy.min(axis=0), np.maximum(np.ptp(xy, axis=0), 1e-12)
    for tried in range(_DRAWS):
        # the slide and its mirror images tile a torus of twice its sides without a cut
        place = (xy - low + rng.random(2) * 2 * side) % (2 * side)
        place = low + np.where(place > side, 2 * side - place, place)
        distance, source = tree.query(place)
        inside = distance <= reach
        if inside.mean() >= _OVERLAP:
            return source, inside, tried
    raise ValueError(
        f"coordinates: none of {_DRAWS} shifts kept half of the {len(xy)} points in the tissue; its shape is too far "
        "from a rectangle, test a rectangular part of it"
    )


def _squared(values: Matrix) -> Matrix:
    if sparse.issparse(values):
        return sparse.csc_array((values.data.astype(np.float64) ** 2, values.indices, values.indptr), values.shape)
    return np.asarray(values) ** 2


def _share(values: Matrix, squares: Matrix, parts: list[np.ndarray], inside: np.ndarray) -> np.ndarray:
    """R² (k, G) of the genes on each part, over the points that are inside."""
    mask = inside.astype(np.float64)
    n = mask.sum()
    bases = []
    for part in parts:
        z = (part - part[inside].mean(axis=0)) * mask[:, None]
        size, vectors = np.linalg.eigh(z.T @ z)
        useful = size > _RANK * max(float((part[inside] ** 2).sum()), 1e-300)
        bases.append(z @ (vectors[:, useful] / np.sqrt(size[useful])))
    together = np.column_stack([*bases, mask]).astype(values.dtype if values.dtype == np.float32 else np.float64)
    product = np.asarray(values.T @ together, dtype=np.float64).T
    total, squared = product[-1], np.asarray(squares.T @ mask.astype(squares.dtype), dtype=np.float64)
    left = squared - total**2 / n
    left = np.where(left <= 1e-9 * squared, np.nan, left)
    ends = np.cumsum([b.shape[1] for b in bases])
    rows = [(product[e - b.shape[1] : e] ** 2).sum(axis=0) for e, b in zip(ends, bases, strict=True)]
    return np.minimum(np.stack(rows) / left, 1.0)


def _statistic(share: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """One number per gene: R², or minus the log of the combined p-values of several parts."""
    if len(share) == 1:
        return share[0]
    # pairs of columns: χ² with 2 degrees of freedom, the exponential of SPARK-X
    return -cauchy_combination(-0.5 * inside.sum() * share)
