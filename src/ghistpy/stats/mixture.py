"""Which mixture of known profiles explains counts."""

from __future__ import annotations

import numpy as np


def mixture_proportions(counts: np.ndarray, profiles: np.ndarray, *, n_iterations: int = 300) -> np.ndarray:
    """Shares of the profiles in each row of counts, by Poisson maximum likelihood.

    Parameters
    ----------
    counts
        (n, G) counts, 0 and above.
    profiles
        (K, G) expected counts of each profile on a linear scale, 0 and above; only their shape matters.
    n_iterations
        Multiplicative updates (expectation maximisation); 300 is enough for two decimals.

    Returns
    -------
    (n, K) float64, rows sum to 1; a row without counts that any profile explains gets equal shares.

    Raises
    ------
    ValueError
        Other shapes, no profile, NaN, infinite or negative values.

    Notes
    -----
    Lee & Seung, Nature 401:788 (1999), doi:10.1038/44565, with fixed profiles. O(iterations n K G).

    Examples
    --------
    >>> import numpy as np
    >>> mixture_proportions(np.array([[30.0, 10.0]]), np.eye(2)).round(2).tolist()
    [[0.75, 0.25]]
    """
    counts, profiles = np.asarray(counts, dtype=np.float64), np.asarray(profiles, dtype=np.float64)
    if counts.ndim != 2 or profiles.ndim != 2 or counts.shape[1] != profiles.shape[1]:
        raise ValueError(f"counts, profiles: expected (n, G) and (K, G), got {counts.shape} and {profiles.shape}")
    if len(profiles) == 0:
        raise ValueError("profiles: got none; give at least one")
    # NaN fails both comparisons
    if not all(((v >= 0) & (v < np.inf)).all() for v in (counts, profiles)):
        raise ValueError("counts, profiles: expected finite values of 0 and above")
    shape = profiles / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-300)
    share = np.full((len(counts), len(profiles)), 1.0 / len(profiles))
    for _ in range(n_iterations):
        expected = np.maximum(share @ shape, 1e-300)
        share *= (counts / expected) @ shape.T
        total = share.sum(axis=1, keepdims=True)
        share = np.where(total > 0, share / np.maximum(total, 1e-300), 1.0 / len(profiles))
    return share
