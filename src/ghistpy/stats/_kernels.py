"""Compiled inner loops. Import this module inside functions: numba takes about a second.

The loops release the interpreter lock, so that callers spread them over threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

WIDTH = 64  # genes side by side: one row fills four cache lines of float32, and the compiler knows the length
_FLUSH = 256  # rows after which float32 sums go into float64


def _compiled(function: Callable) -> Callable:
    try:
        return njit(nogil=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache can be written
        return njit(nogil=True, fastmath=True)(function)


@_compiled
def block_products(z, order, loops, indptr, indices, data, cross, square):
    """Sums over the edges of h_ij z_i z_j and over the points of loop_i z_i², for permuted values.

    ``z`` (n, WIDTH); point i has the values of row ``order[i]``. ``loops`` (n,) or empty. The graph is
    the upper triangle. ``cross`` and ``square`` (WIDTH,) float64 are overwritten.
    """
    lag = np.zeros(WIDTH, z.dtype)
    part = np.zeros(WIDTH, z.dtype)
    loop = np.zeros(WIDTH, z.dtype)
    with_loops = loops.shape[0] > 0
    for b in range(WIDTH):
        cross[b] = 0.0
        square[b] = 0.0
    n = order.shape[0]
    for i in range(n):
        for b in range(WIDTH):
            lag[b] = 0
        for e in range(indptr[i], indptr[i + 1]):
            j = order[indices[e]]
            w = data[e]
            for b in range(WIDTH):
                lag[b] += w * z[j, b]
        row = order[i]
        for b in range(WIDTH):
            part[b] += lag[b] * z[row, b]
        if with_loops:
            d = loops[i]
            for b in range(WIDTH):
                loop[b] += d * z[row, b] * z[row, b]
        if i % _FLUSH == _FLUSH - 1 or i == n - 1:
            for b in range(WIDTH):
                cross[b] += part[b]
                square[b] += loop[b]
                part[b] = 0
                loop[b] = 0


@_compiled
def centre_block(z, mean, stored):
    """Take the column means from ``z`` (n, WIDTH) in place; ``mean`` and the number of values that were not 0."""
    n = z.shape[0]
    for b in range(WIDTH):
        mean[b] = 0.0
        stored[b] = 0.0
    for i in range(n):
        for b in range(WIDTH):
            mean[b] += np.float64(z[i, b])
            stored[b] += 1.0 if z[i, b] != 0 else 0.0
    for b in range(WIDTH):
        mean[b] /= n
    for i in range(n):
        for b in range(WIDTH):
            z[i, b] = np.float64(z[i, b]) - mean[b]


@_compiled
def block_powers(z, powers):
    """Add to ``powers`` (5, WIDTH) the sums over the rows of z², z³ .. z⁶."""
    for i in range(z.shape[0]):
        for b in range(WIDTH):
            c = np.float64(z[i, b])  # the sixth power of a count leaves float32
            s = c * c
            powers[0, b] += s
            powers[1, b] += s * c
            powers[2, b] += s * s
            powers[3, b] += s * s * c
            powers[4, b] += s * s * s


@_compiled
def sparse_products(column_start, row, value, group_start, neighbour, weight, degree, loops, first, last, out):
    """For the columns ``first`` .. ``last`` of a CSC matrix: what :func:`block_products` gives for centred values.

    The graph as :func:`in_fours` makes it: groups ``group_start[i]`` .. ``group_start[i + 1]`` of point i.
    ``degree`` (n,) sums of the full symmetric graph, ``loops`` (n,) weights of squares. ``out`` (G, 9): mean,
    cross, square, power sums 2 .. 6 about the mean, number of stored values that are not 0.
    """
    n = degree.shape[0]
    dense = np.zeros(n, value.dtype)
    total_degree = 0.0
    total_loops = 0.0
    for i in range(n):
        total_degree += degree[i]
        total_loops += loops[i]
    for g in range(first, last):
        start, stop = column_start[g], column_start[g + 1]
        total = 0.0
        stored = 0
        for e in range(start, stop):
            dense[row[e]] = value[e]
            total += value[e]
            stored += value[e] != 0
        mean = total / n
        cross = 0.0
        on_degree = 0.0
        square = 0.0
        on_loops = 0.0
        p2 = p3 = p4 = p5 = p6 = 0.0
        for e in range(start, stop):
            i = row[e]
            x = np.float64(value[e])
            lag = 0.0
            for k in range(group_start[i], group_start[i + 1]):
                # written out: a loop over single neighbours costs twice as much
                lag += (
                    weight[k, 0] * dense[neighbour[k, 0]]
                    + weight[k, 1] * dense[neighbour[k, 1]]
                    + weight[k, 2] * dense[neighbour[k, 2]]
                    + weight[k, 3] * dense[neighbour[k, 3]]
                )
            cross += x * lag
            on_degree += x * degree[i]
            square += loops[i] * x * x
            on_loops += loops[i] * x
            c = x - mean
            s = c * c
            p2 += s
            p3 += s * c
            p4 += s * s
            p5 += s * s * c
            p6 += s * s * s
        empty = n - (stop - start)
        s = mean * mean
        out[g, 0] = mean
        out[g, 1] = cross - mean * on_degree + 0.5 * s * total_degree
        out[g, 2] = square - 2.0 * mean * on_loops + s * total_loops
        out[g, 3] = p2 + empty * s
        out[g, 4] = p3 - empty * s * mean
        out[g, 5] = p4 + empty * s * s
        out[g, 6] = p5 - empty * s * s * mean
        out[g, 7] = p6 + empty * s * s * s
        out[g, 8] = stored
        for e in range(start, stop):
            dense[row[e]] = 0


@_compiled
def in_fours(indptr, indices, data, group_start, neighbour, weight):
    """The rows of a CSR matrix in groups of four entries; ``neighbour`` and ``weight`` (groups, 4) come in as 0."""
    for i in range(indptr.shape[0] - 1):
        first = group_start[i]
        for e in range(indptr[i], indptr[i + 1]):
            k = e - indptr[i]
            neighbour[first + k // 4, k % 4] = indices[e]
            weight[first + k // 4, k % 4] = data[e]


@_compiled
def upper_of_sum(a_start, a_column, a, b_start, b_column, b, start, column, value, degree):
    """Upper triangle of A + B without diagonal, both CSR with sorted rows; its number of entries.

    ``start`` (n + 1,) and ``degree`` (n,) come in as 0; ``column`` and ``value`` are long enough for all entries
    of A and B. ``degree``: row sums of the symmetric matrix that it is half of.
    """
    n = a_start.shape[0] - 1
    k = 0
    for i in range(n):
        p, p_end = a_start[i], a_start[i + 1]
        q, q_end = b_start[i], b_start[i + 1]
        while p < p_end and a_column[p] <= i:
            p += 1
        while q < q_end and b_column[q] <= i:
            q += 1
        while p < p_end or q < q_end:
            from_a = a_column[p] if p < p_end else n
            from_b = b_column[q] if q < q_end else n
            j = min(from_a, from_b)
            w = 0.0
            if from_a == j:
                w += a[p]
                p += 1
            if from_b == j:
                w += b[q]
                q += 1
            column[k] = j
            value[k] = w
            degree[i] += w
            degree[j] += w
            k += 1
        start[i + 1] = k
    return k


@_compiled
def edge_power_sums(indptr, indices, data, sums):
    """Add to sums (3, n), for each point, the weights of its edges, their squares and their cubes; upper triangle."""
    for i in range(indptr.shape[0] - 1):
        for e in range(indptr[i], indptr[i + 1]):
            w, j = data[e], indices[e]
            sums[0, i] += w
            sums[0, j] += w
            sums[1, i] += w * w
            sums[1, j] += w * w
            sums[2, i] += w * w * w
            sums[2, j] += w * w * w


@_compiled
def triangle_sum(indptr, indices, data):
    """Sum over the triangles of a graph of the product of their three weights; upper triangle."""
    n = indptr.shape[0] - 1
    beside = np.zeros(n)  # weights from point i
    total = 0.0
    for i in range(n):
        for e in range(indptr[i], indptr[i + 1]):
            beside[indices[e]] = data[e]
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            found = 0.0
            for k in range(indptr[j], indptr[j + 1]):
                found += data[k] * beside[indices[k]]
            total += data[e] * found
        for e in range(indptr[i], indptr[i + 1]):
            beside[indices[e]] = 0.0
    return total


@_compiled
def shuffle_segments(order, starts, uniform):
    """Shuffle ``order`` (n,) in place within the segments ``starts[s]`` .. ``starts[s + 1]`` (Fisher and Yates)."""
    for s in range(starts.shape[0] - 1):
        low = starts[s]
        for i in range(starts[s + 1] - 1, low, -1):
            j = low + int(uniform[i] * (i - low + 1))
            kept = order[i]
            order[i] = order[j]
            order[j] = kept


@_compiled
def conditional_lags(z, indptr, data, draws, observed, counts):
    """How often a lag of randomly drawn others reaches the observed one, point by point.

    ``z`` (n,), ``draws`` (P, k) positions 0 .. n - 2 without repeats within a row, k the largest degree;
    position v stands for point v below i and v + 1 from there. ``counts`` (n, 2) int64: draws at least as
    large, at least as small.
    """
    n = z.shape[0]
    for i in range(n):
        first = indptr[i]
        degree = indptr[i + 1] - first
        if degree == 0:
            continue
        top = observed[i]
        slack = 1e-9 * (1.0 + abs(top))
        for p in range(draws.shape[0]):
            lag = 0.0
            for k in range(degree):
                v = draws[p, k]
                if v >= i:
                    v += 1
                lag += data[first + k] * z[v]
            if lag >= top - slack:
                counts[i, 0] += 1
            if lag <= top + slack:
                counts[i, 1] += 1
