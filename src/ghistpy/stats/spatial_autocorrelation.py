"""Moran's I and Geary's C of many genes with p-values: by exact moments or by permuting values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.special import gammainc, gammaincc, ndtr

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.permutation_moments import GraphSums, form_moments, graph_sums

METHODS = ("moran", "geary")
ALTERNATIVES = ("greater", "less", "two-sided")
MIN_POSITIVE = 400
_MEMORY = 600_000_000  # bytes of permuted values at once
_TOGETHER = 32  # permutations drawn at once
_CONSTANT = 1e-18  # share of the sum of squares below which a gene is constant up to rounding
_SYMMETRIC = 1e-4  # skewness below which the curve is normal
_TIE = 1e-4  # standard deviations of the null within which a permutation counts as a tie


@dataclass(frozen=True)
class Autocorrelation:
    """One value per gene, (G,) each; NaN for constant genes.

    Attributes
    ----------
    score
        Moran's I (high = neighbours alike) or Geary's C (low = alike).
    expected, sd
        Of the score under the null.
    pval
        NaN also where the analytic p-value does not hold (fewer than ``min_positive`` positive points).
    n_positive
        Points whose value is not 0.
    constant
        Genes without variation.
    """

    score: np.ndarray
    expected: np.ndarray
    sd: np.ndarray
    pval: np.ndarray
    n_positive: np.ndarray
    constant: np.ndarray


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


def autocorrelation_test(
    values: Matrix,
    weights: sparse.sparray,
    *,
    method: str = "moran",
    n_perms: int = 0,
    alternative: str = "greater",
    strata: np.ndarray | None = None,
    design: np.ndarray | None = None,
    min_positive: int = MIN_POSITIVE,
    seed: int = 0,
    n_jobs: int = -1,
    progress: Callable[[Iterator[int]], Iterator[int]] | None = None,
) -> Autocorrelation:
    """Moran's I or Geary's C of every gene, with a p-value for exchangeable values.

    The null hypothesis: given the graph, every assignment of the values to the points (within their
    stratum) is equally likely. It is rejected by anything that makes neighbours alike, be it biology,
    smooth depth, spill-over or the blur of a prediction.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite.
    weights
        (n, n) sparse spatial weights, not negative, no diagonal; they need not be symmetric.
    method
        ``"moran"`` or ``"geary"``.
    n_perms
        0: p from the exact mean, variance and skewness over all permutations and a Pearson III curve.
        Otherwise p = (1 + permutations at least as extreme) / (1 + n_perms); the same permutations serve
        all genes.
    alternative
        ``"greater"``: neighbours are more alike than under the null (high I, low C); ``"less"``,
        ``"two-sided"`` (twice the smaller one).
    strata
        (n,) integer labels; values are permuted within a label only. Needs permutations.
    design
        (n, p) columns that are regressed out of the values first, with an intercept. Needs permutations.
    min_positive
        Fewer positive points than this: no analytic p-value (NaN).
    seed
        Every permutation has its own generator, so that ``n_jobs`` does not change a result.
    n_jobs
        Threads, -1 = as many as there are cores.
    progress
        Wraps the iteration over batches of permutations.

    Returns
    -------
    Autocorrelation

    Raises
    ------
    ValueError
        Shapes that do not fit, values that are not finite, an unknown method or alternative, strata or a
        design without permutations.

    Notes
    -----
    ``I = n / S0 · Σ w_ij z_i z_j / Σ z²`` and ``C = (n - 1) / (2 S0) · Σ w_ij (z_i - z_j)² / Σ z²`` with z
    centred and S0 the sum of weights. The weights enter as the upper triangle of W + Wᵀ. Cost per gene:
    O(stored values x degree) for sparse values, else O(edges); a permutation O(edges) in float32 with
    sums in float64. Values within 1e-4 standard deviations of the observed one count as ties.

    References
    ----------
    Cliff and Ord, Spatial Processes (1981). Mielke, Biometrics 34:277 (1978), doi:10.2307/2530018, for a
    Pearson III curve through the exact permutation moments.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.geometry import knn_graph
    >>> rng = np.random.default_rng(0)
    >>> xy = rng.uniform(0, 1000, (2000, 2))
    >>> values = np.stack([rng.poisson(3 + 3 * (xy[:, 0] > 500)), rng.poisson(3, 2000)], axis=1)
    >>> result = autocorrelation_test(values, knn_graph(xy, 6).weights)
    >>> bool(result.pval[0] < 1e-9), bool(result.pval[1] > 0.01)
    (True, True)
    """
    values, weights = _checked(values, weights, method, alternative, n_perms, strata, design)
    graph = _Graph.of(weights, method)
    basis = None if design is None else _basis(design, graph.n)
    jobs = n_threads(n_jobs)
    with ThreadPoolExecutor(jobs) as pool:
        moments = None if n_perms else pool.submit(_moments_of, graph)
        seen = _observe(values, graph, basis, pool, jobs)
        if moments is None:
            null = _permute(values, graph, basis, seen, strata, n_perms, seed, pool, progress)
            pval, mean, sd = _permutation_p(seen.form, null, alternative, graph.sign)
        else:
            pval, mean, sd = _analytic_p(seen, graph, moments.result(), alternative, min_positive)
    scale = np.where(seen.constant, np.nan, graph.scale / np.where(seen.constant, 1.0, seen.powers[0]))
    hide = np.where(seen.constant, np.nan, 1.0)
    return Autocorrelation(
        seen.form * scale, mean * scale, sd * np.abs(scale), pval * hide, seen.n_positive, seen.constant
    )


def n_threads(n_jobs: int) -> int:
    """Threads for ``n_jobs``: itself, or all cores for -1."""
    if n_jobs == 0 or n_jobs < -1:
        raise ValueError(f"n_jobs={n_jobs}: expected a number of threads, or -1 for all cores")
    return (
        n_jobs if n_jobs > 0 else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )


def _checked(values, weights, method, alternative, n_perms, strata, design):
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; there are {list(METHODS)}")
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative={alternative!r} is unknown; there are {list(ALTERNATIVES)}")
    if n_perms < 0 or int(n_perms) != n_perms:
        raise ValueError(f"n_perms={n_perms!r}: expected a whole number of at least 0")
    if not n_perms and (strata is not None or design is not None):
        raise ValueError("n_perms=0: strata and design need permutations, such as n_perms=999")
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2 or weights.shape != (values.shape[0],) * 2:
        raise ValueError(f"values, weights: expected (n, G) and (n, n), got {values.shape} and {weights.shape}")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    bad = int((~np.isfinite(values.data if sparse.issparse(values) else values)).sum())
    if bad:
        raise ValueError(f"values: {bad} are NaN or infinite")
    if strata is not None and np.shape(strata) != (values.shape[0],):
        raise ValueError(f"strata: expected one label per point ({values.shape[0]}), got shape {np.shape(strata)}")
    return values, sparse.csr_array(weights, dtype=np.float64)


@dataclass(frozen=True)
class _Graph:
    """The form F of the values that a score is made of: score = scale · F / Σ z²."""

    n: int
    upper: sparse.csr_array  # upper triangle of W + Wᵀ
    degree: np.ndarray  # its full row sums
    loops: np.ndarray  # weights of z², empty for Moran's I
    edge: float  # factor of the edges in F
    scale: float
    sign: float  # +1 when a high F means that neighbours are alike

    @classmethod
    def of(cls, weights: sparse.csr_array, method: str) -> _Graph:
        n, total = weights.shape[0], float(weights.sum())
        # triu(weights + weights.T) in one step: every weight goes to the upper one of its two places
        row, column = np.repeat(np.arange(n, dtype=np.int32), np.diff(weights.indptr)), weights.indices
        edge = row != column
        places = np.minimum(row, column)[edge], np.maximum(row, column)[edge]
        upper = sparse.coo_array((weights.data[edge], places), shape=weights.shape).tocsr()
        upper.sort_indices()
        degree = upper.sum(axis=1) + upper.sum(axis=0)
        if method == "moran":
            return cls(n, upper, degree, np.zeros(0), 1.0, n / total if total else np.nan, 1.0)
        return cls(n, upper, degree, degree, -2.0, (n - 1) / (2 * total) if total else np.nan, -1.0)

    def form(self, cross: np.ndarray, square: np.ndarray) -> np.ndarray:
        return cross if self.edge == 1.0 else square + self.edge * cross

    def reordered(self) -> tuple[np.ndarray, _Graph]:
        """Points in an order that keeps neighbours close in memory, and the graph in it, in float32."""
        full = sparse.csr_array(self.upper + self.upper.T)
        order = reverse_cuthill_mckee(sparse.csr_matrix(full), symmetric_mode=True).astype(np.int32)
        upper = sparse.csr_array(sparse.triu(full[order][:, order], 1), dtype=np.float32)
        upper.sort_indices()
        loops = self.loops[order].astype(np.float32) if len(self.loops) else self.loops.astype(np.float32)
        return order, _Graph(self.n, upper, self.degree[order], loops, self.edge, self.scale, self.sign)


@dataclass(frozen=True)
class _Observed:
    form: np.ndarray  # (G,)
    mean: np.ndarray
    powers: np.ndarray  # (5, G) sums of z² .. z⁶
    n_positive: np.ndarray
    constant: np.ndarray


def _basis(design: np.ndarray, n: int) -> np.ndarray:
    """Orthonormal columns that span the design and the intercept."""
    columns = np.asarray(design, dtype=np.float64)
    if columns.ndim != 2 or len(columns) != n or not np.isfinite(columns).all():
        raise ValueError(f"design: expected ({n}, p) finite columns, got shape {columns.shape}")
    columns = np.column_stack([np.ones(n), columns - columns.mean(axis=0)])
    norm = np.linalg.norm(columns, axis=0)
    columns = columns[:, norm > 1e-9 * norm[0]] / norm[norm > 1e-9 * norm[0]]
    left, size, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, size > 1e-9 * size[0]]


def centred_block(values: Matrix, genes: slice, basis: np.ndarray | None, width: int) -> np.ndarray:
    """Those genes (n, width) float64, without mean or without what ``basis`` explains; zeros beyond the last."""
    part = values[:, genes]
    part = part.toarray() if sparse.issparse(part) else part
    block = np.zeros((values.shape[0], width))
    block[:, : part.shape[1]] = part
    block -= block.mean(axis=0) if basis is None else basis @ (basis.T @ block)
    return block


def _observe(values: Matrix, graph: _Graph, basis: np.ndarray | None, pool: ThreadPoolExecutor, jobs: int) -> _Observed:
    from ghistpy.stats._kernels import sparse_products

    n_genes = values.shape[1]
    out = np.zeros((n_genes, 9))
    if sparse.issparse(values) and basis is None:
        h = graph.upper
        loops = graph.loops if len(graph.loops) else np.zeros(graph.n)
        cuts = np.linspace(0, n_genes, 4 * jobs + 1).astype(int)
        given = (values.indptr, values.indices, values.data, h.indptr, h.indices, h.data, graph.degree, loops)
        list(pool.map(lambda i: sparse_products(*given, cuts[i], cuts[i + 1], out), range(4 * jobs)))
    else:
        _observe_dense(values, graph, basis, pool, out)
    mean, cross, square, powers = out[:, 0], out[:, 1], out[:, 2], out[:, 3:8].T
    total = powers[0] + graph.n * mean**2
    constant = powers[0] <= _CONSTANT * total
    return _Observed(graph.form(cross, square), mean, powers, out[:, 8].astype(np.int64), constant)


def _observe_dense(
    values: Matrix, graph: _Graph, basis: np.ndarray | None, pool: ThreadPoolExecutor, out: np.ndarray
) -> None:
    from ghistpy.stats._kernels import WIDTH, block_powers, block_products

    h, order = graph.upper, np.arange(graph.n, dtype=np.int32)

    def one(start: int) -> None:
        genes = slice(start, min(start + WIDTH, values.shape[1]))
        block = centred_block(values, genes, basis, WIDTH)
        cross, square = np.zeros((2, WIDTH))
        block_products(block, order, graph.loops, h.indptr, h.indices, h.data, cross, square)
        k = genes.stop - genes.start
        part = values[:, genes]
        out[genes, 0] = np.asarray(part.mean(axis=0, dtype=np.float64)).ravel()
        out[genes, 1], out[genes, 2] = cross[:k], square[:k]
        out[genes, 8] = part.count_nonzero(axis=0) if sparse.issparse(part) else np.count_nonzero(part, axis=0)
        powers = np.zeros((5, WIDTH))
        block_powers(block, powers)
        out[genes, 3:8] = powers[:, :k].T

    list(pool.map(one, range(0, values.shape[1], WIDTH)))


def _moments_of(graph: _Graph) -> GraphSums:
    return graph_sums(graph.upper * graph.edge, graph.loops if len(graph.loops) else None)


def _analytic_p(
    seen: _Observed, graph: _Graph, sums: GraphSums, alternative: str, min_positive: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, variance, skewness = form_moments(sums, seen.powers)
    sd = np.sqrt(variance)
    pval = pearson3_p(seen.form * graph.sign, mean * graph.sign, sd, skewness * graph.sign, alternative)
    pval[seen.n_positive < min_positive] = np.nan
    return pval, mean, sd


def pearson3_p(
    value: np.ndarray, mean: np.ndarray, sd: np.ndarray, skewness: np.ndarray, alternative: str = "greater"
) -> np.ndarray:
    """Tail probabilities of a Pearson III curve of given mean, sd and skewness; NaN where sd is 0.

    Examples
    --------
    >>> import numpy as np
    >>> pearson3_p(np.array([1.645]), np.zeros(1), np.ones(1), np.zeros(1)).round(3)
    array([0.05])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (value - mean) / sd
    fine = np.isfinite(z) & np.isfinite(skewness)
    upper = np.full(len(z), np.nan)
    lower = upper.copy()
    upper[fine] = _pearson3_upper(z[fine], skewness[fine])
    lower[fine] = _pearson3_upper(-z[fine], -skewness[fine])
    return _tail(upper, lower, alternative)


