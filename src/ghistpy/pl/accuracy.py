"""How well genes are predicted: what ``tl.evaluate`` stored, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ghistpy import _keys
from ghistpy.pl._style import INK, METHOD_COLOURS, METHOD_NAMES, MUTED, darker, despine, get_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

CEILING = "noise_ceiling"
_ALL = "all genes"
_METRIC_NAMES = {
    "pearson": "Pearson r per gene",
    "spearman": "Spearman ρ per gene",
    "pearson_depth_adjusted": "Pearson r per gene, depth-adjusted",
    "within_type_pearson": "Pearson r per gene within cell types",
    "skill": "skill over the type mean per gene",
    "rmse": "RMSE per gene",
    "ssim_global": "SSIM (global) per gene",
    "variance_ratio": "variance predicted / measured per gene",
}
_POINTS_BELOW = 400  # more points than this hide the box


def gene_accuracy(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str = _keys.EVALUATION,
    metric: str = "pearson",
    gene_sets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    ceiling: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracy of the genes of each set, the model beside its baselines.

    Boxes span the quartiles, whiskers reach 1.5 times their distance, points are genes. Genes whose
    metric is NaN (constant ones) are left out of a box and counted under it.

    Parameters
    ----------
    adata_or_sdata
        Slide or predicted table with an evaluation (:func:`ghistpy.tl.evaluate`).
    table_key, key
        Predicted table (``"insilico_spots"`` for spots) and the key of its evaluation.
    metric
        Any per-gene metric of the evaluation, such as ``"pearson"``, ``"pearson_depth_adjusted"``,
        ``"within_type_pearson"`` or ``"skill"``.
    gene_sets
        Sets to draw, in this order; None = all of them. ``"all genes"`` is added when no set holds all.
    methods
        Methods to draw, in this order; None = model, then all baselines.
    ceiling
        Mark the median noise ceiling of each set by a dashed line, where the evaluation has one.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no such evaluation, metric, method or gene set; the message lists those there are.

    Examples
    --------
    The best prediction that the pixels of a simulated slide allow:

    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=12)
    >>> measured = sdata["measured"]
    >>> sdata["insilico"] = gp.io.make_table(
    ...     measured.layers["attainable"],
    ...     measured.var_names,
    ...     region="nuclei",
    ...     instance_key="cell_id",
    ...     ids=measured.obs["cell_id"],
    ...     obs={"cell_type": measured.obs["cell_type"]},
    ...     obsm={"spatial": measured.obsm["spatial"]},
    ...     uns={"ghistpy": {"units": "log1p(expected count)"}},
    ... )
    >>> gp.tl.evaluate(sdata, baselines=("type_mean",))
    >>> gp.pl.gene_accuracy(sdata, metric="pearson").get_ylabel()
    'Pearson r per gene'
    """
    from ghistpy.get import evaluation

    frame = evaluation(adata_or_sdata, table_key=table_key, key=key)
    members = evaluation(adata_or_sdata, table_key=table_key, key=key, part="gene_sets")
    genes = frame[(frame["level"] == "gene") & (frame["metric"] == metric)]
    if genes.empty:
        there = sorted(frame.loc[frame["level"] == "gene", "metric"].astype(str).unique())
        raise ValueError(f"metric={metric!r} is not in the evaluation {key!r}; it has {there}")
    values = genes.pivot(index="name", columns="method", values="value")
    sets = {n: members.loc[members["gene_set"] == n, "gene"].tolist() for n in members["gene_set"].unique()}
    sets = {str(n): g for n, g in sets.items()}
    if not any(len(g) == len(values) for g in sets.values()):
        sets[_ALL] = values.index.tolist()
    chosen = _choose(gene_sets, list(sets), "gene_sets")
    ordered = [m for m in METHOD_NAMES if m in values.columns]
    drawn = _choose(methods, ordered, "methods")
    ax = get_axes(ax, (1.6 + 0.34 * len(drawn) * len(chosen) + 0.25 * len(chosen), 3.4))
    for i, name in enumerate(chosen):
        _draw_set(ax, i, values.reindex(sets[name]), drawn)
        if ceiling and CEILING in values:
            top = float(values[CEILING].reindex(sets[name]).median())
            ax.plot([i - 0.45, i + 0.45], [top, top], color=INK, lw=1, ls=(0, (3, 2)), zorder=4, gid="ceiling")
    labels = [_set_label(n, values.reindex(sets[n])[drawn[0]]) for n in chosen]
    _finish(ax, labels, drawn, metric, ceiling and CEILING in values)
    return ax


def _choose(given: Sequence[str] | None, there: list[str], argument: str) -> list[str]:
    if given is None:
        return there
    missing = [g for g in given if g not in there]
    if missing or not len(given):
        raise ValueError(f"{argument}: {missing or 'none given'}; the evaluation has {there}")
    return list(given)


def _alpha(method: str) -> float:
    return 0.75 if method == "model" else 0.35


