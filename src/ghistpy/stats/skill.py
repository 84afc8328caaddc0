"""What a prediction adds to knowing the cell type.

All functions take dense blocks or sparse matrices (n, G) on one scale and return one value per gene.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix, check_pair, column_blocks, correlate, dense_columns, is_constant


def mean_squared_error(truth: np.ndarray, predicted: np.ndarray, *, offset: bool = False) -> np.ndarray:
    """Mean squared error of dense blocks (n, b); ``offset=True`` first removes each gene's mean error."""
    error = truth - predicted
    if offset:
        error = error - error.mean(0)
    return (error**2).mean(0)


def ratio_skill(model: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """1 − model / baseline; NaN where the baseline makes no error (up to rounding)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(baseline > 1e-20, 1.0 - model / baseline, np.nan)


def skill_score(truth: Matrix, predicted: Matrix, baseline: Matrix, *, offset: bool = False) -> np.ndarray:
    """Share of the baseline's squared error that the prediction removes, per gene.

    Parameters
    ----------
    truth, predicted, baseline
        (n, G) matrices on one scale. The usual baseline is the training mean of the predicted type.
    offset
        Remove the mean error of each gene on this slide from both sides first: what is left is
        pattern, without the slide's level.

    Returns
    -------
    (G,) float64, 1 = perfect, 0 = no better than the baseline; NaN where the baseline is perfect.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([[0.0], [1.0], [2.0]])
    >>> skill_score(truth, truth, np.ones((3, 1)))
    array([1.])
    """
    truth, predicted = check_pair(truth, predicted)
    truth, baseline = check_pair(truth, baseline)
    parts = []
    for c in column_blocks(*truth.shape):
        t, p, b = (dense_columns(m, c) for m in (truth, predicted, baseline))
        parts.append(ratio_skill(mean_squared_error(t, p, offset=offset), mean_squared_error(t, b, offset=offset)))
    return np.concatenate(parts) if parts else np.zeros(0)


def variance_ratio(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Variance of the prediction over variance of the truth, per gene; NaN where the truth is constant."""
    truth, predicted = check_pair(truth, predicted)
    parts = [
        block_variance_ratio(dense_columns(truth, c), dense_columns(predicted, c)) for c in column_blocks(*truth.shape)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def block_variance_ratio(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """:func:`variance_ratio` of dense blocks."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_constant(t), np.nan, p.var(0) / t.var(0))


class WithinType:
    """Correlation inside cell types, for many blocks of genes with the same cells.

    Parameters
    ----------
    codes
        (n,) integer type of each cell, -1 = unknown (left out).
    n_types
        Number of types C.
    min_cells
        Types with fewer cells are left out of the pooled value and NaN in the table by type.
    """

    def __init__(self, codes: np.ndarray, n_types: int, *, min_cells: int = 3) -> None:
        codes = np.asarray(codes)
        self.counts = np.bincount(codes[codes >= 0], minlength=n_types)
        self.kept = self.counts >= max(min_cells, 2)
        usable = (codes >= 0) & self.kept[np.maximum(codes, 0)] if n_types else np.zeros(len(codes), bool)
        self.rows = np.flatnonzero(usable)
        self.codes = codes[self.rows]
        shape = (n_types, len(self.rows))
        self._sum = sparse.csr_array((np.ones(len(self.rows)), (self.codes, np.arange(len(self.rows)))), shape=shape)

    @property
    def n_left_out(self) -> int:
        """Cells of types that are too small."""
        return int(self.counts[~self.kept].sum())

    def _residual(self, values: np.ndarray) -> np.ndarray:
        mean = (self._sum @ values) / np.maximum(self.counts, 1)[:, None]
        left = values - mean[self.codes]
        # a prediction that only knows the type has no spread inside it, beyond rounding
        size = np.sqrt((values**2).mean(0))
        left[:, np.sqrt((left**2).mean(0)) <= 1e-9 * size] = 0.0
        return left

    def __call__(self, t: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled (b,) and by type (C, b) correlations of dense blocks (n, b)."""
        by_type = np.full((len(self.counts), t.shape[1]), np.nan)
        if len(self.rows) == 0:
            return np.full(t.shape[1], np.nan), by_type
        raw_t, raw_p = t[self.rows], p[self.rows]
        rt, rp = self._residual(raw_t), self._residual(raw_p)
        stt, spp, stp = self._sum @ rt**2, self._sum @ rp**2, self._sum @ (rt * rp)
        floor_t, floor_p = (1e-18 * (self._sum @ v**2) for v in (raw_t, raw_p))
        valid = (stt > floor_t) & (spp > floor_p) & self.kept[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            by_type = np.where(valid, stp / np.sqrt(stt) / np.sqrt(spp), np.nan)
        return correlate(rt, rp), np.clip(by_type, -1.0, 1.0)


def within_type_pearson(truth: Matrix, predicted: Matrix, codes: np.ndarray, *, min_cells: int = 3) -> np.ndarray:
    """Pearson correlation per gene after the mean of its type was taken from every cell.

    The type-mean baseline scores NaN here by construction, so whatever correlation is left is what
    the model sees inside a type.

    Parameters
    ----------
    truth, predicted
        (n, G) expression on one scale.
    codes
        (n,) integer type of each cell, -1 = unknown.
    min_cells
        Cells of smaller types are left out.

    Returns
    -------
    (G,) float64.
    """
    truth, predicted = check_pair(truth, predicted)
    codes = np.asarray(codes)
    if codes.shape != (truth.shape[0],):
        raise ValueError(f"codes: expected one type per observation ({truth.shape[0]},), got shape {codes.shape}")
    within = WithinType(codes, int(codes.max(initial=-1)) + 1, min_cells=min_cells)
    parts = [within(dense_columns(truth, c), dense_columns(predicted, c))[0] for c in column_blocks(*truth.shape)]
    return np.concatenate(parts) if parts else np.zeros(0)
