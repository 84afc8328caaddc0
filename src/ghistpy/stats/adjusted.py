"""The two-group test of :mod:`ghistpy.stats.association` with covariates."""

from __future__ import annotations

import numpy as np

from ghistpy.stats.association import Features, TwoGroups, row_blocks
from ghistpy.stats.tails import log_two_sided_t

_COLLINEAR = 1e-8  # share of its variance that a group indicator must keep beside the covariates


def residuals(features: Features, covariates: np.ndarray) -> Features:
    """What linear regression on covariates (n, q) leaves of the features, missing values apart."""
    z = features.z.copy()
    for p in range(features.present.shape[1]):
        columns, rows = np.flatnonzero(features.pattern == p), features.present[:, p] > 0
        design = np.column_stack([np.ones(rows.sum()), covariates[rows]])
        at = np.ix_(rows, columns)
        z[at] -= design @ np.linalg.lstsq(design, z[at], rcond=None)[0]
    return Features(z, features.center, features.scale, features.present, features.pattern)


def adjusted_welch(
    low: np.ndarray, high: np.ndarray, features: Features, covariates: np.ndarray, *, min_samples: int
) -> TwoGroups:
    """Difference between the two groups of every row that covariates do not explain.

    Parameters
    ----------
    low, high
        (K, n) bool: which patients belong to the groups.
    features
        From :func:`ghistpy.stats.association.prepare`.
    covariates
        (n, q) float, no missing values.
    min_samples
        Fewest patients with a value in either group. Rows whose groups the covariates tell apart
        completely are no tests either.

    Notes
    -----
    Least squares of the feature on group and covariates among the patients of both groups, with standard
    errors that allow each patient a variance of its own (HC2) and Satterthwaite's degrees of freedom over
    the two groups, each short of its share of the covariates. Without covariates this is Welch's test,
    exactly. 3 (q + 2) products of matrices in place of four.

    References
    ----------
    MacKinnon and White, J Econom 29:305 (1985), doi:10.1016/0304-4076(85)90158-7.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.stats.association import prepare
    >>> rng = np.random.default_rng(0)
    >>> age = rng.normal(size=(60, 1))
    >>> high = (age > 0).T
    >>> found = adjusted_welch(~high, high, prepare(age + rng.normal(size=(60, 1))), age, min_samples=5)
    >>> bool(abs(found.t.item()) < 2)
    True
    """
    K, F = len(low), features.z.shape[1]
    shape = (K, features.present.shape[1])
    n_low, n_high = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    difference, t, log_p = (np.full((K, F), np.nan) for _ in range(3))
    spread = np.full(shape, np.nan)
    flat = np.zeros(F, dtype=bool)
    for p in range(shape[1]):
        columns, rows = np.flatnonzero(features.pattern == p), features.present[:, p] > 0
        values, design = features.z[np.ix_(rows, columns)], np.column_stack([np.ones(rows.sum()), covariates[rows]])
        L, H = low[:, rows], high[:, rows]
        n_low[:, p], n_high[:, p] = L.sum(axis=1), H.sum(axis=1)
        enough = (n_low[:, p] >= min_samples) & (n_high[:, p] >= min_samples)
        tested = np.flatnonzero(enough)
        for block in row_blocks(len(tested), max(len(columns), rows.sum())):
            k = tested[block]
            b, var, df, spread[k, p] = _block(L[k].astype(float), H[k].astype(float), values, design)
            flat[columns] |= (np.isfinite(b) & ~(var > 0)).any(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                t[np.ix_(k, columns)] = np.where(var > 0, b / np.sqrt(var), np.nan)
            difference[np.ix_(k, columns)] = b * features.scale[columns]
            log_p[np.ix_(k, columns)] = log_two_sided_t(t[np.ix_(k, columns)], df)
    return TwoGroups(difference, t, log_p, n_low, n_high, flat, spread)


def _block(L: np.ndarray, H: np.ndarray, y: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, ...]:
    """Effect, its HC2 variance and degrees of freedom, each (k, F), and 1 / power of the group (k,).

    Rows L, H (k, n), values y (n, F), design C (n, 1 + q).
    """
    S = L + H
    pairs = np.einsum("ni,nj->nij", C, C).reshape(len(C), -1)
    size = C.shape[1]
    inverse = np.linalg.pinv((S @ pairs).reshape(-1, size, size), hermitian=True)
    rank = np.rint(np.einsum("kij,kji->k", inverse, (S @ pairs).reshape(-1, size, size)))
    # the group indicator without what the covariates explain of it (Frisch, Waugh, Lovell)
    slope = np.einsum("kij,kj->ki", inverse, H @ C)
    rest = (H - slope @ C.T) * S
    power = (rest**2).sum(axis=1)
    n_l, n_h = L.sum(axis=1), H.sum(axis=1)
    power[power <= _COLLINEAR * n_l * n_h / (n_l + n_h)] = np.nan
    b = rest @ y / power[:, None]
    moment = np.stack([(S * c) @ y for c in C.T], axis=1) - (H @ C)[:, :, None] * b[:, None, :]
    gamma = np.einsum("kij,kjf->kif", inverse, moment)
    leverage = (pairs @ inverse.reshape(len(L), -1).T).T + rest**2 / power[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        # a patient with leverage 1 is fitted exactly and has no residual
        weight = np.where(leverage < 1 - 1e-9, rest**2 / (1 - leverage), 0.0) / power[:, None] ** 2
    weight[np.isnan(power)] = 0.0
    part_l = _weighted_rss(weight * L, y, C, pairs, gamma)
    gamma[:, 0] += b
    part_h = _weighted_rss(weight * H, y, C, pairs, gamma)
    share = (rank - 1) / (n_l + n_h)
    with np.errstate(invalid="ignore", divide="ignore"):
        free = [np.maximum(n - 1 - share * n, 1.0)[:, None] for n in (n_l, n_h)]
        df = (part_l + part_h) ** 2 / (part_l**2 / free[0] + part_h**2 / free[1])
    return b, part_l + part_h, df, 1 / power


def _weighted_rss(W: np.ndarray, y: np.ndarray, C: np.ndarray, pairs: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """(k, F) sums over patients of W (y - C gamma)², without the residuals of every row."""
    size = C.shape[1]
    out = W @ y**2
    for i in range(size):
        out -= 2 * gamma[:, i] * ((W * C[:, i]) @ y)
    quadratic = (W @ pairs).reshape(-1, size, size)
    out += np.einsum("kif,kij,kjf->kf", gamma, quadratic, gamma, optimize=True)
    return np.maximum(out, 0.0)
