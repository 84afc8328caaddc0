"""How much a cell resembles its neighbours, gene by gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ghistpy.stats.metrics import Columns, Matrix, dense_columns

MAX_ALL_PAIRS = 5000
_FLAT = 1e-10  # share of the raw second moment below which a variance is rounding
_CONSTANT = 1e-9  # SD below this share of the mean: constant up to rounding
_CLOSE, _ROUNDING = 1e-6, 1e-15  # shares of the raw second moment between which a variance has lost digits
_ROWS_AT_ONCE = 500
_BLOCK_VALUES = 3_000_000  # 24 MB in float64: rows of a block are long enough for the compiled loops


@dataclass(frozen=True)
class NeighborCorrelation:
    """Correlation of cells with their neighbours.

    Attributes
    ----------
    value
        (G,) float64; pooled within strata when there are strata. NaN for a constant gene.
    by_stratum
        (G, T) float64, the correlation within each stratum; (G, 1) equal to ``value`` without strata.
    n_cells
        (T,) int64, cells with at least one neighbour, by stratum.
    """

    value: np.ndarray
    by_stratum: np.ndarray
    n_cells: np.ndarray


def neighbor_correlation(
    values: Matrix,
    weights: sparse.sparray | sparse.spmatrix,
    *,
    strata: np.ndarray | None = None,
    covariates: np.ndarray | None = None,
) -> NeighborCorrelation:
    """Pearson correlation of a gene in a cell with the same gene in its neighbours.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite.
    weights
        (n, n) sparse, row i holds the neighbours of cell i. Rows are scaled to sum 1, so that every
        cell with neighbours weighs the same; rows without neighbours do not take part.
    strata
        (n,) codes 0 .. T - 1 of the cells (types). Means are then taken within the stratum of the
        *cell*; to correlate within types, ``weights`` holds neighbours of the same type only
        (:func:`edges_of_types`). Cells with a negative code must have no edges.
    covariates
        (n, p) columns that are regressed out of every gene first (over all cells, with intercept),
        such as :func:`density_basis`.

    Raises
    ------
    ValueError
        Shapes that disagree.

    Notes
    -----
    With rows that sum to 1, over pairs (cell i, neighbour j) with weight w_ij:
    r = cov_w(x_i, x_j) / √(var_w(x_i) · var_w(x_j)). One neighbour each gives the correlation of a cell
    with its nearest neighbour. Pairs that are each other's neighbour count twice. One pass over the rows: O(edges ·
    genes), of sparse values O(edges · stored values of a cell), and no copy of the matrix in either case.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> ring = sparse.csr_array(np.roll(np.eye(4), 1, axis=1))
    >>> neighbor_correlation(np.array([[0.0], [0.0], [1.0], [1.0]]), ring).value
    array([0.])
    """
    weights = sparse.csr_array(weights).astype(np.float64)
    weights.eliminate_zeros()
    n = values.shape[0]
    if weights.shape != (n, n):
        raise ValueError(f"weights: expected ({n}, {n}), one row per cell, got {weights.shape}")
    degree = np.diff(weights.indptr)
    weights.data /= np.repeat(weights.sum(axis=1), degree)
    stratum, n_cells = _strata(strata, np.flatnonzero(degree), n)
    if sparse.issparse(values) and covariates is None:
        moments = _sparse(sparse.csr_array(values), weights, stratum, n_cells)
    else:
        basis = None if covariates is None else _orthonormal(covariates, n)
        moments = _dense(values, weights, stratum, n_cells, basis)
    return _from_moments(moments, n_cells)


def _strata(strata: np.ndarray | None, linked: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Code (n,) of every cell, and how many cells with neighbours each stratum has."""
    code = np.zeros(n, np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    if code.shape != (n,):
        raise ValueError(f"strata: expected one code per cell ({n}), got shape {code.shape}")
    if (code[linked] < 0).any():
        raise ValueError("strata: cells with a negative code have edges; leave those out of weights")
    n_strata = 1 if strata is None else int(code.max(initial=-1)) + 1
    return code, np.bincount(code[linked], minlength=n_strata)


def _sparse(
    values: sparse.csr_array, weights: sparse.csr_array, stratum: np.ndarray, n_cells: np.ndarray
) -> np.ndarray:
    """Moments (T, 5, G) from the stored values; genes that vary little about a large mean are done again, dense."""
    from ghistpy.stats._neighbour_kernels import sparse_moments

    out, graph = np.zeros((len(n_cells), 5, values.shape[1])), (weights.indptr, weights.indices, weights.data)
    if values.dtype != np.float32:
        values = values.astype(np.float64, copy=False)
    if not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    sparse_moments(values.indptr, values.indices, values.data, values.shape[1], *graph, stratum, out)
    left = out[:, 2:4] - out[:, :2] ** 2 / np.maximum(n_cells, 1)[:, None, None]
    risky = (left < _CLOSE * out[:, 2:4]) & (left > _ROUNDING * out[:, 2:4])
    again = np.flatnonzero(risky.any(axis=(0, 1)))
    if len(again):
        out[:, :, again] = _dense(values[:, again], weights, stratum, n_cells)
    return out


def _dense(
    values: Matrix,
    weights: sparse.csr_array,
    stratum: np.ndarray,
    n_cells: np.ndarray,
    basis: np.ndarray | None = None,
) -> np.ndarray:
    """Moments (T, 5, G) of values less their mean, without covariates; genes are widened block by block."""
    from ghistpy.stats._neighbour_kernels import dense_moments

    (n, n_genes), n_strata = values.shape, len(n_cells)
    graph = (weights.indptr, weights.indices, weights.data)
    whole = basis is None and isinstance(values, np.ndarray) and values.flags.c_contiguous
    if whole and values.dtype in (np.float32, np.float64):  # rows as they lie in memory
        out = np.zeros((n_strata, 5, n_genes))
        pivot = values.mean(axis=0, dtype=np.float64)
        dense_moments(values, pivot, *graph, stratum, out)
        return _without_constants(out, pivot, n)
    values = values.tocsc() if sparse.issparse(values) else np.asarray(values)
    parts = []
    width = max(1, _BLOCK_VALUES // max(n, 1))
    for start in range(0, n_genes, width):
        part = values[:, start : start + width]
        part = part.toarray(order="C") if sparse.issparse(part) else part
        block = np.array(part, dtype=np.float64, order="C")
        pivot = block.mean(axis=0)
        if basis is not None:
            block -= pivot
            power = np.einsum("ng,ng->g", block, block)
            block -= basis @ (basis.T @ block)
            block[:, np.einsum("ng,ng->g", block, block) <= _FLAT * power] = 0.0
        out = np.zeros((n_strata, 5, block.shape[1]))
        dense_moments(block, pivot if basis is None else np.zeros(len(pivot)), *graph, stratum, out)
        parts.append(_without_constants(out, pivot, n))
    return np.concatenate(parts, axis=2) if parts else np.zeros((n_strata, 5, 0))


def _without_constants(out: np.ndarray, mean: np.ndarray, n: int) -> np.ndarray:
    """Moments of a gene that is constant up to rounding are 0."""
    out[:, :, out[:, 2].sum(axis=0) <= n * (_CONSTANT * mean) ** 2] = 0.0
    return out


def _orthonormal(covariates: np.ndarray, n: int) -> np.ndarray:
    covariates = np.asarray(covariates, dtype=np.float64)
    covariates = covariates[:, None] if covariates.ndim == 1 else covariates
    if covariates.shape[0] != n or not np.isfinite(covariates).all():
        raise ValueError(f"covariates: expected finite values, one row per cell ({n}), got shape {covariates.shape}")
    centred = covariates - covariates.mean(axis=0)
    u, s, _ = np.linalg.svd(np.column_stack([np.ones(n), centred]), full_matrices=False)
    return u[:, s > 1e-10 * s.max(initial=0.0)]


def _from_moments(moments: np.ndarray, n_cells: np.ndarray) -> NeighborCorrelation:
    """From sums (T, 5, G) over cells (x) and their neighbours (y), every cell with weight 1."""
    sx, sy, sxx, syy, sxy = (moments[:, k].T for k in range(5))
    mean = np.divide(1.0, n_cells, out=np.zeros(len(n_cells)), where=n_cells > 0)
    cov, var_x, var_y = sxy - sx * sy * mean, sxx - sx**2 * mean, syy - sy**2 * mean
    pooled = _ratio(cov.sum(axis=1), var_x.sum(axis=1), var_y.sum(axis=1), sxx.sum(axis=1), syy.sum(axis=1))
    return NeighborCorrelation(pooled, _ratio(cov, var_x, var_y, sxx, syy), n_cells.astype(np.int64))


def _ratio(cov, var_x, var_y, raw_x, raw_y) -> np.ndarray:
    flat = (var_x <= _FLAT * raw_x) | (var_y <= _FLAT * raw_y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, np.clip(cov / np.sqrt(np.abs(var_x)) / np.sqrt(np.abs(var_y)), -1.0, 1.0))


def edges_of_types(
    weights: sparse.sparray | sparse.spmatrix,
    codes: np.ndarray,
    *,
    between: tuple[int, int] | None = None,
) -> sparse.csr_array:
    """The edges between cells of one type, or from one type to another.

    Parameters
    ----------
    weights
        (n, n) sparse.
    codes
        (n,) codes of the types; cells with a negative code have none and lose all edges.
    between
        (a, b): edges from cells of type a to neighbours of type b. None: edges within every type.

    Examples
    --------
    >>> chain = sparse.csr_array(np.eye(3, k=1))
    >>> edges_of_types(chain, np.array([0, 0, 1])).nnz, edges_of_types(chain, [0, 0, 1], between=(0, 1)).nnz
    (1, 1)
    """
    edges = sparse.coo_array(weights)
    codes = np.asarray(codes)
    if codes.shape != (edges.shape[0],):
        raise ValueError(f"codes: expected one code per cell ({edges.shape[0]}), got shape {codes.shape}")
    first, second = codes[edges.row], codes[edges.col]
    kept = (first == second) & (first >= 0)
    if between is not None:
        kept = (first == between[0]) & (second == between[1])
    return sparse.csr_array((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=edges.shape)


def away_from_border(coordinates: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Which cells are no nearer to the bounding box than to their nearest neighbour, (n,) bool.

    The border rule of scFeatures (Cao et al. 2022, doi:10.1093/bioinformatics/btac590): of a cell nearer
    to the border its true nearest neighbour may lie outside.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    nearest
        (n,) distance to the nearest neighbour in µm.
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    inner = np.minimum(xy - xy.min(axis=0), xy.max(axis=0) - xy).min(axis=1)
    return np.asarray(nearest) <= inner


def nn_correlation(values: Matrix, coordinates: np.ndarray, *, border_rule: bool = True) -> np.ndarray:
    """Correlation of every gene with its value in the nearest neighbour, as scFeatures defines it.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite.
    coordinates
        (n, 2) x and y in µm.
    border_rule
        Only cells that are no nearer to the bounding box than to their neighbour.

    Returns
    -------
    (G,) float64; NaN for a constant gene and for fewer than 2 cells.

    Examples
    --------
    >>> import numpy as np
    >>> xy = np.array([[0, 0], [1, 0], [9, 0], [10, 0]])
    >>> nn_correlation(np.array([[1.0], [1.0], [3.0], [3.0]]), xy, border_rule=False)
    array([1.])
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    n = len(xy)
    if n < 2:
        return np.full(values.shape[1], np.nan)
    distance, index = cKDTree(xy).query(xy, 2)
    # among cells at one place the cell itself need not come first
    own = index[:, 1] == np.arange(n)
    neighbour, length = np.where(own, index[:, 0], index[:, 1]), np.where(own, distance[:, 0], distance[:, 1])
    kept = np.flatnonzero(away_from_border(xy, length)) if border_rule else np.arange(n)
    weights = sparse.csr_array((np.ones(len(kept)), (kept, neighbour[kept])), shape=(n, n))
    return neighbor_correlation(values, weights).value


def density_basis(coordinates: np.ndarray, n_neighbors: int = 10, *, groups: np.ndarray | None = None) -> np.ndarray:
    """Columns l, l², l³ of the log local density, standardised, (n, 3).

    l = -2 log(distance to the ``n_neighbors``-th neighbour): what crowding alone explains of a gene is a
    smooth function of it.

    Parameters
    ----------
    coordinates
        (n, 2) x and y in µm.
    n_neighbors
        Neighbours that measure the density; fewer where a group is smaller.
    groups
        (n,) labels of slides or regions; a cell is crowded by those of its own.
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    groups = np.zeros(len(xy), np.int64) if groups is None else np.asarray(groups)
    reach = np.zeros(len(xy))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        k = min(n_neighbors, len(rows) - 1)
        reach[rows] = cKDTree(xy[rows]).query(xy[rows], [k + 1])[0][:, 0]
    smallest = reach[reach > 0].min() if (reach > 0).any() else 1.0
    log = -2 * np.log(np.maximum(reach, smallest))
    spread = log.std()
    log = (log - log.mean()) / (spread if spread > 0 else 1.0)
    return np.column_stack([log, log**2, log**3])


def morans_i_all_pairs(values: Matrix, coordinates: np.ndarray) -> np.ndarray:
    """Moran's I with weights 1/distance over all pairs, row-standardised: the form of scFeatures and ape.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite; at most 5,000 cells.
    coordinates
        (n, 2) x and y in µm, no two alike.

    Returns
    -------
    (G,) float64; NaN for a constant gene.

    Raises
    ------
    ValueError
        More cells, fewer than 2, or cells at one place (their weight would be infinite).

    References
    ----------
    Gittleman & Kot, Syst Zool 39:227 (1990), doi:10.2307/2992183.

    Examples
    --------
    >>> import numpy as np
    >>> xy = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0]])
    >>> morans_i_all_pairs(np.array([[0.0], [0], [1], [1]]), xy).round(2)
    array([0.67])
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    n = len(xy)
    if not 2 <= n <= MAX_ALL_PAIRS:
        raise ValueError(
            f"coordinates: weights over all pairs are computed for 2 to {MAX_ALL_PAIRS} cells, got {n}; use a kNN "
            "graph, and one form for all samples of a cohort"
        )
    repeated = n - len(np.unique(xy, axis=0))
    if repeated:
        raise ValueError(
            f"coordinates: {repeated} cells lie exactly where another one does, and 1/distance is infinite there; "
            "remove or move them"
        )
    dense = dense_columns(values.tocsc() if sparse.issparse(values) else np.asarray(values), slice(None))
    block = Columns(dense)
    z = np.ascontiguousarray(block.centred)
    lagged = np.zeros(z.shape[1])
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, n))
        distance = cdist(xy[rows], xy)
        distance[np.arange(len(rows)), rows] = np.inf
        weight = 1 / distance
        weight /= weight.sum(axis=1, keepdims=True)
        lagged += np.einsum("ij,ij->j", z[rows], weight @ z)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(block.constant, np.nan, lagged / block.power)
