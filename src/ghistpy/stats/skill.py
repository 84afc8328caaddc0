"""What a prediction adds to knowing the cell type.

All functions take dense blocks or sparse matrices (n, G) on one scale and return one value per gene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghistpy.stats.metrics import Columns, Matrix, check_pair, column_blocks, correlate, dense_columns


def mean_squared_error(truth: np.ndarray, predicted: np.ndarray, *, offset: bool = False) -> np.ndarray:
    """Mean squared error of dense blocks (n, b); ``offset=True`` first removes each gene's mean error."""
    error = truth - predicted
    if offset:
        error = error - error.mean(0)
    return np.einsum("ij,ij->j", error, error) / len(error)


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
    blocks = column_blocks(*truth.shape)
    pairs = ((Columns(dense_columns(truth, c)), Columns(dense_columns(predicted, c))) for c in blocks)
    parts = [block_variance_ratio(t, p) for t, p in pairs]
    return np.concatenate(parts) if parts else np.zeros(0)


def block_variance_ratio(t: Columns, p: Columns) -> np.ndarray:
    """:func:`variance_ratio` of dense blocks."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(t.constant, np.nan, np.where(p.constant, 0.0, p.power) / t.power)


@dataclass(frozen=True)
class _Inside:
    """A block without its type means: residuals (m, b), their power by type and whether there is any."""

    columns: Columns
    power: np.ndarray  # (C, b)
    varies: np.ndarray  # (C, b)


class WithinType:
    """Correlation inside cell types, for many blocks of genes of the same cells.

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

    @property
    def n_left_out(self) -> int:
        """Cells of types that are too small."""
        return int(self.counts[~self.kept].sum())

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Sums by type (C, b)."""
        c = len(self.counts)
        sums = [np.bincount(self.codes, values[:, j], minlength=c) for j in range(values.shape[1])]
        return np.stack(sums, axis=1)

    def prepare(self, block: Columns) -> _Inside:
        """The block without its type means; what only knows the type has nothing left."""
        values = block.values[self.rows]
        left = values - (self._sum(values) / np.maximum(self.counts, 1)[:, None])[self.codes]
        size = np.einsum("ij,ij->j", values, values) / max(len(values), 1)
        tiny = 1e-18 * size  # rounding of values of that size
        left[:, np.einsum("ij,ij->j", left, left) <= tiny * len(values)] = 0.0
        power = self._sum(left**2)
        return _Inside(Columns(left), power, (power > tiny * self.counts[:, None]) & self.kept[:, None])

    def correlate(self, t: _Inside, p: _Inside) -> tuple[np.ndarray, np.ndarray]:
        """Pooled (b,) and by type (C, b) correlations."""
        if len(self.rows) == 0:
            return np.full(t.power.shape[1], np.nan), np.full(t.power.shape, np.nan)
        product = self._sum(t.columns.values * p.columns.values)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_type = np.clip(product / np.sqrt(t.power) / np.sqrt(p.power), -1.0, 1.0)
        return correlate(t.columns, p.columns), np.where(t.varies & p.varies, by_type, np.nan)


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
    parts = []
    for c in column_blocks(*truth.shape):
        sides = (within.prepare(Columns(dense_columns(m, c))) for m in (truth, predicted))
        parts.append(within.correlate(*sides)[0])
    return np.concatenate(parts) if parts else np.zeros(0)
