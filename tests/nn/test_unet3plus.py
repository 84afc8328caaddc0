"""The backbone's rewrite of upsampled branches is exact."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ghistpy.nn import unet3plus
from ghistpy.nn.unet3plus import UNet3Plus, fused_backbone, upsample_conv


def _plain(x, weight, bias, factor):
    large = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return F.conv2d(large, weight, bias, padding=1)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 5)])
def test_upsample_conv_equals_upsample_then_conv(factor, size):
    generator = torch.Generator().manual_seed(factor)
    x = torch.randn(2, 6, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    ours, plain = upsample_conv(x, weight, bias, factor), _plain(x, weight, bias, factor)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), upstream),
        torch.autograd.grad(plain, (x, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_matrices_first_built_in_inference_mode_serve_training():
    unet3plus._upsample_shift.cache_clear()
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    with torch.inference_mode():
        upsample_conv(torch.randn(1, 2, 3, 3), weight, None, 2)
    upsample_conv(torch.randn(1, 2, 3, 3), weight, None, 2).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_whole_backbone_equals_its_plain_form(monkeypatch):
    """Every output and every gradient, float64, against the branches as the paper writes them."""
    torch.manual_seed(0)
    network = UNet3Plus((4, 8, 12, 16, 20), n_segments=3).double().train()
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)

    def run():
        network.zero_grad()
        out = network(x)
        sum((m * torch.linspace(0, 1, m.numel(), dtype=m.dtype).view(m.shape)).sum() for m in out).backward()
        return [*out, *(p.grad for p in network.parameters())]

    ours = run()
    monkeypatch.setattr(unet3plus, "upsample_conv", _plain)
    # batch statistics do not depend on how often the network ran, so the two runs are comparable
    for a, b in zip(ours, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_fused_backbone_is_the_same_function():
    """Folded norms and branches rectified in place; the network itself is left as it is."""
    torch.manual_seed(0)
    network = UNet3Plus((4, 6, 8, 10, 12), 5).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 64, 48)
    expected = network(x)
    with torch.inference_mode():
        plain, fast = network(x), fused_backbone(network)(x)
    for name in ("decoder", "encoder", "segmentation"):
        want = getattr(expected, name).detach()
        torch.testing.assert_close(getattr(plain, name), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(getattr(fast, name), want, rtol=1e-4, atol=1e-5)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
