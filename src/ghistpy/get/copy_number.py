"""Results of :func:`ghistpy.tl.cna_association` as frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_PARTS = ("pairs", "loci", "genes", "features", "bins")


def cna(
    adata: AnnData,
    *,
    part: str = "pairs",
    n_top: int | None = None,
    genes: str | Sequence[str] | None = None,
    features: str | Sequence[str] | None = None,
    level: float = 0.05,
    r2: float = 0.2,
    key: str = _keys.CNA,
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.cna_association` stored.

    Parameters
    ----------
    adata
        Patients x features with a result in ``uns``.
    part
        ``"pairs"``: one row per gene and feature, smallest p first: gene, chrom, start, feature,
        feature_gene, kind of ``test``, n_loss, n_gain, mean_difference (gains minus losses), t, pval,
        log10_pval, pval_adj, log10_pval_adj, cis, and pval_fwer after permutations. Pairs without a test
        are not listed. ``"loci"``: significant pairs that share their calls counted once: per feature and
        chromosome, the gene with the smallest p and all significant genes whose calls correlate with its own
        are one locus; columns of its pair, ``region_start`` and ``region_end`` (bases), ``n_genes``.
        ``"genes"``, ``"features"``, ``"bins"``: the other frames.
    n_top
        Pairs or loci: so many only. All of 20,000 genes x 280 features are a frame of a gigabyte.
    genes, features
        Pairs of these only.
    level
        Loci: of pairs with an adjusted p-value (BH) up to this.
    r2
        Loci: squared correlation of calls from which on genes belong together.
    key
        Key that ``cna_association`` wrote (its ``key_added``).

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]`` is a dict of what was left out, λ and parameters.

    Raises
    ------
    ValueError
        There is no such result, part, gene or feature, the message says what there is; ``level`` or ``r2``
        outside 0 .. 1.

    Examples
    --------
    >>> import ghistpy as gp
    >>> cohort = gp.datasets.simulate_cohort(n_patients=80, seed=1)
    >>> gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"])
    >>> gp.get.cna(cohort, features="gene_mean_bulk--G008", n_top=1)["gene"].item()
    'G008'
    """
    stored = stored_cna(adata, key)
    if part not in _PARTS:
        raise ValueError(f"part={part!r} is unknown; there are {list(_PARTS)}")
    notes = json.loads(stored["notes"])
    if part in ("pairs", "loci"):
        rows = _chosen(stored["genes"]["gene"].to_numpy(dtype=str), genes, "genes")
        columns = _chosen(stored["features"]["feature"].to_numpy(dtype=str), features, "features")
    if part == "pairs":
        frame = _pairs(stored, notes, *_best(stored["log10_pval"], rows, columns, n_top))
    elif part == "loci":
        frame = _loci(stored, notes, rows, columns, level, r2).head(n_top)
    else:
        frame = stored[part].copy()
    frame.attrs["notes"] = notes
    return frame.reset_index(drop=True)


def stored_cna(adata: AnnData, key: str = _keys.CNA) -> Mapping[str, Any]:
    """The raw result in ``adata.uns[key]``, or an error that says which there are."""
    found = [k for k, v in adata.uns.items() if isinstance(v, Mapping) and "log10_pval" in v]
    if key not in found:
        raise ValueError(f"key={key!r}: adata.uns holds no such result (there are {found}); run tl.cna_association")
    return adata.uns[key]


def _chosen(names: np.ndarray, wanted: str | Sequence[str] | None, argument: str) -> np.ndarray:
    if wanted is None:
        return np.arange(len(names))
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ValueError(f"{argument}={unknown[:5]} were not tested; tested were {names[:5].tolist()} …")
    return np.flatnonzero(np.isin(names, wanted))


