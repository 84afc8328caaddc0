"""Maps: nuclei and spots where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D

from ghistpy import _keys
from ghistpy.pl._draw import (
    Marks,
    Shapes,
    bounds,
    draw_background,
    draw_circles,
    finish_map,
    frame_of,
    inside,
    marks_of,
    shapes_in,
)
from ghistpy.pl._image import Extent, Picture
from ghistpy.pl._style import (
    EXPRESSION_CMAP,
    INK,
    MUTED,
    dots,
    get_map_axes,
    is_number,
    known_types,
    levels,
    outside_legend,
    type_colours,
)
from ghistpy.pl._values import colour_bar, column, expression, scale_of, upper_limit
from ghistpy.pl.accuracy import stored_pearson

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_PER = 1e4


def slide(
    sdata: SpatialData,
    color: str | None = None,
    *,
    table_key: str = _keys.INSILICO,
    image_key: str | None = _keys.IMAGE,
    window_um: Extent | None = None,
    fade: float = 0.45,
    cmap: str = EXPRESSION_CMAP,
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the tissue and its nuclei or spots, coloured by a gene or by a column of ``obs``.

    Parameters
    ----------
    sdata
        The slide.
    color
        A gene (counts as log1p(count)), a categorical column such as ``"cell_type"``, a numeric column, or
        None for the tissue and outlines of nuclei.
    table_key
        Table whose rows are drawn: nuclei with their segmented shape in a near view, as circles of their
        area from afar; spots as circles.
    image_key
        H&E image, read at screen resolution from its pyramid or in bands; None = no image.
    window_um
        (x0, y0, x1, y1) in µm; None = the whole slide.
    fade
        0 = the image as it is, 1 = white.
    cmap
        Colour map of numbers.
    vmax
        Upper end of the colour scale, on the scale that is drawn; None = the 99th percentile of what is shown.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards.

    Raises
    ------
    ValueError
        No such table, image, gene or column, no coordinates, or a window beside the image.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5)
    >>> ax = gp.pl.slide(sdata, "cell_type", table_key="measured")
    >>> ax.get_legend().get_title().get_text()
    'cell_type'
    """
    from ghistpy.io import get_element

    table = get_element(sdata, "tables", table_key, "table_key")
    everything = marks_of(sdata, table, f"table_key={table_key!r}")
    picture, extent = frame_of(sdata, image_key, window_um, everything)
    typed = color is not None and color in table.obs and not is_number(table, color)
    ax = get_map_axes(ax, extent, [color, *levels(table.obs[color])] if typed else ())
    draw_background(ax, picture, extent, fade=fade if color is not None else 0.0)
    view = View(ax, extent, inside(everything, extent), shapes_in(sdata, table, image_key, extent), table.n_obs)
    if color is None:
        view.outlines()
    elif typed:
        _draw_types(view, sdata, table, color)
    else:
        values, label = numbers_of(table, color, f"table_key={table_key!r}")
        if color in table.var_names:
            ax.set_title(color, fontsize=9, color=INK, fontstyle="italic")
        shown = values[view.marks.rows]
        lowest = 0.0 if shown.size == 0 or shown.min() >= 0 else float(shown.min())
        norm = Normalize(lowest, upper_limit(shown, vmax))
        view.values(values, norm, cmap)
        colour_bar([ax], norm, cmap, label)
    finish_map(ax, extent)
    return ax


@dataclass(frozen=True)
class View:
    """One map: axes, window, what lies in it and, from near, the shapes of the nuclei."""

    ax: Axes
    extent: Extent
    marks: Marks
    shapes: Shapes | None
    n_rows: int

    def values(self, values: np.ndarray, norm: Normalize, cmap: str) -> None:
        """Colour by number; ``values`` (n_rows,)."""
        if self.shapes is not None:
            self.shapes.paint(self.ax, plt.get_cmap(cmap)(norm(values)))
            return
        # high values on top, where circles overlap
        marks = self.marks.take(np.argsort(values[self.marks.rows], kind="stable"))
        draw_circles(self.ax, marks, self.extent, array=values[marks.rows], norm=norm, cmap=cmap)

    def colours(self, rgba: np.ndarray) -> None:
        """Colour by row, (n_rows, 4)."""
        if self.shapes is not None:
            self.shapes.paint(self.ax, rgba)
        else:
            draw_circles(self.ax, self.marks, self.extent, facecolors=rgba[self.marks.rows])

    def outlines(self) -> None:
        """Outlines only."""
        if self.shapes is not None:
            self.shapes.outlines(self.ax, np.array(to_rgba(INK)))
        else:
            draw_circles(self.ax, self.marks, self.extent, facecolors="none", edgecolors=INK, linewidths=0.5)


