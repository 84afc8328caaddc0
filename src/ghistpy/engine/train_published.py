"""Training of the published network, as the paper trains it, without what leaked.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ghistpy.data.published import EpochOrder, TrainingBatch, TrainingPatches, collate, training_slide
from ghistpy.data.slide import Slide
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork
from ghistpy.nn.published_losses import LossTerms, TypeRoles, published_losses

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
CHECKPOINT = "last.ckpt"


def train_published(
    slides: Sequence[Slide],
    config: GHISTConfig,
    *,
    genes: Sequence[str],
    cell_types: Sequence[str],
    reference: np.ndarray | None = None,
    max_epochs: int = 50,
    batch_size: int = 8,
    seed: int = 0,
    accelerator: str = "auto",
    devices: Any = "auto",
    precision: str = "32-true",
    callbacks: Sequence[Any] | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> tuple[PublishedNetwork, dict[str, np.ndarray], list[dict[str, float]]]:
    """Train the published network on slides with measured cells.

    AdamW (1e-3, weight decay 1e-4), learning rate falling linearly to 0 over ``max_epochs``, patches of
    ``config.patch_px`` without overlap, flips and quarter turns.

    Parameters
    ----------
    slides
        With :class:`~ghistpy.data.slide.CellTargets`. What ``excluded_um`` covers is blanked to white
        before anything, the standardisation included, is computed.
    config
        ``GHISTConfig.published(…)``.
    genes, cell_types
        Names in the order of the targets' columns and type indices.
    reference
        (n_ref, G) profiles, log1p scale, when ``config.use_reference``.
    checkpoint_dir
        Where ``last.ckpt`` is written after every epoch; a run of the same data and settings that finds
        one goes on from it, exactly as if it had not been stopped.
    accelerator, devices, precision, callbacks
        As Lightning's Trainer takes them; callbacks may watch ``train_loss``.

    Returns
    -------
    network
        On the CPU, in evaluation mode.
    extras
        ``image_mean`` and ``image_std`` (3,) float64; ``reference`` (n_ref, G) float32 when there is one.
    history
        One dict per epoch: ``epoch``, ``learning_rate``, ``train_loss`` and every term of the loss.

    Notes
    -----
    The last incomplete batch of an epoch is left out, as published; the order changes with the epoch.
    """
    if not slides:
        raise ValueError("slides: got none; give at least one slide with measured cells")
    if max_epochs < 1 or batch_size < 1:
        raise ValueError(f"max_epochs={max_epochs}, batch_size={batch_size}: expected 1 or more")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more")
    # the network first: it checks config and reference before any pixel is read
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PublishedNetwork(config, len(genes), len(cell_types), reference)
    network = network.to(memory_format=torch.channels_last)
    usable = [
        training_slide(
            slide,
            n_genes=len(genes),
            n_types=len(cell_types),
            mpp=config.mpp,
            expression_scale=config.expression_scale,
            min_nucleus_px=config.min_nucleus_px,
        )
        for slide in slides
    ]
    patches = TrainingPatches(usable, mpp=config.mpp, patch_px=config.patch_px, seed=seed, progress=progress)
    run = _fingerprint(config, genes, cell_types, max_epochs, batch_size, patches)
    module = _training_module(network, patches, TypeRoles.from_names(cell_types), max_epochs, batch_size, run)
    _fit(
        module,
        checkpoint_dir,
        callbacks=list(callbacks or []),
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        enable_progress_bar=progress,
    )
    extras = {"image_mean": patches.image_mean, "image_std": patches.image_std}
    if reference is not None:
        extras["reference"] = np.asarray(reference, dtype=np.float32)
    return network.cpu().eval(), extras, module.history


def _fingerprint(
    config: GHISTConfig,
    genes: Sequence[str],
    cell_types: Sequence[str],
    max_epochs: int,
    batch_size: int,
    patches: TrainingPatches,
) -> dict[str, Any]:
    """What a resumed run must share with the one that wrote the checkpoint; plain values."""
    data = hashlib.sha256()
    for part in patches.slides:
        for array in (part.slide.nuclei.ids, part.expression, part.cell_type):
            data.update(np.ascontiguousarray(array))
    for array in (patches.image_mean, patches.image_std):
        data.update(array)
    return {
        "config": config.to_dict(),
        "genes": list(genes),
        "cell_types": list(cell_types),
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "seed": patches.seed,
        "data": data.hexdigest(),
    }


def _fit(module: LightningModule, checkpoint_dir: str | Path | None, **trainer_options: Any) -> None:
    """Run Lightning, from the checkpoint in ``checkpoint_dir`` when there is one."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    resume = None
    if checkpoint_dir is not None:
        folder = Path(checkpoint_dir)
        trainer_options["callbacks"].append(
            ModelCheckpoint(
                folder,
                filename=Path(CHECKPOINT).stem,
                every_n_epochs=1,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
        resume = folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
    with warnings.catch_warnings():
        # Reading a patch takes milliseconds and the network seconds: workers would bring nothing.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Small data sets have fewer batches than Lightning's logging interval, and there is no logger.
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        # The caller chose the accelerator.
        warnings.filterwarnings("ignore", message=".*available but not used.*")
        # Lightning with recent torch.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        # That is where the run goes on from.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        trainer = Trainer(
            logger=False,
            enable_checkpointing=checkpoint_dir is not None,
            enable_model_summary=False,
            **trainer_options,
        )
        trainer.fit(module, ckpt_path=resume, weights_only=True)


def _training_module(
    network: PublishedNetwork,
    patches: TrainingPatches,
    roles: TypeRoles,
    max_epochs: int,
    batch_size: int,
    run: Mapping[str, Any],
) -> LightningModule:
    from lightning.pytorch import LightningModule

    class PublishedTraining(LightningModule):
        """Losses, optimiser and data of one run; ``history`` has one dict per finished epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.history: list[dict[str, float]] = []
            self._sums: list[Tensor] = []
            self._rate = LEARNING_RATE

        def train_dataloader(self) -> DataLoader:
            return DataLoader(
                patches,
                batch_size=batch_size,
                sampler=EpochOrder(patches),
                collate_fn=collate,
                drop_last=len(patches) >= batch_size,
                # of its own, so that the caller's random state is neither used nor moved
                generator=torch.Generator().manual_seed(patches.seed),
            )

        def transfer_batch_to_device(
            self, batch: TrainingBatch, device: torch.device, dataloader_idx: int
        ) -> TrainingBatch:
            return TrainingBatch(**{name: value.to(device) for name, value in vars(batch).items()})

        def on_train_epoch_start(self) -> None:
            # order and augmentation of an epoch depend on nothing but seed and epoch: a resumed run is exact
            patches.epoch = self.current_epoch
            # Lightning steps the schedule before it calls on_train_epoch_end
            self._rate = self.optimizers().param_groups[0]["lr"]

        def training_step(self, batch: TrainingBatch) -> Tensor:
            out = self.network(batch.image, batch.rows, expression=batch.expression)
            terms = published_losses(out, batch.expression, batch.cell_type, batch.type_map, roles)
            self._sums.append(torch.stack([*terms, terms.total]).detach())
            self.log("train_loss", terms.total, on_epoch=True, prog_bar=True, batch_size=len(batch.image))
            return terms.total

        def on_train_epoch_end(self) -> None:
            mean = torch.stack(self._sums).mean(0).tolist()
            self._sums.clear()
            self.history.append(
                {
                    "epoch": self.current_epoch,
                    "learning_rate": self._rate,
                    "train_loss": mean[-1],
                    **dict(zip(LossTerms._fields, mean[:-1], strict=True)),
                }
            )

        def configure_optimizers(self) -> dict[str, Any]:
            trained = [p for p in self.network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / max_epochs)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["ghistpy"] = {"run": dict(run), "history": self.history}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            stored = checkpoint.get("ghistpy", {"run": {}, "history": []})
            differ = [key for key in run if stored["run"].get(key) != run[key]]
            if differ:
                raise ValueError(
                    f"checkpoint_dir: the checkpoint there belongs to another run ({', '.join(differ)} differ); "
                    "give another folder, or delete it"
                )
            self.history = list(stored["history"])

    return PublishedTraining()
