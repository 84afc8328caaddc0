"""Copy-number changes of genes against features of patients."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _cna, _genome

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("ghistpy")

_TRANSFORMS = ("rank_normal", None)


def cna_association(
    adata: AnnData,
    cna: AnnData | pd.DataFrame,
    *,
    deep: bool = True,
    transform: str | None = "rank_normal",
    min_samples: int = 5,
    covariates: str | Sequence[str] | None = None,
    n_permutations: int = 0,
    bin_size: int = 1_000_000,
    kind: str | Sequence[str] | None = None,
    layer: str | None = None,
    patient_key: str | None = None,
    positions: pd.DataFrame | None = None,
    cis_window: int = 5_000_000,
    n_jobs: int = 1,
    seed: int = 0,
    key_added: str = _keys.CNA,
    progress: bool = True,
) -> None:
    """Test every feature between patients who lost and patients who gained each gene.

    Parameters
    ----------
    adata
        Patients x features, measured or in-silico, one row per patient. NaN = missing.
    cna
        Calls of patients x genes, -2 (deep loss) to 2 (amplification), 0 = none, NaN = not called; an
        AnnData or a frame. Patients are matched by name; whoever is in one table only is counted and named.
    deep
        Deep losses count as losses and amplifications as gains. False: patients with -2 or 2 at a gene are
        left out there, and with them the strongest changes.
    transform
        ``"rank_normal"``: Welch's test on normal scores. None: on the values as they are; on skewed features
        that is no valid test (see Notes).
    min_samples
        Fewest patients with a value in either group.
    covariates
        What to adjust for. Columns of ``adata.obs`` (subtype, purity, fraction of the genome altered): numbers
        as they are, anything else by category. Keys of ``adata.obsm``, such as ``"X_pca"``, with all columns:
        hidden factors. Patients without them are left out, and named.
    n_permutations
        Permutations of the patients against the calls, for family-wise error rates (largest statistic of
        all tests) and p-values of bins. 0 = none.
    bin_size
        Bases of a genome bin.
    kind, layer
        Features of these kinds only (``adata.var["kind"]``); values of this layer. Default: all, ``X``.
    patient_key
        Column of ``adata.obs`` (and of ``cna.obs`` if there) that names patients; default: the row names.
    positions
        Frame of gene positions (hg38): ``chrom``, ``start``, ``end`` by ``gene``. Default: these columns of
        ``cna.var``, else :func:`ghistpy.datasets.gene_positions`.
    cis_window
        A pair is in cis if the gene of the feature starts within so many bases on the same chromosome.
    n_jobs
        Threads for permutations; results do not depend on it.
    seed
        Of the permutations.
    key_added
        Key in ``uns``.
    progress
        Show a bar over permutations.

    Notes
    -----
    Written to ``adata.uns[key_added]`` (read it with :func:`ghistpy.get.cna`), K genes and F features:

    ========================= =============== ==========================================================
    key                       dtype, shape    meaning
    ========================= =============== ==========================================================
    ``mean_difference``       float32 (K, F)  mean of gains minus mean of losses, on the tested scale
    ``t``                     float32 (K, F)  Welch's t, positive where gains are higher
    ``log10_pval``            float64 (K, F)  log10 of the two-sided p-value; NaN = no test
    ``log10_pval_adj``        float32 (K, F)  the same by Benjamini and Hochberg over all pairs
    ``n_loss``, ``n_gain``    int32 (K, P)    patients, by pattern of missing values
    ``genes``                 frame           gene, chrom, start, end, bin, n_tests, score, top_feature,
                                              top_log10_pval
    ``features``              frame           feature, gene, chrom, start, test, modal_mass, pattern
    ``bins``                  frame           chrom, start, end, n_genes, score, score_per_feature, pval,
                                              pval_adj
    ``deviate``               float32 (K, F)  statistics as normal deviates (with permutations)
    ``calls``                 int8 (K', n)    -1, 0, 1 of the patients tested, one row per distinct row of calls
    ``call_row``              int32 (K,)      which of them each gene has
    ``null_largest``          float64 (B, 2)  largest deviate of each permutation, without and with ties
    ``notes``                 str             what was left out, λ and parameters (JSON)
    ========================= =============== ==========================================================

    Null hypothesis: the feature has the same mean in patients with loss and with gain of the gene. Tested
    per pair of gene and feature; pairs are far from independent, since neighbouring genes share their calls
    (``notes["n_distinct_calls"]``).

    *Welch's test with Bonferroni is not valid on real features.* Their skew makes some test of a million
    significant in every permuted data set. Normal scores cure that; features with a value that 5 % of the
    patients share, or that are constant within a group, are tested by permutation (the difference of means,
    ``n_permutations`` or else 999 times), so their p-values cannot fall below 1 / (B + 1).

    Scores of bins, the sum of -log10 p over genes and features by the number of genes, describe where on the
    genome associations lie. They are no tests; ``pval`` of a bin (with permutations) is one.

    Genes on chrX and chrY and genes without position are left out and counted. With covariates: least
    squares with heteroscedastic errors (HC2) and degrees of freedom after Bell and McCaffrey, which without
    covariates is Welch's test. On small groups this errs on the safe side. The adjustment is linear in the
    covariates: of a feature with ties, which cannot follow one linearly, it leaves a rest (see docs).

    Cost: O(K' n F) for K' distinct rows of calls, n patients; as much again per permutation.

    Raises
    ------
    ValueError
        Calls outside -2 .. 2, repeated or no common patients, no gene with a position, no group large
        enough, features that are all constant or missing, infinite values, unknown kind, layer, column or
        transform.

    References
    ----------
    Welch, Biometrika 34:28 (1947), doi:10.1093/biomet/34.1-2.28. Mermel et al. (GISTIC2), Genome Biol 12:R41
    (2011), doi:10.1186/gb-2011-12-4-r41. Westfall and Young, Resampling-Based Multiple Testing (1993).

    Examples
    --------
    >>> import ghistpy as gp
    >>> cohort = gp.datasets.simulate_cohort(n_patients=80, seed=1)
    >>> gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"])
    >>> best = gp.get.cna(cohort, n_top=1)
    >>> bool(best["pval_adj"].item() < 0.01)
    True
    """
    _check(transform, min_samples, n_permutations, bin_size)
    calls = _genome.read_calls(cna, patient_key)
    table = _genome.position_table(cna, positions)
    names = _cna.patients(adata, patient_key)
    rows, call_rows, notes = _genome.match_patients(names, calls)
    design, kept = _cna.covariates(adata, covariates, rows)
    notes |= _genome.left_out("patients_without_covariates", names[rows[~kept]])
    rows, call_rows = rows[kept], call_rows[kept]
    features = _cna.features(adata, kind, layer, rows)
    genes, at, dropped = _genome.locate(calls.genes, table)
    groups = _cna.Groups.of(calls, call_rows, at, deep=deep)
    bins = _cna.make_bins(genes, bin_size)
    tested = _cna.run(
        groups, features, design, _cna.bin_matrix(groups, genes, len(bins)), transform=transform,
        min_samples=min_samples, n_permutations=n_permutations, seed=seed, n_jobs=n_jobs,
        progress=_bar if progress else None,
    )  # fmt: skip
    _place_features(features, adata, table)
    params = {
        "deep": deep, "transform": transform, "min_samples": min_samples, "covariates": covariates,
        "n_permutations": n_permutations, "bin_size": bin_size, "kind": kind, "layer": layer, "cis_window": cis_window,
        "seed": seed,
    }  # fmt: skip
    notes |= dropped | features.notes
    notes |= {"n_distinct_calls": len(groups.low), "n_missing_calls": calls.n_missing, "params": params}
    adata.uns[key_added] = _result(groups, tested, genes, features, bins, notes)


def _check(transform: str | None, min_samples: int, n_permutations: int, bin_size: int) -> None:
    if transform not in _TRANSFORMS:
        raise ValueError(f"transform={transform!r}: expected 'rank_normal' or None")
    if min_samples < 2:
        raise ValueError(f"min_samples={min_samples!r}: a group needs 2 patients for a variance")
    if n_permutations < 0:
        raise ValueError(f"n_permutations={n_permutations!r}: expected 0 or more")
    if bin_size < 1:
        raise ValueError(f"bin_size={bin_size!r}: expected a number of bases")


def _bar(iterable: Any, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(iterable, total=total, desc="permutations")


def _place_features(features: _cna.Table, adata: AnnData, table: pd.DataFrame) -> None:
    """Where the gene of every feature lies (column ``gene`` of ``adata.var``, else the name of the feature)."""
    var, frame = adata.var.iloc[features.columns], features.frame
    gene = var["gene"] if "gene" in var else var.index.to_series()
    frame["gene"] = gene.astype(object).where(gene.notna(), "").astype(str).to_numpy()
    placed = table.reindex(frame["gene"])
    frame["chrom"] = placed["chrom"].astype(object).where(placed["chrom"].notna(), "").astype(str).to_numpy()
    frame["start"] = placed["start"].fillna(-1).astype(np.int64).to_numpy()


def in_cis(genes: pd.DataFrame, features: pd.DataFrame, cis_window: int) -> np.ndarray:
    """(K, F) bool: the gene of the feature starts within the window on the same chromosome."""
    same = genes["chrom"].to_numpy(dtype=str)[:, None] == features["chrom"].to_numpy(dtype=str)
    near = np.abs(genes["start"].to_numpy()[:, None] - features["start"].to_numpy()) <= cis_window
    return same & near & (features["start"].to_numpy() >= 0)


def _result(
    groups: _cna.Groups,
    tested: _cna.Tested,
    genes: pd.DataFrame,
    features: _cna.Table,
    bins: pd.DataFrame,
    notes: dict[str, Any],
) -> dict[str, Any]:
    from ghistpy.stats.tails import inflation, log_bh

    found, row, null, params = tested.groups, groups.row, tested.null, notes["params"]
    asked = params["n_permutations"] > 0
    log10_p = (found.log_p / np.log(10))[row]
    adjusted = (log_bh(found.log_p[row]) / np.log(10)).astype(np.float32)
    per_gene = (~np.isnan(log10_p)).sum(axis=1)
    genes["n_tests"] = per_gene
    with np.errstate(invalid="ignore"):
        genes["score"] = np.where(per_gene > 0, -np.nansum(log10_p, axis=1) / per_gene, np.nan)
    _score_bins(bins, genes, log10_p, null if asked else None)
    best = np.argmin(np.where(np.isnan(log10_p), np.inf, log10_p), axis=1)
    genes["top_feature"] = features.frame["feature"].to_numpy()[best]
    genes["top_log10_pval"] = log10_p[np.arange(len(genes)), best]
    cis = in_cis(genes, features.frame, params["cis_window"])
    plain = ~tested.ties
    log_p = found.log_p[row]
    notes |= {
        "n_patients": groups.low.shape[1],
        "n_genes": len(genes),
        "n_genes_tested": int((per_gene > 0).sum()),
        "n_features": len(features.frame),
        "n_tests": int(per_gene.sum()),
        "n_features_by_permutation": int(tested.ties.sum()),
        "n_permutations_of_ties": len(null.largest) if null is not None and tested.ties.any() else 0,
        "inflation": inflation(log_p[:, plain]),
        "inflation_trans": inflation(np.where(cis, np.nan, log_p)[:, plain]),
    }
    if asked:
        notes["inflation_permuted"] = [float(v) for v in np.quantile(null.inflation, [0.5, 0.05, 0.95])]
    out = {
        "mean_difference": found.difference.astype(np.float32)[row],
        "t": found.t.astype(np.float32)[row],
        "log10_pval": log10_p,
        "log10_pval_adj": adjusted,
        "n_loss": found.n_low[row],
        "n_gain": found.n_high[row],
        "genes": genes,
        "features": features.frame,
        "bins": bins,
        "calls": groups.calls,
        "call_row": row.astype(np.int32),
        "notes": json.dumps(notes),
    }
    return out | ({"deviate": null.deviate[row], "null_largest": null.largest} if asked else {})


def _score_bins(bins: pd.DataFrame, genes: pd.DataFrame, log10_p: np.ndarray, null: Any) -> None:
    """Sum of -log10 p by genes of the bin with a test; p-values by permutation. NaN without a test."""
    from ghistpy.stats.tails import log_bh

    at, n_bins = genes["bin"].to_numpy(), len(bins)
    tested = genes["n_tests"].to_numpy() > 0
    total = np.bincount(at, -np.nansum(log10_p, axis=1), n_bins)
    bins["n_genes"] = np.bincount(at[tested], minlength=n_bins)
    with np.errstate(invalid="ignore"):
        bins["score"] = np.where(bins["n_genes"] > 0, total / bins["n_genes"], np.nan)
        tests = np.bincount(at, genes["n_tests"], n_bins)
        bins["score_per_feature"] = np.where(tests > 0, total / tests, np.nan)
    if null is not None:
        p = np.where(bins["n_genes"] > 0, (1 + null.bin_exceed) / (1 + len(null.largest)), np.nan)
        bins["pval"], bins["pval_adj"] = p, np.exp(log_bh(np.log(p)))
