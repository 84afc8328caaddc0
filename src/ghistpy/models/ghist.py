"""A trained predictor with everything needed to use it, saved as one folder without a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy._files import exchange
from ghistpy.nn.config import GHISTConfig

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

_WEIGHTS, _META = "model.safetensors", "model.json"
_FORMAT = 1
SUPERVISIONS = ("cells", "spots")


class GHIST:
    """A trained predictor: network, genes, cell types, µm/px, baselines and calibration.

    Made by :func:`ghistpy.tl.fit`, :func:`ghistpy.models.load_published` or :meth:`load`.

    Attributes
    ----------
    genes, cell_types
        Names, in the order of the outputs.
    config
        Settings of the network; ``config.mpp`` is the µm/px that it sees.
    supervision
        ``"cells"`` or ``"spots"``: what it was trained on.
    baselines
        What :func:`ghistpy.tl.evaluate` compares with, from the training data: ``gene_mean`` and
        ``gene_var`` (G,), ``type_profiles`` (C, G), and the morphology ridge ``ridge_center``,
        ``ridge_scale`` (F,), ``ridge_weight`` (F, G), ``ridge_intercept`` (G,).
    gene_sets
        Name -> genes, chosen on the training data.
    calibration
        ``expected_pcc`` and ``expected_skill`` (G,) measured on the validation split, when there was one.
    history
        Losses per epoch, a DataFrame.
    extras
        Arrays that the published network needs (standardisation, reference).
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        config: GHISTConfig,
        genes: Sequence[str],
        cell_types: Sequence[str],
        head: nn.Module | None = None,
        supervision: str = "cells",
        extras: Mapping[str, np.ndarray] | None = None,
        baselines: Mapping[str, np.ndarray] | None = None,
        calibration: Mapping[str, np.ndarray] | None = None,
        gene_sets: Mapping[str, Sequence[str]] | None = None,
        history: Sequence[Mapping[str, float]] = (),
    ) -> None:
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision={supervision!r}: expected one of {SUPERVISIONS}")
        self.network, self.head, self.config = network, head, config
        self.genes, self.cell_types = [str(g) for g in genes], [str(t) for t in cell_types]
        self.supervision = supervision
        self.extras = dict(extras or {})
        self.baselines = dict(baselines or {})
        self.calibration = dict(calibration or {})
        self.gene_sets = {name: list(members) for name, members in (gene_sets or {}).items()}
        self._history = [dict(row) for row in history]

    def __repr__(self) -> str:
        return (
            f"GHIST({self.config.architecture} network, {len(self.genes)} genes, {len(self.cell_types)} cell types, "
            f"{self.mpp:g} µm/px, trained on {self.supervision})"
        )

    @property
    def mpp(self) -> float:
        """µm per px at which the network sees a slide."""
        return self.config.mpp

    @property
    def history(self) -> pd.DataFrame:
        """Losses per epoch; empty for a model that was not trained here."""
        import pandas as pd

        return pd.DataFrame(self._history)

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 over weights, settings and names."""
        digest = hashlib.sha256(json.dumps(self._meta(), sort_keys=True).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array.numpy()))
        return digest.hexdigest()[:16]

    def _meta(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "genes": self.genes,
            "cell_types": self.cell_types,
            "supervision": self.supervision,
            "gene_sets": self.gene_sets,
            "history": self._history,
        }

    def _arrays(self) -> dict[str, Tensor]:
        import torch

        out = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.head is not None:
            out |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for group in ("extras", "baselines", "calibration"):
            out |= {f"{group}.{k}": torch.as_tensor(np.asarray(v)) for k, v in getattr(self, group).items()}
        return {k: v.detach().cpu().contiguous().clone() for k, v in out.items()}

    def save(self, path: str | Path) -> None:
        """Write the model as a folder of ``model.safetensors`` and ``model.json``.

        Parameters
        ----------
        path
            The folder. One that holds a model is replaced as a whole; any other existing path is refused.

        Raises
        ------
        FileExistsError
            ``path`` exists and is not a model.
        OSError
            The folder cannot be written, or the disk is full; a model that was there is unchanged.

        Examples
        --------
        >>> import tempfile
        >>> import ghistpy as gp
        >>> slide = gp.datasets.simulate_slide(n_cells=200, n_genes=10)
        >>> model = gp.tl.fit(slide, max_epochs=0, progress=False)
        >>> folder = tempfile.mkdtemp() + "/model"
        >>> model.save(folder)
        >>> gp.models.GHIST.load(folder).hash == model.hash
        True
        """
        from safetensors.torch import save_file

        path = Path(path).resolve()  # of a symbolic link, what it points to is replaced
        if path.exists() and not (path / _META).exists():
            raise FileExistsError(f"path: {path} exists and is not a ghistpy model; choose another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            save_file(self._arrays(), str(staging / _WEIGHTS))
            (staging / _META).write_text(json.dumps(self._meta(), indent=1))
            staging.chmod(0o755)
            _move_in(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path) -> GHIST:
        """Read a folder that :meth:`save` wrote.

        Parameters
        ----------
        path
            The folder.

        Returns
        -------
        GHIST
            On the CPU, with the same :attr:`hash` as the model that was saved.

        Raises
        ------
        FileNotFoundError
            There is no model at ``path``.
        ValueError
            The folder holds something else, is damaged, or was written by a newer version.
        """
        path = Path(path)
        for name in (_META, _WEIGHTS):
            if not (path / name).is_file():
                raise FileNotFoundError(f"path: {path} is not a ghistpy model, it has no {name}")
        meta = _read_meta(path / _META)
        arrays = _read_arrays(path / _WEIGHTS)
        config = GHISTConfig.from_dict(meta["config"])
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in arrays.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = value
        names = ("extras", "baselines", "calibration")
        plain = {g: {k: v.numpy() for k, v in groups.get(g, {}).items()} for g in names}
        sizes = (len(meta["genes"]), len(meta["cell_types"]))
        network, head = _build(config, *sizes, groups, plain["extras"])
        _fill(network, groups.get("network", {}), path)
        if head is not None:
            _fill(head, groups.get("head", {}), path)
        return cls(
            network=network.eval(),
            head=head,
            config=config,
            genes=meta["genes"],
            cell_types=meta["cell_types"],
            supervision=meta["supervision"],
            gene_sets=meta["gene_sets"],
            history=meta["history"],
            **plain,
        )


def _move_in(staging: Path, path: Path) -> None:
    """Put ``staging`` where ``path`` is; a reader finds the old model or the new one."""
    if not path.exists():
        os.replace(staging, path)
    elif not exchange(staging, path):
        # no exchange on this system: for a moment there is no model, and what fails then is undone
        old = staging.with_name(staging.name + ".old")
        os.replace(path, old)
        try:
            os.replace(staging, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


_META_TYPES = {
    "config": dict,
    "genes": list,
    "cell_types": list,
    "supervision": str,
    "gene_sets": dict,
    "history": list,
}


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text())
        version = meta["format"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"path: {path} is damaged or not of a ghistpy model ({error})") from error
    if version != _FORMAT:
        raise ValueError(f"path: {path} has format {version}, this version reads {_FORMAT}; update ghistpy")
    bad = sorted(name for name, kind in _META_TYPES.items() if not isinstance(meta.get(name), kind))
    if bad:
        raise ValueError(f"path: {path} lacks {bad}, or holds something else there; it is damaged, save it again")
    return meta


def _read_arrays(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"path: {path} is truncated or not a safetensors file ({error})") from error


def _build(
    config: GHISTConfig,
    n_genes: int,
    n_types: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    extras: Mapping[str, np.ndarray],
) -> tuple[nn.Module, nn.Module | None]:
    if config.architecture == "published":
        from ghistpy.nn.published import PublishedNetwork

        absent = sorted({"image_mean", "image_std"} - set(extras))
        if absent:
            raise ValueError(f"path: the model lacks extras {absent}, which its network needs; save it again")
        return PublishedNetwork(config, n_genes, n_types, extras.get("reference")), None
    from ghistpy.data.windows import LOCAL_FEATURES
    from ghistpy.nn.cellnet import CellNet
    from ghistpy.nn.head import ContextHead

    # The measured features are a property of the version that trained the model.
    n_local = len(groups.get("network", {}).get("local_center", ()))
    n_features = len(groups.get("head", {}).get("center", ()))
    if n_local != len(LOCAL_FEATURES):
        raise ValueError(
            f"path: the model was trained with {n_local} measured features of a nucleus, this version measures "
            f"{len(LOCAL_FEATURES)}; train it again, or use the version of ghistpy that trained it"
        )
    network = CellNet(config, n_types=n_types, n_genes=n_genes, n_local=n_local)
    sizes = {"n_types": n_types, "n_genes": n_genes, "n_local": n_local}
    return network, ContextHead(config, n_features=n_features, **sizes)


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"path: the weights in {path} do not fit its settings: {error}") from error
