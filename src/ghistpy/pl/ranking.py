"""Genes in the order of how spatially variable they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys
from ghistpy.pl._style import INK, MUTED, despine, get_axes, outside_legend
from ghistpy.pl.spatial_genes import SCORES

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_NULLS = {
    "values": "values shuffled among cells",
    "within_type": "values shuffled within cell types",
    "map_shift": "maps shifted against each other",
}
_BELOW, _ABOVE, _NONE = "#0072B2", "#B3B3B3", "#E69F00"
_NAME_STEP = 8.2  # points from a name to the next
_NAME_GAP, _NAME_WIDTH = 0.1, 0.17  # of the axes: from the last named point to the names, and their width


def svg_ranking(
    adata_or_sdata: AnnData | SpatialData,
    *,
    key: str = _keys.SVG,
    table_key: str | None = None,
    n_labels: int = 15,
    alpha: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Draw the scores of all genes in their order, the best ones named.

    Parameters
    ----------
    adata_or_sdata
        A table with a result of :func:`ghistpy.tl.svg`, or the slide that holds it.
    key, table_key
        As in :func:`svg`.
    n_labels
        Genes to name; as many as have room beside the points.
    alpha
        Level of the adjusted p-value at which the colour changes; genes without a p-value have a third one.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        No such result or table.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=300, n_genes=8).tables["measured"]
    >>> gp.tl.svg(table, method="sparkx")
    >>> gp.pl.svg_ranking(table).get_xlabel()
    'rank'
    """
    from ghistpy.get import svg as read

    frame = read(adata_or_sdata, table_key=table_key, key=key)
    notes = frame.attrs["notes"]
    ax = get_axes(ax, (5.6, max(3.8, 1.5 + 0.14 * n_labels)))
    pval = frame["pval_adj"].to_numpy()
    withheld = bool(notes.get("withheld"))
    groups = (
        (f"adjusted p ≤ {alpha:g}", pval <= alpha, _BELOW),
        (f"adjusted p > {alpha:g}", pval > alpha, _ABOVE),
        ("p withheld" if withheld else "no p-value", np.isnan(pval), _NONE),
    )
    handles = []
    for label, member, colour in groups:
        if member.any():
            part = frame[member]
            text = f"{label} ({int(member.sum())})"
            handles.append(ax.scatter(part["rank"], part["score"], s=10, color=colour, lw=0, label=text, zorder=3))
    ax.set_xlabel("rank", fontsize=9)
    ax.set_ylabel(SCORES[notes["method"]], fontsize=9)
    if not np.isnan(pval).all():
        null = _NULLS.get(notes["null"], notes["null"])
        ax.set_title(f"null hypothesis: {null}", fontsize=8, color=MUTED, loc="left")
    if notes["method"] == "geary":
        ax.invert_yaxis()  # low = neighbours are alike
    outside_legend(ax, handles)
    despine(ax)
    _name_best(ax, frame, n_labels)
    return ax


def _name_best(ax: Axes, frame: pd.DataFrame, n_labels: int) -> None:
    """Names in a column right of their points and above the rest, each as near to its height as there is room."""
    if not len(frame) or n_labels < 1:
        return
    ax.figure.draw_without_rendering()  # the layout moves axes when it is first drawn
    box = ax.get_window_extent()
    x, y = ((ax.transData.transform(frame[["rank", "score"]]) - (box.x0, box.y0)) / (box.width, box.height)).T
    step = _NAME_STEP / (box.height / ax.figure.dpi * 72)
    best = min(n_labels, len(frame))
    # further right the other points are lower and leave room for more names
    lefts = np.arange(min(x[best - 1] + _NAME_GAP, 1 - _NAME_WIDTH), 1 - _NAME_WIDTH + 0.01, 0.02)
    under = [y[(x > left - 0.02) & (x < left + _NAME_WIDTH)].max(initial=0.0) for left in lefts]
    floors = np.clip(np.array(under) + 0.8 * step, 0.5 * step, 1.0)
    room = ((1 - floors) / step).astype(int) + 1
    place = int(np.argmax(np.minimum(room, best)))
    left, floor, best = lefts[place], floors[place], min(best, room[place])
    turn = np.arange(best) * step
    height = np.minimum.accumulate(np.minimum(y[:best], 1.0) + turn) - turn
    height = np.maximum(height, floor + turn[::-1])
    for (_, row), h in zip(frame.iloc[:best].iterrows(), height, strict=True):
        ax.annotate(
            row["gene"], (row["rank"], row["score"]), xytext=(left, h), textcoords="axes fraction", fontsize=6.5,
            color=INK, va="center", fontstyle="italic", gid="label",
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.4, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip
