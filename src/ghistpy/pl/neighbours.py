"""What neighbouring cells have in common: correlation, pairs of types, Ripley's L."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from ghistpy import _keys
from ghistpy.pl._style import INK, MUTED, OKABE_ITO, despine, get_axes, outside_legend, type_colours

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

DIVERGING_CMAP = "PuOr_r"  # two hues that every common colour vision tells apart
_MARKERS = ("o", "D", "s", "^", "v")


def table_of(adata_or_sdata: AnnData | SpatialData, table_key: str | None) -> tuple[AnnData, str]:
    """The table to draw and what errors call it."""
    if not hasattr(adata_or_sdata, "tables"):
        return adata_or_sdata, "the table"
    tables = adata_or_sdata.tables
    if table_key is None and len(tables) == 1:
        table_key = next(iter(tables))
    if table_key is None or table_key not in tables:
        raise ValueError(f"table_key={table_key!r} is not among the tables of this slide (available: {list(tables)})")
    return tables[table_key], f"table_key={table_key!r}"


def stored_frame(table: AnnData, key: str, columns: Sequence[str], where: str, verb: str) -> pd.DataFrame:
    """A frame of ``uns`` with these columns, or an error that names the verb that writes it."""
    import pandas as pd

    frame = table.uns.get(key)
    if not isinstance(frame, pd.DataFrame) or not set(columns) <= set(frame.columns):
        known = [k for k, v in table.uns.items() if isinstance(v, pd.DataFrame) and set(columns) <= set(v.columns)]
        raise ValueError(f"key={key!r}: {where} holds no such result (there are {known}); run {verb} first")
    return frame


def nn_correlation(
    adata_or_sdata: AnnData | SpatialData,
    *,
    keys: str | Sequence[str] = _keys.NN_CORRELATION,
    table_key: str | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw the genes whose values resemble those of the neighbours most.

    Parameters
    ----------
    adata_or_sdata
        Table or slide on which :func:`ghistpy.tl.neighborhood_correlation` ran.
    keys
        One or more columns of ``var`` that it wrote (``key_added``), such as the raw correlation and the one
        within types; one marker each, joined by a line.
    table_key
        Table of the slide.
    genes
        Genes to draw, in this order; None = the ``n_genes`` with the largest value of the first key.
    n_genes
        How many.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Genes from the top down; how many had no value is stated.

    Raises
    ------
    ValueError
        A key was not computed or a gene is unknown.
    """
    table, where = table_of(adata_or_sdata, table_key)
    keys = [keys] if isinstance(keys, str) else list(keys)
    missing = [k for k in keys if k not in table.var]
    if missing or not keys:
        raise ValueError(f"keys: {missing} are not in var of {where}; run tl.neighborhood_correlation first")
    values = table.var[keys]
    if genes is None:
        shown = values[keys[0]].dropna().sort_values(ascending=False, kind="stable").index[:n_genes]
    else:
        unknown = [g for g in genes if g not in table.var_names]
        if unknown:
            raise ValueError(f"genes: {unknown[:5]} are not in {where}")
        shown = list(genes)
    values = values.loc[shown]
    ax = get_axes(ax, (4.4, 1.0 + 0.19 * len(values)))
    y = np.arange(len(values))
    if len(keys) > 1:
        drawn = values.to_numpy(dtype=float)
        ax.hlines(y, drawn.min(axis=1), drawn.max(axis=1), color=MUTED, lw=0.8, zorder=1)
    for i, key in enumerate(keys):
        style = {"color": OKABE_ITO[(1, 0, 2, 3, 5)[i % 5]], "marker": _MARKERS[i % 5]}
        ax.scatter(values[key], y, s=22, zorder=2, label=key, gid=key, **style)
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.set_yticks(y, values.index, fontsize=7, fontstyle="italic")
    ax.set_ylim(len(values) - 0.4, -0.6)
    n_nan = int(table.var[keys[0]].isna().sum())
    ax.set_xlabel("correlation with neighbours" + (f" ({n_nan} genes without value)" if n_nan else ""), fontsize=8)
    despine(ax)
    ax.tick_params(axis="y", length=0)
    if len(keys) > 1:
        ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return ax


def interaction(
    adata_or_sdata: AnnData | SpatialData,
    *,
    key: str = _keys.INTERACTION,
    table_key: str | None = None,
    value: str = "log2_ratio",
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often cell types are neighbours, as a heat map.

    Parameters
    ----------
    adata_or_sdata
        Table or slide on which :func:`ghistpy.tl.cell_type_interaction` ran.
    key
        Its ``key_added``.
    table_key
        Table of the slide.
    value
        ``"log2_ratio"`` or ``"zscore"`` (diverging about 0), or ``"fraction"``.
    vmax
        End of the colour scale; None = the largest absolute value shown, and at most 3 for log2 ratios.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Symmetric; numbers in the cells; a dot where the adjusted p-value is below .05; grey where there is
        no value.

    Raises
    ------
    ValueError
        Nothing stored under that key, or an unknown value.
    """
    table, where = table_of(adata_or_sdata, table_key)
    if value not in ("log2_ratio", "zscore", "fraction"):
        raise ValueError(f"value={value!r}: expected 'log2_ratio', 'zscore' or 'fraction'")
    frame = stored_frame(table, key, ["cell_type", "neighbor_type", value], where, "tl.cell_type_interaction")
    names = sorted(set(frame["cell_type"]) | set(frame["neighbor_type"]))
    matrix, small = np.full((len(names),) * 2, np.nan), np.zeros((len(names),) * 2, dtype=bool)
    first = np.array([names.index(n) for n in frame["cell_type"]])
    second = np.array([names.index(n) for n in frame["neighbor_type"]])
    matrix[first, second] = matrix[second, first] = frame[value]
    small[first, second] = small[second, first] = frame["pval_adj"].to_numpy() < 0.05
    if not np.isfinite(matrix).any():
        raise ValueError(f"key={key!r}: no {value!r} is stored (z-scores need n_perms=)")
    ax = get_axes(ax, (2.4 + 0.5 * len(names), 1.5 + 0.46 * len(names)))
    top = vmax if vmax is not None else float(np.nanmax(np.abs(matrix)))
    top = min(top, 3.0) if vmax is None and value == "log2_ratio" else top
    top = top if top > 0 else 1.0
    diverging = value != "fraction"
    cmap = plt.get_cmap(DIVERGING_CMAP if diverging else "viridis").with_extremes(bad="#DDDDDD")
    picture = ax.imshow(matrix, cmap=cmap, vmin=-top if diverging else 0, vmax=top)
    _write_numbers(ax, matrix, small, top, diverging)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    label = {
        "log2_ratio": "log2(observed / shuffled types)",
        "zscore": "z-score against shuffled types",
        "fraction": "share of neighbour pairs",
    }[value]
    over = np.nanmax(np.abs(matrix)) > top
    bar = ax.figure.colorbar(
        picture, ax=ax, shrink=0.7, pad=0.02, extend=("both" if diverging else "max") if over else "neither"
    )
    bar.set_label(label, fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    if small.any():
        ax.set_title("dot: adjusted p < .05, null of exchangeable types", fontsize=7.5, color=INK, loc="left")
    return ax


def _write_numbers(ax: Axes, matrix: np.ndarray, small: np.ndarray, top: float, diverging: bool) -> None:
    for i, j in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
        v = matrix[i, j]
        dark = abs(v) > 0.6 * top if diverging else v < 0.55 * top
        text = f"{v:.1f}" if diverging else f"{100 * v:.1f}%"
        ax.text(
            j, i, text + (" •" if small[i, j] else ""), ha="center", va="center", fontsize=6.5,
            color="white" if dark else INK,
        )  # fmt: skip


def ripley(
    adata_or_sdata: AnnData | SpatialData,
    cell_type: str,
    *,
    neighbor_types: str | Sequence[str] | None = None,
    key: str = _keys.RIPLEY_L,
    table_key: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw L(r) - r from one cell type to others.

    Parameters
    ----------
    adata_or_sdata
        Table or slide on which :func:`ghistpy.tl.ripley_l` ran.
    cell_type
        Type from which distances are taken.
    neighbor_types
        Types whose curves are drawn; None = all.
    key
        Its ``key_added``.
    table_key
        Table of the slide.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Above 0: clustered up to that distance, below: apart. A band is the pointwise 95 % envelope of
        shuffled types, when there were permutations.

    Raises
    ------
    ValueError
        Nothing stored under that key, or an unknown type.
    """
    table, where = table_of(adata_or_sdata, table_key)
    columns = ["cell_type", "neighbor_type", "radius", "l_minus_r"]
    frame = stored_frame(table, key, columns, where, "tl.ripley_l")
    names = sorted(set(frame["cell_type"]))
    wanted = [neighbor_types] if isinstance(neighbor_types, str) else neighbor_types
    wanted = names if wanted is None else list(wanted)
    unknown = [n for n in (cell_type, *wanted) if n not in names]
    if unknown:
        raise ValueError(f"cell_type, neighbor_types: {unknown} have no L in {where}; the types are {names}")
    ax = get_axes(ax, (5.2, 3.4))
    colours, handles = type_colours(names), []
    for name in wanted:
        part = frame[(frame["cell_type"] == cell_type) & (frame["neighbor_type"] == name)]
        r = part["radius"].to_numpy(dtype=float)
        if "low" in part and part["low"].notna().any():
            ax.fill_between(r, part["low"] - r, part["high"] - r, color=colours[name], alpha=0.18, lw=0, gid="envelope")
        ax.plot(r, part["l_minus_r"], color=colours[name], lw=1.6, gid=name)
        handles.append(Line2D([], [], color=colours[name], lw=1.6, label=name))
    ax.axhline(0, color=MUTED, lw=0.8, zorder=0)
    ax.set_xlabel("distance r, µm", fontsize=8)
    ax.set_ylabel("L(r) - r, µm", fontsize=8)
    ax.set_title(f"around {cell_type}", fontsize=9, color=INK)
    ax.margins(x=0)
    despine(ax)
    outside_legend(ax, handles, title="neighbours")
    return ax


def notes_of(table: AnnData, key: str) -> dict[str, Any]:
    """What a verb noted under a key."""
    return json.loads(table.uns.get(key + _keys.NOTES, "{}"))
