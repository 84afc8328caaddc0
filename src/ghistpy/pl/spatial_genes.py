"""Spatially variable genes: on tissue, and in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from ghistpy import _keys
from ghistpy.pl._draw import bounds, draw_background, draw_circles, finish_map, frame_of, inside, table_marks
from ghistpy.pl._image import Extent
from ghistpy.pl._style import EXPRESSION_CMAP, INK, number, p_text
from ghistpy.pl._values import colour_bar, common_scale, expression, scale_of
from ghistpy.pl.neighbours import table_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

SCORES = {"moran": "Moran's I", "geary": "Geary's C", "sparkx": "SPARK-X, −log₁₀ p"}


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
    shared_scale: bool = False,
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
        Counts are drawn as log1p(count), other values as they are.
    shared_scale
        One colour scale for all genes.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One per gene, best first; x and y in µm, y downwards.

    Raises
    ------
    ValueError
        No such result, table, layer, gene or image, no coordinates, or cells of several slides.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=300, n_genes=8).tables["measured"]
    >>> gp.tl.svg(table)
    >>> axes = gp.pl.svg(table, n_genes=2)
    >>> axes[0].get_title() == gp.get.svg(table)["gene"][0]
    True
    """
    from ghistpy.get import svg as read

    frame = read(adata_or_sdata, table_key=table_key, key=key).set_index("gene")
    table, where = table_of(adata_or_sdata, table_key)
    sdata = adata_or_sdata if hasattr(adata_or_sdata, "tables") else None
    genes = list(frame.index[:n_genes]) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    unknown = [g for g in genes if g not in table.var_names]
    if unknown or not genes:
        raise ValueError(f"genes: {unknown[:5]} are not in the table (it has {table.var_names[:3].tolist()} ...)")
    if image_key is not None and sdata is None:
        raise ValueError(f"image_key={image_key!r}: an AnnData has no image; give the SpatialData")
    marks = table_marks(sdata, table, where)
    picture, extent = (
        frame_of(sdata, image_key, window_um, marks)
        if image_key is not None
        else (None, window_um or bounds([marks], margin=0.02) or (0.0, 0.0, 1.0, 1.0))
    )
    axes = _grid(len(genes), n_columns, extent)
    shown = inside(marks, extent)
    drawn = [expression(table, gene, layer) for gene in genes]
    norms = [scale_of(values[shown.rows]) for values, _ in drawn]
    if shared_scale:
        norms = [common_scale(norms)] * len(norms)
        colour_bar(axes, norms[0], cmap, drawn[0][1])
    for ax, gene, (values, label), norm in zip(axes, genes, drawn, norms, strict=True):
        draw_background(ax, picture, extent, fade=0.5)
        # high values on top, where circles overlap
        order = shown.take(np.argsort(values[shown.rows], kind="stable"))
        draw_circles(ax, order, extent, array=values[order.rows], norm=norm, cmap=cmap)
        finish_map(ax, extent)
        if not shared_scale:
            colour_bar([ax], norm, cmap, label)
        _title(ax, gene, _score_text(gene, frame, frame.attrs["notes"]["method"]))
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


def _title(ax: Axes, gene: str, score: str) -> None:
    ax.set_title(gene, fontsize=9, color=INK, fontstyle="italic", pad=15)
    style = {"ha": "center", "fontsize": 7, "color": INK, "gid": "score"}
    ax.annotate(score, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", **style)


def _score_text(gene: str, frame: pd.DataFrame, method: str) -> str:
    if gene not in frame.index:
        return "no score"
    row = frame.loc[gene]
    text = f"{SCORES[method]} {number(row['score'], '.3g')}"
    return text if np.isnan(row["pval_adj"]) else f"{text}, adj. p {p_text(row['pval_adj'])}"
