"""Local Moran's I: where neighbours are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.quadratic_form import centred_block, row_standardised
from ghistpy.stats.spatial_autocorrelation import n_threads

_TOGETHER = 50  # draws of one task of a thread
QUADRANTS = ("none", "high-high", "low-high", "low-low", "high-low")


@dataclass(frozen=True)
class LocalMoran:
    """Per point and gene, (n, G) each; points without neighbours and constant genes are NaN (0 in ``quadrant``).

    Attributes
    ----------
    score
        Local Moran's I; its mean over points with neighbours is Moran's I of row-standardised weights.
    pval
        From conditional permutations, two-sided; NaN without permutations.
    quadrant
        int8: 1 high among high, 2 low among high, 3 low among low, 4 high among low (the point first).
    """

    score: np.ndarray
    pval: np.ndarray
    quadrant: np.ndarray


def local_moran(
    values: Matrix,
    weights: sparse.sparray,
    *,
    groups: np.ndarray | None = None,
    n_perms: int = 0,
    seed: int = 0,
    n_jobs: int = -1,
    progress: Callable | None = None,
) -> LocalMoran:
    """Local Moran's I of every point with p-values by conditional permutation.

    The null hypothesis at a point: its own value given, its neighbours are a random draw of the others.

    Parameters
    ----------
    values
        (n, G) expression of a few genes, dense or sparse, finite.
    weights
        (n, n) sparse spatial weights without diagonal; rows are scaled to sum 1.
    groups
        (n,) labels of slides or regions: each has its own mean and variance and draws from its own points, as if it
        were tested alone.
    n_perms
        Draws of neighbours, the same for all points and genes; 0 = no p-values.
    seed
        Of the draws.
    n_jobs
        Threads, -1 = as many as there are cores; results do not depend on it.
    progress
        Wraps the iteration over genes and batches of draws, such as ``tqdm.tqdm``.

    Returns
    -------
    LocalMoran

    Raises
    ------
    ValueError
        A graph of other points, or edges between groups.

    Notes
    -----
    ``I_i = z_i Σ_j w_ij z_j / m2`` with m2 = Σ z² / n. p = (1 + draws at least as extreme) / (1 + n_perms),
    the smaller of both sides, doubled. Values that are exchangeable among the points are rejected at the nominal
    level, or less often where most are 0 and draws tie. *Any* smooth variation is rejected, of depth as of a gene,
    and so are independent values that were blurred. O(n x degree x n_perms) per gene.

    References
    ----------
    Anselin, Geogr. Anal. 27:93 (1995), doi:10.1111/j.1538-4632.1995.tb00338.x

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.geometry import knn_graph
    >>> rng = np.random.default_rng(0)
    >>> xy = rng.uniform(0, 1000, (1000, 2))
    >>> hot = ((xy - 500) ** 2).sum(axis=1) < 150**2
    >>> found = local_moran((5.0 * hot + rng.normal(size=1000))[:, None], knn_graph(xy, 6).weights, n_perms=99)
    >>> bool((found.quadrant[hot, 0] == 1).mean() > 0.9)
    True
    """
    n, n_genes = values.shape
    if weights.shape != (n, n):
        raise ValueError(f"weights: expected {(n, n)}, got {weights.shape}")
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    w = row_standardised(weights)
    score, pval = np.full((2, n, n_genes), np.nan)
    quadrant = np.zeros((n, n_genes), np.int8)
    for rows in _rows_of(groups, w):
        whole = len(rows) == n
        own = w if whole else sparse.csr_array(w[rows][:, rows])
        part = _one_group(values if whole else values[rows], own, n_perms, seed, n_jobs, progress)
        score[rows], pval[rows], quadrant[rows] = part.score, part.pval, part.quadrant
    return LocalMoran(score, pval, quadrant)


def _rows_of(groups: np.ndarray | None, w: sparse.csr_array) -> list[np.ndarray]:
    if groups is None:
        return [np.arange(w.shape[0])]
    code = np.unique(groups, return_inverse=True)[1]
    crossing = int((code[np.repeat(np.arange(len(code)), np.diff(w.indptr))] != code[w.indices]).sum())
    if crossing:
        raise ValueError(f"weights: {crossing} of {w.nnz} edges join points of different groups; leave them out")
    return [np.flatnonzero(code == g) for g in range(code.max(initial=-1) + 1)]


def _one_group(
    values: Matrix, w: sparse.csr_array, n_perms: int, seed: int, n_jobs: int, progress: Callable | None
) -> LocalMoran:
    n_genes = values.shape[1]
    z = centred_block(values, slice(0, n_genes), None, n_genes)
    power = (z**2).mean(axis=0)
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    constant = power <= 1e-18 * (power + mean**2)
    lag = w @ z
    score = z * lag / np.where(constant, np.nan, power)
    alone = np.diff(w.indptr) == 0
    score[alone] = np.nan
    quadrant = np.where(z > 0, np.where(lag > 0, 1, 4), np.where(lag > 0, 2, 3)).astype(np.int8)
    quadrant[alone] = 0
    quadrant[:, constant] = 0
    pval = np.full(score.shape, np.nan)
    if n_perms and not alone.all():
        pval = np.where(np.isnan(score), np.nan, _conditional(z, w, lag, n_perms, seed, n_jobs, progress))
    return LocalMoran(score, pval, quadrant)


def _conditional(
    z: np.ndarray,
    w: sparse.csr_array,
    lag: np.ndarray,
    n_perms: int,
    seed: int,
    n_jobs: int,
    progress: Callable | None,
) -> np.ndarray:
    from concurrent.futures import ThreadPoolExecutor

    from ghistpy.stats._kernels import conditional_lags

    draws = _draws(len(z), int(np.diff(w.indptr).max()), n_perms, np.random.default_rng(seed))
    tasks = [(gene, first) for gene in range(z.shape[1]) for first in range(0, n_perms, _TOGETHER)]

    def count(task: tuple[int, int]) -> np.ndarray:
        gene, first = task
        found = np.zeros((len(z), 2), np.int64)
        column, top = np.ascontiguousarray(z[:, gene]), np.ascontiguousarray(lag[:, gene])
        conditional_lags(column, w.indptr, w.data, draws[first : first + _TOGETHER], top, found)
        return found

    counts = np.zeros((z.shape[1], len(z), 2), np.int32)
    with ThreadPoolExecutor(n_threads(n_jobs)) as pool:
        found = pool.map(count, tasks)
        for gene, _ in progress(tasks) if progress else tasks:
            counts[gene] += next(found).astype(np.int32)
    return np.minimum(1.0, 2 * (1 + counts.min(axis=2).T) / (1 + n_perms))


def _draws(n: int, degree: int, n_perms: int, rng: np.random.Generator) -> np.ndarray:
    """(n_perms, degree) positions among n - 1 others in random order, without repeats within a row."""
    drawn = np.empty((n_perms, degree), np.int32)
    for row in drawn:
        row[:] = rng.choice(n - 1, degree, replace=False)
    return drawn
