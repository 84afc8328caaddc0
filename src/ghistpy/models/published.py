"""Read a checkpoint of the published program."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.nn.config import GHISTConfig

if TYPE_CHECKING:
    import torch

    from ghistpy.models.ghist import GHIST
    from ghistpy.nn.published import PublishedNetwork

# Where programs put the weights inside a checkpoint, and what wrappers put before every name.
_CONTAINERS = ("model_state_dict", "state_dict", "model", "network", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5
# What torch.load raises, beside UnpicklingError, on files that are cut short or something else altogether.
_UNREADABLE = (RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError, AttributeError, struct.error)


def load_published(
    checkpoint: str | Path,
    *,
    genes: Sequence[str],
    cell_types: Sequence[str],
    mpp: float,
    standardisation: Any,
    reference: Any = None,
    invasive: bool = False,
) -> GHIST:
    """Load a model that the published GHIST program trained.

    Parameters
    ----------
    checkpoint
        ``.pth`` file: a state dict, or a dict with one under ``model_state_dict``, ``state_dict`` or
        ``model``. It is read with ``weights_only=True``: nothing in it is executed.
    genes
        Names of the G genes **in the order of training**. Checkpoints do not hold it: with a reference
        the published program sorts the shared genes naturally, without one it takes the columns of the
        expression table.
    cell_types
        Names of the C types in the order of training.
    mpp
        µm/px of the slides it was trained on.
    standardisation
        (2, 3): mean and standard deviation per channel (R, G, B; 0-255 scale), or the path of the
        ``standardisation_hist_fold_<k>.npy`` that the program wrote.
    reference
        Profiles the model was trained with, when it was: (n_ref, G) on the log scale of the program's
        input (not multiplied by 5), rows in the order of training. A DataFrame or AnnData with gene names
        is put into the order of ``genes``.
    invasive
        Refine Malignant against Epithelial as well when predicting (the program's ``--is_invasive``).

    Returns
    -------
    GHIST
        Ready for ``tl.predict_expression``. Its ``extras`` hold ``image_mean``, ``image_std`` (3,) and
        ``reference``. Baselines and calibration need training data and are absent.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is truncated, holds something else, or does not fit ``genes``, ``cell_types`` or
        ``reference``; the message says which.

    References
    ----------
    Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.

    Examples
    --------
    >>> from ghistpy.models import load_published
    >>> load_published("epoch_50.pth", genes=["EPCAM"], cell_types=["B"], mpp=0.5, standardisation=[[200] * 3, [9] * 3])
    Traceback (most recent call last):
    ...
    FileNotFoundError: checkpoint: no file epoch_50.pth; give the path of a .pth of the published program
    """
    from ghistpy.models.ghist import GHIST

    genes, cell_types = _names("genes", genes), _names("cell_types", cell_types)
    extras = _standardisation(standardisation)
    state = _read_state(Path(checkpoint))
    config = _infer_config(state, checkpoint, mpp=mpp, invasive=invasive)
    _check_panel(state, checkpoint, genes, cell_types)
    if config.use_reference:
        extras["reference"] = _reference(reference, genes, len(state["mlp_weights.mlp.2.bias"]), checkpoint)
    elif reference is not None:
        raise ValueError(f"reference: {checkpoint} was trained without one; leave it out")
    network = _build(state, config, checkpoint, len(genes), len(cell_types), extras.get("reference"))
    return GHIST(network=network, config=config, genes=genes, cell_types=cell_types, extras=extras)


def _names(argument: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{argument}: expected a list of names, got the string {values!r}")
    names = [str(value) for value in values]
    if not names:
        raise ValueError(f"{argument}: got none; give the names in the order of training")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"{argument}: {repeated[:_SHOWN]} occur more than once; names must be unique")
    return names


def _standardisation(value: Any) -> dict[str, np.ndarray]:
    if isinstance(value, (str, Path)):
        if not Path(value).exists():
            raise FileNotFoundError(f"standardisation: no file {value}; give the .npy that training wrote")
        try:
            with open(value, "rb") as file:
                value = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"standardisation: {value} is no .npy array ({_first_line(error)})") from error
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (2, 3) or not np.isfinite(array).all() or (array[1] <= 0).any():
        raise ValueError(
            f"standardisation: expected (2, 3) finite numbers, mean and positive standard deviation of R, G, B "
            f"on the 0-255 scale, got shape {array.shape}: {array.tolist() if array.size < 20 else '…'}"
        )
    if array[0].max() <= 1.0:
        raise ValueError(
            f"standardisation: means {array[0].tolist()} look like a 0-1 scale; the program uses 0-255, multiply by 255"
        )
    return {"image_mean": array[0].copy(), "image_std": array[1].copy()}


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Weights by name, without what wrappers put around them."""
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}; give the path of a .pth of the published program")
    try:
        with warnings.catch_warnings():
            # torch's own remarks on files in its old format, and on bytes that are no pickle
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint: {path} is no file of weights, or holds Python objects beside them, which are never executed "
            "here; save model.state_dict() with torch.save in the program that made it"
        ) from error
    except _UNREADABLE as error:
        raise ValueError(
            f"checkpoint: {path} cannot be read ({_first_line(error)}); it is truncated or no .pth file, copy it again"
        ) from error
    for _ in range(2):  # a container may sit inside another one
        inner = next((key for key in _CONTAINERS if isinstance(payload, Mapping) and key in payload), None)
        if inner is None or isinstance(payload[inner], torch.Tensor):
            break
        payload = payload[inner]
    if not isinstance(payload, Mapping) or not payload:
        raise ValueError(f"checkpoint: {path} holds {type(payload).__name__}, no state dict; pass the .pth of a model")
    strange = [str(key) for key, value in payload.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(
            f"checkpoint: {path} holds {strange[:_SHOWN]}, no state dict under any of {list(_CONTAINERS)}; "
            "save model.state_dict()"
        )
    return {_strip(key): value for key, value in payload.items()}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__


def _strip(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _infer_config(
    state: Mapping[str, torch.Tensor], checkpoint: str | Path, *, mpp: float, invasive: bool
) -> GHISTConfig:
    """Widths and embedding from the shapes of the weights: a narrower network loads too."""
    first = [f"cnn.conv{level}.conv1.0.weight" for level in range(1, 6)]
    needed = [*first, "embed_hist.model.0.bias", "mlp_genes.mlp.0.weight", "mlp_hist.mlp.2.bias"]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(
            f"checkpoint: {checkpoint} is no checkpoint of the published network: {missing[:_SHOWN]} missing, "
            f"it has {len(state)} entries such as {list(state)[:3]}"
        )
    return GHISTConfig.published(
        mpp=mpp,
        invasive=invasive,
        widths=tuple(int(state[key].shape[0]) for key in first),
        embedding=int(state["embed_hist.model.0.bias"].shape[0]),
        use_reference="mlp_weights.mlp.2.bias" in state,
    )


def _check_panel(
    state: Mapping[str, torch.Tensor], checkpoint: str | Path, genes: list[str], cell_types: list[str]
) -> None:
    for argument, names, trained in (
        ("genes", genes, state["mlp_genes.mlp.0.weight"].shape[-1]),
        ("cell_types", cell_types, state["mlp_hist.mlp.2.bias"].shape[0]),
    ):
        if len(names) != trained:
            raise ValueError(
                f"{argument}: got {len(names)} names, but {checkpoint} was trained with {trained}; "
                "give exactly those, in the order of training"
            )


def _reference(reference: Any, genes: list[str], n_ref: int, checkpoint: str | Path) -> np.ndarray:
    if reference is None:
        raise ValueError(
            f"reference: {checkpoint} was trained with {n_ref} reference profiles; give them, (profiles, genes) "
            "on the log scale"
        )
    columns = getattr(reference, "columns", getattr(reference, "var_names", None))
    if columns is not None:
        missing = [gene for gene in genes if gene not in set(columns)]
        if missing:
            raise ValueError(f"reference: {len(missing)} of {len(genes)} genes missing, such as {missing[:_SHOWN]}")
        reference = reference[:, genes].X if hasattr(reference, "X") else reference[genes]
    reference = reference.toarray() if hasattr(reference, "toarray") else reference
    profiles = np.asarray(reference, dtype=np.float32)
    if profiles.shape != (n_ref, len(genes)):
        raise ValueError(
            f"reference: expected ({n_ref} profiles, {len(genes)} genes) as {checkpoint} was trained with, "
            f"got shape {profiles.shape}"
        )
    return profiles


def _build(
    state: Mapping[str, torch.Tensor],
    config: GHISTConfig,
    checkpoint: str | Path,
    n_genes: int,
    n_types: int,
    reference: np.ndarray | None,
) -> PublishedNetwork:
    """The network with the checkpoint's weights; every name, shape and value is checked."""
    import torch

    from ghistpy.nn.published import PublishedNetwork

    network = PublishedNetwork(config, n_genes, n_types, reference)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    found = [("missing", missing), ("not known", unexpected), ("of another shape", shapes)]
    if any(names for _, names in found):
        listed = "; ".join(f"{len(names)} {what}: {names[:_SHOWN]}" for what, names in found if names)
        raise ValueError(f"checkpoint: {checkpoint} does not fit the published network: {listed}")
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(
            f"checkpoint: {checkpoint} holds NaN or infinite weights in {bad[:_SHOWN]}; training had diverged, "
            "take an earlier epoch"
        )
    network.load_state_dict(dict(state))
    return network.eval()
