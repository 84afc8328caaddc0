"""Tables: linking, checks, and writes that are complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import zarr
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Scale

from ghistpy import io
from ghistpy.io import _store
from ghistpy.io.tables import check_ids

TO_MICRONS = {"microns": Scale([0.5, 0.5], axes=("x", "y"))}
BIG = 2**63 - 1


def small_slide(ids: tuple[int, ...] = (1, 2, 3)) -> sd.SpatialData:
    labels = np.zeros((16, 16), dtype=np.int64)
    for k, value in enumerate(ids):
        labels[4 * k : 4 * k + 3, 2:6] = value
    image = np.full((3, 16, 16), 200, dtype=np.uint8)
    return sd.SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"), transformations=TO_MICRONS)},
        labels={"nuclei": Labels2DModel.parse(labels, dims=("y", "x"), transformations=TO_MICRONS)},
    )


def cell_table(ids: tuple[int, ...] = (1, 2, 3), value: float = 1.0, **kwargs: object) -> AnnData:
    X = np.full((len(ids), 4), value, dtype=np.float32)
    kwargs.setdefault("obs", {"cell_type": pd.Categorical(["T/NK"] * len(ids))})
    return io.make_table(X, list("ABCD"), region="nuclei", instance_key="cell_id", ids=np.array(ids, int), **kwargs)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "slide.zarr"
    small_slide().write(path)
    return path


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "slide.zarr"))


def open_store(store: Path) -> sd.SpatialData:
    return sd.read_zarr(store, selection=("labels",))


def listed(store: Path) -> set[str]:
    """Tables that spatialdata would find: those of the consolidated metadata."""
    return set(zarr.open_group(store, mode="r")["tables"]) if (store / "tables").exists() else set()


def stored(store: Path, name: str = "t") -> AnnData:
    assert name in listed(store)
    return anndata.read_zarr(store / "tables" / name)


class TestMakeTable:
    def test_links_rows_to_the_element(self):
        table = cell_table((5, 2, BIG), obsm={"spatial": np.zeros((3, 2))}, var={"expected_pcc": np.arange(4.0)})
        assert table.obs["cell_id"].tolist() == [5, 2, BIG]
        assert table.obs["cell_id"].dtype == np.int64
        assert table.uns["spatialdata_attrs"] == {
            "region": "nuclei",
            "region_key": "region",
            "instance_key": "cell_id",
        }
        assert table.var["expected_pcc"].tolist() == [0, 1, 2, 3]
        joined = sd.join_spatialelement_table(
            sdata=sd.SpatialData(labels=dict(small_slide((2, 5, BIG)).labels), tables={"t": table}),
            spatial_element_names="nuclei",
            table_name="t",
            how="left",
        )[1]
        assert sorted(joined.obs["cell_id"]) == [2, 5, BIG]

    def test_uint64_ids_that_fit_become_int64(self):
        assert check_ids(np.array([BIG], dtype=np.uint64), "ids").dtype == np.int64

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([1, 1, 2], "ids repeat: \\[1\\]"),
            ([1.0, 2.0, 3.0], "integers or strings, got dtype float64"),
            ([-1, 2, 3], "0 .. 2\\*\\*63 - 1, got -1"),
            (np.array([1, 2, 2**63], dtype=np.uint64), "got 1 .. 9223372036854775808"),
            (["a", "b", "a"], "ids repeat: \\['a'\\]"),
            (np.array(["a", 2, None], dtype=object), "integers or strings"),
        ],
    )
    def test_refuses_ids(self, ids, message):
        with pytest.raises(ValueError, match=message):
            io.make_table(np.zeros((3, 1)), ["A"], region="nuclei", instance_key="cell_id", ids=ids)

    def test_refuses_shapes_genes_and_lengths(self):
        with pytest.raises(ValueError, match=r"X has shape \(2, 1\), expected \(3, 1\)"):
            io.make_table(np.zeros((2, 1)), ["A"], region="nuclei", instance_key="cell_id", ids=[1, 2, 3])
        with pytest.raises(ValueError, match="genes: names repeat: \\['A'\\]"):
            io.make_table(np.zeros((1, 2)), ["A", "A"], region="nuclei", instance_key="cell_id", ids=[1])
        with pytest.raises(ValueError, match="obs\\['x'\\] has length 1, expected 3"):
            cell_table(obs={"x": [1]})

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"obs": {"T/NK": np.zeros(3)}},
            {"obsm": {"a/b": np.zeros((3, 1))}},
            {"uns": {"ghistpy": {"T/NK": 1}}},
            {"uns": {"ghistpy": {"frame": pd.DataFrame({"T/NK": [1]})}}},
            {"uns": {"ghistpy": {3: 1}}},
            {"var": {"a/b": np.zeros(4)}},
        ],
    )
    def test_refuses_keys_that_a_store_cannot_hold(self, kwargs):
        with pytest.raises(ValueError, match="cannot be stored"):
            cell_table(**kwargs)


class TestRoundTrip:
    def test_values_ids_and_awkward_names_survive(self, store):
        sdata = sd.read_zarr(store)
        table = cell_table(
            obs={"cell_type": pd.Categorical(["T/NK", "B", "T/NK"]), "flag": np.array([True, False, True])},
            obsm={"cell_type_proba": np.eye(3, dtype=np.float32)[:, :2]},
            uns={"ghistpy": {"cell_types": ["T/NK", "B"], "params": json.dumps({"a": [1, {"b": None}]}), "mpp": 0.5}},
            layers={"ceiling": sparse.csr_matrix(np.eye(3, 4, dtype=np.float32))},
        )
        io.write_table(sdata, "insilico", table)
        back = sd.read_zarr(store).tables["insilico"]
        assert back.obs["cell_type"].tolist() == ["T/NK", "B", "T/NK"]
        assert back.obs["cell_id"].tolist() == [1, 2, 3]
        assert back.uns["ghistpy"]["cell_types"].tolist() == ["T/NK", "B"]
        assert json.loads(back.uns["ghistpy"]["params"]) == {"a": [1, {"b": None}]}
        np.testing.assert_array_equal(back.X, table.X)
        np.testing.assert_array_equal(back.obsm["cell_type_proba"], np.eye(3)[:, :2])
        np.testing.assert_array_equal(back.layers["ceiling"].toarray(), np.eye(3, 4))
        assert not _store.staging_path(store).exists()

    def test_ids_above_two_to_the_31(self, tmp_path):
        ids = (7, 2**31 + 5, BIG)
        sdata = small_slide(ids)
        sdata.write(tmp_path / "s.zarr")
        sdata = sd.read_zarr(tmp_path / "s.zarr")
        io.write_table(sdata, "t", cell_table(ids))
        back = sd.read_zarr(tmp_path / "s.zarr")
        assert back.tables["t"].obs["cell_id"].tolist() == list(ids)
        assert set(np.unique(back.labels["nuclei"].data.compute())) == {0, *ids}

    def test_zero_rows(self, store):
        sdata = sd.read_zarr(store)
        io.write_table(sdata, "none", cell_table(()))
        back = sd.read_zarr(store).tables["none"]
        assert back.shape == (0, 4)
        assert back.obs["cell_id"].dtype == np.int64
        assert back.uns["spatialdata_attrs"]["region"] == []
        io.write_table(sdata, "none", cell_table())
        assert sd.read_zarr(store).tables["none"].n_obs == 3

    @settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        ids=st.lists(st.integers(1, BIG), max_size=5, unique=True),
        names=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3, unique=True),
    )
    def test_any_ids_and_type_names(self, store, ids, names):
        names = [n for n in names if "\x00" not in n and n.isprintable()] or ["a"]
        sdata = small_slide()
        sdata.path = store
        types = pd.Categorical([names[i % len(names)] for i in range(len(ids))], categories=names)
        io.write_table(sdata, "any", cell_table(tuple(ids), obs={"cell_type": types}))
        back = anndata.read_zarr(store / "tables" / "any")
        assert back.obs["cell_id"].tolist() == ids
        assert back.obs["cell_type"].tolist() == types.tolist()

    @pytest.mark.filterwarnings("ignore:SpatialData is not stored in the most current format:UserWarning")
    def test_store_in_zarr_v2(self, tmp_path):
        from spatialdata._io.format import SpatialDataContainerFormatV01

        path = tmp_path / "old.zarr"
        small_slide().write(path, sdata_formats=[SpatialDataContainerFormatV01()])
        sdata = sd.read_zarr(path)
        io.write_table(sdata, "t", cell_table(value=1))
        io.write_table(sdata, "t", cell_table(value=2))
        assert sd.read_zarr(path).tables["t"].X.max() == 2
        assert not list(path.rglob("zarr.json"))

    def test_store_without_consolidated_metadata(self, tmp_path):
        path = tmp_path / "s.zarr"
        small_slide().write(path, consolidate_metadata=False)
        sdata = sd.read_zarr(path)
        io.write_table(sdata, "t", cell_table())
        assert sd.read_zarr(path).tables["t"].n_obs == 3


class TestWriteTable:
    def test_in_memory_is_an_assignment(self):
        sdata = small_slide()
        table = cell_table()
        io.write_table(sdata, "t", table)
        assert sdata.tables["t"] is table

    def test_replaces_and_touches_nothing_else(self, store):
        sdata = open_store(store)
        io.write_table(sdata, "other", cell_table(value=7))
        before = digest(store)
        io.write_table(sdata, "t", cell_table(value=1))
        io.write_table(sdata, "t", cell_table((3, 1), value=2))
        after = digest(store)
        changed = {k for k in before if before[k] != after.get(k)}
        assert changed == {"zarr.json"}
        assert all(k.startswith("tables/t/") for k in set(after) - set(before))
        back = sd.read_zarr(store)
        assert back.tables["t"].obs["cell_id"].tolist() == [3, 1]
        assert back.tables["t"].X.tolist() == [[2] * 4] * 2
        assert back.tables["other"].X.max() == 7

    def test_save_writes_what_is_in_memory(self, store):
        sdata = open_store(store)
        sdata.tables["t"] = cell_table()
        io.save(sdata, "t")
        sdata.tables["t"].obs["leiden"] = pd.Categorical(["0", "1", "0"])
        io.save(sdata, "t")
        assert stored(store).obs["leiden"].tolist() == ["0", "1", "0"]

    def test_save_says_what_is_missing(self, store):
        with pytest.raises(ValueError, match="table_key='x' is not among the tables .*available: none"):
            io.save(sd.read_zarr(store), "x")
        sdata = small_slide()
        sdata.tables["t"] = cell_table()
        with pytest.raises(ValueError, match="has no store; write it first"):
            io.save(sdata, "t")

    def test_refuses_string_ids_for_labels(self):
        table = io.make_table(np.zeros((1, 1)), ["A"], region="nuclei", instance_key="cell_id", ids=["aaab-1"])
        with pytest.raises(ValueError, match="annotates the labels 'nuclei', whose ids are integers"):
            io.write_table(small_slide(), "t", table)

    def test_refuses_absent_region_and_taken_or_bad_names(self):
        table = io.make_table(np.zeros((1, 1)), ["A"], region="cells", instance_key="cell_id", ids=[1])
        with pytest.raises(ValueError, match="annotates region 'cells'"):
            io.write_table(small_slide(), "t", table)
        for name, message in (("nuclei", "taken"), ("__t", "cannot be used"), ("a/b", "cannot be used")):
            with pytest.raises(ValueError, match=message):
                io.write_table(small_slide(), name, cell_table())

    def test_no_gap_for_readers(self, store):
        sdata = open_store(store)
        io.write_table(sdata, "t", cell_table(value=0))
        stop, failures, seen, retries = threading.Event(), [], set(), 0
        current = store / "tables" / "t" / "zarr.json"

        def poll() -> None:
            while not stop.is_set():
                if not os.path.exists(current):
                    failures.append("absent")
                time.sleep(1e-4)

        def read() -> None:
            nonlocal retries
            while not stop.is_set():
                for attempt in range(20):
                    try:
                        table = anndata.read_zarr(store / "tables" / "t")
                    except (OSError, KeyError, ValueError):
                        retries += 1
                        assert attempt < 19
                        continue
                    seen.add(float(table.X.max()))
                    break

        threads = [threading.Thread(target=poll), threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        try:
            for value in range(1, 5):
                io.write_table(sdata, "t", cell_table(value=value))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if sys.platform.startswith("linux"):
            assert failures == []
        assert seen
        assert stored(store).X.max() == 4

    def test_two_writers_take_turns(self, store):
        def write(name: str) -> None:
            sdata = small_slide()
            sdata.path = store
            for value in range(3):
                io.write_table(sdata, name, cell_table(value=value))

        threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        back = sd.read_zarr(store)
        assert {k: float(t.X.max()) for k, t in back.tables.items()} == {"a": 2, "b": 2}


class TestFailures:
    """Whatever goes wrong, the store is as it was, byte for byte, and nothing lies beside it."""

    @pytest.mark.parametrize("existing", [True, False])
    @pytest.mark.parametrize(
        ("where", "exchangeable"),
        [
            ("_write_staging", True),
            ("_mark", True),
            ("_swap_in", True),
            ("_swap_in", False),
            ("consolidate", True),
            ("consolidate", False),
        ],
    )
    def test_error_at_any_step(self, store, monkeypatch, existing, where, exchangeable):
        sdata = open_store(store)
        if existing:
            io.write_table(sdata, "t", cell_table(value=1))
        before = digest(store)
        if not exchangeable:
            monkeypatch.setattr(_store, "exchange", lambda *_: False)
        real = getattr(_store, where)

        def fail(*args: object) -> None:
            real(*args)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_store, where, fail)
        table = cell_table(value=2)
        with pytest.raises(OSError, match="table 't' could not be written .*No space left.*the store is unchanged"):
            io.write_table(sdata, "t", table)
        assert digest(store) == before
        assert not _store.staging_path(store).exists()
        assert sdata.tables["t"] is table  # what was computed is not lost
        monkeypatch.undo()
        io.save(sdata, "t")
        assert stored(store).X.max() == 2

    @pytest.mark.parametrize(
        ("step", "existing", "exchangeable", "expected"),
        [
            ("writing", True, True, 1),
            ("writing", False, True, None),
            ("marked", True, True, 1),
            ("marked", False, True, 2),
            ("between renames", True, False, 2),
            ("swapped", True, True, 2),
            ("swapped", True, False, 2),
            ("swapped", False, True, 2),
        ],
    )
    def test_killed_process_is_resolved(self, store, monkeypatch, step, existing, exchangeable, expected):
        sdata = open_store(store)
        if existing:
            io.write_table(sdata, "t", cell_table(value=1))
        if not exchangeable:
            monkeypatch.setattr(_store, "exchange", lambda *_: False)
        # the state that a process killed at that step leaves behind
        _store._write_staging(store, "t", cell_table((3, 2), value=2))
        staging = _store.staging_path(store)
        if step != "writing":
            _store._mark(staging, "t")
        if step == "between renames":
            os.rename(store / "tables" / "t", staging / "previous")
        elif step == "swapped":
            _store._swap_in(store, "t")
        _store.recover(store)
        assert not staging.exists()
        if expected is None:
            assert listed(store) == set()
        else:
            back = sd.read_zarr(store).tables["t"]
            assert back.X.max() == expected
            assert back.n_obs == (2 if expected == 2 else 3)

    def test_limits_of_the_system(self, store):
        """Real errors: files may not grow beyond 20 kB; then the rights of an ordinary user, read-only."""
        before = digest(store)
        for folder in [p for p in store.parent.parents if p.stat().st_uid == os.getuid()][:3]:
            folder.chmod(folder.stat().st_mode | 0o055)
        code = f"""
        import os, resource, signal
        import numpy as np, spatialdata as sd
        from ghistpy import io
        from ghistpy.io._store import staging_path
        sdata = sd.read_zarr({str(store)!r})
        large, small = (
            io.make_table(np.random.default_rng(0).random((3, n)).astype("float32"), np.arange(n).astype(str),
                          region="nuclei", instance_key="cell_id", ids=[1, 2, 3])
            for n in (40_000, 3)
        )

        def attempt(act):
            try:
                act()
            except OSError as error:
                print(type(error).__name__, error, staging_path(sdata.path).exists())

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        attempt(lambda: io.write_table(sdata, "t", large))
        os.chmod({str(store)!r}, 0o555)
        os.chmod({str(store.parent)!r}, 0o555)
        if os.getuid() == 0:  # the superuser may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        attempt(lambda: io.ensure_can_save(sdata, "t"))
        attempt(lambda: io.write_table(sdata, "t", small))
        """
        try:
            out = _run(code).strip().splitlines()
        finally:
            store.parent.chmod(0o755)
            store.chmod(0o755)
        assert len(out) == 3
        assert out[0].startswith("OSError")
        assert "the store is unchanged" in out[0]
        for line in out[1:]:
            assert line.startswith("PermissionError")
            assert "is read-only; make it writable, or work on a copy" in line
        assert all(line.endswith("False") for line in out)  # nothing was left beside the store
        assert digest(store) == before


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
