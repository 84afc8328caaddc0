"""Spatially variable genes: on tissue, and in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from ghistpy import _keys
from ghistpy.pl._draw import Marks, bounds, draw_background, draw_circles, finish_map, frame_of, inside, marks_of
from ghistpy.pl._image import Extent
from ghistpy.pl._style import EXPRESSION_CMAP, INK, MUTED, despine, get_axes, outside_legend
from ghistpy.pl.maps import _range, _shared_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_SCORE = {"moran": "Moran's I", "geary": "Geary's C", "sparkx": "SPARK-X, -log10 p"}
_BELOW, _ABOVE, _NONE = "#0072B2", "#B3B3B3", "#E69F00"


def svg(
    adata_or_sdata: AnnData | SpatialData,
    genes: Sequence[str] | None = None,
    *,
    n_genes: int = 6,
    key: str = _keys.SVG,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    window_um: Extent | None = None,
    n_columns: int = 3,
    cmap: str = EXPRESSION_CMAP,
) -> np.ndarray:
    """Draw the most spatially variable genes on the tissue.

    Parameters
    ----------
    adata_or_sdata
        A table with a result of :func:`ghistpy.tl.svg`, or the slide that holds it.
    genes
        Genes to draw; None = the ``n_genes`` best by rank.
    n_genes
        How many.
    key
        Key that ``tl.svg`` wrote.
    table_key
        Table of the slide; None = its only one.
    layer
        Layer to draw instead of ``X``.
    image_key
        H&E image to draw below, of a SpatialData; None = none.
    window_um
        (x0, y0, x1, y1) in µm; None = all.
    n_columns
        Panels in a row.
    cmap
        Colour map; each gene has its own scale, from the 1st to the 99th percentile, which its bar states.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per gene, best first; x and y in µm, y downwards.

    Raises
    ------
    ValueError
        No such result, table, layer, gene or image, or no coordinates.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=300, n_genes=8).tables["measured"]
    >>> gp.tl.svg(table)
    >>> axes = gp.pl.svg(table, n_genes=2)
    >>> axes[0].get_title().startswith(gp.get.svg(table)["gene"][0])
    True
    """
    from ghistpy.get import svg as read

    frame = read(adata_or_sdata, table_key=table_key, key=key).set_index("gene")
    table, sdata = _table(adata_or_sdata, table_key)
    genes = list(frame.index[:n_genes]) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    unknown = [g for g in genes if g not in table.var_names]
    if unknown or not genes:
        raise ValueError(f"genes: {unknown[:5]} are not in the table (it has {table.var_names[:3].tolist()} ...)")
    if image_key is not None and sdata is None:
        raise ValueError(f"image_key={image_key!r}: an AnnData has no image; give the SpatialData")
    marks = _marks(sdata, table)
    picture, extent = (
        frame_of(sdata, image_key, window_um, marks)
        if image_key is not None
        else (None, window_um or bounds([marks], margin=0.02) or (0.0, 0.0, 1.0, 1.0))
    )
    axes = _grid(len(genes), n_columns, extent)
    shown = inside(marks, extent)
    for ax, gene in zip(axes, genes, strict=True):
        values = _values(table, gene, layer)
        draw_background(ax, picture, extent, fade=0.5)
        norm = _range(values[shown.rows])
        # high values on top, where circles overlap
        order = shown.take(np.argsort(values[shown.rows], kind="stable"))
        draw_circles(ax, order, extent, array=values[order.rows], norm=norm, cmap=cmap)
        finish_map(ax, extent)
        _shared_bar([ax], norm, cmap, "")
        ax.set_title(_title(gene, frame, frame.attrs["notes"]["method"]), fontsize=8.5, color=INK)
    return axes


def _grid(n: int, n_columns: int, extent: Extent) -> np.ndarray:
    """Axes (n,) whose panels have the shape of the window."""
    columns = min(n_columns, n)
    rows = -(-n // columns)
    tall = np.clip((extent[3] - extent[1]) / max(extent[2] - extent[0], 1e-9), 0.3, 2.0)
    size = (3.3 * columns, (2.7 * tall + 0.35) * rows)
    _, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for unused in grid.ravel()[n:]:
        unused.set_axis_off()
    return grid.ravel()[:n]


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
        Genes to name.
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
    ax = get_axes(ax, (5.6, 3.8))
    pval = frame["pval_adj"].to_numpy()
    groups = (
        (f"adjusted p ≤ {alpha:g}", pval <= alpha, _BELOW),
        (f"adjusted p > {alpha:g}", pval > alpha, _ABOVE),
        ("p withheld" if notes.get("withheld") else "no p-value", np.isnan(pval), _NONE),
    )
    handles = []
    for label, member, colour in groups:
        if member.any():
            part = frame[member]
            text = f"{label} ({int(member.sum())})"
            handles.append(ax.scatter(part["rank"], part["score"], s=10, color=colour, lw=0, label=text, zorder=3))
    _name_best(ax, frame.head(n_labels))
    ax.set_xlabel("rank", fontsize=9)
    ax.set_ylabel(_SCORE[notes["method"]], fontsize=9)
    ax.set_title(f"null: {notes['null']}", fontsize=8.5, color=MUTED, loc="left")
    if notes["method"] == "geary":
        ax.invert_yaxis()  # low = neighbours are alike
    outside_legend(ax, handles)
    despine(ax)
    return ax


def _name_best(ax: Axes, best: pd.DataFrame) -> None:
    """Names in a column beside the points, evenly spread, each joined to its point."""
    if not len(best):
        return
    x0, x1 = ax.get_xlim()
    heights = np.linspace(0.97, 0.97 - 0.045 * (len(best) - 1), len(best))
    for (_, row), height in zip(best.iterrows(), heights, strict=True):
        ax.annotate(
            row["gene"],
            (row["rank"], row["score"]),
            xytext=(0.55, height),
            textcoords="axes fraction",
            fontsize=6.5,
            color=INK,
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.4, "shrinkA": 1, "shrinkB": 2},
        )
    ax.set_xlim(x0, x1)


def _title(gene: str, frame: pd.DataFrame, method: str) -> str:
    if gene not in frame.index:
        return f"{gene} (no score)"
    row = frame.loc[gene]
    text = f"{gene}  {_SCORE[method]} {row['score']:.3g}"
    if np.isnan(row["pval_adj"]):
        return text
    return f"{text}, adj. p {row['pval_adj']:.2g}" if row["pval_adj"] > 0 else f"{text}, adj. p < 1e-300"


def _table(adata_or_sdata: AnnData | SpatialData, table_key: str | None) -> tuple[AnnData, SpatialData | None]:
    if not hasattr(adata_or_sdata, "tables"):
        return adata_or_sdata, None
    tables = adata_or_sdata.tables
    return tables[next(iter(tables)) if table_key is None else table_key], adata_or_sdata


def _marks(sdata: SpatialData | None, table: AnnData) -> Marks:
    """Circles of the rows; without a slide or areas, of the size that fits between neighbours."""
    if sdata is not None or _keys.AREA_UM2 in table.obs:
        return marks_of(sdata, table, "the table") if sdata is not None else _of_area(table)
    from ghistpy.geometry import local_density

    xy = _xy(table)
    density = local_density(xy) if len(xy) > 6 else float("nan")
    size = 0.9 * float(np.sqrt(1e6 / density)) if np.isfinite(density) else 8.0
    return Marks(np.arange(len(xy)), xy, np.full(len(xy), size))


def _of_area(table: AnnData) -> Marks:
    xy = _xy(table)
    return Marks(np.arange(len(xy)), xy, 2 * np.sqrt(table.obs[_keys.AREA_UM2].to_numpy(dtype=np.float64) / np.pi))


def _xy(table: AnnData) -> np.ndarray:
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(f"the table has no obsm[{_keys.SPATIAL!r}] (x, y in µm; available: {list(table.obsm)})")
    return np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)


def _values(table: AnnData, gene: str, layer: str | None) -> np.ndarray:
    if layer is not None and layer not in table.layers:
        raise ValueError(f"layer={layer!r} is not in the table (available: {list(table.layers)})")
    column = (table.X if layer is None else table.layers[layer])[:, table.var_names.get_loc(gene)]
    column = column.compute() if hasattr(column, "compute") else column
    column = column.toarray() if hasattr(column, "toarray") else column
    return np.asarray(column, dtype=np.float64).ravel()
