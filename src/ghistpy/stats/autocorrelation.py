"""How much neighbours resemble each other."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix, column_blocks, dense_columns, is_constant


def morans_i(values: Matrix, weights: sparse.sparray) -> np.ndarray:
    """Moran's I per gene for given spatial weights.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse.
    weights
        (n, n) sparse spatial weights, zero diagonal; they need not be symmetric.

    Returns
    -------
    (G,) float64; NaN for a constant gene or a graph without edges.

    References
    ----------
    Moran, Biometrika 37:17 (1950), doi:10.2307/2332142.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> chain = sparse.csr_array(np.eye(4, k=1) + np.eye(4, k=-1))
    >>> morans_i(np.array([[0.0], [0.0], [1.0], [1.0]]), chain).round(3)
    array([0.333])
    """
    if weights.shape != (values.shape[0],) * 2:
        raise ValueError(f"weights: expected ({values.shape[0]}, {values.shape[0]}), got {weights.shape}")
    values = values.tocsc() if sparse.issparse(values) else np.asarray(values)
    total = float(weights.sum())
    out = np.full(values.shape[1], np.nan)
    for columns in column_blocks(*values.shape):
        v = dense_columns(values, columns)
        z = v - v.mean(0)
        power = (z**2).sum(0)
        defined = ~is_constant(v) & (total > 0)
        ratio = np.divide((z * (weights @ z)).sum(0), power, out=np.full_like(power, np.nan), where=defined)
        out[columns] = ratio * len(v) / total if total > 0 else np.nan
    return out
