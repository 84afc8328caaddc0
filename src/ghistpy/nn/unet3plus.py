"""U-Net 3+ without deep supervision: the backbone of the published network.

Huang et al., "UNet 3+: a full-scale connected UNet for medical image segmentation", ICASSP 2020,
doi 10.1109/ICASSP40776.2020.9053405. Module names follow the published GHIST checkpoints.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

LEVELS = 5


class BackboneMaps(NamedTuple):
    """Full-resolution maps of a batch.

    ``segmentation`` (B, C + 1, H, W) logits or None; ``decoder`` (B, 5w, H, W), the last decoder
    level; ``encoder`` (B, w, H, W), the first encoder level.
    """

    segmentation: Tensor | None
    decoder: Tensor
    encoder: Tensor


class _DoubleConv(nn.Module):
    """Twice convolution, batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(n_out, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


def _branch_name(source: int, level: int) -> str:
    """Name of the branch that brings encoder or decoder level ``source`` to decoder ``level``."""
    if source < level:
        return f"h{source}_PT_hd{level}"
    if source == level:
        return f"h{source}_Cat_hd{level}"
    return f"hd{source}_UT_hd{level}"


class UNet3Plus(nn.Module):
    """Five encoder levels, four full-scale decoder levels, one segmentation head.

    Parameters
    ----------
    widths
        Channels of the five encoder levels; every decoder branch has ``widths[0]`` channels and a
        decoder level five times as many.
    n_segments
        Classes of the segmentation head, background included.
    """

    def __init__(self, widths: tuple[int, ...], n_segments: int) -> None:
        super().__init__()
        width = widths[0]
        merged = LEVELS * width
        for level, n_out in enumerate(widths, start=1):
            n_in = 3 if level == 1 else widths[level - 2]
            self.add_module(f"conv{level}", _DoubleConv(n_in, n_out))
        for level in range(LEVELS - 1, 0, -1):
            for source in range(1, LEVELS + 1):
                # Decoder levels below the coarsest carry `merged` channels; level 5 is the encoder's.
                n_in = widths[source - 1] if source <= level or source == LEVELS else merged
                name = _branch_name(source, level)
                self.add_module(f"{name}_conv", nn.Conv2d(n_in, width, 3, padding=1))
                self.add_module(f"{name}_bn", nn.BatchNorm2d(width))
            self.add_module(f"conv{level}d_1", nn.Conv2d(merged, merged, 3, padding=1))
            self.add_module(f"bn{level}d_1", nn.BatchNorm2d(merged))
        self.outconv_seg = nn.Conv2d(merged, n_segments, 3, padding=1)
        self.apply(_initialise)

    def forward(self, x: Tensor, *, segmentation: bool = True) -> BackboneMaps:
        """``x`` (B, 3, H, W) standardised, sides divisible by 16."""
        height, width = x.shape[-2:]
        if height % 2 ** (LEVELS - 1) or width % 2 ** (LEVELS - 1):
            raise ValueError(
                f"image: sides {height} x {width} px are not divisible by {2 ** (LEVELS - 1)}; pad the patch"
            )
        encoder = []
        for level in range(1, LEVELS + 1):
            x = getattr(self, f"conv{level}")(x if level == 1 else F.max_pool2d(x, 2))
            encoder.append(x)
        decoder = {LEVELS: encoder[-1]}
        for level in range(LEVELS - 1, 0, -1):
            sources = [encoder[s - 1] if s <= level else decoder[s] for s in range(1, LEVELS + 1)]
            x = getattr(self, f"conv{level}d_1")(self._merge(sources, level))
            decoder[level] = _relu(getattr(self, f"bn{level}d_1")(x))
        logits = self.outconv_seg(decoder[1]) if segmentation else None
        return BackboneMaps(logits, decoder[1], encoder[0])

    def _merge(self, sources: list[Tensor], level: int) -> Tensor:
        """The five branches of a decoder level, rectified, side by side."""
        if torch.is_grad_enabled():
            return torch.cat([F.relu(self._branch(x, s, level)) for s, x in enumerate(sources, start=1)], dim=1)
        # rectified where they are going to stand: large maps are written once less
        batch, height, width = len(sources[0]), *sources[level - 1].shape[-2:]
        merged, start = None, 0
        for source, x in enumerate(sources, start=1):
            branch = self._branch(x, source, level)
            if merged is None:
                shape = (batch, LEVELS * branch.shape[1], height, width)
                merged = torch.empty(shape, dtype=branch.dtype, device=branch.device, memory_format=torch.channels_last)
            torch.clamp_min(branch, 0, out=merged[:, start : start + branch.shape[1]])
            start += branch.shape[1]
        return merged

    def _branch(self, x: Tensor, source: int, level: int) -> Tensor:
        """One branch before its ReLU."""
        name = _branch_name(source, level)
        conv, norm = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        if source < level:
            x = conv(F.max_pool2d(x, 2 ** (level - source), ceil_mode=True))
        elif source == level:
            x = conv(x)
        else:
            x = upsample_conv(x, conv.weight, conv.bias, 2 ** (source - level))
        return norm(x)


def fused_backbone(network: UNet3Plus) -> UNet3Plus:
    """A copy for inference, the same function: batch norms are folded into the convolutions before them."""
    network = copy.deepcopy(network).eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Sequential) and len(module) == 3:
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
            module[2].inplace = True
        elif isinstance(module, nn.BatchNorm2d) and "." not in name:
            conv = name.replace("bn", "conv") if name.startswith("bn") else name.removesuffix("_bn") + "_conv"
            setattr(network, conv, fuse_conv_bn_eval(getattr(network, conv), module))
            setattr(network, name, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=not torch.is_grad_enabled())


