"""Nuclei and spots over the tissue: circles of their true size from afar, their true shape from near."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import EllipseCollection

from ghistpy import _keys
from ghistpy.pl._image import Extent, Picture, read_picture
from ghistpy.pl._style import scale_bar

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

MAX_CIRCLES = 200_000
_DEFAULT_DIAMETER_UM = 8.0
_SMALLEST = 1 / 280  # of the window: smaller circles would vanish on screen
_SHAPES_BELOW_PX = 1000  # longer side of a window in full resolution up to which shapes are read


@dataclass(frozen=True)
class Marks:
    """Circles to draw: rows of the table, centres (m, 2) and diameters (m,) in µm."""

    rows: np.ndarray
    xy: np.ndarray
    diameter: np.ndarray

    def take(self, index: np.ndarray) -> Marks:
        """The marks at those positions."""
        return Marks(self.rows[index], self.xy[index], self.diameter[index])


def marks_of(sdata: SpatialData, table: AnnData, where: str) -> Marks:
    """Where the rows of a table lie and how large they are.

    Nuclei: ``obsm["spatial"]`` and ``obs["area_um2"]``. Spots: the circles of the shapes that the table
    annotates.
    """
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if link is not None and link[2] == _keys.SPOT_ID and link[0]:
        return _spot_marks(sdata, table, link[0][0])
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(f"{where} has no obsm['spatial'] (x, y in µm), so its rows have no place on the slide")
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
    diameter = np.full(len(xy), _DEFAULT_DIAMETER_UM)
    if _keys.AREA_UM2 in table.obs:
        diameter = 2 * np.sqrt(table.obs[_keys.AREA_UM2].to_numpy(dtype=np.float64) / np.pi)
    return Marks(np.arange(len(xy)), xy, diameter)


def _spot_marks(sdata: SpatialData, table: AnnData, region: str) -> Marks:
    import pandas as pd

    from ghistpy.io.circles import circles_um

    circles = circles_um(sdata, region)
    position = pd.Index(circles.ids).get_indexer(table.obs[_keys.SPOT_ID].to_numpy())
    rows = np.flatnonzero(position >= 0)
    if len(rows) < table.n_obs:
        logger.warning(
            "%d of %d spots have no circle in %r and are not drawn", table.n_obs - len(rows), table.n_obs, region
        )
    at = position[rows]
    return Marks(rows, circles.xy_um[at], 2 * circles.radius_um[at])


def inside(marks: Marks, extent: Extent) -> Marks:
    """Marks that reach into the window; at most 200,000 of them, drawn at random with a fixed seed."""
    x0, y0, x1, y1 = extent
    r = marks.diameter / 2
    x, y = marks.xy.T
    index = np.flatnonzero((x + r > x0) & (x - r < x1) & (y + r > y0) & (y - r < y1))
    if len(index) > MAX_CIRCLES:
        logger.info("drawing %d of %d nuclei; use window_um= to see them all", MAX_CIRCLES, len(index))
        index = np.sort(np.random.default_rng(0).choice(index, MAX_CIRCLES, replace=False))
    return marks.take(index)


def draw_background(
    ax: Axes, sdata: SpatialData, image_key: str | None, window_um: Extent | None, *, fade: float, extent: Extent
) -> Extent:
    """The H&E, faded towards white so that colours on it can be read, and the frame of the axes."""
    if image_key is not None:
        picture: Picture = read_picture(sdata, image_key, window_um)
        extent = picture.extent_um
        rgb = 255 - (255 - picture.rgb.astype(np.float32)) * (1 - fade)
        ax.imshow(
            rgb.astype(np.uint8),
            extent=(extent[0], extent[2], extent[3], extent[1]),
            interpolation="antialiased",
            zorder=0,
        )
    ax.set_xlim(extent[0], extent[2])
    ax.set_ylim(extent[3], extent[1])  # y runs down, as in the image
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return extent


def draw_circles(ax: Axes, marks: Marks, extent: Extent, **style: Any) -> EllipseCollection:
    """Circles in data units, rasterised, so that they keep their size in µm at any zoom."""
    smallest = max(extent[2] - extent[0], extent[3] - extent[1]) * _SMALLEST
    d = np.maximum(marks.diameter, smallest)
    collection = EllipseCollection(
        d,
        d,
        np.zeros(len(d)),
        units="xy",
        offsets=marks.xy,
        offset_transform=ax.transData,
        rasterized=True,
        zorder=2,
        **({"linewidths": 0} | style),
    )
    ax.add_collection(collection, autolim=False)
    return collection


@dataclass(frozen=True)
class Shapes:
    """Which nucleus each pixel of a window shows: ``row`` (h, w) row of the table, -1 = none."""

    row: np.ndarray
    extent_um: Extent

    def paint(self, ax: Axes, rgba: np.ndarray) -> Any:
        """Draw nuclei in the colours (n, 4) of their rows."""
        table = np.concatenate([rgba, np.zeros((1, 4))])  # -1 reads the last, transparent one
        x0, y0, x1, y1 = self.extent_um
        return ax.imshow(table[self.row], extent=(x0, x1, y1, y0), interpolation="nearest", zorder=2, gid="nuclei")

    def outlines(self, ax: Axes, colour: np.ndarray) -> Any:
        """Draw the border pixels of nuclei in one colour (4,)."""
        edge = np.zeros(self.row.shape, dtype=bool)
        edge[:-1] |= self.row[:-1] != self.row[1:]
        edge[:, :-1] |= self.row[:, :-1] != self.row[:, 1:]
        x0, y0, x1, y1 = self.extent_um
        picture = edge[..., None] * colour
        return ax.imshow(picture, extent=(x0, x1, y1, y0), interpolation="nearest", zorder=2, gid="outlines")


def shapes_in(sdata: SpatialData, table: AnnData, image_key: str | None, extent: Extent) -> Shapes | None:
    """The nuclei of a near view as they were segmented; None from afar and where there are no labels."""
    import pandas as pd

    from ghistpy.geometry import Window
    from ghistpy.io import get_mpp, open_labels
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if image_key is None or link is None or len(link[0]) != 1 or link[0][0] not in sdata.labels:
        return None
    source, mpp = open_labels(sdata, link[0][0]), get_mpp(sdata, image_key)
    x0, y0, x1, y1 = (round(v / mpp) for v in extent)
    window = Window(y0, x0, y1, x1).clip(*source.shape)
    if max(window.shape) > _SHAPES_BELOW_PX or min(window.shape) < 1:
        return None
    labels = source.read(window)
    ids = np.where(labels > 0, labels, -1).astype(np.int64)
    row = pd.Index(table.obs[link[2]].to_numpy()).get_indexer(ids.ravel()).reshape(ids.shape)
    return Shapes(row, (window.x0 * mpp, window.y0 * mpp, window.x1 * mpp, window.y1 * mpp))


def finish_map(ax: Axes, extent: Extent) -> None:
    """What every map carries."""
    scale_bar(ax, extent[2] - extent[0])


def bounds(marks: Marks) -> Extent:
    """A window around all marks, for maps without image."""
    if len(marks.xy) == 0:
        return (0.0, 0.0, 1.0, 1.0)
    r = marks.diameter.max() / 2
    low, high = marks.xy.min(0) - r, marks.xy.max(0) + r
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
