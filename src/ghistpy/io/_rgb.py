"""Images of any depth and colour as uint8 RGB, by one rule for a whole slide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from ghistpy.geometry.source import ArraySource, Window

logger = logging.getLogger("ghistpy")


class LazyArray:
    """What is sliced like a numpy array, reads on demand, and may be read from several threads."""


class LazyRGB(LazyArray):
    """A lazily read image of any kind as a (3, y, x) uint8 array that is sliced like a numpy array.

    ``pixels`` has shape (c, y, x), ``dtype``, ``chunks`` and is indexed by slices. ``white`` is the value of
    white for all windows alike.
    """

    ndim = 3

    def __init__(self, pixels: Any, white: float | None, name: str) -> None:
        self._pixels, self._white, self._name = pixels, white, name
        self.shape = (3, *pixels.shape[-2:])
        self.dtype = np.dtype(np.uint8)
        self.chunks = (3, *pixels.chunks[-2:])

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        from ghistpy.imaging.stain import as_rgb_uint8

        lead, *window = (
            (*key, *(slice(None),) * (3 - len(key))) if isinstance(key, tuple) else (key, *[slice(None)] * 2)
        )
        pixels = self._pixels[(slice(None), *window)]
        if self._white is None and pixels.shape[0] == 3:
            return pixels[lead]
        return as_rgb_uint8(pixels, white=self._white, name=self._name)[lead]


class RecolouredRGB(LazyRGB):
    """A (3, y, x) uint8 array source with its colours changed pixel by pixel when it is read."""

    def __init__(self, source: ArraySource, recolour: Callable[[np.ndarray], np.ndarray]) -> None:
        self._source, self._recolour = source, recolour
        self.shape, self.dtype = tuple(source.shape), np.dtype(np.uint8)
        self.chunks = (3, *source.chunks[-2:])

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        full = key if isinstance(key, tuple) else (key,)
        full = (*full, *(slice(None),) * (3 - len(full)))
        (y0, y1, sy), (x0, x1, sx) = (k.indices(n) for k, n in zip(full[1:], self.shape[1:], strict=True))
        window = Window(y0, x0, max(y0, y1), max(x0, x1))
        return self._recolour(self._source.read(window))[full[0], ::sy, ::sx]


def white_of_maximum(dtype: np.dtype, highest: float, lowest: float, name: str) -> float | None:
    """The value of white of an image that is not uint8, from its largest value: one rule for a whole slide.

    1.0 for floats up to 1; otherwise 255, 4095 (12 bits) or 65535, the smallest that holds the maximum.

    Raises
    ------
    ValueError
        Negative, NaN or larger values, or a dtype that is not a number.
    """
    if dtype == np.uint8:
        return None
    if dtype.kind not in "iuf":
        raise ValueError(f"{name}: dtype {dtype}; expected an image of numbers")
    steps = (1.0, 255.0, 65535.0) if dtype.kind == "f" else (255.0, 4095.0, 65535.0)
    for white in steps:
        if lowest >= 0 and highest <= white:
            logger.info("%s: dtype %s with maximum %g is read as 0 = black to %g = white", name, dtype, highest, white)
            return white
    raise ValueError(
        f"{name}: dtype {dtype} with values from {lowest:g} to {highest:g}; expected 0 .. 1 (floats), 0 .. 255, "
        "0 .. 4095 or 0 .. 65535 without NaN: rescale the image"
    )


def find_white(pixels: Any, name: str = "image") -> float | None:
    """Value of white of a lazily read (c, y, x) image; None for uint8. Others are read once, block by block.

    Raises
    ------
    ValueError
        The image is not grey, RGB or RGBA, or its values have no stated meaning.
    """
    channels, height, width = pixels.shape
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"{name}: {channels} channels; expected 1 (grey), 2, 3 (RGB) or 4 (RGBA)")
    if pixels.dtype == np.uint8:
        return None
    if pixels.dtype.kind not in "iuf":
        return white_of_maximum(pixels.dtype, 0.0, 0.0, name)
    highest, lowest = -np.inf, np.inf
    step = [max(c, 1024 // c * c) for c in pixels.chunks[-2:]]
    for y in range(0, height, step[0]):
        for x in range(0, width, step[1]):
            block = pixels[:, y : y + step[0], x : x + step[1]]
            # NaN must win over the numbers beside it, and does so in numpy's minimum and maximum
            highest, lowest = np.maximum(highest, block.max()), np.minimum(lowest, block.min())
    return white_of_maximum(pixels.dtype, float(highest), float(lowest), name)
