"""What a prediction has to beat: predictions that know the gene, the type, the place or the shape only.

A baseline gives values block of genes by block of genes, so that no second (n, G) matrix is held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.get.pairs import CELLS, Pairs
from ghistpy.tl._blocks import CrossFit, LeftOut

if TYPE_CHECKING:
    from ghistpy.models import GHIST
    from ghistpy.stats.ridge import Ridge

logger = logging.getLogger("ghistpy")

BASELINES = ("global_mean", "type_mean", "position", "morphology")
ORACLE = "oracle_type_mean"
TRAINING = "training data of the model"
CROSS_FITTED = "this slide, cross-fitted on spatial blocks"
_NEIGHBOURS = (8, 32, 96)
_MAX_WEIGHTS = 30_000_000
_ALPHAS = np.geomspace(1e-4, 1e1, 11)  # times the number of observations

Values = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """``values(columns, truth)``: prediction (n, b) of those genes; ``truth`` is their measured block."""

    name: str
    source: str
    values: Values


def _grouped_means(crossfit: CrossFit, codes: np.ndarray, n_codes: int) -> tuple[Values, int]:
    """Mean of each code over the other folds; a code nobody else has falls back to the mean of all.

    Also the number of observations that fall back.
    """
    from scipy import sparse

    k, fold, n = crossfit.n_folds, crossfit.fold, len(codes)
    known, code = codes >= 0, np.maximum(codes, 0)
    rows = np.arange(n)
    member = sparse.csr_array((known.astype(np.float64), (code * k + fold, rows)), shape=(n_codes * k, n))
    by_fold = sparse.csr_array((np.ones(n), (fold, rows)), shape=(k, n))
    size = np.asarray(member.sum(1)).reshape(n_codes, k)
    others = size.sum(1, keepdims=True) - size
    rest = n - np.bincount(fold, minlength=k)[:, None]
    fallback = ~known | (others[code, fold] == 0)

    def values(_: np.ndarray, truth: np.ndarray) -> np.ndarray:
        truth = np.ascontiguousarray(truth)  # the sparse product walks along rows
        total = by_fold @ truth
        everyone = (total.sum(0) - total) / rest  # (k, b)
        sums = (member @ truth).reshape(n_codes, k, -1)
        means = (sums.sum(1, keepdims=True) - sums) / np.maximum(others, 1)[:, :, None]
        out = means[code, fold]
        out[fallback] = everyone[fold[fallback]]
        return out

    return values, int(fallback.sum())


class Builder:
    """Builds each baseline from the model's training data where it carries them, else from this slide."""

    def __init__(self, pairs: Pairs, model: GHIST | None) -> None:
        self.pairs = pairs
        self.trained: _Trained | None = None
        if model is not None and model.supervision == pairs.kind:
            self.trained = _Trained(model, pairs)
        elif model is not None:
            pairs.notes["model_baselines"] = (
                f"not used: the model learnt from {model.supervision} and the evaluation is on {pairs.kind}, "
                "which have another scale"
            )

    @cached_property
    def crossfit(self) -> CrossFit:
        """Blocks of this slide."""
        crossfit = CrossFit(self.pairs.xy)
        self.pairs.notes["buffer_um"] = crossfit.buffer_um
        return crossfit

    def _knows(self, *keys: str) -> bool:
        return self.trained is not None and self.trained.has(keys)

    def global_mean(self) -> Method:
        """One number per gene."""
        if self._knows("gene_mean"):
            mean = self.trained.per_gene("gene_mean")
            return Method("global_mean", TRAINING, lambda c, t: np.broadcast_to(mean[c], t.shape))
        zero = np.zeros(len(self.pairs), dtype=np.int64)
        return Method("global_mean", CROSS_FITTED, _grouped_means(self.crossfit, zero, 1)[0])

    def type_mean(self) -> Method:
        """Mean of the predicted type of a cell, or of the predicted types in a spot."""
        if self.pairs.kind == CELLS:
            if self.pairs.predicted_type is None:
                raise LeftOut("the predicted table has no obs['cell_type']")
            return self._mean_of(self.pairs.predicted_type, "type_mean")
        return self._mixture_mean()

    def oracle_type_mean(self) -> Method:
        """Mean of the measured type of a cell."""
        if self.pairs.kind != CELLS or self.pairs.measured_type is None:
            raise LeftOut("there are no measured cell types")
        return self._mean_of(self.pairs.measured_type, ORACLE)

    def _mean_of(self, labels: np.ndarray, name: str) -> Method:
        known = self._knows("type_profiles", "gene_mean")
        names = self.trained.cell_types if known else sorted(set(labels.tolist()) - {None})
        codes = _codes(labels, names)
        if not (codes >= 0).any():
            raise LeftOut(f"no cell has one of the types {names[:5]}")
        if not known:
            values, n_fallback = _grouped_means(self.crossfit, codes, len(names))
            self.pairs.notes[f"n_{name}_fallback"] = n_fallback
            return Method(name, CROSS_FITTED, values)
        # code -1, a type without profile, reads the last row: the gene mean
        table = np.concatenate([self.trained.profiles(), self.trained.per_gene("gene_mean")[None]])
        self.pairs.notes[f"n_{name}_fallback"] = int((codes < 0).sum())
        return Method(name, TRAINING, lambda c, t: table[:, c][codes])

    def _mixture_mean(self) -> Method:
        """Profiles mixed by composition in linear scale; without profiles a regression on composition."""
        if self.pairs.composition is None:
            raise LeftOut("the predicted spots have no obsm['composition']")
        share = np.asarray(self.pairs.composition, dtype=np.float64)
        if not np.isfinite(share).all():
            raise LeftOut(f"the composition of {int((~np.isfinite(share)).any(1).sum())} spots is not finite")
        if not self._knows("type_profiles"):
            return self._ridge(share, "type_mean")
        profiles = self.trained.profiles()
        if share.shape[1] != len(profiles):
            raise ValueError(
                f"model: {len(profiles)} type profiles, but obsm['composition'] has {share.shape[1]} columns; "
                "pass the model that made the predictions"
            )
        linear = np.expm1(profiles)
        return Method("type_mean", TRAINING, lambda c, t: np.log1p(np.maximum(share @ linear[:, c], 0.0)))

    def position(self) -> Method:
        """Measured values of neighbours in other blocks; the neighbourhood size that does best here."""
        pairs, crossfit = self.pairs, self.crossfit
        strongest = np.argsort(-np.asarray(pairs.truth.sum(0)).ravel(), kind="stable")[:64]
        sample = pairs.truth[:, strongest].toarray()
        sizes = [k for k in _NEIGHBOURS if k * len(pairs) <= _MAX_WEIGHTS] or list(_NEIGHBOURS[:1])
        distances, rows = crossfit.neighbours(max(sizes))
        best: tuple[float, int, Any] | None = None
        for k in sizes:
            weights = crossfit.smoother(distances, rows, k)
            error = float(((weights @ sample - sample) ** 2).mean())
            if best is None or error < best[0]:
                best = (error, k, weights)
        pairs.notes["position_neighbours"] = best[1]
        weights = best[2]
        return Method("position", CROSS_FITTED, lambda c, t: weights @ np.ascontiguousarray(t))

    def morphology(self) -> Method:
        """Ridge on the shape, stain and texture of nuclei."""
        features = self.pairs.morphology
        if features is None:
            raise LeftOut("the predicted table has no obsm['morphology'] (spots: and obs['n_nuclei'])")
        if not self._knows("ridge_center", "ridge_scale", "ridge_weight", "ridge_intercept"):
            return self._ridge(features, "morphology")
        ridge = self.trained.ridge()
        if len(ridge.center) != features.shape[1]:
            raise ValueError(
                f"model: its morphology ridge knows {len(ridge.center)} features, the predicted table has "
                f"{features.shape[1]}; pass the model that made the predictions"
            )
        z = _standardised(features, ridge)
        return Method("morphology", TRAINING, lambda c, t: z @ ridge.weight[:, c] + ridge.intercept[c])

    def _ridge(self, features: np.ndarray, name: str) -> Method:
        """Ridge cross-fitted on blocks; its penalty is chosen inside the training blocks."""
        from ghistpy.stats.ridge import fit_ridge

        finite = np.isfinite(features)
        if not finite.any(0).all():
            raise LeftOut(f"{int((~finite.any(0)).sum())} features have no finite value")
        centre = np.nanmean(np.where(finite, features, np.nan), axis=0)
        features = np.where(finite, features, centre)
        truth, fits = self.pairs.truth.tocsr(), []
        for train, test in self.crossfit.splits:
            groups = self.crossfit.fold[train]
            groups = groups if len(np.unique(groups)) > 1 else None
            ridge = fit_ridge(features[train], truth[train], alphas=_ALPHAS * len(train), groups=groups)
            fits.append((test, _standardised(features[test], ridge), ridge))

        def values(columns: np.ndarray, truth: np.ndarray) -> np.ndarray:
            out = np.empty(truth.shape)
            for test, z, ridge in fits:
                out[test] = z @ ridge.weight[:, columns] + ridge.intercept[columns]
            return out

        return Method(name, CROSS_FITTED, values)


