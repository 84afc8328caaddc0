"""Mean, variance and skewness of a quadratic form in values that are permuted over the points of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import factorial

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class GraphSums:
    """What the moments need of a graph with edge weights s_ij = s_ji and loop weights l_i.

    The form is F = Σ_edges s_ij z_i z_j + Σ_i l_i z_i². All sums run over undirected edges; ``r``, ``q``, ``c``
    below are the row sums of s, s² and s³.
    """

    n: int
    edges: float  # Σ_e s
    edges2: float  # Σ_e s²
    edges3: float  # Σ_e s³
    adjacent: float  # Σ over ordered pairs of edges that share one point
    double_adjacent: float  # Σ s_e² s_g, e and g share one point
    triangles: float  # Σ over ordered triples of edges that form a triangle
    stars: float  # ... that share one point
    paths: float  # ... that form a path
    loops: tuple[float, float, float]  # Σ l, Σ l², Σ l³
    lr: float
    l2r: float
    lsl: float
    lq: float
    lr2: float
    lsr: float


def graph_sums(upper: sparse.csr_array, loops: np.ndarray | None = None) -> GraphSums:
    """Sums over single edges, pairs and triples of edges of an undirected graph without loops of its own.

    Parameters
    ----------
    upper
        (n, n) CSR, the edges s_ij with i < j, columns of a row in order.
    loops
        (n,) weights of the squares, None = 0.

    Notes
    -----
    O(edges x degree) for the triangles, all else O(edges).
    """
    from ghistpy.stats._kernels import edge_power_sums, triangle_sum

    s = sparse.csr_array(upper, dtype=np.float64)
    n = s.shape[0]
    r, q, c = sums = np.zeros((3, n))
    edge_power_sums(s.indptr, s.indices, s.data, sums)
    edges, edges2, edges3 = r.sum() / 2, q.sum() / 2, c.sum() / 2
    triangles = 6 * triangle_sum(s.indptr, s.indices, s.data)
    sr = s @ r + s.T @ r
    ell = np.zeros(n) if loops is None else np.asarray(loops, dtype=np.float64)
    return GraphSums(
        n=n,
        edges=edges,
        edges2=edges2,
        edges3=edges3,
        adjacent=_sum(r, r) - 2 * edges2,
        double_adjacent=_sum(q, r) - 2 * edges3,
        triangles=triangles,
        stars=_sum(r, r, r) - 3 * _sum(r, q) + 4 * edges3,
        paths=6 * (_sum(r, sr) / 2 - _sum(r, q) + edges3 - triangles / 2),
        loops=(_sum(ell), _sum(ell, ell), _sum(ell, ell, ell)),
        lr=_sum(ell, r),
        l2r=_sum(ell, ell, r),
        lsl=0.0 if loops is None else 2 * _sum(ell, s @ ell),
        lq=_sum(ell, q),
        lr2=_sum(ell, r, r),
        lsr=_sum(ell, sr),
    )


def _sum(*factors: np.ndarray) -> float:
    """Sum of products; a dot product of the linear algebra library would wake its threads for it."""
    return float(np.multiply.reduce(factors).sum())


def form_moments(sums: GraphSums, powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact mean, variance and skewness of the form over all permutations of the values.

    Parameters
    ----------
    sums
        Of the graph.
    powers
        (5, G) sums of z², z³, z⁴, z⁵, z⁶ over the points; the values have mean 0.

    Returns
    -------
    mean, variance, skewness
        (G,) float64 each; skewness NaN where the variance is 0.

    Notes
    -----
    The first three powers of F are sums over products of one, two and three edges or loops. Products with
    the same pattern of shared points have the same expectation, a mean over distinct points, which follows
    from the power sums. Checked against all permutations of small sets in the tests.

    Examples
    --------
    Moran's I of a permuted map has mean -1 / (n - 1); here F is n / 2 of it:

    >>> import numpy as np
    >>> from scipy import sparse
    >>> z = np.array([-1.5, -0.5, 0.5, 1.5])
    >>> ring = sparse.csr_array(np.array([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]))
    >>> mean, *_ = form_moments(graph_sums(ring), np.array([[(z**k).sum()] for k in range(2, 7)]))
    >>> float(np.round(mean[0] / (z @ z), 6)), round(-1 / 3, 6)
    (-0.333333, -0.333333)
    """
    p = {1: np.zeros(powers.shape[1]), **{k: powers[k - 2] for k in range(2, 7)}}

    def expect(*exponents: int) -> np.ndarray:
        return distinct_mean(exponents, p, sums.n)

    first = sum(weight * expect(*e) for weight, e in _first(sums))
    second = sum(weight * expect(*e) for weight, e in _second(sums))
    third = sum(weight * expect(*e) for weight, e in _third(sums))
    variance = np.maximum(second - first**2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = (third - 3 * first * second + 2 * first**3) / variance**1.5
    return first, variance, np.where(np.isfinite(skewness), skewness, np.nan)


def _first(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    return [(g.loops[0], (2,)), (g.edges, (1, 1))]


def _second(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    l1, l2, _ = g.loops
    return [
        (l2, (4,)),
        (l1**2 - l2, (2, 2)),
        (2 * g.lr, (3, 1)),
        (2 * (l1 * g.edges - g.lr), (2, 1, 1)),
        (g.edges2, (2, 2)),
        (g.adjacent, (1, 2, 1)),
        (g.edges**2 - g.edges2 - g.adjacent, (1, 1, 1, 1)),
    ]


def _third(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    return [*_three_loops(g), *_two_loops(g), *_one_loop(g), *_three_edges(g)]


def _three_loops(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    l1, l2, l3 = g.loops
    return [(l3, (6,)), (3 * (l1 * l2 - l3), (4, 2)), (l1**3 - 3 * l1 * l2 + 2 * l3, (2, 2, 2))]


def _two_loops(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    l1, l2, _ = g.loops
    one_inside = 2 * (l1 * g.lr - g.l2r - g.lsl)
    same_outside = l2 * g.edges - g.l2r
    outside = l1**2 * g.edges - g.l2r - same_outside - g.lsl - one_inside
    terms = [
        (g.l2r, (5, 1)),
        (same_outside, (4, 1, 1)),
        (g.lsl, (3, 3)),
        (one_inside, (3, 1, 2)),
        (outside, (2, 2, 1, 1)),
    ]
    return [(3 * weight, e) for weight, e in terms]


def _one_loop(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    l1 = g.loops[0]
    at_middle = g.lr2 - g.lq
    at_end = 2 * (g.lsr - g.lq)
    disjoint = g.edges**2 - g.edges2 - g.adjacent
    in_disjoint = 2 * (g.edges * g.lr - g.lr2 - g.lsr + g.lq)
    terms = [
        (g.lq, (4, 2)),
        (l1 * g.edges2 - g.lq, (2, 2, 2)),
        (at_middle, (4, 1, 1)),
        (at_end, (3, 2, 1)),
        (l1 * g.adjacent - at_middle - at_end, (2, 1, 2, 1)),
        (in_disjoint, (3, 1, 1, 1)),
        (l1 * disjoint - in_disjoint, (2, 1, 1, 1, 1)),
    ]
    return [(3 * weight, e) for weight, e in terms]


def _three_edges(g: GraphSums) -> list[tuple[float, tuple[int, ...]]]:
    double_apart = g.edges2 * g.edges - g.edges3 - g.double_adjacent
    path_and_edge = 3 * (g.adjacent * g.edges - 2 * g.double_adjacent - g.triangles - g.stars - 2 * g.paths / 3)
    found = g.edges3 + 3 * g.double_adjacent + 3 * double_apart + g.triangles + g.stars + g.paths + path_and_edge
    return [
        (g.edges3, (3, 3)),
        (3 * g.double_adjacent, (2, 3, 1)),
        (3 * double_apart, (2, 2, 1, 1)),
        (g.triangles, (2, 2, 2)),
        (g.stars, (3, 1, 1, 1)),
        (g.paths, (1, 2, 2, 1)),
        (path_and_edge, (1, 2, 1, 1, 1)),
        (g.edges**3 - found, (1, 1, 1, 1, 1, 1)),
    ]


def distinct_mean(exponents: tuple[int, ...], power_sums: dict[int, np.ndarray], n: int) -> np.ndarray:
    """Mean over ordered tuples of distinct points of z_a^e1 z_b^e2 ..., from the power sums of z (mean 0).

    0 where there are fewer points than exponents.
    """
    k = len(exponents)
    if n < k:
        return np.zeros_like(power_sums[2])
    total = np.zeros_like(power_sums[2])
    for partition in _partitions(k):
        sizes = [sum(exponents[i] for i in block) for block in partition]
        if 1 in sizes:
            continue  # the sum of z is 0
        sign = 1.0
        for block in partition:
            sign *= (-1) ** (len(block) - 1) * factorial(len(block) - 1)
        total += sign * np.prod([power_sums[size] for size in sizes], axis=0)
    falling = 1.0
    for i in range(k):
        falling *= n - i
    return total / falling


@cache
def _partitions(k: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All ways to cut 0 .. k - 1 into blocks."""

    def grow(items: list[int]) -> Iterator[list[list[int]]]:
        if not items:
            yield []
            return
        head, rest = items[0], items[1:]
        for smaller in grow(rest):
            yield [[head], *smaller]
            for i, block in enumerate(smaller):
                yield [*smaller[:i], [head, *block], *smaller[i + 1 :]]

    return tuple(tuple(tuple(block) for block in partition) for partition in grow(list(range(k))))
