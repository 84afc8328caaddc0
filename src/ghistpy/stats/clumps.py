"""Associations of neighbours that share their calls, counted once."""

from __future__ import annotations

import numpy as np


def squared_correlation(calls: np.ndarray) -> np.ndarray:
    """(m, m) squared Pearson correlation of the rows of calls (m, n); 0 for a row that does not vary."""
    z = calls - calls.mean(axis=1, dtype=np.float64)[:, None]
    norm = np.sqrt((z**2).sum(axis=1))
    z /= np.where(norm > 0, norm, 1)[:, None]
    return (z @ z.T) ** 2


def clumps(log_p: np.ndarray, r2: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group what is significant into loci, as genome-wide association studies do.

    For every feature the gene with the smallest p takes all remaining genes whose calls correlate with its
    own; of what is left the smallest p is the next, until nothing is left.

    Parameters
    ----------
    log_p
        (m, F) of the genes of one chromosome; NaN where a pair is not significant.
    r2
        (m, m) squared correlations of the calls.
    threshold
        Genes from so much on belong together.

    Returns
    -------
    lead, feature, members
        (L,) gene and feature of each locus, and (L, m) bool which genes it takes.

    Examples
    --------
    >>> import numpy as np
    >>> r2 = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.0]])
    >>> lead, feature, members = clumps(np.array([[-5.0], [-9.0], [-4.0]]), r2, 0.2)
    >>> lead.tolist(), members.tolist()
    ([1, 2], [[True, True, False], [False, False, True]])
    """
    left = ~np.isnan(log_p)
    leads, features, members = [], [], []
    # one step finds the next locus of every feature
    while left.any():
        columns = np.flatnonzero(left.any(axis=0))
        lead = np.where(left[:, columns], log_p[:, columns], np.inf).argmin(axis=0)
        taken = left[:, columns].T & (r2[lead] >= threshold)
        taken[np.arange(len(columns)), lead] = True  # also when its calls correlate with nothing
        left[:, columns] &= ~taken.T
        leads.append(lead), features.append(columns), members.append(taken)
    if not leads:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, len(log_p)), bool)
    return np.concatenate(leads), np.concatenate(features), np.concatenate(members)
