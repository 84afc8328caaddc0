"""The network of the GHIST paper, as a function exactly; faster, and without its failures.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z. Parameter names and shapes are
those of the published checkpoints. What differs is how the same numbers are computed: nuclei are pooled
by one scatter-add instead of a loop, attention over a sequence of length one is the affine map that it
is, and upsampled branches are convolved before they are upsampled.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.unet3plus import UNet3Plus, fused_backbone

_HEADS = 8


class NucleusIndex(NamedTuple):
    """The nuclei of a batch of patches, in order of patch, then ascending id.

    ``rows`` (B, H, W) int64: 0 = background, otherwise 1 + row; ``ids`` (N,) int64;
    ``patch`` (N,) int64; ``area`` (N,) int64, px inside the patch; ``per_patch`` (B,) int64.
    A nucleus in two patches has two rows.
    """

    rows: Tensor
    ids: Tensor
    patch: Tensor
    area: Tensor
    per_patch: Tensor


class PublishedOutput(NamedTuple):
    """What the network returns. N nuclei in order of patch, then id; B patches; C types; G genes.

    Expression is on the scale of training, ``expression_scale * log1p(count)``.
    """

    type_logits: Tensor  # (N, C), from the image
    expression: Tensor  # (N, G) main branch
    expression_immune: Tensor  # (N, G)
    expression_invasive: Tensor  # (N, G)
    expression_type_logits: Tensor  # (N, C), from the predicted expression
    expression_features: Tensor  # (N, E), first layer of that classifier before its ReLU
    target_type_logits: Tensor | None  # (N, C), from the measured expression, when it was given
    target_features: Tensor | None  # (N, E)
    composition: Tensor  # (B, C), estimated proportions of types in a patch
    segmentation: Tensor | None  # (B, C + 1, H, W) logits, 0 = background, when asked for
    pooled: Tensor  # (N, 12 w), 768 for the paper's widths
    embedding: Tensor  # (N, E)
    nuclei: NucleusIndex


def index_nuclei(labels: Tensor) -> NucleusIndex:
    """Number the nuclei of a batch of label patches.

    Parameters
    ----------
    labels
        (B, H, W) integer, 0 = background, any ids from 1 to 2**63 - 1.

    Notes
    -----
    A patch without background and one without nuclei are ordinary cases. One sort per patch.
    """
    if labels.is_floating_point():
        raise ValueError(f"labels: expected integers, got {labels.dtype}; float labels merge large ids")
    rows, ids, areas = [], [], []
    seen = 0
    for patch in labels.to(torch.int64):
        unique, inverse, count = torch.unique(patch, return_inverse=True, return_counts=True)
        background = int(unique.numel() > 0 and unique[0] == 0)
        # inverse numbers the background too, when there is one
        local = inverse + (1 - background)
        rows.append(torch.where(local > 0, local + seen, local))
        ids.append(unique[background:])
        areas.append(count[background:])
        seen += len(ids[-1])
    per_patch = torch.tensor([len(i) for i in ids], dtype=torch.int64, device=labels.device)
    patch = torch.repeat_interleave(torch.arange(len(ids), device=labels.device), per_patch)
    return NucleusIndex(torch.stack(rows), torch.cat(ids), patch, torch.cat(areas), per_patch)


def pool_nuclei(features: Tensor, nuclei: NucleusIndex) -> Tensor:
    """Mean of a feature map over the pixels of each nucleus.

    ``features`` (B, F, H, W) → (N, F) float32: one scatter-add over the pixels of nuclei, O(pixels · F).
    """
    width = features.shape[1]
    rows = nuclei.rows.reshape(-1)
    inside = rows.nonzero().squeeze(1)
    # a view when the map is channels-last
    pixels = features.permute(0, 2, 3, 1).reshape(-1, width).index_select(0, inside).float()
    total = pixels.new_zeros(len(nuclei.ids), width).index_add(0, rows[inside] - 1, pixels)
    return total / nuclei.area.unsqueeze(1)


def patch_mean(values: Tensor, nuclei: NucleusIndex) -> Tensor:
    """Mean of (N, E) values over the nuclei of each patch → (B, E); 0 in a patch without nuclei."""
    total = values.new_zeros(len(nuclei.per_patch), values.shape[1]).index_add(0, nuclei.patch, values)
    return total / nuclei.per_patch.clamp(min=1).unsqueeze(1)


class _MLP(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and the first linear layer before its ReLU."""
        features = self.mlp[0](x)
        return self.mlp[2](self.mlp[1](features)), features


