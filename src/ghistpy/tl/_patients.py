"""A table of patients × features resolved to arrays: what is used, and what is left out and why."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("ghistpy")

_SITE_NAMES = ("site", "centre", "center", "hospital", "institution", "tissue_source_site", "scanner", "batch")
_SHOWN = 5
_VARYING = "varying"  # in attrs of obs: column -> patients whose rows differ in it


@dataclass
class Patients:
    """Patients of a table.

    names (n,); obs clinical columns, one row per patient; X (n, p) float64, NaN = missing; features (p,);
    row_of (rows,) patient of each row of the table; notes: what was combined or left out.
    """

    names: np.ndarray
    obs: pd.DataFrame
    X: np.ndarray
    features: np.ndarray
    row_of: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)

    def to_rows(self, values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Values of patients (or of those at ``rows``) for each row of the table; NaN for the others."""
        full = np.full(len(self.names), np.nan)
        full[slice(None) if rows is None else rows] = values
        return full[self.row_of]


def listed(names: Sequence[Any]) -> str:
    """The first names and how many there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)} in all)" if len(names) > _SHOWN else "")


def note(notes: dict[str, Any], message: str) -> None:
    """Log a warning and keep it beside the result."""
    logger.warning("%s", message)
    notes.setdefault("warnings", []).append(message)


def columns_of_kind(adata: AnnData, kind: str | Sequence[str] | None) -> np.ndarray:
    """Positions of the features of that kind or kinds (``var["kind"]``), of all without."""
    if kind is None:
        return np.arange(adata.n_vars)
    if "kind" not in adata.var:
        raise ValueError(f"kind={kind!r}: the table has no var['kind']; its columns are {list(adata.var.columns)}")
    kinds = [kind] if isinstance(kind, str) else list(kind)
    there = adata.var["kind"].astype(str)
    absent = sorted(set(kinds) - set(there))
    if absent:
        raise ValueError(f"kind={kind!r}: there are no features of {absent}; there are {sorted(there.unique())}")
    return np.flatnonzero(there.isin(kinds))


def matrix(adata: AnnData, columns: np.ndarray, layer: str | None) -> np.ndarray:
    """Values (rows, columns) as float64."""
    from scipy import sparse

    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer={layer!r} is not among the layers {list(adata.layers)}")
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        raise ValueError("the table has no X; give layer=")
    values = values[:, columns]
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    values = np.array(values, dtype=np.float64)
    if np.isinf(values).any():
        bad = adata.var_names[columns[np.isinf(values).any(0)]]
        raise ValueError(f"X holds infinite values in the features {listed(bad)}: correct or remove them")
    return values


def resolve_patients(
    adata: AnnData,
    *,
    kind: str | Sequence[str] | None = None,
    layer: str | None = None,
    patient_key: str | None = None,
    agree_on: Sequence[str | None] = (),
    without: Sequence[str] = (),
) -> Patients:
    """Read patients and features.

    Rows of one patient (``patient_key``) are averaged, and so are numbers in ``obs``; they must agree on the
    columns ``agree_on`` and on every category that is used.
    ``without``: kinds of features that are left to somebody else. Features without variation or without
    any value are left out and counted.
    """
    check_table(adata)
    columns = columns_of_kind(adata, kind)
    if len(without):
        columns = columns[~adata.var["kind"].astype(str).iloc[columns].isin(without).to_numpy()]
    X = matrix(adata, columns, layer)
    notes: dict[str, Any] = {"n_rows": adata.n_obs}
    obs = adata.obs.copy()
    names, row_of = adata.obs_names.astype(str).to_numpy(), np.arange(adata.n_obs)
    if patient_key is not None:
        names, row_of, obs, X = combine_rows(adata, patient_key, [key for key in agree_on if key], X, notes)
    notes["n_patients"] = len(names)
    known = ~np.isnan(X).all(0)
    varies = known.copy()
    varies[known] = np.nanmax(X[:, known], axis=0) > np.nanmin(X[:, known], axis=0)
    features = adata.var_names[columns].astype(str).to_numpy()
    for reason, mask in (("without any value", ~known), ("constant", known & ~varies)):
        if mask.any():
            notes[f"features_{reason.replace(' ', '_')}"] = features[mask].tolist()
            logger.info("%d features %s are left out: %s", mask.sum(), reason, listed(features[mask]))
    if not varies.any():
        raise ValueError(f"none of the {len(features)} features varies between the {len(names)} patients")
    notes["n_features"], notes["n_vars"] = int(varies.sum()), adata.n_vars
    return Patients(names, obs, X[:, varies], features[varies], row_of, notes)


def check_table(adata: AnnData) -> None:
    """Refuse what is no table of patients, and patients that are in it twice."""
    if not hasattr(adata, "obs_names"):
        raise TypeError(f"adata is a {type(adata).__name__}, expected an AnnData of patients × features")
    twice = adata.obs_names[adata.obs_names.duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{len(twice)} patients are in the table more than once: {listed(twice)}; keep one row of each, or give "
            "rows their own names and the patient as a column (patient_key=)"
        )


def combine_rows(
    adata: AnnData, key: str, agree_on: list[str], X: np.ndarray, notes: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, np.ndarray]:
    """Average the rows of each patient: names, patient of each row, clinical columns, values."""
    import pandas as pd

    need_columns(adata.obs, {"patient_key": key})
    column = adata.obs[key]
    if column.isna().any():
        raise ValueError(f"patient_key={key!r} is missing for the rows {listed(adata.obs_names[column.isna()])}")
    row_of, names = pd.factorize(column.astype(str))
    if len(names) == adata.n_obs:
        obs = adata.obs.copy()
        obs.index = pd.Index(names)
        return np.asarray(names), row_of, obs, X
    for name in agree_on:
        if name not in adata.obs:
            continue
        several = adata.obs.groupby(row_of)[name].nunique(dropna=True) > 1
        if several.any():
            who = np.asarray(names)[several.to_numpy()]
            raise ValueError(f"patients have rows with different {name!r}: {listed(who)}; correct them")
    obs = _combine_columns(adata.obs, row_of, np.asarray(names), notes)
    filled = ~np.isnan(X)
    total, count = np.zeros((len(names), X.shape[1])), np.zeros((len(names), X.shape[1]))
    np.add.at(total, row_of, np.where(filled, X, 0.0))
    np.add.at(count, row_of, filled)
    with np.errstate(invalid="ignore"):
        mean = total / np.where(count > 0, count, np.nan)
    notes["rows_combined"] = f"features of {adata.n_obs} rows are means over the rows of {len(names)} patients"
    logger.info("%s", notes["rows_combined"])
    return np.asarray(names), row_of, obs, mean


def _combine_columns(obs: pd.DataFrame, row_of: np.ndarray, names: np.ndarray, notes: dict[str, Any]) -> pd.DataFrame:
    """One row per patient: the value that his rows share, else the mean of numbers; what else differs is marked."""
    import pandas as pd

    groups = obs.groupby(row_of, observed=True)
    out = groups.first()  # the first known value
    several = groups.nunique(dropna=True) > 1
    averaged, varying = [], {}
    for name in several.columns[several.any()]:
        dtype = obs[name].dtype
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
            averaged.append(str(name))
            out[name] = groups[name].mean()
        else:
            varying[name] = names[several[name].to_numpy()].tolist()
    if averaged:
        notes["columns_averaged"] = averaged
        logger.info("obs: %s differ between rows of a patient; their means are used", averaged)
    out.index = pd.Index(names)
    out.attrs[_VARYING] = varying
    return out


def need_columns(obs: pd.DataFrame, keys: dict[str, str | None]) -> None:
    """Refuse columns that are not there: argument → column."""
    for argument, key in keys.items():
        if key is not None and key not in obs.columns:
            raise ValueError(f"{argument}={key!r} is not a column of obs; there are {list(obs.columns)}")


def read_groups(obs: pd.DataFrame, group_key: str | None, notes: dict[str, Any]) -> np.ndarray | None:
    """Group of each patient, such as the hospital; without one, columns that look like it are pointed out."""
    if group_key is None:
        alike = [c for c in obs.columns if str(c).lower() in _SITE_NAMES]
        barcodes = [m.group(1) for name in obs.index.astype(str) if (m := re.match(r"TCGA-(\w{2})-", name))]
        if alike:
            note(notes, f"obs has {alike}: stain and follow-up differ between sites; give group_key={alike[0]!r}")
        elif len(set(barcodes)) > 1:
            note(notes, f"the names are TCGA barcodes of {len(set(barcodes))} sites; give the site as group_key=")
        return None
    need_columns(obs, {"group_key": group_key})
    if obs[group_key].isna().any():
        raise ValueError(f"group_key={group_key!r} is missing for {listed(obs.index[obs[group_key].isna()])}")
    return obs[group_key].astype(str).to_numpy()


def encode_covariates(
    obs: pd.DataFrame, keys: Sequence[str], argument: str = "covariates"
) -> tuple[np.ndarray, list[str]]:
    """Clinical columns as numbers: (n, q) and their names; levels of a category become indicators."""
    import pandas as pd

    parts, names = [], []
    for key in [keys] if isinstance(keys, str) else keys:
        need_columns(obs, {argument: key})
        different = obs.attrs.get(_VARYING, {}).get(key, [])
        if different:
            raise ValueError(
                f"{argument}: {key!r} differs between the rows of {listed(different)}; give them one value"
            )
        column = obs[key]
        if pd.api.types.is_numeric_dtype(column) and not isinstance(column.dtype, pd.CategoricalDtype):
            parts.append(column.to_numpy(dtype=np.float64, na_value=np.nan)[:, None])
            names.append(str(key))
            continue
        text = column.astype(object).where(column.notna(), "missing").astype(str)
        levels = text.value_counts().index.tolist()  # the most frequent is the reference
        parts.append(
            np.stack([(text == level).to_numpy(np.float64) for level in levels[1:]], 1)
            if levels[1:]
            else np.zeros((len(obs), 0))
        )
        names += [f"{key}={level}" for level in levels[1:]]
    return (np.hstack(parts) if parts else np.zeros((len(obs), 0))), names


def store(adata: AnnData, key: str, frames: dict[str, Any], notes: dict[str, Any]) -> None:
    """Write a result: frames and one JSON string of notes in ``uns["ghistpy"][key]``."""
    from ghistpy import __version__

    notes = {"version": __version__, **notes}
    adata.uns[_keys.UNS] = {**adata.uns.get(_keys.UNS, {}), key: {**frames, "notes": json.dumps(notes, default=str)}}


def read_notes(adata: AnnData, key: str) -> dict[str, Any]:
    """Notes of a stored result; empty when there is none."""
    stored = adata.uns.get(_keys.UNS, {}).get(key, {})
    return json.loads(stored["notes"]) if "notes" in stored else {}


def warn_of_optimism(adata: AnnData, outcome: Sequence[str], notes: dict[str, Any]) -> None:
    """Point out features that were chosen after their association with this outcome had been seen."""
    for key, stored in adata.uns.get(_keys.UNS, {}).items():
        if not isinstance(stored, dict) or "notes" not in stored:
            continue
        earlier = json.loads(stored["notes"])
        if earlier.get("outcome") == list(outcome) and earlier.get("n_vars", 0) > adata.n_vars:
            note(
                notes,
                f"{key!r} was computed for the same outcome on {earlier['n_vars']} features, of which {adata.n_vars} "
                "are left: if they were chosen by that result, this one is optimistic; selection belongs inside "
                "the folds",
            )
