"""A survival model fitted once on all patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ghistpy.tl._cohort_design import count_missing, warn_of_repeats
from ghistpy.tl._patients import (
    listed,
    need_columns,
    note,
    resolve_patients,
    warn_of_optimism,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.cox import RiskSets
    from ghistpy.cohort_stats.coxfit import CoxFit
    from ghistpy.cohort_stats.endpoint import Endpoint
    from ghistpy.cohort_stats.survival_model import SurvivalModel


def survival_fit(
    adata: AnnData,
    *,
    time_key: str,
    event_key: str,
    event_value: Any = None,
    time_unit: str | None = None,
    patient_key: str | None = None,
    covariates: Sequence[str] = (),
    features: Sequence[str] | None = None,
    kind: str | Sequence[str] | None = None,
    layer: str | None = None,
    n_features: int = 5,
    screen: Literal["score", "wald"] = "score",
    penalty: Literal["none", "ridge", "firth"] = "none",
    ridge: float = 1.0,
) -> SurvivalModel:
    """Fit one Cox model on all patients, to be applied as it is to others.

    Parameters
    ----------
    adata
        Patients × features, clinical columns in ``obs``.
    time_key, event_key, event_value, time_unit, patient_key, kind, layer, screen, penalty, ridge
        As in :func:`ghistpy.tl.survival_cv`.
    covariates
        Clinical columns that enter the model beside the features.
    features
        Features of the model; None = the ``n_features`` with the strongest univariate association.
    n_features
        How many; 0 = the covariates alone.

    Returns
    -------
    SurvivalModel
        With ``.risk``, ``.survival``, ``.save(path)``, ``SurvivalModel.load(path)``; ``.summary`` holds what was
        counted, hazard ratios per standard deviation (``"table"``) and a test of proportional hazards.

    Raises
    ------
    ValueError
        As :func:`ghistpy.tl.survival_cv`.

    Notes
    -----
    Hazard ratios of features that were selected on the same patients are too large, and their p-values too
    small; the model says so in ``summary["warnings"]``. Only other patients tell how good it is.

    Proportional hazards: correlation of scaled Schoenfeld residuals with the rank of time.

    References
    ----------
    Grambsch & Therneau, Biometrika 81:515 (1994), doi 10.1093/biomet/81.3.515.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> rng = numpy.random.default_rng(0)
    >>> X = rng.normal(size=(200, 30))
    >>> obs = pandas.DataFrame({"months": rng.exponential(20 * numpy.exp(-X[:, 4])), "dead": 1})
    >>> obs.loc[obs["months"] > 15, "dead"] = 0
    >>> obs["months"] = obs["months"].clip(0.01, 15)
    >>> adata = anndata.AnnData(X, obs=obs.set_axis([f"P{i}" for i in range(200)]))
    >>> model = gp.tl.survival_fit(adata[:100], time_key="months", event_key="dead", n_features=1)
    >>> model.features
    ('4',)
    >>> others = adata[100:].copy()
    >>> gp.tl.predict_risk(others, model, time_key="months", event_key="dead")
    >>> result = others.uns["ghistpy"]["external_validation"]["summary"].set_index("measure")["value"]
    >>> bool(result["c_index"] > 0.65)
    True
    """
    from ghistpy.cohort_stats.cox import RiskSets
    from ghistpy.cohort_stats.coxfit import Penalty, fit_cox
    from ghistpy.cohort_stats.endpoint import read_endpoint
    from ghistpy.cohort_stats.options import not_negative, one_of, whole_number
    from ghistpy.cohort_stats.survival_cv import SCREENS

    one_of("screen", screen, SCREENS)
    one_of("penalty", penalty, get_args(Penalty))
    not_negative("ridge", ridge)
    whole_number(n_features, "n_features")
    keys = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    patients = resolve_patients(adata, kind=kind, layer=layer, patient_key=patient_key, agree_on=(time_key, event_key))
    notes = patients.notes | {"outcome": [time_key, event_key]}
    warn_of_repeats(adata.obs, patient_key, notes)
    warn_of_optimism(adata, [time_key, event_key], notes)
    endpoint = read_endpoint(
        patients.obs, time_key=time_key, event_key=event_key, event_value=event_value, time_unit=time_unit
    )
    note_endpoint(endpoint, notes)
    X = patients.X[endpoint.rows]
    risk = RiskSets.of(endpoint.time, endpoint.event)
    names = _choose(patients.features, features, X, risk, n_features, screen, notes)
    at = [patients.features.tolist().index(name) for name in names]
    analysed = patients.obs.iloc[endpoint.rows]
    levels = _levels(analysed, keys)
    values = np.hstack([X[:, at], clinical_columns(analysed, keys, levels, notes)])
    if not values.shape[1]:
        raise ValueError("the model has neither features nor covariates")
    _note_missing(analysed, keys, X[:, at], names, notes)
    centre, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    values = np.where(np.isnan(values), centre, values)
    fit = fit_cox(values, risk, penalty=penalty, ridge=ridge)
    _note_fit(fit, endpoint, values.shape[1], notes)
    # rows and patients: whoever comes back under either name is recognised
    in_training = np.isin(patients.row_of, endpoint.rows)
    known = {*patients.names[endpoint.rows].tolist(), *adata.obs_names.astype(str)[in_training]}
    return _lock(fit, values, centre, scale, endpoint, names, keys, levels, known, notes)


def _note_missing(
    obs: pd.DataFrame, keys: Sequence[str], X: np.ndarray, names: tuple[str, ...], notes: dict[str, Any]
) -> None:
    """Count the values of the model's variables that the means of the patients stand in for."""
    count_missing(obs, keys, "covariates", "becomes the mean of these patients", notes)
    missing = {name: int(n) for name, n in zip(names, np.isnan(X).sum(0), strict=True) if n}
    notes["n_missing_values"] = sum(missing.values())
    if missing:
        counts = ", ".join(f"{name!r} for {n}" for name, n in missing.items())
        note(notes, f"features: {counts} of {len(X)} patients is missing, and becomes the mean of these patients")


