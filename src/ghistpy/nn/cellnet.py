"""The default network: a light encoder at stride 4 whose features are pooled over each nucleus.

A nucleus covers a few hundred pixels, so features every 2 µm, averaged by the exact share of the
nucleus in each of them, carry what a full-resolution U-Net does at a thousandth of its cost. What the
pooling loses (size, shape, chromatin) comes in as measured morphology.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ghistpy.nn.config import GHISTConfig

_BAND = 32  # rows of the finest map that are worked on together on a CPU; even


class CellNetOutput(NamedTuple):
    """What the network says of each nucleus; n nuclei, E embedding, C types, G genes."""

    embedding: Tensor  # (n, E)
    type_logits: Tensor  # (n, C)
    expression: Tensor  # (n, G) standardised; used in training only, the head is refitted in closed form


class CellNet(nn.Module):
    """Encoder, additive top-down path, pooling over nuclei, and linear heads.

    Parameters
    ----------
    config
        Settings with ``architecture="default"``.
    n_types, n_genes
        Sizes of the heads.
    n_local
        Number of measured features of a nucleus (morphology and surroundings).
    """

    def __init__(self, config: GHISTConfig, *, n_types: int, n_genes: int, n_local: int) -> None:
        super().__init__()
        widths, decoder = config.widths, config.decoder
        self.stride = config.stride
        self.stem = _block(3, widths[0], kernel=config.stride, stride=config.stride)
        self.levels = nn.ModuleList()
        below = widths[0]
        for level, width in enumerate(widths):
            down = _block(below, width, stride=1 if level == 0 else 2)
            self.levels.append(down if level == 0 else nn.Sequential(down, _block(width, width)))
            below = width
        self.lateral = nn.ModuleList(nn.Conv2d(width, decoder, 1) for width in widths)
        self.smooth = nn.Sequential(
            nn.Conv2d(decoder, decoder, 3, padding=1, groups=decoder, bias=False),
            nn.BatchNorm2d(decoder),
            nn.ReLU(),
            nn.Conv2d(decoder, decoder, 1),
        )
        self.register_buffer("local_center", torch.zeros(n_local))
        self.register_buffer("local_scale", torch.ones(n_local))
        self.embed = nn.Sequential(
            nn.Linear(2 * decoder + n_local, 2 * config.embedding),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(2 * config.embedding, config.embedding),
            nn.GELU(),
        )
        self.types = nn.Linear(config.embedding, n_types)
        self.genes = nn.Linear(config.embedding, n_genes)

    def feature_map(self, od: Tensor) -> Tensor:
        """Optical density (B, 3, h, w) to features (B, D, h / stride, w / stride)."""
        x = self.stem(od)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        top = self.lateral[-1](maps[-1])
        for lateral, x in zip(reversed(self.lateral[1:-1]), reversed(maps[1:-1]), strict=True):
            top = _add_upsampled(lateral(x), top)
        if od.device.type == "cpu" and not torch.is_grad_enabled() and not self.training:
            return self._finest_in_bands(maps[0], top)
        return self._finest(maps[0], top)

    def _finest(self, x: Tensor, top: Tensor) -> Tensor:
        """The last step of the top-down path: ``x`` at the finest level, ``top`` at half its resolution."""
        merged = self.lateral[0](x)
        if len(self.lateral) > 1:
            merged = _add_upsampled(merged, top)
        return self.smooth(F.relu_(merged))  # nothing behind it needs the sum

    def _finest_in_bands(self, x: Tensor, top: Tensor) -> Tensor:
        """The same by bands of rows: the maps in between stay in the cache and in memory that is reused.

        A band brings one row on each side for the 3 x 3 convolution (two, to fall on whole rows of ``top``).
        """
        height = x.shape[2]
        out = x.new_empty((0,))
        for y in range(0, height, _BAND):
            low, high = max(y - 2, 0), min(y + _BAND + 2, height)
            band = self._finest(x[:, :, low:high], top[:, :, low // 2 : -(-high // 2)])
            if y == 0:
                shape = (x.shape[0], band.shape[1], height, x.shape[3])
                out = torch.empty(shape, dtype=band.dtype, memory_format=torch.channels_last)
            stop = min(y + _BAND, height)
            out[:, :, y:stop] = band[:, :, y - low : stop - low]
        return out

    def forward(self, od: Tensor, coverage: Tensor, local: Tensor) -> CellNetOutput:
        """Embed the nuclei of a batch of windows.

        Parameters
        ----------
        od
            (B, 3, h, w) optical density, h and w multiples of the coarsest level's stride.
        coverage
            (n, B * h/stride * w/stride) sparse, rows sum to 1.
        local
            (n, n_local) measured features.
        """
        features = self.feature_map(od)
        # (B * positions, D), float32: sums over a nucleus are not the place to save bits
        flat = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).float()
        with torch.autocast(device_type=od.device.type, enabled=False):
            mean = coverage @ flat
            square = coverage @ flat.square()
            spread = (square - mean.square()).clamp_min(1e-6).sqrt()
            measured = ((local - self.local_center) / self.local_scale).clamp(-5, 5)
            embedding = self.embed(torch.cat([mean, spread, measured], dim=1))
            return CellNetOutput(embedding, self.types(embedding), self.genes(embedding))


class _PixelLinear(nn.Module):
    """A 1 x 1 convolution as one matrix product over channels-last pixels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.flatten(1)), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def fused(network: CellNet) -> CellNet:
    """A copy for inference, the same function: batch norms become part of the convolutions before them.

    1 x 1 convolutions become matrix products (a third of the time on a CPU, where torch has no fast
    kernel for them in this memory format), and ReLUs work in place.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
        elif isinstance(module, nn.ReLU):
            module.inplace = True
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
                setattr(module, name, _PixelLinear(child))
    return network.to(memory_format=torch.channels_last)


def _add_upsampled(x: Tensor, coarse: Tensor) -> Tensor:
    # Nearest: bilinear upsampling would make the value depend on the window's border.
    return x + F.interpolate(coarse, scale_factor=2, mode="nearest")


def _block(inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = 1 if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )
