"""Compiled passes over the cells and their neighbours. Import this module inside functions: numba takes a second.

Both fill ``out`` (T, 5, G) with sums over the cells of a stratum that have neighbours: x, y, x², y² and x·y, where y
runs over the neighbours of the cell with the weights of its row.
"""

from __future__ import annotations

import numpy as np

from ghistpy.stats._kernels import _compiled

_WIDTH = 512  # genes at once, so that the running sums stay in the nearest cache


@_compiled
def dense_moments(values, pivot, indptr, indices, data, stratum, out):
    """For values (n, G) in rows, less ``pivot`` (G,): large means would cost digits."""
    n_genes = values.shape[1]
    own, lag, square = np.empty(_WIDTH), np.empty(_WIDTH), np.empty(_WIDTH)
    for start in range(0, n_genes, _WIDTH):
        width = min(_WIDTH, n_genes - start)
        for i in range(values.shape[0]):
            if indptr[i] == indptr[i + 1]:
                continue
            for b in range(width):
                own[b] = values[i, start + b] - pivot[start + b]
                lag[b] = 0.0
                square[b] = 0.0
            for e in range(indptr[i], indptr[i + 1]):
                j, w = indices[e], data[e]
                for b in range(width):
                    y = values[j, start + b] - pivot[start + b]
                    lag[b] += w * y
                    square[b] += w * y * y
            sums = out[stratum[i]]
            for b in range(width):
                sums[0, start + b] += own[b]
                sums[1, start + b] += lag[b]
                sums[2, start + b] += own[b] * own[b]
                sums[3, start + b] += square[b]
                sums[4, start + b] += own[b] * lag[b]


@_compiled
def sparse_moments(row_start, gene, value, n_genes, indptr, indices, data, stratum, out):
    """The same for the rows of a CSR matrix: only stored values are looked at."""
    own = np.zeros(n_genes)
    for i in range(indptr.shape[0] - 1):
        if indptr[i] == indptr[i + 1]:
            continue
        sums = out[stratum[i]]
        for s in range(row_start[i], row_start[i + 1]):
            x = np.float64(value[s])
            own[gene[s]] += x
            sums[0, gene[s]] += x
            sums[2, gene[s]] += x * x
        for e in range(indptr[i], indptr[i + 1]):
            j, w = indices[e], data[e]
            for s in range(row_start[j], row_start[j + 1]):
                y = w * np.float64(value[s])
                sums[1, gene[s]] += y
                sums[3, gene[s]] += y * np.float64(value[s])
                sums[4, gene[s]] += y * own[gene[s]]
        for s in range(row_start[i], row_start[i + 1]):
            own[gene[s]] = 0.0
