"""Numbers that describe one sample: means, shares and correlations by cell type, gene sets, ligands and receptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from ghistpy.stats.metrics import Matrix, column_blocks, dense_columns

_ROWS = 20_000  # cells whose ranks are held at once
_MIN_COR_CELLS = 3
_SSGSEA_POWER = 0.25


@dataclass(frozen=True)
class TypeMoments:
    """Per type (T rows) and over all cells (last row): mean, variance, share above a threshold, (T + 1, G).

    ``n`` (T + 1,): cells. NaN for types without cells.
    """

    mean: np.ndarray
    variance: np.ndarray
    share: np.ndarray
    n: np.ndarray


def type_moments(values: Matrix, codes: np.ndarray, n_types: int, *, threshold: float) -> TypeMoments:
    """Mean, variance and share of cells above a threshold, gene by gene in each type and in all.

    Parameters
    ----------
    values
        (n, G), dense or sparse.
    codes
        (n,) types; negative = unknown, counted in the last row only.
    threshold
        Strictly above it counts.

    Examples
    --------
    >>> import numpy as np
    >>> found = type_moments(np.array([[0.0], [2.0], [4.0]]), np.array([0, 0, 1]), 2, threshold=1)
    >>> found.mean.ravel().tolist(), found.share.ravel().round(2).tolist()
    ([1.0, 4.0, 2.0], [0.5, 1.0, 0.67])
    """
    known = np.flatnonzero(codes >= 0)
    n_cells = values.shape[0]
    one_hot = sparse.csr_array((np.ones(len(known)), (codes[known], known)), shape=(n_types, n_cells))
    rows = sparse.vstack([one_hot, sparse.csr_array(np.ones((1, n_cells)))]).tocsr()
    n = rows.sum(axis=1).ravel()
    shape = (n_types + 1, values.shape[1])
    mean, variance, share = np.empty(shape), np.empty(shape), np.empty(shape)
    values = values.tocsc() if sparse.issparse(values) else np.asarray(values)
    for columns in column_blocks(*values.shape):
        block = np.ascontiguousarray(dense_columns(values, columns))
        with np.errstate(invalid="ignore", divide="ignore"):
            m = rows @ block / n[:, None]
            mean[:, columns] = m
            # around the mean of all cells, so that large means lose no digits
            centred = block - m[-1]
            variance[:, columns] = rows @ centred**2 / n[:, None] - (m - m[-1]) ** 2
            share[:, columns] = rows @ (block > threshold).astype(np.float64) / n[:, None]
    return TypeMoments(mean, np.maximum(variance, 0.0), share, n.astype(np.int64))


def pair_correlations(values: np.ndarray) -> np.ndarray:
    """Pearson correlations (m (m - 1) / 2,) of the columns, in the order of ``numpy.triu_indices(m, 1)``.

    NaN for constant columns and for fewer than 3 cells.
    """
    m = values.shape[1]
    upper = np.triu_indices(m, 1)
    if len(values) < _MIN_COR_CELLS or m < 2:
        return np.full(len(upper[0]), np.nan)
    z = values - values.mean(axis=0)
    power = np.einsum("ij,ij->j", z, z)
    constant = np.ptp(values, axis=0) <= 1e-9 * np.abs(values).max(axis=0)
    scale = np.sqrt(np.where(constant, np.nan, power))
    return np.clip((z.T @ z / scale / scale[:, None])[upper], -1, 1)


def log_ratios(n: np.ndarray) -> np.ndarray:
    """log2(n_a / n_b + 1) of every pair of types a < b; (n_a + 1) / (n_b + 2) where one of them is absent."""
    a, b = np.triu_indices(len(n), 1)
    first, second = n[a].astype(np.float64), n[b].astype(np.float64)
    absent = (first == 0) | (second == 0)
    return np.log2(np.where(absent, (first + 1) / (second + 2), first / np.where(second == 0, 1, second)) + 1)


def logit_share(share: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) with 0 read as 0.001 and 1 as 0.999."""
    p = np.where(share == 0, 0.001, np.where(share == 1, 0.999, share))
    return np.log(p / (1 - p))


def centred_log_ratio(n: np.ndarray) -> np.ndarray:
    """Log of the shares, less its mean over types; half a cell is added to every type."""
    logs = np.log((n + 0.5) / (n + 0.5).sum())
    return logs - logs.mean()


def set_scores(values: Matrix, member: np.ndarray) -> np.ndarray:
    """Mean of the genes of a set minus mean of all genes, (n, S) by cell.

    Parameters
    ----------
    values
        (n, G).
    member
        (S, G) bool.
    """
    weights = member.T / member.sum(axis=1) - 1.0 / member.shape[1]
    return np.asarray(values @ weights.astype(np.float64))


def ssgsea(values: Matrix, member: np.ndarray) -> np.ndarray:
    """Single-sample enrichment of gene sets in every cell, (n, S).

    Parameters
    ----------
    values
        (n, G).
    member
        (S, G) bool; no set holds all genes.

    Notes
    -----
    The sum over ranks of the difference of two cumulative distributions, genes in the set weighted by
    rank^0.25, and genes outside. Since a gene of rank r from below is counted in r of the partial sums,

        ES = Σ_in r^1.25 / Σ_in r^0.25 - Σ_out r / (G - |set|),

    two products of matrices. Ties share their mean rank. Not divided by the range over the cohort as GSVA
    does by default: that would make a sample depend on the others.

    References
    ----------
    Barbie et al., Nature 462:108 (2009), doi:10.1038/nature08460.
    """
    inside, outside = member.T.astype(np.float64), (~member).T.astype(np.float64)
    out = np.empty((values.shape[0], len(member)))
    for start in range(0, values.shape[0], _ROWS):
        block = values[start : start + _ROWS]
        ranks = rankdata(block.toarray() if sparse.issparse(block) else block, axis=1)
        weight = ranks**_SSGSEA_POWER
        out[start : start + _ROWS] = (ranks * weight) @ inside / (weight @ inside) - ranks @ outside / outside.sum(
            axis=0
        )
    return out


def ligand_receptor_scores(ligand: np.ndarray, receptor: np.ndarray, mean: float) -> np.ndarray:
    """LRscore √(l r) / (μ + √(l r)), (T, T, P): sending type, receiving type, pair.

    Parameters
    ----------
    ligand, receptor
        (T, P) mean expression of the ligand and of the receptor of each pair in each type, >= 0.
    mean
        μ, mean over all cells and genes.

    References
    ----------
    Cabello-Aguilar et al., Nucleic Acids Res 48:e55 (2020), doi:10.1093/nar/gkaa183.
    """
    product = np.sqrt(np.maximum(ligand, 0)[:, None, :] * np.maximum(receptor, 0)[None, :, :])
    with np.errstate(invalid="ignore"):
        return np.where(product == 0, 0.0, product / (mean + product))