def _pearson3_upper(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """P(Z > z) for a gamma variable of shape 4 / skewness², standardised, mirrored when the skewness is negative."""
    symmetric = np.abs(skewness) < _SYMMETRIC
    shape = 4 / np.where(symmetric, 1.0, skewness) ** 2
    at = np.maximum(shape + z * np.sign(skewness) * np.sqrt(shape), 0.0)
    skewed = np.where(skewness > 0, gammaincc(shape, at), gammainc(shape, at))
    return np.where(symmetric, ndtr(-z), skewed)


def _tail(upper: np.ndarray, lower: np.ndarray, alternative: str) -> np.ndarray:
    if alternative == "greater":
        return upper
    return lower if alternative == "less" else np.minimum(1.0, 2 * np.minimum(upper, lower))


def _permute(
    values: Matrix,
    graph: _Graph,
    basis: np.ndarray | None,
    seen: _Observed,
    strata: np.ndarray | None,
    n_perms: int,
    seed: int,
    pool: ThreadPoolExecutor,
    progress: Callable | None,
) -> np.ndarray:
    """Forms (n_perms, G) of permuted values."""
    from ghistpy.stats._kernels import WIDTH

    order, local = graph.reordered()
    base, starts = _segments(None if strata is None else np.asarray(strata)[order], graph.n)
    seeds = np.random.SeedSequence(seed).spawn(n_perms)
    n_genes = values.shape[1]
    null = np.zeros((n_perms, n_genes))
    at_once = max(1, int(_MEMORY / (4 * WIDTH * graph.n))) * WIDTH
    for first in range(0, n_genes, at_once):
        begins = range(first, min(first + at_once, n_genes), WIDTH)

        blocks = [
            centred_block(values, slice(b, min(b + WIDTH, n_genes)), basis, WIDTH)[order].astype(np.float32)
            for b in begins
        ]
        batches = range(0, n_perms, _TOGETHER)
        for batch in progress(batches) if progress else batches:
            rows = range(batch, min(batch + _TOGETHER, n_perms))
            orders = list(pool.map(_shuffled, [seeds[i] for i in rows], repeat(base), repeat(starts)))
            drawn = pool.map(_form, *zip(*product(blocks, orders), strict=True), repeat(local))
            for start in begins:
                genes = slice(start, min(start + WIDTH, n_genes))
                for i in rows:
                    null[i, genes] = next(drawn)[: genes.stop - genes.start]
    return null


def _form(block: np.ndarray, order: np.ndarray, graph: _Graph) -> np.ndarray:
    from ghistpy.stats._kernels import WIDTH, block_products

    cross, square = np.zeros((2, WIDTH))
    h = graph.upper
    block_products(block, order, graph.loops, h.indptr, h.indices, h.data, cross, square)
    return graph.form(cross, square)


def _segments(strata: np.ndarray | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points sorted by stratum, and where each stratum starts."""
    if strata is None:
        return np.arange(n, dtype=np.int32), np.array([0, n])
    code = np.unique(strata, return_inverse=True)[1]
    return np.argsort(code, kind="stable").astype(np.int32), np.concatenate([[0], np.cumsum(np.bincount(code))])


def _shuffled(seed: np.random.SeedSequence, base: np.ndarray, starts: np.ndarray) -> np.ndarray:
    from ghistpy.stats._kernels import shuffle_segments

    drawn = base.copy()
    shuffle_segments(drawn, starts, np.random.default_rng(seed).random(len(base)))
    order = np.empty_like(base)
    order[base] = drawn
    return order


def _permutation_p(
    form: np.ndarray, null: np.ndarray, alternative: str, sign: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, sd = null.mean(axis=0), null.std(axis=0)
    observed, drawn, slack = form * sign, null * sign, _TIE * sd
    upper = (1 + (drawn >= observed - slack).sum(axis=0)) / (1 + len(null))
    lower = (1 + (drawn <= observed + slack).sum(axis=0)) / (1 + len(null))
    return _tail(upper, lower, alternative), mean, sd
