"""Ridge regression in closed form: one eigendecomposition serves every penalty and every target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_CHUNK = 65_536  # rows that are widened to float64 at once
_MAX_FOLDS = 10


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression; :meth:`predict` is ``((X - center) / scale) @ weight + intercept``.

    Attributes
    ----------
    center, scale
        (F,) float64, weighted mean and standard deviation of the features (1 where constant).
    weight
        (F, G) float64, coefficients of the standardised features.
    intercept
        (G,) float64; it is not penalised.
    alpha
        (G,) float64, the chosen penalty of each target (all equal unless ``per_target=True``).
    score
        What the chosen penalties cost, summed over targets: squared error on left-out rows, or the
        generalised cross-validation score; NaN when there was nothing to choose.
    """

    center: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray
    score: float = float("nan")

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict targets; a non-finite feature counts as its training mean.

        Parameters
        ----------
        X
            (n, F) features in the units of the training features.

        Returns
        -------
        (n, G) float64.
        """
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != len(self.center):
            raise ValueError(f"X: expected (n, {len(self.center)}) features as in training, got {X.shape}")
        z = (X - self.center) / self.scale
        return np.where(np.isfinite(z), z, 0.0) @ self.weight + self.intercept


@dataclass
class _Moments:
    """Weighted sums over some rows: enough to fit a ridge there and to score one there."""

    n: int
    w: float
    x: np.ndarray  # (F,)
    y: np.ndarray  # (G,)
    xx: np.ndarray  # (F, F)
    xy: np.ndarray  # (F, G)
    yy: np.ndarray  # (G,)

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(*(getattr(self, k) - getattr(other, k) for k in self.__dataclass_fields__))

    def rescaled(self, factor: np.ndarray) -> _Moments:
        """The moments of features divided by ``factor`` (F,)."""
        return _Moments(
            self.n,
            self.w,
            self.x / factor,
            self.y,
            self.xx / np.outer(factor, factor),
            self.xy / factor[:, None],
            self.yy,
        )

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gram matrix, cross products and sums of squares about the weighted means."""
        xx = self.xx - np.outer(self.x, self.x) / self.w
        xy = self.xy - np.outer(self.x, self.y) / self.w
        return xx, xy, np.maximum(self.yy - self.y**2 / self.w, 0.0)


