"""Nuclei and spots over the tissue: circles of their true size from afar, their true shape from near."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
_SMALLEST = 1 / 200  # of the window: smaller circles would vanish on screen
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
    annotates. Raises ``ValueError`` when they lie on several slides.
    """
    from ghistpy.io.tables import linked_to

    link, regions = linked_to(table), one_slide(table, where)
    if link is not None and link[2] == _keys.SPOT_ID and regions:
        return _spot_marks(sdata, table, regions[0])
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(f"{where} has no obsm['spatial'] (x, y in µm), so its rows have no place on the slide")
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
    diameter = np.full(len(xy), _DEFAULT_DIAMETER_UM)
    if _keys.AREA_UM2 in table.obs:
        diameter = 2 * np.sqrt(table.obs[_keys.AREA_UM2].to_numpy(dtype=np.float64) / np.pi)
    return Marks(np.arange(len(xy)), xy, diameter)


def one_slide(table: AnnData, where: str) -> list[str]:
    """The element that the rows annotate, as a list that is empty without a link; an error where they are several.

    Each element has coordinates of its own: one figure would draw slides on top of each other.
    """
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if link is None or link[1] not in table.obs:
        return link[0][:1] if link is not None else []
    regions = sorted(table.obs[link[1]].astype(str).unique())
    if len(regions) > 1:
        raise ValueError(
            f"{where} annotates {len(regions)} elements (slides), {regions[:5]}, which one figure would draw on top of "
            f"each other; draw one at a time: table[table.obs[{link[1]!r}] == {regions[0]!r}]"
        )
    return regions


def table_marks(sdata: SpatialData | None, table: AnnData, where: str) -> Marks:
    """Circles of the rows; without a slide or areas, of the size that fits between neighbours."""
    one_slide(table, where)
    if sdata is not None or _keys.AREA_UM2 in table.obs:
        return marks_of(sdata, table, where) if sdata is not None else _of_area(table)
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


def draw_background(ax: Axes, picture: Picture | None, extent: Extent, *, fade: float) -> None:
    """The H&E, faded towards white so that colours on it can be read, and the frame of the axes."""
    if picture is not None:
        rgb = 255 - (255 - picture.rgb.astype(np.float32)) * (1 - fade)
        x0, y0, x1, y1 = picture.extent_um
        ax.imshow(rgb.astype(np.uint8), extent=(x0, x1, y1, y0), interpolation="antialiased", zorder=0)
    ax.set_xlim(extent[0], extent[2])
    ax.set_ylim(extent[3], extent[1])  # y runs down, as in the image
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def frame_of(
    sdata: SpatialData, image_key: str | None, window_um: Extent | None, marks: Marks, *, max_px: int = 1200
) -> tuple[Picture | None, Extent]:
    """The picture behind a map, when there is an image, and the window that the map shows."""
    if image_key is not None:
        picture = read_picture(sdata, image_key, window_um, max_px=max_px)
        return picture, picture.extent_um
    return None, window_um or bounds([marks]) or (0.0, 0.0, 1.0, 1.0)


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
    from ghistpy.io import get_mpp, open_image, open_labels
    from ghistpy.io.tables import linked_to

    link, regions = linked_to(table), one_slide(table, "the table")
    if image_key is None or link is None or not regions or regions[0] not in sdata.labels:
        return None
    source, mpp = open_labels(sdata, regions[0]), get_mpp(sdata, image_key)
    if source.shape != open_image(sdata, image_key).shape[-2:]:
        return None
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


def bounds(marks: Sequence[Marks], *, margin: float = 0.0) -> Extent | None:
    """The window around all marks, wider by a share of its longer side; None without marks."""
    kept = [m for m in marks if len(m.xy)]
    if not kept:
        return None
    low = np.min([(m.xy - m.diameter[:, None] / 2).min(0) for m in kept], axis=0)
    high = np.max([(m.xy + m.diameter[:, None] / 2).max(0) for m in kept], axis=0)
    pad = margin * float((high - low).max())
    return (float(low[0] - pad), float(low[1] - pad), float(high[0] + pad), float(high[1] + pad))
