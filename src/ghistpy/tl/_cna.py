"""What :func:`ghistpy.tl.cna_association` tests: patients, features, groups of patients, bins; and the tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.tl import _genome

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.stats.association import TwoGroups
    from ghistpy.stats.permuted import Null

logger = logging.getLogger("ghistpy")

_MODAL_MASS = 0.05
_TIE_PERMUTATIONS = 999


def patients(adata: AnnData, patient_key: str | None) -> np.ndarray:
    if patient_key is None:
        return np.asarray(adata.obs_names, dtype=str)
    if patient_key not in adata.obs:
        raise ValueError(f"patient_key={patient_key!r} is not in adata.obs; columns there are {list(adata.obs)}")
    return adata.obs[patient_key].astype(str).to_numpy()


def covariates(
    adata: AnnData, covariates: str | Sequence[str] | None, rows: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Standardised design (patients, q) without intercept, or None, and which patients have all of it."""
    import pandas as pd

    if covariates is None:
        return None, np.ones(len(rows), dtype=bool)
    names = [covariates] if isinstance(covariates, str) else list(covariates)
    missing = [name for name in names if name not in adata.obs]
    if missing:
        raise ValueError(f"covariates={missing} are not in adata.obs; columns there are {list(adata.obs)}")
    frame = adata.obs[names].iloc[rows]
    kept = frame.notna().all(axis=1).to_numpy()
    if not kept.all():
        logger.warning("cna_association: %d patients without covariates %s left out", (~kept).sum(), names)
    frame = frame[kept]
    numeric = [name for name in names if pd.api.types.is_numeric_dtype(frame[name].dtype)]
    parts = [frame[numeric].to_numpy(dtype=np.float64)]
    parts += [pd.get_dummies(frame[n].astype(str), drop_first=True).to_numpy(float) for n in names if n not in numeric]
    design = np.column_stack(parts)
    if not len(design):
        raise ValueError(f"covariates={names}: no patient has all of them")
    scale = design.std(axis=0)
    return ((design - design.mean(axis=0)) / np.where(scale > 0, scale, 1))[:, scale > 0], kept


@dataclass(frozen=True)
class Table:
    """Features that vary: values (n, F), where they come from, and what was left out."""

    values: np.ndarray
    frame: pd.DataFrame
    columns: np.ndarray
    notes: dict[str, Any]


def features(adata: AnnData, kind: str | Sequence[str] | None, rows: np.ndarray) -> Table:
    import pandas as pd

    columns = np.arange(adata.n_vars)
    if kind is not None:
        kinds = [kind] if isinstance(kind, str) else list(kind)
        there = sorted(set(adata.var["kind"].astype(str))) if "kind" in adata.var else []
        unknown = [name for name in kinds if name not in there]
        if unknown:
            raise ValueError(f"kind={unknown}: there is no such feature; kinds in adata.var['kind'] are {there}")
        columns = np.flatnonzero(adata.var["kind"].astype(str).isin(kinds))
    values = _genome.dense(adata.X[rows][:, columns]).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    names = np.asarray(adata.var_names, dtype=str)[columns]
    empty = np.isnan(values).all(axis=0)
    low, high = np.nanmin(values[:, ~empty], axis=0), np.nanmax(values[:, ~empty], axis=0)
    constant = np.zeros(len(names), dtype=bool)
    constant[~empty] = low == high
    notes = {"features_all_missing": names[empty].tolist(), "features_constant": names[constant].tolist()}
    for what, left in notes.items():
        if left:
            logger.warning("cna_association: %d %s left out: %s", len(left), what.replace("_", " "), _genome.some(left))
    kept = ~empty & ~constant
    if not kept.any():
        raise ValueError(
            f"adata: none of {len(names)} features varies over the {len(rows)} patients with calls "
            f"({empty.sum()} are missing, {constant.sum()} constant)"
        )
    frame = pd.DataFrame({"feature": names[kept]})
    return Table(values[:, kept], frame, columns[kept], notes)


