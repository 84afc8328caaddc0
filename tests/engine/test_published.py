"""Prediction with the published network against a plain loop, and on unusual slides."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from ghistpy.data.patches import PatchReader, patch_starts, plan_patches
from ghistpy.data.slide import Slide
from ghistpy.engine.options import RunOptions
from ghistpy.engine.published import predict_published
from ghistpy.engine.published_refine import refine_types
from ghistpy.geometry import MemorySource, find_nuclei
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork, patch_mean
from ghistpy.nn.published_losses import TypeRoles

GENES, TYPES = 6, ["B", "Myeloid", "T", "Malignant", "Epithelial"]
SIDE, OVERLAP = 64, 16
MEAN, STD = np.array([200.0, 170.0, 210.0]), np.array([30.0, 43.0, 25.0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = GHISTConfig.published(width_factor=1 / 16, embedding=16, patch_px=SIDE, overlap_px=OVERLAP)
    network = PublishedNetwork(config, GENES, len(TYPES)).eval()
    # untrained heads hardly tell nuclei apart: centre and spread the logits of both heads
    _, reader = _reader(_slide())
    patches = [reader[i] for i in range(len(reader))]
    image, rows = (torch.from_numpy(np.stack([getattr(p, k) for p in patches])) for k in ("image", "rows"))
    with torch.no_grad():
        out = network(image, rows)
        mean = patch_mean(out.embedding, out.nuclei)
        for head, logits in ((network.mlp_hist, out.type_logits), (network.estimate_comp, network.estimate_comp(mean))):
            spread = 2 / logits.std(0)
            head.mlp[2].weight *= spread[:, None]
            head.mlp[2].bias.copy_((head.mlp[2].bias - logits.mean(0)) * spread)
    return network


def _slide(height=150, width=170, n=60, seed=0, mpp=0.5, dtype=np.int64):
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=dtype)
    for name in rng.choice(2**34, size=n, replace=False) + 1:
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        labels[y : y + rng.integers(4, 13), x : x + rng.integers(4, 13)] = name
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    image[:, labels > 0] //= 2
    return _of(image, labels, mpp)


def _reader(slide):
    grid = plan_patches(slide, mpp=0.5, side=SIDE, overlap=OVERLAP)
    return grid, PatchReader(slide, grid, MEAN, STD)


def _of(image, labels, mpp=0.5):
    source = MemorySource(labels)
    return Slide("s", MemorySource(image), source, mpp, find_nuclei(source))


def _predict(network, slide, *, batch_size=1, workers=1, **options):
    values = {"image_mean": MEAN, "image_std": STD, "roles": TypeRoles.from_names(TYPES), **options}
    values["options"] = RunOptions(batch_size=batch_size, workers=workers)
    return predict_published(network, slide, **values)


def _plain(network, slide, refine=2.0):
    """The published program: one patch after the other, then the largest copy of every id."""
    image = slide.image.read(_all(slide)).astype(np.float64)
    labels = slide.labels.read(_all(slide))
    best = {}
    for y in sorted(set(patch_starts(labels.shape[0], SIDE, OVERLAP))):
        for x in sorted(set(patch_starts(labels.shape[1], SIDE, OVERLAP))):
            patch = labels[y : y + SIDE, x : x + SIDE]
            if not patch.any():
                continue
            hist = (image[:, y : y + SIDE, x : x + SIDE] - MEAN[:, None, None]) / STD[:, None, None]
            with torch.inference_mode():
                out = network(torch.from_numpy(hist)[None].float(), torch.from_numpy(patch)[None])
            logits, composition = out.type_logits.numpy(), out.composition.numpy()
            refined = refine_types(
                logits.astype(float), composition.astype(float), np.zeros(len(logits), int),
                TypeRoles.from_names(TYPES), strength=refine,
            )  # fmt: skip
            for i, name in enumerate(np.unique(patch[patch > 0])):
                area = int((patch == name).sum())
                if name not in best or area > best[name][0]:
                    branch = out.expression_immune if refined.take_immune[i] else out.expression
                    best[name] = (area, branch[i].numpy() / 5, logits[i], composition[0], refined.cell_type[i])
    return best


def _all(slide):
    from ghistpy.geometry import Window

    return Window(0, 0, *slide.labels.shape)


@pytest.mark.data
def test_patch_starts_are_the_published_ones(data_dir):
    stored = json.loads((data_dir / "golden" / "model" / "ghist_misc_parity.json").read_text())["patch_starts"]
    for case in stored:
        assert patch_starts(case["w2"], case["width"], case["overlap"]) == case["starts"]


def test_patch_starts_of_a_short_axis():
    assert patch_starts(100, 256, 30) == [0]
    with pytest.raises(ValueError, match="length=0, patch=256, overlap=30"):
        patch_starts(0, 256, 30)


def test_planned_patches_hold_nuclei():
    slide = _slide(n=6)
    labels = slide.labels.read(_all(slide))
    grid = plan_patches(slide, mpp=0.5, side=SIDE, overlap=OVERLAP)
    planned = {tuple(corner) for corner in grid.corners.tolist()}
    every = {
        (y, x)
        for y in patch_starts(labels.shape[0], SIDE, OVERLAP)
        for x in patch_starts(labels.shape[1], SIDE, OVERLAP)
    }
    holding = {(y, x) for y, x in every if labels[y : y + SIDE, x : x + SIDE].any()}
    assert holding <= planned <= every
    assert len(holding) < len(every)
    # what is planned beyond that is touched by a box, give or take a pixel
    for y, x in planned:
        assert labels[max(y - 1, 0) : y + SIDE + 1, max(x - 1, 0) : x + SIDE + 1].any()


def test_prediction_equals_the_plain_loop(network):
    slide = _slide()
    ours, plain = _predict(network, slide), _plain(network, slide)
    assert ours.ids.tolist() == sorted(plain)
    assert ours.ids.max() > 2**31
    for i, key in ((1, "expression"), (3, "composition")):
        expected = np.array([plain[name][i] for name in ours.ids.tolist()])
        np.testing.assert_allclose(getattr(ours, key), expected, rtol=1e-4, atol=1e-5)
    logits = np.array([plain[name][2] for name in ours.ids.tolist()])
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.proba_raw, proba, rtol=1e-4, atol=1e-5)
    assert ours.cell_type.tolist() == [plain[name][4] for name in ours.ids.tolist()]
    assert (ours.cell_type != ours.cell_type_raw).any()
    np.testing.assert_allclose(ours.total, np.expm1(ours.expression).sum(axis=1), rtol=1e-5)
    # after refinement the probabilities still name the type, and still sum to one
    assert ours.proba.argmax(axis=1).tolist() == ours.cell_type.tolist()
    np.testing.assert_allclose(ours.proba.sum(axis=1), 1, rtol=1e-5)


def test_swapped_nuclei_take_the_immune_branch(network):
    slide = _slide()
    refined, raw = _predict(network, slide), _predict(network, slide, refine=0.0)
    assert (raw.cell_type == raw.cell_type_raw).all()
    swapped = (refined.cell_type != refined.cell_type_raw) & np.isin(refined.cell_type, [0, 1])
    assert swapped.any()
    differs = (refined.expression != raw.expression).any(axis=1)
    assert differs.tolist() == swapped.tolist()


def _assert_same(a, b, **tolerance):
    for field in dataclasses.fields(a):
        np.testing.assert_allclose(getattr(a, field.name), getattr(b, field.name), **tolerance)


def test_batch_size_workers_and_order_do_not_matter(network):
    slide = _slide()
    once = _predict(network, slide)
    _assert_same(once, _predict(network, slide, batch_size=5, workers=3), rtol=1e-4, atol=1e-5)
    grid = plan_patches(slide, mpp=0.5, side=SIDE, overlap=OVERLAP)
    order = np.random.default_rng(0).permutation(len(grid))
    shuffled = dataclasses.replace(grid, corners=grid.corners[order])
    _assert_same(once, _predict(network, slide, grid=shuffled, workers=0), rtol=0, atol=0)


def test_slide_smaller_than_a_patch_is_padded_with_white(network):
    small = _slide(height=40, width=50, n=5)
    labels, image = small.labels.read(_all(small)), small.image.read(_all(small))
    padded_labels = np.pad(labels, ((0, SIDE - 40), (0, SIDE - 50)))
    padded_image = np.pad(image, ((0, 0), (0, SIDE - 40), (0, SIDE - 50)), constant_values=255)
    ours = _predict(network, small)
    padded = _predict(network, _of(padded_image, padded_labels))
    np.testing.assert_allclose(ours.expression, padded.expression, rtol=1e-5, atol=1e-6)
    assert ours.ids.tolist() == padded.ids.tolist()


@pytest.mark.parametrize("kind", ["none", "one pixel", "covered", "uint64"])
def test_unusual_labels(network, kind):
    image = np.random.default_rng(0).integers(0, 256, (3, 80, 70), dtype=np.uint8)
    labels = np.zeros((80, 70), dtype=np.uint64 if kind == "uint64" else np.int32)
    if kind == "one pixel":
        labels[79, 69] = 7
    elif kind == "covered":
        labels[:40], labels[40:] = 3, 9
    elif kind == "uint64":
        labels[5:15, 5:15], labels[30:40, 30:40] = 2**62, 2**62 + 1
    prediction = _predict(network, _of(image, labels))
    assert prediction.ids.tolist() == sorted(set(labels[labels > 0].tolist()))
    for field in dataclasses.fields(prediction):
        value = getattr(prediction, field.name)
        assert len(value) == len(prediction.ids)
        assert np.isfinite(value).all()
    if kind == "uint64":
        assert not np.allclose(prediction.proba_raw[0], prediction.proba_raw[1])


def test_mpp_within_one_percent_is_taken_as_it_is(network):
    slide = _slide()
    rounded = _predict(network, dataclasses.replace(slide, mpp=0.4992))
    exact = _predict(network, slide)
    np.testing.assert_array_equal(rounded.expression, exact.expression)


def test_every_nucleus_survives_resampling(network):
    """At half the model's µm/px a nucleus of one pixel may miss every sample."""
    labels = np.zeros((160, 180), dtype=np.int64)
    labels[20:32, 30:44] = 5
    labels[101, 51], labels[100, 120] = 2**40, 2**40 + 1
    image = np.random.default_rng(0).integers(0, 256, (3, 160, 180), dtype=np.uint8)
    slide = _of(image, labels, mpp=0.25)
    prediction = _predict(network, slide)
    assert prediction.ids.tolist() == [5, 2**40, 2**40 + 1]
    grid, reader = _reader(slide)
    assert grid.scale == 2.0
    assert grid.corners.max() <= 90 - SIDE
    seen = set().union(*(np.unique(reader[p].rows).tolist() for p in range(len(reader))))
    assert seen == {0, 1, 2, 3}


