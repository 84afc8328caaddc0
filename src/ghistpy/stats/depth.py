"""Correlation that sequencing depth cannot explain."""

from __future__ import annotations

import numpy as np

from ghistpy.stats.metrics import Columns, Matrix, check_pair, column_blocks, correlate, dense_columns

_EXPLAINED = 1e-7  # a residual below this share of the values is rounding: depth explains the gene


def depth_basis(total: np.ndarray, *, degree: int = 3, groups: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal basis of 1, l, …, l^degree with l = log total, one set per section.

    Parameters
    ----------
    total
        (n,) counts over all genes of each spot, above 0.
    degree
        Highest power of l.
    groups
        (n,) section of each spot; None = one section.

    Returns
    -------
    (n, k) float64 with orthonormal columns; each is zero outside its section.

    Raises
    ------
    ValueError
        A total is not positive and finite.
    """
    total = np.asarray(total, dtype=np.float64)
    bad = ~(np.isfinite(total) & (total > 0))
    if bad.any():
        raise ValueError(f"total: {int(bad.sum())} of {len(total)} spots have a total that is not above 0; drop them")
    sections = np.zeros(len(total), dtype=np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = []
    for section in np.unique(sections):
        rows = np.flatnonzero(sections == section)
        depth = np.log(total[rows])
        spread = depth.std()
        # powers of a standardised depth are far from collinear
        z = (depth - depth.mean()) / spread if spread > 1e-12 else np.zeros(len(rows))
        u, s, _ = np.linalg.svd(np.vander(z, degree + 1, increasing=True), full_matrices=False)
        basis = np.zeros((len(total), int((s > 1e-10 * s[0]).sum())))
        basis[rows] = u[:, : basis.shape[1]]
        parts.append(basis)
    return np.concatenate(parts, axis=1)


def residuals(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What the basis leaves of dense values (n, b); exactly 0 where it explains a gene entirely."""
    left = values - basis @ (basis.T @ values)
    size = np.sqrt((values**2).mean(0)) + 1e-12
    left[:, np.sqrt((left**2).mean(0)) < _EXPLAINED * size] = 0.0
    return left


def depth_adjusted_pearson(
    truth: Matrix,
    predicted: Matrix,
    total: np.ndarray,
    *,
    degree: int = 3,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Pearson correlation per gene after both sides were residualised on sequencing depth.

    Within a section truth and prediction are regressed on 1, l, l², l³ (l = log total counts over all
    genes); what depth explains entirely is NaN. A straight line is not enough: log1p of a rate is
    curved in l, and depth alone still correlates through what a line leaves.

    Parameters
    ----------
    truth, predicted
        (n, G) expression on one scale, dense or sparse.
    total
        (n,) measured counts over all genes of each spot.
    degree
        3 unless a comparison needs another.
    groups
        (n,) section of each spot; None = one section.

    Returns
    -------
    (G,) float64.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> total = rng.integers(500, 5000, 100)
    >>> depth_only = np.log(total)[:, None]
    >>> depth_adjusted_pearson(depth_only, depth_only, total)
    array([nan])
    """
    truth, predicted = check_pair(truth, predicted)
    if np.shape(total) != (truth.shape[0],):
        raise ValueError(f"total: expected one value per observation ({truth.shape[0]},), got {np.shape(total)}")
    basis = depth_basis(total, degree=degree, groups=groups)
    parts = [
        correlate(*(Columns(residuals(dense_columns(m, c), basis)) for m in (truth, predicted)))
        for c in column_blocks(*truth.shape)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)
