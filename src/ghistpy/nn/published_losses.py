"""Training losses of the published network.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ghistpy.nn.published import PublishedOutput

# Weight of the cosine term, and what keeps the logarithm of a proportion finite.
_COSINE_WEIGHT = 100.0
_EPSILON = 1e-11


@dataclass(frozen=True)
class TypeRoles:
    """Which cell types play a part in the branches and in the refinement, as indices.

    The paper writes these names into its code; here they are data, and a panel of types without them
    simply has empty roles.

    immune
        Types whose expression the immune branch learns, and takes over after a swap (B, Myeloid).
    invasive
        The same for the invasive branch (Malignant).
    immune_candidates, invasive_candidates
        Types among which a nucleus may be swapped (B, Myeloid, T; Malignant, Epithelial).
    confident
        Types that are kept when their probability is high (T).
    """

    immune: tuple[int, ...] = ()
    invasive: tuple[int, ...] = ()
    immune_candidates: tuple[int, ...] = ()
    invasive_candidates: tuple[int, ...] = ()
    confident: tuple[int, ...] = ()

    @classmethod
    def from_names(cls, cell_types: Sequence[str]) -> TypeRoles:
        """The paper's roles for the types of that name; a name that is absent is left out.

        Examples
        --------
        >>> TypeRoles.from_names(["T", "B", "Stroma"]).immune_candidates
        (1, 0)
        """
        index = {name: i for i, name in enumerate(cell_types)}

        def find(*names: str) -> tuple[int, ...]:
            return tuple(index[name] for name in names if name in index)

        return cls(
            immune=find("B", "Myeloid"),
            invasive=find("Malignant"),
            immune_candidates=find("B", "Myeloid", "T"),
            invasive_candidates=find("Malignant", "Epithelial"),
            confident=find("T"),
        )


class LossTerms(NamedTuple):
    """Every term, each a scalar; ``total`` is their sum."""

    segmentation: Tensor
    cell_type: Tensor
    expression_type: Tensor
    expression: Tensor
    expression_immune: Tensor
    expression_invasive: Tensor
    feature: Tensor
    logits: Tensor
    composition_estimate: Tensor
    composition_argmax: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of all terms."""
        return torch.stack(list(self)).sum()


def published_losses(
    out: PublishedOutput, expression: Tensor, cell_type: Tensor, type_map: Tensor, roles: TypeRoles
) -> LossTerms:
    """All ten terms of the paper's loss for one batch.

    Parameters
    ----------
    out
        Of :class:`~ghistpy.nn.published.PublishedNetwork`, called with ``expression=`` and
        ``segmentation=True``; at least one nucleus.
    expression
        (N, G) measured, ``expression_scale * log1p(count)``.
    cell_type
        (N,) int64 in [0, C).
    type_map
        (B, H, W) int64: 0 = background, otherwise 1 + type of the nucleus there.
    roles
        Which types the immune and the invasive branch learn.

    Notes
    -----
    ``composition_argmax`` has no gradient, and the softmax over proportions leaves at most 0.018 nats
    between opposite compositions; both are kept because they are part of the published function.
    """
    if len(expression) == 0:
        raise ValueError("expression: the batch has no nucleus; leave such batches out of training")
    if out.segmentation is None or out.target_features is None:
        raise ValueError("out: losses need the network called with expression=… and segmentation=True")
    n_types = out.type_logits.shape[1]
    share = 1.0 / n_types
    measured = F.one_hot(cell_type, n_types).to(expression).mean(0)
    predicted = F.one_hot(out.type_logits.argmax(1), n_types).to(expression).mean(0)
    per_patch = out.nuclei.per_patch.to(out.composition)
    estimate = per_patch @ out.composition / per_patch.sum()
    ones = torch.ones_like(cell_type)
    return LossTerms(
        segmentation=F.cross_entropy(out.segmentation, type_map),
        cell_type=F.cross_entropy(out.type_logits, cell_type),
        expression_type=F.cross_entropy(out.expression_type_logits, cell_type),
        expression=F.mse_loss(out.expression, expression),
        expression_immune=share * _mse_of(out.expression_immune, expression, cell_type, roles.immune),
        expression_invasive=share * _mse_of(out.expression_invasive, expression, cell_type, roles.invasive),
        feature=_COSINE_WEIGHT * F.cosine_embedding_loss(out.expression_features, out.target_features, ones),
        logits=F.mse_loss(out.expression_type_logits, out.target_type_logits),
        composition_estimate=_composition_divergence(estimate, measured),
        composition_argmax=_composition_divergence(predicted, measured),
    )


def _mse_of(predicted: Tensor, measured: Tensor, cell_type: Tensor, types: tuple[int, ...]) -> Tensor:
    """Mean squared error over the cells of those types; 0, still in the graph, without any."""
    chosen = torch.isin(cell_type, torch.tensor(types, dtype=cell_type.dtype, device=cell_type.device))
    if not chosen.any():
        return predicted.sum() * 0.0
    return F.mse_loss(predicted[chosen], measured[chosen])


def _composition_divergence(predicted: Tensor, measured: Tensor) -> Tensor:
    """KL of proportions as published: a softmax over both first, the sum divided by C."""
    log_predicted = torch.log(F.softmax(predicted + _EPSILON, dim=0))
    target = F.softmax(measured + _EPSILON, dim=0)
    return F.kl_div(log_predicted, target, reduction="batchmean")
