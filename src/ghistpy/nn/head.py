"""From what is seen of every nucleus of a slide to its type, its expression and its total.

expression = sum over types of P(type) x (profile + own slope of the type) + residual. The residual is
linear in the nucleus' features, in those of its neighbourhood and in random Fourier features of both
(so a kernel regression). A head that learns neither slope nor residual is the mean per cell type:
that is its floor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ghistpy.nn.config import GHISTConfig


class ContextHead(nn.Module):
    """Fixed functions of features; all of it is fitted in closed form after the network is trained.

    n nuclei, V features (own and neighbourhood), O of them of the nucleus itself, M of those measured
    (the others come from the network), D random features, C types, G genes.
    """

    def __init__(
        self, config: GHISTConfig, *, n_features: int, n_local: int, n_types: int, n_genes: int, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        d, v = config.random_features, n_features
        direction = torch.randn(v, d, generator=generator) * math.sqrt(2 * config.kernel_gamma / max(v, 1))
        phase = torch.rand(d, generator=generator) * 2 * math.pi
        # embedding and measured features of the nucleus itself stand first
        self.n_own = config.embedding + n_local
        self.measured = slice(config.embedding, self.n_own)
        self.register_buffer("center", torch.zeros(v))
        self.register_buffer("scale", torch.ones(v))
        self.register_buffer("direction", direction)
        self.register_buffer("phase", phase)
        # types: evidence = network's logits x own_weight + (features, squares of the measured) x type_weight; then
        # log P = evidence + prior_weight x log(neighbourhood / average)
        self.register_buffer("own_weight", torch.ones(()))
        self.register_buffer("type_weight", torch.zeros(v + n_local, n_types))
        self.register_buffer("type_bias", torch.zeros(n_types))
        self.register_buffer("prior_weight", torch.zeros(()))
        self.register_buffer("type_average", torch.full((n_types,), 1.0 / max(n_types, 1)))
        # expression
        self.register_buffer("profiles", torch.zeros(n_types, n_genes))
        self.register_buffer("residual_weight", torch.zeros(v + d + n_types * self.n_own, n_genes))
        self.register_buffer("residual_bias", torch.zeros(n_genes))
        # counts of a nucleus over all genes, per type (spots); 0 where expression already is in counts
        self.register_buffer("type_total", torch.zeros(n_types))

    def basis(self, features: Tensor) -> Tensor:
        """(n, V) features to (n, V + D): standardised (far outliers held at 5 SD), and their waves."""
        z = ((features - self.center) / self.scale).nan_to_num(0.0).clamp(-5, 5)
        waves = torch.cos(torch.addmm(self.phase, z, self.direction)) * math.sqrt(2)
        return torch.cat([z, waves], dim=1)

    def type_basis(self, basis: Tensor) -> Tensor:
        """(n, V + M): standardised features and the squares of those measured; types differ in spread too."""
        return torch.cat([basis[:, : len(self.center)], basis[:, self.measured].square()], dim=1)

    def evidence(self, logits: Tensor, basis: Tensor) -> Tensor:
        """(n, C) log odds of the types before the neighbourhood's composition is considered."""
        return logits * self.own_weight + self.type_basis(basis) @ self.type_weight + self.type_bias

    def refine(self, evidence: Tensor, composition: Tensor, strength: float) -> Tensor:
        """Types (n, C) after the neighbourhood has had its say; deterministic.

        ``strength`` 2 applies the weight that fitted the training cells best, 0 none.
        """
        ratio = torch.log(composition.clamp_min(1e-4)) - torch.log(self.type_average.clamp_min(1e-4))
        return torch.softmax(evidence + strength / 2 * self.prior_weight * ratio, dim=1)

    def design(self, basis: Tensor, proba: Tensor) -> Tensor:
        """(n, V + D + C O): what the residual is linear in; the last block holds a slope for each type."""
        own = basis[:, : self.n_own]
        slopes = (proba[:, :, None] * own[:, None, :]).flatten(1)
        return torch.cat([basis, slopes], dim=1)

    def expression(self, basis: Tensor, proba: Tensor) -> Tensor:
        """(n, G) on the scale of the targets, not below 0."""
        linear = self.design(basis, proba) @ self.residual_weight + self.residual_bias
        return (proba @ self.profiles + linear).clamp_min(0.0)
