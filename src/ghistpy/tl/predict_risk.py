"""A locked survival model applied to patients, and tested on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._cohort_design import count_missing, warn_of_repeats
from ghistpy.tl._origin import EXTERNAL, TRAINING, record_origin
from ghistpy.tl._patients import check_table, combine_rows, listed, matrix, note, store
from ghistpy.tl.survival_model import clinical_columns, note_endpoint

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.endpoint import Endpoint
    from ghistpy.cohort_stats.survival_model import SurvivalModel


def predict_risk(
    adata: AnnData,
    model: SurvivalModel,
    *,
    time_key: str | None = None,
    event_key: str | None = None,
    event_value: Any = None,
    time_unit: str | None = None,
    patient_key: str | None = None,
    times: Sequence[float] | None = None,
    layer: str | None = None,
    n_bootstraps: int = 200,
    seed: int = 0,
    key_added: str = _keys.EXTERNAL,
    risk_key: str = _keys.RISK,
) -> None:
    """Apply a locked model to patients, and test it when their follow-up is given.

    Parameters
    ----------
    adata
        Patients × features in the units of the training patients; written to.
    model
        From :func:`ghistpy.tl.survival_fit`.
    time_key, event_key, event_value, time_unit
        Follow-up of these patients, as in :func:`ghistpy.tl.survival_cv`. None = predict only.
    patient_key
        Column with the patient of each row; rows of one patient are averaged, and count once. None = every row is
        a patient.
    times
        Times for AUC and Brier score; None = the quartiles of the event times.
    layer
        Layer with the features; None = ``X``.
    n_bootstraps, seed
        Bootstrap samples of patients for the interval of the C-index, with the model as it is.
    key_added, risk_key
        Names of the result in ``uns["ghistpy"]`` and of the column of ``obs``.

    Raises
    ------
    ValueError
        Features of the model are missing (all are named), the follow-up is in another unit, or only one of
        ``time_key`` and ``event_key`` is given. Nothing is written then.

    Notes
    -----
    Written: ``obs["risk"]`` (f8, log hazard against the mean training patient) and, with follow-up, frames
    ``summary`` (measure, value, ci_low, ci_high: C-index, Uno's index, integrated Brier score, calibration
    slope) and ``times`` (time, auc, brier, brier_null) in ``uns["ghistpy"]["external_validation"]``.

    The interval of the C-index is of a bootstrap of these patients with the model held fixed: what this model is
    worth for patients like these. It covered that in 95 % of 400 simulated cohorts of 100 patients.

    A missing value becomes the training mean, and is counted. Patients that the model was fitted on are
    recognised by their names and by those of their rows: then nothing here is a validation, and it says so.
    Whoever renames both is not recognised.

    References
    ----------
    Graf et al., Stat Med 18:2529 (1999), doi 10.1002/(SICI)1097-0258(19990915/30)18:17/18<2529::AID-SIM274>3.0.CO;2-5.

    Examples
    --------
    See :func:`ghistpy.tl.survival_fit`.
    """
    from ghistpy.cohort_stats.options import check_resampling

    check_table(adata)
    check_resampling(n_bootstraps=n_bootstraps)
    if (time_key is None) != (event_key is None):
        raise ValueError(f"time_key={time_key!r}, event_key={event_key!r}: give both for a validation, or neither")
    absent = [name for name in model.features if name not in adata.var_names]
    if absent:
        raise ValueError(f"adata lacks {len(absent)} of {len(model.features)} features of the model: {listed(absent)}")
    notes: dict[str, Any] = {"n_vars": adata.n_vars}
    X = matrix(adata, adata.var_names.get_indexer(list(model.features)), layer)
    names, row_of, obs, X = adata.obs_names.astype(str).to_numpy(), np.arange(adata.n_obs), adata.obs, X
    if patient_key is not None:
        agree_on = [key for key in (time_key, event_key) if key]
        names, row_of, obs, X = combine_rows(adata, patient_key, agree_on, X, notes)
    warn_of_repeats(obs, patient_key, notes)
    count_missing(obs, model.covariates, "covariates", "becomes the mean of the training patients", notes)
    values = np.hstack([X, clinical_columns(obs, model.covariates, model.levels, notes)])
    notes["n_missing_values"] = int(np.isnan(values).sum())
    if notes["n_missing_values"]:
        note(notes, f"{notes['n_missing_values']} missing values are set to the means of the training patients")
    risk = model.risk(values)
    known = _count_known(model, adata.obs_names.astype(str).to_numpy(), names, row_of)
    notes |= {"n_patients": len(names), "n_in_training": known, "descriptive": bool(known)}
    if known:
        note(notes, f"the model was fitted on {known} of these {len(names)} patients: this is no validation")
    frames = None
    if time_key is not None and event_key is not None:
        follow_up = {"time_key": time_key, "event_key": event_key, "event_value": event_value, "time_unit": time_unit}
        endpoint = _read_follow_up(obs, model, follow_up, notes)
        frames = _validate(model, endpoint, risk[endpoint.rows], times, n_bootstraps, seed, notes)
    adata.obs[risk_key] = risk[row_of]
    record_origin(adata, risk_key, {"origin": TRAINING if known else EXTERNAL, "outcome": [time_key, event_key]})
    if frames is not None:
        store(adata, key_added, frames, notes)


def _count_known(model: SurvivalModel, rows: np.ndarray, names: np.ndarray, row_of: np.ndarray) -> int:
    """Patients of whom the model knows the name, or that of a row."""
    from ghistpy.cohort_stats.survival_model import hash_of

    known = np.array([hash_of(name) in model.patients for name in names])
    known[row_of[[hash_of(name) in model.patients for name in rows]]] = True
    return int(known.sum())


def _read_follow_up(
    obs: pd.DataFrame, model: SurvivalModel, follow_up: dict[str, Any], notes: dict[str, Any]
) -> Endpoint:
    from ghistpy.cohort_stats.endpoint import read_endpoint

    endpoint = read_endpoint(obs, **follow_up)
    if model.time_unit and endpoint.unit and endpoint.unit != model.time_unit:
        raise ValueError(
            f"time_key={follow_up['time_key']!r} is in {endpoint.unit}, the model was fitted in {model.time_unit}: "
            "convert it"
        )
    note_endpoint(endpoint, notes)
    return endpoint


def _validate(
    model: SurvivalModel,
    endpoint: Endpoint,
    risk: np.ndarray,
    times: Sequence[float] | None,
    n_bootstraps: int,
    seed: int,
    notes: dict[str, Any],
) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from ghistpy.cohort_stats.concordance import Censoring, Pairs, bootstrap_counts, default_tau
    from ghistpy.cohort_stats.cox import RiskSets
    from ghistpy.cohort_stats.coxfit import fit_cox

    time, event = endpoint.time, endpoint.event
    pairs = Pairs.of(time, event)
    samples = pairs.resampled(risk, bootstrap_counts(len(time), n_bootstraps, seed))
    low, high = np.nanquantile(samples, [0.025, 0.975])
    tau = default_tau(time)
    uno = Pairs.of(time, event, tau=tau, censoring=Censoring.of(time, event)).index(risk)
    slope = fit_cox(risk[:, None], RiskSets.of(time, event))
    half = 1.959964 * np.sqrt(slope.covariance[0, 0])
    rows = [
        ("c_index", pairs.index(risk), low, high),
        ("uno", uno, np.nan, np.nan),
        ("calibration_slope", slope.coef[0], slope.coef[0] - half, slope.coef[0] + half),
    ]
    notes["tau"] = tau
    at = _evaluation_times(endpoint, times)
    by_time = pd.DataFrame({"time": at})
    if len(at):
        by_time, integrated = _over_time(model, endpoint, risk, at)
        rows.append(("integrated_brier_score", integrated, np.nan, np.nan))
    return {"summary": pd.DataFrame(rows, columns=["measure", "value", "ci_low", "ci_high"]), "times": by_time}


def _evaluation_times(endpoint: Endpoint, times: Sequence[float] | None) -> np.ndarray:
    """Times strictly inside the follow-up, as scikit-survival asks for."""
    events = endpoint.time[endpoint.event]
    at = np.unique(np.quantile(events, [0.25, 0.5, 0.75]) if times is None else np.asarray(times, dtype=np.float64))
    inside = (at > endpoint.time.min()) & (at < endpoint.time.max())
    if times is not None and not inside.all():
        raise ValueError(
            f"times={at[~inside].tolist()}: expected between {endpoint.time.min():g} and {endpoint.time.max():g}, "
            "the follow-up of these patients"
        )
    return at[inside]


def _over_time(
    model: SurvivalModel, endpoint: Endpoint, risk: np.ndarray, at: np.ndarray
) -> tuple[pd.DataFrame, float]:
    import pandas as pd
    from sksurv.metrics import brier_score, cumulative_dynamic_auc, integrated_brier_score
    from sksurv.nonparametric import kaplan_meier_estimator
    from sksurv.util import Surv

    y = Surv.from_arrays(endpoint.event, endpoint.time)
    auc = cumulative_dynamic_auc(y, y, risk, at)[0]
    survival = model.survival(risk, at)
    when, probability = kaplan_meier_estimator(endpoint.event, endpoint.time)
    step = np.searchsorted(when, at, side="right") - 1
    null = np.tile(np.where(step >= 0, probability[np.maximum(step, 0)], 1.0), (len(risk), 1))
    frame = pd.DataFrame(
        {
            "time": at,
            "auc": auc,
            "brier": brier_score(y, y, survival, at)[1],
            "brier_null": brier_score(y, y, null, at)[1],
        }
    )
    integrated = float(integrated_brier_score(y, y, survival, at)) if len(at) > 1 else np.nan
    return frame, integrated
