"""Cross-validated classification of patients: selection, scaling and fit inside the folds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ghistpy.cohort_stats.folds import permute_within, repeated_folds
from ghistpy.cohort_stats.options import one_of, whole_number
from ghistpy.cohort_stats.survival_cv import impute, run_jobs

if TYPE_CHECKING:
    from sklearn.model_selection import BaseCrossValidator

MODEL, RANDOM, CLINICAL, BOTH, IMAGE = "model", "random", "clinical", "clinical+model", "image"


@dataclass(frozen=True)
class Classifier:
    """How a classifier is made of a training fold."""

    n_features: int = 20
    decision: Literal["margin", "platt"] = "margin"
    models: tuple[str, ...] = (MODEL,)
    n_splits: int = 3
    n_repeats: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that would silently mean another method."""
        one_of("decision", self.decision, ("margin", "platt"))
        whole_number(self.n_features, "n_features", 1)
        whole_number(self.n_splits, "n_splits", 2)
        whole_number(self.n_repeats, "n_repeats", 1)


@dataclass(frozen=True)
class Outcomes:
    """Patients to classify: X (n, p), label (n,) codes; clinical (n, q), image (n, r), groups (n,) or None."""

    X: np.ndarray
    label: np.ndarray
    clinical: np.ndarray | None = None
    image: np.ndarray | None = None
    groups: np.ndarray | None = None


def pooled_f(X: np.ndarray, label: np.ndarray) -> np.ndarray:
    """F statistic (p,) between classes with a pooled variance; for two classes the square of Student's t.

    Examples
    --------
    >>> pooled_f(np.array([[0.0], [1], [4], [5]]), np.array([0, 0, 1, 1]))
    array([32.])
    """
    codes, count = np.unique(label, return_counts=True)
    mean = X.mean(0)
    between, within = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for code, n in zip(codes, count, strict=True):
        part = X[label == code]
        own = part.mean(0)
        between += n * (own - mean) ** 2
        within += ((part - own) ** 2).sum(0)
    between /= len(codes) - 1
    within /= len(X) - len(codes)
    with np.errstate(divide="ignore", invalid="ignore"):
        # constant features say nothing; features constant within classes everything
        return np.where(X.std(0) > 0, between / within, -1.0)