def note_endpoint(endpoint: Endpoint, notes: dict[str, Any]) -> None:
    """Write down what the follow-up holds, and log what is left out."""
    notes |= {
        "n_analysed": len(endpoint.rows),
        "n_events": endpoint.n_events,
        "event_fraction": endpoint.n_events / len(endpoint.rows),
        "excluded_names": endpoint.excluded,
        "time_unit": endpoint.unit or "not stated",
    }
    for reason, names in endpoint.excluded.items():
        note(notes, f"{len(names)} patients are left out ({reason}): {listed(names)}")
    for message in endpoint.notes:
        note(notes, message)


def _choose(
    there: np.ndarray,
    features: Sequence[str] | None,
    X: np.ndarray,
    risk: RiskSets,
    n_features: int,
    screen: str,
    notes: dict[str, Any],
) -> tuple[str, ...]:
    from ghistpy.cohort_stats.survival_cv import impute, select_features

    if features is not None:
        absent = [name for name in features if name not in set(there)]
        if absent:
            raise ValueError(f"features: {listed(absent)} are not in the table, or do not vary between patients")
        return tuple(str(name) for name in features)
    if n_features > len(there):
        raise ValueError(f"n_features={n_features}: expected between 0 and the {len(there)} features that vary")
    if n_features == 0:
        return ()
    at = select_features(impute(X, np.ones(len(X), dtype=bool)), risk, n_features=n_features, screen=screen)
    notes["n_candidates"] = len(there)
    message = f"{len(at)} of {len(there)} features were selected on these patients: hazard ratios and p-values of them "
    notes.setdefault("warnings", []).append(message + "are optimistic")
    return tuple(there[at].tolist())


