"""The command line: quick help, one-line errors, and the same results as the functions it calls."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from typer.testing import CliRunner

import ghistpy
from ghistpy import __version__
from ghistpy.cli import app

COMMANDS = ("demo", "segment", "fit", "predict", "evaluate", "doctor")


def run(*arguments: object, code: int = 0) -> str:
    """Run a command in this process; return what it printed (stdout and stderr)."""
    loggers = [logging.getLogger(name) for name in ("ghistpy", "lightning.pytorch.utilities.rank_zero", "ome_zarr")]
    levels = [logger.level for logger in loggers]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)  # a command owns its process, a test does not
    plt.close("all")
    if result.exit_code != code and result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


# ---- help and version -----------------------------------------------------------------------------------------------


def test_version():
    assert run("--version") == f"ghistpy {__version__}\n"


def test_help_lists_every_command_and_loads_nothing_heavy():
    code = """
import json, sys, time
start = time.perf_counter()
from ghistpy.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
heavy = [m for m in ("torch", "anndata", "spatialdata", "matplotlib", "pandas", "zarr") if m in sys.modules]
print(json.dumps([heavy, time.perf_counter() - start]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, seconds = json.loads(done.stderr.splitlines()[-1])
    assert heavy == []
    assert seconds < 2
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command):
    assert "Usage" in run(command, "--help")


# ---- errors: one line, exit code 1, nothing written -----------------------------------------------------------------


def test_missing_slide(tmp_path):
    out = run("segment", tmp_path / "absent.tif", tmp_path / "out.zarr", code=1)
    assert out == f"error: {tmp_path / 'absent.tif'} does not exist\n"
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_not_touched(tmp_path):
    (tmp_path / "out.zarr").mkdir()
    out = run("segment", tmp_path / "absent.tif", tmp_path / "out.zarr", code=1)
    assert "out.zarr exists; choose another name" in out


def test_debug_keeps_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run("--debug", "segment", tmp_path / "absent.tif", tmp_path / "out.zarr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,path\nA,a.zarr\n", "has no column patient; it has: sample, path"),
        ("sample,path,patient\nA,a.zarr,\n", "has empty cells"),
        ("sample,path,patient\nA,a.zarr,1\nA,b.zarr,2\n", "names samples twice: A"),
        ("sample,path,patient\nA,a.zarr,1\n", "a.zarr does not exist; 'ghistpy segment'"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    out = run("fit", tmp_path / "m.csv", "--out", tmp_path / "model", code=1)
    assert message in out
    assert out.startswith("error: ")
    assert out.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_store(tmp_path):
    (tmp_path / "folder.zarr").mkdir()
    assert "is not a SpatialData store" in run("evaluate", tmp_path / "folder.zarr", code=1)


# ---- the verbs, on slides small enough for a test -------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A demo of the smallest kind: epochs 0 fits the head on measured morphology only."""
    out = tmp_path_factory.mktemp("demo") / "out"
    text = run("demo", out, "--n-cells", 250, "--max-epochs", 0)
    return out, text


def test_demo_prints_the_model_beside_baselines_and_ceiling(demo_folder):
    out, text = demo_folder
    header = next(line for line in text.splitlines() if "type_mean" in line).split()
    assert header[0] == "model"
    assert {"type_mean", "position", "morphology"} < set(header)
    assert header[-1] == "ceiling"
    frame = pd.read_csv(out / "evaluation.csv")
    score = frame.query("level == 'overall' and metric == 'pearson' and method == 'model'")["value"].item()
    line = next(line for line in text.splitlines() if line.startswith("all: PCC  "))
    assert float(line.split()[2]) == pytest.approx(score, abs=6e-4)
    truth = sd.read_zarr(out / "slide.zarr").tables["measured"]
    counts = np.log1p(truth.X.toarray())
    best = [np.corrcoef(counts[:, j], truth.layers["attainable"][:, j])[0, 1] for j in range(truth.n_vars)]
    assert float(line.split()[-1]) == pytest.approx(np.nanmedian(best), abs=6e-4)


def test_demo_writes_what_it_says(demo_folder):
    out, text = demo_folder
    written = [line.removeprefix("wrote ") for line in text.splitlines() if line.startswith("wrote ")]
    assert {p.name for p in out.iterdir()} == {".ghistpy-demo", *(path.rsplit("/", 1)[1] for path in written)}
    assert len([p for p in written if p.endswith(".png")]) == 7  # no training, no history
    stored = sd.read_zarr(out / "slide.zarr")
    assert set(stored.tables) == {"measured", "insilico"}
    assert len(ghistpy.get.evaluation(stored)) == len(pd.read_csv(out / "evaluation.csv"))


def test_demo_replaces_a_demo_and_nothing_else(demo_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds no ghistpy demo" in run("demo", tmp_path, code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def in_memory(path):
    """The slide of a store, cut off from the store."""
    stored = sd.read_zarr(path)
    return sd.SpatialData(
        images=dict(stored.images), labels=dict(stored.labels), tables=dict(stored.tables), attrs=stored.attrs
    )


@pytest.fixture(scope="module")
def trained(demo_folder, tmp_path_factory):
    """A model made by `ghistpy fit` from the slide of the demo."""
    out, _ = demo_folder
    folder = tmp_path_factory.mktemp("fit")
    (folder / "manifest.csv").write_text(f"sample,path,patient\nA,{out / 'slide.zarr'},1\n")
    arguments = ("fit", folder / "manifest.csv", "--out", folder / "model", "--max-epochs", 0)
    assert "100 genes, 6 cell types" in run(*arguments)
    assert "model exists; choose" in run(*arguments, code=1)
    return folder / "model"


def test_predict_gives_what_the_function_gives(demo_folder, trained, tmp_path):
    slide = demo_folder[0] / "slide.zarr"
    before = {p: p.stat().st_mtime_ns for p in slide.rglob("*") if p.is_file()}
    arguments = ("predict", slide, "--model", trained, "--out", tmp_path / "predicted")
    assert "250 nuclei x 100 genes" in run(*arguments)
    assert before == {p: p.stat().st_mtime_ns for p in slide.rglob("*") if p.is_file()}, "the input was changed"

    model, expected = ghistpy.models.GHIST.load(trained), in_memory(slide)
    ghistpy.tl.predict_expression(expected, model, progress=False)
    stored = sd.read_zarr(tmp_path / "predicted" / "slide.zarr").tables["insilico"]
    np.testing.assert_array_equal(stored.X, expected.tables["insilico"].X)
    np.testing.assert_array_equal(stored.obs["cell_id"], expected.tables["insilico"].obs["cell_id"])
    assert stored.uns["ghistpy"]["model_hash"] == model.hash

    assert "give --resume" in run(*arguments, code=1)
    assert "already predicted" in run(*arguments, "--resume")


def test_predict_segments_a_picture_and_goes_on_after_a_bad_one(demo_folder, trained, tmp_path):
    pixels = sd.read_zarr(demo_folder[0] / "slide.zarr").images["he"].to_numpy()
    tifffile.imwrite(tmp_path / "good.tif", np.moveaxis(pixels, 0, -1), photometric="rgb")
    (tmp_path / "bad.tif").write_bytes(b"II*\x00 and no more")
    out = tmp_path / "predicted"
    text = run(
        "predict", tmp_path / "bad.tif", tmp_path / "good.tif", "--model", trained, "--out", out, "--mpp", 0.5, code=1
    )
    assert "bad.tif: failed: " in text
    assert "good.tif: no labels 'nuclei', segmenting nuclei" in text
    assert text.endswith("error: 1 of 2 slides failed: bad.tif\n")
    assert [p.name for p in out.iterdir()] == ["good.zarr"]
    stored = sd.read_zarr(out / "good.zarr")
    n_nuclei = len(np.unique(stored.labels["nuclei"].to_numpy())) - 1
    assert stored.tables["insilico"].n_obs == n_nuclei > 100


def test_nuclei_are_not_segmented_under_a_table_of_other_ids(demo_folder, trained, tmp_path):
    slide = in_memory(demo_folder[0] / "slide.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the table now annotates what is not there
        sd.SpatialData(images=dict(slide.images), tables={"measured": slide.tables["measured"]}).write(
            tmp_path / "s.zarr"
        )
    text = run("predict", tmp_path / "s.zarr", "--model", trained, "--out", tmp_path / "out", code=1)
    assert "table 'measured' annotates labels 'nuclei', which are missing" in text
    assert list((tmp_path / "out").iterdir()) == []


def test_evaluate_writes_the_frame_that_get_reads(demo_folder, tmp_path):
    store = tmp_path / "slide.zarr"
    shutil.copytree(demo_folder[0] / "slide.zarr", store)
    text = run("evaluate", store, "--csv", tmp_path / "frame.csv")
    frame = ghistpy.get.evaluation(sd.read_zarr(store))
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "frame.csv"), frame.astype(dict.fromkeys(frame.columns[:5], object)), check_exact=False
    )
    # without the model the baselines know this slide, and the frame says so
    assert set(frame.query("method == 'global_mean'")["source"]) == {"this slide, cross-fitted on spatial blocks"}
    assert "all: PCC" in text


def test_spots_are_compared_with_sums_of_nuclei(demo_folder, tmp_path):
    slide = in_memory(demo_folder[0] / "slide.zarr")
    cells, side_um = slide.tables["measured"], 40.0
    pixels = slide.images["he"].to_numpy()
    centres = (np.arange(side_um / 2, pixels.shape[1] * 0.5 - side_um / 2, side_um)).tolist()
    xy = np.array([(x, y) for x in centres for y in centres])
    inside = np.linalg.norm(cells.obsm["spatial"][None] - xy[:, None], axis=-1) <= side_um / 2
    names = [f"s{i}" for i in range(len(xy))]
    counts = pd.DataFrame(inside.astype(float) @ cells.X.toarray(), index=names, columns=cells.var_names)
    positions = pd.DataFrame({"pixel_x": xy[:, 0] / 0.5, "pixel_y": xy[:, 1] / 0.5}, index=names)
    spots = ghistpy.io.read_spots(pixels, counts, positions, mpp=0.5, spot_diameter_um=side_um)
    spots.labels["nuclei"] = slide.labels["nuclei"]
    spots.write(tmp_path / "spots.zarr")
    (tmp_path / "m.csv").write_text("sample,path,patient\nA,spots.zarr,1\n")
    run("fit", tmp_path / "m.csv", "--out", tmp_path / "model", "--supervision", "spots", "--max-epochs", 0)
    run("predict", tmp_path / "spots.zarr", "--model", tmp_path / "model", "--out", tmp_path)
    text = run("evaluate", tmp_path / "spots.zarr", "--model", tmp_path / "model")
    assert "table 'measured' holds spots" in text
    assert "PCC, depth-adjusted" in text
    stored = sd.read_zarr(tmp_path / "spots.zarr")
    np.testing.assert_array_equal(stored.tables["insilico_spots"].obs["n_nuclei"], inside.sum(axis=1))
