"""Training of the published network at reduced width: it learns, resumes exactly, and nothing leaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.data.published import TrainingPatches, training_slide
from ghistpy.data.slide import CellTargets, Slide, SpotTargets
from ghistpy.engine.train_published import train_published
from ghistpy.geometry import MemorySource, find_nuclei
from ghistpy.nn.config import GHISTConfig

GENES, TYPES = ["g1", "g2", "g3", "g4"], ["B", "Malignant", "Stroma"]
CONFIG = GHISTConfig.published(width_factor=1 / 16, embedding=32, patch_px=32)
COLOURS = np.array([[110, 60, 140], [190, 90, 150], [90, 150, 190]], dtype=np.uint8)


def _slide(seed=0, excluded=None, noise_inside=False):
    """Nuclei on a lattice, coloured by type; counts follow the type."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((96, 96), dtype=np.int64)
    image = np.full((3, 96, 96), 225, dtype=np.uint8) + rng.integers(0, 20, (3, 96, 96), dtype=np.uint8)
    types = rng.integers(0, 3, 36)
    for i, t in enumerate(types):
        y, x = 16 * (i // 6) + 3, 16 * (i % 6) + 3
        labels[y : y + 9, x : x + 9] = 2**35 + 11 * i
        image[:, y : y + 9, x : x + 9] = COLOURS[t][:, None, None]
    profiles = np.array([[20, 1, 0, 2], [0, 15, 3, 1], [2, 0, 12, 8]])
    counts = rng.poisson(profiles[types]).astype(np.float32)
    if noise_inside:
        image[:, :, 64:] = rng.integers(0, 256, (3, 96, 32))
        labels[:, 65:] = rng.integers(0, 3, (96, 31)) + 2**35 + 11 * 4
        counts[np.arange(36) % 6 >= 4] = 99
    source = MemorySource(labels)
    nuclei = find_nuclei(source)
    ids = 2**35 + 11 * np.arange(36)
    targets = CellTargets(ids, counts, np.ones(4, dtype=bool), types)
    boxes = np.zeros((0, 4)) if excluded is None else np.array(excluded, dtype=float)
    return Slide("s", MemorySource(image), source, 0.5, nuclei, targets, boxes)


def _train(slides, config=CONFIG, **options):
    values = {
        "genes": GENES, "cell_types": TYPES, "max_epochs": 3, "batch_size": 3, "accelerator": "cpu",
        "progress": False, **options,
    }  # fmt: skip
    return train_published(slides, config, **values)


def _assert_same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_loss_falls_and_rate_falls_linearly():
    before = torch.random.get_rng_state()
    network, extras, history = _train([_slide()], max_epochs=10)
    assert torch.equal(before, torch.random.get_rng_state())
    losses = [epoch["train_loss"] for epoch in history]
    assert [epoch["epoch"] for epoch in history] == list(range(10))
    np.testing.assert_allclose([epoch["learning_rate"] for epoch in history], 1e-3 * (1 - np.arange(10) / 10))
    assert losses[-1] < 0.85 * losses[0]
    assert history[-1]["segmentation"] < history[0]["segmentation"]
    terms = [v for k, v in history[0].items() if k not in ("epoch", "learning_rate", "train_loss")]
    assert len(terms) == 10
    assert losses[0] == pytest.approx(sum(terms), rel=1e-5)
    assert not network.training
    assert set(extras) == {"image_mean", "image_std"}


def test_resumed_run_is_exact(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, module):
            assert trainer.callback_metrics["train_loss"] > 0
            trainer.should_stop = trainer.current_epoch == 0

    whole = _train([_slide()])
    stopped = _train([_slide()], checkpoint_dir=tmp_path, callbacks=[Stop()])
    assert len(stopped[2]) == 1
    resumed = _train([_slide()], checkpoint_dir=tmp_path)
    assert resumed[2] == whole[2]
    _assert_same_weights(resumed[0], whole[0])
    with pytest.raises(ValueError, match=r"another run \(data differ\); give another folder"):
        _train([_slide(seed=1)], checkpoint_dir=tmp_path)


def test_held_out_pixels_do_not_matter():
    """Noise, other nuclei and other counts behind the rectangle: the same weights, bit by bit."""
    # µm: columns 64 to 96 px
    box = [[0.0, 32.0, 48.0, 48.0]]
    plain = _train([_slide(excluded=box)], max_epochs=2)
    noisy = _train([_slide(excluded=box, noise_inside=True)], max_epochs=2)
    _assert_same_weights(plain[0], noisy[0])
    for key in plain[1]:
        np.testing.assert_array_equal(plain[1][key], noisy[1][key])
    # and without the rectangle they do
    seen = _train([_slide(noise_inside=True)], max_epochs=2)
    assert seen[1]["image_std"].tolist() != plain[1]["image_std"].tolist()


def test_seed_decides():
    first, same, other = (_train([_slide()], max_epochs=1, seed=seed)[0] for seed in (1, 1, 2))
    _assert_same_weights(first, same)
    assert not torch.equal(first.mlp_hist.mlp[0].weight, other.mlp_hist.mlp[0].weight)


def test_reference_is_kept_for_prediction():
    reference = np.random.default_rng(0).random((5, 4))
    config = dataclasses.replace(CONFIG, use_reference=True)
    network, extras, _ = _train([_slide()], config, reference=reference, max_epochs=1)
    np.testing.assert_allclose(extras["reference"], reference, rtol=1e-6)
    np.testing.assert_allclose(network.reference.numpy(), 5 * reference, rtol=1e-6)


def _patches(slide, **options):
    usable = training_slide(slide, n_genes=4, n_types=3, mpp=0.5, expression_scale=5.0, min_nucleus_px=10)
    return TrainingPatches([usable], mpp=0.5, patch_px=32, seed=0, **options)


def test_standardisation_is_the_mean_over_training_patches():
    slide = _slide()
    patches = _patches(slide)
    image = slide.image._array.astype(np.float64)
    tiles = [image[:, y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)]
    np.testing.assert_allclose(patches.image_mean, np.mean([t.mean((1, 2)) for t in tiles], axis=0), rtol=1e-6)
    np.testing.assert_allclose(patches.image_std, np.mean([t.std((1, 2)) for t in tiles], axis=0), rtol=1e-6)


def test_augmented_patches_keep_pixels_nuclei_and_targets_together():
    slide = _slide()
    patches = _patches(slide)
    seen = set()
    for epoch in range(6):
        patches.epoch = epoch
        batch = patches[4]
        rgb = batch.image.numpy() * patches.image_std[:, None, None] + patches.image_mean[:, None, None]
        inside = batch.rows.numpy() > 0
        types = slide.targets.cell_type[batch.rows.numpy()[inside] - 1]
        np.testing.assert_allclose(rgb[:, inside], COLOURS[types].T, atol=1e-3)
        np.testing.assert_array_equal(batch.type_map.numpy()[inside], types + 1)
        assert (batch.type_map.numpy()[~inside] == 0).all()
        rows = np.unique(batch.rows.numpy()[inside]) - 1
        np.testing.assert_array_equal(batch.cell_type.numpy(), slide.targets.cell_type[rows])
        np.testing.assert_allclose(batch.expression.numpy(), 5 * np.log1p(slide.targets.counts[rows]), rtol=1e-6)
        seen.add(batch.rows.numpy().tobytes())
        np.testing.assert_array_equal(batch.rows.numpy(), patches[4].rows.numpy())
    assert len(seen) > 2


def test_targets_are_matched_by_id_and_what_is_left_out_is_counted(caplog):
    slide = _slide()
    order = np.random.default_rng(0).permutation(36)
    keep = order[:30]
    types = slide.targets.cell_type.copy()
    types[keep[:4]] = -1
    targets = CellTargets(slide.targets.ids[keep], slide.targets.counts[keep], np.ones(4, bool), types[keep])
    with caplog.at_level("INFO", logger="ghistpy"):
        usable = training_slide(
            dataclasses.replace(slide, targets=targets, excluded_um=np.array([[0.0, 0.0, 8.0, 8.0]])),
            n_genes=4, n_types=3, mpp=0.5, expression_scale=5.0, min_nucleus_px=10,
        )  # fmt: skip
    expected = sorted(set(keep[4:].tolist()) - {0})
    assert usable.slide.nuclei.ids.tolist() == [2**35 + 11 * i for i in expected]
    np.testing.assert_allclose(usable.expression, 5 * np.log1p(slide.targets.counts[expected]), rtol=1e-6)
    np.testing.assert_array_equal(usable.cell_type, slide.targets.cell_type[expected])
    assert f"training on {len(expected)} of 36 nuclei; left out: 1 touch a held-out region" in caplog.text
    assert "4 without a known type" in caplog.text


def test_small_nuclei_are_left_out():
    slide = _slide()  # nuclei of 81 px at 0.5 µm/px
    options = {"n_genes": 4, "n_types": 3, "expression_scale": 5.0}
    assert len(training_slide(slide, mpp=0.25, min_nucleus_px=324, **options).slide.nuclei) == 36
    with pytest.raises(ValueError, match="none of 36 nuclei can be trained on .* at least 82 px"):
        training_slide(slide, mpp=0.5, min_nucleus_px=82, **options)


def _with(slide, **values):
    return dataclasses.replace(slide, targets=dataclasses.replace(slide.targets, **values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dataclasses.replace(s, targets=None), "learns from measured cells, got NoneType"),
        (
            lambda s: dataclasses.replace(
                s, targets=SpotTargets(*(np.zeros(0) for _ in range(5)), proportions=None, xy_um=np.zeros((0, 2)))
            ),
            "got SpotTargets; use supervision='cells'",
        ),
        (lambda s: _with(s, gene_mask=np.array([True, False, True, True])), "with 1 of 4 genes not measured"),
        (lambda s: _with(s, counts=s.targets.counts[:, :3]), r"counts have shape \(36, 3\)"),
        (lambda s: _with(s, counts=np.full((36, 4), np.nan, np.float32)), "counts hold NaN"),
        (lambda s: _with(s, counts=s.targets.counts - 1), "negative"),
        (lambda s: _with(s, cell_type=s.targets.cell_type + 3), "is not below the 3 cell types"),
        (lambda s: _with(s, ids=s.targets.ids + 1), r"none of 36 nuclei can be trained on \(0 outside"),
        (lambda s: _with(s, cell_type=np.full(36, -1)), "0 of them a known type"),
    ],
)
def test_bad_targets(change, message):
    with pytest.raises(ValueError, match=message):
        _train([change(_slide())])


def test_bad_arguments():
    with pytest.raises(ValueError, match="slides: got none"):
        _train([])
    with pytest.raises(ValueError, match="max_epochs=0"):
        _train([_slide()], max_epochs=0)
    with pytest.raises(ValueError, match="seed=-1"):
        _train([_slide()], seed=-1)
    with pytest.raises(ValueError, match="architecture is 'default'"):
        _train([_slide()], GHISTConfig())
