"""Cohorts: lazy slides, failures that cost nothing else, results kept on disk, the same on a cluster."""

from __future__ import annotations

import functools
import logging
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import anndata
import numpy as np
import pandas as pd
import pytest

import ghistpy as gp
from ghistpy.io import _cache

CALLS: list[int] = []


def table(n):
    return anndata.AnnData(np.arange(n * 2.0).reshape(n, 2), uns={"n": n})


def total(adata, *, factor=1):
    """Counts how often it runs."""
    CALLS.append(adata.n_obs)
    return float(adata.X.sum()) * factor


def picky(adata):
    """Fails on one slide."""
    CALLS.append(adata.n_obs)
    if adata.n_obs == 3:
        raise ZeroDivisionError("no such luck")
    return adata.n_obs


@pytest.fixture
def manifest(tmp_path):
    CALLS.clear()
    for n in (2, 3, 4):
        table(n).write_h5ad(tmp_path / f"t{n}.h5ad")
    frame = pd.DataFrame(
        {"sample": ["a", "b", "c"], "path": [f"t{n}.h5ad" for n in (2, 3, 4)], "patient": ["007", "007", "010"]}
    )
    frame["age"] = [50, 50, 60]
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def test_slides_are_opened_one_at_a_time(manifest, monkeypatch):
    cohort = gp.io.read_cohort(manifest)
    opened = []
    read = anndata.read_h5ad
    monkeypatch.setattr(anndata, "read_h5ad", lambda path: opened.append(path.name) or read(path))
    assert (len(cohort), cohort.samples) == (3, ["a", "b", "c"])
    assert cohort.obs["patient"].tolist() == ["007", "007", "010"]
    assert opened == []
    slides = iter(cohort)
    assert next(slides).n_obs == 2
    assert opened == ["t2.h5ad"]
    assert [s.n_obs for s in slides] == [3, 4]
    assert dict(cohort.items())["c"].n_obs == 4
    assert cohort["b"].n_obs == 3
    with pytest.raises(KeyError, match="'x' is not in this cohort"):
        cohort["x"]


def test_stores_and_images_are_read(tmp_path):
    from PIL import Image

    gp.datasets.simulate_slide(n_cells=20, n_genes=5, seed=1).write(tmp_path / "s.zarr")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "s.png")
    frame = pd.DataFrame({"sample": ["z", "p"], "path": ["s.zarr", "s.png"], "mpp": [None, 0.25]})
    cohort = gp.Cohort(frame, root=tmp_path)
    assert cohort["z"]["measured"].n_obs == 20
    assert gp.io.get_mpp(cohort["p"], "he") == 0.25
    assert cohort.obs["patient"].tolist() == ["z", "p"]


def test_a_second_call_computes_nothing(manifest):
    cohort = gp.io.read_cohort(manifest)
    first = cohort.map(total, progress=False)
    assert (dict(first), first.n_cached) == ({"a": 6.0, "b": 15.0, "c": 28.0}, 0)
    again = gp.io.read_cohort(manifest).map(total, progress=False)
    assert (dict(again), again.n_cached, len(CALLS)) == (dict(first), 3, 3)


def test_parameters_and_changed_slides_are_computed_anew(manifest):
    cohort = gp.io.read_cohort(manifest)
    cohort.map(total, progress=False)
    twice = cohort.map(total, params={"factor": 2}, progress=False)
    assert (twice["c"], twice.n_cached) == (56.0, 0)
    table(5).write_h5ad(manifest.parent / "t3.h5ad")
    changed = cohort.map(total, progress=False)
    assert (changed["b"], changed.n_cached) == (45.0, 2)
    bound = cohort.map(functools.partial(total, factor=3), progress=False)
    assert (bound["a"], bound.n_cached) == (18.0, 0)


def stop_at_third(adata):
    """Interrupted by the user at the third call, until an environment variable lets it go on."""
    if len(CALLS) == 2 and not os.environ.get("GHISTPY_TEST_GO_ON"):
        raise KeyboardInterrupt
    CALLS.append(adata.n_obs)
    return adata.n_obs


