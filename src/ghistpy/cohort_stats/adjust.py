"""Adjustment of p-values for their number; missing ones leave the family."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats


def adjust_pvalues(
    p: np.ndarray, *, family: np.ndarray | None = None, method: Literal["bh", "by", "bonferroni"] = "bh"
) -> np.ndarray:
    """Adjust p-values within each family.

    Parameters
    ----------
    p
        (n,) p-values; NaN stays NaN and does not count.
    family
        (n,) family of each, None = one family.
    method
        Benjamini-Hochberg, Benjamini-Yekutieli or Bonferroni.

    Returns
    -------
    (n,) adjusted values.

    Examples
    --------
    >>> adjust_pvalues(np.array([0.01, 0.04, np.nan, 0.5]))
    array([0.03, 0.06,  nan, 0.5 ])
    """
    p = np.asarray(p, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    code = np.zeros(p.shape, dtype=np.int64) if family is None else np.unique(family, return_inverse=True)[1]
    for k in range(int(code.max(initial=-1)) + 1):
        rows = np.flatnonzero((code == k) & np.isfinite(p))
        if not len(rows):
            continue
        if method == "bonferroni":
            out[rows] = np.minimum(p[rows] * len(rows), 1.0)
        else:
            out[rows] = stats.false_discovery_control(p[rows], method=method)
    return out
