"""How well the best possible prediction could correlate with noisy counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ghistpy.stats.depth import depth_basis, residuals
from ghistpy.stats.metrics import Columns, Matrix, column_blocks, correlate, dense_columns


@dataclass(frozen=True)
class Ceiling:
    """Noise ceilings per gene (G,); ``depth_adjusted`` is None when no total was given."""

    pearson: np.ndarray
    depth_adjusted: np.ndarray | None


def _half(counts: sparse.csc_array, rng: np.random.Generator) -> tuple[sparse.csc_array, sparse.csc_array]:
    first = counts.copy()
    first.data = rng.binomial(counts.data, 0.5)
    return first, counts - first


def _scaled(half: sparse.csc_array, total: np.ndarray | None) -> sparse.csc_array:
    if total is not None:
        half = (sparse.diags_array(1e4 / np.maximum(total, 1.0)) @ half).tocsc()
    return half.log1p()


def _step_up(reliability: np.ndarray) -> np.ndarray:
    """Spearman-Brown: correlation of two halves to the correlation of the whole with its noiseless value."""
    r = np.clip(reliability, 0.0, 1.0)
    return np.sqrt(2 * r / (1 + r))


def noise_ceiling(counts: Matrix, *, total: np.ndarray | None = None, n_repeats: int = 5, seed: int = 0) -> Ceiling:
    """Largest Pearson correlation that a noiseless prediction of the latent expression could reach.

    Every count is split into two halves by fair coins; the halves are independent measurements of one
    latent expression when counts are Poisson given it. Their correlation, stepped up to the whole
    (Spearman-Brown), is the reliability of the measured value; its square root is the ceiling.

    Parameters
    ----------
    counts
        (n, G) whole counts, dense or sparse.
    total
        (n,) counts over all genes of the assay. With it values are log1p(1e4 · count / total), as for
        spots, and the depth-adjusted ceiling is returned too; without it they are log1p(count).
    n_repeats
        Splits that are averaged.
    seed
        Seed of the splits.

    Returns
    -------
    Ceiling
        0 where halves do not correlate, NaN where a gene is constant in every split.

    Raises
    ------
    ValueError
        Counts are negative or not whole, or a total is smaller than the counts it holds.

    Notes
    -----
    The logarithm of a half is not half a logarithm, so the step up is approximate for sparse genes.
    Both halves share the depth of their spot, which lifts the raw ceiling where counts are few: compare
    the depth-adjusted one. It measures counting noise only: what no image shows is not in it.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(np.repeat([1, 50], 100)[:, None])
    >>> noise_ceiling(counts).pearson.round(2)
    array([0.99])
    """
    whole = sparse.csc_array(counts)
    if len(whole.data) and ((whole.data < 0).any() or (whole.data != np.floor(whole.data)).any()):
        raise ValueError("counts: the noise ceiling needs whole counts of 0 and above; got other values")
    whole = whole.astype(np.int64)
    rest = basis = None
    if total is not None:
        rest = np.rint(np.asarray(total, dtype=np.float64)).astype(np.int64) - np.asarray(whole.sum(1)).ravel()
        if (rest < 0).any():
            raise ValueError(f"total: {int((rest < 0).sum())} totals are smaller than the counts they should hold")
        basis = depth_basis(total)
    raw, adjusted = [], []
    for rng in np.random.default_rng(seed).spawn(n_repeats):
        halves = _half(whole, rng)
        totals = [None, None]
        if rest is not None:
            other = rng.binomial(rest, 0.5)
            totals = [np.asarray(h.sum(1)).ravel() + o for h, o in zip(halves, (other, rest - other), strict=True)]
        a, b = (_scaled(h, t) for h, t in zip(halves, totals, strict=True))
        blocks = [(dense_columns(a, c), dense_columns(b, c)) for c in column_blocks(*whole.shape)]
        raw.append(np.concatenate([correlate(Columns(x), Columns(y)) for x, y in blocks]))
        if basis is not None:
            left = [(Columns(residuals(x, basis)), Columns(residuals(y, basis))) for x, y in blocks]
            adjusted.append(np.concatenate([correlate(x, y) for x, y in left]))
    return Ceiling(_step_up(_mean(raw)), _step_up(_mean(adjusted)) if adjusted else None)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over splits that define a value, NaN where none does."""
    stack = np.array(values)
    n = np.isfinite(stack).sum(0)
    return np.divide(np.nansum(stack, axis=0), n, out=np.full(stack.shape[1], np.nan), where=n > 0)
