"""Expression of a head in closed form: a profile for every type, and a ridge regression of what is left."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ghistpy.stats.ridge import Ridge, fit_ridge, reduced_rank

logger = logging.getLogger("ghistpy")

# Penalties per instance that are tried.
ALPHAS = np.geomspace(1e-3, 1e2, 11)
# Spots choose a penalty by the genes that it predicts best: most others are noise, whose best prediction is none.
N_JUDGED = 100
# Factors on the penalty of (features, random features, slopes of the types) that are tried.
_FACTORS_CELLS = ((1.0, 3.0, 1.0), (1.0, 30.0, 1.0), (1.0, 100.0, 3.0))
_FACTORS_SPOTS = ((3.0, 1.0, 30.0),)  # what surrounds a few hundred spots leads
_RANKS = (4, 8, 16, 32, 64)
# Instances' worth of the mean of all that pull on the profiles of spots: their types are guessed from the
# expression itself, so profiles that trust them would leave the residual to repair what they get wrong.
_PULL_SPOTS = 300.0
_PULL_BASELINE = 3.0
_FEW = 20


@dataclass(frozen=True)
class HeldOut:
    """Validation instances, predicted by a head that was fitted without them.

    values, predicted, type_mean (S, G) float64; measured (S, G) bool: gene in the slide's panel.
    """

    values: np.ndarray
    predicted: np.ndarray
    type_mean: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class FittedExpression:
    """profiles (C, G), weight (P, G) of the design and bias (G,); type_means (C, G): all that types alone tell."""

    profiles: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    type_means: np.ndarray


@dataclass(frozen=True)
class ExpressionFit:
    """The instances of all slides and what they are explained by.

    Parameters
    ----------
    design
        (S, P), the head's design averaged over the nuclei of each instance.
    proba, known
        (S, C) predicted types, averaged; and known ones.
    values, mask
        (S, G) targets, and whether they were measured (None: all).
    held
        (S,) bool validation instances, None when there are too few.
    slide
        (S,) slide of each instance when whole slides may be left out to choose a penalty, else None.
    blocks
        Number of columns of the design that are features, random features and slopes.
    spots
        The instances are spots of several nuclei.
    """

    design: np.ndarray
    proba: np.ndarray
    known: np.ndarray
    values: np.ndarray
    mask: np.ndarray | None
    held: np.ndarray | None
    slide: np.ndarray | None
    blocks: tuple[int, int, int]
    spots: bool

    def solve(self) -> tuple[FittedExpression, HeldOut | None]:
        """Everything on all instances, with the choices that predict left-out ones best; and the held ones."""
        everything = np.ones(len(self.values), dtype=bool)
        means = self._profiles(everything, _PULL_BASELINE)
        if len(self.values) < _FEW:  # means are all that so few can teach
            n_genes = self.values.shape[1]
            return FittedExpression(means, np.zeros((self.design.shape[1], n_genes)), np.zeros(n_genes), means), None
        # the choices are made with profiles that the held instances had no part in
        chosen = self._residual(everything, self._profiles(everything if self.held is None else ~self.held), None)
        held_out, rank, slope = None, None, 1.0
        if self.held is not None:
            held_out, rank, slope = self._predict_held(chosen)
        penalty = chosen.alpha / len(self.values)
        logger.info("head: penalty %.3g per instance, rank %s, slope %.2f", penalty, rank or "full", slope)
        profiles = self._profiles(everything)
        ridge = self._residual(everything, profiles, chosen)
        if rank is not None:
            ridge = reduced_rank(ridge, self.design, [rank])[0]
        weight = slope * ridge.weight
        bias = (ridge.intercept - (ridge.center / ridge.scale) @ weight) * self.unit
        return FittedExpression(profiles, weight / ridge.scale[:, None] * self.unit, bias, means), held_out

    @cached_property
    def unit(self) -> np.ndarray:
        """(G,) standard deviation of each gene: the residual is fitted in these units, so every gene counts alike."""
        if self.mask is None:
            return self.values.std(axis=0).astype(np.float64) + 1e-3
        measured = np.ma.masked_array(self.values, ~self.mask).astype(np.float64)
        return np.asarray(measured.std(axis=0).filled(0.0)) + 1e-3

    @cached_property
    def _measured(self) -> np.ndarray:
        """Genes that somebody measured; the others have no residual."""
        return np.ones(self.values.shape[1], bool) if self.mask is None else self.mask.any(axis=0)

    def _profiles(self, rows: np.ndarray, pull: float = _PULL_SPOTS) -> np.ndarray:
        """Mean expression per type: of typed cells, or the mixture that explains the spots best."""
        weight = (self.proba if self.spots else self.known)[rows].astype(np.float64)
        values = self.values[rows].astype(np.float64)
        mask = np.ones_like(values) if self.mask is None else self.mask[rows].astype(np.float64)
        mean = (values * mask).sum(axis=0) / np.maximum(mask.sum(axis=0), 1)
        if self.spots and self.mask is None:
            gram = weight.T @ weight + pull * np.eye(weight.shape[1])
            profile = mean + np.linalg.solve(gram, weight.T @ (values - mean))
        else:  # a type that nobody has gets the mean of all
            profile = (weight.T @ (values * mask) + 1e-3 * mean) / (weight.T @ mask + 1e-3)
        return np.maximum(profile, 0.0)

    def _residual(self, rows: np.ndarray, profiles: np.ndarray, chosen: Ridge | None) -> Ridge:
        """Ridge on those instances, with the penalty that was chosen, or a choice of one."""
        genes = np.flatnonzero(self._measured)
        factors = np.stack([np.repeat(f, self.blocks) for f in (_FACTORS_SPOTS if self.spots else _FACTORS_CELLS)])
        groups = self._left_out()
        ridge = fit_ridge(
            self.design[rows],
            ((self.values[rows] - self.proba[rows] @ profiles) / self.unit)[:, genes],
            alphas=ALPHAS * rows.sum() if chosen is None else chosen.alpha * rows.sum() / len(self.values),
            groups=groups if chosen is None else None,
            mask=None if self.mask is None else self.mask[rows][:, genes],
            penalty=factors if chosen is None else factors[chosen.pattern],
            criterion="correlation" if self.spots and groups is not None and chosen is None else "error",
            n_judged=N_JUDGED if self.spots else None,
        )
        weight = np.zeros((len(ridge.weight), len(self._measured)))
        intercept = np.zeros(len(self._measured))
        weight[:, genes], intercept[genes] = ridge.weight, ridge.intercept
        return Ridge(ridge.center, ridge.scale, weight, intercept, ridge.alpha, ridge.pattern, ridge.score)

    def _left_out(self) -> np.ndarray | None:
        """Groups of instances that are left out in turn to choose a penalty; -1 never."""
        if self.slide is not None and len(np.unique(self.slide)) > 1 and self.mask is None:
            return self.slide
        return None if self.held is None else np.where(self.held, 0, -1)

    def _predict_held(self, chosen: Ridge) -> tuple[HeldOut, int | None, float]:
        """What a head without the held instances says of them, the rank that serves cells best, a slope for spots.

        A penalty chosen by correlation leaves the amplitude too large; the slope corrects it.
        """
        held, train = self.held, ~self.held
        profiles = self._profiles(train)
        ridge = self._residual(train, profiles, chosen)
        base = self.proba[held] @ profiles
        truth = self.values[held].astype(np.float64)
        measured = np.ones_like(truth, dtype=bool) if self.mask is None else self.mask[held]
        ranks = [] if self.spots else [r for r in _RANKS if r < self.values.shape[1]]
        residual = [fit.predict(self.design[held]) for fit in (ridge, *reduced_rank(ridge, self.design[train], ranks))]
        slope = 1.0
        if self.spots:
            slope = _slope((truth - base) / self.unit, residual[0])
            residual = [slope * (r - r.mean(axis=0)) + r.mean(axis=0) for r in residual]
        predicted = [np.maximum(base + r * self.unit, 0.0) for r in residual]
        cost = [np.average(((p - truth) / self.unit) ** 2, weights=measured) for p in predicted]
        best = int(np.argmin(cost))
        if self.spots:
            type_mean = self.proba[held] @ self._profiles(train, _PULL_BASELINE)
        else:
            type_mean = profiles[self.proba[held].argmax(axis=1)]
        return HeldOut(truth, predicted[best], type_mean, measured), [None, *ranks][best], slope


def _slope(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Least-squares factor on the deviations of ``predicted``, between 0.1 and 1."""
    t, p = truth - truth.mean(axis=0), predicted - predicted.mean(axis=0)
    return float(np.clip((t * p).sum() / max((p * p).sum(), 1e-12), 0.1, 1.0))
