"""Repeated folds that keep the outcome balanced and groups together."""

from __future__ import annotations

import numpy as np

_DEALS = 5


def repeated_folds(
    strata: np.ndarray, *, n_splits: int, n_repeats: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Fold of every patient in every repeat.

    Parameters
    ----------
    strata
        (n,) event or class, balanced between folds.
    n_splits, n_repeats
        Folds, and how often the patients are dealt anew.
    seed
        Each repeat has its own generator, spawned from it.
    groups
        (n,) patients of one group, such as a hospital, share a fold.

    Returns
    -------
    (n_repeats, n) int8

    Raises
    ------
    ValueError
        A stratum has fewer patients, or there are fewer groups, than folds.

    Examples
    --------
    >>> repeated_folds(np.array([0, 0, 0, 1, 1, 1]), n_splits=3, n_repeats=2, seed=0).shape
    (2, 6)
    """
    from sklearn.model_selection import StratifiedKFold

    code = np.unique(strata, return_inverse=True)[1]
    smallest = int(np.bincount(code).min())
    if n_splits < 2 or n_repeats < 1:
        raise ValueError(f"n_splits={n_splits}, n_repeats={n_repeats}: expected at least 2 folds and 1 repeat")
    if smallest < n_splits:
        raise ValueError(
            f"n_splits={n_splits}: the rarest outcome has {smallest} patients, fewer than one per fold; "
            "use fewer folds or more patients"
        )
    if groups is not None and len(np.unique(groups)) < n_splits:
        raise ValueError(f"n_splits={n_splits}: there are only {len(np.unique(groups))} groups to put into folds")
    out = np.empty((n_repeats, len(code)), dtype=np.int8)
    place = np.zeros((len(code), 1))
    group_code = None if groups is None else np.unique(groups, return_inverse=True)[1]
    for repeat, child in enumerate(np.random.SeedSequence(seed).spawn(n_repeats)):
        state = int(child.generate_state(1)[0])
        if groups is not None:
            out[repeat] = _deal_groups(code, group_code, n_splits, np.random.default_rng(child))
            continue
        for fold, (_, test) in enumerate(
            StratifiedKFold(n_splits, shuffle=True, random_state=state).split(place, code)
        ):
            out[repeat, test] = fold
    return out


def distinct_partitions(folds: np.ndarray) -> int:
    """How many different ways to divide the patients are among the repeats (R, n), whatever the folds are called.

    Examples
    --------
    >>> distinct_partitions(np.array([[0, 0, 1], [1, 1, 0], [0, 1, 1]]))
    2
    """
    # two patients share a fold or not: that is what a partition is; folds are renamed by their first patient
    first = np.stack([(folds == k).argmax(1) for k in range(int(folds.max()) + 1)], axis=1)
    return len(np.unique(np.take_along_axis(first, folds.astype(np.int64), axis=1), axis=0))


def permute_within(groups: np.ndarray | None, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random order (n,) of patients that leaves everybody in their group; of all patients without groups.

    Examples
    --------
    >>> order = permute_within(np.array(["a", "b", "a", "b"]), 4, np.random.default_rng(0))
    >>> sorted(order[[0, 2]].tolist()), sorted(order[[1, 3]].tolist())
    ([0, 2], [1, 3])
    """
    order = rng.permutation(n)
    if groups is None:
        return order
    code = np.unique(groups, return_inverse=True)[1]
    # places of each group, and its patients in random order
    out = np.empty(n, dtype=np.int64)
    out[np.argsort(code, kind="stable")] = order[np.argsort(code[order], kind="stable")]
    return out


def _deal_groups(code: np.ndarray, group: np.ndarray, n_splits: int, rng: np.random.Generator) -> np.ndarray:
    """Deal groups in random order, each to the fold that lacks most; the best balanced of a few deals.

    scikit-learn's StratifiedGroupKFold sorts groups by size first, so that its shuffled repeats are almost
    the same folds.
    """
    counts = np.zeros((group.max() + 1, code.max() + 1))
    np.add.at(counts, (group, code), 1)
    share = counts / counts.sum(0)  # of every stratum
    best, best_spread = np.zeros(len(share), dtype=np.int8), np.inf
    for _ in range(_DEALS):
        fold_of, load = np.zeros(len(share), dtype=np.int8), np.zeros((n_splits, share.shape[1]))
        for g in rng.permutation(len(share)):
            fold = int(np.argmin(((load + share[g]) ** 2).sum(1) - (load**2).sum(1)))
            fold_of[g] = fold
            load[fold] += share[g]
        spread = float(np.abs(load - 1 / n_splits).max())
        if spread < best_spread:
            best, best_spread = fold_of, spread
    return best[group]