def numbers_of(table: AnnData, color: str, where: str) -> tuple[np.ndarray, str]:
    """Values (n,) of a gene or a numeric column, and the label of their colour bar."""
    if color in table.var_names:
        return expression(table, color)
    if color in table.obs:
        return table.obs[color].to_numpy(dtype=np.float64), color
    near = [g for g in table.var_names if g.lower() == color.lower()]
    raise ValueError(
        f"color={color!r} is neither a gene of {where} nor one of its columns "
        f"{list(table.obs.columns)}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _draw_types(view: View, sdata: SpatialData, table: AnnData, name: str) -> None:
    import pandas as pd

    labels = pd.Categorical(table.obs[name])
    colours = type_colours(labels.categories, known_types(sdata, name))
    rgba = np.array([*(to_rgba(c) for c in colours.values()), to_rgba("white")])  # a missing type is white
    view.colours(rgba[labels.codes])
    handles = dots({level: colours[level] for level in levels(table.obs[name])})
    if (labels.codes[view.marks.rows] < 0).any():
        handles.append(Line2D([], [], mfc="white", mec=MUTED, label="unknown", marker="o", ls="", ms=6))
    outside_legend(view.ax, handles, title=name)


@dataclass(frozen=True)
class _Panel:
    """One column of :func:`compare_genes`."""

    title: str
    table: AnnData
    marks: Marks
    scale: str
    depth: np.ndarray | None  # counts of each row over all genes, when values are per 10,000 of them
    predicted: bool

    def values(self, gene: str) -> np.ndarray:
        """The gene on the scale of the panel, one value per row of the table."""
        x = column(self.table, gene)
        count = np.expm1(x) if self.predicted else x
        if self.depth is None:
            return np.log1p(count)
        return np.log1p(_PER * np.divide(count, self.depth, out=np.zeros_like(count), where=self.depth > 0))


def compare_genes(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    measured: str = _keys.MEASURED,
    predicted: str = _keys.INSILICO,
    aggregated: str | None = _keys.INSILICO_SPOTS,
    image_key: str | None = _keys.IMAGE,
    window_um: Extent | None = None,
    fade: float = 0.5,
    cmap: str = EXPRESSION_CMAP,
    evaluation_key: str = _keys.EVALUATION,
) -> np.ndarray:
    """Draw measured beside predicted expression over the H&E, one row per gene.

    Measured cells stand beside predicted nuclei on one colour scale, log1p(count). Measured spots
    stand beside predicted spots (table ``aggregated``, when there is one) on one colour scale,
    log1p(1e4 · count / total), and beside predicted nuclei on their own, for a nucleus is not a spot.
    Scales reach from the 1st to the 99th percentile of the measured values and are stated.

    Parameters
    ----------
    sdata
        The slide.
    genes
        Genes that both tables hold.
    measured, predicted
        Tables of raw counts (cells or spots) and of predicted nuclei.
    aggregated
        Predicted spots (:func:`ghistpy.tl.aggregate_spots`); left out when absent or None.
    image_key, fade, cmap
        As in :func:`slide`.
    window_um
        (x0, y0, x1, y1) in µm; None = all nuclei and spots.
    evaluation_key
        Where :func:`ghistpy.tl.evaluate` stored correlations; they are written on the predicted panels
        when they are there.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, (genes, panels)

    Raises
    ------
    ValueError
        A table, gene or image is missing.
    """
    from ghistpy.io import get_element

    genes = [genes] if isinstance(genes, str) else list(genes)
    tables = {k: get_element(sdata, "tables", k, a) for k, a in ((measured, "measured"), (predicted, "predicted"))}
    for key, table in tables.items():
        missing = [g for g in genes if g not in table.var_names]
        if missing or not genes:
            raise ValueError(f"genes: {missing or 'none given'}; table {key!r} holds {table.n_vars} genes, not these")
    panels = _panels(sdata, tables[measured], tables[predicted], measured, predicted, aggregated, genes)
    scores = {p.title: stored_pearson(p.table, evaluation_key) for p in panels if p.predicted}
    window_um = window_um or bounds([p.marks for p in panels], margin=0.03)
    picture, extent = frame_of(sdata, image_key, window_um, panels[-1].marks, max_px=700)
    shapes = [shapes_in(sdata, p.table, image_key, extent) for p in panels]
    background = (picture, extent, shapes, fade)
    figure, axes = plt.subplots(len(genes), len(panels), squeeze=False, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    for row, gene in zip(axes, genes, strict=True):
        _compare_row(row, gene, panels, scores, background, cmap)
    x0, y0, x1, y1 = extent
    width = 2.9 * float(np.clip((x1 - x0) / (y1 - y0), 0.5, 2.5))
    figure.set_size_inches(width * len(panels) + 1.1, 2.9 * len(genes) + 0.3)
    for ax, panel in zip(axes[0], panels, strict=True):
        ax.set_title(panel.title, fontsize=9, color=INK)
    return axes


def _panels(
    sdata: SpatialData,
    truth: AnnData,
    nuclei: AnnData,
    measured: str,
    predicted: str,
    aggregated: str | None,
    genes: Sequence[str],
) -> list[_Panel]:
    from ghistpy.io.tables import linked_to

    link = linked_to(truth)
    spots = link is not None and link[2] == _keys.SPOT_ID
    cell_scale, spot_scale = "log1p(count)", "log1p(10⁴ · count / total)"
    at = marks_of(sdata, truth, f"measured={measured!r}")
    if not spots:
        return [
            _Panel("measured cells", truth, at, cell_scale, None, False),
            _Panel("predicted nuclei", nuclei, marks_of(sdata, nuclei, f"{predicted=}"), cell_scale, None, True),
        ]
    panels = [_Panel("measured spots", truth, at, spot_scale, _depth(truth), False)]
    summed = sdata.tables[aggregated] if aggregated is not None and aggregated in sdata.tables else None
    if summed is not None and all(g in summed.var_names for g in genes):
        where = marks_of(sdata, summed, f"{aggregated=}")
        panels.append(_Panel("predicted, summed to spots", summed, where, spot_scale, _depth(summed), True))
    nuclei_at = marks_of(sdata, nuclei, f"{predicted=}")
    panels.append(_Panel("predicted nuclei", nuclei, nuclei_at, "log1p(expected count)", None, True))
    return panels


def _depth(table: AnnData) -> np.ndarray:
    if _keys.TOTAL in table.obs:
        return table.obs[_keys.TOTAL].to_numpy(dtype=np.float64)
    return np.asarray(table.X.sum(1), dtype=np.float64).ravel()


def _compare_row(
    row: Sequence[Axes],
    gene: str,
    panels: Sequence[_Panel],
    scores: dict[str, dict[str, float]],
    background: tuple[Picture | None, Extent, Sequence[Shapes | None], float],
    cmap: str,
) -> None:
    picture, extent, shapes, fade = background
    values = [p.values(gene) for p in panels]
    # the first panel of a scale, the measured one, sets it
    norms = {p.scale: scale_of(v[p.marks.rows]) for p, v in reversed(list(zip(panels, values, strict=True)))}
    for i, (ax, panel, value) in enumerate(zip(row, panels, values, strict=True)):
        draw_background(ax, picture, extent, fade=fade)
        norm = norms[panel.scale]
        View(ax, extent, inside(panel.marks, extent), shapes[i], panel.table.n_obs).values(value, norm, cmap)
        r = scores.get(panel.title, {}).get(gene)
        if r is not None and np.isfinite(r):
            _tag(ax, f"r = {r:.2f}")
        if i == 0:
            ax.set_ylabel(gene, fontsize=10, fontstyle="italic", color=INK)
            finish_map(ax, extent)
        # one bar for neighbours that share a scale
        if i + 1 == len(panels) or panels[i + 1].scale != panel.scale:
            colour_bar([a for a, p in zip(row, panels, strict=True) if p.scale == panel.scale], norm, cmap, panel.scale)


def _tag(ax: Axes, text: str) -> None:
    ax.text(
        0.975,
        0.97,
        text,
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=7.5,
        color=INK,
        zorder=10,
        bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85},
    )
