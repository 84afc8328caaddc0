"""Cells in the space of their expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgba

from ghistpy import _keys
from ghistpy.pl._style import (
    EXPRESSION_CMAP,
    INK,
    MISSING,
    MUTED,
    dots,
    get_axes,
    is_number,
    known_types,
    levels,
    outside_legend,
    type_colours,
)
from ghistpy.pl._values import colour_bar, scale_of
from ghistpy.pl.maps import numbers_of
from ghistpy.pl.neighbours import notes_of, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


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
        A categorical or numeric column of ``obs``, or a gene (counts as log1p(count)).
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

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> table = sdata["measured"]
    >>> table.obsm["X_umap"] = table.obsm["spatial"]  # in place of that of tl.embed
    >>> gp.pl.embedding(table, "cell_type").get_title(loc="left")
    '200 cells'
    """
    table, where = table_of(adata_or_sdata, table_key)
    if basis not in table.obsm:
        raise ValueError(f"basis={basis!r} is not in obsm of {where} (available: {list(table.obsm)}); run tl.embed")
    place = np.asarray(table.obsm[basis], dtype=np.float64)[:, :2]
    rows = np.flatnonzero(np.isfinite(place).all(axis=1))
    seed = notes_of(table, basis).get("seed", 0)
    rows = np.random.default_rng(seed).permutation(rows)  # no type lies on top of all others
    typed = color in table.obs and not is_number(table, color)
    ax = get_axes(ax, (4.4 if typed else 5.4, 4.4), levels(table.obs[color]) if typed else ())
    size = float(np.clip(20_000 / max(len(rows), 1), 0.5, 14))
    style = {"s": size, "lw": 0, "rasterized": True}
    if typed:
        import pandas as pd

        labels = pd.Categorical(table.obs[color])
        colours = type_colours(labels.categories, known_types(adata_or_sdata, color))
        rgba = np.array([*(to_rgba(c) for c in colours.values()), to_rgba(MISSING)])
        ax.scatter(*place[rows].T, c=rgba[labels.codes[rows]], **style)
        shown = {level: colours[level] for level in levels(table.obs[color])}
        shown |= {"unknown": MISSING} if (labels.codes[rows] < 0).any() else {}
        outside_legend(ax, dots(shown), title=color)
    else:
        if color in table.var_names:
            ax.set_title(color, fontsize=9, color=INK, fontstyle="italic", loc="right")
        values, label = numbers_of(table, color, where)
        rows = rows[np.argsort(values[rows], kind="stable")]
        norm = scale_of(values[rows])
        ax.scatter(*place[rows].T, c=values[rows], cmap=cmap, norm=norm, **style)
        colour_bar([ax], norm, cmap, label)
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