def _initialise(module: nn.Module) -> None:
    """He initialisation of convolutions, as the published training starts."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> Tensor:
    """A 3 x 3 convolution (padding 1) of ``x`` upsampled bilinearly, without the large map.

    Upsampling acts on each channel and the convolution's channel mixing on each pixel, so they
    commute: mix channels at low resolution, once per tap, then upsample, shift and add. Upsampling
    followed by a shift is one small matrix per axis, which also holds the borders (the clamped edge
    of the interpolation, the zero padding of the convolution), so the rewrite is exact.

    Parameters
    ----------
    x
        (B, c, h, w).
    weight, bias
        (k, c, 3, 3) and (k,) or None.
    factor
        Ratio of the output's sides to those of ``x``.

    Returns
    -------
    (B, k, factor * h, factor * w) in channels-last memory.

    Notes
    -----
    With H = factor * h the cost falls from 9·c·k·H·W multiplications to 9·c·k·h·w plus two small
    matrix products (9·k·H·h·w + 3·k·H·W·w).
    """
    batch, _, height, width = x.shape
    n_out = weight.shape[0]
    # rows (tap_y, tap_x, k): taps of one axis become part of that axis' matrix
    taps = weight.permute(2, 3, 0, 1).reshape(9 * n_out, -1, 1, 1)
    mixed = F.conv2d(x, taps).permute(0, 2, 3, 1).reshape(batch, height, width, 3, 3 * n_out)
    mixed = mixed.permute(0, 3, 1, 2, 4).reshape(batch, 3 * height, width * 3 * n_out)
    rows = _upsample_shift(height, factor).permute(1, 0, 2).reshape(factor * height, 3 * height)
    columns = _upsample_shift(width, factor).permute(1, 2, 0).reshape(factor * width, 3 * width)
    tall = torch.matmul(rows.to(mixed), mixed)  # (B, H, w * tap_x * k)
    tall = tall.reshape(batch * factor * height, width * 3, n_out)
    out = torch.matmul(columns.to(tall), tall)  # (B * H, W, k)
    if bias is not None:
        out = out + bias.to(out) if torch.is_grad_enabled() else out.add_(bias.to(out))
    return out.reshape(batch, factor * height, factor * width, n_out).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _upsample_shift(size: int, factor: int) -> Tensor:
    """(3, factor * size, size): bilinear upsampling of one axis, then a shift by -1, 0, +1 with zeros."""
    # A tensor born in inference mode could never serve a training step, and the cache outlives the mode.
    with torch.inference_mode(False):
        return _build_upsample_shift(size, factor)


def _build_upsample_shift(size: int, factor: int) -> Tensor:
    large = factor * size
    # align_corners False: output pixel centres in the input's pixel coordinates, edges clamped
    position = ((torch.arange(large, dtype=torch.float64) + 0.5) / factor - 0.5).clamp_(min=0)
    low = position.floor().long()
    high = (low + 1).clamp_(max=size - 1)
    fraction = position - low
    rows = torch.arange(large)
    matrix = torch.zeros(large, size, dtype=torch.float64)
    matrix.index_put_((rows, low), 1 - fraction, accumulate=True)
    matrix.index_put_((rows, high), fraction, accumulate=True)
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + large] for tap in range(3)]).float()
