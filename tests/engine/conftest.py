"""Slides made of arrays and a small default network that was never trained: no container, no Lightning."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

GENES, TYPES = 7, 4


def draw_nuclei(height=420, width=500, pitch=24, seed=0, ids=None):
    """(image (3, y, x) uint8, labels (y, x)): ellipses on a jittered lattice, some cut by the border."""
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(np.arange(0, height, pitch), np.arange(0, width, pitch), indexing="ij"), -1)
    centres = (centres + rng.uniform(-5, 5, centres.shape)).reshape(-1, 2)
    ids = np.arange(1, len(centres) + 1) if ids is None else np.asarray(ids)[: len(centres)]
    labels = np.zeros((height, width), dtype=np.asarray(ids).dtype)
    tissue = 205 + 12 * np.sin(np.arange(width) / 40)[None, :] + np.zeros((height, 1))
    image = np.stack([tissue, tissue - 60, tissue - 10])
    y, x = np.mgrid[:height, :width] + 0.5
    for i, (cy, cx) in zip(ids, centres[: len(ids)], strict=True):
        a, b, dark = rng.uniform(3, 9), rng.uniform(3, 9), rng.uniform(40, 120)
        inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1
        labels[inside] = i
        image[:, inside] -= dark
    image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    return image, labels


def make_slide(image, labels, mpp=0.5, **fields):
    """A slide with a fixed stain, so that nothing depends on the slide as a whole."""
    from ghistpy.data.slide import Slide
    from ghistpy.geometry import MemorySource, find_nuclei
    from ghistpy.imaging.stain import StainStats

    source = MemorySource(labels)
    stain = fields.pop("stain", StainStats((255.0, 255.0, 255.0), (1.0, 1.4, 0.8)))
    return Slide("s", MemorySource(image), source, mpp, find_nuclei(source), stain=stain, **fields)


def make_model(slide, seed=0, **settings):
    """Network and head with random weights; the head standardises the features of ``slide``."""
    import torch

    from ghistpy.data.windows import LOCAL_FEATURES
    from ghistpy.engine.extract import extract
    from ghistpy.engine.features import head_features, n_features
    from ghistpy.nn.cellnet import CellNet
    from ghistpy.nn.config import GHISTConfig
    from ghistpy.nn.head import ContextHead

    values = {"widths": (4, 6, 8), "embedding": 8, "decoder": 6, "random_features": 32, "tile_px": 512, **settings}
    config = GHISTConfig(**values)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    n_local = len(LOCAL_FEATURES)
    network = CellNet(config, n_types=TYPES, n_genes=GENES, n_local=n_local).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    extracted = extract(network, slide, config)
    network.local_center.copy_(torch.from_numpy(extracted.local.mean(axis=0)))
    network.local_scale.copy_(torch.from_numpy(extracted.local.std(axis=0) + 1e-3))
    extracted = extract(network, slide, config)
    features = head_features(slide, extracted, config)
    head = ContextHead(
        config, n_features=n_features(config, TYPES, n_local), n_local=n_local, n_types=TYPES, n_genes=GENES, seed=seed
    )
    head.center.copy_(torch.from_numpy(features.mean(axis=0)))
    head.scale.copy_(torch.from_numpy(features.std(axis=0) + 1e-3))
    head.type_weight.normal_(0, 0.1, generator=generator)
    head.type_bias.normal_(0, 0.1, generator=generator)
    head.prior_weight.fill_(1.0)
    head.profiles.uniform_(0.5, 3, generator=generator)
    head.residual_weight.normal_(0, 0.03, generator=generator)
    head.type_total.uniform_(500, 3000, generator=generator)
    return SimpleNamespace(network=network, head=head, config=config)


@pytest.fixture(scope="package")
def slide():
    """A slide of 378 nuclei."""
    return make_slide(*draw_nuclei())


@pytest.fixture(scope="package")
def model(slide):
    """A model for that slide."""
    return make_model(slide)


@pytest.fixture(scope="session")
def slide_maker():
    """(image, labels, mpp=0.5) -> Slide."""
    return make_slide


@pytest.fixture(scope="session")
def model_maker():
    """(slide, **settings) -> network, head, config."""
    return make_model


@pytest.fixture(scope="session")
def nuclei_drawer():
    """(height, width, pitch, seed, ids) -> image, labels."""
    return draw_nuclei


TRAIN_TYPES = 3


def make_training_slide(seed=0, name="s", **fields):
    """Nuclei of three types that differ in size, darkness and counts; gene 0 follows the darkness within a type."""
    from ghistpy.data.slide import CellTargets

    rng = np.random.default_rng([7, seed])
    side, pitch = 384, 24
    centres = np.stack(np.meshgrid(np.arange(12, side, pitch), np.arange(12, side, pitch), indexing="ij"), -1)
    centres = centres.reshape(-1, 2) + rng.uniform(-4, 4, (len(centres.reshape(-1, 2)), 2))
    n = len(centres)
    types = rng.integers(0, TRAIN_TYPES, n)
    image = np.full((3, side, side), 230.0) - np.array([20, 60, 25])[:, None, None]
    labels = np.zeros((side, side), dtype=np.int64)
    y, x = np.mgrid[:side, :side] + 0.5
    state = rng.normal(size=n)
    for i, (cy, cx) in enumerate(centres):
        radius = [4, 6, 8][types[i]]
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        labels[inside] = 500 + 7 * i
        image[:, inside] -= 60 + 15 * state[i] - 20 * types[i]
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    profiles = np.array([[8, 1, 2, 6, 1], [4, 10, 1, 2, 1], [2, 2, 9, 1, 1]], dtype=float)
    rate = profiles[types]
    rate[:, 0] *= np.exp(0.6 * state)
    counts = rng.poisson(3 * rate).astype(np.float32)
    targets = CellTargets(500 + 7 * np.arange(n), counts, np.ones(5, dtype=bool), types)
    slide = make_slide(image, labels, targets=targets, stain=None, **fields)

    return dataclasses.replace(slide, name=name)


@pytest.fixture(scope="session")
def training_slide_maker():
    """(seed, name, **fields of Slide) -> a slide with cells to learn from."""
    return make_training_slide
