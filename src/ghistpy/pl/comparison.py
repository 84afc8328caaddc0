"""Spatial structure of the predicted slide against that of the measured one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from ghistpy import _keys
from ghistpy.pl._labels import Page, place_labels
from ghistpy.pl._style import INK, METHOD_COLOURS, MUTED, despine, known_types, number, type_colours

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_TITLES = {
    "morans_i": "Moran's I",
    "nn_correlation": "correlation with the nearest neighbour",
    "nn_correlation_within_type": "correlation with neighbours of the same type",
    "interaction_log2_ratio": "neighbouring types, log₂(observed / shuffled)",
    "interaction": "neighbouring types, share of pairs",
    "composition": "cell types, share of cells",
}
_DRAWN = ("morans_i", "nn_correlation", "nn_correlation_within_type", "interaction_log2_ratio", "composition")
_UNITS = {"interaction": "pairs of types", "interaction_log2_ratio": "pairs of types", "composition": "types"}


def comparison(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str = _keys.COMPARISON,
    statistics: str | Sequence[str] | None = None,
    n_labels: int = 6,
    n_columns: int = 3,
) -> np.ndarray:
    """Draw predicted against measured statistics: one point per gene, pair of types or type.

    Parameters
    ----------
    adata_or_sdata
        The slide or its predicted table, on which :func:`ghistpy.tl.compare_tables` ran.
    table_key, key
        Predicted table of the slide, and the key that was written.
    statistics
        Which to draw, in this order, such as ``"morans_i"``; None = Moran's I, correlations with neighbours,
        and where there are types, their interaction (log2 ratios) and composition.
    n_labels
        Points to name in each panel, those furthest from identity; as many as have room. All types are named.
    n_columns
        Panels in a row.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per statistic. The dashed line is identity: even a perfect prediction lies above it, for counting
        noise lowers the measured values. ρ is the stored rank correlation, the part that can be preserved.

    Raises
    ------
    ValueError
        There is no such result or statistic.

    Examples
    --------
    See :func:`ghistpy.tl.compare_tables`; then ``gp.pl.comparison(sdata)``.
    """
    from ghistpy.get import comparison as read

    values = read(adata_or_sdata, table_key=table_key, key=key, part="values")
    summary = read(adata_or_sdata, table_key=table_key, key=key).set_index("statistic")
    there = [s for s in _DRAWN if s in summary.index and summary.loc[s, "n"] > 0]
    chosen = there if statistics is None else [statistics] if isinstance(statistics, str) else list(statistics)
    unknown = [s for s in chosen if s not in summary.index]
    if unknown or not chosen:
        raise ValueError(f"statistics: {unknown or 'none given'}; the comparison {key!r} has {list(summary.index)}")
    columns = min(n_columns, len(chosen))
    rows = -(-len(chosen) // columns)
    _, grid = plt.subplots(rows, columns, figsize=(3.4 * columns, 3.5 * rows), squeeze=False, layout="constrained")
    for unused in grid.ravel()[len(chosen) :]:
        unused.set_axis_off()
    axes, parts = grid.ravel()[: len(chosen)], []
    colours = _colours(adata_or_sdata, values)
    for ax, statistic in zip(axes, chosen, strict=True):
        part = values[values["statistic"] == statistic].dropna(subset=["measured", "predicted"])
        _draw_panel(ax, part, statistic, summary.loc[statistic], colours)
        parts.append(part)
    identity = next(line for line in axes[0].lines if line.get_gid() == "identity")
    axes[0].legend(handles=[identity], loc="lower right", frameon=False, fontsize=7, handlelength=1.6)
    page = Page(axes[0])
    for ax, statistic, part in zip(axes, chosen, parts, strict=True):
        _name_outliers(ax, part, statistic, len(part) if statistic == "composition" else n_labels, page)
    return axes


def _colours(adata_or_sdata: AnnData | SpatialData, values: pd.DataFrame) -> dict:
    names = values.loc[values["statistic"] == "composition", "name"]
    return type_colours(names, known_types(adata_or_sdata, _keys.CELL_TYPE))


def _draw_panel(ax: Axes, part: pd.DataFrame, statistic: str, summary: pd.Series, colours: dict) -> None:
    x, y = part["measured"].to_numpy(dtype=float), part["predicted"].to_numpy(dtype=float)
    low, high = (min(x.min(), y.min()), max(x.max(), y.max())) if len(part) else (0.0, 1.0)
    pad = 0.06 * max(high - low, 1e-9)
    limits = (0.0 if statistic in ("composition", "interaction") else low - pad, high + pad)
    types = statistic == "composition"
    colour = [colours[name] for name in part["name"]] if types else METHOD_COLOURS["model"]
    ax.scatter(x, y, s=34 if types else 14, c=colour, alpha=1.0 if types else 0.7, lw=0, zorder=3, gid=statistic)
    ax.plot(limits, limits, color=MUTED, lw=0.9, ls=(0, (3, 2)), zorder=1, gid="identity", label="identity")
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_box_aspect(1)
    ax.set_xlabel("measured", fontsize=8)
    ax.set_ylabel("predicted", fontsize=8)
    ax.set_title(_TITLES.get(statistic, statistic), fontsize=8.5, color=INK, loc="left", pad=16)
    text = f"Spearman ρ = {number(summary['spearman'], '.2f')}, {int(summary['n'])} {_UNITS.get(statistic, 'genes')}"
    text += f" ({int(summary['n_nan'])} without value)" if summary["n_nan"] else ""
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7.5, "color": INK}
    ax.annotate(text, (0, 1), (0, 5), gid="agreement", **style)
    despine(ax)


def _name_outliers(ax: Axes, part: pd.DataFrame, statistic: str, n: int, page: Page) -> None:
    far = (part["predicted"] - part["measured"]).abs().to_numpy(dtype=float)
    top = part.iloc[np.argsort(-far, kind="stable")[:n]]
    names = [f"{a} – {b}" if b else str(a) for a, b in zip(top["name"], top["partner"], strict=True)]
    genes = statistic not in _UNITS
    x, y = top["measured"].to_numpy(), top["predicted"].to_numpy()
    place_labels(ax, x, y, names, fontsize=6.5, italic=genes, page=page)