def _standardised(features: np.ndarray, ridge: Ridge) -> np.ndarray:
    z = (features - ridge.center) / ridge.scale
    return np.where(np.isfinite(z), z, 0.0)


def _codes(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    import pandas as pd

    return pd.Index(list(names), dtype=object).get_indexer(labels).astype(np.int64)


class _Trained:
    """Baselines that the model carries, in the order of the evaluated genes."""

    def __init__(self, model: GHIST, pairs: Pairs) -> None:
        index = {g: i for i, g in enumerate(model.genes)}
        unknown = [g for g in pairs.genes.tolist() if g not in index]
        if unknown:
            raise ValueError(
                f"model: it does not know {len(unknown)} of {len(pairs.genes)} predicted genes ({unknown[:3]} ...); "
                "pass the model that made the predictions"
            )
        self._order = np.array([index[g] for g in pairs.genes.tolist()])
        self._baselines = model.baselines
        self.cell_types = list(model.cell_types)

    def has(self, keys: Sequence[str]) -> bool:
        """A converted model may carry none: it was trained elsewhere."""
        return all(key in self._baselines for key in keys)

    def _get(self, key: str) -> np.ndarray:
        return np.asarray(self._baselines[key], dtype=np.float64)

    def per_gene(self, key: str) -> np.ndarray:
        return self._get(key)[self._order]

    def profiles(self) -> np.ndarray:
        return self._get("type_profiles")[:, self._order]

    def ridge(self) -> Ridge:
        from ghistpy.stats.ridge import Ridge

        weight, intercept = self._get("ridge_weight")[:, self._order], self.per_gene("ridge_intercept")
        unknown = np.full(len(intercept), np.nan)
        return Ridge(self._get("ridge_center"), self._get("ridge_scale"), weight, intercept, unknown)


def build_baselines(pairs: Pairs, model: GHIST | None, names: Sequence[str]) -> list[Method]:
    """Baselines in the order asked for; those that cannot be built are named in the notes with the reason."""
    unknown = [n for n in names if n not in (*BASELINES, ORACLE)]
    if unknown:
        raise ValueError(f"baselines: unknown {unknown}; there are {[*BASELINES, ORACLE]}")
    builder = Builder(pairs, model)
    wanted = list(dict.fromkeys(names))
    has_oracle = pairs.kind == CELLS and pairs.measured_type is not None
    if "type_mean" in wanted and has_oracle and ORACLE not in wanted:
        wanted.insert(wanted.index("type_mean") + 1, ORACLE)
    methods, left_out = [], {}
    for name in wanted:
        try:
            methods.append(getattr(builder, name)())
        except LeftOut as reason:
            left_out[name] = str(reason)
            logger.warning("evaluate: baseline %r is left out: %s", name, reason)
    pairs.notes["baselines"] = {m.name: m.source for m in methods}
    pairs.notes["baselines_left_out"] = left_out
    return methods
