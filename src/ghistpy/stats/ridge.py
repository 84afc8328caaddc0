"""Ridge regression in closed form: one eigendecomposition serves every penalty and every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from ghistpy.stats._moments import Moments, add_up, chunks, standardise, targets_by_rows

_MAX_FOLDS = 10
CRITERIA = ("error", "correlation")


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression; :meth:`predict` is ``((X - center) / scale) @ weight + intercept``.

    Attributes
    ----------
    center, scale
        (F,) float64, weighted mean and standard deviation of the features (1 where constant), the latter
        times the square root of the feature's penalty factor.
    weight
        (F, G) float64, coefficients of the standardised features.
    intercept
        (G,) float64; it is not penalised.
    alpha
        The chosen penalty.
    pattern
        Which of the patterns of penalty factors was chosen, 0 when there was one.
    score
        What the choice costs, summed over targets: squared error on left-out rows, one minus the mean
        correlation there, or the generalised cross-validation score; NaN when there was nothing to choose.
    """

    center: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray
    alpha: float
    pattern: int = 0
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


def fit_ridge(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    *,
    alphas: Sequence[float] | float,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    penalty: np.ndarray | None = None,
    criterion: str = "error",
    n_judged: int | None = None,
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
        when there are more); rows with the label -1 are never left out. Without groups by generalised
        cross-validation. The final fit takes all rows.
    weights
        (n,) sample weights, 0 and above; 0 leaves a row out.
    mask
        (n, G) bool, False where a target was not measured (another panel). Targets with the same
        rows share one eigendecomposition.
    penalty
        Factors above 0 on the penalty of each feature, (F,), or (P, F) patterns to choose from; default 1.
    criterion
        What is judged on left-out rows: ``"error"`` (squared), or ``"correlation"`` within each group, in
        which an offset of the group has no say.
    n_judged
        Judge a penalty by the so many targets that it serves best, all by default. Most targets may be
        noise, which the strongest penalty always serves best.

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
    penalties, w = _check(X, Y, alphas, weights)
    if criterion not in CRITERIA or (criterion == "correlation" and groups is None):
        raise ValueError(f"criterion={criterion!r}: expected 'error', or 'correlation' together with groups=")
    fold = _folds(groups, len(X))
    center, scale = standardise(X, w)
    roots = _penalty_roots(penalty, X.shape[1])
    data = list(targets_by_rows(X, Y, mask, w, fold, (center, scale)))
    if groups is not None and len(penalties) * len(roots) > 1:
        for columns, parts, _ in data:
            if len(parts) < 2:
                raise ValueError(
                    f"groups: {len(columns)} targets are observed in one group only; pass groups=None for GCV"
                )
    scoring = _scoring(fold, criterion)
    pattern, pick, score = _choose(data, penalties, roots, Y.shape[1], scoring, n_judged)
    weight, intercept = np.empty((X.shape[1], Y.shape[1])), np.empty(Y.shape[1])
    for columns, parts, shift in data:
        weight[:, columns], b0 = _solve(add_up(parts.values()).rescaled(roots[pattern]), penalties[pick])
        intercept[columns] = b0 + shift
    return Ridge(center, scale * roots[pattern], weight, intercept, float(penalties[pick]), pattern, score)


def _check(
    X: np.ndarray, Y: np.ndarray | sparse.sparray, alphas: Sequence[float] | float, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if X.ndim != 2 or Y.ndim != 2 or X.shape[0] != Y.shape[0]:
        raise ValueError(f"X, Y: expected (n, F) and (n, G) with the same n, got {X.shape} and {Y.shape}")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"X: expected at least one row and one feature, got shape {X.shape}")
    bad = sum(int((~np.isfinite(X[rows])).any(1).sum()) for rows in chunks(np.arange(len(X))))
    if bad:
        raise ValueError(f"X: {bad} of {len(X)} rows hold values that are not finite; leave them out or fill them")
    penalties = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if penalties.ndim != 1 or len(penalties) == 0 or not np.isfinite(penalties).all() or (penalties < 0).any():
        raise ValueError(f"alphas: expected finite penalties of 0 and above, got {alphas!r}")
    w = np.ones(len(X)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(X),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"weights: expected ({len(X)},) finite values >= 0 with a positive sum, got shape {w.shape}")
    return penalties, w


