"""The quadratic form of values on a graph that Moran's I and Geary's C are made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from ghistpy.stats.metrics import Matrix

_CONSTANT = 1e-18  # share of the sum of squares below which a gene is constant up to rounding


def row_standardised(weights: sparse.sparray) -> sparse.csr_array:
    """Weights whose rows sum to 1; a row without neighbours stays empty.

    Examples
    --------
    >>> from scipy import sparse
    >>> row_standardised(sparse.csr_array([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).toarray().tolist()
    [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    weights = sparse.csr_array(weights, dtype=np.float64)
    total = np.asarray(weights.sum(axis=1)).ravel()
    share = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_array(
        (weights.data * np.repeat(share, np.diff(weights.indptr)), weights.indices, weights.indptr), weights.shape
    )


@dataclass(frozen=True)
class Graph:
    """A graph and the form F of the values on it: score = scale · F / Σ z².

    Attributes
    ----------
    n
        Points.
    upper
        Upper triangle of W + Wᵀ, rows in order.
    degree
        (n,) row sums of W + Wᵀ.
    loops
        (n,) weights of z², empty for Moran's I.
    edge
        Factor of the edges in F.
    scale
        Of the score.
    sign
        +1 when a high F means that neighbours are alike.
    """

    n: int
    upper: sparse.csr_array
    degree: np.ndarray
    loops: np.ndarray
    edge: float
    scale: float
    sign: float

    @classmethod
    def of(cls, weights: sparse.csr_array, method: str) -> Graph:
        """The form of ``"moran"`` or ``"geary"`` for (n, n) weights; a diagonal is left out."""
        n = weights.shape[0]
        upper, degree = _symmetric_half(weights)
        total = float(degree.sum()) / 2  # of the weights without the diagonal
        if method == "moran":
            return cls(n, upper, degree, np.zeros(0), 1.0, n / total if total else np.nan, 1.0)
        return cls(n, upper, degree, degree, -2.0, (n - 1) / (2 * total) if total else np.nan, -1.0)

    def form(self, cross: np.ndarray, square: np.ndarray) -> np.ndarray:
        """F from the sums over edges and over loops."""
        return cross if self.edge == 1.0 else square + self.edge * cross

    def reordered(self) -> tuple[np.ndarray, Graph]:
        """Points in an order that keeps neighbours close in memory, and the graph in it, in float32."""
        full = sparse.csr_array(self.upper + self.upper.T)
        order = reverse_cuthill_mckee(sparse.csr_matrix(full), symmetric_mode=True).astype(np.int32)
        upper = sparse.csr_array(sparse.triu(full[order][:, order], 1), dtype=np.float32)
        upper.sort_indices()
        loops = self.loops[order].astype(np.float32) if len(self.loops) else self.loops.astype(np.float32)
        return order, Graph(self.n, upper, self.degree[order], loops, self.edge, self.scale, self.sign)

    def in_fours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges of every point in groups of four: start of its groups (n + 1,), neighbours and weights (·, 4)."""
        from ghistpy.stats._kernels import in_fours

        h = self.upper
        start = np.zeros(self.n + 1, np.int64)
        np.cumsum(-(-np.diff(h.indptr) // 4), out=start[1:])
        neighbour, weight = np.zeros((start[-1], 4), np.int32), np.zeros((start[-1], 4))
        in_fours(h.indptr, h.indices, h.data, start, neighbour, weight)
        return start, neighbour, weight


def _symmetric_half(weights: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """Upper triangle of W + Wᵀ and the row sums of the whole of it, the diagonal left out."""
    from ghistpy.stats._kernels import upper_of_sum

    if not weights.has_canonical_format:
        weights = weights.copy()
        weights.sum_duplicates()
    n, turned = weights.shape[0], weights.T.tocsr()
    start, degree = np.zeros(n + 1, weights.indptr.dtype), np.zeros(n)
    column, value = np.empty(weights.nnz, weights.indices.dtype), np.empty(weights.nnz)
    k = upper_of_sum(
        weights.indptr, weights.indices, weights.data, turned.indptr, turned.indices, turned.data, start, column, value,
        degree,
    )  # fmt: skip
    return sparse.csr_array((value[:k], column[:k], start), weights.shape), degree


@dataclass(frozen=True)
class Observed:
    """What was measured: form, mean, number of values that are not 0, constancy (G,); sums of z² .. z⁶ (5, G)."""

    form: np.ndarray
    mean: np.ndarray
    powers: np.ndarray
    n_positive: np.ndarray
    constant: np.ndarray

    def effective_points(self) -> np.ndarray:
        """(G,) how many points carry the variance: (Σ z²)² / Σ z⁴.

        n for two equal halves, about m for m equal values among zeros, about 1 for one outlier.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.powers[0] ** 2 / self.powers[2]


def observe(values: Matrix, graph: Graph, basis: np.ndarray | None, pool: ThreadPoolExecutor, jobs: int) -> Observed:
    """The form of every gene (n, G) less its mean, or less what ``basis`` (n, p) explains.

    Dense values in their own precision, centred first, with sums over points in float64. Sparse values visit their
    stored entries only and are centred afterwards, which takes float64 throughout.
    """
    out = np.zeros((values.shape[1], 9))
    if basis is not None:
        _observe_residuals(values, graph, basis, pool, out)
    elif sparse.issparse(values):
        _observe_sparse(values, graph, pool, jobs, out)
    else:
        _observe_dense(values, graph, pool, jobs, out)
    mean, cross, square, powers = out[:, 0], out[:, 1], out[:, 2], out[:, 3:8].T
    constant = powers[0] <= _CONSTANT * (powers[0] + graph.n * mean**2)
    return Observed(graph.form(cross, square), mean, powers, out[:, 8].astype(np.int64), constant)


def _observe_sparse(
    values: sparse.csc_array, graph: Graph, pool: ThreadPoolExecutor, jobs: int, out: np.ndarray
) -> None:
    from ghistpy.stats._kernels import sparse_products

    loops = graph.loops if len(graph.loops) else np.zeros(graph.n)
    given = (values.indptr, values.indices, values.data, *graph.in_fours(), graph.degree, loops)
    cuts = np.linspace(0, values.shape[1], 4 * jobs + 1).astype(int)
    list(pool.map(lambda i: sparse_products(*given, cuts[i], cuts[i + 1], out), range(4 * jobs)))


def _observe_dense(values: np.ndarray, graph: Graph, pool: ThreadPoolExecutor, jobs: int, out: np.ndarray) -> None:
    from ghistpy.stats._kernels import WIDTH, centre_block

    starts = range(0, values.shape[1], WIDTH)

    def one(worker: int) -> None:
        block = np.zeros((graph.n, WIDTH), values.dtype)  # one a worker: fresh memory costs more than the sums
        mean, stored = np.zeros((2, WIDTH))
        for start in starts[worker::jobs]:
            part = out[start : start + WIDTH]
            block[:, : len(part)] = values[:, start : start + len(part)]
            centre_block(block, mean, stored)
            _sum_block(block, graph, part)
            part[:, 0], part[:, 8] = mean[: len(part)], stored[: len(part)]

    list(pool.map(one, range(jobs)))


def _observe_residuals(
    values: Matrix, graph: Graph, basis: np.ndarray, pool: ThreadPoolExecutor, out: np.ndarray
) -> None:
    from ghistpy.stats._kernels import WIDTH

    def one(start: int) -> None:
        genes = slice(start, min(start + WIDTH, values.shape[1]))
        _sum_block(centred_block(values, genes, basis, WIDTH), graph, out[genes])
        part = values[:, genes]
        out[genes, 0] = np.asarray(part.mean(axis=0, dtype=np.float64)).ravel()
        out[genes, 8] = part.count_nonzero(axis=0) if sparse.issparse(part) else np.count_nonzero(part, axis=0)

    list(pool.map(one, range(0, values.shape[1], WIDTH)))


def _sum_block(block: np.ndarray, graph: Graph, out: np.ndarray) -> None:
    """Cross products, squares and powers of a block (n, WIDTH) into the rows ``out`` of its genes."""
    from ghistpy.stats._kernels import WIDTH, block_powers, block_products

    h, order = graph.upper, np.arange(graph.n, dtype=np.int32)
    cross, square = np.zeros((2, WIDTH))
    weights, loops = h.data.astype(block.dtype, copy=False), graph.loops.astype(block.dtype, copy=False)
    block_products(block, order, loops, h.indptr, h.indices, weights, cross, square)
    powers = np.zeros((5, WIDTH))
    block_powers(block, powers)
    k = len(out)
    out[:, 1], out[:, 2], out[:, 3:8] = cross[:k], square[:k], powers[:, :k].T


def centred_block(values: Matrix, genes: slice, basis: np.ndarray | None, width: int) -> np.ndarray:
    """Those genes (n, width) float64, without mean or without what ``basis`` explains; zeros beyond the last."""
    part = values[:, genes]
    part = part.toarray() if sparse.issparse(part) else part
    block = np.zeros((values.shape[0], width))
    block[:, : part.shape[1]] = part
    block -= block.mean(axis=0) if basis is None else basis @ (basis.T @ block)
    return block


def orthonormal_basis(design: np.ndarray, n: int) -> np.ndarray:
    """Orthonormal columns that span the design (n, p) and the intercept."""
    columns = np.asarray(design, dtype=np.float64)
    if columns.ndim != 2 or len(columns) != n or not np.isfinite(columns).all():
        raise ValueError(f"design: expected ({n}, p) finite columns, got shape {columns.shape}")
    columns = np.column_stack([np.ones(n), columns - columns.mean(axis=0)])
    norm = np.linalg.norm(columns, axis=0)
    columns = columns[:, norm > 1e-9 * norm[0]] / norm[norm > 1e-9 * norm[0]]
    left, size, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, size > 1e-9 * size[0]]
