"""Nucleus-like regions among the connected components of many thresholds.

No single threshold outlines the dark lymphocyte and the pale tumour nucleus beside it. The components of
a ladder of thresholds form a tree (a component lies inside one of the level below); every component is
scored by how much it looks like a nucleus, and the tree is cut where the scores are best: a component
stays whole unless the parts into which it falls at higher thresholds look better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_FOUR = ndimage.generate_binary_structure(2, 1)
_EIGHT = ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class Look:
    """What a nucleus looks like; every score is 0 at the first number and 1 at the second.

    ellipse_fill: area / area of the ellipse with the same second moments (two touching discs: 0.89).
    hue: share of red in the OD of the region (haematoxylin absorbs red, eosin hardly does).
    border_gradient: OD per µm on the border that scores one half.
    """

    min_area_um2: float
    max_area_um2: float
    ellipse_fill: tuple[float, float] = (0.65, 0.97)
    hue: tuple[float, float] = (0.20, 0.28)
    border_gradient: float = 0.3

    def shape(self, area_um2: np.ndarray, fill: np.ndarray) -> np.ndarray:
        """Score in [0, 1] of size and convexity."""
        area = np.log(np.maximum(area_um2, 1e-6))
        small, large = np.log(self.min_area_um2), np.log(self.max_area_um2)
        # sure nuclei are 3 times the smallest and half the largest
        size = np.minimum(_ramp(area, small, small + np.log(3)), 1 - _ramp(area, large - np.log(2), large))
        return size * _ramp(fill, *self.ellipse_fill)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low), 0, 1)


@dataclass(frozen=True)
class Maps:
    """Images that the regions are cut from and scored on, all (h, w) float32.

    nuclear: smoothed OD that is thresholded; gradient: its slope per µm; red, total: OD of red light and
    of all, for the hue.
    """

    nuclear: np.ndarray
    gradient: np.ndarray
    red: np.ndarray
    total: np.ndarray


@dataclass(frozen=True)
class _Level:
    """The candidate components of one threshold: their pixels, and one entry per component."""

    at: np.ndarray
    of: np.ndarray
    parent: np.ndarray  # index in the level below, -1 = none
    area: np.ndarray
    quality: np.ndarray


def ellipse_fill(y: np.ndarray, x: np.ndarray, of: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Area over that of the ellipse of equal second moments, per region, from the pixels' coordinates."""
    n = len(count)
    y, x = y.astype(np.float64), x.astype(np.float64)
    mean_y, mean_x = np.bincount(of, y, n) / count, np.bincount(of, x, n) / count
    # a pixel is a square, not a point: its own variance is 1/12
    yy = np.bincount(of, y * y, n) / count - mean_y**2 + 1 / 12
    xx = np.bincount(of, x * x, n) / count - mean_x**2 + 1 / 12
    yx = np.bincount(of, y * x, n) / count - mean_y * mean_x
    return count / (4 * np.pi * np.sqrt(np.maximum(yy * xx - yx**2, 1 / 144)))


def fill_holes(mask: np.ndarray, max_px: float) -> np.ndarray:
    """The mask with its holes of fewer than ``max_px`` pixels filled; what touches the edge is no hole."""
    background, n = ndimage.label(~mask, structure=_EIGHT)
    hole = np.bincount(background.ravel(), minlength=n + 1) < max_px
    hole[0] = False
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        hole[edge] = False
    return mask | hole[background] if hole.any() else mask


