"""The head: its floor is the mean per type, its types are Bayes' rule, its waves a Gaussian kernel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead

CONFIG = GHISTConfig(embedding=5, random_features=40)
N, V, LOCAL, TYPES, GENES = 30, 14, 4, 3, 6


def random_head(seed=0, config=CONFIG):
    head = ContextHead(config, n_features=V, n_local=LOCAL, n_types=TYPES, n_genes=GENES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in ("center", "type_bias", "residual_bias", "type_weight"):
        getattr(head, name).normal_(0, 0.3, generator=generator)
    head.residual_weight.normal_(0, 0.05, generator=generator)
    head.scale.uniform_(0.5, 2, generator=generator)
    head.profiles.uniform_(1, 3, generator=generator)
    head.type_average.copy_(torch.tensor([0.5, 0.3, 0.2]))
    head.own_weight.fill_(0.7)
    head.prior_weight.fill_(0.8)
    return head


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    tensor = lambda *shape: torch.from_numpy(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    composition = torch.from_numpy(rng.dirichlet(np.ones(TYPES), N).astype(np.float32))
    return tensor(N, V), tensor(N, TYPES), composition


def test_a_head_that_learned_nothing_is_the_mean_per_type(inputs):
    """Exactly: no residual, no evidence, no neighbourhood."""
    features, logits, composition = inputs
    head = ContextHead(CONFIG, n_features=V, n_local=LOCAL, n_types=TYPES, n_genes=GENES)
    head.profiles.copy_(torch.rand(TYPES, GENES))
    basis = head.basis(features)
    evidence = head.evidence(logits, basis)
    assert torch.equal(evidence, logits)
    proba = head.refine(evidence, composition, 2.0)
    assert torch.equal(proba, torch.softmax(logits, dim=1))
    assert torch.equal(head.expression(basis, proba), proba @ head.profiles)


def test_types_follow_their_formula(inputs):
    features, logits, composition = inputs
    head = random_head()
    basis = head.basis(features)
    evidence = head.evidence(logits, basis)
    f, b = np.float64, basis.double().numpy()
    seen = np.concatenate([b[:, :V], b[:, CONFIG.embedding : CONFIG.embedding + LOCAL] ** 2], axis=1)
    expected = 0.7 * logits.numpy().astype(f) + seen @ head.type_weight.numpy().astype(f) + head.type_bias.numpy()
    np.testing.assert_allclose(evidence, expected, rtol=1e-4, atol=1e-5)
    for strength in (0.0, 1.0, 2.0):
        odds = np.exp(expected) * (composition.numpy() / np.array([0.5, 0.3, 0.2])) ** (0.8 * strength / 2)
        proba = head.refine(evidence, composition, strength).numpy()
        np.testing.assert_allclose(proba, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)


def test_without_strength_the_types_are_the_raw_ones(inputs):
    features, logits, composition = inputs
    head = random_head()
    evidence = head.evidence(logits, head.basis(features))
    assert torch.equal(head.refine(evidence, composition, 0.0), torch.softmax(evidence, dim=1))
    # nor does a neighbourhood like any other move them
    everywhere = head.type_average.expand(N, TYPES)
    np.testing.assert_allclose(head.refine(evidence, everywhere, 2.0), torch.softmax(evidence, dim=1), rtol=1e-5)


def test_the_neighbourhood_acts(inputs):
    """More of a type around makes it likelier; a type that is not around at all stays possible."""
    features, logits, _ = inputs
    head = random_head()
    evidence = head.evidence(logits, head.basis(features))
    around = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])
    raw = torch.softmax(evidence, dim=1)
    for kind in range(TYPES):
        moved = head.refine(evidence, around[kind].expand(N, TYPES), 2.0)
        assert (moved[:, kind] > raw[:, kind]).all()
        assert (moved > 0).all()
    head.prior_weight.zero_()
    assert torch.equal(head.refine(evidence, around[0].expand(N, TYPES), 2.0), raw)


def test_expression_follows_its_formula(inputs):
    features, _, composition = inputs
    head = random_head()
    basis = head.basis(features)
    got = head.expression(basis, composition).numpy()
    b, p = basis.double().numpy(), composition.double().numpy()
    weight, d = head.residual_weight.double().numpy(), CONFIG.random_features
    n_own = CONFIG.embedding + LOCAL
    own = b[:, :n_own]
    expected = p @ head.profiles.double().numpy() + b @ weight[: V + d] + head.residual_bias.double().numpy()
    for kind in range(TYPES):  # a slope of its own for each type
        rows = slice(V + d + kind * n_own, V + d + (kind + 1) * n_own)
        expected += p[:, [kind]] * (own @ weight[rows])
    np.testing.assert_allclose(got, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)
    head.residual_bias.fill_(-100)
    assert (head.expression(basis, composition) == 0).all()


def test_the_waves_stand_for_a_gaussian_kernel(inputs):
    features, _, _ = inputs
    config = dataclasses.replace(CONFIG, random_features=200_000, kernel_gamma=0.07)
    head = ContextHead(config, n_features=V, n_local=LOCAL, n_types=TYPES, n_genes=GENES, seed=3)
    z = features[:8]
    basis = head.basis(z)
    assert torch.equal(basis[:, :V], z)
    waves = basis[:, V:].double().numpy()
    square = ((z.numpy()[:, None] - z.numpy()[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(waves @ waves.T / 200_000, np.exp(-0.07 * square / V), atol=0.015)


def test_features_are_standardised_and_outliers_held(inputs):
    features, _, _ = inputs
    head = random_head()
    features = features.clone()
    features[0, 0], features[1, 1], features[2, 2] = float("nan"), 1e6, -float("inf")
    z = head.basis(features)[:, :V].numpy()
    expected = (features.numpy() - head.center.numpy()) / head.scale.numpy()
    np.testing.assert_allclose(z, np.clip(np.nan_to_num(expected, nan=0.0), -5, 5), rtol=1e-5, atol=1e-6)
    assert (z[0, 0], z[1, 1], z[2, 2]) == (0, 5, -5)


def test_the_seed_decides_the_waves():
    one, same, other = (random_head(seed) for seed in (1, 1, 2))
    assert torch.equal(one.direction, same.direction)
    assert torch.equal(one.phase, same.phase)
    assert not torch.equal(one.direction, other.direction)


def test_the_state_dict_holds_everything(inputs):
    features, logits, composition = inputs
    head, other = random_head(1), random_head(2)
    other.load_state_dict(head.state_dict())
    for h in (head, other):
        h.eval()
    assert torch.equal(
        head.expression(head.basis(features), composition), other.expression(other.basis(features), composition)
    )
    assert torch.equal(head.evidence(logits, head.basis(features)), other.evidence(logits, other.basis(features)))
