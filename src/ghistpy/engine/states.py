"""Latent states of spots without cell types: clusters of their expression."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2


class LatentStates:
    """k-means on the leading components of standardised expression; deterministic.

    Parameters
    ----------
    values
        (S, G) log expression of the training spots.
    n_states, seed
        Number of clusters and seed of the start.
    """

    def __init__(self, values: np.ndarray, *, n_states: int = 6, n_components: int = 10, seed: int = 0) -> None:
        values = values.astype(np.float64)
        self.center, self.scale = values.mean(axis=0), values.std(axis=0) + 1e-6
        z = (values - self.center) / self.scale
        _, _, rotation = np.linalg.svd(z, full_matrices=False)
        self.rotation = rotation[:n_components].T
        score = z @ self.rotation
        distinct = len(np.unique(score.round(9), axis=0))
        self.centres = _kmeans(score, max(1, min(n_states, len(z) // 5, distinct)), np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self.centres)

    def assign(self, values: np.ndarray) -> np.ndarray:
        """(S, K) float32: 1 for the nearest state."""
        score = ((values - self.center) / self.scale) @ self.rotation
        distance = ((score[:, None] - self.centres[None]) ** 2).sum(axis=2)
        return np.eye(len(self), dtype=np.float32)[distance.argmin(axis=1)]


def _kmeans(score: np.ndarray, n_states: int, rng: np.random.Generator) -> np.ndarray:
    """Centres of the best of ten starts; those that no row belongs to are left out."""
    best = None
    for _ in range(10):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centre, label = kmeans2(score, n_states, minit="++", rng=rng)
        cost = ((score - centre[label]) ** 2).sum()
        if best is None or cost < best[0]:
            best = (cost, centre[np.unique(label)])
    return best[1]
