"""Fit the head in closed form on features of whole slides, after the network is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from ghistpy.data.slide import Slide
from ghistpy.data.targets import Instances
from ghistpy.data.windows import LOCAL_FEATURES
from ghistpy.engine.extract import Extracted
from ghistpy.engine.features import composition, head_features, n_features, softmax
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead
from ghistpy.stats.ridge import Ridge, fit_ridge

logger = logging.getLogger("ghistpy")

# Penalties per instance that are tried, and how much weaker the linear part of the head is held.
_ALPHAS = np.geomspace(1e-3, 1e2, 11)
_LINEAR_PENALTY = 3.0
_TEMPERATURES = np.linspace(0.3, 1.5, 25)
_PRIOR_WEIGHTS = np.linspace(0.0, 1.5, 16)


@dataclass(frozen=True)
class FitSlide:
    """One prepared slide with what was extracted; ``held`` (S,) bool marks validation instances.

    ``total`` (S,) float32 counts over all genes of the assay, spots only.
    """

    slide: Slide
    extracted: Extracted
    instances: Instances
    held: np.ndarray
    total: np.ndarray | None


@dataclass(frozen=True)
class HeldOut:
    """Validation instances, predicted by a head that was fitted without them.

    values, predicted, type_mean (S, G) float64; measured (S, G) bool: gene in the slide's panel.
    """

    values: np.ndarray
    predicted: np.ndarray
    type_mean: np.ndarray
    measured: np.ndarray


def fit_head(
    slides: Sequence[FitSlide], config: GHISTConfig, *, n_types: int, n_genes: int, spots: bool, seed: int = 0
) -> tuple[ContextHead, HeldOut | None]:
    """Types, profiles and residual of the head; what it predicts for the validation instances.

    What has to be chosen (penalty, temperature, weight of the neighbourhood) is chosen on the
    validation instances, which the network has not seen; then everything is fitted on all instances.
    """
    head = ContextHead(
        config,
        n_features=n_features(config, n_types, len(LOCAL_FEATURES)),
        n_types=n_types,
        n_genes=n_genes,
        seed=seed,
    )
    fit = _Fit(slides, config, head, spots=spots)
    fit.standardise()
    fit.types()
    held_out = fit.expression()
    if spots:
        fit.totals()
        fit.offset()
    return head, held_out


class _Fit:
    def __init__(
        self, slides: Sequence[FitSlide], config: GHISTConfig, head: ContextHead, *, spots: bool
    ) -> None:
        self.slides, self.config, self.head, self.spots = slides, config, head, spots
        self.features = [head_features(s.slide, s.extracted, config) for s in slides]
        self.average = [s.instances.average() for s in slides]
        self.values = np.concatenate([s.instances.values for s in slides])
        self.known = np.concatenate([s.instances.types for s in slides])
        self.held = np.concatenate([s.held for s in slides])
        mask = np.concatenate([np.broadcast_to(s.instances.gene_mask, s.instances.values.shape) for s in slides])
        self.mask = None if mask.all() else mask
        self.proba: list[np.ndarray] = []

    def standardise(self) -> None:
        rows = np.concatenate([f[s.instances.member >= 0] for f, s in zip(self.features, self.slides, strict=True)])
        _set(self.head.center, rows.mean(axis=0))
        _set(self.head.scale, np.maximum(rows.std(axis=0), 1e-6))

    def basis(self, index: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Basis of the nuclei of a slide, (n, V + D)."""
        features = self.features[index] if rows is None else self.features[index][rows]
        return self.head.basis(torch.from_numpy(features)).numpy()

    @cached_property
    def mean_basis(self) -> np.ndarray:
        """Basis averaged over the nuclei of each instance, (S, V + D)."""
        return np.concatenate([a @ self.basis(i) for i, a in enumerate(self.average)])

    @cached_property
    def mean_proba(self) -> np.ndarray:
        """Types averaged over the nuclei of each instance, (S, C)."""
        return self.averaged(self.proba)

    @property
    def penalty(self) -> np.ndarray:
        """Factor on the penalty of each column of the basis."""
        v, d = self.head.direction.shape
        return np.concatenate([np.full(v, _LINEAR_PENALTY), np.ones(d)])

    def averaged(self, of_nuclei: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([a @ v for a, v in zip(self.average, of_nuclei, strict=True)])

    # ---- types

    def types(self) -> None:
        known = self.known.sum(axis=1) > 0
        logits = [s.extracted.logits for s in self.slides]
        if self.spots:
            self._learn_types(known)
            logits = [self.head.learned_types(torch.from_numpy(self.basis(i))).numpy() for i in range(len(logits))]
        elif known.any():
            self._temper(logits, known)
        temperature = float(self.head.type_temperature)
        raw = [softmax(v * temperature) for v in logits]
        around = [composition(s.slide, p, self.config) for s, p in zip(self.slides, raw, strict=True)]
        _set(self.head.type_average, np.concatenate(raw).mean(axis=0))
        if not self.spots and known.any():
            self._weigh_neighbourhood(logits, around, known)
        self.proba = [
            self.head.refine(torch.from_numpy(l), torch.from_numpy(a), 2.0).numpy()
            for l, a in zip(logits, around, strict=True)
        ]

    def _chosen_on(self, known: np.ndarray) -> np.ndarray:
        held = known & self.held
        return held if held.sum() >= 20 else known

    def _temper(self, logits: list[np.ndarray], known: np.ndarray) -> None:
        rows = self._chosen_on(known)
        own = self.averaged(logits)[rows]
        cost = [_cross_entropy(softmax(own * t), self.known[rows]) for t in _TEMPERATURES]
        _set(self.head.type_temperature, _TEMPERATURES[int(np.argmin(cost))])

    def _weigh_neighbourhood(self, logits: list[np.ndarray], around: list[np.ndarray], known: np.ndarray) -> None:
        rows = self._chosen_on(known)
        own = torch.from_numpy(self.averaged(logits)[rows]).float()
        near = torch.from_numpy(self.averaged(around)[rows]).float()
        cost = []
        for weight in _PRIOR_WEIGHTS:
            _set(self.head.prior_weight, weight)
            cost.append(_cross_entropy(self.head.refine(own, near, 2.0).numpy(), self.known[rows]))
        _set(self.head.prior_weight, _PRIOR_WEIGHTS[int(np.argmin(cost))])

    def _learn_types(self, known: np.ndarray) -> None:
        """Spots: softmax of the random features whose mean over a spot matches its proportions."""
        d = self.head.direction.shape[1]
        waves, pool = [], []
        for i, a in enumerate(self.average):
            rows = np.unique(a.indices)
            waves.append(self.basis(i, rows)[:, -d:])
            pool.append(a[:, rows])
        share = torch.from_numpy(np.ascontiguousarray(self.known[known]))
        matrix = sparse.block_array([[p if i == j else None for j in range(len(pool))] for i, p in enumerate(pool)])
        weight, bias = _soft_logistic(np.concatenate(waves), matrix.tocsr()[known], share)
        self.head.type_weight.copy_(weight)
        self.head.type_bias.copy_(bias)

    # ---- expression

    def expression(self) -> HeldOut | None:
        """Profiles and residual on all instances, with the penalty that predicts the held ones best."""
        alpha, held_out = self._choose()
        everything = np.ones(len(self.values), dtype=bool)
        profile = self._profile(everything)
        ridge = self._residual(everything, profile, alpha)
        _set(self.head.profiles, profile)
        _set(self.head.residual_weight, ridge.weight / ridge.scale[:, None])
        _set(self.head.residual_bias, ridge.intercept - (ridge.center / ridge.scale) @ ridge.weight)
        return held_out

    def _profile(self, rows: np.ndarray) -> np.ndarray:
        """Mean expression per type: of typed cells, or the mixture that explains the spots best."""
        weight = (self.mean_proba if self.spots else self.known)[rows].astype(np.float64)
        values = self.values[rows].astype(np.float64)
        if self.mask is None:
            mean = values.mean(axis=0)
            # A few instances' worth of the mean of all: a type that nobody has gets that mean.
            ridge = (3.0 if self.spots else 1e-3) * np.eye(weight.shape[1])
            profile = mean + np.linalg.solve(weight.T @ weight + ridge, weight.T @ (values - mean))
        else:
            mask = self.mask[rows].astype(np.float64)
            mean = (values * mask).sum(axis=0) / np.maximum(mask.sum(axis=0), 1)
            profile = (weight.T @ (values * mask) + 1e-3 * mean) / (weight.T @ mask + 1e-3)
        return np.maximum(profile, 0.0)

    def _residual(self, rows: np.ndarray, profile: np.ndarray, alpha: np.ndarray | float) -> Ridge:
        target = self.values[rows] - self.mean_proba[rows] @ profile
        return fit_ridge(
            self.mean_basis[rows],
            target,
            alphas=np.atleast_1d(alpha) * rows.sum(),
            mask=None if self.mask is None else self.mask[rows],
            penalty=self.penalty,
        )

    def _choose(self) -> tuple[np.ndarray | float, HeldOut | None]:
        """Penalty per instance; without a validation split generalised cross-validation chooses later."""
        held = self.held
        if held.sum() < 5 or (~held).sum() < 5:
            return _ALPHAS, None
        profile = self._profile(~held)
        base, truth = self.mean_proba[held] @ profile, self.values[held].astype(np.float64)
        measured = np.ones_like(truth) if self.mask is None else self.mask[held]
        spread = truth.var(axis=0) + 1e-9
        best: tuple[float, float, np.ndarray] | None = None
        for alpha in _ALPHAS:
            predicted = base + self._residual(~held, profile, alpha).predict(self.mean_basis[held])
            cost = float(np.average((predicted - truth) ** 2 / spread, weights=measured))
            if best is None or cost < best[0]:
                best = (cost, float(alpha), np.maximum(predicted, 0.0))
        logger.info("head: penalty %.3g per instance chosen on %d validation instances", best[1], held.sum())
        top = self.mean_proba[held].argmax(axis=1)
        return best[1], HeldOut(truth, best[2], base if self.spots else profile[top], measured.astype(bool))

    # ---- spots only

    def totals(self) -> None:
        """Counts per nucleus of each type that add up to the totals of the spots."""
        size = np.concatenate([np.bincount(s.instances.member[s.instances.member >= 0], minlength=len(s.instances)) for s in self.slides])
        total = np.concatenate([s.total for s in self.slides]).astype(np.float64)
        number = self.mean_proba * size[:, None]
        overall = total.sum() / size.sum()
        # Pulled towards one value for all types; a spot's error grows with its total.
        weight = 1.0 / np.maximum(total, 1.0)
        left = np.concatenate([number * weight[:, None], np.sqrt(len(total)) * 0.1 / overall * np.eye(number.shape[1])])
        right = np.concatenate([total * weight, np.sqrt(len(total)) * 0.1 * np.ones(number.shape[1])])
        from scipy.optimize import nnls

        solution, _ = nnls(left, right)
        _set(self.head.type_total, np.maximum(solution, 0.05 * overall))

    def offset(self) -> None:
        """Shift per gene that makes the log of the summed nuclei right on average."""
        difference = []
        for i, (s, a) in enumerate(zip(self.slides, self.average, strict=True)):
            proba = torch.from_numpy(self.proba[i])
            x = self.head.expression(torch.from_numpy(self.basis(i)), proba).numpy()
            total = self.proba[i] @ self.head.type_total.numpy()
            summed = (a @ (np.expm1(x) * total[:, None])) / (a @ total)[:, None]
            difference.append(s.instances.values - np.log1p(summed))
        shift = np.concatenate(difference)
        self.head.residual_bias += torch.from_numpy(
            np.average(shift, axis=0, weights=None if self.mask is None else self.mask).astype(np.float32)
        )


def _set(buffer: torch.Tensor, value: np.ndarray | float) -> None:
    buffer.copy_(torch.as_tensor(np.asarray(value, dtype=np.float32)))


def _cross_entropy(proba: np.ndarray, target: np.ndarray) -> float:
    return float(-(target * np.log(np.maximum(proba, 1e-6))).sum(axis=1).mean())


def _soft_logistic(
    waves: np.ndarray, pool: sparse.csr_array, share: torch.Tensor, *, penalty: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a softmax whose averages by ``pool`` match ``share`` (S, C); L-BFGS, deterministic."""
    x = torch.from_numpy(waves)
    coo = pool.tocoo()
    group = torch.from_numpy(coo.row.astype(np.int64))
    column = torch.from_numpy(coo.col.astype(np.int64))
    part = torch.from_numpy(coo.data.astype(np.float32))[:, None]
    weight = torch.zeros(x.shape[1], share.shape[1], requires_grad=True)
    bias = torch.log(share.mean(dim=0).clamp_min(1e-3)).clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        proba = torch.softmax(x @ weight + bias, dim=1)
        mean = torch.zeros_like(share).index_add_(0, group, part * proba[column])
        loss = -(share * torch.log(mean.clamp_min(1e-6))).sum(dim=1).mean() + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()
