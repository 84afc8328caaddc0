"""Cells by how they and their neighbours stand to the mean: local Moran's I on tissue."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgba

from ghistpy import _keys
from ghistpy.pl._draw import bounds, draw_background, draw_circles, finish_map, frame_of, inside, table_marks
from ghistpy.pl._style import INK, dots, get_map_axes, outside_legend
from ghistpy.pl.neighbours import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from ghistpy.pl._image import Extent

# code of the quadrant: name and colour; the two that agree are dark, the two that differ light
_QUADRANTS = {
    1: ("high among high", "#D55E00"),
    3: ("low among low", "#0072B2"),
    4: ("high among low", "#F0B840"),
    2: ("low among high", "#7CC4EE"),
}
_GREY, _ALONE = "#C9C9C9", "#EDEDED"
_LINE = 44  # letters of a line of the note, which a map of the usual size has room for


def local_moran(
    adata_or_sdata: AnnData | SpatialData,
    gene: str | None = None,
    *,
    key: str = _keys.LOCAL_MORAN,
    table_key: str | None = None,
    alpha: float | None = 0.05,
    image_key: str | None = None,
    window_um: Extent | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where a gene is high among high neighbours, low among low ones, or unlike its neighbours.

    Parameters
    ----------
    adata_or_sdata
        A table with a result of :func:`ghistpy.tl.local_moran`, or the slide that holds it.
    gene
        One of the genes computed; None = the first.
    key
        Key that ``tl.local_moran`` wrote.
    table_key
        Table of the slide; None = its only one.
    alpha
        Cells with a larger p-value, or without one, are grey. None, or when no cell has a p-value: every cell has
        the colour of its quadrant.
    image_key
        H&E image to draw below, of a SpatialData; None = none.
    window_um
        (x0, y0, x1, y1) in µm; None = all.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards; the legend counts all cells of the table, and a note below the title says that
        p-values are not adjusted, or why there are none.

    Raises
    ------
    ValueError
        No such result, table, gene or image, no coordinates, or cells of several slides.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=400, n_genes=8, seed=1).tables["measured"]
    >>> gp.tl.local_moran(table, table.var_names[0], n_perms=99)
    >>> gp.pl.local_moran(table).get_title() == table.var_names[0]
    True
    """
    table, where = table_of(adata_or_sdata, table_key)
    sdata = adata_or_sdata if hasattr(adata_or_sdata, "tables") else None
    if key not in table.uns or f"{key}_quadrant" not in table.obsm:
        raise ValueError(f"key={key!r}: {where} holds no such result; run tl.local_moran first")
    if image_key is not None and sdata is None:
        raise ValueError(f"image_key={image_key!r}: an AnnData has no image; give the SpatialData")
    notes = table.uns[key]
    genes = [str(g) for g in notes["genes"]]
    gene = genes[0] if gene is None else gene
    if gene not in genes:
        raise ValueError(f"gene={gene!r} has no local Moran's I under key={key!r}; there are {genes}")
    quadrant = np.asarray(table.obsm[f"{key}_quadrant"])[:, genes.index(gene)]
    pval = np.asarray(table.obsm[f"{key}_pval"])[:, genes.index(gene)]
    without = bool(np.isnan(pval).all())
    alpha = None if without else alpha  # a map in grey would show nothing
    shown = np.where((quadrant > 0) & ((pval <= alpha) if alpha is not None else True), quadrant, 0)
    marks = table_marks(sdata, table, where)
    picture, extent = frame_of(sdata, image_key, window_um or bounds([marks], margin=0.02), marks)
    entries = _legend(shown, quadrant, pval, alpha)
    ax = get_map_axes(ax, extent, entries)
    draw_background(ax, picture, extent, fade=0.5)
    rgba = _colours(shown, quadrant)
    kept = inside(marks, extent)
    kept = kept.take(np.argsort(shown[kept.rows] > 0, kind="stable"))  # coloured cells on top
    draw_circles(ax, kept, extent, facecolors=rgba[kept.rows])
    finish_map(ax, extent)
    text = _p_note(notes, without, alpha)
    ax.set_title(gene, fontsize=9, color=INK, fontstyle="italic", pad=6 + 9 * (1 + text.count("\n")))
    style = {"ha": "center", "fontsize": 7, "color": INK, "gid": "note"}
    ax.annotate(text, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", **style)
    outside_legend(ax, dots(entries), title="local Moran's I (cells)")
    return ax


def _colours(shown: np.ndarray, quadrant: np.ndarray) -> np.ndarray:
    """RGBA (n, 4)."""
    by_code = np.array([to_rgba(_GREY), *(to_rgba(_QUADRANTS[code][1]) for code in (1, 2, 3, 4))])
    rgba = by_code[shown]
    rgba[quadrant == 0] = to_rgba(_ALONE)
    return rgba


def _legend(shown: np.ndarray, quadrant: np.ndarray, pval: np.ndarray, alpha: float | None) -> dict[str, str]:
    entries = {f"{name} ({(shown == code).sum():,})": colour for code, (name, colour) in _QUADRANTS.items()}
    grey = (shown == 0) & (quadrant > 0)
    for name, member in ((f"p > {alpha}", grey & ~np.isnan(pval)), ("no p-value", grey & np.isnan(pval))):
        if member.any():
            entries[f"{name} ({member.sum():,})"] = _GREY
    if (quadrant == 0).any():
        entries[f"no neighbours or constant ({(quadrant == 0).sum():,})"] = _ALONE
    return entries


def _p_note(notes: dict, without: bool, alpha: float | None) -> str:
    if without:
        why = f"p withheld: {notes['withheld']}" if notes.get("withheld") else "p not computed: n_perms was 0"
        return f"all cells\n{fill(why, _LINE)}"
    tested = f"p of {notes['n_perms']} permutations, not adjusted for the number of cells"
    return fill(tested if alpha is not None else f"all cells, whatever their p ({tested})", _LINE)
