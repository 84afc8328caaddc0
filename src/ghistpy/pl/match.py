"""How far measured cells are from the nuclei of the image, over the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from ghistpy import _keys
from ghistpy.pl._draw import draw_background, finish_map
from ghistpy.pl._image import read_picture
from ghistpy.pl._style import EXPRESSION_CMAP, INK, MUTED, get_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def matching(
    sdata: SpatialData,
    *,
    table_key: str = _keys.MEASURED,
    image_key: str = _keys.IMAGE,
    key: str = _keys.MATCHING,
    points: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the residual shift of every tile that :func:`ghistpy.pp.match_cells` looked at.

    Parameters
    ----------
    sdata
        The slide.
    table_key
        Table with the report.
    image_key
        H&E image behind it.
    key
        Key of the report.
    points
        Draw the cells as well, where the table puts them.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards. The colour of a tile is the length of the shift that moves its cells onto the
        nuclei, arrows show its direction at the scale given in the title. Tiles in which no shift stands out are
        outlined only.

    Raises
    ------
    ValueError
        No such table or image, or no report.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=500, n_genes=5, size_um=500.0)
    >>> gp.pp.match_cells(sdata)
    >>> gp.pl.matching(sdata).get_title().split(":")[0]
    'matched'
    """
    from ghistpy import get

    report = get.matching(sdata, table_key=table_key, key=key)
    tiles = get.matching(sdata, "tiles", table_key=table_key, key=key)
    picture = read_picture(sdata, image_key, None)
    ax = get_axes(ax, (6.4, 5.2))
    draw_background(ax, picture, picture.extent_um, fade=0.4)
    xy = sdata.tables[table_key].obsm.get(_keys.SPATIAL)
    if points and xy is not None:
        ax.scatter(*np.asarray(xy).T, s=2.0, c=INK, linewidths=0, rasterized=True, zorder=2, gid="cells")
    side = report["tile_um"]
    corners = tiles[["x_um", "y_um"]].to_numpy() - side / 2
    reliable = tiles["reliable"].to_numpy(dtype=bool)
    shift = tiles[["dx_um", "dy_um"]].to_numpy()
    length = np.hypot(*shift.T)
    limit = max(5.0, float(length[reliable].max())) if reliable.any() else 5.0
    boxes = [Rectangle(tuple(c), side, side) for c in corners[reliable]]
    colour = PatchCollection(boxes, cmap=EXPRESSION_CMAP, alpha=0.55, zorder=1.5, gid="tiles")
    colour.set_array(length[reliable])
    colour.set_clim(0, limit)
    ax.add_collection(colour, autolim=False)
    empty = [Rectangle(tuple(c), side, side) for c in corners[~reliable]]
    ax.add_collection(PatchCollection(empty, facecolor="none", edgecolor=MUTED, lw=0.6, zorder=1.5), autolim=False)
    # arrows far longer than the shifts, which would not be seen on a slide
    stretch = 0.45 * side / limit
    moved = reliable & (length > 0)
    centre = corners[moved] + side / 2
    if moved.any():
        arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": "white", "width": 0.006, "zorder": 3}
        ax.quiver(*centre.T, *(shift[moved] * stretch).T, edgecolor=INK, linewidth=0.4, **arrow)
    ax.figure.colorbar(colour, ax=ax, shrink=0.7, label="residual shift (µm)")
    dx, dy = report["shift_um"]
    ax.set_title(
        f"{report['verdict']}: z {report['z']:.1f}, best shift ({dx:+.1f}, {dy:+.1f}) µm\n"
        f"{int(reliable.sum())} of {len(tiles)} tiles conclusive; arrows ×{stretch:.0f}",
        fontsize=9,
    )
    finish_map(ax, picture.extent_um)
    return ax
