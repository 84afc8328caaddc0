"""Where and how a network runs: device, precision, batch size, threads."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ghistpy.nn.config import GHISTConfig

logger = logging.getLogger("ghistpy")

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Largest batches: a GPU is busy with these, and a block holds no more windows.
_MOST = {"default": 8, "published": 32}
# Bytes of activations per px of a window and of a patch, float32 (measured on the CPU), for the widths
# of the default and of the paper; the half of it is room for the allocator.
_BYTES_PER_PX = {"default": 150.0, "published": 12_000.0}
_MOST_WORKERS = 8


@dataclass(frozen=True)
class RunOptions:
    """How a network runs; only ``autocast`` changes results beyond rounding.

    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
    batch_size
        Windows or patches that go through the network together, at most.
    workers
        Threads that read ahead; 0 reads between batches.
    autocast
        Half precision of the convolutions; None: float32.
    compiled
        Compile the convolutions with ``torch.compile``.
    progress
        Show a progress bar.
    """

    device: str = "cpu"
    batch_size: int = 1
    workers: int = 1
    autocast: torch.dtype | None = None
    compiled: bool = False
    progress: bool = False

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Precision as asked for: half by autocast, and float32 without TF32."""
        kind = torch.device(self.device).type
        exact = kind == "cuda" and self.autocast is None
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(kind, dtype=self.autocast, enabled=self.autocast is not None))
            if exact:
                stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
            yield


def choose_options(
    config: GHISTConfig,
    *,
    device: str | None = None,
    precision: str = "auto",
    batch_size: int | str | None = "auto",
    workers: int | str | None = "auto",
    compiled: bool = False,
    progress: bool = False,
) -> RunOptions:
    """Fill in what is ``"auto"`` and say in the log what was chosen.

    Parameters
    ----------
    config
        Of the network: its windows decide how many fit into memory.
    device
        Default: CUDA when there is a device, else the CPU.
    precision
        One of ``PRECISIONS``; ``"auto"``: on CUDA bfloat16 where the device has it and float16 elsewhere,
        float32 on the CPU.
    batch_size
        ``"auto"`` (or None): 1 on the CPU, where larger batches bring nothing; on CUDA what fits into
        half of the free memory.
    workers
        ``"auto"`` (or None): one per CPU core, 8 at most.
    compiled, progress
        As in :class:`RunOptions`.

    Raises
    ------
    ValueError
        A precision, batch size, number of workers or device that cannot be used.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
    batch_size, workers = (None if value == "auto" else value for value in (batch_size, workers))
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more, or 'auto'")
    device = _check_device(device)
    autocast = _half(precision, device)
    chosen = RunOptions(
        device=device,
        batch_size=batch_size or _fitting(config, device, 2 if autocast else 4),
        workers=min(_MOST_WORKERS, _n_cores()) if workers is None else workers,
        autocast=autocast,
        compiled=compiled,
        progress=progress,
    )
    logger.info(
        "%s network on %s in %s: batches of %d, %d reading threads%s",
        config.architecture,
        chosen.device,
        str(autocast or torch.float32).removeprefix("torch."),
        chosen.batch_size,
        chosen.workers,
        ", compiled" if compiled else "",
    )
    return chosen


def _n_cores() -> int:
    # of this process, not of the machine: containers and clusters give fewer
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: expected 'cpu', 'cuda' or 'cuda:1' ({error})") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch {torch.__version__} finds no CUDA device here; give device='cpu'")
    return str(device)


def _half(precision: str, device: str) -> torch.dtype | None:
    if precision == "auto":
        if not device.startswith("cuda"):
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _fitting(config: GHISTConfig, device: str, itemsize: int) -> int:
    """Windows that fit into half of the free memory of a CUDA device; 1 elsewhere."""
    if not device.startswith("cuda"):
        return 1
    kind = config.architecture
    reference = {"default": 16, "published": 64}[kind]
    side = config.patch_px if kind == "published" else config.tile_px + 4 * config.halo_px
    need = side**2 * _BYTES_PER_PX[kind] * max(config.widths[0] / reference, 0.1) * itemsize / 4
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(max(free / 2 // need, 1), _MOST[kind]))
