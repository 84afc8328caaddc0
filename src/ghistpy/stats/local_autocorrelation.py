"""Local Moran's I: where neighbours are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.quadratic_form import centred_block, row_standardised
from ghistpy.stats.spatial_autocorrelation import n_threads

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
    values: Matrix, weights: sparse.sparray, *, n_perms: int = 0, seed: int = 0, n_jobs: int = -1
) -> LocalMoran:
    """Local Moran's I of every point with p-values by conditional permutation.

    The null hypothesis at a point: its own value given, its neighbours are a random draw of the others.

    Parameters
    ----------
    values
        (n, G) expression of a few genes, dense or sparse, finite.
    weights
        (n, n) sparse spatial weights without diagonal; rows are scaled to sum 1.
    n_perms
        Draws of neighbours, the same for all points and genes; 0 = no p-values.
    seed
        Of the draws.
    n_jobs
        Threads, -1 = as many as there are cores; results do not depend on it.

    Returns
    -------
    LocalMoran

    Notes
    -----
    ``I_i = z_i Σ_j w_ij z_j / m2`` with m2 = Σ z² / n. p = (1 + draws at least as extreme) / (1 + n_perms),
    the smaller of both sides, doubled. O(n x degree x n_perms) per gene.

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
    if n_perms:
        pval = np.where(np.isnan(score), np.nan, _conditional(z, w, lag, n_perms, seed, n_jobs))
    return LocalMoran(score, pval, quadrant)


def _conditional(
    z: np.ndarray, w: sparse.csr_array, lag: np.ndarray, n_perms: int, seed: int, n_jobs: int
) -> np.ndarray:
    from concurrent.futures import ThreadPoolExecutor

    from ghistpy.stats._kernels import conditional_lags

    draws = _draws(len(z), int(np.diff(w.indptr).max()), n_perms, np.random.default_rng(seed))

    def one(gene: int) -> np.ndarray:
        counts = np.zeros((len(z), 2), np.int64)
        column, top = np.ascontiguousarray(z[:, gene]), np.ascontiguousarray(lag[:, gene])
        conditional_lags(column, w.indptr, w.indices, w.data, draws, top, counts)
        return np.minimum(1.0, 2 * (1 + counts.min(axis=1)) / (1 + n_perms))

    with ThreadPoolExecutor(n_threads(n_jobs)) as pool:
        return np.stack(list(pool.map(one, range(z.shape[1]))), axis=1)


def _draws(n: int, degree: int, n_perms: int, rng: np.random.Generator) -> np.ndarray:
    """(n_perms, degree) positions among n - 1 others, without repeats within a row."""
    if degree * 4 > n - 1:
        return np.stack([rng.permutation(n - 1)[:degree] for _ in range(n_perms)]).astype(np.int32)
    drawn = rng.integers(0, n - 1, (n_perms, degree), dtype=np.int32)
    while True:
        ordered = np.sort(drawn, axis=1)
        again = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not again.any():
            return drawn
        drawn[again] = rng.integers(0, n - 1, (int(again.sum()), degree), dtype=np.int32)
