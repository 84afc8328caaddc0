"""Columns beside the features of a cross-validation, its folds and permutations, and what is said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.tl._patients import Patients, columns_of_kind, encode_covariates, matrix, note

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.cohort_stats.endpoint import Endpoint

BECOMES = "becomes the median of the training fold where it is a number, a level of its own where it is none"
_PATIENT_NAMES = ("patient", "patient_id", "patientid", "case", "case_id", "subject", "subject_id", "donor", "donor_id")
_FEW_PARTITIONS = 10
_LARGE_FOLD = 1.5  # times the mean size


def split_image_keys(adata: AnnData, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of ``image_keys`` are kinds of features, and which columns of ``obs``."""
    keys = [keys] if isinstance(keys, str) else list(keys)
    kinds = set(adata.var["kind"].astype(str)) if "kind" in adata.var else set()
    unknown = [key for key in keys if key not in kinds and key not in adata.obs.columns]
    if unknown:
        raise ValueError(
            f"image_keys: {unknown} are neither columns of obs ({list(adata.obs.columns)}) nor kinds of features "
            f"({sorted(kinds)})"
        )
    return [key for key in keys if key in kinds], [key for key in keys if key not in kinds]


def image_matrix(
    adata: AnnData, patients: Patients, kinds: list[str], columns: list[str], layer: str | None
) -> np.ndarray:
    """Values (n, r) of what the image gives without expression; rows of a patient are averaged."""
    import pandas as pd

    parts = [encode_covariates(patients.obs, columns, "image_keys")[0]]
    if kinds:
        rows = matrix(adata, columns_of_kind(adata, kinds), layer)
        frame = pd.DataFrame(rows).groupby(patients.row_of).mean()  # without what is missing
        parts.append(frame.to_numpy())
    return np.hstack(parts)


def warn_of_repeats(obs: pd.DataFrame, patient_key: str | None, notes: dict[str, Any]) -> None:
    """Point to a column that looks like the patient and repeats, when every row is taken for a patient."""
    if patient_key is not None:
        return
    for key in obs.columns:
        known = obs[key].dropna()
        n = known.nunique()
        if str(key).lower() in _PATIENT_NAMES and n < len(known):
            note(
                notes,
                f"every row counts as a patient, but obs has {key!r} with {n} values in {len(known)} rows; "
                f"give patient_key={key!r}",
            )


def count_missing(obs: pd.DataFrame, keys: Sequence[str], argument: str, becomes: str, notes: dict[str, Any]) -> None:
    """Say how many patients lack each of these columns, and what stands in for it."""
    keys = [keys] if isinstance(keys, str) else list(keys)
    missing = {key: int(obs[key].isna().sum()) for key in keys if key in obs and obs[key].isna().any()}
    notes[f"n_missing_{argument}"] = missing
    if missing:
        counts = ", ".join(f"{key!r} for {n}" for key, n in missing.items())
        note(notes, f"{argument}: {counts} of {len(obs)} patients is missing, and {becomes}")


def note_folds(folds: np.ndarray, groups: np.ndarray | None, notes: dict[str, Any]) -> None:
    """Say how the patients (R, n) were divided: few large groups leave little choice."""
    from ghistpy.cohort_stats.folds import distinct_partitions

    n_repeats, n_splits = len(folds), int(folds.max()) + 1
    size = np.stack([(folds == k).sum(1) for k in range(n_splits)])
    notes["n_distinct_partitions"] = distinct_partitions(folds)
    notes["fold_sizes"] = [int(size.min()), int(size.max())]
    if groups is None:
        return
    n_groups = len(np.unique(groups))
    if notes["n_distinct_partitions"] < min(n_repeats, _FEW_PARTITIONS):
        note(
            notes,
            f"{n_groups} groups can be divided into {n_splits} balanced folds in few ways: {n_repeats} repeats hold "
            f"{notes['n_distinct_partitions']} different ones, and further repeats add nothing",
        )
    if size.max() > _LARGE_FOLD * folds.shape[1] / n_splits:
        note(
            notes,
            f"folds hold {size.min()} to {size.max()} patients, as groups are kept together: some models are trained "
            "on few patients",
        )


def hash_of_followup(names: Sequence[str], endpoint: Endpoint) -> str:
    """Short name of who was followed (names of all rows of the table), how long and to what, whatever the order."""
    of_patients = np.asarray(names)[endpoint.rows]
    # nine digits: the mean over the rows of a patient is not exact
    rows = [f"{n}\t{t:.9g}\t{e:d}" for n, t, e in zip(of_patients, endpoint.time, endpoint.event, strict=True)]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]


def null_of_permutations(groups: np.ndarray | None, notes: dict[str, Any]) -> None:
    """State the null hypothesis of the permutation p, and who takes no part in it."""
    if groups is None:
        notes["permutation_null"] = "outcomes are dealt to all patients: features and outcome are independent"
        return
    _, size = np.unique(groups, return_counts=True)
    notes["permutation_null"] = (
        "outcomes are dealt within groups: features and outcome are independent within every group, whatever differs "
        f"between groups; {int((size == 1).sum())} of {len(size)} groups have one patient and contribute nothing"
    )
    if (size == 1).sum() > len(groups) / 2:
        note(
            notes,
            f"{int((size == 1).sum())} of {len(groups)} patients are alone in their group: permutations say little",
        )
