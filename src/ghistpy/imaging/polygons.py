"""Polygons to labels and labels to polygons, all objects at once.

Coordinates are x, y in pixels: pixel (row, column) covers [column, column + 1) x [row, row + 1), and belongs to
an object when its centre lies inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Polygons:
    """Rings of n objects.

    points (p, 2) float64 x, y, ring after ring, not closed; offsets (r + 1,) where rings start;
    owner (r,) object of each ring, 0 .. n - 1. A point is inside an object when it is inside an odd number
    of its rings, so that holes and several pieces need no mark.
    """

    points: np.ndarray
    offsets: np.ndarray
    owner: np.ndarray
    n: int

    def scaled(self, factor: float) -> Polygons:
        """The same in pixels of another size."""
        return Polygons(self.points * factor, self.offsets, self.owner, self.n)

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start (p, 2), end (p, 2) and object (p,) of every edge."""
        size = np.diff(self.offsets)
        following = np.arange(1, len(self.points) + 1)
        following[self.offsets[1:][size > 0] - 1] = self.offsets[:-1][size > 0]
        return self.points, self.points[following], np.repeat(self.owner, size)


@dataclass(frozen=True)
class Runs:
    """Pixels of objects as runs in rows: object, row, first and one past the last column; by row."""

    owner: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def take(self, index: np.ndarray) -> Runs:
        """The runs at those positions."""
        return Runs(self.owner[index], self.row[index], self.start[index], self.stop[index])


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each range, and its integers, for ranges [first, last)."""
    count = np.maximum(last - first, 0)
    index = np.repeat(np.arange(len(count)), count)
    return index, np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[index]


def _interior(polygons: Polygons) -> Runs:
    """Pixels whose centre lies inside: crossings of every row with the edges, taken in pairs."""
    start, end, owner = polygons.edges()
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    index, row = _spread(np.ceil(low - 0.5).astype(np.int64), np.ceil(high - 0.5).astype(np.int64))
    a, b = start[index], end[index]
    x = a[:, 0] + (row + 0.5 - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    order = np.lexsort((x, row, owner[index]))
    column = np.ceil(x[order] - 0.5).astype(np.int64)
    return Runs(owner[index][order][::2], row[order][::2], column[::2], column[1::2])


def _outline(polygons: Polygons) -> Runs:
    """Pixels on the lines between vertices that are themselves pixels."""
    start, end, owner = polygons.edges()
    start, end = np.rint(start).astype(np.int64), np.rint(end).astype(np.int64)
    steps = np.abs(end - start).max(axis=1, initial=0)
    index, step = _spread(np.zeros(len(steps), np.int64), steps + 1)
    share = step / np.maximum(steps, 1)[index]
    pixel = np.rint(start[index] + (end - start)[index] * share[:, None]).astype(np.int64)
    return Runs(owner[index], pixel[:, 1], pixel[:, 0], pixel[:, 0] + 1)


def fill(polygons: Polygons, *, vertices_are_pixels: bool = False) -> Runs:
    """The pixels of polygons.

    Parameters
    ----------
    polygons
        In px.
    vertices_are_pixels
        Vertices are rows and columns of pixels that belong to the object, as contours of OpenCV (HoVer-Net,
        CellViT) are; otherwise points of the plane, as in QuPath.

    Returns
    -------
    Runs
        By row; may lie outside the image. Cost: the perimeter of all objects.
    """
    if vertices_are_pixels:
        shifted = Polygons(polygons.points + 0.5, polygons.offsets, polygons.owner, polygons.n)
        inner, line = _interior(shifted), _outline(polygons)
        runs = Runs(*(np.concatenate([getattr(inner, f), getattr(line, f)]) for f in ("owner", "row", "start", "stop")))
    else:
        runs = _interior(polygons)
    return _merged(runs.take(np.flatnonzero(runs.stop > runs.start)))


def _merged(runs: Runs) -> Runs:
    """Runs of one object that overlap or touch, as one; sorted by row, then by object."""
    if len(runs.row) == 0:
        return runs
    runs = runs.take(np.lexsort((runs.start, runs.row, runs.owner)))
    same = (runs.owner[1:] == runs.owner[:-1]) & (runs.row[1:] == runs.row[:-1])
    # one axis on which the rows of the objects lie one behind the other: ends so far never reach into the next
    width = int(runs.stop.max() - runs.start.min()) + 1
    group = np.concatenate([[0], np.cumsum(~same)]) * width
    low = runs.start - runs.start.min() + group
    reach = np.maximum.accumulate(runs.stop - runs.start.min() + group)
    first = np.concatenate([[True], ~same | (low[1:] > reach[:-1])])
    at = np.flatnonzero(first)
    stop = reach[np.append(at[1:], len(first)) - 1] - group[at] + runs.start.min()
    merged = Runs(runs.owner[at], runs.row[at], runs.start[at], stop)
    return merged.take(np.lexsort((merged.owner, merged.row)))


def overlapping(runs: Runs) -> np.ndarray:
    """Objects of which another has a pixel that they share, by number (the runs as :func:`fill` gives them)."""
    if len(runs.row) == 0:
        return runs.owner
    order = np.lexsort((runs.start, runs.row))
    width = int(runs.stop.max() - runs.start.min()) + 1
    base = (runs.row[order] - runs.row.min()) * width - runs.start.min()
    low, reach = runs.start[order] + base, np.maximum.accumulate(runs.stop[order] + base)
    hit = np.flatnonzero(low[1:] < reach[:-1]) + 1
    return np.unique(np.concatenate([runs.owner[order][hit], runs.owner[order][hit - 1]]))


class RunLabels:
    """Runs as a (y, x) label array that is painted window by window.

    Where objects overlap, the one that comes first keeps the pixel. Sliced like a numpy array.
    """

    ndim = 2

    def __init__(self, runs: Runs, ids: np.ndarray, shape: tuple[int, int]) -> None:
        self._runs, self._ids = runs, ids
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = np.dtype(np.int32 if ids.max(initial=0) <= np.iinfo(np.int32).max else np.int64)
        self.chunks = (min(512, self.shape[0]), min(512, self.shape[1]))

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, sy), (x0, x1, sx) = (k.indices(n) for k, n in zip(key, self.shape, strict=True))
        out = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), self.dtype)
        runs = self._runs
        rows = slice(*np.searchsorted(runs.row, [y0, y1]))
        start, stop = np.maximum(runs.start[rows], x0), np.minimum(runs.stop[rows], x1)
        index, column = _spread(start, stop)
        # the first object is painted last; within a row it is the first run
        index, column = index[::-1], column[::-1]
        out[runs.row[rows][index] - y0, column - x0] = self._ids[runs.owner[rows][index]]
        return out[::sy, ::sx]


# Clockwise in an image, the object on the right hand: direction of the four sides of a pixel (x, y), where each
# starts, seen from the pixel, and which neighbour lies behind it.
_STEP = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_START = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
_BEHIND = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])


def _sides(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every side between an object and anything else: start vertex (e, 2), direction, object."""
    framed = np.pad(labels, 1)
    inner = framed[1:-1, 1:-1]
    starts, directions, owners = [], [], []
    for direction in range(4):
        dx, dy = _BEHIND[direction]
        behind = framed[1 + dy : framed.shape[0] - 1 + dy, 1 + dx : framed.shape[1] - 1 + dx]
        y, x = np.nonzero((inner > 0) & (behind != inner))
        starts.append(np.stack([x, y], axis=1) + _START[direction])
        directions.append(np.full(len(x), direction))
        owners.append(inner[y, x])
    return np.concatenate(starts), np.concatenate(directions), np.concatenate(owners)


