"""Weighted sums over parts of the rows: enough to fit a ridge regression on some and to score it on others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_CHUNK = 65_536  # rows that are widened to float64 at once


@dataclass
class Moments:
    """Weighted sums over some rows: enough to fit a ridge there and to score one there."""

    n: int
    w: float
    x: np.ndarray  # (F,)
    y: np.ndarray  # (G,)
    xx: np.ndarray  # (F, F)
    xy: np.ndarray  # (F, G)
    yy: np.ndarray  # (G,)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, k) - getattr(other, k) for k in self.__dataclass_fields__))

    def rescaled(self, factor: np.ndarray) -> Moments:
        """The moments of features divided by ``factor`` (F,)."""
        return Moments(
            self.n,
            self.w,
            self.x / factor,
            self.y,
            self.xx / np.outer(factor, factor),
            self.xy / factor[:, None],
            self.yy,
        )

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gram matrix, cross products and sums of squares about the weighted means."""
        xx = self.xx - np.outer(self.x, self.x) / self.w
        xy = self.xy - np.outer(self.x, self.y) / self.w
        return xx, xy, np.maximum(self.yy - self.y**2 / self.w, 0.0)


def add_up(parts: Iterable[Moments]) -> Moments:
    """Moments of all these rows together."""
    parts = list(parts)
    return Moments(*(sum(getattr(p, k) for p in parts) for k in Moments.__dataclass_fields__))


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in parts that are small enough to be widened."""
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _dense(Y: np.ndarray | sparse.sparray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    block = Y[rows][:, columns]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def standardise(X: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of every feature, in two passes (one pass cancels)."""
    everything, total = np.arange(len(X)), weights.sum()
    center, var = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rows in chunks(everything):
        center += weights[rows] @ X[rows].astype(np.float64)
    center /= total
    for rows in chunks(everything):
        var += weights[rows] @ (X[rows].astype(np.float64) - center) ** 2
    scale = np.sqrt(var / total)
    # what is left of a constant column after rounding is not a feature
    scale[scale <= 1e-12 * np.maximum(np.abs(center), 1.0)] = 1.0
    return center, scale


def moments(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    rows: np.ndarray,
    columns: np.ndarray,
    standard: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    shift: np.ndarray,
) -> Moments:
    """Moments of standardised features and shifted targets over those rows."""
    center, scale = standard
    F, G = X.shape[1], len(columns)
    out = Moments(len(rows), 0.0, np.zeros(F), np.zeros(G), np.zeros((F, F)), np.zeros((F, G)), np.zeros(G))
    for part in chunks(rows):
        w = weights[part]
        z = (X[part].astype(np.float64) - center) / scale
        y = _dense(Y, part, columns) - shift
        bad = ~np.isfinite(y)
        if bad.any():
            raise ValueError(
                f"Y: {int(bad.sum())} observed entries are not finite; set mask=False where a target was not measured"
            )
        wz = w[:, None] * z
        out.w += float(w.sum())
        out.x += wz.sum(0)
        out.y += w @ y
        out.xx += wz.T @ z
        out.xy += wz.T @ y
        out.yy += w @ y**2
    return out


def _patterns(mask: np.ndarray | None, shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (rows, columns): the targets that were measured on the same rows."""
    n, G = shape
    if mask is None:
        return [(np.arange(n), np.arange(G))]
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"mask: expected the shape of Y {shape}, got {mask.shape}")
    empty = np.flatnonzero(~mask.any(0))
    if len(empty):
        raise ValueError(f"mask: {len(empty)} targets are observed in no row (first columns {empty[:5].tolist()})")
    unique, index = np.unique(np.packbits(mask, axis=0), axis=1, return_inverse=True)
    index = index.reshape(-1)
    first = [int(np.argmax(index == k)) for k in range(unique.shape[1])]
    return [(np.flatnonzero(mask[:, c]), np.flatnonzero(index == k)) for k, c in enumerate(first)]


def targets_by_rows(
    X: np.ndarray,
    Y: np.ndarray | sparse.sparray,
    mask: np.ndarray | None,
    w: np.ndarray,
    fold: np.ndarray,
    standard: tuple[np.ndarray, np.ndarray],
) -> Iterator[tuple[np.ndarray, dict[int, Moments], np.ndarray]]:
    """Targets that were measured on the same rows: columns, moments per fold, and their shift."""
    for rows, columns in _patterns(mask, Y.shape):
        rows = rows[w[rows] > 0]
        if len(rows) == 0:
            raise ValueError(f"mask: {len(columns)} targets are observed only in rows of weight 0")
        # rough centring keeps the moments of far-off targets exact
        shift = _dense(Y, rows[: min(len(rows), 1024)], columns)
        shift = np.where(np.isfinite(shift), shift, 0.0).mean(0)
        parts = {
            int(f): moments(X, Y, rows[fold[rows] == f], columns, standard, w, shift) for f in np.unique(fold[rows])
        }
        yield columns, parts, shift