def _sum(parts: list[_Moments]) -> _Moments:
    return _Moments(*(sum(getattr(p, k) for p in parts) for k in _Moments.__dataclass_fields__))


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _dense(Y: np.ndarray | sparse.sparray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    block = Y[rows][:, columns]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def _standardise(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of every feature, in two passes (one pass cancels)."""
    everything, total = np.arange(len(X)), weights.sum()
    center, var = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rows in _chunks(everything):
        center += weights[rows] @ X[rows].astype(np.float64)
    center /= total
    for rows in _chunks(everything):
        var += weights[rows] @ (X[rows].astype(np.float64) - center) ** 2
    scale = np.sqrt(var / total)
    # what is left of a constant column after rounding is not a feature
    scale[scale <= 1e-12 * np.maximum(np.abs(center), 1.0)] = 1.0
    return center, scale


def _moments(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    rows: np.ndarray,
    columns: np.ndarray,
    standard: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    shift: np.ndarray,
) -> _Moments:
    center, scale = standard
    F, G = X.shape[1], len(columns)
    out = _Moments(len(rows), 0.0, np.zeros(F), np.zeros(G), np.zeros((F, F)), np.zeros((F, G)), np.zeros(G))
    for part in _chunks(rows):
        w = weights[part]
        z = (X[part].astype(np.float64) - center) / scale
        y = _dense(Y, part, columns) - shift
        bad = ~np.isfinite(y)
        if bad.any():
            raise ValueError(
                f"Y: {int(bad.sum())} observed entries are not finite; set mask=False where a target was not measured"
            )
        wz = w[:, None] * z
        out.w += float(w.sum())
        out.x += wz.sum(0)
        out.y += w @ y
        out.xx += wz.T @ z
        out.xy += wz.T @ y
        out.yy += w @ y**2
    return out


def _eigen(xx: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues (F,), eigenvectors (F, F) of the Gram matrix and the rotated cross products (F, G)."""
    values, vectors = np.linalg.eigh(xx)
    values = np.maximum(values, 0.0)
    values[values <= len(values) * np.finfo(float).eps * values.max(initial=0.0)] = 0.0
    return values, vectors, vectors.T @ xy


def _shrink(values: np.ndarray, alpha: float) -> np.ndarray:
    """1 / (d + alpha), and 0 for a direction without data and without penalty (pseudo-inverse)."""
    total = values + alpha
    return np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)


def _gcv(m: _Moments, alphas: np.ndarray) -> np.ndarray:
    """Generalised cross-validation score (A, G): mean squared residual / (1 - df / n)²."""
    xx, xy, yy = m.centred()
    values, _, rotated = _eigen(xx, xy)
    out = np.empty((len(alphas), len(yy)))
    for i, alpha in enumerate(alphas):
        inverse = _shrink(values, alpha)
        residual = np.maximum(yy - (inverse * (2.0 - values * inverse)) @ rotated**2, 0.0)
        freedom = 1.0 - (1.0 + float((values * inverse).sum())) / m.n
        # as many parameters as rows: nothing is left to judge by
        out[i] = residual / m.n / freedom**2 if freedom > 1e-9 else np.inf
    return out


def _grouped(parts: list[_Moments], alphas: np.ndarray, scored: list[_Moments] | None = None) -> np.ndarray:
    """Squared error on every left-out part (A, G), summed; a part's own rows never enter its fit."""
    total = _sum(parts)
    out = np.zeros((len(alphas), len(total.y)))
    for part in parts if scored is None else scored:
        train = total - part
        xx, xy, _ = train.centred()
        values, vectors, rotated = _eigen(xx, xy)
        for i, alpha in enumerate(alphas):
            b = vectors @ (_shrink(values, alpha)[:, None] * rotated)
            b0 = (train.y - train.x @ b) / train.w
            fit = (b * (part.xx @ b)).sum(0) + 2 * b0 * (part.x @ b) + part.w * b0**2
            out[i] += part.yy - 2 * ((b * part.xy).sum(0) + b0 * part.y) + fit
    return out


def _uncorrelated(train: _Moments, held: _Moments, alphas: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation on the held rows (A, G) of what is fitted on the others."""
    xx, xy, _ = train.centred()
    values, vectors, rotated = _eigen(xx, xy)
    held_xx, held_xy, held_yy = held.centred()
    out = np.ones((len(alphas), len(held_yy)))
    for i, alpha in enumerate(alphas):
        b = vectors @ (_shrink(values, alpha)[:, None] * rotated)
        power = (b * (held_xx @ b)).sum(0) * held_yy
        # a constant prediction or target has no correlation: as bad as none
        out[i] -= np.divide((b * held_xy).sum(0), np.sqrt(power), out=np.zeros_like(power), where=power > 1e-12)
    return out


def _folds(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Fold of every row, -1 without groups; more than ten groups are dealt into ten folds."""
    if groups is None:
        return np.full(n, -1)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups: expected one label per row ({n},), got shape {groups.shape}")
    unique, index = np.unique(groups, return_inverse=True)
    if len(unique) < 2:
        raise ValueError(f"groups: cross-validation needs two groups, got {len(unique)}; pass groups=None for GCV")
    return index % min(len(unique), _MAX_FOLDS)


def _patterns(mask: np.ndarray | None, shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (rows, columns): the targets that were measured on the same rows."""
    n, G = shape
    if mask is None:
        return [(np.arange(n), np.arange(G))]
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"mask: expected the shape of Y {shape}, got {mask.shape}")
    empty = np.flatnonzero(~mask.any(0))
    if len(empty):
        raise ValueError(f"mask: {len(empty)} targets are observed in no row (first columns {empty[:5].tolist()})")
    unique, index = np.unique(np.packbits(mask, axis=0), axis=1, return_inverse=True)
    index = index.reshape(-1)
    first = [int(np.argmax(index == k)) for k in range(unique.shape[1])]
    return [(np.flatnonzero(mask[:, c]), np.flatnonzero(index == k)) for k, c in enumerate(first)]


def _check(
    X: np.ndarray, Y: np.ndarray | sparse.sparray, alphas: Sequence[float] | float, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if X.ndim != 2 or Y.ndim != 2 or X.shape[0] != Y.shape[0]:
        raise ValueError(f"X, Y: expected (n, F) and (n, G) with the same n, got {X.shape} and {Y.shape}")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"X: expected at least one row and one feature, got shape {X.shape}")
    bad = sum(int((~np.isfinite(X[rows])).any(1).sum()) for rows in _chunks(np.arange(len(X))))
    if bad:
        raise ValueError(f"X: {bad} of {len(X)} rows hold values that are not finite; leave them out or fill them")
    penalties = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if penalties.ndim != 1 or len(penalties) == 0 or not np.isfinite(penalties).all() or (penalties < 0).any():
        raise ValueError(f"alphas: expected finite penalties of 0 and above, got {alphas!r}")
    w = np.ones(len(X)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(X),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"weights: expected ({len(X)},) finite values >= 0 with a positive sum, got shape {w.shape}")
    return penalties, w


def fit_ridge(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    *,
    alphas: Sequence[float] | float,
    groups: np.ndarray | None = None,
    held: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    criterion: str = "error",
    per_target: bool = False,
    penalty: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> Ridge:
    r"""Fit a ridge regression of many targets on standardised features and choose its penalty.

    Minimises :math:`\sum_i w_i (y_i - z_i b - b_0)^2 + \alpha |b|^2` with z the features
    standardised over the weighted rows: the objective of ``sklearn.linear_model.Ridge(alpha)`` on z.

    Parameters
    ----------
    X
        (n, F) features, any float dtype; rows are widened to float64 in chunks.
    Y
        (n, G) targets, dense or scipy sparse.
    alphas
        Penalties to choose from (a number: that one). Rough guide: 1e-3 … 1e1 times n.
    groups
        (n,) labels. The penalty is chosen by leaving out one group at a time (ten folds of groups
        when there are more); without groups by generalised cross-validation.
    held
        (n,) bool, instead of ``groups``: the penalty is the one that, fitted on the other rows,
        predicts these best; the final fit takes all rows.
    weights
        (n,) sample weights, 0 and above; 0 leaves a row out.
    mask
        (n, G) bool, False where a target was not measured (another panel). Targets with the same
        rows share one eigendecomposition.
    criterion
        What is judged on ``held`` rows: ``"error"``, or ``"correlation"``, in which neither an offset of
        those rows nor the many targets without any signal have a say.
    per_target
        Choose a penalty for every target instead of one for all.
    penalty
        Factors above 0 on the penalty of each feature, (F,), or (P, F) patterns to choose from;
        default 1. ``scale`` then holds their square roots too.
    given
        (G,) penalty of each target instead of a choice from ``alphas`` (one ``penalty`` pattern only).

    Returns
    -------
    Ridge

    Raises
    ------
    ValueError
        Shapes disagree, a feature or an observed target is not finite, a penalty is negative, a
        target is observed in no row, or fewer than two groups see a target.

    Notes
    -----
    Cost O(n F (F + G)) for the moments, then O(F³ + A F G) per fold, whatever the number of penalties.
    GCV: Golub, Heath, Wahba, Technometrics 21:215 (1979), doi:10.1080/00401706.1979.10489751.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = X @ np.array([[1.0], [0.0], [-2.0]]) + 5
    >>> ridge = fit_ridge(X, Y, alphas=[1e-6, 1.0])
    >>> bool(np.allclose(ridge.predict(X), Y, atol=1e-4))
    True
    """
    X = np.asarray(X)
    Y = Y.tocsr() if sparse.issparse(Y) else np.asarray(Y)
    if given is not None:
        if np.shape(given) != (Y.shape[1],) or not np.isfinite(given).all() or np.min(given) < 0:
            raise ValueError(f"given: expected ({Y.shape[1]},) finite penalties of 0 and above, got {np.shape(given)}")
        alphas = np.asarray(given)[:1]
    penalties, w = _check(X, Y, alphas, weights)
    if criterion not in ("error", "correlation") or (criterion == "correlation" and held is None and given is None):
        raise ValueError(f"criterion={criterion!r}: expected 'error', or 'correlation' together with held=")
    if held is not None:
        if groups is not None:
            raise ValueError("held, groups: give one of them")
        groups = np.asarray(held, dtype=bool).astype(int)
    fold = _folds(groups, len(X))
    center, scale = _standardise(X, w)
    roots = _penalty_roots(penalty, X.shape[1])
    data = list(_targets_by_rows(X, Y, mask, w, fold, (center, scale)))
    if groups is not None and len(penalties) * len(roots) > 1:
        for columns, parts, _ in data:
            if len(parts) < 2:
                raise ValueError(
                    f"groups: {len(columns)} targets are observed in one group only; pass groups=None for GCV"
                )
    pattern, pick, score = _choose(data, penalties, roots, Y.shape[1], _scoring(groups, held, criterion), per_target)
    alpha = penalties[pick] if given is None else np.asarray(given, dtype=np.float64)
    weight, intercept = np.empty((X.shape[1], Y.shape[1])), np.empty(Y.shape[1])
    for columns, parts, shift in data:
        weight[:, columns], b0 = _solve(_sum(parts).rescaled(roots[pattern]), alpha[columns])
        intercept[columns] = b0 + shift
    return Ridge(center, scale * roots[pattern], weight, intercept, alpha, score)


def _penalty_roots(penalty: np.ndarray | None, n_features: int) -> np.ndarray:
    """(P, F) square roots of the factors on the penalty."""
    if penalty is None:
        return np.ones((1, n_features))
    factor = np.atleast_2d(np.asarray(penalty, dtype=np.float64))
    if factor.shape[1] != n_features or not np.isfinite(factor).all() or (factor <= 0).any():
        raise ValueError(f"penalty: expected ({n_features},) factors above 0, got shape {np.shape(penalty)}")
    return np.sqrt(factor)


_Block = tuple[np.ndarray, list[_Moments], np.ndarray]


def _targets_by_rows(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    mask: np.ndarray | None,
    w: np.ndarray,
    fold: np.ndarray,
    standard: tuple[np.ndarray, np.ndarray],
) -> Iterator[_Block]:
    """Targets that were measured on the same rows: columns, moments per fold, and their shift."""
    for rows, columns in _patterns(mask, Y.shape):
        rows = rows[w[rows] > 0]
        if len(rows) == 0:
            raise ValueError(f"mask: {len(columns)} targets are observed only in rows of weight 0")
        # rough centring keeps the moments of far-off targets exact
        shift = _dense(Y, rows[: min(len(rows), 1024)], columns)
        shift = np.where(np.isfinite(shift), shift, 0.0).mean(0)
        parts = [_moments(X, Y, rows[fold[rows] == f], columns, standard, w, shift) for f in np.unique(fold[rows])]
        yield columns, parts, shift


def _scoring(
    groups: np.ndarray | None, held: np.ndarray | None, criterion: str
) -> Callable[[list[_Moments], np.ndarray], np.ndarray]:
    """What a penalty costs, given the moments of the folds."""
    if groups is None:
        return lambda parts, alphas: _gcv(parts[0], alphas)
    if held is None:
        return _grouped
    if criterion == "error":
        return lambda parts, alphas: _grouped(parts, alphas, parts[1:])
    return lambda parts, alphas: _uncorrelated(parts[0], parts[1], alphas)


def _choose(
    data: list[_Block],
    penalties: np.ndarray,
    roots: np.ndarray,
    n_targets: int,
    scoring: Callable[[list[_Moments], np.ndarray], np.ndarray],
    per_target: bool,
) -> tuple[int, np.ndarray, float]:
    """Pattern, penalty of each target, and what they cost."""
    if len(penalties) * len(roots) == 1:
        return 0, np.zeros(n_targets, dtype=np.int64), float("nan")
    best: tuple[int, np.ndarray, float] | None = None
    for pattern, root in enumerate(roots):
        scores = np.zeros((len(penalties), n_targets))
        for columns, parts, _ in data:
            scores[:, columns] = scoring([part.rescaled(root) for part in parts], penalties)
        pick = scores.argmin(0) if per_target else np.full(n_targets, scores.sum(1).argmin())
        score = float(scores[pick, np.arange(n_targets)].sum())
        if best is None or score < best[2]:
            best = (pattern, pick, score)
    return best


def _solve(m: _Moments, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (F, G) and intercepts (G,) with a penalty for every target."""
    xx, xy, _ = m.centred()
    values, vectors, rotated = _eigen(xx, xy)
    total = values[:, None] + alpha[None, :]
    b = vectors @ np.divide(rotated, total, out=np.zeros_like(rotated), where=total > 0)
    return b, (m.y - m.x @ b) / m.w


def reduced_rank(ridge: Ridge, X: np.ndarray, ranks: Sequence[int]) -> list[Ridge]:
    """Ridge fits whose predictions are confined to the leading directions of the fitted values.

    Targets that are driven by few common causes borrow strength from each other: noise in a single
    target's coefficients does not survive the projection.

    Parameters
    ----------
    ridge
        The full fit.
    X
        (n, F) features that it was fitted on.
    ranks
        Numbers of directions, 1 and above; one above the number of targets changes nothing.

    Returns
    -------
    list of Ridge
        One per rank.

    References
    ----------
    Mukherjee & Zhu, Stat Anal Data Min 4:612 (2011), doi:10.1002/sam.10138.
    """
    n_targets = ridge.weight.shape[1]
    gram = np.zeros((n_targets, n_targets))
    for rows in _chunks(np.arange(len(X))):
        fitted = ((X[rows] - ridge.center) / ridge.scale) @ ridge.weight
        gram += fitted.T @ fitted
    _, vectors = np.linalg.eigh(gram)
    out = []
    for rank in ranks:
        leading = vectors[:, ::-1][:, : max(1, rank)]
        weight = (ridge.weight @ leading) @ leading.T
        out.append(Ridge(ridge.center, ridge.scale, weight, ridge.intercept, ridge.alpha, ridge.score))
    return out
