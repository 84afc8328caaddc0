"""Tail probabilities: of Student's t in log space, of Pearson III curves; and their adjustment for many tests."""

from __future__ import annotations

import numpy as np
from scipy import special

_TINY = 1e-280  # below: the closed form of the tail in log space
_TERMS = 400
_SYMMETRIC = 1e-4  # skewness below which a Pearson III curve is normal


def log_two_sided_t(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Natural logarithm of the two-sided p-value of Student's t.

    ``scipy.stats.t.logsf`` takes the logarithm of a tail that is 0 from about abs(t) = 40 (500 degrees of
    freedom) on; this one does not underflow.

    Parameters
    ----------
    t
        Statistics, any shape. NaN gives NaN, infinite t gives -inf.
    df
        Degrees of freedom, broadcastable to ``t``.

    Returns
    -------
    ndarray
        log p, <= 0.

    Notes
    -----
    p = I_x(df/2, 1/2) with x = df / (df + t²). Where that is too small for a float its hypergeometric
    series is used: log p = a log x + log(1 - x)/2 - log a - log B(a, 1/2) + log F(a + 1/2, 1; a + 1; x).

    Examples
    --------
    >>> import numpy as np
    >>> log_two_sided_t(np.array([2.0, 1000.0]), np.array([10.0, 500.0])).round(3)
    array([   -2.612, -1903.684])
    """
    t = np.asarray(t, dtype=np.float64)
    df = np.broadcast_to(np.asarray(df, dtype=np.float64), t.shape)
    p = 2.0 * special.stdtr(df, -np.abs(t))
    with np.errstate(divide="ignore"):
        out = np.log(p)
    np.minimum(out, 0.0, out=out)  # keeps NaN
    far = (p < _TINY) & np.isfinite(t) & np.isfinite(df)
    if far.any():
        out[far] = _log_tail(np.abs(t[far]), df[far])
    return out


def _log_tail(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    a = df / 2
    # x / (1 - x) = df / t²; both logarithms from it, so that large t keeps its digits
    ratio = df / t / t
    log_x, log_rest = np.log(df) - 2 * np.log(t) - np.log1p(ratio), -np.log1p(ratio)
    x = np.exp(log_x)
    # F(a + 1/2, 1; a + 1; x) = sum over k of x^k (a + 1/2)_k / (a + 1)_k; x is small here
    total, term = np.ones_like(x), np.ones_like(x)
    for k in range(_TERMS):
        term = term * x * (a + 0.5 + k) / (a + 1 + k)
        total += term
        if (term < 1e-12 * total).all():
            break
    return a * log_x + 0.5 * log_rest - np.log(a) - special.betaln(a, 0.5) + np.log(total)


def log_bh(log_p: np.ndarray) -> np.ndarray:
    """Logarithm of p-values adjusted by Benjamini and Hochberg; NaN is no test and stays NaN.

    Parameters
    ----------
    log_p
        Natural logarithms of p-values, any shape: one family.

    Examples
    --------
    >>> import numpy as np
    >>> np.exp(log_bh(np.log([0.01, 0.04, 0.03, np.nan]))).round(3)
    array([0.03, 0.04, 0.04,  nan])

    References
    ----------
    Benjamini and Hochberg, J R Stat Soc B 57:289 (1995), doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    flat = np.asarray(log_p, dtype=np.float64).ravel()
    tested = np.flatnonzero(~np.isnan(flat))
    out = np.full(flat.shape, np.nan)
    if len(tested):
        values = flat[tested]
        order = np.argsort(values)
        ranked = values[order]
        ranked += np.log(len(values)) - np.log(np.arange(1, len(values) + 1))
        np.minimum.accumulate(ranked[::-1], out=ranked[::-1])
        out[tested[order]] = np.minimum(ranked, 0.0)
    return out.reshape(np.shape(log_p))


def inflation(log_p: np.ndarray) -> float:
    """Genomic inflation λ: the median of the χ²(1) that belongs to each p-value over 0.4549.

    Parameters
    ----------
    log_p
        Natural logarithms of two-sided p-values; NaN is left out.

    Examples
    --------
    >>> import numpy as np
    >>> round(inflation(np.log(np.linspace(0.001, 0.999, 999))), 3)
    1.0
    """
    values = np.asarray(log_p)[~np.isnan(log_p)]
    if not len(values):
        return float("nan")
    # the transform is monotone, so the median p is enough
    p = np.exp(np.median(values))
    z = special.ndtri(p / 2) if p > 0 else -np.inf
    return float(z**2 / special.ndtri(0.25) ** 2)


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
    return one_tail(upper, lower, alternative)


def _pearson3_upper(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """P(Z > z) for a gamma variable of shape 4 / skewness², standardised, mirrored when the skewness is negative."""
    symmetric = np.abs(skewness) < _SYMMETRIC
    shape = 4 / np.where(symmetric, 1.0, skewness) ** 2
    at = np.maximum(shape + z * np.sign(skewness) * np.sqrt(shape), 0.0)
    skewed = np.where(skewness > 0, special.gammaincc(shape, at), special.gammainc(shape, at))
    return np.where(symmetric, special.ndtr(-z), skewed)


def one_tail(upper: np.ndarray, lower: np.ndarray, alternative: str) -> np.ndarray:
    """The tail of ``"greater"`` or ``"less"``, or twice the smaller one for ``"two-sided"``."""
    if alternative == "greater":
        return upper
    return lower if alternative == "less" else np.minimum(1.0, 2 * np.minimum(upper, lower))
