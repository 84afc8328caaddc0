"""Train the default network with Lightning: one CPU to several GPUs, the same call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ghistpy.data.sampling import (
    INSET_PX,
    Draw,
    Labelled,
    TrainingBatch,
    WindowDataset,
    WindowGrid,
    WindowSampler,
)
from ghistpy.data.slide import Slide
from ghistpy.data.targets import Instances, instances_of
from ghistpy.data.windows import LOCAL_FEATURES, prepare
from ghistpy.nn.cellnet import CellNet
from ghistpy.nn.config import GHISTConfig


@dataclass(frozen=True)
class TrainOptions:
    """How to train; what the network is stands in :class:`GHISTConfig`.

    ``patience`` epochs without a better validation loss end the training. With ``checkpoint_dir`` an
    interrupted training goes on where its last finished epoch ended.
    """

    max_epochs: int = 30
    patience: int = 8
    batch_size: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    windows_per_epoch: int | None = None
    seed: int = 0
    accelerator: str = "auto"
    devices: Any = "auto"
    precision: str = "32-true"
    num_workers: int = 0
    checkpoint_dir: str | Path | None = None
    callbacks: tuple[Any, ...] = field(default=())
    progress: bool = True


@dataclass(frozen=True)
class Trained:
    """The network with the weights of its best epoch, and one dict of losses per epoch."""

    network: CellNet
    history: list[dict[str, float]]


def train_network(
    train: Sequence[Slide],
    validation: Sequence[Slide],
    config: GHISTConfig,
    *,
    n_genes: int,
    n_types: int,
    spot_diameter_um: float | None = None,
    options: TrainOptions | None = None,
) -> Trained:
    """Train a :class:`CellNet` on slides with targets; stop early on the validation slides.

    The held-out rectangles of a slide are blanked first.

    Parameters
    ----------
    train, validation
        Slides with targets; the first are learned from, the second are only looked at. A slide may be in
        both, with other instances and other rectangles held out. Without ``validation`` the last epoch counts.
    config
        Settings of the network.
    n_genes, n_types
        Columns of the targets' counts and number of cell types.
    spot_diameter_um
        Given for spot supervision, where the nuclei of a spot are explained together.
    options
        How to train.

    Raises
    ------
    ValueError
        No training instance has a nucleus, or ``options.checkpoint_dir`` holds another or a damaged training.
    UnreadableError
        Part of an image or of labels cannot be read; it is named.
    """
    options = options or TrainOptions()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = CellNet(config, n_types=n_types, n_genes=n_genes, n_local=len(LOCAL_FEATURES))
    if options.max_epochs == 0:
        return Trained(network.eval(), [])
    raw = [(s, instances_of(s, n_types)) for s in map(prepare, train)]
    if not any(len(instances) for _, instances in raw):
        raise ValueError(
            f"none of the measured instances of {[s.name for s, _ in raw]} has a nucleus outside of what is held "
            "out, so there is nothing to train on; check that table and labels belong together, and the fold"
        )
    center, scale = _gene_moments([i for _, i in raw], n_genes)
    labelled = [_standardised(s, i, center, scale) for s, i in raw]
    held = [_standardised(s, instances_of(s, n_types), center, scale) for s in map(prepare, validation)]
    grid = WindowGrid.for_instances(spot_diameter_um, mpp=config.mpp, stride=config.stride, align=config.align_px)
    data = _Data(labelled, held, grid, options, spots=spot_diameter_um is not None)
    _measure_local(network, data)
    from ghistpy.engine.loop import run

    train_loader = data.loader(data.train, data.sampler)
    validation_loader = data.loader(data.held, None) if len(data.held) else None
    history = run(network, train_loader, validation_loader, options, _fingerprint(config, options, labelled, held))
    return Trained(network.eval(), history)


def _gene_moments(instances: Sequence[Instances], n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD of every gene over the instances of the slides that measured it."""
    count, total, square = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    for item in instances:
        values = item.values.astype(np.float64)
        count += item.gene_mask * len(values)
        total += np.where(item.gene_mask, values.sum(axis=0), 0)
        square += np.where(item.gene_mask, (values**2).sum(axis=0), 0)
    mean = total / np.maximum(count, 1)
    sd = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    return mean, np.where(sd > 1e-6, sd, 1.0)


def _standardised(slide: Slide, instances: Instances, center: np.ndarray, scale: np.ndarray) -> Labelled:
    return Labelled(slide, instances, ((instances.values - center) / scale).astype(np.float32))


