"""Image, cell types and genes side by side, one row per table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize, to_rgba

from ghistpy import _keys
from ghistpy.pl._draw import bounds, draw_background, finish_map, frame_of, inside, marks_of, shapes_in
from ghistpy.pl._image import Extent
from ghistpy.pl._style import EXPRESSION_CMAP, INK, dots, known_types, type_colours
from ghistpy.pl._values import colour_bar, common_scale, expression, scale_of
from ghistpy.pl.maps import View

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_IMAGE, _TYPE = "H&E", "cell type"


def marker_maps(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    table_keys: str | Sequence[str] = _keys.INSILICO,
    cell_type_key: str = _keys.CELL_TYPE,
    image_key: str | None = _keys.IMAGE,
    window_um: Extent | None = None,
    fade: float = 0.6,
    cmap: str = EXPRESSION_CMAP,
    shared_scale: bool = False,
) -> np.ndarray:
    """Draw the image, the cell types and genes side by side, one row per table.

    All tables lie on one image, which is drawn once, beside the first of them.

    Parameters
    ----------
    sdata
        The slide.
    genes
        Genes; counts are drawn as log1p(count).
    table_keys
        One or more tables, such as measured and predicted; one row each. A gene has one colour scale in
        all of them, from the 1st to the 99th percentile of the first table in which it is not constant;
        a type has one colour.
    cell_type_key
        Column of ``obs``; the panel is left out when no table has it.
    image_key
        H&E; None = no image panel.
    window_um
        (x0, y0, x1, y1) in µm; None = all cells.
    fade
        Of the image behind the coloured nuclei: 0 = as it is, 1 = white.
    cmap
        Colour map of genes.
    shared_scale
        One colour scale for all genes, too.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, (tables, panels)
        The image, when there is one, is one Axes in all places of its column.

    Raises
    ------
    ValueError
        An unknown table or gene.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> axes = gp.pl.marker_maps(sdata, "GENE001", table_keys="measured")
    >>> [ax.get_title() for ax in axes[0]]
    ['H&E', 'cell type', 'GENE001']
    """
    from ghistpy.io import get_element

    genes = [genes] if isinstance(genes, str) else list(genes)
    keys = [table_keys] if isinstance(table_keys, str) else list(table_keys)
    tables = [get_element(sdata, "tables", k, "table_keys") for k in keys]
    for key, table in zip(keys, tables, strict=True):
        missing = [g for g in genes if g not in table.var_names]
        if missing:
            raise ValueError(f"genes: {missing} are not in table {key!r}, which holds {table.n_vars} genes")
    marks = [marks_of(sdata, t, f"table_keys={k!r}") for k, t in zip(keys, tables, strict=True)]
    window_um = window_um or bounds(marks, margin=0.02)
    picture, extent = frame_of(sdata, image_key, window_um, marks[0], max_px=900)
    typed = any(cell_type_key in t.obs for t in tables)
    panels = ([_IMAGE] if image_key is not None else []) + ([_TYPE] if typed else []) + genes
    if not panels:
        raise ValueError("genes: none given, and there is neither image nor cell type to draw")
    scales = _scales(tables, genes, shared_scale)
    figure, axes = _grid(len(keys), panels, extent)
    colours = type_colours(_types(tables, cell_type_key), known_types(sdata, cell_type_key))
    for row, key, table, at in zip(axes, keys, tables, marks, strict=True):
        shapes = shapes_in(sdata, table, image_key, extent)
        for ax, panel in zip(row, panels, strict=True):
            if panel == _IMAGE:
                continue
            draw_background(ax, picture, extent, fade=fade)
            view = View(ax, extent, inside(at, extent), shapes, table.n_obs)
            if panel == _TYPE and panel not in genes:
                view.colours(_rgba(table, cell_type_key, colours))
            else:
                view.values(expression(table, panel)[0], scales[panel], cmap)
        # beside the image, which belongs to all rows
        row[int(len(keys) > 1 and _IMAGE in panels and len(panels) > 1)].set_ylabel(key, fontsize=9, color=INK)
    if _IMAGE in panels:
        draw_background(axes[0, 0], picture, extent, fade=0.0)
    finish_map(axes[0, 0], extent)
    _titles_and_legend(figure, axes, panels, genes, colours if typed else {})
    labels = {gene: expression(tables[0], gene)[1] for gene in genes}
    for group in [genes] if shared_scale and genes else [[gene] for gene in genes]:
        columns = [panels.index(gene) for gene in group]
        colour_bar(list(axes[:, columns].ravel()), scales[group[0]], cmap, labels[group[0]], below=True)
    return axes


def _grid(n_rows: int, panels: list[str], extent: Extent) -> tuple[Figure, np.ndarray]:
    """Axes (rows, panels); the image has one for all rows, at their top."""
    x0, y0, x1, y1 = extent
    wide = float(np.clip((x1 - x0) / (y1 - y0), 0.5, 2.5))
    figure = plt.figure(figsize=(2.7 * wide * len(panels) + 0.6, 2.75 * n_rows + 1.1), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    grid = figure.add_gridspec(n_rows, len(panels))
    axes = np.empty((n_rows, len(panels)), dtype=object)
    for i, j in np.ndindex(axes.shape):
        axes[i, j] = axes[0, j] if i and panels[j] == _IMAGE else figure.add_subplot(grid[i, j])
    return figure, axes


def _titles_and_legend(figure: Figure, axes: np.ndarray, panels: list[str], genes: list[str], colours: dict) -> None:
    for ax, panel in zip(axes[0], panels, strict=True):
        ax.set_title(panel, fontsize=9, color=INK, fontstyle="italic" if panel in genes else "normal")
    if colours:
        figure.legend(
            handles=dots(colours), loc="outside lower center", frameon=False, fontsize=8, ncols=min(len(colours), 8)
        )


def _scales(tables: list[AnnData], genes: list[str], shared: bool) -> dict[str, Normalize]:
    out = {}
    for gene in genes:
        found = [expression(t, gene)[0] for t in tables]
        varying = [v for v in found if v.size and v.max() > v.min()]
        out[gene] = scale_of((varying or found)[0])
    return dict.fromkeys(genes, common_scale(list(out.values()))) if shared and genes else out


def _types(tables: list[AnnData], key: str) -> list[str]:
    return sorted({str(n) for t in tables if key in t.obs for n in t.obs[key].dropna().unique()})


def _rgba(table: AnnData, key: str, colours: dict) -> np.ndarray:
    import pandas as pd

    if key not in table.obs:
        return np.zeros((table.n_obs, 4))
    labels = pd.Categorical(table.obs[key])
    table_of_colours = [to_rgba(colours[str(c)]) if str(c) in colours else to_rgba("white") for c in labels.categories]
    return np.array([*table_of_colours, to_rgba("white")])[labels.codes]