def _folds(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Fold of every row, -1 for rows that are never left out; more than ten groups are dealt into ten folds."""
    if groups is None:
        return np.full(n, -1)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups: expected one label per row ({n},), got shape {groups.shape}")
    unique, index = np.unique(groups, return_inverse=True)
    if len(unique) < 2:
        raise ValueError(f"groups: cross-validation needs two groups, got {len(unique)}; pass groups=None for GCV")
    return np.where(groups == -1, -1, index % min(len(unique), _MAX_FOLDS))


def _penalty_roots(penalty: np.ndarray | None, n_features: int) -> np.ndarray:
    """(P, F) square roots of the factors on the penalty."""
    if penalty is None:
        return np.ones((1, n_features))
    factor = np.atleast_2d(np.asarray(penalty, dtype=np.float64))
    if factor.shape[1] != n_features or not np.isfinite(factor).all() or (factor <= 0).any():
        raise ValueError(f"penalty: expected ({n_features},) factors above 0, got shape {np.shape(penalty)}")
    return np.sqrt(factor)


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


_Parts = dict[int, Moments]


def _gcv(parts: _Parts, alphas: np.ndarray) -> np.ndarray:
    """Generalised cross-validation score (A, G): mean squared residual / (1 - df / n)²."""
    m = add_up(parts.values())
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


def _left_out(
    parts: _Parts, alphas: np.ndarray, judge: Callable[[Moments, Moments, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Sum over left-out parts of what a fit on the others costs there (A, G)."""
    total = add_up(parts.values())
    out = np.zeros((len(alphas), len(total.y)))
    for fold, part in parts.items():
        if fold < 0:
            continue
        train = total - part
        xx, xy, _ = train.centred()
        values, vectors, rotated = _eigen(xx, xy)
        for i, alpha in enumerate(alphas):
            out[i] += judge(train, part, vectors @ (_shrink(values, alpha)[:, None] * rotated))
    return out


def _squared_error(train: Moments, part: Moments, b: np.ndarray) -> np.ndarray:
    b0 = (train.y - train.x @ b) / train.w
    fit = (b * (part.xx @ b)).sum(0) + 2 * b0 * (part.x @ b) + part.w * b0**2
    return part.yy - 2 * ((b * part.xy).sum(0) + b0 * part.y) + fit


def _uncorrelated(train: Moments, part: Moments, b: np.ndarray) -> np.ndarray:
    """One minus Pearson; a constant prediction or target has no correlation: as bad as none."""
    xx, xy, yy = part.centred()
    power = (b * (xx @ b)).sum(0) * yy
    return 1 - np.divide((b * xy).sum(0), np.sqrt(power), out=np.zeros_like(power), where=power > 1e-12)


def _scoring(fold: np.ndarray, criterion: str) -> Callable[[_Parts, np.ndarray], np.ndarray]:
    """What a penalty costs, given the moments of the folds."""
    if (fold < 0).all():
        return _gcv
    judge = _squared_error if criterion == "error" else _uncorrelated
    return lambda parts, alphas: _left_out(parts, alphas, judge)


def _choose(
    data: list[tuple[np.ndarray, _Parts, np.ndarray]],
    penalties: np.ndarray,
    roots: np.ndarray,
    n_targets: int,
    scoring: Callable[[_Parts, np.ndarray], np.ndarray],
    n_judged: int | None,
) -> tuple[int, int, float]:
    """Pattern, index of the penalty, and what they cost."""
    if len(penalties) * len(roots) == 1:
        return 0, 0, float("nan")
    cost = np.zeros((len(roots), len(penalties), n_targets))
    for pattern, root in enumerate(roots):
        for columns, parts, _ in data:
            rescaled = {fold: part.rescaled(root) for fold, part in parts.items()}
            cost[pattern][:, columns] = scoring(rescaled, penalties)
    judged = min(n_judged or n_targets, n_targets)
    total = np.sort(cost, axis=2)[:, :, :judged].sum(axis=2)
    pattern, pick = np.unravel_index(total.argmin(), total.shape)
    return int(pattern), int(pick), float(total[pattern, pick])


def _solve(m: Moments, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (F, G) and intercepts (G,)."""
    xx, xy, _ = m.centred()
    values, vectors, rotated = _eigen(xx, xy)
    b = vectors @ (_shrink(values, alpha)[:, None] * rotated)
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
    for rows in chunks(np.arange(len(X))):
        fitted = ((X[rows] - ridge.center) / ridge.scale) @ ridge.weight
        gram += fitted.T @ fitted
    _, vectors = np.linalg.eigh(gram)
    out = []
    for rank in ranks:
        leading = vectors[:, ::-1][:, : max(1, rank)]
        weight = (ridge.weight @ leading) @ leading.T
        out.append(replace(ridge, weight=weight))
    return out
