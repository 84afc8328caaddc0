"""What :func:`ghistpy.tl.cna_association` tests: patients, features, groups of patients, bins; and the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.tl import _genome
from ghistpy.tl._patients import columns_of_kind, matrix

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.stats.association import TwoGroups
    from ghistpy.stats.permuted import Null

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
    names = [covariates] if isinstance(covariates, str) else list(covariates or ())
    if not names:
        return None, np.ones(len(rows), dtype=bool)
    unknown = [name for name in names if name not in adata.obs and name not in adata.obsm]
    if unknown:
        raise ValueError(
            f"covariates={unknown} are neither columns of adata.obs ({list(adata.obs)}) nor keys of adata.obsm "
            f"({list(adata.obsm)})"
        )
    parts = [_covariate(adata, name, rows) for name in names]
    kept = ~np.isnan(np.column_stack(parts)).any(axis=1)
    if not kept.any():
        raise ValueError(f"covariates={names}: no patient has all of them")
    # levels of a category that nobody has are constant, and go with the other constants
    design = np.column_stack(parts)[kept]
    varies = np.ptp(design, axis=0) > 0
    design = (design - design.mean(axis=0))[:, varies] / design.std(axis=0)[varies]
    if design.shape[1] > len(design) - 3:
        raise ValueError(
            f"covariates={names}: {design.shape[1]} columns leave nothing to test on {len(design)} patients; give fewer"
        )
    return design, kept


def _covariate(adata: AnnData, name: str, rows: np.ndarray) -> np.ndarray:
    """(patients, q): a number or the indicators of a category in ``obs``, or the columns of an array in ``obsm``."""
    import pandas as pd

    if name in adata.obs and name in adata.obsm:
        raise ValueError(f"covariates={name!r} is a column of adata.obs and a key of adata.obsm; rename one of them")
    if name in adata.obsm:
        values = _genome.dense(adata.obsm[name])[rows].astype(np.float64)
    elif pd.api.types.is_numeric_dtype(adata.obs[name].dtype):
        values = adata.obs[name].iloc[rows].to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        column = adata.obs[name].iloc[rows]
        values = pd.get_dummies(column.astype(object).map(str, na_action="ignore"), drop_first=True).to_numpy(float)
        values[column.isna()] = np.nan
    if np.isinf(values).any():
        raise ValueError(f"covariates={name!r}: {int(np.isinf(values).sum())} values are infinite; set them missing")
    return values.reshape(len(rows), -1)


@dataclass(frozen=True)
class Table:
    """Features that vary: values (n, F), where they come from, and what was left out."""

    values: np.ndarray
    frame: pd.DataFrame
    columns: np.ndarray
    notes: dict[str, Any]


def features(adata: AnnData, kind: str | Sequence[str] | None, layer: str | None, rows: np.ndarray) -> Table:
    import pandas as pd

    columns = columns_of_kind(adata, kind)
    values = matrix(adata, columns, layer)[rows]
    names = np.asarray(adata.var_names, dtype=str)[columns]
    empty = np.isnan(values).all(axis=0)
    low, high = np.nanmin(values[:, ~empty], axis=0), np.nanmax(values[:, ~empty], axis=0)
    constant = np.zeros(len(names), dtype=bool)
    constant[~empty] = low == high
    notes = _genome.left_out("features_all_missing", names[empty])
    notes |= _genome.left_out("features_constant", names[constant])
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

    @property
    def calls(self) -> np.ndarray:
        """(K', n) int8: -1 loss, 1 gain, 0 neither."""
        return self.high.astype(np.int8) - self.low


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
    """Sort keys of chromosome names: chr1 … chr22, X, Y, M, then what is left."""
    special = {"X": 23, "Y": 24, "M": 25}
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
