"""Vendor formats through OpenSlide: NDPI, MRXS, SCN, BIF, DICOM and more."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ghistpy._optional import require

# OpenSlide decodes whole tiles of the vendor; reads of this size waste little
_BLOCK = 1024


class OpenSlidePixels:
    """One level of a slide as a lazily read (4, y, x) uint8 array: RGB and straight alpha.

    It opens the file on first use and can be pickled; reads are safe from several threads. Where a slide
    holds no pixels (between the areas that were scanned) alpha is 0.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, level: int) -> None:
        self._path, self._level = path, level
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_level": self._level}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        slide = require("openslide", extra="wsi").OpenSlide(str(self._path))
        weakref.finalize(self, slide.close)
        self._slide = slide
        self._lock = threading.Lock()
        width, height = slide.level_dimensions[self._level]
        # positions are given in pixels of the finest level
        self._step = (slide.dimensions[1] / height, slide.dimensions[0] / width)
        self.shape = (4, int(height), int(width))
        self.chunks = (4, min(_BLOCK, int(height)), min(_BLOCK, int(width)))

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        from openslide import OpenSlideError

        full = key if isinstance(key, tuple) else (key,)
        full = (*full, *(slice(None),) * (3 - len(full)))
        (y0, y1, sy), (x0, x1, sx) = (k.indices(n) for k, n in zip(full[1:], self.shape[1:], strict=True))
        if y1 <= y0 or x1 <= x0:
            return np.zeros((4, max(0, y1 - y0), max(0, x1 - x0)), np.uint8)[full[0]]
        # rounded up: OpenSlide rounds down to the pixel of the level that holds the place
        origin = int(np.ceil(x0 * self._step[1] - 1e-6)), int(np.ceil(y0 * self._step[0] - 1e-6))
        try:
            with self._lock:
                region = self._slide.read_region(origin, self._level, (x1 - x0, y1 - y0))
        except OpenSlideError as error:
            # OpenSlide refuses every read after a failed one
            self._open()
            raise ValueError(
                f"{self._path}: damaged; level {self._level}, columns {x0} to {x1}, rows {y0} to {y1} cannot be read "
                f"({error})"
            ) from error
        return np.ascontiguousarray(np.asarray(region).transpose(2, 0, 1)[full[0], ::sy, ::sx])


def open_openslide(path: Path) -> tuple[list[OpenSlidePixels], float | None]:
    """Levels of a slide, the finest first, and its µm/px, None when the file does not say.

    Raises
    ------
    ImportError
        OpenSlide is not installed.
    ValueError
        Not a slide that OpenSlide knows, or damaged.
    """
    openslide = require("openslide", extra="wsi")
    try:
        with openslide.OpenSlide(str(path)) as slide:
            levels, properties = len(slide.level_dimensions), dict(slide.properties)
        return [OpenSlidePixels(path, level) for level in range(levels)], _mpp(properties, path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise ValueError(f"{path}: no slide format that OpenSlide knows, or damaged beyond recognition") from error
    except openslide.OpenSlideError as error:
        raise ValueError(f"{path}: damaged or incomplete ({error}); copy it with all its files again") from error


def _mpp(properties: dict[str, str], path: Path) -> float | None:
    from ghistpy.io._tiff import square

    sides = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    try:
        x, y = (float(side) for side in sides if side is not None)
    except ValueError:
        return None
    # scanners measure both sides, and differ by a little
    return (x + y) / 2 if 0 < abs(x - y) <= 0.01 * max(x, y) else square(x, y, path)
