"""Cross-validated Cox models: screening, fit and test in the same folds for a model and its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from ghistpy.cohort_stats.concordance import Censoring, Pairs, bootstrap_counts
from ghistpy.cohort_stats.cox import RiskSets, fit_univariate, score_test
from ghistpy.cohort_stats.coxfit import Penalty, fit_cox
from ghistpy.cohort_stats.folds import repeated_folds
from ghistpy.cohort_stats.options import not_negative, one_of, whole_number

MODEL, CLINICAL, BOTH, IMAGE, RANDOM, COXNET = "model", "clinical", "clinical+model", "image", "random", "coxnet"
SCREENS, RISK_SCALES = ("score", "wald"), ("rank", "centre", "none")


@dataclass(frozen=True)
class Design:
    """What is known of n patients: X (n, p) candidate features, clinical (n, q), image (n, r); NaN = missing."""

    X: np.ndarray
    time: np.ndarray
    event: np.ndarray
    clinical: np.ndarray | None = None
    image: np.ndarray | None = None
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Procedure:
    """How a model is made of a training fold, and which baselines stand beside it."""

    n_features: int = 5
    screen: Literal["score", "wald"] = "score"
    penalty: Penalty = "none"
    ridge: float = 1.0
    models: tuple[str, ...] = (MODEL,)
    n_splits: int = 3
    n_repeats: int = 100
    seed: int = 0
    risk_scale: Literal["rank", "centre", "none"] = "rank"

    def __post_init__(self) -> None:
        """Refuse options that would silently mean another method."""
        one_of("screen", self.screen, SCREENS)
        one_of("penalty", self.penalty, get_args(Penalty))
        one_of("risk_scale", self.risk_scale, RISK_SCALES)
        not_negative("ridge", self.ridge)
        whole_number(self.n_features, "n_features", 1)
        whole_number(self.n_splits, "n_splits", 2)
        whole_number(self.n_repeats, "n_repeats", 1)


@dataclass
class CrossValidation:
    """Results of R repeats of K folds for M models on n patients.

    folds (R, n); score (M, R, n) linear predictors on test folds; harrell, uno (M, R, K); selected and coef
    (R, K, n_features) columns of X and log hazard ratios per standard deviation; separated (M, R, K) and
    failed (M, R, K): fits to distrust, and fits that did not converge; train_events (R, K).
    """

    models: tuple[str, ...]
    folds: np.ndarray
    score: np.ndarray
    harrell: np.ndarray
    uno: np.ndarray
    selected: np.ndarray
    coef: np.ndarray
    separated: np.ndarray
    failed: np.ndarray


@dataclass
class _Fold:
    """Fits of one training fold: model → scores of the test rows and flags."""

    score: dict[str, np.ndarray] = field(default_factory=dict)
    separated: dict[str, bool] = field(default_factory=dict)
    failed: dict[str, bool] = field(default_factory=dict)
    selected: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    coef: np.ndarray = field(default_factory=lambda: np.zeros(0))


def impute(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Fill missing values by the median of the training rows; columns without any become 0."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    known = ~missing[train].all(axis=0)
    median = np.zeros(values.shape[1])
    median[known] = np.nanmedian(values[train][:, known], axis=0)
    return np.where(missing, median, values)


def select_features(
    X: np.ndarray, risk: RiskSets, *, n_features: int, screen: str, start: np.ndarray | None = None
) -> np.ndarray:
    """The features with the strongest univariate association, strongest first; fewer when fewer vary."""
    chi2 = score_test(X, risk)[0] if screen == "score" else fit_univariate(X, risk, start=start).chi2
    order = np.argsort(-np.nan_to_num(chi2, nan=-1.0), kind="stable")[:n_features]
    return order[np.isfinite(chi2[order])]


def cross_validate(
    design: Design,
    how: Procedure,
    *,
    tau: float | None,
    n_jobs: int = 1,
    folds: np.ndarray | None = None,
    progress: bool = False,
) -> CrossValidation:
    """Run the procedure in every fold of every repeat.

    Parameters
    ----------
    design, how
        Patients and procedure.
    tau
        Uno's index counts events before it. None = leave it out, NaN.
    n_jobs
        Processes; each repeat has its own generator, so the result does not depend on it.
    folds
        (R, n) folds instead of those that ``how`` asks for.
    progress
        Show a progress bar.

    Returns
    -------
    CrossValidation

    Notes
    -----
    Nothing of a test fold is seen: medians for missing values, screening, coefficients and Uno's weights
    come from the training fold.
    """
    if folds is None:
        folds = repeated_folds(
            design.event, n_splits=how.n_splits, n_repeats=how.n_repeats, seed=how.seed, groups=design.groups
        )
    check_test_events(folds, design.event, how.n_splits)
    start = None
    if how.screen == "wald":
        every = np.ones(len(design.time), dtype=bool)
        start = fit_univariate(impute(design.X, every), RiskSets.of(design.time, design.event)).coef
    seeds = np.random.SeedSequence(how.seed).spawn(len(folds))
    jobs = ((design, how, folds[r], seeds[r], start, tau) for r in range(len(folds)))
    repeats = run_jobs(_one_repeat, jobs, n_jobs=n_jobs, progress=progress, total=len(folds))
    return _collect(repeats, folds, how, len(design.time))


def run_jobs(
    function: Callable[..., Any],
    jobs: Iterator[tuple],
    *,
    n_jobs: int,
    progress: bool = False,
    total: int | None = None,
) -> list:
    """Results of ``function(*job)`` in the order of the jobs; in this process for one job at a time."""
    from tqdm import tqdm

    shown = tqdm(jobs, total=total, disable=not progress, leave=False)
    if n_jobs == 1:
        return [function(*job) for job in shown]
    from joblib import Parallel, delayed

    return Parallel(n_jobs=n_jobs)(delayed(function)(*job) for job in shown)


def check_test_events(folds: np.ndarray, event: np.ndarray, n_splits: int) -> None:
    """Refuse folds without an event: nothing can be tested there."""
    counts = np.stack([(folds == k) @ event.astype(np.int64) for k in range(n_splits)], axis=1)
    if counts.min() < 1:
        raise ValueError(
            f"n_splits={n_splits}: a test fold holds no event ({int(event.sum())} events in all, "
            "groups kept together); use fewer folds or another group_key"
        )


def _one_repeat(
    design: Design,
    how: Procedure,
    fold: np.ndarray,
    seed: np.random.SeedSequence,
    start: np.ndarray | None,
    tau: float | None,
) -> list[tuple[_Fold, np.ndarray, np.ndarray]]:
    out = []
    for k, child in enumerate(seed.spawn(how.n_splits)):
        train = fold != k
        fit = _fit_fold(design, how, train, np.random.default_rng(child), start)
        time, event = design.time[~train], design.event[~train]
        harrell = Pairs.of(time, event)
        scores = [fit.score[name] for name in how.models]
        second = np.full(len(scores), np.nan)
        if tau is not None:
            uno = Pairs.of(time, event, tau=tau, censoring=Censoring.of(design.time[train], design.event[train]))
            second = np.array([uno.index(s) for s in scores])
        out.append((fit, np.array([harrell.index(s) for s in scores]), second))
    return out


def _fit_fold(
    design: Design, how: Procedure, train: np.ndarray, rng: np.random.Generator, start: np.ndarray | None
) -> _Fold:
    X = impute(design.X, train)
    risk = RiskSets.of(design.time[train], design.event[train])
    inside = X[train]
    chosen = select_features(inside, risk, n_features=how.n_features, screen=how.screen, start=start)
    out = _Fold(selected=chosen)
    none = np.zeros((len(train), 0))
    clinical = none if design.clinical is None else impute(design.clinical, train)
    variables = {MODEL: X[:, chosen], CLINICAL: clinical, BOTH: np.hstack([clinical, X[:, chosen]])}
    if RANDOM in how.models:
        usable = np.flatnonzero(inside.std(0) > 0)
        variables[RANDOM] = X[:, rng.choice(usable, min(how.n_features, len(usable)), replace=False)]
    if IMAGE in how.models:
        variables[IMAGE] = none if design.image is None else impute(design.image, train)
    for name in how.models:
        if name == COXNET:
            out.score[name] = _coxnet(X, design.time, design.event, train, how.n_features)
            out.separated[name] = out.failed[name] = False
            continue
        values = variables[name]
        fit = fit_cox(values[train], risk, **_penalty_of(name, how, clinical.shape[1], values.shape[1]))
        out.score[name] = (values[~train] - values[train].mean(0)) @ fit.coef
        out.separated[name], out.failed[name] = bool(fit.separated.any()), not fit.converged
        if name == MODEL:
            out.coef = fit.coef * values[train].std(0)
    return out


def _penalty_of(name: str, how: Procedure, n_clinical: int, n_variables: int) -> dict:
    """Clinical and image variables, often indicators of rare levels, always get a ridge."""
    if name in (MODEL, RANDOM):
        return {"penalty": how.penalty, "ridge": how.ridge}
    if name == BOTH:
        own = how.ridge if how.penalty == "ridge" else 0.0
        strength = np.r_[np.full(n_clinical, how.ridge), np.full(n_variables - n_clinical, own)]
        return {"penalty": "ridge", "ridge": strength}
    return {"penalty": "ridge", "ridge": how.ridge}


def _coxnet(X: np.ndarray, time: np.ndarray, event: np.ndarray, train: np.ndarray, n_features: int) -> np.ndarray:
    """Elastic net whose penalty is lowered until as many features are in as the model has."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis
    from sksurv.util import Surv

    mean, scale = X[train].mean(0), X[train].std(0)
    varies = scale > 0
    z = (X[:, varies] - mean[varies]) / scale[varies]
    net = CoxnetSurvivalAnalysis(l1_ratio=0.9, n_alphas=30, alpha_min_ratio=0.3)
    net.fit(z[train], Surv.from_arrays(event[train], time[train]))
    size = (net.coef_ != 0).sum(0)
    enough = np.flatnonzero(size >= n_features)
    at = enough[0] if len(enough) else len(size) - 1
    return z[~train] @ net.coef_[:, at]


