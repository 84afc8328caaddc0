"""Linear models of many genes with variances moderated by empirical Bayes.

statsmodels fits one gene at a time and moderates nothing; the method of the field is only in R. This is
written from the formulae of the article and tested against a second implementation of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

_FLOOR = 1e-5  # variances below this share of the median enter the prior as that share


@dataclass(frozen=True)
class Prior:
    """Scaled inverse χ² prior of the variances: ``df`` (may be infinite) and ``variance``."""

    df: float
    variance: float


@dataclass(frozen=True)
class Moderated:
    """Test of one contrast for each of G genes, arrays (G,).

    effect; se posterior standard error; t; df total degrees of freedom; pval two-sided; variance residual
    and posterior_variance moderated variance; n patients that the gene is known in. NaN where a gene cannot
    be tested.
    """

    effect: np.ndarray
    se: np.ndarray
    t: np.ndarray
    df: np.ndarray
    pval: np.ndarray
    variance: np.ndarray
    posterior_variance: np.ndarray
    n: np.ndarray
    prior: Prior


def moderated_t(
    values: np.ndarray, design: np.ndarray, contrast: np.ndarray, *, weights: np.ndarray | None = None
) -> Moderated:
    """Moderated t-test of ``contrast`` in the linear model of each gene.

    Parameters
    ----------
    values
        (n, G) one row per patient; NaN = the gene is not known there, and the model is fitted without it.
    design
        (n, q) design matrix.
    contrast
        (q,) linear combination of coefficients under test.
    weights
        (n,) weight of each patient, such as that of :func:`patient_weights`: the inverse of the variance of its
        values, up to a factor. Numbers of cells are no such weights: patients differ, too.

    Returns
    -------
    Moderated

    Notes
    -----
    With s² and d the residual variance and its degrees of freedom, d₀ and s₀² the prior fitted to all s² on
    the log scale: s̃² = (d₀ s₀² + d s²) / (d₀ + d), t = effect / (s̃ √v), on d₀ + d degrees of freedom, at most
    those of all genes together. O(n G q²), once per pattern of missing values. Genes that are constant have no
    test and do not enter the prior.

    References
    ----------
    Smyth, Stat Appl Genet Mol Biol 3:3 (2004), doi 10.2202/1544-6115.1027.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat([0.0, 1.0], 6)
    >>> values = rng.normal(size=(12, 200)) + np.outer(group, np.r_[3.0, np.zeros(199)])
    >>> found = moderated_t(values, np.column_stack([np.ones(12), group]), np.array([0.0, 1.0]))
    >>> int(np.argmin(found.pval)), bool(found.prior.df > 20)
    (0, True)
    """
    values = np.array(values, dtype=np.float64)
    values[:, ~varying(values)] = np.nan
    effect, unscaled, variance, df, n = _fit(
        values, np.asarray(design, np.float64), np.asarray(contrast, np.float64), weights
    )
    prior = fit_prior(variance, df)
    posterior = squeeze(variance, df, prior)
    total = np.minimum(df + prior.df, np.nansum(df))
    # without residual degrees of freedom the prior is all there is
    se = np.sqrt(posterior * unscaled)
    testable = np.isfinite(effect) & (se > 0) & (total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(testable, effect / se, np.nan)
    pval = np.full(t.shape, np.nan)
    pval[testable] = 2 * stats.t.sf(np.abs(t[testable]), total[testable])
    return Moderated(effect, se, t, np.where(testable, total, np.nan), pval, variance, posterior, n, prior)


def varying(values: np.ndarray) -> np.ndarray:
    """Genes (G,) whose known values (n, G) are not all the same."""
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(0, initial=np.inf)
    high = np.where(known, values, -np.inf).max(0, initial=-np.inf)
    return high > low


def patient_weights(values: np.ndarray, design: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Weights of patients whose means come from different numbers of cells.

    Parameters
    ----------
    values
        (n, G) mean of each patient; rows that are NaN get weight 0.
    design
        (n, q) design matrix.
    cells
        (n,) number of cells of each patient.

    Returns
    -------
    (n,) weights of mean 1 over the known patients, all 1 where cells explain nothing.

    Notes
    -----
    The variance of a patient's mean is τ² + σ² / cells: between patients, and of its cells. Both are estimated
    from the residuals of the unweighted model, standardised per gene and averaged over genes: the expected
    square of residual i is Σ_j M_ij² (τ² + σ² / cells_j), with M the residual projection; the solution is by
    least squares, neither part negative. Weights are 1 / (τ² + σ² / cells), one set for all genes. O(n G + n³).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cells = np.tile([5, 500], 20)
    >>> values = rng.normal(size=(40, 300)) / np.sqrt(cells)[:, None]  # patients do not differ
    >>> weights = patient_weights(values, np.ones((40, 1)), cells)
    >>> bool(70 < weights[1] / weights[0] <= 101)
    True
    """
    known = np.isfinite(values).all(1) if values.shape[1] else np.zeros(len(values), dtype=bool)
    out = np.zeros(len(values))
    out[known] = 1.0
    x, y = design[known], values[np.ix_(known, varying(values))]
    project = np.eye(len(x)) - x @ np.linalg.pinv(x, rcond=1e-10)
    residual = project @ y
    variance = (residual**2).sum(0)
    # a gene without residual variance says nothing
    used = variance > 1e-24 * np.maximum((y**2).sum(0), 1e-300)
    if np.trace(project) < 2 or not used.any():
        return out
    square = (residual[:, used] ** 2 / variance[used]).mean(1)
    per_cell = 1 / np.maximum(cells[known], 1)
    between, within = optimize.nnls(project**2 @ np.column_stack([np.ones(len(x)), per_cell]), square)[0]
    spread = between + within * per_cell
    if spread.min() > 0:
        out[known] = 1 / spread / (1 / spread).mean()
    return out


