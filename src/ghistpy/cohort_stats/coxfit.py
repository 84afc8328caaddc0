"""One Cox model with several variables: plain, with a ridge, or with Firth's correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ghistpy.cohort_stats.cox import SEPARATION, RiskSets
from ghistpy.cohort_stats.options import one_of

Penalty = Literal["none", "ridge", "firth"]


@dataclass(frozen=True)
class CoxFit:
    """A fitted model of q variables.

    coef (q,) log hazard ratios per unit, 0 for constant variables; covariance (q, q) of them; loglik
    partial log likelihood without penalty; converged; separated (q,): more than 5 per standard deviation,
    so the likelihood has hardly a maximum and the estimate is not to be trusted.
    """

    coef: np.ndarray
    covariance: np.ndarray
    loglik: float
    converged: bool
    separated: np.ndarray


def fit_cox(
    X: np.ndarray,
    risk: RiskSets,
    *,
    penalty: Penalty = "none",
    ridge: float | np.ndarray = 1.0,
    max_iter: int = 30,
    tolerance: float = 1e-9,
) -> CoxFit:
    """Fit log hazard = X @ coef with Efron's ties.

    Parameters
    ----------
    X
        (n, q) variables.
    risk
        The outcome of these n patients.
    penalty
        ``"ridge"`` subtracts ``ridge / 2 * coef**2`` per standard deviation: a normal prior of variance
        1 / ``ridge``. ``"firth"`` adds half the log determinant of the information: finite estimates
        also where a variable separates events from survivors.
    ridge
        Strength, one or per variable (0 = that variable is not penalised).
    max_iter, tolerance
        Newton steps at most; the largest step, per standard deviation, that counts as converged.

    Returns
    -------
    CoxFit

    References
    ----------
    Heinze & Schemper, Biometrics 57:114 (2001), doi 10.1111/j.0006-341X.2001.00114.x.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 1))
    >>> time = rng.exponential(np.exp(-X[:, 0]))
    >>> fit_cox(X, RiskSets.of(time, np.ones(200, bool))).coef.round(1)
    array([0.9])
    """
    one_of("penalty", penalty, get_args(Penalty))
    n_variables = X.shape[1]
    x = np.ascontiguousarray(X[risk.order], dtype=np.float64)
    x = x - x.mean(0)
    scale = x.std(0)
    used = scale > 1e-12 * np.maximum(np.abs(x).max(0, initial=0.0), 1e-300)
    x = x[:, used] / scale[used]
    strength = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (n_variables,))[used] if penalty == "ridge" else 0.0
    beta, covariance, loglik, converged = _newton(x, risk, strength, penalty == "firth", max_iter, tolerance)
    coef, full = np.zeros(n_variables), np.zeros((n_variables, n_variables))
    coef[used] = beta / scale[used]
    full[np.ix_(used, used)] = covariance / np.outer(scale[used], scale[used])
    separated = np.zeros(n_variables, dtype=bool)
    separated[used] = np.abs(beta) > SEPARATION
    return CoxFit(coef, full, loglik, converged, separated)


def _newton(
    x: np.ndarray, risk: RiskSets, ridge: np.ndarray | float, firth: bool, max_iter: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, float, bool]:
    q = x.shape[1]
    beta, step = np.zeros(q), np.zeros(q)
    best, halvings, converged = -np.inf, 0, q == 0
    loglik, score, info = _derivatives(x, risk, beta)
    for _ in range(max_iter * 3):
        loglik, score, info = _derivatives(x, risk, beta)
        objective = loglik - 0.5 * float(np.sum(ridge * beta**2))
        gradient, hessian = score - ridge * beta, info + np.diag(np.broadcast_to(ridge, q))
        if firth:
            objective += 0.5 * float(np.linalg.slogdet(info)[1])
            gradient = gradient + _firth_score(x, risk, beta, _inverse(info))
        if objective < best - 1e-9 * (1 + abs(objective)) and halvings < 20:
            step /= 2
            beta = beta - step
            halvings += 1
            continue
        if converged or q == 0:
            break
        best, halvings = objective, 0
        step = np.clip(_inverse(hessian) @ gradient, -2.0, 2.0)
        # beyond this the likelihood only creeps towards infinity
        if np.abs(beta).max() > 30:
            break
        beta = beta + step
        converged = bool(np.abs(step).max() < max(tolerance, 1e-6 if not firth else tolerance))
    hessian = info + np.diag(np.broadcast_to(ridge, q))
    return beta, _inverse(hessian), float(loglik), converged


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse, or the pseudo-inverse of a matrix of collinear variables."""
    if not len(matrix):
        return matrix
    return np.linalg.pinv(matrix, rcond=1e-10, hermitian=True)


def _weights(x: np.ndarray, risk: RiskSets, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    eta = x @ beta
    top = float(eta.max(initial=0.0))
    weight = np.exp(eta - top)
    s0 = risk.at_slots(weight)
    return eta, weight, s0, top


def _derivatives(x: np.ndarray, risk: RiskSets, beta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Log likelihood, score (q,) and information (q, q); no array of (events, q, q) is made."""
    eta, weight, s0, top = _weights(x, risk, beta)
    mean = risk.at_slots(weight[:, None] * x) / s0[:, None]
    loglik = float(eta[risk.tied].sum() - np.log(s0).sum() - len(s0) * top)
    hazard = weight * risk.back(1 / s0)
    info = (x * hazard[:, None]).T @ x - mean.T @ mean
    return loglik, x[risk.tied].sum(0) - mean.sum(0), info


def _firth_score(x: np.ndarray, risk: RiskSets, beta: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Half the derivative of log det information: third central moments of the risk sets."""
    _, weight, s0, _ = _weights(x, risk, beta)
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
    mean = risk.at_slots(weight[:, None] * x) / s0[:, None]
    projected = mean @ inverse
    third = risk.at_slots((weight * leverage)[:, None] * x) / s0[:, None]
    spread = risk.at_slots(weight * leverage) / s0
    second = risk.at_slots(weight[:, None, None] * (x[:, :, None] * x[:, None, :])) / s0[:, None, None]
    along = np.einsum("ejk,ek->ej", second, projected)
    square = (projected * mean).sum(1)
    return 0.5 * (third - 2 * along + mean * (2 * square - spread)[:, None]).sum(0)


def proportional_hazards(X: np.ndarray, time: np.ndarray, event: np.ndarray, fit: CoxFit) -> np.ndarray:
    """p-value (q,) of each variable for an effect that changes with time; NaN for constant variables.

    Correlation of the scaled Schoenfeld residuals with the rank of the event times. lifelines has the same
    test, but only for its own fit, which does not converge where a variable has outliers.

    References
    ----------
    Grambsch & Therneau, Biometrika 81:515 (1994), doi 10.1093/biomet/81.3.515.
    """
    from scipy import stats

    order = np.argsort(time, kind="stable")
    x, t, e = X[order], np.asarray(time, dtype=np.float64)[order], np.asarray(event, dtype=bool)[order]
    eta = x @ fit.coef
    weight = np.exp(eta - eta.max(initial=0.0))
    first = np.searchsorted(t, t[e])
    total = np.cumsum(weight[::-1])[::-1][first]
    mean = np.cumsum((weight[:, None] * x)[::-1], axis=0)[::-1][first] / total[:, None]
    n_events = len(first)
    scaled = n_events * (x[e] - mean) @ fit.covariance
    rank = stats.rankdata(t[e])
    rank -= rank.mean()
    variance = n_events * np.diag(fit.covariance) * (rank @ rank)
    with np.errstate(divide="ignore", invalid="ignore"):
        return stats.chi2.sf((rank @ scaled) ** 2 / variance, 1)