class _Embed(nn.Module):
    """Pooled features to the embedding of a nucleus."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Linear(n_out, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _RefineExpression(nn.Module):
    """The attention block of the paper, as the affine map that it is.

    Query = composition, key = value = expression, with cells on the batch axis and a sequence of length
    one: the softmax runs over one score, every weight is 1, and query and key never matter. Their
    parameters are kept because checkpoints hold them; they get no gradient.
    """

    def __init__(self, n_types: int, n_genes: int, embedding: int) -> None:
        super().__init__()
        self.query_transform = nn.Linear(n_types, embedding).requires_grad_(False)
        self.key_transform = nn.Linear(n_genes, embedding).requires_grad_(False)
        self.value_transform = nn.Linear(n_genes, embedding)
        self.attention = nn.MultiheadAttention(embedding, _HEADS)
        self.linear_out = nn.Linear(embedding, n_genes)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.attention.embed_dim
        weight_v = self.attention.in_proj_weight[2 * embedding :]
        bias_v = self.attention.in_proj_bias[2 * embedding :]
        out = self.attention.out_proj
        # (E, G): value_transform, value projection and output projection in one
        mix = out.weight @ weight_v
        weight = mix @ self.value_transform.weight
        bias = mix @ self.value_transform.bias + out.weight @ bias_v + out.bias
        return self.linear_out(F.linear(x, weight, bias))


_BRANCHES = ("", "_immune", "_invasive")


class PublishedNetwork(nn.Module):
    """U-Net 3+, pooling over nuclei, cell-type heads and three expression branches.

    Parameters
    ----------
    config
        ``GHISTConfig.published(…)``.
    n_genes, n_types
        G and C.
    reference
        (n_ref, G) reference profiles, log1p scale, when ``config.use_reference``; they are multiplied by
        ``config.expression_scale`` here. Not part of the state dict (as published).
    """

    reference: Tensor | None

    def __init__(self, config: GHISTConfig, n_genes: int, n_types: int, reference: np.ndarray | None = None) -> None:
        super().__init__()
        scaled = _scaled_reference(config, n_genes, reference)
        width, size = config.widths[0], config.embedding
        self.config, self.n_genes, self.n_types = config, n_genes, n_types
        self.cnn = UNet3Plus(config.widths, n_types + 1)
        self.embed_hist = _Embed(12 * width, size)
        self.estimate_comp = _MLP(size, size, n_types)
        self.mlp_hist = _MLP(size, size, n_types)
        self.mlp_genes = _MLP(n_genes, size, n_types)
        head = "mlp_offset" if scaled is None else "mlp_weights"
        for branch in _BRANCHES:
            n_out = n_genes if scaled is None else len(scaled)
            self.add_module(head + branch, _MLP(size, size, n_out))
            self.add_module("refine_expr" + branch, _RefineExpression(n_types, n_genes, size))
        self.register_buffer("reference", scaled, persistent=False)

    def forward(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        expression: Tensor | None = None,
        segmentation: bool = True,
    ) -> PublishedOutput:
        """Predict the nuclei of a batch of patches.

        Parameters
        ----------
        image
            (B, 3, H, W) float, standardised; sides divisible by 16. Channels-last memory is faster.
        labels
            (B, H, W) integer ids, 0 = background.
        expression
            (N, G) measured expression on the training scale, rows as :func:`index_nuclei` orders
            them; only training needs it.
        segmentation
            Compute the segmentation logits (training needs them, prediction does not).
        """
        nuclei = index_nuclei(labels)
        maps = self.cnn(image, segmentation=segmentation)
        pooled = self._features(maps.decoder, maps.encoder, nuclei)
        embedding = self.embed_hist(pooled)  # (N, E)
        composition = F.softmax(self.estimate_comp(patch_mean(embedding, nuclei)), dim=1)
        branches = [self._expression(embedding, branch) for branch in _BRANCHES]
        type_logits, features = self.mlp_genes.with_features(branches[0])
        target = (None, None) if expression is None else self.mlp_genes.with_features(expression)
        return PublishedOutput(
            type_logits=self.mlp_hist(embedding),
            expression=branches[0],
            expression_immune=branches[1],
            expression_invasive=branches[2],
            expression_type_logits=type_logits,
            expression_features=features,
            target_type_logits=target[0],
            target_features=target[1],
            composition=composition,
            segmentation=maps.segmentation,
            pooled=pooled,
            embedding=embedding,
            nuclei=nuclei,
        )

    def _features(self, decoder: Tensor, encoder: Tensor, nuclei: NucleusIndex) -> Tensor:
        """(N, 12 w): means over the nucleus of both maps, then over its whole patch."""
        context = torch.cat([decoder.mean((2, 3)), encoder.mean((2, 3))], dim=1)  # (B, 6w)
        return torch.cat(
            [pool_nuclei(decoder, nuclei), pool_nuclei(encoder, nuclei), context.float()[nuclei.patch]],
            dim=1,
        )

    def _expression(self, embedding: Tensor, branch: str) -> Tensor:
        refine = getattr(self, "refine_expr" + branch)
        if self.reference is None:
            return F.relu(refine(F.relu(getattr(self, "mlp_offset" + branch)(embedding))))
        weights = F.softmax(getattr(self, "mlp_weights" + branch)(embedding), dim=1)  # (N, n_ref)
        mixture = weights @ self.reference
        return F.relu(mixture + refine(mixture))


def fused_published(network: PublishedNetwork) -> PublishedNetwork:
    """A copy for inference, the same function, see :func:`~ghistpy.nn.unet3plus.fused_backbone`."""
    # everything but the backbone is shared
    out = copy.copy(network)
    out._modules = dict(network._modules)
    out.cnn = fused_backbone(network.cnn)
    return out.eval()


def _scaled_reference(config: GHISTConfig, n_genes: int, reference: np.ndarray | None) -> Tensor | None:
    if config.architecture != "published":
        raise ValueError(
            f"config: architecture is {config.architecture!r}; this network needs GHISTConfig.published(…)"
        )
    if config.use_reference != (reference is not None):
        wanted = "needs" if config.use_reference else "takes no"
        raise ValueError(
            f"reference: config.use_reference={config.use_reference} {wanted} reference profiles, got "
            f"{None if reference is None else np.shape(reference)}; make the two agree"
        )
    if reference is None:
        return None
    profiles = np.asarray(reference, dtype=np.float32)
    if profiles.ndim != 2 or profiles.shape[1] != n_genes or len(profiles) == 0:
        raise ValueError(
            f"reference: expected (profiles, {n_genes} genes), got shape {profiles.shape}; "
            "give one row per profile and one column per gene, in the order of the model's genes"
        )
    if not np.isfinite(profiles).all():
        raise ValueError("reference: holds NaN or infinite values; drop those profiles or genes")
    return torch.from_numpy(profiles * np.float32(config.expression_scale))
