"""What neighbouring cells have in common: correlation, pairs of types, Ripley's L."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from ghistpy import _keys
from ghistpy.pl._style import (
    INK,
    MUTED,
    OKABE_ITO,
    despine,
    get_axes,
    known_types,
    number,
    outside_legend,
    type_colours,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

DIVERGING_CMAP = "PuOr_r"  # two hues that every common colour vision tells apart
_BAND = "95 % of shuffled types,\npointwise"
_BANDS, _WITHIN = "shuffled types: around\nthe 95 % band of each", "within its own band"
_NUMBERS_UP_TO = 14  # types, of an interaction matrix
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
        Genes from the top down; the legend says which pairs of cells, and the axis how many genes had no value.

    Raises
    ------
    ValueError
        A key was not computed or a gene is unknown.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.neighborhood_correlation(sdata)
    >>> len(gp.pl.nn_correlation(sdata, n_genes=3).get_yticks())
    3
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
        ax.scatter(values[key], y, s=22, zorder=2, label=_pairs_label(table, key), gid=key, **style)
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.set_yticks(y, values.index, fontsize=7, fontstyle="italic")
    ax.set_ylim(len(values) - 0.4, -0.6)
    n_nan = int(table.var[keys[0]].isna().sum())
    without = f"\n{n_nan} {'gene' if n_nan == 1 else 'genes'} without value" if n_nan else ""
    ax.set_xlabel(f"correlation with neighbours{without}", fontsize=8)
    despine(ax)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), handletextpad=0.2)
    return ax


def _pairs_label(table: AnnData, key: str) -> str:
    """Which pairs of cells a correlation was taken over; the key itself where nothing was noted."""
    notes = notes_of(table, key)
    if "graph" not in notes:
        return key
    k, _, rest = str(notes["graph"]).partition(" nearest neighbours")
    parts = [f"nearest neighbour{rest}" if k == "1" else str(notes["graph"])]
    if notes.get("min_distance_um") and "µm on" not in parts[0]:
        parts.append(f"from {notes['min_distance_um']:g} µm on")
    parts += ["within type"] if notes.get("within_type") else []
    parts += ["{} to {}".format(*notes["between"])] if notes.get("between") else []
    parts += ["density regressed out"] if notes.get("adjust_density") else []
    parts += ["away from the border"] if notes.get("border_rule") else []
    return ", ".join(parts)


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
        Ratios and z-scores are symmetric; fractions, in percent of all pairs, fill one triangle and sum to 100.
        Numbers in the cells (of up to 14 types); a dot where the adjusted p-value is below .05; grey where
        there is no value.

    Raises
    ------
    ValueError
        Nothing stored under that key, or an unknown value.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.cell_type_interaction(sdata, radius=30)
    >>> len(gp.pl.interaction(sdata).get_xticks()) == sdata["measured"].obs["cell_type"].nunique()
    True
    """
    table, where = table_of(adata_or_sdata, table_key)
    if value not in ("log2_ratio", "zscore", "fraction"):
        raise ValueError(f"value={value!r}: expected 'log2_ratio', 'zscore' or 'fraction'")
    frame = stored_frame(table, key, ["cell_type", "neighbor_type", value], where, "tl.cell_type_interaction")
    names = sorted(set(frame["cell_type"]) | set(frame["neighbor_type"]))
    matrix, small = np.full((len(names),) * 2, np.nan), np.zeros((len(names),) * 2, dtype=bool)
    first = np.array([names.index(n) for n in frame["cell_type"]])
    second = np.array([names.index(n) for n in frame["neighbor_type"]])
    first, second = np.maximum(first, second), np.minimum(first, second)
    share = value == "fraction"
    matrix[first, second] = 100 * frame[value] if share else frame[value]
    small[first, second] = frame["pval_adj"].to_numpy() < 0.05
    if not share:
        matrix[second, first], small[second, first] = matrix[first, second], small[first, second]
    if not np.isfinite(matrix).any():
        withheld = notes_of(table, key).get("n_perms") and notes_of(table, key).get("in_silico")
        reason = "withheld for types that were predicted" if withheld else "z-scores need n_perms="
        raise ValueError(f"key={key!r}: no {value!r} is stored ({reason}); draw value='log2_ratio'")
    cell = 0.5 if len(names) <= _NUMBERS_UP_TO else 0.22  # inches
    ax = get_axes(ax, (2.4 + cell * len(names), 1.5 + 0.92 * cell * len(names)))
    _draw_matrix(ax, matrix, small, names, value, vmax)
    if small.any():
        note = "dot: adjusted p < .05, null of exchangeable types"
    elif frame["pval_adj"].isna().all() and notes_of(table, key).get("in_silico"):
        note = "predicted types: no p-values"
    else:
        note = ""
    ax.set_title(note, fontsize=7.5, color=INK, loc="left")
    return ax


_INTERACTION_LABELS = {
    "log2_ratio": "log₂(observed / shuffled types)",
    "zscore": "z-score against shuffled types",
    "fraction": "% of neighbour pairs",
}