def _collect(repeats: list, folds: np.ndarray, how: Procedure, n: int) -> CrossValidation:
    n_models, shape = len(how.models), (len(folds), how.n_splits)
    score = np.full((n_models, len(folds), n), np.nan)
    harrell, uno = np.full((n_models, *shape), np.nan), np.full((n_models, *shape), np.nan)
    selected, coef = np.full((*shape, how.n_features), -1), np.full((*shape, how.n_features), np.nan)
    separated, failed = np.zeros((n_models, *shape), dtype=bool), np.zeros((n_models, *shape), dtype=bool)
    for r, repeat in enumerate(repeats):
        for k, (fit, c, u) in enumerate(repeat):
            harrell[:, r, k], uno[:, r, k] = c, u
            for m, name in enumerate(how.models):
                score[m, r, folds[r] == k] = fit.score[name]
                separated[m, r, k], failed[m, r, k] = fit.separated[name], fit.failed[name]
            selected[r, k, : len(fit.selected)] = fit.selected
            coef[r, k, : len(fit.coef)] = fit.coef
    return CrossValidation(how.models, folds, score, harrell, uno, selected, coef, separated, failed)


def combine_risk(score: np.ndarray, folds: np.ndarray, *, scale: str = "rank") -> np.ndarray:
    """One risk per patient: the median over repeats of the test-fold scores (R, n).

    Scores of different folds come from different models. ``"rank"`` makes them shares of the fold (0 to 1),
    ``"centre"`` takes out the mean of the fold, ``"none"`` compares them as they are.
    """
    from scipy.stats import rankdata

    if scale == "none":
        return np.median(score, axis=0)
    out = np.empty_like(score)
    for r in range(len(folds)):
        for k in range(int(folds.max()) + 1):
            rows = folds[r] == k
            s = score[r, rows]
            out[r, rows] = rankdata(s) / (len(s) + 1) if scale == "rank" else s - s.mean()
    return np.median(out, axis=0)