def cross_validate(
    data: Outcomes, how: Classifier, *, n_jobs: int = 1, progress: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict every patient in every repeat.

    Parameters
    ----------
    data, how
        Patients and procedure.
    n_jobs
        Processes; the result does not depend on it.
    progress
        Show a progress bar.

    Returns
    -------
    predicted : (M, R, n) int8
        Predicted class of each model.
    selected : (R, K, n_features)
        Columns selected by the model, -1 where fewer vary.
    folds : (R, n) int8
        Folds.
    """
    folds = repeated_folds(
        data.label, n_splits=how.n_splits, n_repeats=how.n_repeats, seed=how.seed, groups=data.groups
    )
    seeds = np.random.SeedSequence(how.seed).spawn(len(folds))
    jobs = ((data, how, fold, seed) for fold, seed in zip(folds, seeds, strict=True))
    rows = run_jobs(_one_repeat, jobs, n_jobs=n_jobs, progress=progress, total=len(folds))
    return np.stack([r[0] for r in rows], axis=1), np.stack([r[1] for r in rows]), folds


def _one_repeat(
    data: Outcomes, how: Classifier, fold: np.ndarray, seed: np.random.SeedSequence
) -> tuple[np.ndarray, np.ndarray]:
    predicted = np.zeros((len(how.models), len(fold)), dtype=np.int8)
    selected = np.full((how.n_splits, how.n_features), -1)
    for k, child in enumerate(seed.spawn(how.n_splits)):
        train, rng = fold != k, np.random.default_rng(child)
        if len(np.unique(data.label[train])) < len(np.unique(data.label)):
            raise ValueError(
                f"n_splits={how.n_splits}: a training fold lacks a class, as groups are kept together; "
                "use fewer folds or another group_key"
            )
        X = impute(data.X, train)
        strength = pooled_f(X[train], data.label[train])
        order = np.argsort(-strength, kind="stable")[: how.n_features]
        order = order[strength[order] >= 0]
        selected[k, : len(order)] = order
        none = np.zeros((len(fold), 0))
        clinical = none if data.clinical is None else impute(data.clinical, train)
        image = none if data.image is None else impute(data.image, train)
        varies = np.flatnonzero(X[train].std(0) > 0)
        variables = {
            MODEL: X[:, order],
            CLINICAL: clinical,
            BOTH: np.hstack([clinical, X[:, order]]),
            IMAGE: image,
            RANDOM: X[:, rng.choice(varies, min(how.n_features, len(varies)), replace=False)],
        }
        for m, name in enumerate(how.models):
            predicted[m, ~train] = _fit_predict(variables[name], data.label, train, how.decision, rng)
    return predicted, selected


def _fit_predict(
    values: np.ndarray, label: np.ndarray, train: np.ndarray, decision: str, rng: np.random.Generator
) -> np.ndarray:
    """Support vector machine with a radial kernel on standardised values; γ = 1 / number of values."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    mean, scale = values[train].mean(0), values[train].std(0)
    varies = scale > 0
    if not varies.any():
        codes, count = np.unique(label[train], return_counts=True)
        return np.full(int((~train).sum()), codes[count.argmax()])
    z = (values[:, varies] - mean[varies]) / scale[varies]
    machine = SVC(C=1.0, kernel="rbf", gamma=1 / values.shape[1])
    if decision == "platt":
        machine = CalibratedClassifierCV(machine, method="sigmoid", cv=_inner_folds(label[train], rng), ensemble=False)
    return machine.fit(z[train], label[train]).predict(z[~train])


def _inner_folds(label: np.ndarray, rng: np.random.Generator) -> BaseCrossValidator:
    """Five folds for the calibration, at random as in libsvm; stratified where one could swallow a whole class."""
    from sklearn.model_selection import KFold, StratifiedKFold

    smallest, state = int(np.unique(label, return_counts=True)[1].min()), int(rng.integers(2**31))
    if smallest > -(-len(label) // 5):
        return KFold(5, shuffle=True, random_state=state)
    if smallest < 2:
        raise ValueError("decision='platt': a class has one patient in a training fold; use decision='margin'")
    return StratifiedKFold(min(5, smallest), shuffle=True, random_state=state)


def balanced_accuracy(predicted: np.ndarray, label: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Mean over classes of the share predicted right.

    Parameters
    ----------
    predicted
        (..., n) predicted classes.
    label
        (n,) classes.
    counts
        (B, n) how often each patient counts in each bootstrap sample; None = once.

    Returns
    -------
    (...) or, with counts, (B, ...) balanced accuracies.

    Examples
    --------
    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    array(0.75)
    """
    right = (predicted == label).astype(np.float64)
    weight = np.ones((1, len(label))) if counts is None else counts
    recall = []
    for code in np.unique(label):
        rows = label == code
        total = weight[:, rows].sum(1)
        share = np.tensordot(weight[:, rows], right[..., rows], axes=(1, right.ndim - 1))
        total = total.reshape(-1, *[1] * (right.ndim - 1))
        # a class that a bootstrap sample misses leaves its mean
        recall.append(np.divide(share, total, out=np.full(share.shape, np.nan), where=total > 0))
    out = np.nanmean(recall, axis=0)
    return out if counts is not None else np.asarray(out[0])


def accuracy_of_folds(predicted: np.ndarray, label: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Balanced accuracy (M, R, K) in each test fold, over the classes that are in it."""
    n_models, n_repeats, _ = predicted.shape
    out = np.empty((n_models, n_repeats, int(folds.max()) + 1))
    for r, fold in enumerate(folds):
        for k in range(out.shape[2]):
            out[:, r, k] = balanced_accuracy(predicted[:, r, fold == k], label[fold == k])
    return out


def permuted(
    data: Outcomes, how: Classifier, *, n_permutations: int, n_jobs: int = 1, progress: bool = False
) -> tuple[float, np.ndarray]:
    """Mean balanced accuracy of the model as it is, and with labels dealt to other patients (P,).

    The whole procedure is repeated: folds, selection, fit. Labels are dealt within groups where there are any:
    the null hypothesis is that label and features are independent within each group.
    """
    how = replace(how, models=(MODEL,))
    observed = float(balanced_accuracy(cross_validate(data, how, n_jobs=n_jobs)[0][0], data.label).mean())
    seeds = np.random.SeedSequence([how.seed, 1]).spawn(n_permutations)
    jobs = ((data, how, seed) for seed in seeds)
    return observed, np.array(run_jobs(_one_permutation, jobs, n_jobs=n_jobs, progress=progress, total=n_permutations))


def _one_permutation(data: Outcomes, how: Classifier, seed: np.random.SeedSequence) -> float:
    rng = np.random.default_rng(seed)
    shuffled = replace(data, label=data.label[permute_within(data.groups, len(data.label), rng)])
    try:
        found = cross_validate(shuffled, replace(how, seed=int(rng.integers(2**31))))[0][0]
    except ValueError:  # groups can leave a fold without a class: counted as no smaller than observed
        return np.nan
    return float(balanced_accuracy(found, shuffled.label).mean())
