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
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead
from ghistpy.stats.ridge import Ridge, fit_ridge, reduced_rank

logger = logging.getLogger("ghistpy")

# Penalties per instance that are tried, and factors on them for (own and neighbourhood features,
# random features, slopes of the types): smooth in the surroundings, or led by the nucleus itself.
_ALPHAS = np.geomspace(1e-3, 1e2, 11)
# A few hundred spots choose a penalty and no more; what surrounds them leads.
_FACTORS_CELLS = ((3.0, 1.0, 3.0), (3.0, 10.0, 1.0), (10.0, 100.0, 1.0))
_FACTORS_SPOTS = ((3.0, 1.0, 30.0),)
_RANKS = (4, 8, 16, 32, 64)
_TYPE_PENALTIES = (1e-4, 1e-3, 1e-2)
_TYPE_PENALTY_SPOTS = 1e-3
_FEW = 20
_OFF = 1e9  # scale of a feature that is left out
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
        n_local=len(LOCAL_FEATURES),
        n_types=n_types,
        n_genes=n_genes,
        seed=seed,
    )
    fit = _Fit(slides, config, head, spots=spots)
    fit.standardise()
    if spots:
        fit.choose_features()
    fit.types()
    held_out = fit.expression()
    if spots:
        fit.totals()
        fit.offset()
    return head, held_out


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

    def _without_slide_offsets(self) -> np.ndarray:
        """Values with every slide's mean per gene moved to the mean of all slides.

        Assays differ between sections by more than the picture can tell; left in, these offsets drown
        what the held slide says of the penalty.
        """
        means = np.stack([s.instances.values.mean(axis=0, dtype=np.float64) for s in self.slides])
        has = np.stack([s.instances.gene_mask for s in self.slides])
        overall = (means * has).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
        shift = np.repeat(np.where(has, overall - means, 0.0), [len(s.instances) for s in self.slides], axis=0)
        return (self.values + shift).astype(np.float32)

    def standardise(self) -> None:
        rows = np.concatenate([f[s.instances.member >= 0] for f, s in zip(self.features, self.slides, strict=True)])
        _set(self.head.center, rows.mean(axis=0))
        _set(self.head.scale, np.maximum(rows.std(axis=0), 1e-6))

    def choose_features(self) -> None:
        """Leave the embedding out when the held spots are predicted better without it.

        A network that saw a few hundred spots may have learned little that carries over to another
        slide, and every empty column blurs the kernel.
        """
        held = self._held()
        if held is None:
            return
        names = embedding_columns(self.config, self.known.shape[1], len(LOCAL_FEATURES))
        full = self.head.scale.numpy().copy()
        cost = []
        for scale in (full, np.where(names, _OFF, full)):
            _set(self.head.scale, scale)
            mean = []
            for i, a in enumerate(self.average):
                rows = np.unique(a.indices)
                mean.append(a[:, rows] @ self.basis(i, rows))
            target = self.values / self.unit
            alphas = _ALPHAS * len(target)
            fit = fit_ridge(
                np.concatenate(mean), target, alphas=alphas, held=held, criterion="correlation", mask=self.mask
            )
            cost.append(1 - fit.score / target.shape[1])
        _set(self.head.scale, full if cost[0] > cost[1] else np.where(names, _OFF, full))
        logger.info("head: mean correlation on held spots with the embedding %.3f, without %.3f", *cost)

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
        """Softmax of network's logits and basis whose mean over an instance matches its types."""
        bases, logits, pool = [], [], []
        for i, a in enumerate(self.average):
            rows = np.unique(a.indices)
            bases.append(self.basis(i, rows))
            logits.append(self.slides[i].extracted.logits[rows])
            pool.append(a[:, rows])
        matrix = sparse.block_array([[p if i == j else None for j in range(len(pool))] for i, p in enumerate(pool)])
        problem = _SoftLogistic(np.concatenate(bases), np.concatenate(logits), matrix.tocsr(), self.known)
        own = 0.0 if self.spots else 1.0  # under spot supervision the network's logits are weak: start afresh
        penalty = _TYPE_PENALTY_SPOTS if self.spots else _TYPE_PENALTIES[1]
        train, held = known & ~self.held, known & self.held
        if not self.spots and held.sum() >= 20 and train.sum() >= 20:
            cost = [problem.cost(problem.solve(train, p, own), held) for p in _TYPE_PENALTIES]
            penalty = _TYPE_PENALTIES[int(np.argmin(cost))]
        own_weight, weight, bias = problem.solve(known, penalty, own)
        self.head.own_weight.copy_(own_weight)
        self.head.type_weight.copy_(weight)
        self.head.type_bias.copy_(bias)

    def _weigh_neighbourhood(self, evidence: list[np.ndarray], around: list[np.ndarray], known: np.ndarray) -> None:
        rows = known & self.held if (known & self.held).sum() >= 20 else known
        own = torch.from_numpy(self.averaged(evidence)[rows]).float()
        near = torch.from_numpy(self.averaged(around)[rows]).float()
        cost = []
        for weight in _PRIOR_WEIGHTS:
            _set(self.head.prior_weight, weight)
            cost.append(_cross_entropy(self.head.refine(own, near, 2.0).numpy(), self.known[rows]))
        _set(self.head.prior_weight, _PRIOR_WEIGHTS[int(np.argmin(cost))])

    # ---- expression

    def expression(self) -> HeldOut | None:
        """Profiles and residual on all instances, with the penalties that predict the held ones best."""
        if len(self.values) < _FEW:  # means are all that so few can teach
            _set(self.head.profiles, self._profile(np.ones(len(self.values), dtype=bool)))
            return None
        held = self._held()
        everything = np.ones(len(self.values), dtype=bool)
        # the penalties are chosen with profiles that the held instances had no part in
        profile = self._profile(everything if held is None else ~held)
        chosen = self._residual(everything, profile, self._factors(), held=held)
        # per instance, so that fits on parts of them are held back alike
        alpha, factor = chosen.alpha / len(everything), (chosen.scale / self._spread()) ** 2
        held_out, rank, slope = None, None, 1.0
        if held is not None:
            held_out, rank, slope = self._predict_held(profile, alpha, factor, held)
        logger.info(
            "head: median penalty %.3g per instance, rank %s of %d", np.median(alpha), rank or "full", len(alpha)
        )
        profile = self._profile(everything)
        ridge = self._residual(everything, profile, factor, alpha=alpha)
        if rank is not None:
            ridge = reduced_rank(ridge, self.mean_design, [rank])[0]
        unit = self.unit
        _set(self.head.profiles, profile)
        weight = slope * ridge.weight
        _set(self.head.residual_weight, weight / ridge.scale[:, None] * unit)
        _set(self.head.residual_bias, (ridge.intercept - (ridge.center / ridge.scale) @ weight) * unit)
        return held_out

    @cached_property
    def unit(self) -> np.ndarray:
        """(G,) standard deviation of each gene: the residual is fitted in these units, so every gene counts alike."""
        if self.mask is None:
            return self.values.std(axis=0).astype(np.float64) + 1e-3
        measured = np.ma.masked_array(self.values, ~self.mask).astype(np.float64)
        return np.asarray(measured.std(axis=0).filled(0.0)) + 1e-3

    def _spread(self) -> np.ndarray:
        spread = self.mean_design.std(axis=0, dtype=np.float64)
        return np.where(spread > 0, spread, 1.0)

    def _factors(self) -> np.ndarray:
        v, d = self.head.direction.shape
        tried = _FACTORS_SPOTS if self.spots else _FACTORS_CELLS
        return np.stack([np.repeat(f, (v, d, self.mean_design.shape[1] - v - d)) for f in tried])

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

    def _residual(
        self,
        rows: np.ndarray,
        profile: np.ndarray,
        factors: np.ndarray,
        *,
        held: np.ndarray | None = None,
        alpha: np.ndarray | None = None,
    ) -> Ridge:
        """Ridge on those instances, with a given penalty per instance or a choice.

        Most genes of a spot are noise, and by squared error the penalty would be theirs: spots choose by
        correlation on the held ones.
        """
        return fit_ridge(
            self.mean_design[rows],
            (self.values[rows] - self.mean_proba[rows] @ profile) / self.unit,
            alphas=_ALPHAS * rows.sum(),
            held=held,
            mask=None if self.mask is None else self.mask[rows],
            criterion="correlation" if self.spots and held is not None else "error",
            penalty=factors,
            given=None if alpha is None else alpha * rows.sum(),
        )

    def _predict_held(
        self, profile: np.ndarray, alpha: np.ndarray, factor: np.ndarray, held: np.ndarray
    ) -> tuple[HeldOut, int | None, float]:
        """What a head without the held instances says of them, the rank that serves them best, and a slope.

        Spots: a penalty chosen by correlation leaves the amplitude too large; the slope corrects it.
        """
        ridge = self._residual(~held, profile, factor, alpha=alpha)
        base = self.mean_proba[held] @ profile
        truth = self.values[held].astype(np.float64)
        measured = np.ones_like(truth, dtype=bool) if self.mask is None else self.mask[held]
        ranks: list[int | None] = [None, *(r for r in _RANKS if r < self.values.shape[1])]
        fits = [ridge, *reduced_rank(ridge, self.mean_design[~held], [r for r in ranks if r is not None])]
        residual = [fit.predict(self.mean_design[held]) for fit in fits]
        slope = 1.0
        if self.spots:
            slope = _slope((truth - base) / self.unit, residual[0])
            residual = [slope * (r - r.mean(axis=0)) + r.mean(axis=0) for r in residual]
        predicted = [np.maximum(base + r * self.unit, 0.0) for r in residual]
        cost = [np.average(((p - truth) / self.unit) ** 2, weights=measured) for p in predicted]
        best = int(np.argmin(cost))
        type_mean = base if self.spots else profile[self.mean_proba[held].argmax(axis=1)]
        return HeldOut(truth, predicted[best], type_mean, measured), ranks[best], slope

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
        shift = np.average(self.values - np.log1p(np.concatenate(summed)), axis=0, weights=self.mask)
        self.head.residual_bias += torch.from_numpy(shift.astype(np.float32))


