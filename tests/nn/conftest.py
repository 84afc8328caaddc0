"""The published network filled by the weight rule of golden/model, run once per kind of model."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

EXPRESSION_SCALE = 5.0


def _weight(key: str, shape: list[int], is_norm: bool) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros((), dtype=np.int64)
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if is_norm:
        kind = key.rsplit(".", 1)[1]
        z = {"weight": 1 + 0.1 * z, "running_var": 1 + 0.1 * np.abs(z)}.get(kind, 0.1 * z)
    elif len(shape) == 4:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        z = z * np.sqrt(1 / shape[1])
    else:
        z = 0.02 * z
    return z.astype(np.float32)


def rule_weights(shapes: dict) -> dict:
    """State dict by the rule in golden/model/README.md, for {key: {"shape": …}}."""
    import torch

    return {
        key: torch.from_numpy(
            np.asarray(_weight(key, entry["shape"], key.rsplit(".", 1)[0] + ".running_mean" in shapes))
        )
        for key, entry in shapes.items()
    }


@pytest.fixture(scope="package", params=["sc", "nosc"])
def golden(request, data_dir):
    """Network with the rule's weights, inputs, stored outputs, and ours: one forward and one backward pass."""
    import torch

    from ghistpy.nn.config import GHISTConfig
    from ghistpy.nn.published import PublishedNetwork
    from ghistpy.nn.published_losses import TypeRoles, published_losses

    folder = data_dir / "golden" / "model"
    kind = request.param
    with np.load(folder / f"ghist_parity_{kind}.npz") as stored:
        arrays = dict(stored)
    losses = json.loads((folder / f"losses_{kind}.json").read_text())
    shapes = json.loads((folder / f"state_dict_keys_{kind}.json").read_text())

    config = GHISTConfig.published(embedding=64, use_reference=kind == "sc")
    reference = arrays["in_reference"] / EXPRESSION_SCALE if kind == "sc" else None
    network = PublishedNetwork(config, 40, 5, reference)
    network.load_state_dict(rule_weights(shapes))
    network.eval().to(memory_format=torch.channels_last)

    n_cells = arrays["in_n_cells"].ravel()
    expression, cell_type = (
        torch.from_numpy(np.concatenate([arrays[key][i, :n] for i, n in enumerate(n_cells)]))
        for key in ("in_batch_expr", "in_batch_ct")
    )
    image = torch.from_numpy(arrays["in_hist"]).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(arrays["in_nuclei"])
    maps = {}
    hook = network.cnn.register_forward_hook(lambda _module, _inputs, out: maps.update(out=out))
    out = network(image, labels, expression=expression)
    hook.remove()
    terms = published_losses(
        out, expression, cell_type, torch.from_numpy(arrays["in_type_map"]), TypeRoles.from_names(losses["classes"])
    )
    terms.total.backward()
    return SimpleNamespace(
        kind=kind,
        arrays=arrays,
        losses=losses,
        shapes=shapes,
        network=network,
        image=image,
        labels=labels,
        out=out,
        maps=maps["out"],
        terms=terms,
    )
