"""SPARK-X: genes whose expression follows one of eleven functions of the coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ghistpy.stats.metrics import Matrix
from ghistpy.stats.multiple import cauchy_combination

KERNELS = (
    "projection",
    *(f"gaussian_{q}" for q in (20, 40, 60, 80, 100)),
    *(f"cosine_{q}" for q in (20, 40, 60, 80, 100)),
)
_QUANTILES = (0.2, 0.4, 0.6, 0.8, 1.0)
_ROWS = 65_536  # rows of a dense matrix that are widened to float64 at once
_RANK = 1e-10


@dataclass(frozen=True)
class SparkX:
    """Results per gene; NaN for genes without counts or without variation.

    Attributes
    ----------
    log_p
        (G,) natural log of the combined p-value.
    kernel_log_p
        (11, G) those of the kernels, in the order of ``KERNELS``.
    kept
        (n,) points that were used.
    n_empty_genes, n_constant_genes
        Genes left out.
    """

    log_p: np.ndarray
    kernel_log_p: np.ndarray
    kept: np.ndarray
    n_empty_genes: int
    n_constant_genes: int

    @property
    def pval(self) -> np.ndarray:
        """(G,) combined p-values; 0 where they underflow."""
        return np.exp(self.log_p)


def sparkx(
    values: Matrix, coordinates: np.ndarray, *, covariates: np.ndarray | None = None, kept: np.ndarray | None = None
) -> SparkX:
    """Test every gene for dependence on the coordinates.

    The null hypothesis: given the covariates, the values of a gene are independent of where they lie. It
    is rejected by anything that follows the coordinates, also by smooth depth (give its log as a
    covariate) and by the blur of a prediction.

    Parameters
    ----------
    values
        (n, G) counts, dense or sparse; other values work as well.
    coordinates
        (n, 2), µm.
    covariates
        (n, p) columns, regressed out of values and kernels with an intercept.
    kept
        (n,) bool, points to use; None = those with a value other than 0, as in the original. Give
        :func:`rows_with_values` of the whole matrix when ``values`` are some of its genes: which points are
        used must not depend on which genes are asked for.

    Returns
    -------
    SparkX

    Raises
    ------
    ValueError
        Shapes that do not fit, fewer than 4 points to use.

    Notes
    -----
    With centred coordinates x, per axis: the projection x, Gaussians exp(-x² / 2 l²) and cosines
    cos(2 π x / l) for l = the 20, 40, 60, 80 and 100 % quantiles of abs(x). For each of the 11 kernels, Z (n, 2)
    centred, K = Z (Z'Z)⁻¹ Z', T = n y'Ky / y'y, p = exp(-T / 2 λ) with λ = 1 - n ȳ² / y'y: T / λ has a χ²
    distribution with 2 degrees of freedom. The 11 are combined by Cauchy combination on log p.

    The functions depend on the axes, so the result depends on how the slide is turned. O(stored values x
    22); a dense matrix is widened in parts.

    References
    ----------
    Zhu, Sun and Zhou, Genome Biology 22:184 (2021), doi:10.1186/s13059-021-02404-0

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> xy = rng.uniform(0, 1000, (2000, 2))
    >>> counts = np.stack([rng.poisson(1 + xy[:, 0] / 1000), rng.poisson(1.5, 2000)], axis=1)
    >>> result = sparkx(counts, xy)
    >>> bool(result.pval[0] < 1e-9), bool(result.pval[1] > 0.01)
    (True, True)
    """
    values, xy = _checked(values, coordinates)
    kept = rows_with_values(values) if kept is None else np.asarray(kept, dtype=bool)
    if kept.shape != (len(xy),):
        raise ValueError(f"kept: expected one bool per point ({len(xy)}), got shape {kept.shape}")
    if kept.sum() < 4:
        raise ValueError(f"values: {int(kept.sum())} of {len(kept)} points have a value; at least 4 are needed")
    if not kept.all():
        values, xy = values[kept], xy[kept]
        covariates = None if covariates is None else np.asarray(covariates)[kept]
    fixed = None if covariates is None else _intercept_and(covariates, len(xy))
    blocks = orthonormal_blocks(coordinate_kernels(xy), fixed)
    explained, spread = explained_share(values, blocks, fixed)
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel_log_p = -0.5 * len(xy) * explained
    empty = spread.total == 0
    constant = spread.constant & ~empty
    kernel_log_p[:, spread.constant] = np.nan
    return SparkX(cauchy_combination(kernel_log_p), kernel_log_p, kept, int(empty.sum()), int(constant.sum()))


def coordinate_kernels(coordinates: np.ndarray) -> list[np.ndarray]:
    """The 11 pairs of columns (n, 2), not centred, in the order of ``KERNELS``."""
    x = coordinates - coordinates.mean(axis=0)
    scale = np.quantile(np.abs(x), _QUANTILES, axis=0)  # (5, 2)
    scale = np.where(scale > 0, scale, 1.0)
    gaussian = [np.exp(-(x**2) / (2 * s**2)) for s in scale]
    cosine = [np.cos(2 * np.pi * x / s) for s in scale]
    return [x, *gaussian, *cosine]


def orthonormal_blocks(blocks: list[np.ndarray], fixed: np.ndarray | None = None) -> list[np.ndarray]:
    """Each block (n, p) without its mean, or without what ``fixed`` explains, as orthonormal columns."""
    out = []
    for block in blocks:
        z = np.asarray(block, dtype=np.float64)
        z = z - (z.mean(axis=0) if fixed is None else fixed @ (fixed.T @ z))
        size, vectors = np.linalg.eigh(z.T @ z)
        useful = size > _RANK * max(float((np.asarray(block) ** 2).sum()), 1e-300)
        out.append(z @ (vectors[:, useful] / np.sqrt(size[useful])))
    return out


@dataclass(frozen=True)
class Spread:
    """Sum of values and sum of squares about the mean (or about what was regressed out), (G,) each."""

    total: np.ndarray
    squares: np.ndarray
    constant: np.ndarray


def explained_share(
    values: Matrix, blocks: list[np.ndarray], fixed: np.ndarray | None = None
) -> tuple[np.ndarray, Spread]:
    """R² (k, G) of every gene on each of k blocks of orthonormal columns that are orthogonal to ``fixed``."""
    basis = np.column_stack([*blocks, np.zeros((values.shape[0], 0)) if fixed is None else fixed])
    on_basis, total, squares = _products(values, basis)
    ends = np.cumsum([b.shape[1] for b in blocks])
    left = squares - total**2 / values.shape[0] if fixed is None else squares - (on_basis[ends[-1] :] ** 2).sum(axis=0)
    constant = left <= 1e-12 * squares
    left = np.where(constant, np.nan, left)
    share = np.stack([(on_basis[e - b.shape[1] : e] ** 2).sum(axis=0) for e, b in zip(ends, blocks, strict=True)])
    return np.minimum(share / left, 1.0), Spread(total, squares, constant)


def _products(values: Matrix, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products basis' values (p, G), sums and sums of squares (G,), in float64."""
    if sparse.issparse(values):
        squares = sparse.csc_array((values.data.astype(np.float64) ** 2, values.indices, values.indptr), values.shape)
        total, squared = (np.asarray(m.sum(axis=0, dtype=np.float64)).ravel() for m in (values, squares))
        return np.ascontiguousarray((values.T @ basis).T), total, squared
    on_basis = np.zeros((basis.shape[1], values.shape[1]))
    total, squared = np.zeros((2, values.shape[1]))
    for start in range(0, len(values), _ROWS):
        part = np.asarray(values[start : start + _ROWS], dtype=np.float64)
        on_basis += basis[start : start + _ROWS].T @ part
        total += part.sum(axis=0)
        squared += np.einsum("ij,ij->j", part, part)
    return on_basis, total, squared


def rows_with_values(values: Matrix) -> np.ndarray:
    """Points with a value other than 0 in any gene, (n,) bool."""
    if sparse.issparse(values):
        values = values.tocsc()
        return np.bincount(values.indices[values.data != 0], minlength=values.shape[0]) > 0
    return np.asarray(values).any(axis=1)


def _intercept_and(covariates: np.ndarray, n: int) -> np.ndarray:
    columns = np.asarray(covariates, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if len(columns) != n or not np.isfinite(columns).all():
        raise ValueError(f"covariates: expected ({n}, p) finite columns, got shape {columns.shape}")
    columns = columns - columns.mean(axis=0)
    spread = np.linalg.norm(columns, axis=0)
    columns = np.column_stack([np.ones(n), columns[:, spread > 0] / spread[spread > 0]])
    left, size, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, size > 1e-9 * size[0]]


def _checked(values: Matrix, coordinates: np.ndarray) -> tuple[Matrix, np.ndarray]:
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    xy = np.asarray(coordinates, dtype=np.float64)
    if values.ndim != 2 or xy.shape != (values.shape[0], 2):
        raise ValueError(f"values, coordinates: expected (n, G) and (n, 2), got {values.shape} and {xy.shape}")
    for name, array in (("values", values.data if sparse.issparse(values) else values), ("coordinates", xy)):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise ValueError(f"{name}: {bad} are NaN or infinite")
    return values, xy
