"""Associations with copy-number changes along the genome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.pl._labels import place_labels
from ghistpy.pl._style import INK, MUTED, despine, get_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

# lengths of chr1 … chr22, X, Y of GRCh38 in bases
_HG38 = dict(
    zip(
        [f"chr{c}" for c in (*range(1, 23), "X", "Y")],
        (
            248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717,
            133797422, 135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616,
            64444167, 46709983, 50818468, 156040895, 57227415,
        ),
        strict=True,
    )
)  # fmt: skip
_COLOURS = ("#0072B2", "#7FB2D6")
_SIGNIFICANT = "#D55E00"
_VALUES = {
    "score_per_feature": "mean −log₁₀ p of gene × feature",
    "score": "Σ −log₁₀ p / genes",
}


def cna_genome(
    adata: AnnData,
    *,
    value: str = "score_per_feature",
    n_hotspots: int = 10,
    min_distance: int = 10_000_000,
    alpha: float = 0.05,
    key: str = _keys.CNA,
    ax: Axes | None = None,
) -> Axes:
    """Draw the score of every genome bin over the chromosomes of hg38, and name the highest.

    Parameters
    ----------
    adata
        Patients x features after :func:`ghistpy.tl.cna_association`.
    value
        ``"score_per_feature"`` or ``"score"`` of the bins.
    n_hotspots
        So many peaks are named by the gene of the bin with the smallest p; fewer where there is no room.
    min_distance
        Bases between two named peaks of one chromosome.
    alpha
        With permutations: bins whose adjusted p is at most this are drawn in orange.
    key
        Key that ``cna_association`` wrote.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        One bar per bin (at least wide enough to be seen). The scores are descriptive, and the figure says
        so unless permutations were made.

    Raises
    ------
    ValueError
        There is no result, or an unknown ``value``.

    Examples
    --------
    >>> import ghistpy as gp
    >>> cohort = gp.datasets.simulate_cohort(n_patients=80, seed=1)
    >>> gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"])
    >>> gp.pl.cna_genome(cohort).get_ylabel()
    'mean −log₁₀ p of gene × feature'
    """
    from ghistpy.get import cna

    if value not in _VALUES:
        raise ValueError(f"value={value!r}: expected one of {list(_VALUES)}")
    bins, genes = cna(adata, part="bins", key=key), cna(adata, part="genes", key=key)
    offset, edges, names = _layout(bins)
    ax = get_axes(ax, (10.5, 3.0))
    x = np.array([offset[c] for c in bins["chrom"]]) + (bins["start"] + bins["end"]) / 2
    y, total = bins[value].to_numpy(dtype=float), edges[-1]
    colours = _colours(bins, list(names), alpha)
    width = np.maximum(bins["end"] - bins["start"] + 1, total / 1200)
    shown = np.isfinite(y)
    ax.bar(x[shown], y[shown], width[shown], color=colours[shown], linewidth=0, gid="bins")
    for i in range(0, len(names), 2):
        ax.axvspan(edges[i], edges[i + 1], color="#F4F4F4", zorder=0, lw=0)
    ax.set_xlim(0, total)
    ax.set_ylim(0, np.nanmax(y) * 1.3)
    middle = (edges[:-1] + edges[1:]) / 2
    ax.set_xticks(middle, [n.removeprefix("chr") for n in names], fontsize=7)
    ax.set_xlabel("chromosome (hg38)", fontsize=8)
    ax.set_ylabel(_VALUES[value], fontsize=8)
    despine(ax)
    ax.tick_params(axis="x", length=0)
    _legend(ax, bins, alpha)
    best = _hotspots(bins, y, n_hotspots, min_distance)
    features = cna(adata, part="features", key=key).set_index("feature")["gene"]
    labels = [_top_gene(genes[genes["bin"] == i], features) for i in best]
    place_labels(ax, x.to_numpy()[best], y[best], labels, italic=True)
    return ax


def _layout(bins: pd.DataFrame) -> tuple[dict[str, int], np.ndarray, tuple[str, ...]]:
    """Offset of every chromosome, its borders, and their names: 22 of hg38 and whatever else has bins."""
    there = set(bins["chrom"])
    length = {c: n for c, n in _HG38.items() if c in there or c not in ("chrX", "chrY")}
    for other in sorted(there - set(length)):
        length[other] = int(bins.loc[bins["chrom"] == other, "end"].max())
    # bins of another assembly may end behind the chromosome
    length = {c: max(n, int(bins.loc[bins["chrom"] == c, "end"].max() if c in there else 0)) for c, n in length.items()}
    edges = np.concatenate([[0], np.cumsum(list(length.values()))])
    return dict(zip(length, edges.tolist(), strict=False)), edges, tuple(length)


def _colours(bins: pd.DataFrame, names: list[str], alpha: float) -> np.ndarray:
    colours = np.array([_COLOURS[names.index(c) % 2] for c in bins["chrom"]], dtype=object)
    if "pval_adj" in bins:
        colours[(bins["pval_adj"] <= alpha).to_numpy()] = _SIGNIFICANT
    return colours


def _legend(ax: Axes, bins: pd.DataFrame, alpha: float) -> None:
    if "pval_adj" not in bins:
        text, colour = "descriptive: bins were not tested", MUTED
    else:
        n = int((bins["pval_adj"] <= alpha).sum())
        text, colour = f"orange: {n} of {len(bins)} bins with permutation p (BH) ≤ {alpha:g}", INK
    ax.text(0.995, 1.02, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, color=colour, gid="note")


def _hotspots(bins: pd.DataFrame, y: np.ndarray, n: int, min_distance: int) -> list[int]:
    """The highest bins, no two of them close to each other."""
    chosen: list[int] = []
    chrom, start = bins["chrom"].to_numpy(dtype=str), bins["start"].to_numpy()
    for i in np.argsort(-np.where(np.isfinite(y), y, -np.inf), kind="stable"):
        if len(chosen) == n or not np.isfinite(y[i]):
            break
        if all(chrom[i] != chrom[j] or abs(start[i] - start[j]) >= min_distance for j in chosen):
            chosen.append(int(i))
    return chosen


def _top_gene(genes: pd.DataFrame, feature_genes: pd.Series) -> Any:
    """The gene of a bin with the smallest p; of genes with the same calls the one that is itself a feature."""
    own = genes["gene"].to_numpy() == feature_genes.reindex(genes["top_feature"]).to_numpy()
    return genes.assign(other=~own).sort_values(["top_log10_pval", "other"], kind="stable")["gene"].iloc[0]
