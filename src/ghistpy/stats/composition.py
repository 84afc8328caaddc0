"""Shares of cell types: of a slide, of its regions, around every cell."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def type_counts(
    codes: np.ndarray, n_types: int, *, groups: np.ndarray | None = None, n_groups: int | None = None
) -> np.ndarray:
    """Cells of each type, by group.

    Parameters
    ----------
    codes
        (n,) codes of the types, 0 .. n_types - 1; a negative code is a cell without type and not counted.
    n_types
        Number of types C.
    groups
        (n,) codes of regions or samples; a negative code is a cell in none. None: one group.
    n_groups
        Number of groups R, when some may be empty.

    Returns
    -------
    (R, C) int64

    Examples
    --------
    >>> type_counts([0, 1, 1, -1], 3).tolist()
    [[1, 2, 0]]
    """
    codes = np.asarray(codes, dtype=np.int64)
    groups = np.zeros(len(codes), np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    if groups.shape != codes.shape:
        raise ValueError(f"groups: expected one code per cell ({len(codes)}), got shape {groups.shape}")
    n_groups = int(groups.max(initial=0)) + 1 if n_groups is None else n_groups
    if codes.max(initial=-1) >= n_types or groups.max(initial=-1) >= n_groups:
        raise ValueError(
            f"codes, groups: expected codes below {n_types} and {n_groups}, got up to {codes.max(initial=-1)} and "
            f"{groups.max(initial=-1)}"
        )
    known = (codes >= 0) & (groups >= 0)
    counts = np.bincount(groups[known] * n_types + codes[known], minlength=n_groups * n_types)
    return counts.reshape(n_groups, n_types)


def local_composition(codes: np.ndarray, n_types: int, neighbours: sparse.sparray) -> np.ndarray:
    """Shares of the types among a cell and its neighbours.

    Parameters
    ----------
    codes
        (n,) codes of the types; cells with a negative code have none and are not counted.
    n_types
        Number of types C.
    neighbours
        (n, n) sparse graph, such as all pairs within a radius; its weights are not used.

    Returns
    -------
    (n, C) float32; rows sum to 1, or are NaN where no cell in reach has a type.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> local_composition([0, 1], 2, sparse.csr_array(np.eye(2)[::-1])).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    codes = np.asarray(codes, dtype=np.int64)
    n = len(codes)
    if neighbours.shape != (n, n):
        raise ValueError(f"neighbours: expected ({n}, {n}), one row per cell, got {neighbours.shape}")
    graph = sparse.csr_array(neighbours)
    own = np.zeros((n, n_types), np.float32)
    known = np.flatnonzero(codes >= 0)
    own[known, codes[known]] = 1
    ones = sparse.csr_array((np.ones(graph.nnz, np.float32), graph.indices, graph.indptr), shape=graph.shape)
    counts = ones @ own + own
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