def split_risk(risk: np.ndarray, method: str) -> np.ndarray:
    """Group of each patient: 1 high, 0 low, -1 left out (the middle of quartiles, or no risk)."""
    known = np.isfinite(risk)
    group = np.full(len(risk), -1)
    if method == "median":
        group[known] = (risk[known] > np.median(risk[known])).astype(int)
    else:
        low, high = np.quantile(risk[known], [0.25, 0.75])
        group[known & (risk <= low)] = 0
        group[known & (risk >= high)] = 1
    return group


def signed_logrank(time: np.ndarray, event: np.ndarray, group: np.ndarray) -> float:
    """Signed root of the two-group score statistic: positive when the high group fails earlier; NaN without both."""
    rows = group >= 0
    if not event[rows].any() or len(np.unique(group[rows])) < 2:
        return np.nan
    chi2, sign = score_test(group[rows, None].astype(np.float64), RiskSets.of(time[rows], event[rows]))
    return float(sign[0] * np.sqrt(chi2[0]))


def bootstrap_c_index(
    found: CrossValidation, time: np.ndarray, event: np.ndarray, *, n_bootstraps: int, seed: int
) -> np.ndarray:
    """Mean within-fold C-index (M, B) of each model on bootstrap samples of patients, the same for all models.

    The fitted models stay as they are: the spread is that of the patients they are tested on. The spread
    over repeats is none at all: every repeat tests the same patients.
    """
    counts = bootstrap_counts(len(time), n_bootstraps, seed)
    total = np.zeros((len(found.models), n_bootstraps))
    known = np.zeros_like(total)
    for r, fold in enumerate(found.folds):
        for k in range(int(fold.max()) + 1):
            rows = np.flatnonzero(fold == k)
            pairs, own = Pairs.of(time[rows], event[rows]), counts[:, rows]
            for m in range(len(found.models)):
                c = pairs.resampled(found.score[m, r, rows], own)
                total[m] += np.nan_to_num(c)
                known[m] += np.isfinite(c)
    return total / np.maximum(known, 1)
