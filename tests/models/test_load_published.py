"""Checkpoints of the published program: round trip, wrappers, and everything that does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ghistpy.models.published import load_published
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork

GENES, TYPES = ["EPCAM", "CD3E", "SCD"], ["B", "T"]
STANDARD = np.array([[200.0, 170.0, 210.0], [30.0, 43.0, 25.0]])


def _network(use_reference=False, **options):
    torch.manual_seed(0)
    config = GHISTConfig.published(width_factor=1 / 32, embedding=16, use_reference=use_reference, **options)
    reference = np.random.default_rng(0).random((4, 3)).astype(np.float32) if use_reference else None
    return PublishedNetwork(config, len(GENES), len(TYPES), reference).eval(), reference


@pytest.fixture
def state():
    return _network()[0].state_dict()


def _load(path, **options):
    values = {"genes": GENES, "cell_types": TYPES, "mpp": 0.5, "standardisation": STANDARD, **options}
    return load_published(path, **values)


def _save(value, path):
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "model_state_dict": s},
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"module." + key: value for key, value in s.items()},
        lambda s: {"model_state_dict": {"_orig_mod.module." + key: value for key, value in s.items()}},
    ],
)
def test_wrapped_state_is_found(state, tmp_path, wrap):
    model = _load(_save(wrap(state), tmp_path / "model.pth"))
    loaded = model.network.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert (model.genes, model.cell_types, model.mpp) == (GENES, TYPES, 0.5)
    assert model.config == GHISTConfig.published(width_factor=1 / 32, embedding=16)
    np.testing.assert_array_equal(model.extras["image_mean"], STANDARD[0])
    np.testing.assert_array_equal(model.extras["image_std"], STANDARD[1])
    assert not model.network.training


def test_old_file_format(state, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(_load(path).network.state_dict()["mlp_hist.mlp.0.bias"], state["mlp_hist.mlp.0.bias"])


def test_reference_round_trip_and_gene_order(tmp_path):
    import pandas as pd

    network, reference = _network(use_reference=True)
    path = _save(network.state_dict(), tmp_path / "model.pth")
    model = _load(path, reference=reference)
    torch.testing.assert_close(model.network.reference, network.reference)
    image, labels = torch.randn(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[0, 5:9, 5:9] = 3
    assert torch.equal(model.network(image, labels).expression, network(image, labels).expression)
    shuffled = pd.DataFrame(reference, columns=GENES)[["SCD", "EPCAM", "CD3E"]].assign(OTHER=1.0)
    np.testing.assert_array_equal(_load(path, reference=shuffled).extras["reference"], reference)


def test_reference_as_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    import pandas as pd

    network, reference = _network(use_reference=True)
    path = _save(network.state_dict(), tmp_path / "model.pth")
    table = anndata.AnnData(
        reference[:, ::-1].copy(), pd.DataFrame(index=list("abcd")), pd.DataFrame(index=GENES[::-1])
    )
    np.testing.assert_array_equal(_load(path, reference=table).extras["reference"], reference)


@pytest.mark.parametrize(
    ("use_reference", "reference", "message"),
    [
        (True, None, r"reference: .* was trained with 4 reference profiles; give them"),
        (True, np.ones((5, 3)), r"reference: expected \(4 profiles, 3 genes\) .* got shape \(5, 3\)"),
        (True, np.full((4, 3), np.nan), "reference: holds NaN"),
        (False, np.ones((4, 3)), "reference: .* was trained without one; leave it out"),
    ],
)
def test_reference_that_does_not_fit(tmp_path, use_reference, reference, message):
    path = _save(_network(use_reference)[0].state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        _load(path, reference=reference)


def test_reference_frame_without_a_gene(tmp_path):
    import pandas as pd

    path = _save(_network(use_reference=True)[0].state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"reference: 1 of 3 genes missing, such as \['SCD'\]"):
        _load(path, reference=pd.DataFrame(np.ones((4, 2)), columns=GENES[:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": GENES[:2]}, "genes: got 2 names, but .* was trained with 3"),
        ({"cell_types": [*TYPES, "Stroma"]}, "cell_types: got 3 names, but .* was trained with 2"),
        ({"genes": ["EPCAM", "EPCAM", "SCD"]}, r"genes: \['EPCAM'\] occur more than once"),
        ({"genes": "EPCAM"}, "genes: expected a list of names"),
        ({"cell_types": []}, "cell_types: got none"),
        ({"mpp": -1}, "mpp: .* got -1"),
        ({"standardisation": STANDARD.T}, r"standardisation: expected \(2, 3\).*got shape \(3, 2\)"),
        ({"standardisation": STANDARD * [[1], [0]]}, "positive standard deviation"),
        ({"standardisation": STANDARD / 255}, "look like a 0-1 scale"),
    ],
)
def test_arguments_that_do_not_fit(state, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _load(_save(state, tmp_path / "model.pth"), **options)


def test_standardisation_from_file(state, tmp_path):
    path = _save(state, tmp_path / "model.pth")
    np.save(tmp_path / "norm.npy", STANDARD)
    np.testing.assert_array_equal(_load(path, standardisation=tmp_path / "norm.npy").extras["image_std"], STANDARD[1])
    with pytest.raises(FileNotFoundError, match="standardisation: no file"):
        _load(path, standardisation=tmp_path / "none.npy")
    with pytest.raises(ValueError, match="is no .npy array"):
        _load(path, standardisation=path)


def _without(key):
    return lambda s: {k: v for k, v in s.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("cnn.bn1d_1.weight"), r"1 missing: \['cnn.bn1d_1.weight'\]"),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"1 not known: \['extra.weight'\]"),
        (
            lambda s: {**s, "cnn.outconv_seg.bias": torch.zeros(9)},
            r"1 of another shape: \['cnn.outconv_seg.bias \(9,\) instead of \(3,\)'\]",
        ),
        (lambda s: {**s, "mlp_hist.mlp.0.bias": torch.full((16,), torch.nan)}, "NaN or infinite .*mlp_hist.mlp.0.bias"),
        (lambda s: torch.nn.Linear(2, 2).state_dict(), "is no checkpoint of the published network: .* has 2 entries"),
        (lambda s: {"epoch": 3, "loss": 0.1}, r"holds \['epoch', 'loss'\], no state dict under any of"),
        (lambda s: [1, 2], "holds list, no state dict"),
        (lambda s: torch.zeros(3), "holds Tensor, no state dict"),
        (lambda s: {}, "holds dict, no state dict"),
    ],
)
def test_foreign_checkpoints(state, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        _load(_save(change(state), tmp_path / "model.pth"))


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(state, tmp_path, kept, zipped):
    path = tmp_path / "model.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ValueError, match=r"checkpoint: .*model.pth (cannot be read|is no file of weights)"):
        _load(path)


def test_text_and_missing_files(tmp_path):
    path = tmp_path / "model.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match="checkpoint: .*model.pth"):
        _load(path)
    with pytest.raises(FileNotFoundError, match="checkpoint: no file .*gone.pth"):
        _load(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="checkpoint: no file"):
        _load(tmp_path)


def test_nothing_in_the_file_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    path = _save({"model_state_dict": Payload()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="Python objects beside them, which are never executed"):
        _load(path)
    assert not (tmp_path / "executed").exists()


def test_half_precision_weights(state, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model = _load(_save(half, tmp_path / "model.pth"))
    assert model.network.mlp_hist.mlp[0].weight.dtype == torch.float32


def test_saved_as_a_folder_and_loaded_again(tmp_path):
    from ghistpy.models import GHIST

    network, reference = _network(use_reference=True, mpp=0.25)
    model = _load(_save(network.state_dict(), tmp_path / "model.pth"), reference=reference, mpp=0.25)
    model.save(tmp_path / "model")
    again = GHIST.load(tmp_path / "model")
    assert (again.config, again.genes, again.cell_types, again.hash) == (
        model.config, model.genes, model.cell_types, model.hash,
    )  # fmt: skip
    for key in ("image_mean", "image_std", "reference"):
        np.testing.assert_array_equal(again.extras[key], model.extras[key])
    torch.testing.assert_close(again.network.reference, network.reference)
    stored = again.network.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in network.state_dict().items())