def grow(adata):
    """Writes into its own file."""
    CALLS.append(adata.n_obs)
    adata.obs["seen"] = 1
    adata.write_h5ad(adata.uns["path"])
    return "done"


def test_a_function_that_writes_into_its_slides_is_run_once(manifest):
    for n in (2, 3, 4):
        path = manifest.parent / f"t{n}.h5ad"
        adata = anndata.read_h5ad(path)
        adata.uns["path"] = str(path)
        adata.write_h5ad(path)
    cohort = gp.io.read_cohort(manifest)
    cohort.map(grow, progress=False)
    assert (cohort.map(grow, progress=False).n_cached, len(CALLS)) == (3, 3)


def test_an_interrupted_run_resumes(manifest, monkeypatch):
    cohort = gp.io.read_cohort(manifest)
    with pytest.raises(KeyboardInterrupt):
        cohort.map(stop_at_third, progress=False)
    monkeypatch.setenv("GHISTPY_TEST_GO_ON", "1")
    found = cohort.map(stop_at_third, progress=False)
    assert (dict(found), found.n_cached, len(CALLS)) == ({"a": 2, "b": 3, "c": 4}, 2, 3)


def test_a_sample_that_fails_is_named_and_the_others_are_kept(manifest, caplog):
    cohort = gp.io.read_cohort(manifest)
    with caplog.at_level(logging.WARNING, "ghistpy"):
        found = cohort.map(picky, progress=False)
    assert dict(found) == {"a": 2, "c": 4}
    assert "1 of 3 samples failed" in caplog.text
    assert "b: ZeroDivisionError: no such luck" in caplog.text
    assert "in picky" in cohort.failures["b"]
    assert cohort.map(picky, progress=False).n_cached == 2  # failures are tried again
    with pytest.raises(RuntimeError, match="1 of 3 samples failed"):
        cohort.map(picky, progress=False, on_error="raise")


def test_a_slide_that_cannot_be_opened_is_a_failure(manifest):
    (manifest.parent / "t4.h5ad").write_bytes(b"no table")
    found = gp.io.read_cohort(manifest).map(total, progress=False)
    assert list(found) == ["a", "b"]
    assert "c" in found.failures


def test_all_failing_is_an_error(manifest):
    def broken(adata):
        raise ValueError("never")

    with pytest.raises(RuntimeError, match="3 of 3 samples failed"):
        gp.io.read_cohort(manifest).map(broken, progress=False)


def test_a_damaged_result_is_computed_again(manifest, caplog):
    cohort = gp.io.read_cohort(manifest)
    cohort.map(total, progress=False)
    for file in cohort.cache_dir.rglob("*.h5"):
        file.write_bytes(file.read_bytes()[:5])
    assert cohort.map(total, progress=False).n_cached == 0
    assert "cannot be read" in caplog.text


def test_results_that_cannot_be_kept_are_returned(manifest, caplog):
    found = gp.io.read_cohort(manifest).map(lambda adata: (i for i in [adata.n_obs]), progress=False)
    assert [next(v) for v in found.values()] == [2, 3, 4]
    assert "cannot be kept: TypeError: result is a builtins.generator" in caplog.text
    assert not list(gp.io.read_cohort(manifest).cache_dir.rglob(".part-*"))


def test_a_disk_that_takes_nothing_loses_no_result(manifest, caplog, monkeypatch):
    cohort = gp.io.read_cohort(manifest)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache, "write_plain", full)
    assert dict(cohort.map(total, progress=False)) == {"a": 6.0, "b": 15.0, "c": 28.0}
    assert "No space left on device" in caplog.text
    assert not list(cohort.cache_dir.rglob(".part-*"))


def test_a_slide_that_vanishes_is_a_failure(manifest):
    cohort = gp.io.read_cohort(manifest)
    (manifest.parent / "t3.h5ad").unlink()
    found = cohort.map(total, progress=False)
    assert list(found) == ["a", "c"]
    assert "FileNotFoundError" in found.failures["b"]


