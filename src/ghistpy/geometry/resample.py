"""Resampling of a window between the slide's pixel grid and the model's, on global coordinates.

A general resize (skimage, torch) places its grid relative to the window it is given, so a pixel's
value would depend on the tile. Here every output pixel is computed from its position on the slide.
"""

from __future__ import annotations

import math

import numpy as np

from ghistpy.geometry.source import ArraySource, Window, read_padded
from ghistpy.geometry.tiles import slide_window


def _taps(out0: int, out1: int, in0: int, in1: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Input offsets (k,) per output pixel and weights: a triangle filter as wide as one output pixel."""
    reach = max(1.0, scale)
    centre = (np.arange(out0, out1) + 0.5) * scale  # slide px
    first = np.floor(centre - reach - 0.5).astype(np.int64) + 1
    n_taps = math.floor(2 * reach) + 1
    index = first[:, None] + np.arange(n_taps)
    weight = np.clip(1.0 - np.abs(index + 0.5 - centre[:, None]) / reach, 0.0, None)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index - in0, 0, in1 - in0 - 1), weight.astype(np.float32)


def _resample_axis(image: np.ndarray, index: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * image.ndim
    shape[axis] = len(index)
    out = np.zeros((*image.shape[:axis], len(index), *image.shape[axis + 1 :]), dtype=np.float32)
    for k in range(index.shape[1]):  # 2 to 2 * scale taps, not pixels
        out += np.take(image, index[:, k], axis=axis) * weight[:, k].reshape(shape)
    return out


def read_image(source: ArraySource, window: Window, scale: float, *, fill: int = 255) -> np.ndarray:
    """Read ``window`` (model px) of an image.

    Parameters
    ----------
    source
        Image (c, y, x) on the slide's grid.
    window
        Window in model px; what lies beyond the slide is ``fill``.
    scale
        Slide px per model px.

    Returns
    -------
    numpy.ndarray
        (c, h, w): the source's dtype when ``scale`` is 1, else float32 (triangle filter, wide enough
        not to alias when the slide is finer than the model).
    """
    area = slide_window(window, scale)
    pixels = read_padded(source, area, fill)
    if scale == 1.0:
        return pixels
    y = _resample_axis(pixels.astype(np.float32), *_taps(window.y0, window.y1, area.y0, area.y1, scale), 1)
    return _resample_axis(y, *_taps(window.x0, window.x1, area.x0, area.x1, scale), 2)


def read_labels(source: ArraySource, window: Window, scale: float) -> np.ndarray:
    """Read ``window`` (model px) of labels: each model px takes the label under its centre.

    Parameters
    ----------
    source
        Labels (y, x) on the slide's grid.
    window
        Window in model px; what lies beyond the slide is 0.
    scale
        Slide px per model px.

    Returns
    -------
    numpy.ndarray
        (h, w), the source's dtype.
    """
    if scale == 1.0:
        return read_padded(source, window, 0)
    area = slide_window(window, scale)
    y = np.floor((np.arange(window.y0, window.y1) + 0.5) * scale).astype(np.int64) - area.y0
    x = np.floor((np.arange(window.x0, window.x1) + 0.5) * scale).astype(np.int64) - area.x0
    return read_padded(source, area, 0)[y[:, None], x[None, :]]
