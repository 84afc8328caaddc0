"""Ripley's cross-type L with isotropic edge correction in any polygon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ghistpy.stats.interaction import shuffled_codes, two_sided

_PAIRS_AT_ONCE = 200_000
_MOST_RADII = 10_000
_MOST_PAIRS = 200_000_000  # with distance and weight: 6 GB
MAX_WEIGHT = 100.0  # of one pair, as in spatstat: a circle may lie almost wholly outside


@dataclass(frozen=True)
class Window:
    """The area in which cells could have been seen.

    Attributes
    ----------
    rings
        Closed rings (m, 2) in µm, first vertex not repeated: outer rings counter-clockwise, holes
        clockwise.
    """

    rings: tuple[np.ndarray, ...]

    @property
    def area(self) -> float:
        """Area in µm²."""
        return float(sum(_signed_area(ring) for ring in self.rings))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in µm."""
        points = np.concatenate(self.rings)
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())

    @classmethod
    def rectangle(cls, x0: float, y0: float, x1: float, y1: float) -> Window:
        """A rectangle; wider by a billionth, so that cells that span it lie inside."""
        if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
            raise ValueError(f"window: expected x0 < x1 and y0 < y1 in µm, got {(x0, y0, x1, y1)}")
        e = 1e-9 * max(x1 - x0, y1 - y0)
        x0, y0, x1, y1 = x0 - e, y0 - e, x1 + e, y1 + e
        return cls((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),))

    @classmethod
    def polygon(cls, outer: Sequence[np.ndarray], holes: Sequence[np.ndarray] = ()) -> Window:
        """Polygons by their rings, in whatever sense of rotation."""
        rings = [_turned(ring, 1) for ring in outer] + [_turned(ring, -1) for ring in holes]
        window = cls(tuple(rings))
        if not rings or window.area <= 0:
            raise ValueError("window: expected rings that enclose an area")
        return window

    def edges(self, longest: float) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends (m, 2) of the edges, cut into pieces of at most ``longest``."""
        start = np.concatenate(self.rings)
        end = np.concatenate([np.roll(ring, -1, axis=0) for ring in self.rings])
        pieces = np.maximum(1, np.ceil(np.hypot(*(end - start).T) / longest)).astype(np.int64)
        which = np.repeat(np.arange(len(start)), pieces)
        at = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        step = (end - start)[which] / pieces[which, None]
        return start[which] + at[:, None] * step, start[which] + (at[:, None] + 1) * step


def _signed_area(ring: np.ndarray) -> float:
    x, y = (ring - ring[0]).T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def _turned(ring: np.ndarray, sign: int) -> np.ndarray:
    ring = np.asarray(ring, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise ValueError(f"window: expected rings of finite (m, 2) points, got shape {ring.shape}")
    ring = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
    return ring if _signed_area(ring) * sign >= 0 else ring[::-1]


def inside_fraction(window: Window, points: np.ndarray, which: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Share of the circle about a point that lies in the window.

    Parameters
    ----------
    window
        Area.
    points
        (n, 2) centres inside the window, µm.
    which, radius
        (m,) circles: index of the centre, radius in µm.

    Returns
    -------
    (m,) float64

    Notes
    -----
    Seen from a point inside, the edges of the window span a signed angle of 2π in all. A direction
    leaves the window within the radius exactly as often as edges cross it there, so the share outside is
    the signed angle of those parts of the edges that lie inside the circle, over 2π. Exact for any
    polygon with holes; only edges within reach are looked at.
    """
    points, radius = np.asarray(points, dtype=np.float64), np.asarray(radius, dtype=np.float64)
    out = np.ones(len(radius))
    if len(radius) == 0:
        return out
    reach = max(float(radius.max()), 1e-12)
    start, end = window.edges(reach)
    near = cKDTree(points).query_ball_point((start + end) / 2, reach * 1.5 * (1 + 1e-9), return_sorted=False)
    edge = np.repeat(np.arange(len(start)), [len(n) for n in near])
    point = np.concatenate([np.asarray(n, dtype=np.int64) for n in near])
    order = np.argsort(point, kind="stable")
    edge, point = edge[order], point[order]
    span = end[edge] - start[edge]
    length = np.hypot(*span.T)
    kept = length > 0
    edge, point, span, length = edge[kept], point[kept], span[kept], length[kept]
    towards = span / length[:, None]
    offset = start[edge] - points[point]
    low = (offset * towards).sum(axis=1)  # along the edge, from the foot of the point
    side = offset[:, 0] * towards[:, 1] - offset[:, 1] * towards[:, 0]  # > 0: the edge turns anti-clockwise
    first = np.searchsorted(point, np.arange(len(points) + 1))
    n_near = np.diff(first)
    touched = np.flatnonzero(n_near[which] > 0)
    for chunk in np.array_split(touched, max(1, int(n_near[which[touched]].sum()) // _PAIRS_AT_ONCE)):
        times = n_near[which[chunk]]
        circle = np.repeat(np.arange(len(chunk)), times)
        at = np.arange(len(circle)) - np.repeat(np.cumsum(times) - times, times) + first[which[chunk]][circle]
        angle = _angle_inside(side[at], low[at], low[at] + length[at], radius[chunk][circle])
        out[chunk] = 1 - np.bincount(circle, angle, minlength=len(chunk)) / (2 * np.pi)
    return np.clip(out, 0.0, 1.0)


def _angle_inside(side: np.ndarray, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed angle of the part of an edge within a radius of the point."""
    reach = np.sqrt(np.maximum(radius**2 - side**2, 0.0))
    a, b = np.maximum(low, -reach), np.minimum(high, reach)
    distance = np.abs(side)
    angle = np.arctan2(b, distance) - np.arctan2(a, distance)
    return np.where((b > a) & (radius > distance), np.where(side < 0, -angle, angle), 0.0)


@dataclass(frozen=True)
class RipleyPairs:
    """Ordered pairs of cells within reach and their edge weights.

    Attributes
    ----------
    source, target
        (m,) rows of the cells.
    distance
        (m,) µm.
    weight
        (m,) one over the share of the circle about the source, through the target, in the window.
    area
        Of the window, µm².
    n
        Number of cells.
    """

    source: np.ndarray
    target: np.ndarray
    distance: np.ndarray
    weight: np.ndarray
    area: float
    n: int


def ripley_pairs(
    coordinates: np.ndarray, window: Window, max_radius: float, *, edge_correction: bool = True
) -> RipleyPairs:
    """All ordered pairs within ``max_radius`` with their isotropic edge weights.

    Parameters
    ----------
    coordinates
        (n, 2) cells inside the window, µm.
    window
        Where cells could have been seen.
    max_radius
        Largest distance in µm.
    edge_correction
        False: all weights 1.

    Raises
    ------
    ValueError
        More than 200 million pairs, judged from a thousand cells.

    References
    ----------
    Ripley, J R Stat Soc B 39:172 (1977), doi:10.1111/j.2517-6161.1977.tb01615.x.
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    tree = cKDTree(xy)
    probes = xy[:: max(1, len(xy) // 1000)]
    expected = len(xy) * (tree.query_ball_point(probes, max_radius, return_length=True).mean() - 1) if len(xy) else 0
    if expected > _MOST_PAIRS:
        raise ValueError(
            f"max_radius={max_radius!r} makes about {expected:.2g} pairs of {len(xy)} cells; is it in µm, as the "
            "coordinates are? Take a smaller one"
        )
    pair = tree.query_pairs(max_radius, output_type="ndarray")
    source, target = np.concatenate([pair, pair[:, ::-1]]).T
    distance = np.hypot(*(xy[pair[:, 0]] - xy[pair[:, 1]]).T)
    distance = np.concatenate([distance, distance])
    weight = np.ones(len(source))
    if edge_correction:
        share = inside_fraction(window, xy, source, distance)
        weight = 1 / np.maximum(share, 1 / MAX_WEIGHT)
    return RipleyPairs(source, target, distance, weight, window.area, len(xy))


def cross_l(pairs: RipleyPairs, codes: np.ndarray, n_types: int, radii: np.ndarray) -> np.ndarray:
    """Cross-type L functions of all ordered pairs of types.

    Parameters
    ----------
    pairs
        From :func:`ripley_pairs` with a reach of at least ``radii[-1]``.
    codes
        (n,) codes of the types; cells with a negative code are left out.
    n_types
        Number of types C.
    radii
        (R,) increasing, µm.

    Returns
    -------
    (C, C, R) float64: L from type a to type b; NaN where a type has no cell (or one, within the type).

    Notes
    -----
    K_ab(r) = area / (n_a n_b) · Σ weight of pairs with distance ≤ r (n_a (n_a - 1) within a type),
    L = √(K / π). Under independence and complete spatial randomness L(r) = r.

    Examples
    --------
    >>> import numpy as np
    >>> xy = np.random.default_rng(0).uniform(0, 1000, (4000, 2))
    >>> pairs = ripley_pairs(xy, Window.rectangle(0, 0, 1000, 1000), 50)
    >>> bool(abs(cross_l(pairs, np.zeros(4000, int), 1, np.array([50.0]))[0, 0, 0] - 50) < 1)
    True
    """
    codes, radii = np.asarray(codes, dtype=np.int64), np.asarray(radii, dtype=np.float64)
    if codes.shape != (pairs.n,):
        raise ValueError(f"codes: expected one code per cell ({pairs.n}), got shape {codes.shape}")
    cell = np.searchsorted(radii, pairs.distance, side="left")  # the first radius that reaches
    return _l_of(codes, cell, pairs, n_types, radii)


def _l_of(codes: np.ndarray, cell: np.ndarray, pairs: RipleyPairs, n_types: int, radii: np.ndarray) -> np.ndarray:
    size = len(radii) + 1
    a, b = codes[pairs.source], codes[pairs.target]
    weight = pairs.weight if codes.min(initial=0) >= 0 else np.where((a >= 0) & (b >= 0), pairs.weight, 0.0)
    key = np.maximum((a * n_types + b) * size + cell, 0)
    sums = np.bincount(key, weight, minlength=n_types**2 * size).reshape(n_types, n_types, size)
    n = np.bincount(codes[codes >= 0], minlength=n_types).astype(np.float64)
    number = np.outer(n, n)
    np.fill_diagonal(number, n * (n - 1))
    scale = np.divide(pairs.area, number, out=np.full_like(number, np.nan), where=number > 0)
    return np.sqrt(np.cumsum(sums[:, :, :-1], axis=2) * scale[:, :, None] / np.pi)


def spatstat_radii(window: Window, n_target: int, max_radius: float = np.inf) -> np.ndarray:
    """The default radii of spatstat's Lcross up to ``max_radius``, for ``n_target`` cells of the second type.

    512 steps to the smaller of a quarter of the shorter side and √(1000 / (π · density)).
    """
    x0, y0, x1, y1 = window.bounds
    top = min(min(x1 - x0, y1 - y0) / 4, np.sqrt(1000 * window.area / (np.pi * max(n_target, 1))))
    radii = np.arange(513) * (top / 512)
    return radii[radii <= max_radius]


def l_scores(
    coordinates: np.ndarray,
    codes: np.ndarray,
    n_types: int,
    window: Window,
    *,
    max_radius: float = 50.0,
    step: float = 1.0,
    grid: str = "fixed",
    min_cells: int = 10,
) -> np.ndarray:
    """Mean of L(r) - r over r ≤ ``max_radius`` for every ordered pair of types.

    Parameters
    ----------
    coordinates, codes, n_types, window
        As in :func:`ripley_pairs` and :func:`cross_l`.
    max_radius, step
        The fixed grid step, 2 step … max_radius, µm.
    grid
        ``"fixed"``, or ``"spatstat"`` for its default radii (they depend on window and density).
    min_cells
        Types with no more than this many cells have no score.

    Returns
    -------
    (C, C) float64, NaN for rare types.
    """
    codes = np.asarray(codes, dtype=np.int64)
    pairs = ripley_pairs(coordinates, window, max_radius)
    n = np.bincount(codes[codes >= 0], minlength=n_types)
    if grid == "fixed":
        radii = fixed_radii(max_radius, step)
        out = (cross_l(pairs, codes, n_types, radii) - radii).mean(axis=2)
    elif grid == "spatstat":
        out = np.full((n_types, n_types), np.nan)
        grids = [spatstat_radii(window, size, max_radius) for size in n]
        for top in {float(g[-1]) for g in grids}:  # most types share theirs
            columns = [b for b in range(n_types) if grids[b][-1] == top]
            radii = grids[columns[0]]
            out[:, columns] = (cross_l(pairs, codes, n_types, radii) - radii).mean(axis=2)[:, columns]
    else:
        raise ValueError(f"grid={grid!r}: expected 'fixed' or 'spatstat'")
    rare = n <= min_cells
    out[rare], out[:, rare] = np.nan, np.nan
    return out


def fixed_radii(max_radius: float, step: float) -> np.ndarray:
    """Radii step, 2 step … max_radius in µm."""
    if not all(isinstance(v, (int, float, np.integer, np.floating)) for v in (max_radius, step)) or not (
        np.isfinite([max_radius, step]).all() and 0 < step <= max_radius
    ):
        raise ValueError(f"max_radius={max_radius!r}, step={step!r}: expected 0 < step <= max_radius, in µm")
    if max_radius > _MOST_RADII * step:
        raise ValueError(
            f"max_radius={max_radius!r}, step={step!r}: makes {max_radius / step:.3g} radii, of which at most "
            f"{_MOST_RADII:,} are computed; take a larger step"
        )
    return step * np.arange(1, int(np.floor(max_radius / step + 1e-9)) + 1)


@dataclass(frozen=True)
class LabelTest:
    """L functions against types shuffled among the cells.

    ``low`` and ``high`` (C, C, R): pointwise 2.5 and 97.5 % of L over the permutations. ``pval`` (C, C):
    two-sided, of the mean of L(r) - r.
    """

    low: np.ndarray
    high: np.ndarray
    pval: np.ndarray


def random_labelling(
    pairs: RipleyPairs,
    codes: np.ndarray,
    n_types: int,
    radii: np.ndarray,
    *,
    n_perms: int,
    seed: int = 0,
    progress: Callable | None = None,
) -> LabelTest:
    """Test whether types are exchangeable among the positions of the cells.

    The null keeps every position, so the density of the tissue cannot make a small p; niches do.
    ``progress`` wraps the iteration over permutations, such as ``tqdm.tqdm``. O(pairs · n_perms).
    """
    codes = np.asarray(codes, dtype=np.int64)
    cell = np.searchsorted(radii, pairs.distance, side="left")
    observed = _l_of(codes, cell, pairs, n_types, radii)
    known, groups = np.flatnonzero(codes >= 0), np.zeros(len(codes), np.int64)
    draws = np.stack(
        [_l_of(c, cell, pairs, n_types, radii) for c in shuffled_codes(codes, groups, known, n_perms, seed, progress)]
    )
    low, high = np.full_like(observed, np.nan), np.full_like(observed, np.nan)
    seen = ~np.isnan(observed).any(axis=2)
    low[seen], high[seen] = np.quantile(draws[:, seen], [0.025, 0.975], axis=0)
    pval = np.full((n_types, n_types), np.nan)
    pval[seen] = two_sided(observed.mean(axis=2)[seen], draws.mean(axis=3)[:, seen])[0]
    return LabelTest(low, high, pval)
