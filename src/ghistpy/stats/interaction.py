"""Which cell types lie beside each other more often than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class Interaction:
    """Neighbour pairs by type, over unordered pairs of types a ≤ b.

    Attributes
    ----------
    first, second
        (P,) codes of the types, P = C (C + 1) / 2, ``first`` ≤ ``second``.
    count
        (P,) float64 neighbour pairs.
    fraction
        (P,) share of all pairs; NaN without any.
    expected
        (P,) share expected if the types were shuffled among the cells.
    pval
        (P,) two-sided p-value of ``count`` under shuffled types; NaN without permutations.
    zscore
        (P,) (count - mean) / SD over the permutations; NaN without them.
    """

    first: np.ndarray
    second: np.ndarray
    count: np.ndarray
    fraction: np.ndarray
    expected: np.ndarray
    pval: np.ndarray
    zscore: np.ndarray


def pairs_of_graph(graph: sparse.sparray) -> np.ndarray:
    """Edges (m, 2) of a graph; of a symmetric one each pair once.

    An edge that exists in one direction only (nearest neighbours) is a pair, too.

    Examples
    --------
    >>> import numpy as np
    >>> pairs_of_graph(sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]]))).tolist()
    [[0, 1], [1, 2]]
    """
    by_row = sparse.csr_array(graph)
    by_row.sort_indices()
    upper = _keys_above(by_row)
    lower = _keys_above(by_row.tocsc().T)  # the same for the edges in the other direction; linear, no sort
    if len(upper) != len(lower) or (upper != lower).any():
        upper = np.union1d(upper, lower)
    return np.column_stack(np.divmod(upper, graph.shape[0]))


def _keys_above(graph: sparse.csr_array) -> np.ndarray:
    """Row · n + column of the edges above the diagonal, ascending."""
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    above = graph.indices > row
    return row[above] * graph.shape[0] + graph.indices[above]


def pairs_within(coordinates: np.ndarray, radius: float) -> np.ndarray:
    """All pairs (m, 2) of cells no further apart than ``radius``, each once."""
    return cKDTree(np.asarray(coordinates, dtype=np.float64)).query_pairs(radius, output_type="ndarray")


def cell_type_interaction(
    codes: np.ndarray,
    n_types: int,
    pairs: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_perms: int = 0,
    seed: int = 0,
    progress: Callable | None = None,
) -> Interaction:
    """Count neighbour pairs by type, against types shuffled among the cells.

    Parameters
    ----------
    codes
        (n,) codes of the types 0 .. n_types - 1; pairs with a cell of negative code are left out.
    n_types
        Number of types C.
    pairs
        (m, 2) neighbours, each pair once (:func:`pairs_within`, :func:`pairs_of_graph`).
    groups
        (n,) labels of slides or regions; types are shuffled within them.
    n_perms
        Permutations of the types for z-score and p-value; 0 = none.
    seed
        Of the permutations; permutation k does not depend on how many there are.
    progress
        Wraps the iteration over permutations, such as ``tqdm.tqdm``.

    Notes
    -----
    Null hypothesis of the p-value: types are exchangeable among the cells of a group, positions fixed.
    Two-sided, twice the smaller of the one-sided (1 + k) / (1 + n_perms), at most 1. Niches, nests and
    vessels are such departures: a small p says that the tissue has structure, not that two types attract
    each other. ``expected`` is exact without permutations.

    O(pairs) and O(pairs · n_perms).

    Examples
    --------
    >>> result = cell_type_interaction([0, 0, 1, 1], 2, np.array([[0, 1], [2, 3], [1, 2]]))
    >>> result.count.tolist(), result.expected.round(3).tolist()
    ([1.0, 1.0, 1.0], [0.167, 0.667, 0.167])
    """
    codes = np.asarray(codes, dtype=np.int64)
    pairs = np.asarray(pairs).reshape(-1, 2).astype(np.int64, copy=False)
    if len(pairs) and pairs.max() >= len(codes):
        raise ValueError(f"pairs: refer to cell {pairs.max()}, but there are {len(codes)} codes")
    kept = (codes[pairs] >= 0).all(axis=1)
    pairs = np.ascontiguousarray(pairs.T if kept.all() else pairs[kept].T)  # (2, m)
    groups = np.zeros(len(codes), np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    first, second = np.triu_indices(n_types)
    count = _count(codes, pairs, n_types)[first, second]
    total = max(pairs.shape[1], 1)
    expected = _expected(codes, pairs, groups, n_types)[first, second]
    fraction = count / total if pairs.size else np.full(len(first), np.nan)
    pval = zscore = np.full(len(first), np.nan)
    if n_perms and pairs.size:
        known = np.flatnonzero(codes >= 0)
        draws = np.empty((n_perms, len(first)))
        for k, shuffled in enumerate(shuffled_codes(codes, groups, known, n_perms, seed, progress)):
            draws[k] = _count(shuffled, pairs, n_types)[first, second]
        pval, zscore = two_sided(count, draws)
    return Interaction(first, second, count.astype(np.float64), fraction, expected, pval, zscore)


def _count(codes: np.ndarray, pairs: np.ndarray, n_types: int) -> np.ndarray:
    """(C, C) pairs, upper triangle: a-b and b-a together."""
    small = codes.astype(np.min_scalar_type(n_types**2))  # quick to gather
    key = small[pairs[0]]
    key *= small.dtype.type(n_types)
    key += small[pairs[1]]
    n = np.bincount(key, minlength=n_types**2).reshape(n_types, n_types)
    return np.triu(n + n.T) - np.diag(np.diag(n))


def _expected(codes: np.ndarray, pairs: np.ndarray, groups: np.ndarray, n_types: int) -> np.ndarray:
    """Share of pairs of types (a, b) when types are shuffled within groups; pairs lie within groups."""
    out, total = np.zeros((n_types, n_types)), 0
    in_group = np.bincount(groups[pairs[0]], minlength=groups.max(initial=0) + 1)
    for group, m in enumerate(in_group):
        c = codes[(groups == group) & (codes >= 0)]
        n = np.bincount(c, minlength=n_types).astype(np.float64)
        if m == 0 or n.sum() < 2:
            continue
        both = 2 * np.outer(n, n)
        np.fill_diagonal(both, n * (n - 1))
        out += m * both / (n.sum() * (n.sum() - 1))
        total += m
    return out / total if total else np.full_like(out, np.nan)


def shuffled_codes(
    codes: np.ndarray,
    groups: np.ndarray,
    known: np.ndarray,
    n_perms: int,
    seed: int,
    progress: Callable | None = None,
) -> Iterator[np.ndarray]:
    """Yield the codes with those of the cells ``known`` shuffled within groups, one generator each."""
    several = groups[known].max(initial=0) > 0
    order = known[np.argsort(groups[known], kind="stable")]
    seeds = np.random.SeedSequence(seed).spawn(n_perms)
    for sequence in progress(seeds) if progress else seeds:
        rng = np.random.default_rng(sequence)
        out = codes.copy()
        if several:
            out[order] = codes[known[np.lexsort((rng.random(len(known)), groups[known]))]]
        else:
            out[order] = rng.permutation(codes[order])
        yield out


def two_sided(observed: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values and z-scores of ``observed`` (P,) among ``draws`` (n, P); NaN where nothing varies."""
    n = len(draws)
    above = (draws >= observed - 1e-12).sum(axis=0)
    below = (draws <= observed + 1e-12).sum(axis=0)
    pval = np.minimum(1.0, 2 * (1 + np.minimum(above, below)) / (n + 1))
    spread = draws.std(axis=0, ddof=1) if n > 1 else np.zeros(draws.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        zscore = np.where(spread > 0, (observed - draws.mean(axis=0)) / spread, np.nan)
    still = (draws == draws[:1]).all(axis=0) & (observed == draws[0])
    return np.where(still, np.nan, pval), zscore
