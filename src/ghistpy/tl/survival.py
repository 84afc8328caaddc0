"""Survival of patients, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghistpy import _keys
from ghistpy.tl._cohort_design import (
    BECOMES,
    count_missing,
    hash_of_followup,
    image_matrix,
    note_folds,
    null_of_permutations,
    split_image_keys,
    warn_of_repeats,
)
from ghistpy.tl._origin import CROSS_VALIDATED, record_origin
from ghistpy.tl._patients import (
    Patients,
    check_table,
    encode_covariates,
    listed,
    note,
    read_groups,
    resolve_patients,
    store,
    warn_of_optimism,
)
from ghistpy.tl._survival_frames import permutation_frame, survival_frames

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.endpoint import Endpoint
    from ghistpy.cohort_stats.survival_cv import CrossValidation, Design, Procedure


def survival_cv(
    adata: AnnData,
    *,
    time_key: str,
    event_key: str,
    event_value: Any = None,
    time_unit: str | None = None,
    patient_key: str | None = None,
    group_key: str | None = None,
    covariates: Sequence[str] = (),
    image_keys: Sequence[str] = (),
    kind: str | Sequence[str] | None = None,
    layer: str | None = None,
    n_features: int = 5,
    screen: Literal["score", "wald"] = "score",
    penalty: Literal["none", "ridge", "firth"] = "none",
    ridge: float = 1.0,
    baselines: Sequence[str] = ("clinical", "image", "random"),
    n_splits: int = 3,
    n_repeats: int = 100,
    risk_scale: Literal["rank", "centre", "none"] = "rank",
    tau: float | None = None,
    n_bootstraps: int = 200,
    n_permutations: int = 0,
    permutation_repeats: int | None = None,
    n_jobs: int = 1,
    seed: int = 0,
    key_added: str = _keys.SURVIVAL,
    risk_key: str = _keys.RISK,
    progress: bool = True,
) -> None:
    """Cross-validate a Cox model of a few features that are selected inside the folds.

    In each training fold: univariate Cox models of all features, the ``n_features`` strongest, one Cox model
    of these; its linear predictor is tested on the other fold. Baselines are fitted in the same folds.

    Parameters
    ----------
    adata
        Patients × features, clinical columns in ``obs``; written to.
    time_key, event_key
        Columns of ``obs`` with the follow-up and the event. Patients without either, and those never
        followed (time 0), are left out and counted.
    event_value
        Value of ``event_key`` that means an event; needed unless the column is boolean or 0/1.
    time_unit
        ``"days"``, ``"weeks"``, ``"months"``, ``"years"``, or a column with the unit of each patient (several
        units are refused). None = from the name of ``time_key``, with a check for mixed units.
    patient_key
        Column with the patient of each row; rows of one patient are averaged, so that no patient is in
        training and test and no event counts twice. None = every row is a patient.
    group_key
        Column whose groups, such as hospitals, share a fold: otherwise the stain of the hospital is learnt.
        Permutations stay within groups. Few groups can be divided in few ways: how many is in the notes.
    covariates
        Clinical columns: the baseline ``"clinical"``, and ``"clinical+model"`` beside it. Numbers as they
        are, categories as indicators, always with a ridge; what is missing is counted. A level that only
        occurs in test folds has no effect: a site as covariate says nothing when folds are by site.
    image_keys
        What the image gives without expression, such as density, morphology, stain: columns of ``obs`` or
        kinds of features (which are then no candidates): the baseline ``"image"``.
    kind, layer
        Kind or kinds of features (``var["kind"]``), layer; None = all, ``X``.
    n_features
        Features of the model.
    screen
        ``"score"``, or ``"wald"`` (published; its p-value rises again for very strong effects).
    penalty, ridge
        Of the model: none, a ridge (per standard deviation), or Firth's correction.
    baselines
        Of ``"clinical"``, ``"image"``, ``"random"`` (as many features, drawn in each fold) and ``"coxnet"``
        (elastic net with as many features); those without columns are left out.
    n_splits, n_repeats
        Folds stratified by event, dealt ``n_repeats`` times.
    risk_scale
        Models of different folds are not on one scale: linear predictors are ranked (``"rank"``) or
        centred in each fold before the median over repeats; ``"none"`` takes them as they are.
    tau
        Uno's index counts events before it; None = the time that a tenth of the patients is followed to.
    n_bootstraps
        Bootstrap samples of patients for the 95 % intervals.
    n_permutations
        Repeat the whole procedure under permuted outcomes so many times. 0 = no p-value. The null hypothesis is
        that features and outcome are independent; with ``group_key`` that they are within each group.
    permutation_repeats
        Repeats in each permutation and in the statistic compared with them; None = at most 10.
    n_jobs
        Processes; the result does not depend on it.
    seed
        Of folds, random features, bootstrap and permutations.
    key_added, risk_key
        Names of the result in ``uns["ghistpy"]`` and of the risk in ``obs``.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        Unknown options, ambiguous coding of events, negative times, mixed units, no events or only events, fewer
        than one event in a test fold, unknown columns, patients that are in the table twice, no feature that
        varies.

    Notes
    -----
    Written:

    ================= ============== ====== ============================================================
    key               slot           dtype  meaning
    ================= ============== ====== ============================================================
    ``risk``          obs            f8     median over repeats of the test-fold risk, NaN if left out
    ``survival``      uns["ghistpy"] dict   frames ``summary``, ``c_index``, ``selected``, ``permutation``,
                                            ``differences``; ``folds``; notes. See :func:`ghistpy.get.survival`
    ================= ============== ====== ============================================================

    C-indices (Harrell, ties ½; Uno) are of test folds, never across folds. Intervals are of the C-index (or
    difference) that the procedure has on average in cohorts of this size: Nadeau and Bengio's variance, or that
    of a bootstrap of patients where it is larger. In simulated populations they covered it in 91 to 98 % of
    cohorts, differences in 93 to 99 % (the bootstrap alone, which holds the fitted models fixed, in 73 to 96 %). The
    spread over repeats is not a confidence interval.

    **A log-rank between groups of cross-validated risk is not a test**: without any association it rejects
    in 12 to 15 % of cohorts at 5 %. The p-values here repeat everything on permuted outcomes, one-sided.

    Cost O(repeats · splits · n · p), times ``1 + n_permutations · permutation_repeats / repeats``.

    References
    ----------
    Harrell et al., Stat Med 15:361 (1996), doi 10.1002/(SICI)1097-0258(19960229)15:4<361::AID-SIM168>3.0.CO;2-4;
    Uno et al., Stat Med 30:1105 (2011), doi 10.1002/sim.4154;
    Nadeau & Bengio, Mach Learn 52:239 (2003), doi 10.1023/A:1024068626366;
    Simon et al., Brief Bioinform 12:203 (2011), doi 10.1093/bib/bbr001.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> rng = numpy.random.default_rng(0)
    >>> X = rng.normal(size=(150, 40))
    >>> months = rng.exponential(30 * numpy.exp(-1.2 * X[:, 3])).clip(0.1)
    >>> obs = pandas.DataFrame(
    ...     {"months": months.clip(max=40), "dead": months < 40, "age": rng.normal(60, 9, 150)},
    ...     index=[f"P{i}" for i in range(150)],
    ... )
    >>> adata = anndata.AnnData(X, obs=obs)
    >>> gp.tl.survival_cv(
    ...     adata, time_key="months", event_key="dead", covariates=["age"], n_features=2, n_repeats=5, progress=False
    ... )
    >>> frame = gp.get.survival(adata).set_index("model")
    >>> bool(frame.loc["model", "c_index"] > 0.7), bool(frame.loc["clinical", "c_index"] < 0.6)
    (True, True)
    >>> gp.get.survival(adata, part="selected")["feature"].iloc[0]
    '3'
    """
    from ghistpy.cohort_stats.concordance import default_tau
    from ghistpy.cohort_stats.endpoint import read_endpoint
    from ghistpy.cohort_stats.options import check_resampling, not_negative
    from ghistpy.cohort_stats.survival_cv import Procedure, cross_validate

    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    check_table(adata)
    how = Procedure(n_features, screen, penalty, ridge, ("model",), n_splits, n_repeats, seed, risk_scale)
    check_resampling(
        n_bootstraps=n_bootstraps,
        n_permutations=n_permutations,
        permutation_repeats=permutation_repeats,
        n_jobs=n_jobs,
    )
    if tau is not None:
        not_negative("tau", tau, zero=False)
    kinds_of_image, columns_of_image = split_image_keys(adata, image_keys)
    patients = resolve_patients(
        adata,
        kind=kind,
        layer=layer,
        patient_key=patient_key,
        agree_on=(time_key, event_key, group_key),
        without=kinds_of_image,
    )
    notes = patients.notes | {"outcome": [time_key, event_key]}
    warn_of_repeats(adata.obs, patient_key, notes)
    warn_of_optimism(adata, [time_key, event_key], notes)
    endpoint = read_endpoint(
        patients.obs, time_key=time_key, event_key=event_key, event_value=event_value, time_unit=time_unit
    )
    groups = read_groups(patients.obs.iloc[endpoint.rows], group_key, notes)
    clinical, clinical_names = encode_covariates(patients.obs, covariates)
    image = image_matrix(adata, patients, kinds_of_image, columns_of_image, layer)
    analysed = patients.obs.iloc[endpoint.rows]
    count_missing(analysed, covariates, "covariates", BECOMES, notes)
    count_missing(analysed, columns_of_image, "image_keys", BECOMES, notes)
    models = _models(baselines, clinical.shape[1], image.shape[1], notes)
    design = _design(patients, endpoint, clinical, image, groups)
    how = replace(how, models=models)
    tau = default_tau(design.time) if tau is None else float(tau)
    _describe(notes, patients, endpoint, design, how, tau, group_key, clinical_names)
    found = cross_validate(design, how, tau=tau, n_jobs=n_jobs, progress=progress)
    in_test = [int(design.event[fold == k].sum()) for fold in found.folds for k in range(n_splits)]
    notes["events_in_test_folds"] = [min(in_test), max(in_test)]
    note_folds(found.folds, groups, notes)
    _flag_fits(found, notes)
    frames = survival_frames(found, design, patients.features, n_bootstraps, seed)
    if n_permutations:
        from ghistpy.cohort_stats.permutation import permute

        repeats = min(n_repeats, 10) if permutation_repeats is None else permutation_repeats
        null_of_permutations(groups, notes)
        tested = permute(
            design, replace(how, n_repeats=repeats), n_permutations=n_permutations, n_jobs=n_jobs, progress=progress
        )
        frames["permutation"] = permutation_frame(tested)
    _write(adata, patients, endpoint, found, frames, notes, how, key_added, risk_key)


def _models(baselines: Sequence[str], n_clinical: int, n_image: int, notes: dict[str, Any]) -> tuple[str, ...]:
    known = ("clinical", "image", "random", "coxnet")
    unknown = [name for name in baselines if name not in known]
    if unknown:
        raise ValueError(f"baselines: {unknown} are unknown; there are {list(known)}")
    out = ["model"]
    for name in baselines:
        if name == "clinical" and n_clinical:
            out += ["clinical", "clinical+model"]
        elif name == "clinical":
            notes["baseline_clinical"] = "absent: no covariates= were given"
        elif name == "image" and not n_image:
            notes["baseline_image"] = "absent: no image_keys= were given"
        else:
            out.append(name)
    return tuple(out)


def _design(
    patients: Patients, endpoint: Endpoint, clinical: np.ndarray, image: np.ndarray, groups: np.ndarray | None
) -> Design:
    from ghistpy.cohort_stats.survival_cv import Design

    rows = endpoint.rows
    return Design(patients.X[rows], endpoint.time, endpoint.event, clinical[rows], image[rows], groups)


def _describe(
    notes: dict[str, Any],
    patients: Patients,
    endpoint: Endpoint,
    design: Design,
    how: Procedure,
    tau: float,
    group_key: str | None,
    clinical_names: list[str],
) -> None:
    """Counts that every reader of a survival analysis asks for first."""
    n, events, p = len(design.time), endpoint.n_events, design.X.shape[1]
    if how.n_features > p:
        raise ValueError(f"n_features={how.n_features}: expected between 1 and the {p} features that vary")
    in_training = events * (how.n_splits - 1) / how.n_splits
    notes |= {
        "n_analysed": n,
        "analysed": hash_of_followup(patients.names, endpoint),
        "n_events": events,
        "event_fraction": events / n,
        "excluded": {reason: len(names) for reason, names in endpoint.excluded.items()},
        "excluded_names": endpoint.excluded,
        "time_unit": endpoint.unit or "not stated",
        "n_missing_values": int(np.isnan(design.X).sum()),  # set to medians of the training folds
        "events_per_candidate": events / p,
        "events_per_selected_in_training": in_training / how.n_features,
        "group_key": group_key or "",
        "n_groups": 0 if design.groups is None else len(np.unique(design.groups)),
        "covariates": clinical_names,
        "tau": tau,
        "procedure": asdict(how),
    }
    for reason, names in endpoint.excluded.items():
        note(notes, f"{len(names)} patients are left out ({reason}): {listed(names)}")
    for message in endpoint.notes:
        note(notes, message)
    if in_training / how.n_features < 10:
        note(
            notes,
            f"{in_training / how.n_features:.1f} events per variable in a training fold ({events} events, "
            f"{how.n_features} variables): below 10 coefficients are unstable; use fewer features or a penalty",
        )
    if p > events:
        notes["more_features_than_events"] = f"{p} candidate features, {events} events"


def _flag_fits(found: CrossValidation, notes: dict[str, Any]) -> None:
    for m, name in enumerate(found.models):
        separated, failed = int(found.separated[m].sum()), int(found.failed[m].sum())
        if separated or failed:
            note(
                notes,
                f"{name}: of {found.separated[m].size} fits {separated} have a coefficient above 5 per standard "
                f"deviation (separation) and {failed} did not converge; penalty='firth' or 'ridge' helps",
            )


def _write(
    adata: AnnData,
    patients: Patients,
    endpoint: Endpoint,
    found: CrossValidation,
    frames: dict[str, pd.DataFrame],
    notes: dict[str, Any],
    how: Procedure,
    key_added: str,
    risk_key: str,
) -> None:
    from ghistpy.cohort_stats.survival_cv import combine_risk

    risk = combine_risk(found.score[0], found.folds, scale=how.risk_scale)
    adata.obs[risk_key] = patients.to_rows(risk, endpoint.rows)
    record_origin(adata, risk_key, {"origin": CROSS_VALIDATED, "result": key_added, "outcome": notes["outcome"]})
    folds = np.full((found.folds.shape[0], len(patients.names)), -1, dtype=np.int8)
    folds[:, endpoint.rows] = found.folds
    # one column per row of the table; -1 = left out
    store(adata, key_added, {**frames, "folds": folds[:, patients.row_of]}, notes)
