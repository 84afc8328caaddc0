"""What an image or a label array looks like to everything below the containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open rectangle of pixels ``[y0, y1) x [x0, x1)`` of the full-resolution array."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.y1 - self.y0, self.x1 - self.x0

    def clip(self, height: int, width: int) -> Window:
        """The part of the window that lies inside an array of that size (may be empty)."""
        y0, x0 = min(max(self.y0, 0), height), min(max(self.x0, 0), width)
        return Window(y0, x0, max(y0, min(self.y1, height)), max(x0, min(self.x1, width)))


@runtime_checkable
class ArraySource(Protocol):
    """A lazily read array whose last two axes are (y, x).

    Images are ``(c, y, x)``, labels ``(y, x)``. ``chunks`` has one entry per axis: reads that are
    aligned to it are the cheapest. ``read`` takes a window inside the array and returns a fresh
    numpy array; it may be called from several threads at once.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every axis."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Size of a stored block along every axis."""

    def read(self, window: Window) -> np.ndarray:
        """Fresh array of the pixels inside ``window``; all leading axes."""


class MemorySource:
    """An array in memory as an :class:`ArraySource`."""

    def __init__(self, array: np.ndarray) -> None:
        if array.ndim not in (2, 3):
            raise ValueError(f"array: expected (y, x) labels or a (c, y, x) image, got shape {array.shape}")
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.chunks = (*array.shape[:-2], min(512, array.shape[-2]), min(512, array.shape[-1]))

    def read(self, window: Window) -> np.ndarray:
        """Copy of the pixels inside ``window``."""
        return self._array[..., window.y0 : window.y1, window.x0 : window.x1].copy()


def read_padded(source: ArraySource, window: Window, fill: int) -> np.ndarray:
    """Read a window that may reach beyond the array; what lies outside is ``fill``."""
    inside = window.clip(*source.shape[-2:])
    if inside == window:
        return source.read(window)
    out = np.full((*source.shape[:-2], *window.shape), fill, dtype=source.dtype)
    if inside.y1 > inside.y0 and inside.x1 > inside.x0:
        out[
            ...,
            inside.y0 - window.y0 : inside.y1 - window.y0,
            inside.x0 - window.x0 : inside.x1 - window.x0,
        ] = source.read(inside)
    return out


class UnreadableError(OSError):
    """Part of an image or of labels cannot be read; the message names it."""


class NamedSource:
    """A source whose failures say what could not be read, and where.

    A damaged chunk raises whatever its codec, or the library around it, happens to raise.
    """

    def __init__(self, source: ArraySource, name: str) -> None:
        self._source, self._name = source, name
        self.shape, self.dtype, self.chunks = source.shape, source.dtype, source.chunks

    def read(self, window: Window) -> np.ndarray:
        """Pixels of ``window``.

        Raises
        ------
        UnreadableError
            The source fails, for whatever reason but a lack of memory.
        """
        try:
            return self._source.read(window)
        except (MemoryError, UnreadableError):
            raise
        except Exception as error:
            raise UnreadableError(f"{self._name}: {window} (px) cannot be read: {error}") from error


class MaskedSource:
    """A source in which the pixels of some rectangles read as ``fill``.

    It stands between held-out regions and everything that is computed for training: what cannot be
    read cannot leak.
    """

    def __init__(self, source: ArraySource, boxes: np.ndarray, fill: int) -> None:
        self._source, self._fill = source, fill
        self.boxes = np.asarray(boxes, dtype=np.int64).reshape(-1, 4)
        self.shape, self.dtype, self.chunks = source.shape, source.dtype, source.chunks

    def read(self, window: Window) -> np.ndarray:
        """Pixels of ``window``, blanked inside the boxes."""
        out = self._source.read(window)
        for y0, x0, y1, x1 in self.boxes:
            inside = Window(y0, x0, y1, x1)
            a, b = max(inside.y0, window.y0), min(inside.y1, window.y1)
            c, d = max(inside.x0, window.x0), min(inside.x1, window.x1)
            if a < b and c < d:
                out[..., a - window.y0 : b - window.y0, c - window.x0 : d - window.x0] = self._fill
        return out