def trace(labels: np.ndarray) -> tuple[Polygons, np.ndarray]:
    """Outlines of labels along the sides of their pixels.

    Parameters
    ----------
    labels
        (h, w) integers, 0 = background, objects numbered 1 .. n.

    Returns
    -------
    polygons
        Rings in px, vertices at corners only; object i is label i + 1. Filling them gives the labels back.
    is_hole
        (r,) whether a ring is a hole.

    Notes
    -----
    Pixels that touch at a corner only are separate pieces. All sides are linked to the one that follows, and
    rings are put in order by pointer doubling: O(sides · log(longest ring)).
    """
    start, direction, owner = _sides(labels)
    n, width = int(labels.max(initial=0)), labels.shape[1] + 1
    if len(start) == 0:
        return Polygons(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(0, np.int64), n), np.zeros(0, bool)
    side_at = np.full(((labels.shape[0] + 1) * width, 4), -1, dtype=np.int64)
    vertex = start[:, 1] * width + start[:, 0]
    side_at[vertex, direction] = np.arange(len(start))
    end = start + _STEP[direction]
    end_vertex = end[:, 1] * width + end[:, 0]
    following = np.full(len(start), -1, dtype=np.int64)
    for turn in (1, 0, 3):  # right, straight on, left
        candidate = side_at[end_vertex, (direction + turn) % 4]
        fits = (following < 0) & (candidate >= 0) & (owner[candidate] == owner)
        following[fits] = candidate[fits]
    ring, position = _ordered(following)
    order = np.lexsort((position, ring, owner))
    # a vertex in the middle of a straight line says nothing
    before = np.empty(len(start), dtype=np.int64)
    before[following] = np.arange(len(start))
    order = order[(direction != direction[before])[order]]
    new_ring = np.concatenate([[True], np.diff(ring[order]) != 0])
    offsets = np.append(np.flatnonzero(new_ring), len(order))
    points = start[order].astype(np.float64)
    polygons = Polygons(points, offsets, owner[order][offsets[:-1]].astype(np.int64) - 1, n)
    a, b, _ = polygons.edges()
    area = np.add.reduceat(a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1], offsets[:-1])
    return polygons, area < 0


def _ordered(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ring of every side (its smallest side) and the position of the side in it."""
    ring, jump = np.arange(len(following)), following
    while True:
        smaller = np.minimum(ring, ring[jump])
        if np.array_equal(smaller, ring):
            break
        ring, jump = smaller, jump[jump]
    last = following == ring  # the side before the first one of its ring
    distance, jump = (~last).astype(np.int64), np.where(last, np.arange(len(last)), following)
    while distance[jump].any():
        distance, jump = distance + distance[jump], jump[jump]
    return ring, -distance