def _levels(obs: pd.DataFrame, keys: Sequence[str]) -> dict[str, list[str]]:
    """Levels of the columns that are no numbers, the most frequent first."""
    import pandas as pd

    out = {}
    for key in keys:
        need_columns(obs, {"covariates": key})
        if isinstance(obs[key].dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(obs[key]):
            out[key] = obs[key].dropna().astype(str).value_counts().index.tolist()
    return out


def clinical_columns(
    obs: pd.DataFrame, keys: Sequence[str], levels: dict[str, list[str]], notes: dict[str, Any]
) -> np.ndarray:
    """Clinical columns with the levels of the training patients; a level they had not counts as the reference."""
    parts = [np.zeros((len(obs), 0))]
    for key in keys:
        need_columns(obs, {"covariates": key})
        if key not in levels:
            parts.append(obs[key].to_numpy(dtype=np.float64, na_value=np.nan)[:, None])
            continue
        text = obs[key].astype(object).where(obs[key].notna()).to_numpy()
        unknown = [str(v) for v in text if v is not None and v == v and str(v) not in levels[key]]
        if unknown:
            note(
                notes,
                f"{key!r}: {len(unknown)} patients have levels unknown to the model: {listed(sorted(set(unknown)))}",
            )
        missing = np.array([v is None or v != v for v in text])
        for level in levels[key][1:]:
            parts.append(
                np.where(missing, np.nan, np.array([str(v) == level for v in text], dtype=np.float64))[:, None]
            )
    return np.hstack(parts)


def _note_fit(fit: CoxFit, endpoint: Endpoint, n_variables: int, notes: dict[str, Any]) -> None:
    notes["events_per_variable"] = endpoint.n_events / n_variables
    if notes["events_per_variable"] < 10:
        note(notes, f"{notes['events_per_variable']:.1f} events per variable: below 10 coefficients are unstable")
    if fit.separated.any() or not fit.converged:
        note(
            notes,
            f"{int(fit.separated.sum())} coefficients are above 5 per standard deviation (separation)"
            f"{'' if fit.converged else ', and the fit did not converge'}; use penalty='firth' or 'ridge'",
        )


def _lock(
    fit: CoxFit,
    values: np.ndarray,
    centre: np.ndarray,
    scale: np.ndarray,
    endpoint: Endpoint,
    names: tuple[str, ...],
    covariates: tuple[str, ...],
    levels: dict[str, list[str]],
    patients: set[str],
    notes: dict[str, Any],
) -> SurvivalModel:
    from ghistpy.cohort_stats.coxfit import proportional_hazards
    from ghistpy.cohort_stats.survival_model import SurvivalModel, breslow, hash_of

    risk = (values - centre) @ fit.coef
    when, hazard = breslow(endpoint.time, endpoint.event, risk)
    variables = [*names]
    for key in covariates:
        variables += [f"{key}={level}" for level in levels[key][1:]] if key in levels else [key]
    se = np.sqrt(np.diag(fit.covariance))
    notes["table"] = _table(variables, fit.coef, se, scale)
    changing = proportional_hazards(values, endpoint.time, endpoint.event, fit)
    notes["proportional_hazards"] = {name: float(p) for name, p in zip(variables, changing, strict=True)}
    return SurvivalModel(
        features=names,
        covariates=covariates,
        coef=fit.coef,
        se=se,
        centre=centre,
        scale=scale,
        levels=levels,
        baseline_time=when,
        baseline_hazard=hazard,
        cutoffs=tuple(float(q) for q in np.quantile(risk, [0.25, 0.5, 0.75])),
        time_unit=endpoint.unit,
        patients=frozenset(hash_of(name) for name in patients),
        summary=notes,
    )


def _table(variables: list[str], coef: np.ndarray, se: np.ndarray, scale: np.ndarray) -> list[dict[str, Any]]:
    from scipy import stats

    per_sd, error = coef * scale, se * scale
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.norm.sf(np.abs(per_sd / error))
    half = stats.norm.ppf(0.975) * error
    columns = (variables, np.exp(per_sd), np.exp(per_sd - half), np.exp(per_sd + half), p)
    keys = ("variable", "hazard_ratio_per_sd", "ci_low", "ci_high", "pval")
    return [dict(zip(keys, (row[0], *map(float, row[1:])), strict=True)) for row in zip(*columns, strict=True)]
