"""A prediction that was killed goes on where it was, to the same bits; what changed meanwhile is refused."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ghistpy as gp
from ghistpy.engine import extract as extract_module
from ghistpy.engine import published as published_module
from ghistpy.models import GHISTConfig

CONFIG = GHISTConfig(widths=(4, 6), embedding=6, decoder=4, random_features=16, context_um=(20.0,), tile_px=128)

SCRIPT = """
import sys, time
import spatialdata as sd
import ghistpy as gp
from ghistpy.engine import extract

extract._BLOCK_TILES = 2
load = extract.load_tile
def slow(*args):
    time.sleep(0.2)
    return load(*args)
extract.load_tile = slow
gp.tl.predict_expression(sd.read_zarr(sys.argv[1]), sys.argv[2], device="cpu", workers=1, progress=False)
"""


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "_BLOCK_TILES", 2)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with slide.zarr and a model; the model."""
    folder = tmp_path_factory.mktemp("made")
    slide = gp.datasets.simulate_slide(n_cells=300, n_genes=9, seed=5)
    model = gp.tl.fit(slide, config=CONFIG, max_epochs=0, progress=False)
    model.save(folder / "model")
    slide.write(folder / "slide.zarr")
    return folder, model


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    folder, model = made
    path = tmp_path_factory.mktemp("undisturbed") / "slide.zarr"
    shutil.copytree(folder / "slide.zarr", path)
    return predict(path, model)


def open_store(path):
    import spatialdata as sd

    return sd.read_zarr(path)


def predict(path, model, **options):
    sdata = open_store(path)
    gp.tl.predict_expression(sdata, model, device="cpu", progress=False, **options)
    assert "insilico" in open_store(path).tables
    return sdata["insilico"]


def assert_same(got, expected):
    np.testing.assert_array_equal(np.asarray(got.X), np.asarray(expected.X))
    for key in expected.obsm:
        np.testing.assert_array_equal(got.obsm[key], expected.obsm[key], err_msg=key)
    for key in expected.obs:
        assert got.obs[key].tolist() == expected.obs[key].tolist(), key


@pytest.fixture
def store(made, tmp_path):
    path = tmp_path / "slide.zarr"
    shutil.copytree(made[0] / "slide.zarr", path)
    return path


@pytest.fixture
def counted(monkeypatch):
    """Tiles that are loaded from now on."""
    seen = []
    load_tile = extract_module.load_tile

    def counting(slide, plan, tile, config):
        seen.append(tile)
        return load_tile(slide, plan, tile, config)

    monkeypatch.setattr(extract_module, "load_tile", counting)
    return seen


@pytest.fixture
def stopped(store, made, monkeypatch):
    """The store after a run that failed at tile 7 of 16 or so; its partial folder."""
    load_tile = extract_module.load_tile

    def failing(slide, plan, tile, config):
        if tile >= 7:
            raise OSError("the reader was unplugged")
        return load_tile(slide, plan, tile, config)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "load_tile", failing)
        with pytest.raises(OSError, match="unplugged"):
            predict(store, made[1])
    partial = store.with_name("slide.zarr.insilico.partial")
    assert len(list((partial / "tiles").glob("*.npz"))) == 3
    assert "insilico" not in open_store(store).tables
    return partial


def test_killed_at_random_and_resumed(made, store, undisturbed, counted):
    """kill -9 twice, each after a random number of further blocks, then in peace."""
    folder, model = made
    rng = np.random.default_rng(int(time.time()))
    tiles = store.with_name("slide.zarr.insilico.partial") / "tiles"
    finished = 0
    for _ in range(2):
        env = {**os.environ, "PYTHONPATH": str(Path(gp.__file__).parents[1])}
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(store), str(folder / "model")], env=env)
        wait_for = finished + int(rng.integers(1, 3))
        deadline = time.monotonic() + 120
        while len(list(tiles.glob("*.npz"))) < wait_for and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had finished before it was killed"
        finished = len(list(tiles.glob("*.npz")))
    got = predict(store, model)
    assert_same(got, undisturbed)
    assert sorted(set(counted)) == list(range(2 * finished, max(counted) + 1))
    assert sorted(p.name for p in store.parent.iterdir()) == ["slide.zarr"]


def test_only_what_was_missing_is_computed(stopped, store, made, undisturbed, counted, caplog):
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        got = predict(store, made[1], batch_size=1, workers=3)
    assert f"resuming the unfinished prediction in {stopped}" in caplog.text
    assert min(counted) == 6  # blocks of 2 tiles
    assert_same(got, undisturbed)
    assert not stopped.exists()


def test_a_damaged_block_is_computed_again(stopped, store, made, undisturbed, counted):
    path = stopped / "tiles" / "000001.npz"
    path.write_bytes(path.read_bytes()[:-300])
    assert_same(predict(store, made[1]), undisturbed)
    assert sorted(set(counted))[:3] == [2, 3, 6]


def test_resume_false_starts_over(stopped, store, made, undisturbed, counted):
    assert_same(predict(store, made[1], resume=False), undisturbed)
    assert min(counted) == 0
    assert not stopped.exists()


@contextlib.contextmanager
def nothing():
    yield


@contextlib.contextmanager
def other_profiles(model):
    before = model.head.profiles.clone()
    model.head.profiles += 0.1
    yield
    model.head.profiles.copy_(before)