def _draw_set(ax: Axes, at: int, values: pd.DataFrame, methods: Sequence[str]) -> None:
    width = 0.86 / len(methods)
    for j, method in enumerate(methods):
        x = at - 0.43 + (j + 0.5) * width
        v = values[method].dropna().to_numpy()
        if len(v) == 0:
            continue
        colour = METHOD_COLOURS[method]
        ax.boxplot(
            v,
            positions=[x],
            widths=0.78 * width,
            patch_artist=True,
            showfliers=False,
            manage_ticks=False,
            medianprops={"color": INK, "lw": 1.4, "solid_capstyle": "butt"},
            boxprops={"fc": colour, "alpha": _alpha(method), "ec": colour, "lw": 1.0},
            whiskerprops={"color": colour, "lw": 1.0},
            capprops={"visible": False},
            zorder=2,
        )
        if len(v) <= _POINTS_BELOW:
            jitter = np.random.default_rng(0).uniform(-0.26, 0.26, len(v)) * width
            ax.scatter(
                x + jitter, v, s=7, color=darker(colour), edgecolors="white", linewidths=0.3, zorder=3, gid=method
            )


def _set_label(name: str, values: pd.Series) -> str:
    short, _, note = name.partition(" (")
    missing = int(values.isna().sum())
    lines = [short, f"n = {len(values) - missing}"]
    if missing:
        lines.append(f"{missing} without value")
    if note:
        lines.append(f"({note}".replace(" on the ", "\non the "))
    return "\n".join(lines)


def _finish(ax: Axes, labels: Sequence[str], methods: Sequence[str], metric: str, ceiling: bool) -> None:
    ax.axhline(0, color=MUTED, lw=0.7, zorder=0)
    for i in range(1, len(labels)):
        ax.axvline(i - 0.5, color="#E5E5E5", lw=0.8, zorder=0)
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_xticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylabel(_METRIC_NAMES.get(metric, f"{metric} per gene"), fontsize=9, color=INK)
    despine(ax)
    ax.tick_params(axis="x", length=0)
    if metric in ("pearson", "spearman", "pearson_depth_adjusted", "within_type_pearson", "ssim_global"):
        ax.set_ylim(top=1.0)
    handles: list[Patch | Line2D] = [
        Patch(
            fc=METHOD_COLOURS[m],
            ec=METHOD_COLOURS[m],
            alpha=_alpha(m),
            label=METHOD_NAMES[m],
        )
        for m in methods
    ]
    if ceiling:
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (3, 2)), label="noise ceiling"))
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


def gene_scatter(
    sdata: SpatialData,
    gene: str,
    *,
    measured: str = _keys.MEASURED,
    predicted: str = _keys.INSILICO,
    layer: str | None = None,
    evaluation_key: str = _keys.EVALUATION,
    ax: Axes | None = None,
) -> Axes:
    """Draw predicted against measured expression of one gene, one point per nucleus or spot.

    Both axes carry the scale of the comparison: log1p(count) for cells, log1p(1e4 · count / total) for
    spots. Above 5,000 points the density is drawn. The line is identity.

    Parameters
    ----------
    sdata
        The slide.
    gene
        A gene that both tables hold.
    measured, predicted, layer
        As in :func:`ghistpy.tl.evaluate`.
    evaluation_key
        Where ``tl.evaluate`` stored the correlation; it is written into the figure when it is there.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The tables cannot be paired, or one of them lacks the gene.
    """
    from ghistpy.get.pairs import pair_tables

    pairs = pair_tables(sdata, measured, predicted, layer=layer)
    at = np.flatnonzero(pairs.genes == gene)
    if len(at) == 0:
        raise ValueError(f"gene={gene!r} is not in both tables, which share {len(pairs.genes)}: {pairs.genes[:5]} ...")
    x, y = pairs.truth[:, at].toarray().ravel(), pairs.predicted(at).ravel()
    ax = get_axes(ax, (3.4, 3.4))
    top = max(float(x.max()), float(y.max()), 1e-6) * 1.05
    if len(x) > 5000:
        ax.hexbin(x, y, gridsize=55, bins="log", cmap="Blues", mincnt=1, extent=(0, top, 0, top), linewidths=0)
    else:
        ax.scatter(x, y, s=8, color=METHOD_COLOURS["model"], alpha=0.45, linewidths=0, rasterized=True)
    ax.plot([0, top], [0, top], color=MUTED, lw=0.9, ls=(0, (3, 2)), zorder=0, gid="identity")
    ax.set_xlim(-0.02 * top, top)
    ax.set_ylim(-0.02 * top, top)
    ax.set_aspect("equal")
    scale = "log1p(count)" if pairs.total is None else "log1p(10⁴ · count / total)"
    ax.set_xlabel(f"measured, {scale}", fontsize=8)
    ax.set_ylabel(f"predicted, {scale}", fontsize=8)
    ax.set_title(gene, fontsize=10, fontstyle="italic", color=INK)
    despine(ax)
    lines = [f"n = {len(x):,} {pairs.kind}"]
    r = stored_pearson(sdata.tables[predicted], evaluation_key).get(gene)
    if r is not None and np.isfinite(r):
        lines.insert(0, f"r = {r:.2f}")
    ax.text(0.03, 0.97, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=8, color=INK)
    return ax


def stored_pearson(table: AnnData, key: str) -> dict[str, float]:
    """Gene to Pearson correlation of the model, as ``tl.evaluate`` stored it; empty when it did not."""
    stored = table.uns.get(_keys.UNS, {}).get(key)
    if not isinstance(stored, dict) or "metrics" not in stored:
        return {}
    frame = stored["metrics"]
    rows = (frame["level"] == "gene") & (frame["method"] == "model") & (frame["metric"] == "pearson")
    return dict(zip(frame.loc[rows, "name"], frame.loc[rows, "value"], strict=True))
