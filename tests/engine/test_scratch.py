"""Blocks are complete or absent; a folder goes on only with what it was begun with."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from ghistpy.engine.scratch import Blocks, Scratch, StoredBlocks, StoredRows

IDENTITY = {"model": "a", "image": "b"}


@pytest.mark.parametrize("stored", [False, True])
def test_blocks_come_back(tmp_path, stored):
    blocks = StoredBlocks(tmp_path / "b") if stored else Blocks()
    assert blocks.load(0) is None
    values = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([2**63 - 1])}
    blocks.save(3, **values)
    got = blocks.load(3)
    assert got.keys() == values.keys()
    for name, value in values.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)
    blocks.drop(3)
    assert blocks.load(3) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_block_is_computed_again(tmp_path, damage, caplog):
    blocks = StoredBlocks(tmp_path / "b")
    blocks.save(0, x=np.arange(1000.0))
    path = next((tmp_path / "b").iterdir())
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 255
    path.write_bytes({"cut": content[:-200], "flip": content, "empty": b""}[damage])
    assert blocks.load(0) is None
    assert "is damaged" in caplog.text


def test_a_full_disk_keeps_finished_blocks(tmp_path, monkeypatch):
    blocks = StoredBlocks(tmp_path / "run" / "b")
    blocks.save(0, x=np.ones(5))

    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"run: cannot write \(No space left.*scratch_dir=.*goes on from there"):
        blocks.save(1, x=np.ones(5))
    assert sorted(p.name for p in (tmp_path / "run" / "b").iterdir()) == ["000000.npz"]
    np.testing.assert_array_equal(blocks.load(0)["x"], 1)


def test_rows_are_written_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 7)).astype(np.float32)
    rows = StoredRows(tmp_path / "x", values.shape)
    for part in np.array_split(rng.permutation(1000), 9):
        rows[part] = values[part]
    np.testing.assert_array_equal(rows[:], values)
    np.testing.assert_array_equal(rows[100:200, 2:4], values[100:200, 2:4])
    np.testing.assert_array_equal(rows[np.array([5, 2])], values[[5, 2]])
    assert (len(rows), rows.nbytes) == (1000, 28000)
    assert StoredRows(tmp_path / "none", (0, 3))[:].shape == (0, 3)


def test_a_disk_too_small_for_the_rows_is_found_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"cannot write 0\.4 GB for the predicted values \(No space left"):
        StoredRows(tmp_path / "x", (10**6, 100))
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on(tmp_path):
    first = Scratch(tmp_path / "run", IDENTITY)
    first.blocks("b").save(4, x=np.ones(3))
    first.close()
    again = Scratch(tmp_path / "run", IDENTITY)
    assert again.blocks("b").load(4) is not None
    again.close()
    over = Scratch(tmp_path / "run", {**IDENTITY, "image": "c"}, resume=False)
    assert over.blocks("b").load(4) is None
    over.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"model": "z", "image": "b"}, r"another model \(model was a, is z\)"),
        ({"model": "z", "image": "y"}, "another image, model"),
        ({"model": "a", "image": "b", "refine": "1"}, r"another refine \(refine was None, is 1\)"),
    ],
)
def test_another_run_is_refused(tmp_path, identity, message):
    Scratch(tmp_path / "run", IDENTITY).close()
    with pytest.raises(ValueError, match=f"{message}.*resume=False to discard it"):
        Scratch(tmp_path / "run", identity)
    Scratch(tmp_path / "run", IDENTITY).close()  # still there, and not locked


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0, "identity": {}}'])
def test_a_run_that_never_began_is_begun(tmp_path, content):
    (tmp_path / "run" / "b").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(content)
    (tmp_path / "run" / "b" / "000000.npz").write_text("of something else")
    scratch = Scratch(tmp_path / "run", IDENTITY)
    assert scratch.blocks("b").load(0) is None
    scratch.close()


def test_two_processes_do_not_share_a_folder(tmp_path):
    pytest.importorskip("fcntl")
    first = Scratch(tmp_path / "run", IDENTITY)
    with pytest.raises(OSError, match="another process is predicting into"):
        Scratch(tmp_path / "run", IDENTITY)
    first.close()
    Scratch(tmp_path / "run", IDENTITY).close()
