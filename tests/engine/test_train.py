"""Training of the default network: it learns, repeats itself, resumes exactly, and sees nothing that is held out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.data.sampling import Draw, Labelled, TrainingBatch, WindowDataset, WindowGrid
from ghistpy.data.slide import SpotTargets
from ghistpy.data.targets import instances_of
from ghistpy.data.windows import LOCAL_FEATURES, prepare
from ghistpy.engine.train import TrainOptions, losses, train_network
from ghistpy.geometry import MemorySource, find_nuclei
from ghistpy.nn.cellnet import CellNet
from ghistpy.nn.config import GHISTConfig

CONFIG = GHISTConfig(widths=(6, 8), embedding=12, decoder=8, random_features=8, context_um=(20.0,))
# the upper half is trained on, the lower half validates
LOWER, UPPER = np.array([[100.0, -np.inf, np.inf, np.inf]]), np.array([[-np.inf, -np.inf, 100.0, np.inf]])


def train(slides, validation=(), *, config=CONFIG, spot_diameter_um=None, **options):
    n_genes = slides[0].targets.counts.shape[1]
    values = {"max_epochs": 3, "accelerator": "cpu", "progress": False, "batch_size": 2, "windows_per_epoch": 4}
    return train_network(
        slides,
        validation,
        config,
        n_genes=n_genes,
        n_types=3,
        spot_diameter_um=spot_diameter_um,
        options=TrainOptions(**{**values, **options}),
    )


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def changed(slide, **fields):
    return dataclasses.replace(slide, targets=dataclasses.replace(slide.targets, **fields))


@pytest.fixture(scope="module")
def halves(training_slide_maker):
    """Training and validation part of one slide."""
    return [training_slide_maker(excluded_um=LOWER)], [training_slide_maker(excluded_um=UPPER)]


@pytest.fixture(scope="module")
def undisturbed(halves):
    return train(*halves, max_epochs=5)


def test_it_learns(halves):
    trained = train(*halves, max_epochs=12, windows_per_epoch=6, learning_rate=2e-2)
    first, last = trained.history[0], trained.history[-1]
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert min(row["val_loss"] for row in trained.history) < 0.8 * first["val_loss"]
    assert last["val_types"] < 0.7 * np.log(3)  # below that of knowing nothing
    assert last["val_expression"] < 0.9  # 1 is the mean of the training cells
    assert not trained.network.training


def test_history_has_a_row_of_train_and_val_losses_per_epoch(undisturbed):
    assert [row["epoch"] for row in undisturbed.history] == [0, 1, 2, 3, 4]
    names = {f"{part}_{loss}" for part in ("train", "val") for loss in ("loss", "expression", "types")}
    for row in undisturbed.history:
        assert set(row) == names | {"epoch"}
        assert np.isfinite(list(row.values())).all()
        for part in ("train", "val"):
            total = row[f"{part}_expression"] + 0.5 * row[f"{part}_types"]
            assert row[f"{part}_loss"] == pytest.approx(total, rel=1e-5)


def test_the_seed_decides_and_nothing_else(halves):
    state = torch.random.get_rng_state()
    first = train(*halves, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second = train(*halves, seed=1)
    assert same_weights(first.network, second.network)
    assert first.history == second.history
    assert not same_weights(first.network, train(*halves, seed=2).network)


class Interrupt(RuntimeError):
    pass


def interrupt(hook, epoch):
    """A callback that raises in a hook of an epoch."""
    from lightning.pytorch.callbacks import Callback

    def stop(self, trainer, *args):
        if trainer.current_epoch == epoch:
            raise Interrupt

    return type("Stop", (Callback,), {hook: stop})()


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("on_train_epoch_start", 2), ("on_train_batch_end", 2), ("on_validation_end", 2), ("on_train_epoch_end", 3)],
)
def test_a_resumed_training_is_exact(halves, undisturbed, tmp_path, hook, epoch):
    with pytest.raises(Interrupt):
        train(*halves, max_epochs=5, checkpoint_dir=tmp_path, callbacks=(interrupt(hook, epoch),))
    seen = []
    resumed = train(*halves, max_epochs=5, checkpoint_dir=tmp_path, callbacks=(epochs_run(seen),))
    assert seen == list(range(epoch, 5))
    assert resumed.history == undisturbed.history
    assert same_weights(resumed.network, undisturbed.network)


def epochs_run(seen):
    from lightning.pytorch.callbacks import Callback

    class Note(Callback):
        def on_train_epoch_start(self, trainer, module):
            seen.append(trainer.current_epoch)

    return Note()


def test_interrupted_twice_and_without_validation(training_slide_maker, tmp_path):
    slides = [training_slide_maker()]
    whole = train(slides, max_epochs=4)
    for epoch in (1, 3):
        with pytest.raises(Interrupt):
            train(slides, max_epochs=4, checkpoint_dir=tmp_path, callbacks=(interrupt("on_train_batch_end", epoch),))
    resumed = train(slides, max_epochs=4, checkpoint_dir=tmp_path)
    assert resumed.history == whole.history
    assert same_weights(resumed.network, whole.network)


@pytest.fixture(scope="module")
def contrary(halves):
    """Validation cells with the types and counts of others: the more is learned, the worse it gets."""
    train_slides, (validation,) = halves
    swapped = 2 - validation.targets.cell_type
    return train_slides, [changed(validation, cell_type=swapped, counts=5 * validation.targets.counts[:, ::-1])]


def test_early_stopping_goes_on_where_it_was(contrary, tmp_path):
    """And what ended early is not continued by the same call."""
    options = {"max_epochs": 12, "patience": 3, "learning_rate": 2e-2}
    whole = train(*contrary, **options)
    best = int(np.argmin([row["val_loss"] for row in whole.history]))
    assert len(whole.history) == best + 4 < 12
    with pytest.raises(Interrupt):
        train(*contrary, checkpoint_dir=tmp_path, callbacks=(interrupt("on_train_epoch_start", best + 2),), **options)
    for _ in range(2):
        resumed = train(*contrary, checkpoint_dir=tmp_path, **options)
        assert resumed.history == whole.history
        assert same_weights(resumed.network, whole.network)


def test_a_finished_training_is_read_back(halves, undisturbed, tmp_path):
    train(*halves, max_epochs=5, checkpoint_dir=tmp_path)
    seen = []
    again = train(*halves, max_epochs=5, checkpoint_dir=tmp_path, callbacks=(epochs_run(seen),))
    assert seen == []
    assert again.history == undisturbed.history
    assert same_weights(again.network, undisturbed.network)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("last.ckpt", b"PK\x03\x04 cut off", r"last.ckpt cannot be read, it is damaged .* remove the folder"),
        ("training.json", b"{", r"has last.ckpt but no readable training.json \(.*\); give an empty folder"),
        ("training.json", None, "has last.ckpt but no readable training.json"),
        ("training.json", b"[1]", "has last.ckpt but no readable training.json"),
    ],
)
def test_a_damaged_checkpoint_folder_is_named(halves, tmp_path, name, content, message):
    with pytest.raises(Interrupt):
        train(*halves, max_epochs=2, checkpoint_dir=tmp_path, callbacks=(interrupt("on_train_epoch_start", 1),))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train(*halves, max_epochs=2, checkpoint_dir=tmp_path)


def test_the_weights_are_those_of_the_best_epoch(contrary):
    from lightning.pytorch.callbacks import Callback

    class Keep(Callback):
        def on_validation_end(self, trainer, module):
            weights.append({k: v.clone() for k, v in module.network.state_dict().items()})

    weights = []
    trained = train(*contrary, max_epochs=6, learning_rate=2e-2, callbacks=(Keep(),))
    best = int(np.argmin([row["val_loss"] for row in trained.history]))
    assert best < len(weights) - 1
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[best][name]), name


def test_the_checkpoints_of_another_training_are_refused(halves, tmp_path):
    (slide,), validation = halves
    train([slide], validation, max_epochs=1, checkpoint_dir=tmp_path)
    other_image = dataclasses.replace(slide, image=MemorySource(255 - slide.image._array))
    others = {
        "counts": changed(slide, counts=slide.targets.counts + 1),
        "types": changed(slide, cell_type=2 - slide.targets.cell_type),
        "name": dataclasses.replace(slide, name="t"),
        "µm/px": dataclasses.replace(slide, mpp=0.6),
        "image": other_image,
        "held out": dataclasses.replace(slide, excluded_um=LOWER + [[-20, 0, 0, 0]]),
    }
    for other in others.values():
        with pytest.raises(ValueError, match=r"checkpoint_dir=.* holds a training of other slides, settings or seed"):
            train([other], validation, max_epochs=1, checkpoint_dir=tmp_path)
    for options in ({"seed": 5}, {"learning_rate": 1e-4}, {"max_epochs": 2}, {"weight_decay": 0.1}, {"patience": 1}):
        with pytest.raises(ValueError, match="holds a training of other slides, settings or seed"):
            train([slide], validation, **{"max_epochs": 1, "checkpoint_dir": tmp_path, **options})
    with pytest.raises(ValueError, match="holds a training"):
        train([slide], validation, max_epochs=1, checkpoint_dir=tmp_path, config=dataclasses.replace(CONFIG, decoder=9))


def test_pixels_nuclei_and_counts_of_held_out_regions_do_not_matter(training_slide_maker, halves):
    _, validation = halves
    slide = training_slide_maker(excluded_um=LOWER)
    rng = np.random.default_rng(0)
    image, labels = slide.image._array.copy(), slide.labels._array.copy()
    image[:, 200:] = rng.integers(0, 256, (3, 184, 384))
    # nuclei that reach over the line are left out whole, so theirs must stay as they are
    free = np.ones_like(labels, dtype=bool)
    free[:200] = False
    free &= ~np.isin(labels, np.unique(labels[:200]))
    labels[free] = np.where(rng.random(free.sum()) < 0.5, 10**9, 0)
    counts, hidden = slide.targets.counts.copy(), slide.nuclei.centroid_px[:, 0] > 215
    counts[hidden] = 777
    noisy = changed(training_slide_maker(excluded_um=LOWER), counts=counts)
    source = MemorySource(labels)
    noisy = dataclasses.replace(noisy, image=MemorySource(image), labels=source, nuclei=find_nuclei(source))
    plain = train([slide], validation, max_epochs=2)
    same = train([noisy], validation, max_epochs=2)
    assert same_weights(plain.network, same.network)
    assert plain.history == same.history
    # and without the rectangle they do
    seen = train([dataclasses.replace(noisy, excluded_um=np.zeros((0, 4)))], validation, max_epochs=2)
    assert not same_weights(plain.network, seen.network)


def test_a_gene_that_a_slide_lacks_has_no_part_in_it(training_slide_maker):
    """Two panels: values of what a slide did not measure change nothing, values of what it did do."""
    first, second = training_slide_maker(0, "a"), training_slide_maker(1, "b")
    mask = np.array([True, True, True, False, False])
    slides = [first, changed(second, gene_mask=mask)]

    def garbled(columns):
        counts = second.targets.counts.copy()
        counts[:, columns] = 1000
        return [first, changed(second, gene_mask=mask, counts=counts)]

    plain = train(slides, max_epochs=2)
    assert same_weights(plain.network, train(garbled(slice(3, None)), max_epochs=2).network)
    assert not same_weights(plain.network, train(garbled(slice(1, 2)), max_epochs=2).network)


@pytest.mark.parametrize("spots", [False, True])
def test_losses_equal_their_definition(training_slide_maker, spots):
    slide = prepare(training_slide_maker())
    if spots:
        group = np.random.default_rng(0).integers(0, 40, len(slide.nuclei))
        targets = SpotTargets(
            np.random.default_rng(1).poisson(5, (40, 5)).astype(np.float32),
            np.full(40, 500, np.float32),
            np.array([True, False, True, True, True]),
            slide.nuclei.ids,
            group,
            np.vstack([np.zeros((5, 3)), np.random.default_rng(2).dirichlet(np.ones(3), 35)]).astype(np.float32),
            np.zeros((40, 2)),
        )
        slide = dataclasses.replace(slide, targets=targets)
    else:
        types = slide.targets.cell_type.copy()
        types[::5] = -1
        slide = changed(slide, cell_type=types)
    instances = instances_of(slide, 3)
    labelled = Labelled(slide, instances, instances.values)
    grid = WindowGrid(0.5, CONFIG.stride, CONFIG.align_px, 384 + 64)
    dataset = WindowDataset([labelled], grid, whole_only=False)
    torch.manual_seed(0)
    network = CellNet(CONFIG, n_types=3, n_genes=5, n_local=len(LOCAL_FEATURES)).eval()
    batch = TrainingBatch([dataset[Draw(0, -32, -32, -1)], dataset[Draw(0, 96, 96, -1)]], CONFIG.stride)
    with torch.no_grad():
        expression, types, n = losses(network, batch)
        out = network(batch.od, batch.coverage, batch.local)
    group, proba = batch.group.numpy(), torch.softmax(out.type_logits, 1).double().numpy()
    squared, entropy = [], []
    for i in range(n):
        mean = out.expression.double().numpy()[group == i].mean(axis=0)
        squared += ((mean - batch.values[i].numpy()) ** 2)[batch.mask[i].numpy()].tolist()
        share = batch.types[i].numpy()
        if share.any():
            entropy.append(-(share * np.log(proba[group == i].mean(axis=0))).sum())
    assert n == group.max() + 1 > 30
    assert len(entropy) < n
    assert float(expression) == pytest.approx(np.mean(squared), rel=1e-4)
    assert float(types) == pytest.approx(np.mean(entropy), rel=1e-4)


def test_no_epoch_gives_the_start_weights(halves):
    trained = train(*halves, max_epochs=0)
    assert trained.history == []
    assert not trained.network.training
