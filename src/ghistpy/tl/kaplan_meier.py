"""Groups of patients by risk, and their survival."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghistpy import _keys
from ghistpy.tl._cohort_design import hash_of_followup, warn_of_repeats
from ghistpy.tl._origin import (
    CROSS_VALIDATED,
    DESCRIPTIVE,
    HIGH,
    LOW,
    group_names,
    origin_of,
    record_origin,
    trace_groups,
)
from ghistpy.tl._patients import check_table, listed, need_columns, note, read_notes, store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.endpoint import Endpoint
    from ghistpy.cohort_stats.survival_model import SurvivalModel


def stratify_risk(
    adata: AnnData,
    *,
    method: Literal["median", "quartiles"] = "median",
    risk_key: str = _keys.RISK,
    model: SurvivalModel | None = None,
    key_added: str = _keys.RISK_GROUP,
) -> None:
    """Divide patients by their risk.

    Parameters
    ----------
    adata
        Patients with ``obs[risk_key]``; written to.
    method
        ``"median"``: above it is high. ``"quartiles"``: at least the upper is high, at most the lower is low,
        the middle is left out and counted.
    risk_key
        Column of ``obs`` (:func:`ghistpy.tl.survival_cv`, :func:`ghistpy.tl.predict_risk`).
    model
        Take the cut-offs from the training patients of this model instead of from these patients.
    key_added
        Column written.

    Raises
    ------
    ValueError
        There is no such column of numbers, another method, or all risks are equal.

    Notes
    -----
    Written: ``obs["risk_group"]``, category, ``"high risk"``, ``"low risk"`` or missing (the middle, and
    patients without risk).

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> obs = pandas.DataFrame({"risk": [0.1, 0.2, 0.6, 0.9]}, index=list("abcd"))
    >>> adata = anndata.AnnData(numpy.zeros((4, 1)), obs=obs)
    >>> gp.tl.stratify_risk(adata)
    >>> adata.obs["risk_group"].tolist()
    ['low risk', 'low risk', 'high risk', 'high risk']
    """
    import logging

    import pandas as pd

    from ghistpy.cohort_stats.options import one_of
    from ghistpy.cohort_stats.survival_cv import split_risk

    check_table(adata)
    need_columns(adata.obs, {"risk_key": risk_key})
    one_of("method", method, ("median", "quartiles"))
    if not pd.api.types.is_numeric_dtype(adata.obs[risk_key]):
        raise ValueError(f"risk_key={risk_key!r} holds {adata.obs[risk_key].dtype}, expected numbers")
    risk = adata.obs[risk_key].to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(risk).any() or np.nanmax(risk) == np.nanmin(risk):
        raise ValueError(f"risk_key={risk_key!r}: no two patients have different risks, so there are no groups")
    group = split_risk(risk, method) if model is None else model.group(risk, method)
    labels = np.array([LOW, HIGH], dtype=object)[np.maximum(group, 0)]
    labels[group < 0] = None
    adata.obs[key_added] = pd.Categorical(labels, categories=[HIGH, LOW])
    without = int(np.isnan(risk).sum())
    logging.getLogger("ghistpy").info(
        "%s: %d high, %d low, %d in the middle, %d without risk",
        method,
        (group == 1).sum(),
        (group == 0).sum(),
        (group < 0).sum() - without,
        without,
    )
    record_origin(adata, key_added, origin_of(adata, risk_key) | {"method": method, "risk_key": risk_key})


def kaplan_meier(
    adata: AnnData,
    *,
    time_key: str,
    event_key: str,
    event_value: Any = None,
    time_unit: str | None = None,
    groupby: str | None = _keys.RISK_GROUP,
    patient_key: str | None = None,
    key_added: str = _keys.KAPLAN_MEIER,
) -> None:
    """Kaplan-Meier curves of groups of patients, and the log-rank test between them.

    Parameters
    ----------
    adata
        Patients, clinical columns in ``obs``; written to.
    time_key, event_key, event_value, time_unit
        Follow-up, as in :func:`ghistpy.tl.survival_cv`. Patients of time 0 count.
    groupby
        Column of ``obs`` with the groups; patients without group are left out and counted. None = one curve
        of all, no test.
    patient_key
        Column with the patient of each row; a patient with several rows counts once. None = every row is a
        patient.
    key_added
        Name of the result in ``uns["ghistpy"]``.

    Raises
    ------
    ValueError
        As :func:`ghistpy.tl.survival_cv`, there is only one group, or ``groupby`` is a number or a name rather
        than a group.

    Notes
    -----
    Written: frames ``test``, ``groups``, ``curves``, ``at_risk`` in ``uns["ghistpy"]["kaplan_meier"]``; read with
    :func:`ghistpy.get.kaplan_meier`. Intervals are 95 %, log-log; median follow-up by reverse Kaplan-Meier;
    with two groups the hazard ratio of the first (high risk) against the second, Firth's estimate.

    The null hypothesis of the test: all groups have one hazard, and groups were made without looking at
    the follow-up. Groups from cross-validated risk, or from a model fitted on the same patients, were not,
    under whatever name and cut-off they stand in ``obs``: their χ² and p are marked ``descriptive``. So are
    groups named like those of :func:`stratify_risk` whose record is lost, as after ``anndata.concat``. The
    permutation p of :func:`ghistpy.tl.survival_cv` stands beside them when there is one for these patients,
    these times and events and these groups (median or quartiles of their own risks).

    References
    ----------
    Kaplan & Meier, J Am Stat Assoc 53:457 (1958), doi 10.1080/01621459.1958.10501452.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> obs = pandas.DataFrame(
    ...     {"days": [5, 8, 12, 20.0, 25, 30], "dead": [1, 1, 1, 1, 0, 0], "arm": list("aaabbb")},
    ...     index=list("uvwxyz"),
    ... )
    >>> adata = anndata.AnnData(numpy.zeros((6, 1)), obs=obs)
    >>> gp.tl.kaplan_meier(adata, time_key="days", event_key="dead", groupby="arm")
    >>> test = gp.get.kaplan_meier(adata).iloc[0]
    >>> f"{test['chi2']:.2f}", int(test["df"]), bool(test["descriptive"])
    ('5.05', 1, False)
    """
    import pandas as pd

    from ghistpy.cohort_stats.endpoint import read_endpoint

    check_table(adata)
    need_columns(adata.obs, {"groupby": groupby, "patient_key": patient_key})
    table = _one_row_each(adata.obs, patient_key, [key for key in (time_key, event_key, groupby) if key])
    notes: dict[str, Any] = {"outcome": [time_key, event_key], "groupby": groupby or "", "n_vars": adata.n_vars}
    warn_of_repeats(adata.obs, patient_key, notes)
    with_group = np.ones(len(table), dtype=bool) if groupby is None else table[groupby].notna().to_numpy()
    notes["n_without_group"] = int((~with_group).sum())
    obs = table.loc[with_group]
    follow_up = {"time_key": time_key, "event_key": event_key, "event_value": event_value, "time_unit": time_unit}
    endpoint = read_endpoint(obs, **follow_up, keep_zero=True)
    for reason, names in endpoint.excluded.items():
        note(notes, f"{len(names)} patients are left out ({reason}): {listed(names)}")
    for message in endpoint.notes:
        note(notes, message)
    group = np.array(["all"] * len(endpoint.rows), dtype=object)
    order = ["all"]
    if groupby is not None:
        column = obs[groupby].iloc[endpoint.rows]
        group, order = column.astype(str).to_numpy(dtype=object), group_names(column, "groupby")
    notes |= {
        "n": len(endpoint.rows),
        "n_events": endpoint.n_events,
        "time_unit": endpoint.unit or "not stated",
        "excluded_names": endpoint.excluded,
    }
    frames = _group_frames(endpoint, group, order)
    if groupby is not None:
        row = _test(adata, endpoint, group, order, groupby, notes)
        row["pval_permutation"] = _permutation_p(adata, table, obs.iloc[endpoint.rows], groupby, follow_up, notes)
        frames["test"] = pd.DataFrame([row])
    store(adata, key_added, frames, notes)


def _one_row_each(obs: pd.DataFrame, patient_key: str | None, agree_on: list[str]) -> pd.DataFrame:
    """Clinical table with one row per patient, whose rows must agree."""
    if patient_key is None:
        return obs
    if obs[patient_key].isna().any():
        raise ValueError(f"patient_key={patient_key!r} is missing for {listed(obs.index[obs[patient_key].isna()])}")
    key = obs[patient_key].astype(str)
    for name in agree_on:
        if name in obs:
            several = obs[name].astype(str).groupby(key).nunique()
            if (several > 1).any():
                raise ValueError(f"patients have rows with different {name!r}: {listed(several.index[several > 1])}")
    return obs.loc[~key.duplicated().to_numpy()].set_axis(key[~key.duplicated()].to_numpy())


def _group_frames(endpoint: Endpoint, group: np.ndarray, order: list[str]) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from ghistpy.cohort_stats import kaplan_meier as km

    times = km.round_times(float(endpoint.time.max()))
    curves, rows, risk = [], [], []
    for name in order:
        time, event = endpoint.time[group == name], endpoint.event[group == name]
        curve = km.curve(time, event)
        curves.append(curve.assign(group=name))
        rows.append(
            {
                "group": name,
                "n": len(time),
                "n_events": int(event.sum()),
                "median_survival": km.median_of(curve),
                "median_followup": km.followup_median(time, event),
            }
        )
        risk.append(pd.DataFrame({"group": name, "time": times, "at_risk": km.numbers_at_risk(time, times)}))
    return {"curves": pd.concat(curves), "groups": pd.DataFrame(rows), "at_risk": pd.concat(risk)}


def _test(
    adata: AnnData, endpoint: Endpoint, group: np.ndarray, order: list[str], groupby: str, notes: dict[str, Any]
) -> dict[str, Any]:
    from ghistpy.cohort_stats import kaplan_meier as km

    test = km.logrank(endpoint.time, endpoint.event, group)
    reason = DESCRIPTIVE.get(trace_groups(adata, groupby).get("origin", ""), "")
    row: dict[str, Any] = {
        "chi2": test.chi2,
        "df": test.df,
        "pval": test.pval,
        "descriptive": bool(reason),
        "hazard_ratio": np.nan,
        "hr_ci_low": np.nan,
        "hr_ci_high": np.nan,
    }
    if len(order) == 2:
        ratio = km.hazard_ratio(endpoint.time, endpoint.event, group == order[0])
        row |= dict(zip(("hazard_ratio", "hr_ci_low", "hr_ci_high"), ratio, strict=True))
        notes["hazard_ratio_of"] = f"{order[0]} against {order[1]}"
    notes["descriptive"] = bool(reason)
    if reason:
        notes["meaning_of_pval"] = reason
    return row


def _permutation_p(
    adata: AnnData,
    table: pd.DataFrame,
    compared: pd.DataFrame,
    groupby: str,
    follow_up: dict[str, Any],
    notes: dict[str, Any],
) -> float:
    """The p of the permutations, where it is of these patients, this outcome and these groups; NaN otherwise."""
    from ghistpy.cohort_stats.endpoint import read_endpoint
    from ghistpy.cohort_stats.survival_cv import split_risk

    origin = trace_groups(adata, groupby)
    stored = adata.uns.get(_keys.UNS, {}).get(origin.get("result", ""), {})
    risk_key = origin.get("risk_key", origin.get("column", ""))
    if origin.get("origin") != CROSS_VALIDATED or "permutation" not in stored or risk_key not in table:
        return np.nan
    done = read_notes(adata, origin["result"])
    risk = table[risk_key].to_numpy(dtype=np.float64, na_value=np.nan)
    high = (compared[groupby].astype(str) == HIGH).to_numpy()
    for method in ("median", "quartiles"):
        group = split_risk(risk, method)
        members = table.index[group >= 0]
        if not (members.equals(compared.index) and np.array_equal(high, group[group >= 0] == 1)):
            continue
        analysed = table.loc[np.isfinite(risk)]  # with the middle of quartiles, which the permutations saw
        if done.get("analysed") == hash_of_followup(analysed.index, read_endpoint(analysed, **follow_up)):
            pvalues = stored["permutation"].set_index("statistic")["pval"]
            notes["pval_permutation"] = (
                f"one-sided, whole procedure on permuted outcomes of {done['n_analysed']} patients; "
                f"{done.get('permutation_null', '')}"
            )
            return float(pvalues[f"logrank_{method}"])
    notes["no_pval_permutation"] = (
        f"the permutations of {origin['result']!r} are of other patients, another outcome or other cut-offs"
    )
    return np.nan