@dataclass(frozen=True)
class Groups:
    """Distinct rows of calls: low, high (K', n); ``row`` (K,): which of them each gene has."""

    low: np.ndarray
    high: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, calls: _genome.Calls, patients: np.ndarray, genes: np.ndarray, *, deep: bool) -> Groups:
        code = calls.values[np.ix_(patients, genes)].T
        code = np.clip(code, -1, 1) if deep else np.where(np.abs(code) == 2, 0, code)  # 0 where missing
        code = np.ascontiguousarray(code, dtype=np.int8)
        _, first, row = np.unique(code.view(f"V{code.shape[1]}").ravel(), return_index=True, return_inverse=True)
        distinct = code[first]
        return cls(distinct == -1, distinct == 1, row.ravel())


def make_bins(genes: pd.DataFrame, bin_size: int) -> pd.DataFrame:
    """Bins with genes, in genome order; sets ``genes["bin"]``."""
    import pandas as pd

    number = (genes["start"] - 1) // bin_size
    order = pd.Series(chromosome_order(genes["chrom"]), index=genes.index)
    key = pd.DataFrame({"order": order, "chrom": genes["chrom"], "number": number})
    bins = key.drop_duplicates().sort_values(["order", "number"]).reset_index(drop=True)
    at = bins.reset_index().set_index(["chrom", "number"])["index"]
    genes["bin"] = at.loc[pd.MultiIndex.from_frame(key[["chrom", "number"]])].to_numpy()
    start = bins["number"] * bin_size + 1
    return pd.DataFrame({"chrom": bins["chrom"], "start": start, "end": start + bin_size - 1})


def chromosome_order(names: Sequence[str]) -> np.ndarray:
    """Sort keys of chromosome names: chr1 … chr22, X, Y, then what is left."""
    special = {"X": 23, "Y": 24, "M": 25, "MT": 25}
    short = [str(name).removeprefix("chr") for name in names]
    return np.array([int(s) if s.isdigit() else special.get(s, 99) for s in short])


def bin_matrix(groups: Groups, genes: pd.DataFrame, n_bins: int) -> Any:
    """(n_bins, K') sparse: how many genes of each distinct row of calls a bin holds."""
    from scipy import sparse

    shape = (n_bins, len(groups.low))
    return sparse.csr_array((np.ones(len(genes)), (genes["bin"].to_numpy(), groups.row)), shape=shape)


@dataclass(frozen=True)
class Tested:
    """Result of the tests, the permutations behind it, and which features they gave the p-values of."""

    groups: TwoGroups
    null: Null | None
    ties: np.ndarray


def run(
    groups: Groups,
    features: Table,
    covariates: np.ndarray | None,
    bins: Any,
    *,
    transform: str | None,
    min_samples: int,
    n_permutations: int,
    seed: int,
    n_jobs: int,
    progress: Callable | None,
) -> Tested:
    """Welch's tests, and permutations when asked for; features with ties are permuted in any case."""
    from ghistpy.stats.adjusted import adjusted_welch
    from ghistpy.stats.association import modal_mass, prepare, rank_normal, welch
    from ghistpy.stats.permuted import Design, permutation_null

    prepared = prepare(rank_normal(features.values) if transform == "rank_normal" else features.values)
    if covariates is None:
        result = welch(groups.low, groups.high, prepared, min_samples=min_samples)
    else:
        result = adjusted_welch(groups.low, groups.high, prepared, covariates, min_samples=min_samples)
    if np.isnan(result.t).all():
        raise ValueError(
            f"min_samples={min_samples}: no gene has so many patients with a loss and with a gain among the "
            f"{groups.low.shape[1]} patients; lower min_samples, or deep=True to count deep calls"
        )
    mass = modal_mass(features.values)
    ties = np.zeros(len(mass), bool) if transform is None else (mass >= _MODAL_MASS) | result.flat_features
    features.frame["test"] = np.where(ties, "permutation", "welch" if covariates is None else "HC2")
    features.frame["modal_mass"], features.frame["pattern"] = mass, prepared.pattern
    if not n_permutations and not ties.any():
        return Tested(result, None, ties)
    chosen = np.arange(len(ties)) if n_permutations else np.flatnonzero(ties)
    design = Design(groups.low, groups.high, ties[chosen], min_samples, bins if n_permutations else None, covariates)
    null = permutation_null(
        design,
        prepared.take(chosen),
        n_permutations=n_permutations or _TIE_PERMUTATIONS,
        seed=seed,
        n_jobs=n_jobs,
        progress=progress,
    )
    result.log_p[:, ties] = null.log_p_ties
    return Tested(result, null, ties)
