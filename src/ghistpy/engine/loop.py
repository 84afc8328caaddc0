"""The Lightning loop of the default network: losses per epoch, checkpoints, exact resumption."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ghistpy.engine.train import TrainOptions, losses

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from ghistpy.data.sampling import TrainingBatch
    from ghistpy.nn.cellnet import CellNet

logger = logging.getLogger("ghistpy")

_MARKER, _LAST, _BEST = "training.json", "last.ckpt", "best.ckpt"


def run(
    network: CellNet,
    train: DataLoader,
    validation: DataLoader | None,
    options: TrainOptions,
    fingerprint: str,
) -> list[dict[str, float]]:
    """Train ``network`` in place and return one row of losses per epoch.

    It ends with the weights of the epoch with the lowest validation loss, or of the last epoch when there
    is no validation. ``fingerprint`` says which training this is: ``options.checkpoint_dir`` may hold an
    unfinished or finished one with the same fingerprint only.

    Raises
    ------
    ValueError
        ``checkpoint_dir`` holds another training, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.checkpoint_dir or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        state = _State(folder, fingerprint)
        if state.history is None:
            with torch.random.fork_rng(devices=[]):
                state.finish(_fit(network, train, validation, options, folder, state.resume_from))
        best = folder / _BEST if validation is not None else folder / _LAST
        weights = _read_checkpoint(best)["state_dict"]
        network.load_state_dict({k.removeprefix("network."): v for k, v in weights.items()})
    return state.history


class _State:
    """What a checkpoint folder says: nothing yet, a training to go on with, or a finished one."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._marker, self._fingerprint = folder / _MARKER, fingerprint
        self.history: list[dict[str, float]] | None = None
        self.resume_from: str | None = None
        last = folder / _LAST
        if not last.exists():
            self._write({})
            return
        try:
            known = json.loads(self._marker.read_text())
            found = known["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} has {_LAST} but no readable {_MARKER} ({error}); give an empty folder"
            ) from error
        if found != fingerprint:
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} holds a training of other slides, settings or seed; "
                "give an empty folder, or the same arguments to continue it"
            )
        self.history = known.get("history")
        if self.history is None:
            _read_checkpoint(last)
            self.resume_from = str(last)
            logger.info("training goes on from %s", last)

    def finish(self, history: list[dict[str, float]]) -> None:
        """Note that the training has ended, so that the same call again only reads it."""
        self.history = history
        self._write({"history": history})

    def _write(self, more: dict[str, Any]) -> None:
        self._marker.write_text(json.dumps({"fingerprint": self._fingerprint, **more}))


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        raise ValueError(
            f"checkpoint_dir: {path} cannot be read, it is damaged or not of ghistpy ({error}); "
            "remove the folder to train from the start"
        ) from error


def _fit(
    network: CellNet,
    train: DataLoader,
    validation: DataLoader | None,
    options: TrainOptions,
    folder: Path,
    resume_from: str | None,
) -> list[dict[str, float]]:
    import lightning

    history = _history_callback()
    with warnings.catch_warnings():
        _ignore_lightning_advice()
        trainer = lightning.Trainer(
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,
            callbacks=[history, *options.callbacks, *_stopping_and_checkpoints(options, folder, validation)],
            default_root_dir=folder,
            gradient_clip_val=1.0,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(_lightning_module(network, options), train, validation, ckpt_path=resume_from, weights_only=True)
    return history.rows


def _stopping_and_checkpoints(options: TrainOptions, folder: Path, validation: DataLoader | None) -> list[Any]:
    """Best weights, early stopping, and the state at the end of every epoch, in this order.

    Lightning saves ``save_last`` only together with a new best, and after validation, when the epoch is
    not over yet: resumed from that, a run is not the same. So the last state has a callback of its own
    that writes at the very end of the epoch, with all that the others know by then.
    """
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    common = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    last = ModelCheckpoint(filename=Path(_LAST).stem, every_n_epochs=1, **common)
    if validation is None:
        return [last]
    best = ModelCheckpoint(filename=Path(_BEST).stem, monitor="val_loss", save_weights_only=True, **common)
    return [EarlyStopping("val_loss", patience=options.patience), best, last]


def _history_callback() -> Any:
    from lightning.pytorch.callbacks import Callback

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

    return History()


def _lightning_module(network: CellNet, options: TrainOptions) -> Any:
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
            # Dropout and rate of an epoch are functions of (seed, epoch): a resumed run repeats them.
            torch.manual_seed(options.seed * 100_003 + self.current_epoch)
            rate = options.learning_rate * (1 + math.cos(math.pi * self.current_epoch / options.max_epochs)) / 2
            for group in self.optimizers().param_groups:
                group["lr"] = rate

        def training_step(self, batch: TrainingBatch) -> Tensor:
            return self._step(batch, "train")

        def validation_step(self, batch: TrainingBatch) -> Tensor:
            return self._step(batch, "val")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
            )

        def transfer_batch_to_device(self, batch: TrainingBatch, device: torch.device, dataloader_idx: int) -> Any:
            return batch.to(device, non_blocking=True)

    return Training()


def _ignore_lightning_advice() -> None:
    """Lightning's hints about worker counts, log intervals and folders are not faults of the user."""
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*available but not used.*",
        ".*but have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
