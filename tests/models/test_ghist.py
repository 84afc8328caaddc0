"""A model on disk: the same predictions and hash, replaced as a whole, and refused when it is not what it should be."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

import ghistpy as gp
from ghistpy.models import GHIST, GHISTConfig

CONFIG = GHISTConfig(widths=(4, 6), embedding=6, decoder=4, random_features=16, context_um=(20.0,), tile_px=256)


@pytest.fixture(scope="module")
def slide():
    return gp.datasets.simulate_slide(n_cells=120, n_genes=8, seed=2)


@pytest.fixture(scope="module")
def model(slide):
    return gp.tl.fit(slide, config=CONFIG, max_epochs=0, progress=False)


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def predicted(slide, model):
    gp.tl.predict_expression(slide, model, device="cpu", progress=False)
    return slide["insilico"]


def test_round_trip(slide, model, folder):
    again = GHIST.load(folder)
    assert again.hash == model.hash
    assert (again.genes, again.cell_types, again.config) == (model.genes, model.cell_types, model.config)
    assert (again.supervision, again.gene_sets, again.mpp) == (model.supervision, model.gene_sets, model.mpp)
    for group in ("baselines", "calibration", "extras"):
        before, after = getattr(model, group), getattr(again, group)
        assert set(before) == set(after)
        for name, value in before.items():
            assert np.asarray(after[name]).dtype == np.asarray(value).dtype
            np.testing.assert_array_equal(after[name], value)
    tables = [predicted(slide, m) for m in (model, again)]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)
    for key in ("cell_type_proba", "composition", "morphology"):
        np.testing.assert_array_equal(tables[0].obsm[key], tables[1].obsm[key])
    assert tables[0].uns["ghistpy"]["model_hash"] == tables[1].uns["ghistpy"]["model_hash"] == model.hash
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert repr(again) == repr(model)


def test_a_path_is_as_good_as_a_model(slide, model, folder):
    np.testing.assert_array_equal(predicted(slide, str(folder)).X, predicted(slide, model).X)


def test_history_survives(model, tmp_path):
    rows = [{"epoch": 0.0, "val_loss": 1 / 3}, {"epoch": 1.0, "val_loss": float("nan")}]
    other = copied(model, history=rows)
    other.save(tmp_path / "m")
    again = GHIST.load(tmp_path / "m")
    assert again.history["val_loss"].iloc[0] == 1 / 3
    assert np.isnan(again.history["val_loss"].iloc[1])
    assert again.hash == other.hash != model.hash
    assert model.history.empty


def copied(model, **changes):
    fields = {
        name: getattr(model, name)
        for name in (
            "network", "head", "config", "genes", "cell_types", "supervision", "extras", "baselines", "calibration",
            "gene_sets",
        )
    }  # fmt: skip
    return GHIST(**{**fields, **changes})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"genes": [*m.genes[:-1], "other"]},
        lambda m: {"cell_types": m.cell_types[::-1]},
        lambda m: {"config": dataclasses.replace(m.config, tile_px=512)},
        lambda m: {"baselines": {**m.baselines, "gene_mean": m.baselines["gene_mean"] + 1e-9}},
        lambda m: {"supervision": "spots"},
    ],
)
def test_the_hash_tells_models_apart(model, change):
    assert copied(model, **change(model)).hash != model.hash


def test_unknown_supervision(model):
    with pytest.raises(ValueError, match=r"supervision='bulk': expected one of \('cells', 'spots'\)"):
        copied(model, supervision="bulk")


def listing(path):
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


def test_a_model_is_replaced_as_a_whole(model, folder):
    other = copied(model, genes=[g + "_2" for g in model.genes])
    other.save(folder)
    assert GHIST.load(folder).genes == other.genes
    assert [p.name for p in folder.parent.iterdir()] == ["model"]  # nothing is left behind


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("step", ["save_file", "replace"])
def test_a_failed_save_leaves_the_old_model(model, folder, monkeypatch, step, can_exchange):
    import os

    import safetensors.torch

    from ghistpy.models import ghist

    before = listing(folder)
    if step == "save_file":

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", fail)
    else:
        real = os.replace

        def fail(source, target):
            if str(target) == str(folder) and not str(source).endswith(".old"):
                raise OSError(5, "Input/output error")
            real(source, target)

        monkeypatch.setattr(ghist.os, "replace", fail)
        if can_exchange:

            def no(*_):
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(ghist, "exchange", no)
    if not can_exchange:
        monkeypatch.setattr(ghist, "exchange", lambda *_: False)
    with pytest.raises(OSError, match="No space left|Input/output error"):
        copied(model, genes=[g + "_2" for g in model.genes]).save(folder)
    assert listing(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_without_exchange_it_is_replaced_too(model, folder, monkeypatch):
    from ghistpy.models import ghist

    monkeypatch.setattr(ghist, "exchange", lambda *_: False)
    other = copied(model, genes=[g + "_2" for g in model.genes])
    other.save(folder)
    assert GHIST.load(folder).hash == other.hash
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_what_is_no_model_is_not_replaced(model, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.csv").write_text("1")
    (tmp_path / "file").write_text("2")
    for name in ("data", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is not a ghistpy model; choose another folder"):
            model.save(tmp_path / name)
    assert (tmp_path / "data" / "precious.csv").read_text() == "1"


@pytest.mark.parametrize("keep", [0, 4, 300, -10])
def test_truncated_weights(folder, keep):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is truncated or not a safetensors file"):
        GHIST.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "{}", "\x00\x01"])
def test_foreign_metadata(folder, content):
    (folder / "model.json").write_text(content)
    with pytest.raises(ValueError, match="model.json is damaged or not of a ghistpy model"):
        GHIST.load(folder)


def edit(folder, **changes):
    meta = json.loads((folder / "model.json").read_text())
    meta.update(changes)
    (folder / "model.json").write_text(json.dumps({k: v for k, v in meta.items() if v != "gone"}))


def test_a_newer_format(folder):
    edit(folder, format=2)
    with pytest.raises(ValueError, match="has format 2, this version reads 1; update ghistpy"):
        GHIST.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": "gone"}, r"lacks \['genes'\], or holds something else there"),
        ({"config": "gone", "history": 3}, r"lacks \['config', 'history'\]"),
        ({"genes": ["a", "b"]}, "do not fit its settings"),
        ({"cell_types": ["a"]}, "do not fit its settings"),
        ({"supervision": "bulk"}, "supervision='bulk'"),
        ({"config": {"colour": 1}}, r"unknown field\(s\) \['colour'\].* newer ghistpy"),
        ({"config": dataclasses.replace(CONFIG, widths=(4, 8)).to_dict()}, "do not fit its settings"),
        ({"config": dataclasses.replace(CONFIG, widths=(4, 6, 8)).to_dict()}, "do not fit its settings"),
    ],
)
def test_metadata_that_does_not_fit(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        GHIST.load(folder)


def test_another_number_of_measured_features(folder, monkeypatch):
    from ghistpy.data import windows

    monkeypatch.setattr(windows, "LOCAL_FEATURES", (*windows.LOCAL_FEATURES, "new"))
    with pytest.raises(ValueError, match="trained with 29 measured features of a nucleus, this version measures 30"):
        GHIST.load(folder)


def test_missing_parts(folder, tmp_path):
    for path, name in ((tmp_path / "nowhere", "model.json"), (folder, "model.safetensors")):
        if path.exists():
            (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"is not a ghistpy model, it has no {name}"):
            GHIST.load(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="is not a ghistpy model"):
        GHIST.load(tmp_path / "file")


def test_weights_of_another_model(model, slide, folder, tmp_path):
    other = gp.tl.fit(slide, config=dataclasses.replace(CONFIG, embedding=9), max_epochs=0, progress=False)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="(?s)the weights in .*model do not fit its settings: .*size mismatch"):
        GHIST.load(folder)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_no_pickle_is_read(folder, monkeypatch):
    import torch

    def refuse(*_, **__):
        pytest.fail("a pickle was read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    GHIST.load(folder)
    monkeypatch.undo()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        GHIST.load(folder)
    torch.save({"network": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        GHIST.load(folder)


def test_a_published_model_needs_its_standardisation(tmp_path):
    from ghistpy.nn.published import PublishedNetwork

    config = GHISTConfig.published(width_factor=1 / 32, embedding=16)
    network = PublishedNetwork(config, 3, 2, None)
    model = GHIST(network=network, config=config, genes=list("abc"), cell_types=["x", "y"])
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"lacks extras \['image_mean', 'image_std'\]"):
        GHIST.load(tmp_path / "m")