def _best(log10_p: np.ndarray, rows: np.ndarray, columns: np.ndarray, n_top: int | None) -> tuple:
    """Genes and features of the pairs with a test, smallest p first."""
    values = log10_p[np.ix_(rows, columns)]
    flat = np.flatnonzero(~np.isnan(values).ravel())
    if n_top is not None and n_top < len(flat):
        best = np.sort(values.ravel()[flat])[n_top - 1] if n_top > 0 else -np.inf
        flat = flat[values.ravel()[flat] <= best]
    flat = flat[np.lexsort((flat, values.ravel()[flat]))][: None if n_top is None else max(n_top, 0)]
    return rows[flat // max(len(columns), 1)], columns[flat % max(len(columns), 1)]


def _loci(
    stored: Mapping[str, Any], notes: dict, rows: np.ndarray, columns: np.ndarray, level: float, r2: float
) -> pd.DataFrame:
    """Loci of significant pairs, smallest p first."""
    from ghistpy.stats.clumps import clumps, squared_correlation

    for name, value in (("level", level), ("r2", r2)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")
    significant = stored["log10_pval_adj"] <= (np.log10(level) if level > 0 else -np.inf)
    gene_frame, chosen = stored["genes"], np.zeros(significant.shape, dtype=bool)
    chosen[np.ix_(rows, columns)] = True
    significant &= chosen
    start, end = (gene_frame[name].to_numpy() for name in ("start", "end"))
    found = []
    for chrom in gene_frame["chrom"].unique():
        at = np.flatnonzero((gene_frame["chrom"] == chrom).to_numpy() & significant.any(axis=1))
        log_p = np.where(significant[at], stored["log10_pval"][at], np.nan)
        lead, feature, members = clumps(log_p, squared_correlation(stored["calls"][stored["call_row"][at]]), r2)
        first = np.where(members, start[at], np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
        last = np.where(members, end[at], -1).max(axis=1, initial=-1)
        found.append(np.column_stack([at[lead], feature, first, last, members.sum(axis=1)]))
    i, j, first, last, n = (np.concatenate(found).astype(np.int64) if found else np.zeros((0, 5), np.int64)).T
    frame = _pairs(stored, notes, i, j)
    frame = frame.assign(region_start=first, region_end=last, n_genes=n)
    return frame.sort_values("log10_pval", kind="stable")


def _pairs(stored: Mapping[str, Any], notes: dict, i: np.ndarray, j: np.ndarray) -> pd.DataFrame:
    """Frame of the pairs of genes i and features j."""
    import pandas as pd

    gene_frame, feature_frame = stored["genes"], stored["features"]
    gene, feature = gene_frame.iloc[i], feature_frame.iloc[j]
    pattern = feature["pattern"].to_numpy()
    log10_p = stored["log10_pval"][i, j]
    log10_adj = stored["log10_pval_adj"][i, j].astype(np.float64)
    near = np.abs(gene["start"].to_numpy() - feature["start"].to_numpy()) <= notes["params"]["cis_window"]
    same = gene["chrom"].to_numpy(dtype=str) == feature["chrom"].to_numpy(dtype=str)
    out = {
        "gene": gene["gene"].to_numpy(),
        "chrom": gene["chrom"].to_numpy(),
        "start": gene["start"].to_numpy(),
        "feature": feature["feature"].to_numpy(),
        "feature_gene": feature["gene"].to_numpy(),
        "test": feature["test"].to_numpy(),
        "n_loss": stored["n_loss"][i, pattern],
        "n_gain": stored["n_gain"][i, pattern],
        "mean_difference": stored["mean_difference"][i, j].astype(np.float64),
        "t": stored["t"][i, j].astype(np.float64),
        "pval": 10.0**log10_p,
        "log10_pval": log10_p,
        "pval_adj": 10.0**log10_adj,
        "log10_pval_adj": log10_adj,
        "cis": same & near & (feature["start"].to_numpy() >= 0),
    }
    if "deviate" in stored:
        from ghistpy.stats.permuted import family_wise

        ties = feature["test"].to_numpy() == "permutation"
        out["pval_fwer"] = family_wise(stored["deviate"][i, j], stored["null_largest"], ties)
    return pd.DataFrame(out)
