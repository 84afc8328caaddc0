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
from ghistpy.engine.features import composition, embedding_columns, head_features, n_features, softmax
from ghistpy.engine.fit_expression import ALPHAS, N_JUDGED, ExpressionFit, HeldOut
from ghistpy.engine.soft_logistic import SoftLogistic, cross_entropy
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead
from ghistpy.stats.ridge import fit_ridge

logger = logging.getLogger("ghistpy")

_TYPE_PENALTIES = (1e-4, 1e-3, 1e-2)
_CLEARLY = 0.02  # of correlation
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


def fit_head(
    slides: Sequence[FitSlide], config: GHISTConfig, *, n_types: int, n_genes: int, spots: bool, seed: int = 0
) -> tuple[ContextHead, HeldOut | None, np.ndarray]:
    """Types, profiles and residual of the head; what it predicts for the validation instances; means per type.

    What has to be chosen (penalty, temperature, weight of the neighbourhood) is chosen on the
    validation instances, which the network has not seen; then everything is fitted on all instances.
    """
    head = ContextHead(
        config,
        n_features=n_features(config, n_types, len(LOCAL_FEATURES)),
        n_local=len(LOCAL_FEATURES),
        n_types=n_types,
        n_genes=n_genes,
        seed=seed,
    )
    fit = _Fit(slides, config, head, spots=spots)
    fit.standardise()
    if spots:
        fit.choose_kernel()
    fit.types()
    held_out, type_means = fit.expression()
    if spots:
        fit.totals()
        fit.offset()
    return head, held_out, type_means


