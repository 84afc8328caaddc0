"""Many p-values: adjusting them and combining them."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import false_discovery_control

ADJUSTMENTS = ("bh", "by", "bonferroni")
_TINY = -30.0  # natural log of p below which tan((1/2 - p) π) = 1 / (p π) to the last digit


def adjust_pvalues(pval: np.ndarray, method: str = "bh", *, family: np.ndarray | None = None) -> np.ndarray:
    """P-values adjusted for their number within each family; NaN is left out of the count and stays NaN.

    Parameters
    ----------
    pval
        (m,) p-values.
    method
        ``"bh"`` (Benjamini and Hochberg: independent or positively dependent tests), ``"by"``
        (Benjamini and Yekutieli: any dependence, larger by the factor Σ 1/i) or ``"bonferroni"``.
    family
        (m,) family of each, None for one family.

    Returns
    -------
    (m,) adjusted values.

    References
    ----------
    doi:10.1111/j.2517-6161.1995.tb02031.x, doi:10.1214/aos/1013699998

    Examples
    --------
    >>> adjust_pvalues([0.01, 0.02, 0.9, float("nan")]).round(3).tolist()
    [0.03, 0.03, 0.9, nan]
    """
    if method not in ADJUSTMENTS:
        raise ValueError(f"adjust={method!r} is unknown; there are {list(ADJUSTMENTS)}")
    pval = np.asarray(pval, dtype=np.float64)
    out = np.full(pval.shape, np.nan)
    code = np.zeros(pval.shape, dtype=np.int64) if family is None else np.unique(family, return_inverse=True)[1]
    for k in range(int(code.max(initial=-1)) + 1):
        rows = np.flatnonzero((code == k) & ~np.isnan(pval))
        if method == "bonferroni":
            out[rows] = np.minimum(pval[rows] * len(rows), 1.0)
        elif len(rows):
            out[rows] = false_discovery_control(pval[rows], method=method)
    return out


def cauchy_combination(log_p: np.ndarray) -> np.ndarray:
    """Natural log of the combined p-value of several tests of one hypothesis, whatever their dependence.

    Parameters
    ----------
    log_p
        (k, G) natural logarithms of p-values.

    Returns
    -------
    (G,) log of ``1/2 - arctan(mean tan((1/2 - p) π)) / π``.

    Notes
    -----
    For p below 1e-13 the tangent is 1 / (p π) and sums are taken in log space, so that no p underflows. A
    p of 1 would be minus infinity and hide all others: it enters as 1 - 1 / k.

    References
    ----------
    Liu and Xie, J. Am. Stat. Assoc. 115:393 (2020), doi:10.1080/01621459.2018.1554485

    Examples
    --------
    >>> import numpy as np
    >>> float(np.exp(cauchy_combination(np.log([[0.03], [0.03]])))[0].round(6))
    0.03
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    k = len(log_p)
    p = np.exp(log_p)
    p = np.where(p >= 1 - 1e-12, 1 - 1 / max(k, 2), p)
    tiny = log_p < _TINY
    moderate = np.where(tiny, 0.0, np.tan((0.5 - np.where(tiny, 0.5, p)) * np.pi)).sum(axis=0) / k
    combined = np.log(0.5 - np.arctan(moderate) / np.pi)
    some = tiny.any(axis=0)
    if some.any():
        large = logsumexp(np.where(tiny[:, some], -log_p[:, some], -np.inf), axis=0) - np.log(np.pi * k)
        # moderate terms are below 1e13 and matter next to a sum of at least 3e12 / k only when they are large
        share = np.maximum(moderate[some] * np.exp(-large), -1 + 1e-12)
        combined[some] = -(large + np.log1p(share)) - np.log(np.pi)
    return combined
