"""Differences between two groups of patients that every row of a call matrix defines anew.

Rows are genes whose copies are called, columns of the values are features. Sums over groups are masked
matrix products, so that millions of Welch tests cost a few multiplications of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from ghistpy.stats.tails import log_two_sided_t

_BLOCK_VALUES = 2_000_000  # results of one block of rows


@dataclass(frozen=True)
class Features:
    """Values of patients, made ready for masked products.

    ``z`` (n, F): standardised, 0 where missing; ``center``, ``scale`` (F,) of it; ``present`` (n, P): which
    patients each distinct pattern of missing values leaves; ``pattern`` (F,): the pattern of each feature.
    """

    z: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    present: np.ndarray
    pattern: np.ndarray

    def permuted(self, order: np.ndarray) -> Features:
        """The same features with the patients in another order."""
        return Features(self.z[order], self.center, self.scale, self.present[order], self.pattern)

    def take(self, columns: np.ndarray) -> Features:
        """Some of the features."""
        z, pattern = self.z[:, columns], self.pattern[columns]
        return Features(z, self.center[columns], self.scale[columns], self.present, pattern)


@dataclass(frozen=True)
class TwoGroups:
    """Tests of K rows by F features; NaN where a group is smaller than ``min_samples``.

    ``difference``: mean(high) - mean(low), in the units that came in; ``t``: of the same sign; ``log_p``:
    natural logarithm, two-sided; ``n_low``, ``n_high`` (K, P): patients by pattern of missing values;
    ``flat_features`` (F,): features that are constant within a group of some row; ``spread`` (K, P): variance
    of the difference of a feature of variance 1.
    """

    difference: np.ndarray
    t: np.ndarray
    log_p: np.ndarray
    n_low: np.ndarray
    n_high: np.ndarray
    flat_features: np.ndarray
    spread: np.ndarray


def rank_normal(values: np.ndarray) -> np.ndarray:
    """Normal scores of every column: ranks r (ties share their mean) through Φ⁻¹((r - 3/8) / (n + 1/4)).

    Parameters
    ----------
    values
        (n, F); NaN stays NaN and does not count.

    References
    ----------
    Blom, Statistical Estimates and Transformed Beta-Variables (1958).

    Examples
    --------
    >>> import numpy as np
    >>> rank_normal(np.array([[5.0], [1.0], [np.nan], [900.0]])).ravel().round(3)
    array([ 0.   , -0.869,    nan,  0.869])
    """
    from scipy.stats import rankdata

    values = np.asarray(values, dtype=np.float64)
    ranks = rankdata(values, axis=0, nan_policy="omit")
    n = np.isfinite(values).sum(axis=0)
    return special.ndtri((ranks - 0.375) / (n + 0.25))


def modal_mass(values: np.ndarray) -> np.ndarray:
    """(F,) share of the most frequent value among those that are not missing; NaN without any."""
    values = np.asarray(values, dtype=np.float64)
    out = np.full(values.shape[1], np.nan)
    for j in range(values.shape[1]):
        column = np.sort(values[np.isfinite(values[:, j]), j])
        if len(column):
            edges = np.flatnonzero(np.r_[True, column[1:] != column[:-1], True])
            out[j] = np.diff(edges).max() / len(column)
    return out


def prepare(values: np.ndarray) -> Features:
    """Standardise features and group them by their pattern of missing values.

    Parameters
    ----------
    values
        (n, F); NaN = missing. A feature that is constant keeps scale 1.
    """
    values = np.asarray(values, dtype=np.float64)
    here = np.isfinite(values)
    number = np.maximum(here.sum(axis=0), 1)
    center = np.where(here, values, 0.0).sum(axis=0) / number
    z = np.where(here, values - center, 0.0)
    scale = np.sqrt((z**2).sum(axis=0) / number)
    scale = np.where(scale > 1e-12 * np.maximum(np.abs(center), 1e-300), scale, 1.0)
    patterns, pattern = np.unique(here, axis=1, return_inverse=True)
    return Features(z / scale, center, scale, patterns.astype(np.float64), np.asarray(pattern).ravel())


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows so that one (rows, columns) array stays small."""
    step = max(1, _BLOCK_VALUES // max(n_columns, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def welch(low: np.ndarray, high: np.ndarray, features: Features, *, min_samples: int) -> TwoGroups:
    """Welch's test of every feature between the two groups of every row.

    Parameters
    ----------
    low, high
        (K, n) bool: which patients belong to the groups.
    features
        From :func:`prepare`.
    min_samples
        Fewest patients with a value in either group.

    Notes
    -----
    Four products of a (K, n) with an (n, F) matrix, in blocks of rows: O(K n F).

    References
    ----------
    Welch, Biometrika 34:28 (1947), doi:10.1093/biomet/34.1-2.28.

    Examples
    --------
    >>> import numpy as np
    >>> high = np.array([[False, False, False, True, True, True]])
    >>> found = welch(~high, high, prepare(np.array([[0.0], [1], [2], [10], [11], [15]])), min_samples=3)
    >>> found.difference.item(), round(found.t.item(), 4)
    (11.0, 6.7361)
    """
    K, F = len(low), features.z.shape[1]
    squares = features.z**2
    out = {name: np.full((K, F), np.nan) for name in ("difference", "t", "log_p")}
    n_low = np.rint(_count(low, features.present)).astype(np.int32)
    n_high = np.rint(_count(high, features.present)).astype(np.int32)
    flat_features = np.zeros(F, dtype=bool)
    for rows in row_blocks(K, F):
        n, mean, var = [], [], []
        for mask, count in ((low, n_low), (high, n_high)):
            weights = mask[rows].astype(np.float64)
            number = count[rows][:, features.pattern].astype(np.float64)
            m, v = _moments(weights @ features.z, weights @ squares, number)
            n.append(number), mean.append(m), var.append(v)
        testable = (n[0] >= min_samples) & (n[1] >= min_samples)
        flat_features |= (testable & ((var[0] <= 0) | (var[1] <= 0))).any(axis=0)
        difference, t, df = _welch_t(n, mean, var)
        t[~testable] = np.nan
        out["difference"][rows] = np.where(testable, difference * features.scale, np.nan)
        out["t"][rows] = t
        out["log_p"][rows] = log_two_sided_t(t, df)
    with np.errstate(divide="ignore"):
        spread = 1 / n_low + 1 / n_high
    return TwoGroups(**out, n_low=n_low, n_high=n_high, flat_features=flat_features, spread=spread)


def _count(mask: np.ndarray, present: np.ndarray) -> np.ndarray:
    return mask.astype(np.float32) @ present.astype(np.float32)  # exact: counts are far below 2^24


def _moments(total: np.ndarray, squares: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance from sums; a variance that is rounding only becomes 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / number
        spread = squares - number * mean**2
        spread[spread <= 1e-11 * squares] = 0.0
        return mean, spread / (number - 1)


def _welch_t(n: list, mean: list, var: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of means, t (NaN when both groups are constant) and Satterthwaite's degrees of freedom."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = [v / k for v, k in zip(var, n, strict=True)]
        total = error[0] + error[1]
        difference = mean[1] - mean[0]
        t = np.where(total > 0, difference / np.sqrt(total), np.nan)
        df = total**2 / (error[0] ** 2 / (n[0] - 1) + error[1] ** 2 / (n[1] - 1))
    return difference, t, df