def test_two_nuclei_on_one_model_pixel_are_reported(network, caplog):
    labels = np.zeros((160, 180), dtype=np.int64)
    labels[101, 51], labels[101, 50], labels[10:30, 10:30] = 3, 4, 5
    image = np.zeros((3, 160, 180), dtype=np.uint8)
    prediction = _predict(network, _of(image, labels, mpp=0.25))
    assert "1 nuclei share a model px" in caplog.text
    np.testing.assert_array_equal(prediction.expression[0], prediction.expression[1])


def test_standardised_patch_by_hand(network):
    slide = _slide()
    grid, reader = _reader(slide)
    patch = reader[1]
    y, x = grid.corners[1]
    pixels = slide.image.read(_all(slide))[:, y : y + SIDE, x : x + SIDE]
    np.testing.assert_allclose(patch.image, (pixels - MEAN[:, None, None]) / STD[:, None, None], rtol=1e-5)
    assert patch.image.dtype == np.float32
    labels = slide.labels.read(_all(slide))[y : y + SIDE, x : x + SIDE]
    named = np.concatenate([[0], slide.nuclei.ids])[patch.rows]
    np.testing.assert_array_equal(named, labels)


def test_unreadable_patch_is_named(network):
    class Broken(MemorySource):
        def read(self, window):
            raise OSError("disk gone")

    slide = _slide()
    broken = dataclasses.replace(slide, labels=Broken(slide.labels.read(_all(slide))))
    with pytest.raises(OSError, match=r"slide 's': patch Window\(y0=0, x0=0, y1=64, x1=64\).*disk gone"):
        _predict(network, broken)