def _border(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with one of the four neighbours outside it (the array's edge is no border)."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def _open_components(components: np.ndarray, open_edges: tuple[bool, bool, bool, bool]) -> np.ndarray:
    """Components that reach an edge behind which the tissue goes on: nobody knows their shape."""
    edges = (components[0], components[:, 0], components[-1], components[:, -1])
    return np.concatenate([np.zeros(0, np.intp), *(e for e, is_open in zip(edges, open_edges, strict=True) if is_open)])


def _level(
    maps: Maps, mask: np.ndarray, look: Look, mpp: float, open_edges: tuple, below: np.ndarray | None
) -> tuple[_Level, np.ndarray]:
    components, n = ndimage.label(mask, structure=_FOUR)
    size = np.bincount(components.ravel(), minlength=n + 1)
    candidate = (size * mpp**2 > look.min_area_um2) & (size * mpp**2 < look.max_area_um2)
    candidate[0] = False
    candidate[_open_components(components, open_edges)] = False
    rank = (np.cumsum(candidate) * candidate).astype(np.int32)  # 0 = none
    ranked = rank[components]
    at = np.flatnonzero(ranked)
    of = ranked.ravel()[at] - 1
    count = size[candidate].astype(np.float64)
    n = len(count)
    first = np.zeros(n, dtype=np.intp)
    first[of[::-1]] = at[::-1]
    fill = ellipse_fill(*np.divmod(at, mask.shape[1]), of, count)
    border = _border(mask).ravel()[at]
    gradient = np.bincount(of[border], maps.gradient.ravel()[at[border]], n)
    gradient = gradient / np.maximum(np.bincount(of[border], minlength=n), 1)
    hue = np.bincount(of, maps.red.ravel()[at], n) / np.maximum(np.bincount(of, maps.total.ravel()[at], n), 1e-6)
    quality = look.shape(count * mpp**2, fill) * _ramp(hue, *look.hue)
    quality *= gradient / (gradient + look.border_gradient)
    parent = np.full(n, -1, dtype=np.intp) if below is None else below.ravel()[first].astype(np.intp) - 1
    return _Level(at, of, parent, count, quality), ranked


# A part that looks like no nucleus counts this much against splitting, relative to its area.
_JUNK = 0.5
# Parts weigh by area to this power: between counting them and measuring them.
_AREA_POWER = 0.75


def _cut(levels: list[_Level], min_quality: float) -> list[np.ndarray]:
    """For every level which components are chosen: best scores, and no two inside each other."""
    quality = [np.where(level.quality > min_quality, level.quality, 0.0) for level in levels]
    best, whole = [q.copy() for q in quality], [np.ones(len(q), dtype=bool) for q in quality]
    for k in range(len(levels) - 2, -1, -1):
        parts, n = levels[k + 1], len(quality[k])
        inside = parts.parent >= 0
        parent, value = parts.parent[inside], best[k + 1][inside]
        weight = parts.area[inside] ** _AREA_POWER * np.where(value > 0, 1.0, _JUNK)
        total = np.bincount(parent, weight, n)
        mean = np.bincount(parent, weight * value, n) / np.maximum(total, 1e-12)
        whole[k] = quality[k] >= mean
        best[k] = np.maximum(quality[k], mean)
    chosen, covered = [], [np.zeros(0, dtype=bool)]
    for k, level in enumerate(levels):
        inside = np.zeros(len(level.area), dtype=bool)
        if k:
            inside = np.append(covered[-1], False)[level.parent]  # -1: the appended False
        chosen.append(whole[k] & ~inside & (quality[k] > 0))
        covered.append(inside | chosen[-1])
    return chosen


def find_regions(
    maps: Maps,
    thresholds: np.ndarray,
    look: Look,
    mpp: float,
    *,
    min_quality: float,
    hole_um2: float,
    open_edges: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> np.ndarray:
    """Disjoint regions that look like nuclei.

    Parameters
    ----------
    maps
        Images of the window.
    thresholds
        Ascending, in units of ``maps.nuclear``.
    look
        How regions are scored.
    mpp
        µm per px.
    min_quality
        Regions that score less are no nuclei (0 to 1).
    hole_um2
        Holes smaller than this belong to the nucleus (vesicular chromatin).
    open_edges
        Whether the slide goes on beyond the top, left, bottom and right edge. Components that reach an
        open edge are never a region themselves, since their shape is unknown.

    Returns
    -------
    numpy.ndarray
        (h, w) int32, 0 = background, regions numbered from 1.

    Notes
    -----
    O(thresholds · pixels). Apart from components that are cut by the window, the result at a pixel
    depends only on its surroundings.
    """
    levels: list[_Level] = []
    below = None
    for threshold in thresholds:
        mask = maps.nuclear > threshold
        if not mask.any():
            break
        level, below = _level(maps, fill_holes(mask, hole_um2 / mpp**2), look, mpp, open_edges, below)
        levels.append(level)
    labels = np.zeros(maps.nuclear.shape, dtype=np.int32)
    n = 0
    for level, chosen in zip(levels, _cut(levels, min_quality), strict=True):
        number = (np.cumsum(chosen) * chosen).astype(np.int32)
        paint = chosen[level.of]
        labels.ravel()[level.at[paint]] = n + number[level.of[paint]]
        n += int(chosen.sum())
    return labels
