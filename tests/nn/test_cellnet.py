"""The default network: its receptive field, its pooling, and what batches and windows may not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.geometry import cover
from ghistpy.nn.cellnet import CellNet, fused
from ghistpy.nn.config import GHISTConfig

SMALL = GHISTConfig(widths=(3, 4, 5), embedding=6, decoder=4, random_features=8)
LOCAL = 3


def network_of(config, seed=0):
    torch.manual_seed(seed)
    network = CellNet(config, n_types=4, n_genes=5, n_local=LOCAL).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after training, not 0 and 1
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def sparse(coverage, positions, offset=0):
    row = np.repeat(np.arange(len(coverage.indptr) - 1), np.diff(coverage.indptr))
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([row, coverage.index + offset])),
        torch.from_numpy(coverage.weight),
        size=(len(coverage.indptr) - 1, positions),
        check_invariants=True,
    )


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, widths=(3, 4)),
        dataclasses.replace(SMALL, widths=(3,)),
        dataclasses.replace(SMALL, stride=2),
        dataclasses.replace(SMALL, stride=2, widths=(2, 2, 2, 2)),
        dataclasses.replace(SMALL, stride=8, widths=(2, 2)),
    ],
    ids=lambda c: f"stride{c.stride}-levels{len(c.widths)}",
)
def test_halo_bounds_the_receptive_field(config):
    """With positive weights every dependence shows in the gradient: none lies beyond the halo, and it is not wasted."""
    network = network_of(config)
    for parameter in network.parameters():
        parameter.data.fill_(1.0 / parameter.numel())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            torch.nn.init.ones_(module.weight)
    network = network.double()
    stride, align, halo = config.stride, config.align_px, config.halo_px
    side = -(-(2 * halo + 2 * align) // align) * align
    od = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    features = network.feature_map(od)
    farthest = 0
    first = side // 2 // align * align // stride
    for position in range(first, first + align // stride):
        (gradient,) = torch.autograd.grad(features[0, :, position, first].sum(), od, retain_graph=True)
        rows = np.flatnonzero(gradient[0].abs().sum(dim=(0, 2)).numpy())
        # a nucleus may hold any px of that position: the last one looks furthest up, the first furthest down
        farthest = max(farthest, (position + 1) * stride - 1 - rows[0], rows[-1] - position * stride)
    assert farthest <= halo
    assert farthest > halo - 2 * stride * 2 ** (len(config.widths) - 1)


@pytest.mark.parametrize("at", [(96, 96), (101, 109)])
def test_pixels_beyond_the_halo_change_nothing(at):
    network = network_of(SMALL)
    halo, side = SMALL.halo_px, 256
    labels = np.zeros((side, side), dtype=np.int32)
    y0, x0 = at
    labels[y0 : y0 + 13, x0 : x0 + 9] = 1
    rng = np.random.default_rng(0)
    od = torch.from_numpy(rng.random((1, 3, side, side), dtype=np.float32))
    coverage = sparse(cover(labels, 1, SMALL.stride, np.array([[100.0, 100.0]])), (side // SMALL.stride) ** 2)
    local = torch.zeros(1, LOCAL)

    def outputs(image):
        with torch.inference_mode():
            return torch.cat([v.ravel() for v in network(image, coverage, local)])

    before = outputs(od)
    beyond = torch.ones(side, side, dtype=torch.bool)
    beyond[y0 - halo : y0 + 13 + halo, x0 - halo : x0 + 9 + halo] = False
    assert torch.equal(outputs(torch.where(beyond, torch.tensor(4.0), od)), before)
    for y, x in ((y0, x0), (y0 + 12, x0 + 8)):
        changed = od.clone()
        changed[..., y, x] += 1
        assert not torch.equal(outputs(changed), before)


def test_pooling_equals_means_over_pixels():
    """Mean and spread over the px of a nucleus, each px with the feature of its position."""
    network = network_of(SMALL)
    stride, side = SMALL.stride, 64
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 6, (8, 8)), np.ones((8, 8), int))
    labels[:, 3:9] = 0
    od = torch.from_numpy(rng.random((1, 3, side, side), dtype=np.float32))
    local = torch.from_numpy(rng.normal(size=(5, LOCAL)).astype(np.float32))
    network.local_center.fill_(0.3)
    network.local_scale.fill_(2.0)
    coverage = sparse(cover(labels, 5, stride, np.zeros((5, 2))), (side // stride) ** 2)
    with torch.no_grad():
        features = network.feature_map(od)[0].double().numpy()
        out = network(od, coverage, local)
    pixels = np.kron(features, np.ones((1, stride, stride)))
    rows = []
    for i in range(1, 6):
        own = pixels[:, labels == i]
        rows.append(np.concatenate([own.mean(axis=1), own.std(axis=1)]))
    measured = (local.numpy() - 0.3) / 2.0
    expected = network.embed(torch.from_numpy(np.concatenate([np.array(rows), measured], axis=1)).float())
    # the spread is a difference of float32 squares: four digits where it is small beside the mean
    np.testing.assert_allclose(out.embedding, expected.detach(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.type_logits, network.types(out.embedding).detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.expression, network.genes(out.embedding).detach(), rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_windows_one_by_one():
    network = network_of(SMALL)
    rng = np.random.default_rng(0)
    side, positions = 64, (64 // SMALL.stride) ** 2
    od = torch.from_numpy(rng.random((3, 3, side, side), dtype=np.float32))
    labels = [np.kron(rng.permutation(64).reshape(8, 8), np.ones((8, 8), int)) % (4 + k) for k in range(3)]
    counts = [3 + k for k in range(3)]
    local = [torch.from_numpy(rng.normal(size=(n, LOCAL)).astype(np.float32)) for n in counts]
    parts = [cover(m, n, SMALL.stride, np.zeros((n, 2))) for m, n in zip(labels, counts, strict=True)]
    with torch.inference_mode():
        alone = [network(od[k : k + 1], sparse(parts[k], positions), local[k]).embedding.numpy() for k in range(3)]
        together = torch.cat([sparse(p, 3 * positions, k * positions) for k, p in enumerate(parts)])
        batch = network(od, together, torch.cat(local)).embedding.numpy()
    np.testing.assert_allclose(batch, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_a_window_without_nuclei():
    network = network_of(SMALL)
    empty = torch.sparse_coo_tensor(
        torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), size=(0, 256), check_invariants=True
    )
    out = network(torch.zeros(1, 3, 64, 64), empty, torch.zeros(0, LOCAL))
    assert (out.embedding.shape, out.type_logits.shape, out.expression.shape) == ((0, 6), (0, 4), (0, 5))


def test_fused_is_the_same_function():
    """For inference the batch norms are part of the convolutions; the network itself is left as it was."""
    network = network_of(SMALL)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    od = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32))
    twin = fused(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in twin.modules())
    with torch.no_grad():
        np.testing.assert_allclose(twin.feature_map(od), network.feature_map(od), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("height", "width"), [(32, 48), (128, 64), (288, 160)])
@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8)])
def test_feature_map_in_bands_is_that_of_training(height, width, widths):
    """Without gradients the finest level is computed in bands of rows, with folded norms: the same values."""
    config = GHISTConfig(widths=widths, embedding=6, decoder=5)
    network = CellNet(config, n_types=3, n_genes=4, n_local=2).eval()
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    od = torch.randn(2, 3, height, width)
    expected = network.feature_map(od).detach()
    with torch.inference_mode():
        banded = network.feature_map(od)
        fast = fused(network).feature_map(od.to(memory_format=torch.channels_last))
    torch.testing.assert_close(banded, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-5)
