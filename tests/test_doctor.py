"""The doctor: a sound slide has no problem, and every planted one is named with its remedy."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from spatialdata.transformations import Identity, set_transformation
from typer.testing import CliRunner

import ghistpy as gp
from ghistpy import doctor
from ghistpy.cli import app
from ghistpy.doctor import environment


def _slide(**kwargs):
    return gp.datasets.simulate_slide(**({"n_cells": 300, "n_genes": 10, "size_um": 300.0, "seed": 1} | kwargs))


def _problems(findings):
    return {f.topic: f for f in findings if f.level == doctor.PROBLEM}


def test_environment_names_what_is_there_and_what_is_not(monkeypatch):
    import importlib.util
    from importlib.metadata import version

    found = {f.topic: f for f in doctor.check_environment()}
    assert found["ghistpy"].text.startswith(gp.__version__)
    assert f"torch {version('torch')}" in found["versions"].text
    assert "CPU cores" in found["device"].text
    for extra, (module, _) in environment._EXTRAS.items():
        here = importlib.util.find_spec(module) is not None
        assert found[f"extra {extra}"].level == (doctor.OK if here else doctor.NOTE)
        assert here or found[f"extra {extra}"].remedy == f"pip install 'ghistpy[{extra}]'"
    monkeypatch.setenv("GHISTPY_DATA_DIR", "/nowhere")
    assert "holds no folder data/" in _problems(doctor.check_environment())["data"].text


def test_every_extra_of_the_project_is_known():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(environment._EXTRAS) == set(project["optional-dependencies"]) - {"all", "docs", "test"}


def test_sound_slide_has_no_problem_and_is_not_changed():
    sdata = _slide()
    before = sdata["measured"].copy()
    findings = doctor.check_slide(sdata)
    assert _problems(findings) == {}
    topics = {f.topic: f for f in findings}
    assert topics["µm/px"].text == "0.5"
    assert topics["labels"].text.startswith("300 nuclei, median area")
    assert topics["matching measured"].level == doctor.OK
    pd.testing.assert_frame_equal(sdata["measured"].obs, before.obs)
    assert "matching" not in sdata["measured"].uns["ghistpy"]


def _no_scale(sdata):
    set_transformation(sdata["he"], Identity(), "microns")


def _odd_scale(sdata):
    from ghistpy.io.elements import to_microns

    for element in (sdata["he"], sdata["nuclei"]):
        set_transformation(element, to_microns(72.0)["microns"], "microns")


def _swapped(sdata):
    table = sdata["measured"]
    del table.uns["spatialdata_attrs"]
    table.obsm["spatial"] = table.obsm["spatial"][:, ::-1]


def _other_ids(sdata):
    sdata["measured"].obs["cell_id"] += 5000


def _string_ids(sdata):
    sdata["measured"].obs["cell_id"] = sdata["measured"].obs["cell_id"].astype(str)


def _repeated_genes(sdata):
    sdata["measured"].var_names = ["A", "A", *sdata["measured"].var_names[2:]]


def _empty_labels(sdata):
    from ghistpy.io.elements import labels_element

    shape = sdata["nuclei"].shape
    del sdata.labels["nuclei"]
    sdata.labels["nuclei"] = labels_element(np.zeros(shape, np.int32), 0.5)


def _cut_labels(sdata):
    from ghistpy.io.elements import labels_element

    array = np.asarray(sdata["nuclei"].data)[:-7]
    del sdata.labels["nuclei"]
    sdata.labels["nuclei"] = labels_element(array, 0.5)


@pytest.mark.parametrize(
    ("damage", "topic", "text", "remedy"),
    [
        (_no_scale, "µm/px", "is an Identity", "mpp="),
        (_odd_scale, "µm/px", "72, which no slide scanner makes", "20x is about 0.5"),
        (_swapped, "matching measured", "x and y swapped", "exchange the columns"),
        (_other_ids, "table measured", "0 of 300 ids are in 'nuclei'", "do not belong together"),
        (_string_ids, "table measured", "holds strings", "see the message"),
        (_repeated_genes, "table measured", "1 gene names repeat", "var_names_make_unique"),
        (_empty_labels, "labels", "holds no nucleus", "segment again"),
        (_cut_labels, "labels", "has shape", "see the message"),
    ],
)
def test_planted_problems(damage, topic, text, remedy):
    sdata = _slide()
    damage(sdata)
    problems = _problems(doctor.check_slide(sdata))
    assert topic in problems
    assert text in problems[topic].text
    assert remedy in problems[topic].remedy


def test_missing_parts():
    import spatialdata as sd

    bare = sd.SpatialData()
    found = {f.topic: f for f in doctor.check_slide(bare)}
    assert found["image"].level == doctor.PROBLEM
    assert found["labels"].level == doctor.NOTE
    assert "ghistpy predict" in found["tables"].remedy


def test_unusual_stain_is_noted():
    from ghistpy.io.elements import image_element

    sdata = _slide()
    pixels = np.asarray(gp.io.open_image(sdata).read(gp.geometry.Window(0, 0, 600, 600)))
    faint = (255 - (255 - pixels.astype(float)) * 0.3).astype(np.uint8)
    sdata.images["he"] = image_element(faint, 0.5)
    stain = next(f for f in doctor.check_slide(sdata) if f.topic == "stain")
    assert stain.level == doctor.NOTE
    assert next(f for f in doctor.check_slide(_slide()) if f.topic == "stain").level == doctor.OK


@pytest.fixture(scope="module")
def model():
    return gp.tl.fit(_slide(seed=4), max_epochs=0, progress=False)


def test_panel_scale_and_provenance_against_a_model(model):
    sdata = _slide()
    found = [f for f in doctor.check_slide(sdata, model) if f.topic == "table measured"]
    assert any(f.text == "10 of the 10 genes of the model" for f in found)
    sdata["measured"].var_names = [g.lower() for g in sdata["measured"].var_names]
    panel = _problems(doctor.check_slide(sdata, model))["table measured"]
    assert panel.text == "0 of the 10 genes of the model"
    assert "upper and lower case" in panel.remedy
    gp.tl.predict_expression(sdata, model, progress=False)
    found = [f for f in doctor.check_slide(sdata, model) if f.topic == "table insilico"]
    assert any(f.text == "predicted by this model" for f in found)
    sdata["insilico"].uns["ghistpy"]["model_hash"] = "0" * 16
    found = [f for f in doctor.check_slide(sdata, model) if f.topic == "table insilico"]
    assert any("another model" in f.text and f.level == doctor.NOTE for f in found)
    coarse = {f.topic: f for f in doctor.check_slide(_slide(mpp=1.0, size_um=400.0), model)}
    assert coarse["model"].level == doctor.NOTE
    assert coarse["µm/px"].level == doctor.NOTE


def _run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_command(tmp_path, model):
    sound, swapped = _slide(), _slide()
    sound.write(tmp_path / "sound.zarr")
    _swapped(swapped)
    swapped.write(tmp_path / "swapped.zarr")
    model.save(tmp_path / "model")
    result = _run(tmp_path / "sound.zarr", "--model", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert result.output.endswith("\n0 problems\n")
    files = sorted(p for p in (tmp_path / "swapped.zarr").rglob("*") if p.is_file())
    before = [p.stat().st_mtime_ns for p in files]
    result = _run(tmp_path / "swapped.zarr")
    assert result.exit_code == 1
    assert result.output.endswith("\n1 problem\n")
    assert "x and y swapped" in result.output
    assert [p.stat().st_mtime_ns for p in files] == before
    parsed = json.loads(_run(tmp_path / "swapped.zarr", "--json").output)
    assert [f["topic"] for f in parsed if f["level"] == "problem"] == ["matching measured"]


def test_command_refuses_what_is_no_store(tmp_path):
    assert "does not exist" in _run(tmp_path / "none.zarr").output
    (tmp_path / "folder").mkdir()
    assert "is not a SpatialData store" in _run(tmp_path / "folder").output
    result = _run("--model", tmp_path / "none")
    assert result.exit_code == 1
    assert "--model is compared with a store" in result.output


def test_damaged_and_interrupted_store(tmp_path):
    path = tmp_path / "slide.zarr"
    _slide().write(path)
    (tmp_path / "slide.zarr.staging").mkdir()
    assert "stopped while it wrote a table" in _run(path).output
    (path / "tables" / "measured" / "X" / "data" / "zarr.json").write_text("{")
    result = _run(path)
    assert result.exit_code == 1
    assert "store" in result.output
