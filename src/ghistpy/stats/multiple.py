"""Many p-values: adjusting them and combining them."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

ADJUSTMENTS = ("bh", "by")
_TINY = -30.0  # natural log of p below which tan((1/2 - p) π) = 1 / (p π) to the last digit


def adjust_pvalues(pval: np.ndarray, method: str = "bh") -> np.ndarray:
    """P-values adjusted for the false discovery rate; NaN is left out of the count and stays NaN.

    Parameters
    ----------
    pval
        (m,) p-values.
    method
        ``"bh"`` (Benjamini and Hochberg: independent or positively dependent tests) or ``"by"``
        (Benjamini and Yekutieli: any dependence, larger by the factor Σ 1/i).

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
    known = np.flatnonzero(~np.isnan(pval))
    m = len(known)
    if not m:
        return out
    order = known[np.argsort(pval[known], kind="stable")]
    factor = m / np.arange(1, m + 1) * (1.0 if method == "bh" else (1 / np.arange(1, m + 1)).sum())
    out[order] = np.minimum(1.0, np.minimum.accumulate((pval[order] * factor)[::-1])[::-1])
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
