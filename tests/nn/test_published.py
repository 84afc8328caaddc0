"""The published network beyond the stored outputs: unusual patches, pooling, the folded attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork, index_nuclei, patch_mean, pool_nuclei
from ghistpy.nn.published_losses import TypeRoles, published_losses

N_GENES, N_TYPES = 7, 3


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = GHISTConfig.published(width_factor=1 / 16, embedding=16)
    return PublishedNetwork(config, N_GENES, N_TYPES).eval()


def _patches(n=3, side=32, seed=0):
    """Images, and labels with a few square nuclei whose ids are neither small nor consecutive."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, side, side), dtype=np.int64)
    for patch in labels:
        for name in rng.choice(2**40, size=5, replace=False) + 1:
            y, x = rng.integers(0, side - 6, size=2)
            patch[y : y + rng.integers(2, 7), x : x + rng.integers(2, 7)] = name
    return torch.from_numpy(rng.standard_normal((n, 3, side, side), dtype=np.float32)), torch.from_numpy(labels)


def _loop_means(features, labels):
    """Independent reference: one nucleus after the other."""
    rows = []
    for patch, label in zip(features.numpy(), labels.numpy(), strict=True):
        rows += [patch[:, label == name].mean(axis=1) for name in np.unique(label) if name != 0]
    return np.array(rows)


def test_pooling_equals_a_plain_loop():
    _, labels = _patches()
    features = torch.randn(3, 11, 32, 32, generator=torch.Generator().manual_seed(1))
    for layout in (torch.contiguous_format, torch.channels_last):
        pooled = pool_nuclei(features.to(memory_format=layout), index_nuclei(labels))
        np.testing.assert_allclose(pooled.numpy(), _loop_means(features, labels), atol=1e-6)


def test_index_orders_by_patch_then_id_and_keeps_large_ids():
    _, labels = _patches()
    nuclei = index_nuclei(labels)
    expected = [(i, name) for i, patch in enumerate(labels.numpy()) for name in np.unique(patch) if name]
    assert list(zip(nuclei.patch.tolist(), nuclei.ids.tolist(), strict=True)) == expected
    assert nuclei.ids.max() > 2**31
    area = [int((labels[i] == name).sum()) for i, name in expected]
    assert nuclei.area.tolist() == area
    inside = nuclei.rows > 0
    assert torch.equal(inside, labels > 0)
    assert torch.equal(nuclei.ids[nuclei.rows[inside] - 1], labels[inside])


def test_neighbouring_ids_above_float_precision_stay_apart():
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[0, :4, :4], labels[0, 8:, 8:] = 2**62, 2**62 + 1
    assert index_nuclei(labels).ids.tolist() == [2**62, 2**62 + 1]


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="labels: expected integers, got torch.float32"):
        index_nuclei(torch.zeros(1, 16, 16))


def test_fully_covered_patch_keeps_every_nucleus_and_shifts_nobody(network):
    image, labels = _patches()
    covered = labels.clone()
    covered[0, :, :16], covered[0, :, 16:] = 5, 9
    both = network(image, covered)
    assert both.nuclei.ids[:2].tolist() == [5, 9]
    assert both.nuclei.per_patch[0] == 2
    others = network(image[1:], covered[1:])
    torch.testing.assert_close(both.expression[2:], others.expression, rtol=1e-5, atol=1e-6)
    means = _loop_means(image, covered)
    np.testing.assert_allclose(pool_nuclei(image, both.nuclei).numpy(), means, atol=1e-6)


def test_no_nucleus_and_one_nucleus(network):
    image, labels = _patches()
    none = network(image, torch.zeros_like(labels))
    assert none.expression.shape == (0, N_GENES)
    assert none.type_logits.shape == (0, N_TYPES)
    assert none.composition.isfinite().all()
    one = torch.zeros_like(labels)
    one[1, 3, 3] = 2**33
    out = network(image, one)
    assert out.nuclei.ids.tolist() == [2**33]
    assert out.nuclei.per_patch.tolist() == [0, 1, 0]
    assert out.expression.isfinite().all()


def test_patch_order_and_batch_size_do_not_matter(network):
    image, labels = _patches(n=4)
    whole = network(image, labels)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = network(image[order], labels[order])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), whole.nuclei.per_patch.cumsum(0)])
    rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
    assert torch.equal(shuffled.nuclei.ids, whole.nuclei.ids[rows])
    torch.testing.assert_close(shuffled.expression, whole.expression[rows], rtol=1e-5, atol=1e-6)
    single = torch.cat([network(image[i : i + 1], labels[i : i + 1]).expression for i in range(4)])
    torch.testing.assert_close(single, whole.expression, rtol=1e-5, atol=1e-6)


def test_attention_is_the_affine_map(network):
    """The unfolded block, as torch's own attention computes it on a sequence of length one."""
    refine = network.refine_expr
    x = torch.randn(9, N_GENES)
    composition = torch.softmax(torch.randn(9, N_TYPES), dim=1)
    query = refine.query_transform(composition)[None]
    key, value = refine.key_transform(x)[None], refine.value_transform(x)[None]
    attended = refine.attention(query, key, value, need_weights=False)[0]
    torch.testing.assert_close(refine(x)[None], refine.linear_out(attended), rtol=1e-5, atol=1e-6)


def test_patch_mean_of_an_empty_patch_is_zero():
    labels = torch.zeros(2, 16, 16, dtype=torch.int64)
    labels[1, 0, 0], labels[1, 5, 5] = 3, 8
    mean = patch_mean(torch.tensor([[1.0], [5.0]]), index_nuclei(labels))
    assert mean.tolist() == [[0.0], [3.0]]


def test_sides_that_cannot_be_halved_four_times(network):
    with pytest.raises(ValueError, match="40 x 32 px are not divisible by 16"):
        network(torch.zeros(1, 3, 40, 32), torch.zeros(1, 40, 32, dtype=torch.int64))


@pytest.mark.parametrize(
    ("use_reference", "reference", "message"),
    [
        (True, None, "use_reference=True needs reference profiles"),
        (False, np.ones((2, N_GENES)), "use_reference=False takes no"),
        (True, np.ones((2, N_GENES + 1)), r"expected \(profiles, 7 genes\), got shape \(2, 8\)"),
        (True, np.full((2, N_GENES), np.nan), "holds NaN"),
    ],
)
def test_bad_reference(use_reference, reference, message):
    config = GHISTConfig.published(width_factor=1 / 64, embedding=8, use_reference=use_reference)
    with pytest.raises(ValueError, match=message):
        PublishedNetwork(config, N_GENES, N_TYPES, reference)


def test_the_default_config_is_refused():
    with pytest.raises(ValueError, match="architecture is 'default'"):
        PublishedNetwork(GHISTConfig(), N_GENES, N_TYPES)


def _batch(network, seed=0):
    image, labels = _patches(seed=seed)
    nuclei = index_nuclei(labels)
    rng = torch.Generator().manual_seed(seed)
    expression = torch.rand(len(nuclei.ids), N_GENES, generator=rng) * 5
    cell_type = torch.randint(0, N_TYPES, (len(nuclei.ids),), generator=rng)
    type_map = torch.cat([torch.zeros(1, dtype=torch.int64), cell_type + 1])[nuclei.rows]
    return network(image, labels, expression=expression), expression, cell_type, type_map


def test_roles_by_index_equal_a_plain_computation(network):
    out, expression, cell_type, type_map = _batch(network)
    terms = published_losses(out, expression, cell_type, type_map, TypeRoles(immune=(2,), invasive=(0, 1)))
    for term, branch, types in (
        (terms.expression_immune, out.expression_immune, [2]),
        (terms.expression_invasive, out.expression_invasive, [0, 1]),
    ):
        rows = [i for i, t in enumerate(cell_type.tolist()) if t in types]
        expected = ((branch[rows] - expression[rows]) ** 2).mean() / N_TYPES
        torch.testing.assert_close(term, expected)
    torch.testing.assert_close(terms.total, sum(terms))


def test_types_without_a_role_give_zero_but_keep_the_graph(network):
    out, expression, cell_type, type_map = _batch(network)
    terms = published_losses(out, expression, cell_type, type_map, TypeRoles.from_names(["a", "b", "c"]))
    assert terms.expression_immune.item() == 0
    assert terms.expression_invasive.requires_grad


def test_composition_loss_by_hand(network):
    out, expression, cell_type, type_map = _batch(network)
    terms = published_losses(out, expression, cell_type, type_map, TypeRoles())
    weight = out.nuclei.per_patch / out.nuclei.per_patch.sum()
    estimate = (weight[:, None] * out.composition).sum(0).detach().double().numpy()
    measured = np.bincount(cell_type.numpy(), minlength=N_TYPES) / len(cell_type)
    p, q = (np.exp(v) / np.exp(v).sum() for v in (measured, estimate))
    np.testing.assert_allclose(
        terms.composition_estimate.item(), (p * np.log(p / q)).sum() / N_TYPES, rtol=1e-4, atol=1e-7
    )
    assert not terms.composition_argmax.requires_grad


def test_losses_say_what_is_missing(network):
    out, expression, cell_type, type_map = _batch(network)
    with pytest.raises(ValueError, match="has no nucleus"):
        published_losses(out, expression[:0], cell_type[:0], type_map, TypeRoles())
    with pytest.raises(ValueError, match="called with expression="):
        published_losses(out._replace(segmentation=None), expression, cell_type, type_map, TypeRoles())


def test_mixed_precision_pools_in_float32(network):
    image, labels = _patches()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        out = network(image, labels, segmentation=False)
    exact = network(image, labels)
    assert out.pooled.dtype == torch.float32
    # bfloat16 has 8 bits: about 1 % of the scale of the features
    error = (out.pooled - exact.pooled).norm() / exact.pooled.norm()
    assert error < 0.02
    assert F.cosine_similarity(out.embedding.float(), exact.embedding).min() > 0.99