class _Fit:
    def __init__(self, slides: Sequence[FitSlide], config: GHISTConfig, head: ContextHead, *, spots: bool) -> None:
        self.slides, self.config, self.head, self.spots = slides, config, head, spots
        self.features = [head_features(s.slide, s.extracted, config) for s in slides]
        self.average = [s.instances.average() for s in slides]
        self.values = np.concatenate([s.instances.values for s in slides])
        if spots:
            self.values = self._without_slide_offsets()
        self.known = np.concatenate([s.instances.types for s in slides])
        self.held = np.concatenate([s.held for s in slides])
        mask = np.concatenate([np.broadcast_to(s.instances.gene_mask, s.instances.values.shape) for s in slides])
        self.mask = None if mask.all() else mask
        self.proba: list[np.ndarray] = []
        self.embedding = True

    def _without_slide_offsets(self) -> np.ndarray:
        """Values with every slide's mean per gene moved to the mean of all slides.

        Assays differ between sections by more than the picture can tell; left in, these offsets drown
        what the held slide says of the penalty.
        """
        means = np.stack(
            [s.instances.values.sum(axis=0, dtype=np.float64) / max(len(s.instances), 1) for s in self.slides]
        )
        has = np.stack([s.instances.gene_mask & (len(s.instances) > 0) for s in self.slides])
        overall = (means * has).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
        shift = np.repeat(np.where(has, overall - means, 0.0), self._sizes(), axis=0)
        return (self.values + shift).astype(np.float32)

    def standardise(self) -> None:
        rows = np.concatenate([f[s.instances.member >= 0] for f, s in zip(self.features, self.slides, strict=True)])
        _set(self.head.center, rows.mean(axis=0))
        _set(self.head.scale, np.maximum(rows.std(axis=0), 1e-6))

    def choose_kernel(self) -> None:
        """Leave the embedding out of the random features unless held spots are predicted clearly better with it.

        A network that saw a few hundred spots may have learned little that carries over to another slide, and
        every empty column blurs the kernel. The linear part of the basis keeps the embedding in any case.
        """
        names = embedding_columns(self.config, self.known.shape[1], len(LOCAL_FEATURES))
        full = self.head.direction.numpy().copy()
        without = np.where(names[:, None], 0.0, full)
        held, mean = self._held(), {}
        if held is not None:
            for with_embedding in (True, False):
                _set(self.head.direction, full if with_embedding else without)
                mean[with_embedding] = self._held_correlation(held)
            logger.info(
                "head: held spots correlate %.3f with the embedding in the kernel, %.3f without", *mean.values()
            )
        self.embedding = held is not None and mean[True] > mean[False] + _CLEARLY
        _set(self.head.direction, full if self.embedding else without)

    def _held_correlation(self, held: np.ndarray) -> float:
        """Mean over the genes that are predicted best of the correlation on held spots."""
        rows = [np.unique(a.indices) for a in self.average]
        mean = [a[:, r] @ self.basis(i, r) for i, (a, r) in enumerate(zip(self.average, rows, strict=True))]
        fit = fit_ridge(
            np.concatenate(mean),
            self.values,
            alphas=ALPHAS * len(self.values),
            groups=np.where(held, 0, -1),
            mask=self.mask,
            criterion="correlation",
            n_judged=N_JUDGED,
        )
        return 1 - fit.score / min(N_JUDGED, self.values.shape[1])

    def _sizes(self) -> list[int]:
        return [len(s.instances) for s in self.slides]

    def _held(self) -> np.ndarray | None:
        """Validation instances, or None when there are too few to choose by."""
        return self.held if self.held.sum() >= 5 and (~self.held).sum() >= 5 else None

    def basis(self, index: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Basis of the nuclei of a slide, (n, V + D)."""
        features = self.features[index] if rows is None else self.features[index][rows]
        return self.head.basis(torch.from_numpy(features)).numpy()

    @cached_property
    def mean_design(self) -> np.ndarray:
        """Design averaged over the nuclei of each instance, (S, columns)."""
        parts = []
        for i, a in enumerate(self.average):
            rows = np.unique(a.indices)
            design = self.head.design(torch.from_numpy(self.basis(i, rows)), torch.from_numpy(self.proba[i][rows]))
            parts.append(a[:, rows] @ design.numpy())
        return np.concatenate(parts)

    @cached_property
    def mean_proba(self) -> np.ndarray:
        """Types averaged over the nuclei of each instance, (S, C)."""
        return self.averaged(self.proba)

    def averaged(self, of_nuclei: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([a @ v for a, v in zip(self.average, of_nuclei, strict=True)])

    # ---- types

    def types(self) -> None:
        """Evidence from the basis, then how much the neighbourhood's composition counts."""
        known = self.known.sum(axis=1) > 0
        if known.any():
            self._learn_evidence(known)
        evidence = [
            self.head.evidence(torch.from_numpy(s.extracted.logits), torch.from_numpy(self.basis(i))).numpy()
            for i, s in enumerate(self.slides)
        ]
        raw = [softmax(e) for e in evidence]
        around = [composition(s.slide, p, self.config) for s, p in zip(self.slides, raw, strict=True)]
        _set(self.head.type_average, np.concatenate(raw).mean(axis=0))
        if not self.spots and known.any():
            self._weigh_neighbourhood(evidence, around, known)
        self.proba = [
            self.head.refine(torch.from_numpy(e), torch.from_numpy(a), 2.0).numpy()
            for e, a in zip(evidence, around, strict=True)
        ]

    def _learn_evidence(self, known: np.ndarray) -> None:
        """Evidence whose softmax, averaged over an instance, matches its types."""
        bases, pool = [], []
        for i, a in enumerate(self.average):
            rows = np.unique(a.indices)
            bases.append(self.head.type_basis(torch.from_numpy(self.basis(i, rows))).numpy())
            pool.append(a[:, rows])
        matrix = sparse.block_array([[p if i == j else None for j in range(len(pool))] for i, p in enumerate(pool)])
        problem = SoftLogistic(np.concatenate(bases), matrix.tocsr(), self.known)
        penalty = _TYPE_PENALTIES[1]
        train, held = known & ~self.held, known & self.held
        if not self.spots and held.sum() >= 20 and train.sum() >= 20:
            cost = [problem.cost(problem.solve(train, p), held) for p in _TYPE_PENALTIES]
            penalty = _TYPE_PENALTIES[int(np.argmin(cost))]
        weight, bias = problem.solve(known, penalty)
        # The network knows its training cells by heart, so its own logits say more of them than of others.
        _set(self.head.own_weight, 0.0)
        self.head.type_weight.copy_(weight)
        self.head.type_bias.copy_(bias)

    def _weigh_neighbourhood(self, evidence: list[np.ndarray], around: list[np.ndarray], known: np.ndarray) -> None:
        rows = known & self.held if (known & self.held).sum() >= 20 else known
        own = torch.from_numpy(self.averaged(evidence)[rows]).float()
        near = torch.from_numpy(self.averaged(around)[rows]).float()
        cost = []
        for weight in _PRIOR_WEIGHTS:
            _set(self.head.prior_weight, weight)
            cost.append(cross_entropy(self.head.refine(own, near, 2.0).numpy(), self.known[rows]))
        _set(self.head.prior_weight, _PRIOR_WEIGHTS[int(np.argmin(cost))])

    # ---- expression

    def expression(self) -> tuple[HeldOut | None, np.ndarray]:
        """Profiles and residual on all instances, with the penalties that predict the held ones best."""
        problem = ExpressionFit(
            design=self.mean_design,
            proba=self.mean_proba,
            known=self.known,
            values=self.values,
            mask=self.mask,
            held=self._held(),
            # a kernel that follows the embedding is judged by a slide that the network has not seen
            slide=None if self.embedding else np.repeat(np.arange(len(self.slides)), self._sizes()),
            blocks=(*self.head.direction.shape, self.mean_design.shape[1] - sum(self.head.direction.shape)),
            spots=self.spots,
        )
        fitted, held_out = problem.solve()
        _set(self.head.profiles, fitted.profiles)
        _set(self.head.residual_weight, fitted.weight)
        _set(self.head.residual_bias, fitted.bias)
        return held_out, fitted.type_means

    # ---- spots only

    def totals(self) -> None:
        """Counts per nucleus of each type that add up to the totals of the spots."""
        size = np.concatenate([np.diff(a.indptr) for a in self.average])
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
        summed = []
        for i, a in enumerate(self.average):
            rows = np.unique(a.indices)
            proba, a = self.proba[i][rows], a[:, rows]
            x = self.head.expression(torch.from_numpy(self.basis(i, rows)), torch.from_numpy(proba)).numpy()
            total = proba @ self.head.type_total.numpy()
            summed.append((a @ (np.expm1(x) * total[:, None])) / (a @ total)[:, None])
        weight = np.ones(self.values.shape) if self.mask is None else self.mask
        # a gene that nobody measured stays as it is
        shift = (weight * (self.values - np.log1p(np.concatenate(summed)))).sum(axis=0)
        shift /= np.maximum(weight.sum(axis=0), 1)
        self.head.residual_bias += torch.from_numpy(shift.astype(np.float32))


def _set(buffer: torch.Tensor, value: np.ndarray | float) -> None:
    buffer.copy_(torch.as_tensor(np.asarray(value, dtype=np.float32)))


def _slope(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Least-squares factor on the deviations of ``predicted``, between 0.1 and 1."""
    t, p = truth - truth.mean(axis=0), predicted - predicted.mean(axis=0)
    return float(np.clip((t * p).sum() / max((p * p).sum(), 1e-12), 0.1, 1.0))
