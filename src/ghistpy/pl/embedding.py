"""Cells in the space of their expression, and markers on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D

from ghistpy import _keys
from ghistpy.pl._draw import bounds, draw_background, finish_map, frame_of, inside, marks_of, shapes_in
from ghistpy.pl._image import Extent
from ghistpy.pl._style import EXPRESSION_CMAP, INK, MUTED, get_axes, outside_legend, type_colours
from ghistpy.pl.maps import _column, _is_number, _numbers, _range, _shared_bar, _View
from ghistpy.pl.neighbours import notes_of, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_NEW_ROW_AFTER = 5  # panels


def embedding(
    adata_or_sdata: AnnData | SpatialData,
    color: str = _keys.CELL_TYPE,
    *,
    table_key: str | None = None,
    basis: str = _keys.UMAP,
    cmap: str = EXPRESSION_CMAP,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cells in two dimensions, coloured by type or by a gene.

    Parameters
    ----------
    adata_or_sdata
        Table or slide on which :func:`ghistpy.tl.embed` ran.
    color
        A categorical or numeric column of ``obs``, or a gene (as stored in ``X``).
    table_key
        Table of the slide.
    basis
        Key of ``obsm``; its first two columns are drawn. Cells without a place (not sampled) are left out,
        and how many are drawn is stated.
    cmap
        Colour map of numbers.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        No such ``obsm``, gene or column.
    """
    table, where = table_of(adata_or_sdata, table_key)
    if basis not in table.obsm:
        raise ValueError(f"basis={basis!r} is not in obsm of {where} (available: {list(table.obsm)}); run tl.embed")
    place = np.asarray(table.obsm[basis], dtype=np.float64)[:, :2]
    rows = np.flatnonzero(np.isfinite(place).all(axis=1))
    seed = notes_of(table, basis).get("seed", 0)
    rows = np.random.default_rng(seed).permutation(rows)  # no type lies on top of all others
    ax = get_axes(ax, (5.6, 4.4))
    size = float(np.clip(20_000 / max(len(rows), 1), 0.5, 14))
    style = {"s": size, "lw": 0, "rasterized": True}
    if color in table.obs and not _is_number(table, color):
        import pandas as pd

        labels = pd.Categorical(table.obs[color])
        colours = type_colours(labels.categories)
        rgba = np.array([*(to_rgba(c) for c in colours.values()), to_rgba("#DDDDDD")])
        ax.scatter(*place[rows].T, c=rgba[labels.codes[rows]], **style)
        dot = {"marker": "o", "ls": "", "ms": 6, "mec": "none"}
        outside_legend(ax, [Line2D([], [], color=c, label=n, **dot) for n, c in colours.items()], title=color)
    else:
        values, label = _numbers(table, color, where)
        rows = rows[np.argsort(values[rows], kind="stable")]
        norm = _range(values[rows])
        ax.scatter(*place[rows].T, c=values[rows], cmap=cmap, norm=norm, **style)
        _shared_bar([ax], norm, cmap, label)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    for spine in ax.spines.values():
        spine.set_color(MUTED)
    name = basis.removeprefix("X_").upper()
    ax.set_xlabel(f"{name} 1", fontsize=8)
    ax.set_ylabel(f"{name} 2", fontsize=8)
    drawn = f"{len(rows):,} of {table.n_obs:,} cells" if len(rows) < table.n_obs else f"{len(rows):,} cells"
    ax.set_title(drawn, fontsize=8, color=INK, loc="left")
    return ax


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

    Parameters
    ----------
    sdata
        The slide.
    genes
        Genes, drawn as log1p(count) whatever the table holds.
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

    Raises
    ------
    ValueError
        An unknown table or gene.
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
    panels = (["H&E"] if image_key is not None else []) + (["cell type"] if typed else []) + genes
    if not panels:
        raise ValueError("genes: none given, and there is neither image nor cell type to draw")
    scales = _scales(tables, genes, shared_scale)
    x0, y0, x1, y1 = extent
    wide = float(np.clip((x1 - x0) / (y1 - y0), 0.5, 2.5))
    figure, axes = plt.subplots(
        len(keys), len(panels), squeeze=False, layout="compressed",
        figsize=(2.7 * wide * len(panels) + 1.4, 2.7 * len(keys) + 0.9),
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    colours = _type_colours(tables, cell_type_key)
    for row, key, table, at in zip(axes, keys, tables, marks, strict=True):
        shapes = shapes_in(sdata, table, image_key, extent)
        for ax, panel in zip(row, panels, strict=True):
            draw_background(ax, picture, extent, fade=0.0 if panel == "H&E" else fade)
            view = _View(ax, extent, inside(at, extent), shapes, table.n_obs)
            if panel == "cell type" and panel not in genes:
                view.colours(_rgba(table, cell_type_key, colours))
            elif panel in scales:
                view.values(_log_counts(table, panel), scales[panel], cmap)
        row[0].set_ylabel(key, fontsize=9, color=INK)
        finish_map(row[0], extent)
    _finish(axes, panels, genes, scales, colours, cmap, shared_scale)
    return axes


def _finish(
    axes: np.ndarray, panels: list[str], genes: list[str], scales: dict, colours: dict, cmap: str, shared: bool
) -> None:
    for column, panel in enumerate(panels):
        axes[0, column].set_title(panel, fontsize=9, color=INK, fontstyle="italic" if panel in genes else "normal")
    if "cell type" in panels and colours:
        dot = {"marker": "o", "ls": "", "ms": 6, "mec": "none"}
        handles = [Line2D([], [], color=c, label=n, **dot) for n, c in colours.items()]
        axes[0, 0].figure.legend(
            handles=handles, loc="outside lower center", frameon=False, fontsize=8, ncols=min(len(handles), 8)
        )
    if shared and genes:
        _shared_bar(list(axes[:, -len(genes) :].ravel()), scales[genes[0]], cmap, "log1p(count)")
        return
    for gene in genes:
        _shared_bar(list(axes[:, panels.index(gene)]), scales[gene], cmap, "log1p(count)")


def _log_counts(table: AnnData, gene: str) -> np.ndarray:
    """log1p(count) of a gene: what in-silico tables hold already."""
    values = _column(table, gene)
    units = table.uns.get(_keys.UNS, {}).get("units")
    return values if units == _keys.UNITS_LOG1P or "log1p" in table.uns else np.log1p(np.maximum(values, 0))


def _scales(tables: list[AnnData], genes: list[str], shared: bool) -> dict[str, Normalize]:
    out = {}
    for gene in genes:
        found = [_log_counts(t, gene) for t in tables]
        varying = [v for v in found if v.size and v.max() > v.min()]
        out[gene] = _range((varying or found)[0])
    if shared and genes:
        one = Normalize(min(n.vmin for n in out.values()), max(n.vmax for n in out.values()))
        return dict.fromkeys(genes, one)
    return out


def _type_colours(tables: list[AnnData], key: str) -> dict[str, str]:
    names = sorted({str(n) for t in tables if key in t.obs for n in t.obs[key].dropna().unique()})
    return type_colours(names)


def _rgba(table: AnnData, key: str, colours: dict) -> np.ndarray:
    import pandas as pd

    if key not in table.obs:
        return np.zeros((table.n_obs, 4))
    labels = pd.Categorical(table.obs[key])
    table_of_colours = [to_rgba(colours[str(c)]) if str(c) in colours else to_rgba("white") for c in labels.categories]
    return np.array([*table_of_colours, to_rgba("white")])[labels.codes]
