"""Outlines of the tissue and of segmented nuclei over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from ghistpy import _keys
from ghistpy.geometry import Window
from ghistpy.pl._draw import draw_background, finish_map
from ghistpy.pl._image import read_picture
from ghistpy.pl._style import get_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from shapely import Polygon
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource
    from ghistpy.pl._image import Extent

# a longer side than this has no room for outlines: nuclei are painted
_OUTLINES_BELOW_PX = 1600
_BAND_ROWS = 1024


def tissue(
    sdata: SpatialData,
    *,
    shapes_key: str = _keys.TISSUE,
    image_key: str = _keys.IMAGE,
    window_um: Extent | None = None,
    color: str = "#009E73",
    ax: Axes | None = None,
) -> Axes:
    """Draw the outlines that :func:`ghistpy.pp.find_tissue` found.

    Parameters
    ----------
    sdata
        The slide.
    shapes_key
        Polygons in µm.
    image_key
        H&E image behind them.
    window_um
        (x0, y0, x1, y1) in µm; None = the whole slide.
    color
        Of the outlines; the tissue is tinted with it.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards.

    Raises
    ------
    ValueError
        No such shapes or image, or a window beside the image.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5, size_um=200.0)
    >>> gp.pp.find_tissue(sdata)
    >>> ax = gp.pl.tissue(sdata)
    >>> len(ax.patches) == len(sdata["tissue"])
    True
    """
    from ghistpy.io import get_element

    shapes = get_element(sdata, "shapes", shapes_key, "shapes_key")
    picture = read_picture(sdata, image_key, window_um)
    ax = get_axes(ax, (6.4, 5.2))
    draw_background(ax, picture, picture.extent_um, fade=0.0)
    for geometry in shapes.geometry:
        path = Path.make_compound_path(*(_path(part) for part in getattr(geometry, "geoms", [geometry])))
        ax.add_patch(PathPatch(path, facecolor=to_rgba(color, 0.08), edgecolor=color, linewidth=1.2, zorder=2))
    finish_map(ax, picture.extent_um)
    return ax


def _path(polygon: Polygon) -> Path:
    """Outer ring and holes as one path, in which holes stay empty."""
    rings = [polygon.exterior, *polygon.interiors]
    # holes must run the other way round than the outline, or they are filled
    points = [np.asarray(ring.coords)[:: 1 if ring.is_ccw == (i == 0) else -1] for i, ring in enumerate(rings)]
    return Path.make_compound_path(*(Path(p, closed=True) for p in points))


def nuclei(
    sdata: SpatialData,
    *,
    labels_key: str = _keys.LABELS,
    image_key: str = _keys.IMAGE,
    window_um: Extent | None = None,
    color: str = "#F0E442",
    linewidth: float = 0.8,
    ax: Axes | None = None,
) -> Axes:
    """Draw segmented nuclei over the image: as outlines in a near view, painted from afar.

    Parameters
    ----------
    sdata
        The slide.
    labels_key
        Labels of the size of the image.
    image_key
        H&E image behind them.
    window_um
        (x0, y0, x1, y1) in µm; None = the whole slide. Below 1600 px along the longer side the outlines
        follow the border of every pixel.
    color, linewidth
        Of the outlines.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards.

    Raises
    ------
    ValueError
        No such labels or image, labels and image of different size, or a window beside the image.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=60, n_genes=5)
    >>> ax = gp.pl.nuclei(sdata, window_um=(0, 0, 60, 60))
    >>> len(ax.collections)
    1
    """
    from ghistpy.io import open_slide

    _, labels, mpp = open_slide(sdata, image_key, labels_key)
    picture = read_picture(sdata, image_key, window_um)
    ax = get_axes(ax, (6.4, 5.2))
    draw_background(ax, picture, picture.extent_um, fade=0.0)
    x0, y0, x1, y1 = (round(v / mpp) for v in picture.extent_um)
    window = Window(y0, x0, y1, x1).clip(*labels.shape)
    if max(window.shape) <= _OUTLINES_BELOW_PX:
        lines = _border_lines(labels.read(window)) + np.array([window.x0, window.y0])
        ax.add_collection(LineCollection(lines * mpp, colors=color, linewidths=linewidth, zorder=2), autolim=False)
    else:
        stride = -(-max(window.shape) // _OUTLINES_BELOW_PX)
        painted = _sampled(labels, window, stride)[..., None] * np.array(to_rgba(color, 0.8))
        h, w = painted.shape[0] * stride, painted.shape[1] * stride
        extent = np.array([window.x0, window.x0 + w, window.y0 + h, window.y0]) * mpp
        ax.imshow(painted, extent=tuple(extent), interpolation="nearest", zorder=2, gid="nuclei")
    ax.set_xlim(picture.extent_um[0], picture.extent_um[2])
    ax.set_ylim(picture.extent_um[3], picture.extent_um[1])
    finish_map(ax, picture.extent_um)
    return ax


def _sampled(labels: ArraySource, window: Window, stride: int) -> np.ndarray:
    """Whether each ``stride``-th pixel is a nucleus, band by band."""
    step = max(1, _BAND_ROWS // stride) * stride
    bands = [
        labels.read(Window(y, window.x0, min(y + step, window.y1), window.x1))[::stride, ::stride] > 0
        for y in range(window.y0, window.y1, step)
    ]
    return np.concatenate(bands)


def _border_lines(labels: np.ndarray) -> np.ndarray:
    """(n, 2, 2) x, y of the pixel edges between a nucleus and anything else; runs are joined."""
    framed = np.pad(labels, 1, mode="edge")
    # horizontal edges below pixel (y, x), vertical edges right of it; the frame itself is no border
    below = framed[:-1, 1:-1] != framed[1:, 1:-1]
    right = framed[1:-1, :-1] != framed[1:-1, 1:]
    y, x0, x1 = _runs(below)
    x, y0, y1 = _runs(right.T)
    horizontal = np.stack([np.stack([x0, y], 1), np.stack([x1, y], 1)], axis=1)
    vertical = np.stack([np.stack([x, y0], 1), np.stack([x, y1], 1)], axis=1)
    return np.concatenate([horizontal, vertical]).astype(np.float64)


def _runs(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first and one past the last column of every run of True."""
    change = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(change == 1)
    return row, start, np.nonzero(change == -1)[1]