def _fit(
    values: np.ndarray, design: np.ndarray, contrast: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Effect, its variance in units of the residual one, residual variance, degrees of freedom and n (G,)."""
    n_genes = values.shape[1]
    effect, unscaled, variance = (np.full(n_genes, np.nan) for _ in range(3))
    df, n = np.zeros(n_genes), np.zeros(n_genes, dtype=np.int64)
    root = np.ones(len(values)) if weights is None else np.sqrt(np.asarray(weights, dtype=np.float64))
    known = np.isfinite(values)
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for k in range(patterns.shape[1]):
        rows, genes = patterns[:, k], np.flatnonzero(which.ravel() == k)
        n[genes] = rows.sum()
        x = design[rows] * root[rows, None]
        y = values[np.ix_(rows, genes)] * root[rows, None]
        inverse = np.linalg.pinv(x, rcond=1e-10)
        left = int(rows.sum()) - np.linalg.matrix_rank(x, tol=None)
        # a contrast that the known patients do not determine has no estimate
        if not len(x) or not np.allclose(contrast @ (inverse @ x), contrast, atol=1e-8):
            continue
        coef = inverse @ y
        residual = y - x @ coef
        effect[genes] = contrast @ coef
        unscaled[genes] = float(((contrast @ inverse) ** 2).sum())
        df[genes] = left
        if left > 0:
            s2 = (residual**2).sum(0) / left
            # what is left of rounding is zero
            variance[genes] = np.where(s2 > 1e-24 * np.maximum((y**2).mean(0), 1e-300), s2, 0.0)
    return effect, unscaled, variance, df, n


def fit_prior(variance: np.ndarray, df: np.ndarray) -> Prior:
    """Prior whose F distribution fits the residual variances, by the moments of their logarithms."""
    used = np.isfinite(variance) & (df > 0)
    if not used.any():
        return Prior(0.0, np.nan)
    s2, d = variance[used], df[used]
    middle = np.median(s2)
    if middle == 0:
        positive = s2[s2 > 0]
        middle = float(np.median(positive)) if len(positive) else 1.0
    s2 = np.maximum(s2, _FLOOR * middle)
    if len(s2) < 2:
        return Prior(0.0, float(s2[0]))
    e = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    excess = float(e.var(ddof=1) - special.polygamma(1, d / 2).mean())
    if excess <= 0:  # no more spread than sampling gives: one common variance
        return Prior(np.inf, float(s2.mean()))
    half = _trigamma_inverse(excess)
    return Prior(2 * half, float(np.exp(e.mean() + special.digamma(half) - np.log(half))))


def _trigamma_inverse(y: float) -> float:
    """X with trigamma(x) = y."""
    if y > 1e7:
        return 1 / np.sqrt(y)
    if y < 1e-6:
        return 1 / y
    return float(np.exp(optimize.brentq(lambda log: special.polygamma(1, np.exp(log)) - y, -20, 20, xtol=1e-14)))


def squeeze(variance: np.ndarray, df: np.ndarray, prior: Prior) -> np.ndarray:
    """Posterior variances."""
    if np.isinf(prior.df):
        return np.where(df >= 0, prior.variance, np.nan)
    if prior.df == 0:
        return variance
    known = np.where(df > 0, np.nan_to_num(variance), 0.0)
    return (prior.df * prior.variance + df * known) / (prior.df + df)
