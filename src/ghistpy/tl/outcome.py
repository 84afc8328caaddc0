"""Classes of patients predicted from their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghistpy import _keys
from ghistpy.tl._cohort_design import (
    BECOMES,
    count_missing,
    image_matrix,
    note_folds,
    null_of_permutations,
    split_image_keys,
    warn_of_repeats,
)
from ghistpy.tl._origin import MANY_GROUPS, warn_of_circularity
from ghistpy.tl._patients import (
    check_table,
    encode_covariates,
    listed,
    need_columns,
    note,
    read_groups,
    resolve_patients,
    store,
    warn_of_optimism,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.outcome import Classifier, Outcomes


def predict_outcome(
    adata: AnnData,
    *,
    outcome: str,
    kind: str | Sequence[str] | None = None,
    layer: str | None = None,
    patient_key: str | None = None,
    group_key: str | None = None,
    covariates: Sequence[str] = (),
    image_keys: Sequence[str] = (),
    n_features: int = 20,
    decision: Literal["margin", "platt"] = "margin",
    n_splits: int = 3,
    n_repeats: int = 100,
    n_bootstraps: int = 200,
    n_permutations: int = 0,
    permutation_repeats: int | None = None,
    n_jobs: int = 1,
    seed: int = 0,
    key_added: str = _keys.OUTCOME,
    progress: bool = True,
) -> None:
    """Cross-validate a classifier of patients with features selected inside the folds.

    In each training fold: the ``n_features`` with the largest pooled-variance t (F for more than two classes),
    standardised; a support vector machine with radial kernel, C = 1, γ = 1 / number of selected features.

    Parameters
    ----------
    adata
        Patients × features; written to.
    outcome
        Column of ``obs`` with the class; patients without are left out and counted.
    kind, layer, patient_key, group_key, covariates, image_keys
        As in :func:`ghistpy.tl.survival_cv`. Baselines stand beside the model: ``"random"`` (as many features drawn
        in each fold), ``"clinical"``, ``"clinical+model"`` and ``"image"`` where columns are given.
    n_features
        Features of the model, at most as many as vary.
    decision
        Class by the sign of the ``"margin"``, or by calibrated probabilities (``"platt"``, published: it drifts
        to the larger class where features say little).
    n_splits, n_repeats
        Folds stratified by class, dealt ``n_repeats`` times.
    n_bootstraps
        Bootstrap samples of patients for the 95 % intervals.
    n_permutations, permutation_repeats
        Repeat the whole procedure under permuted labels so many times, with so many repeats each (None = at
        most 10). 0 = no p-value.
    n_jobs, seed, progress
        As in :func:`ghistpy.tl.survival_cv`.
    key_added
        Name of the result in ``uns["ghistpy"]``.

    Raises
    ------
    ValueError
        One class only, a class with fewer patients than folds, unknown columns, no feature that varies.

    Notes
    -----
    Written: ``uns["ghistpy"]["outcome"]`` with frames ``summary`` (model, balanced_accuracy, ci_low, ci_high,
    sd_over_repeats, pval), ``accuracy`` (model, repeat, balanced_accuracy over the pooled folds), ``differences``,
    ``selected``, ``predictions``. Intervals are of the accuracy that the procedure has on average in cohorts of
    this size, as in :func:`ghistpy.tl.survival_cv`; in simulated populations they covered it in
    98 to 100 % of cohorts. The spread over repeats is not an interval. Chance is 1 / number of classes.

    An outcome that :func:`ghistpy.tl.cluster_patients` made of the same features, under its name or another, or
    that is a group of their risk, is predicted by construction: this is detected and warned of, and
    ``notes["descriptive"]`` is true.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> rng = numpy.random.default_rng(0)
    >>> label = numpy.repeat(["a", "b"], 25)
    >>> X = rng.normal(size=(50, 60))
    >>> X[:, 0] += 2.5 * (label == "b")
    >>> adata = anndata.AnnData(X, obs=pandas.DataFrame({"arm": label}, index=[f"P{i}" for i in range(50)]))
    >>> gp.tl.predict_outcome(adata, outcome="arm", n_features=3, n_repeats=5, progress=False)
    >>> accuracy = gp.get.outcome(adata).set_index("model")["balanced_accuracy"]
    >>> bool(accuracy["model"] > 0.75), bool(accuracy["random"] < 0.75)
    (True, True)
    """
    from ghistpy.cohort_stats.options import check_resampling
    from ghistpy.cohort_stats.outcome import Classifier, Outcomes, cross_validate

    check_table(adata)
    how = Classifier(n_features, decision, ("model",), n_splits, n_repeats, seed)
    check_resampling(
        n_bootstraps=n_bootstraps,
        n_permutations=n_permutations,
        permutation_repeats=permutation_repeats,
        n_jobs=n_jobs,
    )
    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    kinds_of_image, columns_of_image = split_image_keys(adata, image_keys)
    patients = resolve_patients(
        adata,
        kind=kind,
        layer=layer,
        patient_key=patient_key,
        agree_on=(outcome, group_key),
        without=kinds_of_image,
    )
    notes = patients.notes | {"outcome": [outcome], "decision": decision}
    need_columns(patients.obs, {"outcome": outcome})
    warn_of_repeats(adata.obs, patient_key, notes)
    warn_of_optimism(adata, [outcome], notes)
    consequence = "predicting it from them is circular and says nothing"
    warn_of_circularity(adata, "outcome", outcome, patients.features, notes, consequence)
    rows, label, classes = _labels(patients.obs, outcome, notes)
    groups = read_groups(patients.obs.iloc[rows], group_key, notes)
    clinical, notes["covariates"] = encode_covariates(patients.obs, covariates)
    image = image_matrix(adata, patients, kinds_of_image, columns_of_image, layer)
    count_missing(patients.obs.iloc[rows], covariates, "covariates", BECOMES, notes)
    count_missing(patients.obs.iloc[rows], columns_of_image, "image_keys", BECOMES, notes)
    models = ("model", *(("clinical", "clinical+model") if clinical.shape[1] else ()))
    models += (*(("image",) if image.shape[1] else ()), "random")
    how = replace(how, n_features=min(n_features, len(patients.features)), models=models)
    data = Outcomes(patients.X[rows], label, clinical[rows], image[rows], groups)
    predicted, selected, folds = cross_validate(data, how, n_jobs=n_jobs, progress=progress)
    note_folds(folds, groups, notes)
    frames = _frames(predicted, selected, folds, data, how, patients.features, n_bootstraps)
    frames["predictions"] = _predictions(predicted[0], patients.names[rows], label, classes)
    if n_permutations:
        null_of_permutations(groups, notes)
        _add_permutations(frames["summary"], data, how, n_permutations, permutation_repeats, n_jobs, progress)
    notes["n_missing_values"] = int(np.isnan(data.X).sum())
    notes |= {"n_analysed": len(rows), "n_per_class": dict(zip(classes, np.bincount(label).tolist(), strict=True))}
    store(adata, key_added, frames, notes)


def _labels(obs: pd.DataFrame, outcome: str, notes: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    import pandas as pd

    rows = np.flatnonzero(obs[outcome].notna().to_numpy())
    if len(rows) < len(obs):
        missing = obs.index[obs[outcome].isna()]
        note(notes, f"{len(missing)} patients have no {outcome!r} and are left out: {listed(missing)}")
    label, classes = pd.factorize(obs[outcome].iloc[rows].astype(str), sort=True)
    if len(classes) < 2:
        raise ValueError(f"outcome={outcome!r} has one class only: {list(classes)}")
    if len(classes) > MANY_GROUPS:
        raise ValueError(f"outcome={outcome!r} has {len(classes)} values; it must be a class, not a number or a name")
    return rows, label, [str(name) for name in classes]


def _frames(
    predicted: np.ndarray,
    selected: np.ndarray,
    folds: np.ndarray,
    data: Outcomes,
    how: Classifier,
    features: np.ndarray,
    n_bootstraps: int,
) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from ghistpy.cohort_stats.concordance import bootstrap_counts
    from ghistpy.cohort_stats.intervals import cross_validated_interval
    from ghistpy.cohort_stats.outcome import accuracy_of_folds, balanced_accuracy

    accuracy = balanced_accuracy(predicted, data.label)  # (M, R)
    counts = bootstrap_counts(len(data.label), n_bootstraps, how.seed)
    samples = balanced_accuracy(predicted, data.label, counts).mean(2)  # (B, M)
    per_fold = accuracy_of_folds(predicted, data.label, folds)
    low, high = cross_validated_interval(accuracy.mean(1), per_fold, folds, samples.T)
    n_models, n_repeats = accuracy.shape
    summary = pd.DataFrame(
        {
            "model": list(how.models),
            "balanced_accuracy": accuracy.mean(1),
            "median": np.median(accuracy, axis=1),
            "ci_low": np.maximum(low, 0.0),
            "ci_high": np.minimum(high, 1.0),
            "sd_over_repeats": accuracy.std(1, ddof=1) if n_repeats > 1 else np.zeros(n_models),
            "pval": np.full(n_models, np.nan),
        }
    )
    long = pd.DataFrame(
        {
            "model": np.repeat(np.array(how.models, dtype=object), n_repeats),
            "repeat": np.tile(np.arange(n_repeats), n_models),
            "balanced_accuracy": accuracy.ravel(),
        }
    )
    pairs = [(name, 0, m) for m, name in enumerate(how.models) if name not in ("model", "clinical+model")]
    if "clinical" in how.models:
        pairs.append(("clinical", how.models.index("clinical+model"), how.models.index("clinical")))
    rows = []
    for name, a, b in pairs:
        difference = accuracy[[a]].mean(1) - accuracy[[b]].mean(1)
        low, high = cross_validated_interval(
            difference, per_fold[[a]] - per_fold[[b]], folds, (samples[:, [a]] - samples[:, [b]]).T
        )
        rows.append((how.models[a], name, difference[0], low[0], high[0]))
    differences = pd.DataFrame(rows, columns=["model", "baseline", "difference", "ci_low", "ci_high"])
    chosen, count = np.unique(selected[selected >= 0], return_counts=True)
    often = pd.DataFrame(
        {"feature": features[chosen], "n_selected": count, "frequency": count / (selected.shape[0] * selected.shape[1])}
    ).sort_values(["n_selected", "feature"], ascending=[False, True], ignore_index=True)
    return {"summary": summary, "accuracy": long, "differences": differences, "selected": often}


def _predictions(predicted: np.ndarray, names: np.ndarray, label: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Share of the repeats that predict each class for each patient."""
    import pandas as pd

    share = np.stack([(predicted == k).mean(0) for k in range(len(classes))], axis=1)
    return pd.DataFrame(
        {
            "patient": np.repeat(names.astype(object), len(classes)),
            "outcome": np.repeat(np.array(classes, dtype=object)[label], len(classes)),
            "predicted": np.tile(np.array(classes, dtype=object), len(names)),
            "share": share.ravel(),
        }
    )


def _add_permutations(
    summary: pd.DataFrame,
    data: Outcomes,
    how: Classifier,
    n_permutations: int,
    permutation_repeats: int | None,
    n_jobs: int,
    progress: bool,
) -> None:
    from ghistpy.cohort_stats.outcome import permuted

    repeats = min(how.n_repeats, 10) if permutation_repeats is None else permutation_repeats
    observed, null = permuted(
        data, replace(how, n_repeats=repeats), n_permutations=n_permutations, n_jobs=n_jobs, progress=progress
    )
    summary.loc[0, "pval"] = (1 + np.sum(~(null < observed))) / (1 + n_permutations)