@pytest.mark.parametrize("what", ["model", "labels", "image", "one pixel", "one label", "precision"])
def test_what_changed_is_named(stopped, store, made, what):
    model, options = made[1], {}
    expected = {"one pixel": "the image changed in Window", "one label": "labels"}.get(what, f"another {what}")
    if what == "precision":
        options["precision"] = "bfloat16"
    elif what != "model":
        change_store(store, what)
    before = sorted(p.name for p in stopped.rglob("*"))
    with other_profiles(model) if what == "model" else nothing():
        with pytest.raises(ValueError, match=f"resume=True: .*{expected}.*resume=False to discard it"):
            predict(store, model, **options)
        assert sorted(p.name for p in stopped.rglob("*")) == before
        predict(store, model, resume=False, **options)


def change_store(store, what):
    import zarr

    kind, name = ("images", "he") if what in ("image", "one pixel") else ("labels", "nuclei")
    array = zarr.open_group(store / kind / name, mode="r+")["s0" if "s0" in os.listdir(store / kind / name) else "0"]
    values = array[...]
    if what == "image":
        values = values // 2
    elif what == "one pixel":
        values[0, 40, 41] ^= 1
    elif what == "labels":
        values[values > 0] += 1000
    else:
        y, x = np.argwhere((values[:-1] > 0) & (values[1:] == 0))[0]
        values[y + 1, x] = values[y, x]
    array[...] = values


def test_without_a_store(made, undisturbed, tmp_path, caplog, monkeypatch, counted):
    slide, model = open_store(made[0] / "slide.zarr"), made[1]
    slide.path = None
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        gp.tl.predict_expression(slide, model, device="cpu", progress=False)
    assert "resume=True has no effect: the slide has no store; give scratch_dir=" in caplog.text
    assert_same(slide["insilico"], undisturbed)

    with monkeypatch.context() as patch:
        patch.setattr("ghistpy.engine.predict.apply_head", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gp.tl.predict_expression(slide, model, device="cpu", progress=False, scratch_dir=tmp_path / "scratch")
    counted.clear()
    gp.tl.predict_expression(slide, model, device="cpu", progress=False, scratch_dir=tmp_path / "scratch")
    assert counted == []  # every tile was finished
    assert_same(slide["insilico"], undisturbed)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_full_disk_is_named_and_the_store_unchanged(store, made, monkeypatch, undisturbed):
    before = sorted((p, p.stat().st_mtime_ns) for p in store.rglob("*"))
    save, calls = np.savez, []

    def full(file, **arrays):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"slide\.zarr\.insilico\.partial: cannot write \(No space left on device\)"):
            predict(store, made[1])
    assert sorted((p, p.stat().st_mtime_ns) for p in store.rglob("*")) == before
    assert_same(predict(store, made[1]), undisturbed)


def test_a_large_table_goes_through_the_disk(store, made, undisturbed, monkeypatch):
    """The same table, whether X was ever in memory or not; several blocks of X in the store."""
    import dask.array as da

    from ghistpy.engine import predict as engine
    from ghistpy.tl import predict as verb

    monkeypatch.setattr(engine, "_IN_MEMORY", 0)
    monkeypatch.setattr(verb, "_CHUNK_BYTES", 4 * 9 * 64)
    got = predict(store, made[1])
    assert isinstance(got.X, da.Array)
    assert not store.with_name("slide.zarr.insilico.partial").exists()
    assert_same(got, undisturbed)
    assert_same(got.to_memory(), undisturbed)
    back = open_store(store)["insilico"]
    assert isinstance(back.X, np.ndarray)
    assert_same(back, undisturbed)
    # in memory, with a scratch folder: the values are loaded before the folder goes
    slide = open_store(store)
    slide.path = None
    gp.tl.predict_expression(slide, made[1], device="cpu", progress=False, scratch_dir=store.parent / "scratch")
    assert isinstance(slide["insilico"].X, np.ndarray)
    assert_same(slide["insilico"], undisturbed)


def test_two_runs_at_once_are_refused(stopped, store, made):
    import fcntl

    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(OSError, match="another process is predicting into"):
            predict(store, made[1])
    finally:
        os.close(descriptor)


def test_published_goes_on(tmp_path, monkeypatch):
    """Blocks of the published network: stopped, resumed, the same; another refinement is refused."""
    slide = gp.datasets.simulate_slide(n_cells=120, n_genes=6, seed=2)
    config = GHISTConfig.published(width_factor=1 / 16, embedding=16, patch_px=64)
    model = gp.tl.fit(slide, config=config, max_epochs=1, progress=False)
    path = tmp_path / "slide.zarr"
    slide.write(path)
    expected = predict(path, model, key_added="insilico")
    monkeypatch.setattr(published_module, "_BLOCK_PATCHES", 4)
    load, seen = published_module._load, []

    def failing(reader, patches):
        seen.append(patches.start)
        if patches.start >= 10:
            raise OSError("the reader was unplugged")
        return load(reader, patches)

    with monkeypatch.context() as patch:
        patch.setattr(published_module, "_load", failing)
        with pytest.raises(OSError, match="unplugged"):
            predict(path, model)
    assert len(list((tmp_path / "slide.zarr.insilico.partial" / "patches").glob("*.npz"))) == 2
    with pytest.raises(ValueError, match=r"another refine \(refine was 2\.0, is 0\.0\)"):
        predict(path, model, refine=0)
    seen.clear()
    monkeypatch.setattr(published_module, "_load", lambda r, p: (seen.append(p.start), load(r, p))[1])
    assert_same(predict(path, model), expected)
    assert min(seen) == 8
