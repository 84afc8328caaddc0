"""Counts of a simulated slide and what is known of them exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ghistpy.datasets import _biology as biology

_LARGEST_RATE = 400.0
_SMALLEST_RATE = 1e-3


@dataclass(frozen=True)
class Noise:
    """What the pixels do not show: gamma noise of each gene in each cell, and the depth of the cell.

    ``gamma_variance`` of a factor with mean 1 for each gene and cell; ``depth_sd`` of the log of a factor
    with mean 1 shared by the genes of a cell. Both grow with the unpredictable fraction.
    """

    gamma_variance: float
    depth_sd: float

    @classmethod
    def of(cls, unpredictable_fraction: float) -> Noise:
        """Noise whose log variance is that share of the variance within a type."""
        variance = float(np.expm1(unpredictable_fraction * biology.WITHIN_TYPE_SD**2))
        # a gamma of a smaller variance is 1 for every purpose, and its shape overflows
        return cls(variance if variance > 1e-6 else 0.0, biology.DEPTH_SD * np.sqrt(unpredictable_fraction))


def log_rate(panel: biology.Biology, state: np.ndarray, cell_type: np.ndarray | int, visible_sd: float) -> np.ndarray:
    """Log of the expected count (n, G) of cells of that type in that visible state (n, K)."""
    loadings = visible_sd * panel.loadings
    # half the squared loading keeps the mean over a standard normal state at the profile
    return np.log(panel.profiles[cell_type]) + (state @ loadings.T - 0.5 * (loadings**2).sum(axis=1))


def draw_counts(rng: np.random.Generator, rate_log: np.ndarray, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n, G) int32 and depth (n,) for log rates (n, G)."""
    depth = np.exp(noise.depth_sd * rng.standard_normal(len(rate_log)) - 0.5 * noise.depth_sd**2)
    rate = np.exp(rate_log) * depth[:, None]
    if noise.gamma_variance > 0:
        rate *= rng.standard_gamma(1 / noise.gamma_variance, rate.shape) * noise.gamma_variance
    return rng.poisson(rate).astype(np.int32), depth


class LogMoments:
    """Mean and variance of log1p(count) as functions of the log rate, tabulated once for all genes.

    Given its rate a count is Poisson times gamma times depth, hence negative binomial given the depth.
    Its moments are summed over all counts that matter, and integrated over the depth by Gauss-Hermite
    quadrature; between the points of the table they are interpolated (error below 1e-4).
    """

    def __init__(self, noise: Noise) -> None:
        inner = np.linspace(np.log(_SMALLEST_RATE) - 2, np.log(_LARGEST_RATE) + 2, 500)
        first, second = self._given_depth(np.exp(inner), noise.gamma_variance)
        node, weight = np.polynomial.hermite_e.hermegauss(15)
        weight = weight / weight.sum()
        self._log_rate = np.linspace(np.log(_SMALLEST_RATE), np.log(_LARGEST_RATE), 1200)
        shift = noise.depth_sd * node - 0.5 * noise.depth_sd**2
        at = self._log_rate[:, None] + shift
        self._mean = np.interp(at, inner, first) @ weight
        self._variance = np.interp(at, inner, second) @ weight - self._mean**2

    @staticmethod
    def _given_depth(rate: np.ndarray, gamma_variance: float) -> tuple[np.ndarray, np.ndarray]:
        first, second = np.empty_like(rate), np.empty_like(rate)
        for part in np.array_split(np.arange(len(rate)), 25):
            mean = rate[part, None]
            top = rate[part[-1]]
            largest = int(top + 40 + 14 * np.sqrt(top + gamma_variance * top**2))
            count = np.arange(largest + 1)
            if gamma_variance > 0:
                size = 1 / gamma_variance
                p = stats.nbinom.pmf(count, size, size / (size + mean))
            else:
                p = stats.poisson.pmf(count, mean)
            first[part], second[part] = p @ np.log1p(count), p @ np.log1p(count) ** 2
        return first, second

    def mean(self, rate_log: np.ndarray) -> np.ndarray:
        """E[log1p(count)] for each log rate."""
        return np.interp(rate_log, self._log_rate, self._mean)

    def variance(self, rate_log: np.ndarray) -> np.ndarray:
        """Var[log1p(count)] for each log rate."""
        return np.interp(rate_log, self._log_rate, self._variance)