def _set(buffer: torch.Tensor, value: np.ndarray | float) -> None:
    buffer.copy_(torch.as_tensor(np.asarray(value, dtype=np.float32)))


def _slope(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Least-squares factor on the deviations of ``predicted``, between 0.1 and 1."""
    t, p = truth - truth.mean(axis=0), predicted - predicted.mean(axis=0)
    return float(np.clip((t * p).sum() / max((p * p).sum(), 1e-12), 0.1, 1.0))


def _cross_entropy(proba: np.ndarray, target: np.ndarray) -> float:
    return float(-(target * np.log(np.maximum(proba, 1e-6))).sum(axis=1).mean())


class _SoftLogistic:
    """Multinomial logistic regression of averages: L-BFGS from a fixed start, so deterministic.

    basis (m, V + D) and logits (m, C) of nuclei; pool (S, m) averages them; share (S, C).
    """

    def __init__(self, basis: np.ndarray, logits: np.ndarray, pool: sparse.csr_array, share: np.ndarray) -> None:
        self.basis, self.logits = torch.from_numpy(basis), torch.from_numpy(logits)
        self.pool, self.share = pool, share

    def _select(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Basis and logits of the nuclei of those instances, and the matrix that averages them."""
        part = self.pool[rows]
        nuclei = np.unique(part.indices)
        part = part[:, nuclei].tocoo()
        pool = torch.sparse_coo_tensor(
            np.stack(part.coords), torch.from_numpy(part.data.astype(np.float32)), part.shape, check_invariants=False
        )
        return self.basis[nuclei], self.logits[nuclei], pool.coalesce()

    @staticmethod
    def _mean(solution: tuple[torch.Tensor, ...], selected: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (own, weight, bias), (basis, logits, pool) = solution, selected
        return torch.sparse.mm(pool, torch.softmax(logits * own + basis @ weight + bias, dim=1))

    def cost(self, solution: tuple[torch.Tensor, ...], rows: np.ndarray) -> float:
        """Cross entropy of those instances."""
        with torch.no_grad():
            return _cross_entropy(self._mean(solution, self._select(rows)).numpy(), self.share[rows])

    def solve(self, rows: np.ndarray, penalty: float, own: float) -> tuple[torch.Tensor, ...]:
        """Weight of the network's logits (fixed when 0), of the basis, and bias."""
        share = torch.from_numpy(np.ascontiguousarray(self.share[rows]))
        own_weight = torch.tensor(own, requires_grad=own != 0)
        weight = torch.zeros(self.basis.shape[1], share.shape[1], requires_grad=True)
        bias = torch.zeros(share.shape[1], requires_grad=True)
        free = [t for t in (own_weight, weight, bias) if t.requires_grad]
        selected = self._select(rows)
        optimiser = torch.optim.LBFGS(free, max_iter=30, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            mean = self._mean((own_weight, weight, bias), selected)
            loss = -(share * torch.log(mean.clamp_min(1e-6))).sum(dim=1).mean() + penalty * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return own_weight.detach(), weight.detach(), bias.detach()
