"""Groups of patients: their names, and where they come from, which decides whether comparing them is a test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._patients import listed, note, read_notes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

HIGH, LOW = "high risk", "low risk"
MANY_GROUPS = 20
_CHANCE = 0.01  # of agreeing with a recorded column by accident, above which agreement says nothing

CROSS_VALIDATED = "cross-validated on these patients"
TRAINING = "predicted for patients the model was fitted on"
EXTERNAL = "predicted by a locked model for other patients"
LOST = "not recorded"

DESCRIPTIVE = {
    CROSS_VALIDATED: (
        "descriptive: the groups come from cross-validated risk of the same patients, where a log-rank rejects "
        "in 12 to 15 % of cohorts at 5 % without any association; the p-value of a test is that of the permutations"
    ),
    TRAINING: "descriptive: the model was fitted on patients of this table, so the groups follow their outcomes",
    LOST: (
        "descriptive: these look like groups of predicted risk, and where the risk comes from is not recorded "
        "(anndata.concat leaves uns out unless uns_merge='first'); of cross-validated risk a log-rank is no test. "
        "Risks that were made without these outcomes belong into columns with another name"
    ),
}


def record_origin(adata: AnnData, column: str, origin: dict[str, Any]) -> None:
    """Remember where a column of ``obs`` comes from."""
    stored = adata.uns.get(_keys.UNS, {})
    adata.uns[_keys.UNS] = {**stored, _keys.RISK_ORIGIN: json.dumps(_recorded(adata) | {column: origin})}


def _recorded(adata: AnnData) -> dict[str, dict[str, Any]]:
    return json.loads(adata.uns.get(_keys.UNS, {}).get(_keys.RISK_ORIGIN, "{}"))


def origin_of(adata: AnnData, column: str) -> dict[str, Any]:
    """What is recorded of a column of ``obs``; empty when nothing."""
    return _recorded(adata).get(column, {})


def trace_groups(adata: AnnData, groupby: str) -> dict[str, Any]:
    """Where groups come from: their own record, or that of a column of risks that they repeat or cut into pieces.

    A copy of ``risk_group`` under another name, or ``numpy.where(obs["risk"] > 0.6, …)``, is as little
    independent of the outcome as the column that it was made of.
    """
    own = origin_of(adata, groupby)
    if own.get("origin"):
        return own
    groups = adata.obs[groupby]
    recorded = {
        key: {"column": key, **known}
        for key, known in _recorded(adata).items()
        if known.get("origin") and key in adata.obs
    }
    # the strictest statement first
    found = [known for key, known in recorded.items() if derived_from(groups, adata.obs[key])]
    found.sort(key=lambda known: known["origin"] not in DESCRIPTIVE)
    if found:
        return found[0]
    labels = set(groups.dropna().astype(str))
    named = groupby == _keys.RISK_GROUP and labels == {HIGH, LOW} and own.get("risk_key", _keys.RISK) == _keys.RISK
    risk = None if _keys.RISK in recorded else adata.obs.get(_keys.RISK)
    if named or (risk is not None and derived_from(groups, risk)):
        return {"origin": LOST}
    return {}


def derived_from(groups: pd.Series, column: pd.Series) -> bool:
    """Whether groups are those of another column, or pieces of its range, and not by accident."""
    import pandas as pd
    from scipy.special import gammaln

    both = (groups.notna() & column.notna()).to_numpy()
    if 2 * both.sum() < groups.notna().sum():
        return False
    code = pd.factorize(groups[both].astype(str))[0]
    size = np.bincount(code)
    if len(size) < 2 or len(size) > MANY_GROUPS:
        return False
    accident = gammaln(size + 1).sum() + gammaln(len(size) + 1) - gammaln(size.sum() + 1)
    if accident > np.log(_CHANCE):
        return False
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        value = column[both].to_numpy(dtype=np.float64)
        low = np.array([value[code == k].min() for k in range(len(size))])
        high = np.array([value[code == k].max() for k in range(len(size))])
        order = np.argsort(low + high, kind="stable")
        return bool((high[order[:-1]] < low[order[1:]]).all())
    other = pd.factorize(column[both].astype(str))[0]
    return len(np.unique(np.column_stack([code, other]), axis=0)) == other.max() + 1 > 1


def warn_of_circularity(
    adata: AnnData, argument: str, key: str, features: np.ndarray, notes: dict[str, Any], consequence: str
) -> None:
    """Say when groups were made of the features that are now compared between them.

    Sets ``notes["descriptive"]``, and ``notes["meaning_of_pval"]`` where it is true.
    """
    notes["descriptive"] = False
    if key not in adata.obs:
        return
    made_of = {name: read_notes(adata, name).get("features") for name in adata.uns.get(_keys.UNS, {})}
    made_of = {
        name: names
        for name, names in made_of.items()
        if names and name in adata.obs and (name == key or derived_from(adata.obs[key], adata.obs[name]))
    }
    message = ""
    for name, names in made_of.items():
        shared = sorted(set(names) & set(features.tolist()))
        copied = "" if name == key else f" (as {name!r})"
        if shared:
            message = f"was made{copied} by tl.cluster_patients from {len(shared)} of these features ({listed(shared)})"
        else:
            notes["outcome_made_of_same_slides"] = (
                f"{argument}={key!r} was clustered{copied} from other features of the same patients and images"
            )
    origin = trace_groups(adata, key).get("origin")
    if not message and origin:
        message = f"are groups of risk that was computed from features of these patients ({origin})"
    if message:
        notes |= {"descriptive": True, "meaning_of_pval": f"descriptive: {argument}={key!r} {message}"}
        note(notes, f"{argument}={key!r} {message}: {consequence}")


def group_names(column: pd.Series, argument: str) -> list[str]:
    """Names of the groups that occur, in the order of the categories or of the alphabet.

    Raises
    ------
    ValueError
        One group only, more than 20, or so many that the column is a number or a name.
    """
    import pandas as pd

    there = column.dropna()
    known = set(there.astype(str))
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = [level for level in column.cat.categories if str(level) in known]
    else:
        levels = list(there.unique())
        mixed = len({isinstance(level, str) for level in levels}) > 1
        levels = sorted(levels, key=str) if mixed else sorted(levels)
    names = list(dict.fromkeys(str(level) for level in levels))
    if len(names) < 2:
        raise ValueError(f"{argument}={column.name!r} has one group only, {names}, among {len(there)} patients")
    if len(names) > MANY_GROUPS or (len(names) > 3 and 2 * len(names) > len(there)):
        merge = f"merge values, or keep those to compare: obs[key].where(obs[key].isin({names[:2]}))"
        cut = "cut the number into groups (pandas.cut, tl.stratify_risk)"
        raise ValueError(
            f"{argument}={column.name!r} has {len(names)} values among {len(there)} patients, such as "
            f"{', '.join(names[:3])}: expected at most {MANY_GROUPS} groups, of two patients or more on average; "
            f"{cut if pd.api.types.is_numeric_dtype(there) else merge}"
        )
    return names
