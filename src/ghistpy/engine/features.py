"""Features that the head works on: a nucleus' own and those of its neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghistpy.data.slide import Slide
from ghistpy.engine.extract import Extracted, ExtractedBlocks
from ghistpy.geometry import neighborhood_features, neighborhood_mean
from ghistpy.geometry.context import REACH
from ghistpy.nn.config import GHISTConfig

# Nuclei whose neighbourhoods are computed together lie in a square of this side; wider neighbourhoods
# get larger ones, or most of the work would be for the margins.
_SQUARE_UM, _MARGINS = 2000.0, 4.0


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of logits to probabilities."""
    if logits.size == 0:
        return logits.astype(np.float32)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def n_features(config: GHISTConfig, n_types: int, n_local: int) -> int:
    """Number of columns of :func:`head_features`."""
    own = config.embedding + n_local
    return own + len(config.context_um) * (own + n_types + 1)


def head_features(slide: Slide, extracted: Extracted, config: GHISTConfig) -> np.ndarray:
    """(n, V) float32: [embedding, measured | per width: log density, means of both and of types]."""
    own = np.concatenate([extracted.embedding, extracted.local], axis=1)
    around = neighborhood_features(
        slide.nuclei.centroid_px * slide.mpp,
        np.concatenate([own, softmax(extracted.logits)], axis=1),
        sigmas_um=config.context_um,
    )
    return np.concatenate([own, around], axis=1)


@dataclass(frozen=True)
class Square:
    """Part of a slide: ``rows`` (k,) its nuclei, ``low`` and ``high`` (2,) its corners in µm; rows ascend."""

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def near(self, yx_um: np.ndarray, sigma_um: float) -> np.ndarray:
        """Rows of all nuclei that shape the neighbourhoods of its own, ascending."""
        margin = REACH * sigma_um
        return np.flatnonzero(((yx_um >= self.low - margin) & (yx_um <= self.high + margin)).all(axis=1))


def plan_squares(slide: Slide, config: GHISTConfig) -> list[Square]:
    """Squares that own every nucleus once; they follow from the nuclei, not from the tiles."""
    yx = slide.nuclei.centroid_px * slide.mpp
    if len(yx) == 0:
        return []
    origin = yx.min(axis=0)
    side = max(_SQUARE_UM, _MARGINS * REACH * max(config.context_um, default=0.0))
    cell = ((yx - origin) // side).astype(np.int64)
    key = cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order], prepend=-1))
    out = []
    for rows in np.split(order, edges[1:]):
        low = origin + cell[rows[0]] * side
        out.append(Square(rows, low, low + side))
    return out


def square_features(
    slide: Slide, square: Square, extracted: Extracted | ExtractedBlocks, config: GHISTConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of :func:`head_features` of one square, and their type logits; only its surroundings are read."""
    yx = slide.nuclei.centroid_px * slide.mpp
    near = square.near(yx, max(config.context_um, default=0.0))
    found = extracted.take(near)
    mine = np.searchsorted(near, square.rows)
    own = np.concatenate([found.embedding, found.local], axis=1)
    values = np.concatenate([own, softmax(found.logits)], axis=1)
    columns = [own[mine]]
    for sigma in config.context_um:
        inside = np.searchsorted(near, square.near(yx, sigma))
        around = neighborhood_features(yx[near[inside]], values[inside], sigmas_um=(sigma,), origin_um=yx.min(axis=0))
        columns.append(around[np.searchsorted(inside, mine)])
    return np.concatenate(columns, axis=1), found.logits[mine]


def embedding_columns(config: GHISTConfig, n_types: int, n_local: int) -> np.ndarray:
    """(V,) bool: columns of :func:`head_features` that come from the network's embedding."""
    own = np.repeat([True, False], [config.embedding, n_local])
    around = np.concatenate([[False], own, np.zeros(n_types, dtype=bool)])
    return np.concatenate([own, *[around] * len(config.context_um)])


def composition(slide: Slide, proba: np.ndarray, config: GHISTConfig) -> np.ndarray:
    """(n, C) mean of ``proba`` in the narrowest neighbourhood of each nucleus; without any, its own."""
    if not config.context_um:
        return proba.copy()
    yx, sigma = slide.nuclei.centroid_px * slide.mpp, min(config.context_um)
    out = np.zeros(proba.shape, np.float32)
    for square in plan_squares(slide, config):
        near = square.near(yx, sigma)
        mean, _ = neighborhood_mean(yx[near], proba[near], sigma_um=sigma, origin_um=yx.min(axis=0))
        out[square.rows] = mean[np.searchsorted(near, square.rows)]
    return out
