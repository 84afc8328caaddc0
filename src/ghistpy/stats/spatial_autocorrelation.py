"""Moran's I and Geary's C of many genes with p-values: by exact moments or by permuting values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.permutation_moments import GraphSums, form_moments, graph_sums
from ghistpy.stats.quadratic_form import Graph, Observed, centred_block, observe, orthonormal_basis
from ghistpy.stats.tails import one_tail, pearson3_p

METHODS = ("moran", "geary")
ALTERNATIVES = ("greater", "less", "two-sided")
MIN_POSITIVE = 400
MIN_EFFECTIVE = 50  # points that carry the variance: with fewer the null has separate humps, which no curve follows
_MEMORY = 600_000_000  # bytes of permuted values at once
_TOGETHER = 32  # permutations drawn at once
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
        NaN also where the analytic p-value does not hold (fewer than ``min_positive`` positive points, or
        fewer than 50 effective ones).
    n_positive
        Points whose value is not 0.
    n_effective
        How many points carry the variance, (Σ z²)² / Σ z⁴: a few outliers make it small.
    constant
        Genes without variation.
    """

    score: np.ndarray
    expected: np.ndarray
    sd: np.ndarray
    pval: np.ndarray
    n_positive: np.ndarray
    n_effective: np.ndarray
    constant: np.ndarray


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
        Fewer positive points than this: no analytic p-value (NaN). Nor is there one where fewer than 50
        points carry the variance (a gene with a few outliers, or a rare gene after scaling).
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
    O(stored values x degree) for sparse values, else O(edges), in the precision of the values with sums in
    float64; a permutation O(edges) in float32. Values within 1e-4 standard deviations of the observed one
    count as ties.

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
    graph = Graph.of(weights, method)
    basis = None if design is None else orthonormal_basis(design, graph.n)
    jobs = n_threads(n_jobs)
    with ThreadPoolExecutor(jobs) as pool:
        moments = None if n_perms else pool.submit(_moments_of, graph)
        seen = observe(values, graph, basis, pool, jobs)
        _check_finite(values, seen)
        if moments is None:
            null = _permute(values, graph, basis, strata, n_perms, seed, pool, progress)
            pval, mean, sd = _permutation_p(seen.form, null, alternative, graph.sign)
        else:
            pval, mean, sd = _analytic_p(seen, graph, moments.result(), alternative, min_positive)
    scale = np.where(seen.constant, np.nan, graph.scale / np.where(seen.constant, 1.0, seen.powers[0]))
    hide = np.where(seen.constant, np.nan, 1.0)
    return Autocorrelation(
        seen.form * scale, mean * scale, sd * np.abs(scale), pval * hide, seen.n_positive, seen.effective_points(),
        seen.constant,
    )  # fmt: skip


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
    if sparse.issparse(values) and not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    if strata is not None and np.shape(strata) != (values.shape[0],):
        raise ValueError(f"strata: expected one label per point ({values.shape[0]}), got shape {np.shape(strata)}")
    return values, sparse.csr_array(weights, dtype=np.float64)


def _check_finite(values: Matrix, seen: Observed) -> None:
    if not np.isfinite(seen.mean).all():  # spares a pass over the values
        bad = ~np.isfinite(values.data if sparse.issparse(values) else values)
        raise ValueError(f"values: {int(bad.sum())} are NaN or infinite")


def _moments_of(graph: Graph) -> GraphSums:
    return graph_sums(graph.upper * graph.edge, graph.loops if len(graph.loops) else None)


def _analytic_p(
    seen: Observed, graph: Graph, sums: GraphSums, alternative: str, min_positive: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, variance, skewness = form_moments(sums, seen.powers)
    sd = np.sqrt(variance)
    pval = pearson3_p(seen.form * graph.sign, mean * graph.sign, sd, skewness * graph.sign, alternative)
    pval[(seen.n_positive < min_positive) | (seen.effective_points() < MIN_EFFECTIVE)] = np.nan
    return pval, mean, sd


def _permute(
    values: Matrix,
    graph: Graph,
    basis: np.ndarray | None,
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


def _form(block: np.ndarray, order: np.ndarray, graph: Graph) -> np.ndarray:
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
    return one_tail(upper, lower, alternative), mean, sd