def _draw_matrix(
    ax: Axes, matrix: np.ndarray, small: np.ndarray, names: list[str], value: str, vmax: float | None
) -> None:
    share = value == "fraction"
    top = vmax if vmax is not None else float(np.nanmax(np.abs(matrix)))
    top = min(top, 3.0) if vmax is None and value == "log2_ratio" else top
    top = top if top > 0 else 1.0
    cmap = plt.get_cmap("viridis" if share else DIVERGING_CMAP).with_extremes(bad="#DDDDDD")
    shown = np.ma.masked_invalid(matrix)
    picture = ax.imshow(shown, cmap=cmap, vmin=0 if share else -top, vmax=top)
    if share:  # each pair of types once
        above = np.triu(np.ones(matrix.shape), 1)[..., None] * np.ones(4)
        ax.imshow(above, interpolation="nearest", gid="upper")
    _write_numbers(ax, matrix, small, top, not share)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    over = np.nanmax(np.abs(matrix)) > top
    extend = ("max" if share else "both") if over else "neither"
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.7, pad=0.02, extend=extend)
    bar.set_label(_INTERACTION_LABELS[value], fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)


def _write_numbers(ax: Axes, matrix: np.ndarray, small: np.ndarray, top: float, diverging: bool) -> None:
    for i, j in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
        v = matrix[i, j]
        dark = abs(v) > 0.6 * top if diverging else v < 0.55 * top
        parts = [number(v if abs(v) >= 0.05 else 0.0, ".1f")] if len(matrix) <= _NUMBERS_UP_TO else []
        parts += ["•"] if small[i, j] else []
        colour = "white" if dark else INK
        ax.text(j, i, " ".join(parts), ha="center", va="center", fontsize=6.5, color=colour)


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
        Above 0: clustered up to that distance, below: apart. With permutations of the types: of one curve
        the pointwise 95 % band; of several curves, each of which has its own band, one band around all of
        them, and curves are thin and dotted where they lie within their own.

    Raises
    ------
    ValueError
        Nothing stored under that key, or an unknown type.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=600, n_genes=5)
    >>> gp.tl.ripley_l(sdata, max_radius=40, step=5)
    >>> gp.pl.ripley(sdata, "Malignant").get_title()
    'around Malignant'
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
    ax = get_axes(ax, (3.6, 3.4), [*wanted, _BANDS, _WITHIN])
    curves = frame[frame["cell_type"] == cell_type].set_index("neighbor_type")
    colours = type_colours(names, known_types(adata_or_sdata, notes_of(table, key).get("cell_type_key", "")))
    handles = [_draw_l(ax, curves.loc[[name]], name, colours[name]) for name in wanted]
    if "low" in frame and curves.loc[wanted, "low"].notna().any():
        handles += _draw_bands(ax, curves.loc[wanted], single=len(wanted) == 1)
    ax.axhline(0, color=MUTED, lw=0.8, zorder=0)
    ax.set_xlabel("distance r, µm", fontsize=8)
    ax.set_ylabel("L(r) − r, µm", fontsize=8)
    ax.set_title(f"around {cell_type}", fontsize=9, color=INK)
    ax.margins(x=0)
    despine(ax)
    outside_legend(ax, handles, title="neighbours")
    return ax


def _draw_l(ax: Axes, part: pd.DataFrame, name: str, colour: Any) -> Line2D:
    """One curve: dotted where it lies within its band, else solid."""
    r, value = part["radius"].to_numpy(dtype=float), part["l_minus_r"].to_numpy(dtype=float)
    if "low" in part and part["low"].notna().any():
        inside = ((value >= part["low"] - r) & (value <= part["high"] - r)).to_numpy()
        ax.plot(r, value, color=colour, lw=0.9, ls=":", gid=name)
        # a piece of the line is solid when one of its ends lies outside
        kept = ~inside | np.append(~inside[1:], False) | np.insert(~inside[:-1], 0, False)
        ax.plot(r, np.where(kept, value, np.nan), color=colour, lw=1.6, gid=f"outside:{name}")
    else:
        ax.plot(r, value, color=colour, lw=1.6, gid=name)
    return Line2D([], [], color=colour, lw=1.6, label=name)


def _draw_bands(ax: Axes, curves: pd.DataFrame, *, single: bool) -> list[Any]:
    by_radius = curves.groupby("radius")
    r = np.array(sorted(by_radius.groups), dtype=float)
    low, high = by_radius["low"].min() - r, by_radius["high"].max() - r
    label = _BAND if single else _BANDS
    band = ax.fill_between(r, low, high, color=MUTED, alpha=0.25, lw=0, gid="envelope", label=label, zorder=0.5)
    return [band, Line2D([], [], color=INK, lw=0.9, ls=":", label=_WITHIN)]


def notes_of(table: AnnData, key: str) -> dict[str, Any]:
    """What a verb noted under a key."""
    return json.loads(table.uns.get(key + _keys.NOTES, "{}"))
