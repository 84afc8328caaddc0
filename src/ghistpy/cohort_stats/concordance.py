"""Concordance of a risk score with survival, and its bootstrap over patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Pairs of patients whose order of events is known.

    event (E,) rows of the patients who had the event first; comparable (E, n) whether a patient was still
    without event then; weight (E,) of the pairs of each event: 1 for Harrell, 1 / G(t)² for Uno.
    """

    event: np.ndarray
    comparable: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls, time: np.ndarray, event: np.ndarray, *, tau: float | None = None, censoring: Censoring | None = None
    ) -> Pairs:
        """Harrell's pairs, or Uno's when ``censoring`` is given; only events before ``tau`` count.

        A patient censored at the time of an event was without event then, and counts.
        """
        time, event = np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool)
        first = np.flatnonzero(event if tau is None else event & (time < tau))
        weight = np.ones(len(first))
        if censoring is not None:
            known = censoring(time[first])
            first = first[known > 0]
            weight = known[known > 0] ** -2.0
        later = (time > time[first, None]) | ((time == time[first, None]) & ~event)
        return cls(first, later, weight)

    def won(self, score: np.ndarray) -> np.ndarray:
        """Share (E, n) of each pair that the score has in order: 1, ½ for equal scores, 0."""
        own = score[self.event, None]
        return np.where(self.comparable, (own > score) + 0.5 * (own == score), 0.0)

    def index(self, score: np.ndarray) -> float:
        """Concordance of ``score`` (n,), larger = earlier event; NaN without comparable pairs."""
        n_pairs = float(self.weight @ self.comparable.sum(1))
        return float(self.weight @ self.won(score).sum(1)) / n_pairs if n_pairs else np.nan

    def resampled(self, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Concordance (B,) of bootstrap samples that hold patient j ``counts[b, j]`` times."""
        own = counts[:, self.event] * self.weight
        won = (own * (counts @ self.won(score).T)).sum(1)
        pairs = (own * (counts @ self.comparable.T.astype(np.float64))).sum(1)
        return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


@dataclass(frozen=True)
class Censoring:
    """Kaplan-Meier estimate of the probability to be uncensored: a step function, ``G(t)``."""

    time: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, time: np.ndarray, event: np.ndarray) -> Censoring:
        """Estimate it from ``time`` and ``event`` (n,)."""
        from sksurv.nonparametric import kaplan_meier_estimator

        if np.all(event):
            return cls(np.array([0.0]), np.array([1.0]))
        return cls(*kaplan_meier_estimator(np.asarray(event, dtype=bool), time, reverse=True))

    def __call__(self, time: np.ndarray) -> np.ndarray:
        """G at each time: 1 before the first."""
        at = np.searchsorted(self.time, time, side="right") - 1
        return np.where(at >= 0, self.probability[np.maximum(at, 0)], 1.0)


def default_tau(time: np.ndarray, *, at_risk: float = 0.1) -> float:
    """Latest time at which a tenth of the patients is still followed: later weights of Uno's index explode."""
    return float(np.quantile(np.asarray(time, dtype=np.float64), 1 - at_risk))


def bootstrap_counts(n: int, n_bootstraps: int, seed: int) -> np.ndarray:
    """How often each patient is in each bootstrap sample (B, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstraps).astype(np.float64)
