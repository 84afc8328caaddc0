"""Cell types, measured beside predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys
from ghistpy.pl._style import INK, MUTED, despine, get_axes, known_types, outside_legend, type_colours
from ghistpy.pl.neighbours import notes_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def composition(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of every cell type: measured beside predicted, or region by region.

    Parameters
    ----------
    adata_or_sdata
        Slide or predicted table with an evaluation of nuclei whose types were measured; or one on which
        :func:`ghistpy.tl.composition` ran.
    table_key
        Table of the slide.
    key
        Key of its evaluation or of its composition. None = ``"evaluation"``, or ``"composition"`` where there is no
        evaluation.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Of an evaluation: types from the most to the least frequent measured one; filled bars measured,
        hollow predicted. Of a composition: one stacked bar per region.

    Raises
    ------
    ValueError
        There is neither, or the evaluation compared no cell types.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.composition(sdata, groupby="niche")
    >>> gp.pl.composition(sdata, table_key="measured").get_xlabel()
    'share of cells'
    """
    from ghistpy.get import evaluation

    table = getattr(adata_or_sdata, "tables", {}).get(table_key, adata_or_sdata)
    key = _default_key(table) if key is None else key
    if key + _keys.NOTES in getattr(table, "uns", {}):
        known = known_types(adata_or_sdata, notes_of(table, key).get("cell_type_key", _keys.CELL_TYPE))
        return _stacked(table.uns[key], known, ax)
    frame = evaluation(adata_or_sdata, table_key=table_key, key=key)
    rows = frame[
        (frame["level"] == "cell_type") & frame["metric"].isin(["proportion_measured", "proportion_predicted"])
    ]
    if rows.empty:
        raise ValueError(f"key={key!r} holds no cell types: {frame.attrs['notes'].get('cell_types', 'not compared')}")
    table = rows.astype({"name": str, "metric": str}).pivot(index="name", columns="metric", values="value")
    colours = type_colours(table.index, known_types(adata_or_sdata, _keys.CELL_TYPE))
    table = table.sort_values("proportion_measured", kind="stable")
    ax = get_axes(ax, (4.2, 0.9 + 0.42 * len(table)))
    y, fill = np.arange(len(table)), [colours[n] for n in table.index]
    ax.barh(y + 0.19, table["proportion_measured"], 0.34, color=fill, label="measured")
    ax.barh(y - 0.19, table["proportion_predicted"], 0.34, color="white", edgecolor=fill, lw=1.4, label="predicted")
    ax.set_yticks(y, table.index, fontsize=8)
    ax.set_xlabel("share of nuclei", fontsize=8)
    ax.set_xlim(left=0)
    despine(ax)
    ax.tick_params(axis="y", length=0)
    overall = frame[(frame["level"] == "overall") & (frame["metric"] == "composition_rmse")]["value"].item()
    ax.text(0.98, 0.03, f"RMSE = {overall:.3f}", transform=ax.transAxes, ha="right", fontsize=8, color=INK)
    handles = ax.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2
    )
    for patch, filled in zip(handles.get_patches(), (True, False), strict=True):
        patch.set(facecolor=MUTED if filled else "white", edgecolor=MUTED, linewidth=1.4)
    return ax


def _default_key(table: AnnData | SpatialData) -> str:
    """Of the evaluation, unless the table holds a composition only."""
    uns = getattr(table, "uns", {})
    composed = _keys.COMPOSITION + _keys.NOTES in uns and _keys.EVALUATION not in uns.get(_keys.UNS, {})
    return _keys.COMPOSITION if composed else _keys.EVALUATION


def _stacked(frame: pd.DataFrame, known: set[str], ax: Axes | None) -> Axes:
    shares = frame.pivot(index="region", columns="cell_type", values="proportion")
    shares = shares.loc[frame["region"].drop_duplicates()]  # "all" first
    n = frame.groupby("region")["n"].sum()
    ax = get_axes(ax, (3.8, 0.9 + 0.34 * len(shares)), shares.columns)
    left = np.zeros(len(shares))
    for name, colour in type_colours(shares.columns, known).items():
        width = shares[name].fillna(0).to_numpy()
        ax.barh(np.arange(len(shares)), width, 0.72, left=left, color=colour, edgecolor="white", lw=0.5, label=name)
        left = left + width
    ax.set_yticks(range(len(shares)), [f"{r}  ({n[r]:,})" for r in shares.index], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of cells", fontsize=8)
    despine(ax)
    ax.tick_params(axis="y", length=0)
    outside_legend(ax, ax.get_legend_handles_labels()[0])
    return ax


def confusion(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str = _keys.EVALUATION,
    ax: Axes | None = None,
) -> Axes:
    """Draw which measured type is predicted as which: rows measured, coloured by the share of the row.

    Parameters
    ----------
    adata_or_sdata
        Slide or predicted table with an evaluation of nuclei whose types were measured.
    table_key, key
        Predicted table and the key of its evaluation.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Percentages are of the measured type, the number of its cells is beside its name. A type that
        was only predicted has an empty row.

    Raises
    ------
    ValueError
        There is no evaluation, or it compared no cell types.
    """
    from ghistpy.get import evaluation

    frame = evaluation(adata_or_sdata, table_key=table_key, key=key)
    long = evaluation(adata_or_sdata, table_key=table_key, key=key, part="confusion")
    counts = long.astype({"measured": str, "predicted": str}).pivot(index="measured", columns="predicted", values="n")
    names, n = counts.index.tolist(), counts.to_numpy(dtype=float)
    total = n.sum(1, keepdims=True)
    share = np.divide(n, total, out=np.full_like(n, np.nan), where=total > 0)
    ax = get_axes(ax, (1.9 + 0.52 * len(names), 1.5 + 0.46 * len(names)))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(n), strict=True):
        percent = 100 * share[i, j]
        ax.text(
            j,
            i,
            f"{percent:.0f}" if percent >= 1 else "<1",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[i, j] > 0.55 else INK,
        )
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(
        range(len(names)), [f"{t}  ({int(k):,})" for t, k in zip(names, total[:, 0], strict=True)], fontsize=8
    )
    ax.set_xlabel("predicted", fontsize=9)
    ax.set_ylabel("measured", fontsize=9)
    ax.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="both", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    overall = frame[frame["level"] == "overall"].set_index("metric")["value"]
    ax.set_title(
        f"% of measured type · accuracy {overall['accuracy']:.2f} · macro-F1 {overall['macro_f1']:.2f}",
        fontsize=8.5,
        color=INK,
    )
    return ax
