"""Results on patients as frames: survival, outcome, differential state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def survival(adata: AnnData, *, key: str = _keys.SURVIVAL, part: str = "summary") -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.survival_cv` stored.

    Parameters
    ----------
    adata
        Patients × features.
    key
        ``key_added`` of the tool.
    part
        ``"summary"``: one row per model: C-index with the 95 % interval of what the procedure has on average in
        cohorts of this size (:func:`ghistpy.tl.survival_cv` says what it covers), Uno's index, spread over
        repeats (no confidence interval), fits to distrust. ``"differences"``: differences of C-indices with
        paired intervals. ``"c_index"``: per model, repeat and fold. ``"selected"``: feature,
        n_selected, frequency, mean_coef (log hazard ratio per standard deviation), share_positive.
        ``"permutation"``: statistic, observed, null_mean, null_q95, pval (one-sided), n_permutations.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]`` says what was counted, left out and warned of.

    Raises
    ------
    ValueError
        There is no such result or part.

    Examples
    --------
    See :func:`ghistpy.tl.survival_cv`.
    """
    return stored_frame(adata, key, part, "tl.survival_cv", "summary")


def kaplan_meier(adata: AnnData, *, key: str = _keys.KAPLAN_MEIER, part: str = "test") -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.kaplan_meier` stored.

    Parameters
    ----------
    adata
        Patients × features.
    key
        ``key_added`` of the tool.
    part
        ``"test"``: one row: chi2, df, p, descriptive (no test: ``notes["meaning_of_pval"]`` says why), hazard ratio,
        permutation p where it is of these patients and groups. ``"groups"``: n, events, median
        survival and follow-up per group. ``"curves"``: group, time, survival, ci_low, ci_high, at_risk,
        events, censored. ``"at_risk"``: numbers at risk at round times.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such result or part.

    Examples
    --------
    See :func:`ghistpy.tl.kaplan_meier`.
    """
    return stored_frame(adata, key, part, "tl.kaplan_meier", "curves")


def outcome(adata: AnnData, *, key: str = _keys.OUTCOME, part: str = "summary") -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.predict_outcome` stored.

    Parameters
    ----------
    adata
        Patients × features.
    key
        ``key_added`` of the tool.
    part
        ``"summary"``: balanced accuracy of each model with the 95 % interval of what the procedure has on average
        in cohorts of this size, permutation p. ``"accuracy"``: per model
        and repeat. ``"selected"``: feature, n_selected, frequency. ``"predictions"``: patient, outcome, share of
        repeats that predict each class.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such result or part.

    Examples
    --------
    See :func:`ghistpy.tl.predict_outcome`.
    """
    return stored_frame(adata, key, part, "tl.predict_outcome", "accuracy")


def differential_state(adata: AnnData, *, key: str = _keys.DIFFERENTIAL_STATE, part: str = "results") -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.differential_state` stored.

    Parameters
    ----------
    adata
        Table that the tool wrote to.
    key
        ``key_added`` of the tool.
    part
        ``"results"``: gene, cell_type, log_fc, stat, pval, pval_adj_local, pval_adj_global and more.
        ``"states"``: standardised values of the strongest results in each patient.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]`` with ``"descriptive"`` when the groups were made of these features.

    Raises
    ------
    ValueError
        There is no such result or part.

    Examples
    --------
    See :func:`ghistpy.tl.differential_state`.
    """
    return stored_frame(adata, key, part, "tl.differential_state", "results")


def stored_frame(adata: AnnData, key: str, part: str, tool: str, mark: str) -> pd.DataFrame:
    """Copy of one frame of a stored result; ``mark`` is a part that only results of this tool have."""
    everything: Mapping[str, Any] = adata.uns.get(_keys.UNS, {})
    found = [k for k, v in everything.items() if isinstance(v, Mapping) and mark in v]
    if key not in found:
        raise ValueError(f"key={key!r}: there is no such result (there are {found}); run {tool} first")
    parts = {name: value for name, value in everything[key].items() if hasattr(value, "columns")}
    if part not in parts:
        raise ValueError(f"part={part!r} is not in {key!r}; there are {list(parts)}")
    frame = parts[part].reset_index(drop=True).copy()
    frame.attrs["notes"] = json.loads(everything[key]["notes"])
    return frame
