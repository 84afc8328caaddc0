"""How much neighbours resemble each other."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Columns, Matrix, column_blocks, dense_columns


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
    parts = [block_morans_i(Columns(dense_columns(values, c)), weights) for c in column_blocks(*values.shape)]
    return np.concatenate(parts) if parts else np.zeros(0)


def block_morans_i(block: Columns, weights: sparse.sparray) -> np.ndarray:
    """:func:`morans_i` of a dense block."""
    total = float(weights.sum())
    if total <= 0:
        return np.full(block.values.shape[1], np.nan)
    z = np.ascontiguousarray(block.centred)  # the sparse product walks along rows
    lagged = np.einsum("ij,ij->j", z, weights @ z)
    defined = np.where(block.constant, np.nan, block.power)
    with np.errstate(invalid="ignore"):
        return lagged / defined * (block.n / total)
