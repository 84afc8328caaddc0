"""Features that the head works on: a nucleus' own and those of its neighbourhood."""

from __future__ import annotations

import numpy as np

from ghistpy.data.slide import Slide
from ghistpy.engine.extract import Extracted
from ghistpy.geometry import neighborhood_features, neighborhood_mean
from ghistpy.nn.config import GHISTConfig


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


def embedding_columns(config: GHISTConfig, n_types: int, n_local: int) -> np.ndarray:
    """(V,) bool: columns of :func:`head_features` that come from the network's embedding."""
    own = np.repeat([True, False], [config.embedding, n_local])
    around = np.concatenate([[False], own, np.zeros(n_types, dtype=bool)])
    return np.concatenate([own, *[around] * len(config.context_um)])


def composition(slide: Slide, proba: np.ndarray, config: GHISTConfig) -> np.ndarray:
    """(n, C) mean of ``proba`` in the narrowest neighbourhood of each nucleus; without any, its own."""
    if not config.context_um:
        return proba.copy()
    mean, _ = neighborhood_mean(slide.nuclei.centroid_px * slide.mpp, proba, sigma_um=min(config.context_um))
    return mean
