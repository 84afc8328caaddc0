"""States of cell types in patients, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch

from ghistpy import _keys
from ghistpy.pl._style import DESCRIPTIVE, INK, MISSING, colours_of, get_axes, groups, outside_legend

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_NOT_STATED = "not stated"
_GAP = "\t"  # between gene and cell type in the name of a row


def state_heatmap(
    adata: AnnData,
    *,
    groupby: str,
    key: str = _keys.DIFFERENTIAL_STATE,
    n: int = 20,
    max_pval_adj: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the strongest differences in state: genes of cell types in rows, patients in columns by group.

    Parameters
    ----------
    adata
        Table of patients with a result of :func:`ghistpy.tl.differential_state`.
    groupby
        Column of ``obs`` by which patients are ordered, such as the groups compared or
        ``"patient_cluster"``; in the order of its categories, patients without a value last.
    key
        ``key_added`` of the tool.
    n
        Rows at most (50 are stored).
    max_pval_adj
        Only rows whose p-value, adjusted over all tests, is at most this.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Standardised values, clipped at ±2.5; grey where a patient has too few cells.

    Raises
    ------
    ValueError
        There is no such result or column, or no row is left.

    Examples
    --------
    See :func:`ghistpy.tl.differential_state`; then ``gp.pl.state_heatmap(adata, groupby="arm")``.
    """
    from ghistpy.get import differential_state as read

    states, results = read(adata, key=key, part="states"), read(adata, key=key)
    if groupby not in adata.obs:
        raise ValueError(f"groupby={groupby!r} is not a column of obs; there are {list(adata.obs.columns)}")
    results = results.sort_values("pval").drop_duplicates(["gene", "cell_type"])
    if max_pval_adj is not None:
        results = results[results["pval_adj_global"] <= max_pval_adj]
    kept = (results["gene"].astype(str) + _GAP + results["cell_type"].astype(str)).head(n)
    wide = states.assign(row=states["gene"].astype(str) + _GAP + states["cell_type"].astype(str)).pivot(
        index="row", columns="patient", values="z"
    )
    kept = [row for row in kept if row in wide.index]
    if not kept:
        raise ValueError(f"max_pval_adj={max_pval_adj}: no row of {key!r} is left")
    column = adata.obs[groupby]
    names = groups(column)
    group = column.astype(object).where(column.notna(), None).map(str, na_action="ignore")
    group = group.groupby(adata.obs_names.astype(str)).first().reindex(wide.columns)
    names += [_NOT_STATED] if group.isna().any() else []
    place = group.fillna(_NOT_STATED).map(names.index).to_numpy()
    order = np.lexsort([np.nan_to_num(wide.loc[kept].to_numpy()).mean(0), place])
    values = wide.loc[kept].to_numpy()[:, order]
    ax = get_axes(ax, (5.2, 1.2 + 0.17 * len(kept)), [groupby, *names])
    ax.set_facecolor(MISSING)
    image = ax.imshow(
        np.ma.masked_invalid(values), aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest"
    )
    _name_rows(ax, kept)
    ax.set_xticks([])
    ax.set_xlabel(f"{values.shape[1]} patients", fontsize=9)
    ax.tick_params(length=0)
    _draw_groups(ax, names, place[order], len(kept), groupby)
    if results.attrs.get("notes", {}).get("descriptive"):
        ax.annotate(
            DESCRIPTIVE, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points", fontsize=8, color=INK,
            gid="descriptive", annotation_clip=False,
        )  # fmt: skip
    bar = ax.figure.colorbar(image, cax=ax.inset_axes([1.02, 0, 0.03, min(0.45, 12 / (5 + len(kept)))]))
    bar.set_label("z", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return ax


def _draw_groups(ax: Axes, names: list[str], place: np.ndarray, n_rows: int, title: str) -> None:
    """A strip above the map with the group of every patient, and its legend."""
    colours = colours_of(n for n in names if n != _NOT_STATED) | {_NOT_STATED: MISSING}
    strip = ax.inset_axes([0, 1.01, 1, 0.03 + 0.15 / max(n_rows, 5)])
    for i, name in enumerate(names):
        at = np.flatnonzero(place == i)
        strip.bar(at, 1, width=1, color=colours[name], label=name)
    strip.set_xlim(-0.5, len(place) - 0.5)
    strip.axis("off")
    outside_legend(ax, [Patch(color=colours[name], label=name) for name in names], title=title, points=58)


def _name_rows(ax: Axes, rows: list[str]) -> None:
    """Genes beside the map, their cell types in a column before them."""
    genes, types = zip(*(row.split(_GAP, 1) for row in rows), strict=True)
    ax.set_yticks(range(len(rows)), genes, fontsize=7, fontstyle="italic")
    width = 8 + 4.8 * max(len(gene) for gene in genes)  # points; a letter of that size is at most this wide
    for i, name in enumerate(types):
        ax.annotate(
            name, (0, i), xycoords=("axes fraction", "data"), xytext=(-width, 0), textcoords="offset points",
            ha="right", va="center", fontsize=7, color=INK, gid="cell_type", annotation_clip=False,
        )  # fmt: skip
