"""Train the default network with Lightning: one CPU to several GPUs, the same call."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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

logger = logging.getLogger("ghistpy")


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

    The held-out rectangles of a slide are blanked first. ``spot_diameter_um`` is given for spot
    supervision, where the nuclei of a spot are explained together.
    """
    options = options or TrainOptions()
    torch.manual_seed(options.seed)
    network = CellNet(config, n_types=n_types, n_genes=n_genes, n_local=len(LOCAL_FEATURES))
    if options.max_epochs == 0:
        return Trained(network.eval(), [])
    raw = [(s, instances_of(s, n_types)) for s in map(prepare, train)]
    center, scale = _gene_moments([i for _, i in raw], n_genes)
    labelled = [_standardised(s, i, center, scale) for s, i in raw]
    held = [_standardised(s, instances_of(s, n_types), center, scale) for s in map(prepare, validation)]
    grid = WindowGrid.for_instances(spot_diameter_um, mpp=config.mpp, stride=config.stride, align=config.align_px)
    data = _Data(labelled, held, grid, options, spots=spot_diameter_um is not None)
    _measure_local(network, data)
    module = _lightning_module(network, data, options)
    history = _run(module, data, options, _fingerprint(config, options, labelled, held))
    return Trained(module.network.eval(), history)


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


def _lightning_module(network: CellNet, data: _Data, options: TrainOptions) -> Any:
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def _step(self, batch: TrainingBatch, name: str) -> Tensor:
            expression, types, n = losses(self.network, batch)
            total = expression + 0.5 * types
            values = {f"{name}_loss": total, f"{name}_expression": expression, f"{name}_types": types}
            self.log_dict(
                {k: v.detach() for k, v in values.items()},
                on_step=False,
                on_epoch=True,
                batch_size=max(n, 1),
                sync_dist=True,
                prog_bar=name == "val",
            )
            return total

        def on_train_epoch_start(self) -> None:
            # Dropout of an epoch is a function of (seed, epoch): a resumed run repeats it.
            torch.manual_seed(options.seed * 100_003 + self.current_epoch)

        def training_step(self, batch: TrainingBatch) -> Tensor:
            return self._step(batch, "train")

        def validation_step(self, batch: TrainingBatch) -> Tensor:
            return self._step(batch, "val")

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = torch.optim.AdamW(
                self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_epochs)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

        def transfer_batch_to_device(self, batch: TrainingBatch, device: torch.device, dataloader_idx: int) -> Any:
            return batch.to(device, non_blocking=True)

    return Training()


def _fingerprint(config: GHISTConfig, options: TrainOptions, train: list[Labelled], held: list[Labelled]) -> str:
    """What a checkpoint must agree with to be continued."""
    fixed = {k: v for k, v in asdict(options).items() if k in ("max_epochs", "batch_size", "learning_rate", "seed")}
    digest = hashlib.sha256(json.dumps([config.to_dict(), fixed], sort_keys=True).encode())
    for labelled in [*train, *held]:
        digest.update(labelled.slide.name.encode())
        digest.update(np.ascontiguousarray(labelled.slide.nuclei.ids))
        digest.update(np.ascontiguousarray(labelled.values))
    return digest.hexdigest()


def _run(module: Any, data: _Data, options: TrainOptions, fingerprint: str) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.checkpoint_dir or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        last = _resumable(folder, fingerprint)
        trainer, best = _trainer(folder, options, has_validation=len(data.held) > 0)
        with warnings.catch_warnings():
            _ignore_lightning_advice()
            trainer.fit(
                module,
                data.loader(data.train, data.sampler),
                data.loader(data.held, None) if len(data.held) else None,
                ckpt_path=last,
                weights_only=True,
            )
        history = next(c for c in trainer.callbacks if hasattr(c, "rows")).rows
        path = best.best_model_path if len(data.held) else ""
        if path:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            module.load_state_dict(state)
    return history


def _resumable(folder: Path, fingerprint: str) -> str | None:
    marker, last = folder / "training.json", folder / "last.ckpt"
    if not last.exists():
        marker.write_text(json.dumps({"fingerprint": fingerprint}))
        return None
    known = json.loads(marker.read_text())["fingerprint"] if marker.exists() else None
    if known != fingerprint:
        raise ValueError(
            f"checkpoint_dir={str(folder)!r} holds a training of other slides, settings or seed; "
            "give an empty folder, or the same arguments to continue it"
        )
    logger.info("training goes on from %s", last)
    return str(last)


def _trainer(folder: Path, options: TrainOptions, *, has_validation: bool) -> tuple[Any, Any]:
    import lightning
    from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

    class History(Callback):
        """One row of losses per epoch; part of the checkpoint, so that a resumed history is whole."""

        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            row = {k: float(v) for k, v in trainer.callback_metrics.items()}
            self.rows.append({"epoch": float(trainer.current_epoch), **row})

        def state_dict(self) -> dict[str, Any]:
            return {"rows": self.rows}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.rows = list(state_dict["rows"])

    monitor = "val_loss" if has_validation else None
    best = ModelCheckpoint(dirpath=folder, filename="best", monitor=monitor, save_last=True, save_top_k=1)
    callbacks: list[Any] = [History(), best, *options.callbacks]
    if has_validation:
        callbacks.append(EarlyStopping("val_loss", patience=options.patience))
    with warnings.catch_warnings():
        _ignore_lightning_advice()
        trainer = lightning.Trainer(
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,
            callbacks=callbacks,
            default_root_dir=folder,
            gradient_clip_val=1.0,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    return trainer, best


def _ignore_lightning_advice() -> None:
    """Lightning's hints about worker counts, log intervals and folders are not faults of the user."""
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*available but not used.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)
