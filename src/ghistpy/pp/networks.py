"""Pretrained networks of other packages as functions of a tile."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ghistpy._optional import require

NETWORKS = ("instanseg", "cellpose")
INSTANSEG_MODEL = "brightfield_nuclei"
# Of the pixels of a slide, per channel, per cent: what InstanSeg was trained with, and what Cellpose was.
_PERCENTILES = {"instanseg": (0.1, 99.9), "cellpose": (1.0, 99.0)}

Method = Callable[[np.ndarray], np.ndarray]


def load_network(method: str, weights: str | Path | None, device: str | None, mpp: float, sample: np.ndarray) -> Method:
    """A network as a function of a (h, w, 3) uint8 tile that returns (h, w) integer labels.

    Parameters
    ----------
    method
        ``"instanseg"`` or ``"cellpose"``.
    weights
        File with weights; None = those that the package finds on this machine or downloads.
    device
        Of torch; None = a GPU when there is one.
    mpp
        µm per px of the tiles.
    sample
        (n, 3) uint8 pixels of the whole slide. Both packages stretch the colours of every image that they
        get; here the limits are those of the slide, so that no tile depends on what else lies in it.

    Raises
    ------
    ImportError
        The package is not installed.
    FileNotFoundError
        No such file of weights, or none given and none to be had.
    """
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights={str(weights)!r}: there is no such file")
    limits = np.percentile(sample, _PERCENTILES[method], axis=0).T.astype(np.float32)  # (3, 2)
    limits[:, 1] = np.maximum(limits[:, 1], limits[:, 0] + 1)
    return (_instanseg if method == "instanseg" else _cellpose)(weights, _device(device), mpp, limits)


def _device(device: str | None) -> str:
    import torch

    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _absent(method: str, error: Exception, advice: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"method={method!r}: its weights are not on this machine and could not be downloaded ({error}); {advice}"
    )


def _instanseg(weights: str | Path | None, device: str, mpp: float, limits: np.ndarray) -> Method:
    package = require("instanseg", extra="instanseg")
    import torch

    try:
        with warnings.catch_warnings():
            # InstanSeg publishes its models as TorchScript, which torch calls deprecated
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            model: Any = INSTANSEG_MODEL if weights is None else torch.jit.load(str(weights), map_location=device)
            network = package.InstanSeg(model, device=device, verbosity=0)
    except (OSError, RuntimeError) as error:
        if weights is not None:
            raise ValueError(f"weights={str(weights)!r}: no TorchScript model of InstanSeg ({error})") from error
        advice = (
            f"download {INSTANSEG_MODEL}.zip from https://github.com/instanseg/instanseg/releases, unpack it, and pass "
            "weights='.../instanseg.pt'"
        )
        raise _absent("instanseg", error, advice) from error
    lock = threading.Lock()
    low, high = (torch.as_tensor(limit)[:, None, None] for limit in limits.T)

    def segment(rgb: np.ndarray) -> np.ndarray:
        image = (torch.as_tensor(rgb.transpose(2, 0, 1).astype(np.float32)) - low) / (high - low)
        with lock, torch.inference_mode(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="CUDA is not available")
            found = network.eval_small_image(
                image, mpp, normalise=False, return_image_tensor=False, target="nuclei", rescale_output=True
            )
        return found.reshape(found.shape[-2:]).round().to(torch.int64).cpu().numpy()

    return segment


def _cellpose(weights: str | Path | None, device: str, mpp: float, limits: np.ndarray) -> Method:
    try:
        models = require("cellpose.models", extra="cellpose")
    except RuntimeError as error:
        raise ImportError(
            f"'cellpose' is installed but does not import ({error}): it needs a torch and a torchvision of one origin"
        ) from error
    import torch

    chosen = {} if weights is None else {"pretrained_model": str(weights)}
    try:
        # half precision is slower than single on most CPUs
        network = models.CellposeModel(device=torch.device(device), use_bfloat16=device != "cpu", **chosen)
    except (OSError, RuntimeError) as error:
        if weights is not None:
            raise ValueError(f"weights={str(weights)!r}: no model of Cellpose 4 ({error})") from error
        advice = "download cpsam_v2 from https://huggingface.co/mouseland/cellpose-sam and pass weights="
        raise _absent("cellpose", error, advice) from error
    lock = threading.Lock()
    stretch = {"lowhigh": limits.tolist()}

    def segment(rgb: np.ndarray) -> np.ndarray:
        with lock:
            labels = network.eval(rgb, channel_axis=-1, normalize=stretch, min_size=0)[0]
        return np.asarray(labels).reshape(rgb.shape[:2]).astype(np.int64)

    return segment
