"""The two-group test of :mod:`ghistpy.stats.association` with covariates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ghistpy.stats.association import Features, TwoGroups, row_blocks
from ghistpy.stats.tails import log_two_sided_t

_COLLINEAR = 1e-8  # share of its variance that a group indicator must keep beside the covariates


def residuals(features: Features, covariates: np.ndarray) -> Features:
    """What linear regression on covariates (n, q) leaves of the features, missing values apart.

    Each residual is divided by sqrt(1 - leverage), so that it has the variance of the error: permuted
    residuals would otherwise vary less than what was observed.
    """
    z = features.z.copy()
    for p in range(features.present.shape[1]):
        columns, rows = np.flatnonzero(features.pattern == p), features.present[:, p] > 0
        design = np.column_stack([np.ones(rows.sum()), covariates[rows]])
        basis, size, _ = np.linalg.svd(design, full_matrices=False)
        basis = basis[:, size > 1e-10 * size[0]]
        at = np.ix_(rows, columns)
        z[at] -= basis @ (basis.T @ z[at])
        left = 1 - (basis**2).sum(axis=1)
        z[at] /= np.sqrt(np.where(left > 1e-9, left, 1.0))[:, None]
    return Features(z, features.center, features.scale, features.present, features.pattern)


@dataclass(frozen=True)
class Regression:
    """Least squares on group and covariates for k rows of calls: all of it that no feature changes.

    ``C`` (n, 1 + q): intercept and covariates; ``slope`` (k, 1 + q): regression of the group on them;
    ``inverse`` (k, 1 + q, 1 + q): of their cross products among the patients of both groups; ``members``
    (k, n): these patients; ``weight`` (k, n): the effect of the group is ``weight @ y``; ``low``, ``high``
    (k, n): weights of the squared residuals in its HC2 variance, and ``cross_low``, ``cross_high``
    (k, (1 + q)²) their sums over products of covariates; ``spread`` (k,): variance of the effect when that of
    the feature is 1, NaN where covariates tell the groups apart; ``moments`` (k, 7): see :meth:`df`.
    """

    C: np.ndarray
    slope: np.ndarray
    inverse: np.ndarray
    members: np.ndarray
    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cross_low: np.ndarray
    cross_high: np.ndarray
    spread: np.ndarray
    moments: np.ndarray

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, C: np.ndarray, dtype: type = np.float64) -> Regression:
        """From groups (k, n) of 0 and 1 and the design (n, 1 + q)."""
        members, size = low + high, C.shape[1]
        pairs = np.einsum("ni,nj->nij", C, C).reshape(len(C), -1)
        inverse = np.linalg.pinv((members @ pairs).reshape(-1, size, size), hermitian=True)
        # the group indicator without what the covariates explain of it (Frisch, Waugh, Lovell)
        slope = np.einsum("kij,kj->ki", inverse, high @ C)
        rest = (high - slope @ C.T) * members
        power = (rest**2).sum(axis=1)
        n_low, n_high = low.sum(axis=1), high.sum(axis=1)
        power[power <= _COLLINEAR * n_low * n_high / (n_low + n_high)] = np.nan
        weight = np.nan_to_num(rest / power[:, None])
        leverage = inverse.reshape(len(low), -1) @ pairs.T + np.nan_to_num(rest**2 / power[:, None])
        # a patient with leverage 1 is fitted exactly and has no residual
        fitted = leverage >= 1 - 1e-9
        D = np.where(fitted, 0.0, weight**2 / np.where(fitted, 1.0, 1 - leverage))
        metric = np.zeros((len(low), size + 1, size + 1))
        metric[:, :-1, :-1], metric[:, -1, -1] = inverse, np.nan_to_num(1 / power)
        moments = _quadratic_moments((low, high), D, np.where(fitted, 0.0, weight), rest, C, metric)
        arrays = slope, inverse, members, weight, D * low, D * high, (D * low) @ pairs, (D * high) @ pairs, 1 / power
        return cls(*(a.astype(dtype) for a in (C, *arrays, moments)))

    def effect(self, y: np.ndarray) -> np.ndarray:
        """(k, F) difference between the groups that covariates do not explain."""
        return self.weight @ y + np.where(np.isnan(self.spread), np.nan, 0)[:, None].astype(y.dtype)

    def variance(self, y: np.ndarray, effect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """HC2 variance of the effect, the share of each group, (k, F): 3 (1 + q) + 2 products of matrices."""
        columns = self.C.T[:, None, :]
        moment = np.stack([(self.members * c) @ y for c in columns], axis=1)
        coefficients = np.einsum("kij,kjf->kif", self.inverse, moment, optimize=True)
        coefficients -= self.slope[:, :, None] * effect[:, None, :]
        squares, parts = y**2, []
        for weights, cross in ((self.low, self.cross_low), (self.high, self.cross_high)):
            # sums of W (y - C coefficients)² without the residuals of every row
            out = weights @ squares
            for i, c in enumerate(columns):
                out -= 2 * coefficients[:, i] * ((weights * c) @ y)
            out += _quadratic_form(coefficients, cross)
            parts.append(np.maximum(out, 0))
            coefficients[:, 0] += effect
        return parts[0], parts[1]

    def df(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Satterthwaite's degrees of freedom for the parts of :meth:`variance`."""
        square_low, square_high, a_low, a_high, b_low, b_both, b_high = self.moments.T[:, :, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = low / square_low, high / square_high  # variances of a patient in either group
            total = low * a_low + high * a_high
            return total**2 / (low**2 * b_low + 2 * low * high * b_both + high**2 * b_high)


def _quadratic_form(coefficients: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """(k, F) coefficients' cross coefficients, for coefficients (k, s, F) and cross (k, s²)."""
    size = coefficients.shape[1]
    return np.einsum("kif,kif->kf", coefficients, np.matmul(cross.reshape(-1, size, size), coefficients), optimize=True)


def _quadratic_moments(
    groups: tuple[np.ndarray, np.ndarray],
    D: np.ndarray,
    weight: np.ndarray,
    rest: np.ndarray,
    C: np.ndarray,
    metric: np.ndarray,
) -> np.ndarray:
    """Σ weight² by group, and traces and squared norms by group of G = M D M, M what regression leaves, (k, 7).

    The variance is y' G y. With X = (C, rest) and its inverse cross products ``metric``, M = 1 - X metric X', and
    sums of G_ij² over groups are traces of products of S^p = Σ D_i^p x_i x_i' metric, small matrices by group.
    """
    pairs = np.einsum("ni,nj->nij", C, C).reshape(len(C), -1)

    def moment(w: np.ndarray) -> np.ndarray:
        out = np.empty_like(metric)
        out[:, :-1, :-1] = (w @ pairs).reshape(len(w), C.shape[1], -1)
        out[:, -1, :-1] = out[:, :-1, -1] = (w * rest) @ C
        out[:, -1, -1] = (w * rest**2).sum(axis=1)
        return out @ metric

    def trace(*factors: np.ndarray) -> np.ndarray:
        product = factors[0]
        for factor in factors[1:-1]:
            product = product @ factor
        return np.einsum("kij,kji->k", product, factors[-1])

    S = [[moment(group * D**power) for power in range(3)] for group in groups]
    W = S[0][1] + S[1][1]
    out = [(group * weight**2).sum(axis=1) for group in groups]
    out += [
        (group * D).sum(axis=1) + trace(s[0], W) - 2 * np.einsum("kii->k", s[1])
        for group, s in zip(groups, S, strict=True)
    ]
    for g, h in ((0, 0), (0, 1), (1, 1)):
        s, r = S[g], S[h]
        total = trace(s[0], W, r[0], W) - 2 * (trace(s[1], W, r[0]) + trace(s[0], W, r[1]))
        total += trace(s[2], r[0]) + 2 * trace(s[1], r[1]) + trace(s[0], r[2])
        if g == h:  # and what D adds on the diagonal
            total += (groups[g] * D**2).sum(axis=1) + 2 * trace(s[1], W) - 4 * np.einsum("kii->k", s[2])
        out.append(total)
    return np.stack(out, axis=1)


def regressions(
    low: np.ndarray,
    high: np.ndarray,
    covariates: np.ndarray,
    *,
    min_samples: int,
    n_features: int,
    dtype: type = np.float64,
) -> Iterator[tuple[np.ndarray, Regression]]:
    """Blocks of the rows whose groups (K, n) are large enough, and their regressions."""
    tested = np.flatnonzero((low.sum(axis=1) >= min_samples) & (high.sum(axis=1) >= min_samples))
    C = np.column_stack([np.ones(len(covariates)), covariates])
    for block in row_blocks(len(tested), max(n_features, len(C))):
        rows = tested[block]
        yield rows, Regression.of(low[rows].astype(float), high[rows].astype(float), C, dtype)


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
    errors that allow each patient a variance of its own (HC2). Degrees of freedom are Satterthwaite's for
    the whole quadratic form of residuals, as Bell and McCaffrey proposed, but with a variance for each group,
    estimated from its residuals, where they take one for all: so a few patients who decide the estimate cost
    degrees of freedom, and without covariates this is Welch's test, exactly. 3 (q + 2) products of matrices
    in place of four.

    References
    ----------
    MacKinnon and White, J Econom 29:305 (1985), doi:10.1016/0304-4076(85)90158-7. Bell and McCaffrey, Surv
    Methodol 28:169 (2002). Imbens and Kolesár, Rev Econ Stat 98:701 (2016), doi:10.1162/REST_a_00552.

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
        columns, here = np.flatnonzero(features.pattern == p), features.present[:, p] > 0
        y, L, H = features.z[np.ix_(here, columns)], low[:, here], high[:, here]
        n_low[:, p], n_high[:, p] = L.sum(axis=1), H.sum(axis=1)
        options = {"min_samples": min_samples, "n_features": len(columns)}
        for rows, fit in regressions(L, H, covariates[here], **options):
            b = fit.effect(y)
            parts = fit.variance(y, b)
            var, at = parts[0] + parts[1], np.ix_(rows, columns)
            flat[columns] |= (np.isfinite(b) & ~(var > 0)).any(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                t[at] = np.where(var > 0, b / np.sqrt(var), np.nan)
            difference[at], spread[rows, p] = b * features.scale[columns], fit.spread
            log_p[at] = log_two_sided_t(t[at], fit.df(*parts))
    return TwoGroups(difference, t, log_p, n_low, n_high, flat, spread)
