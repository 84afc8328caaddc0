"""Reading an image for the eye: a window at screen resolution, never the whole slide at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.geometry import MemorySource, Window

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource

Extent = tuple[float, float, float, float]  # x0, y0, x1, y1 in µm
_BAND_PIXELS = 8_000_000  # pixels of one band of rows in memory: 24 MB as RGB


@dataclass(frozen=True)
class Picture:
    """RGB (h, w, 3) uint8 of the window ``extent_um`` = (x0, y0, x1, y1)."""

    rgb: np.ndarray
    extent_um: Extent


def _levels(sdata: SpatialData, image_key: str) -> list[ArraySource]:
    """Sources of all resolutions that can be read directly, the finest first.

    A coarse level that is still to be computed from the full resolution is worse than no level: it is
    computed anew at every read.
    """
    from ghistpy.io import get_element, open_image

    element = get_element(sdata, "images", image_key, "image_key")
    finest = open_image(sdata, image_key)
    if not getattr(element, "children", None):
        return [finest]
    arrays = [next(iter(level.data_vars.values())) for level in element.children.values()]
    rest = [_direct(a.transpose("c", "y", "x").data) for a in arrays if a.sizes["x"] < finest.shape[-1]]
    return [finest, *sorted((s for s in rest if s is not None), key=lambda s: -s.shape[-1])]


def _direct(data: Any) -> ArraySource | None:
    from ghistpy.io.sources import DaskSource, _source_of_dask

    source = MemorySource(data) if isinstance(data, np.ndarray) else _source_of_dask(data)
    return None if isinstance(source, DaskSource) else source


def _window_px(extent: Extent | None, height: int, width: int, mpp: float) -> tuple[float, float, float, float]:
    """The window in pixels of full resolution (x0, y0, x1, y1), clipped to the image."""
    x0, y0, x1, y1 = (0.0, 0.0, float(width), float(height)) if extent is None else (v / mpp for v in extent)
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
        raise ValueError(
            f"window_um={extent}: expected (x0, y0, x1, y1) in µm that overlap the image, which spans "
            f"(0, 0, {width * mpp:.1f}, {height * mpp:.1f})"
        )
    return clipped


def _pooled(source: ArraySource, window: Window, stride: int) -> np.ndarray:
    """Mean over stride x stride pixels, band by band, (h, w, 3) uint8."""
    width = (window.x1 - window.x0) // stride * stride
    step = max(stride, _BAND_PIXELS // max(width, 1) // stride * stride)
    end = window.y0 + (window.y1 - window.y0) // stride * stride
    bands = []
    for y in range(window.y0, end, step):
        block = source.read(Window(y, window.x0, min(y + step, end), window.x0 + width))
        c, h, w = block.shape
        if stride > 1:
            rows = block.reshape(c, h // stride, stride, w).sum(2, dtype=np.uint32)
            total = rows.reshape(c, h // stride, w // stride, stride).sum(3)
            block = np.rint(total / stride**2).astype(np.uint8)
        bands.append(block)
    return np.concatenate(bands, axis=1).transpose(1, 2, 0)


def read_picture(sdata: SpatialData, image_key: str, window_um: Extent | None, *, max_px: int = 1200) -> Picture:
    """A window at the coarsest resolution that still has ``max_px`` along its longer side.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Image with a Scale to ``"microns"``; its pyramid is used when it has one.
    window_um
        (x0, y0, x1, y1) in µm, None = the whole image. What reaches beyond the image is cut off.
    max_px
        Longer side of the picture, at most.

    Raises
    ------
    ValueError
        The window does not overlap the image, or µm/px is unknown.
    """
    from ghistpy.io import get_mpp, rgb_source

    mpp = get_mpp(sdata, image_key)
    levels = _levels(sdata, image_key)
    height, width = levels[0].shape[-2:]
    x0, y0, x1, y1 = _window_px(window_um, height, width, mpp)
    longest = max(x1 - x0, y1 - y0)
    fine_enough = [s for s in levels if longest * s.shape[-1] / width >= max_px]
    source = fine_enough[-1] if fine_enough else levels[0]
    fx, fy = source.shape[-1] / width, source.shape[-2] / height
    window = Window(int(y0 * fy), int(x0 * fx), int(np.ceil(y1 * fy)), int(np.ceil(x1 * fx)))
    window = window.clip(*source.shape[-2:])
    stride = max(1, int(np.ceil(max(window.shape) / max_px)))
    stride = min(stride, *window.shape)
    rgb = _pooled(rgb_source(source, f"image_key={image_key!r}"), window, stride)
    h, w = rgb.shape[0] * stride, rgb.shape[1] * stride
    corners = (window.x0 / fx, window.y0 / fy, (window.x0 + w) / fx, (window.y0 + h) / fy)
    return Picture(rgb, tuple(float(v * mpp) for v in corners))