def test_another_mpp_in_the_manifest_is_another_slide(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((60, 70, 3), np.uint8)).save(tmp_path / "s.png")

    def mpp(sdata):
        return gp.io.get_mpp(sdata, "he")

    frame = pd.DataFrame({"sample": ["s"], "path": ["s.png"], "mpp": [0.5]})
    for value in (0.5, 0.25):
        cohort = gp.Cohort(frame.assign(mpp=value), root=tmp_path, cache_dir=tmp_path / "cache")
        found = [cohort.map(mpp, progress=False) for _ in range(2)]
        assert [(f["s"], f.n_cached) for f in found] == [(value, 0), (value, 1)]


def test_pixels_that_change_in_place_change_the_slide(tmp_path):
    import zarr

    gp.datasets.simulate_slide(n_cells=20, n_genes=5, seed=1).write(tmp_path / "s.zarr")
    before = _cache.stamp(tmp_path / "s.zarr")
    assert before == _cache.stamp(tmp_path / "s.zarr")
    group = zarr.open_group(str(tmp_path / "s.zarr/images"), mode="r+")
    while isinstance(group, zarr.Group):
        group = group[next(iter(group))]
    group[:] = 0
    assert _cache.stamp(tmp_path / "s.zarr") != before
    assert _cache.stamp(tmp_path / "gone") is None


def test_remains_of_killed_writers_are_swept(manifest):
    cohort = gp.io.read_cohort(manifest)
    cohort.map(total, progress=False)
    folder = next(cohort.cache_dir.iterdir())
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        (folder / f".part-{name}").write_bytes(b"half")
        os.utime(folder / f".part-{name}", (time.time() - age,) * 2)
    cohort.map(total, progress=False)
    assert [f.name for f in folder.glob(".part-*")] == [".part-new"]


def test_results_are_as_readable_as_umask_says(manifest):
    old = os.umask(0o027)
    try:
        cohort = gp.io.read_cohort(manifest)
        cohort.map(total, progress=False)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(f.stat().st_mode) for f in cohort.cache_dir.rglob("*.h5")} == {0o640}


def test_writers_of_one_result_do_not_meet(tmp_path):
    """A reader finds nothing or all of one result, whoever writes at the same time."""
    cache, path = _cache.Cache(tmp_path), tmp_path / "one.h5"
    values = [np.full(200_000, i) for i in range(4)]

    def write(value):
        for _ in range(15):
            cache.store(path, value)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, value) for value in values]
        seen = []
        while not all(job.done() for job in jobs):
            there, value = cache.load(path)
            seen += [value] if there else []
        for job in jobs:
            job.result()
    assert len(seen) > 3
    assert all(len(v) == 200_000 and (v == v[0]).all() for v in seen)
    assert [f.name for f in tmp_path.iterdir()] == ["one.h5"]


def test_slides_that_the_manifest_does_not_name_are_named(caplog):
    cohort = gp.Cohort(pd.DataFrame({"sample": ["1"]}), slides={1: table(2), 2: table(3)})
    assert "1 slides are not in the manifest: ['2']" in caplog.text
    assert cohort["1"].n_obs == 2


def test_slides_of_a_mapping_are_made_when_they_are_asked_for():
    _, cohort = gp.datasets.simulate_cohort(n_patients=10, slides=True, n_cells=30, panel=5)
    assert not isinstance(cohort._slides, dict)
    assert cohort["P0003"]["measured"].n_obs == 30