class _Data:
    """Datasets and loaders of one training."""

    def __init__(
        self,
        train: Sequence[Labelled],
        held: Sequence[Labelled],
        grid: WindowGrid,
        options: TrainOptions,
        *,
        spots: bool,
    ) -> None:
        self.grid, self.options = grid, options
        n = sum(len(s.instances) for s in train)
        # About one look at every instance an epoch; a window of cells holds many.
        per_window = 1 if spots else max(1, _cells_per_window(train, grid))
        per_epoch = options.windows_per_epoch or int(np.clip(-(-n // per_window), options.batch_size, 2000))
        self.train = WindowDataset(train, grid, whole_only=spots)
        self.sampler = WindowSampler(train, grid, per_epoch=per_epoch, seed=options.seed)
        self.held = WindowDataset(held, grid, whole_only=spots)
        self.held.draws = _validation_draws(held, grid, spots=spots)

    def collate(self, items: list) -> TrainingBatch:
        """A batch; windows without a learnable nucleus add nothing to it."""
        return TrainingBatch(items, self.grid.stride)

    def loader(self, dataset: WindowDataset, sampler: WindowSampler | None) -> DataLoader:
        """Batches of a dataset."""
        return DataLoader(
            dataset,
            batch_size=self.options.batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.options.num_workers,
            # An iterator draws a number when it is made, which after a restart is at another moment: with a
            # generator of its own the stream of the dropout is left alone.
            generator=torch.Generator().manual_seed(self.options.seed),
        )


def _cells_per_window(train: Sequence[Labelled], grid: WindowGrid) -> int:
    cells = sum(len(s.instances) for s in train)
    area = sum(np.prod(np.array(s.slide.labels.shape) * s.slide.mpp / grid.mpp) for s in train)
    return int(cells / max(area, 1) * grid.side**2)


def _validation_draws(held: Sequence[Labelled], grid: WindowGrid, *, spots: bool) -> list[Draw]:
    """Fixed windows, not augmented: one per spot, or a lattice over the cells."""
    draws: dict[Draw, None] = {}
    inner = grid.side - 2 * INSET_PX
    for index, labelled in enumerate(held):
        centre = labelled.centres_px(grid.mpp)
        if not spots:
            centre = np.unique(np.floor(centre / inner), axis=0) * inner + inner / 2
        for row in centre:
            draws[grid.draw_at(index, row, np.zeros(2), None)] = None
    return list(draws)


def _measure_local(network: CellNet, data: _Data) -> None:
    """Centre and scale of the measured features, from the un-augmented start of the first epoch."""
    draws = [Draw(d.slide, d.y0, d.x0, -1) for d in data.sampler]
    local = np.concatenate([data.train[d].window.local for d in draws[:64]])
    if len(local):
        network.local_center.copy_(torch.from_numpy(local.mean(axis=0)))
        network.local_scale.copy_(torch.from_numpy(local.std(axis=0) + 1e-3))


def losses(network: CellNet, batch: TrainingBatch) -> tuple[Tensor, Tensor, int]:
    """Expression loss, type loss and number of instances of a batch.

    Instances average their nuclei: expression by mean squared error of standardised values over the
    genes of the slide's panel, types by the cross entropy of the mean probability.
    """
    od = batch.od.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    out = network(od, batch.coverage, batch.local)
    n = len(batch.values)
    if n == 0:
        zero = out.embedding.sum() * 0
        return zero, zero, 0
    size = torch.zeros(n, device=out.embedding.device).index_add_(0, batch.group, torch.ones_like(batch.group).float())
    mean = torch.zeros_like(batch.values).index_add_(0, batch.group, out.expression) / size[:, None]
    error = (mean - batch.values).square() * batch.mask
    expression = error.sum() / batch.mask.sum().clamp_min(1)
    proba = torch.softmax(out.type_logits, dim=1)
    share = torch.zeros_like(batch.types).index_add_(0, batch.group, proba) / size[:, None]
    known = batch.types.sum(dim=1) > 0
    entropy = -(batch.types * torch.log(share.clamp_min(1e-6))).sum(dim=1)
    return expression, entropy.sum() / known.sum().clamp_min(1), n


# Options that decide the weights: with others, a checkpoint cannot be continued.
_DECISIVE = (
    "max_epochs",
    "patience",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "windows_per_epoch",
    "seed",
    "precision",
)


def _fingerprint(config: GHISTConfig, options: TrainOptions, train: list[Labelled], held: list[Labelled]) -> str:
    """What a checkpoint must agree with to be continued."""
    fixed = {name: getattr(options, name) for name in _DECISIVE}
    digest = hashlib.sha256(json.dumps([config.to_dict(), fixed, len(train)], sort_keys=True).encode())
    for labelled in [*train, *held]:
        slide, instances = labelled.slide, labelled.instances
        # the stain stands for the pixels: it is measured on a sample of all of them
        digest.update(json.dumps([slide.name, slide.mpp, slide.stain.to_dict()]).encode())
        for array in (
            slide.nuclei.ids,
            slide.nuclei.bbox,
            instances.member,
            labelled.values,
            instances.types,
            instances.gene_mask,
        ):
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