def test_keys_follow_function_and_parameters():
    def one(a):
        return a

    def other(a):
        return a + 1

    keys = [_cache.key_of(f, p, "n") for f in (one, other) for p in ({}, {"x": np.arange(3)}, {"x": np.arange(4)})]
    assert len(set(keys)) == 6

    def closing_over(value):
        return lambda a: a + value

    assert _cache.key_of(closing_over(1), {}, "n") != _cache.key_of(closing_over(2), {}, "n")
    assert _cache.key_of(closing_over(1), {}, "n") == _cache.key_of(closing_over(1), {}, "n")
    assert _cache.key_of(functools.partial(one, 1), {}, "n") != _cache.key_of(functools.partial(one, 2), {}, "n")
    assert _cache.key_of(one, {"x": np.arange(3)}, "n") == keys[1]
    pair = [lambda a: "one", lambda a: [i for i in "two"]]  # on one line  # noqa: C416
    assert _cache.key_of(pair[0], {}, "n") != _cache.key_of(pair[1], {}, "n")
    options = [lambda a: a in {"x", "y", "z"}, lambda a: a[..., 0]]
    assert all(_cache.key_of(f, {}, "n") for f in options)


def test_a_function_of_a_script_is_found_again(manifest):
    """It uses modules of its script, and two processes agree on what it is."""
    script = manifest.parent / "script.py"
    script.write_text(
        "import numpy as np\nimport ghistpy as gp\n"
        "def count(adata):\n    return int(np.sum(adata.n_obs)) + ('q' in {'a', 'b'}) * len(gp.tl.__all__)\n"
        f"found = gp.io.read_cohort({str(manifest)!r}).map(count, progress=False)\n"
        "print(dict(found), found.n_cached)\n"
    )
    outs = [
        subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert outs == ["{'a': 2, 'b': 3, 'c': 4} 0\n", "{'a': 2, 'b': 3, 'c': 4} 3\n"]


@pytest.mark.enable_socket  # the scheduler looks up the name of this machine
def test_the_same_on_dask(manifest):
    """One task per slide, in threads of this process."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None, protocol="inproc://"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cohort = gp.io.read_cohort(manifest)
        found = cohort.map(picky, client=client, progress=False)
        assert list(found.items()) == [("a", 2), ("c", 4)]
        assert "ZeroDivisionError" in cohort.failures["b"]
        assert cohort.map(picky, client=client, progress=False).n_cached == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="path"), "columns .'path'. are missing"),
        (lambda f: f.drop(columns="sample"), "columns .'sample'. are missing"),
        (lambda f: f.assign(sample="a"), "samples .'a'. occur more than once"),
        (lambda f: f.assign(patient=["x", None, "y"]), "'patient' is empty in rows .1."),
        (lambda f: f.assign(path=["t2.h5ad", "gone.h5ad", "lost.zarr"]), "2 paths do not exist: b .*gone.h5ad"),
        (lambda f: f.iloc[:0], "it has no row"),
    ],
)
def test_bad_manifests(manifest, change, message):
    frame = change(pd.read_csv(manifest))
    with pytest.raises(ValueError, match=message):
        gp.Cohort(frame, root=manifest.parent)


def test_other_bad_input(manifest):
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv"):
        gp.io.read_cohort("nowhere.csv")
    with pytest.raises(ValueError, match="got neither"):
        gp.Cohort()
    with pytest.raises(ValueError, match="samples .'b'. of the manifest are not among"):
        gp.Cohort(pd.DataFrame({"sample": ["a", "b"]}), slides={"a": table(2)})
    with pytest.raises(ValueError, match="on_error='ignore'"):
        gp.io.read_cohort(manifest).map(total, on_error="ignore")


def test_subset_by_name_and_by_condition(manifest):
    cohort = gp.io.read_cohort(manifest)
    assert cohort.subset(["c", "a"]).samples == ["c", "a"]
    assert cohort.subset("b").samples == ["b"]
    assert cohort.subset(cohort.obs["age"] == 50).samples == ["a", "b"]
    assert cohort.subset([False, True, False]).samples == ["b"]
    assert cohort.subset([]).samples == []
    with pytest.raises(
        ValueError, match=r"samples: \['nope'\] are not in this cohort; its 3 samples are \['a', 'b', 'c'\]"
    ):
        cohort.subset(["a", "nope"])
