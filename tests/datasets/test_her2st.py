"""HER2ST sections: against the tables of the authors, and downloads that must be the right file."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ghistpy import datasets
from ghistpy.datasets import registry


@pytest.fixture
def use_data(data_dir, monkeypatch) -> Path:
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    return data_dir / "data" / "her2st"


@pytest.mark.data
def test_section_equals_its_tables(use_data):
    sdata = datasets.her2st("C3")
    table = sdata.tables["measured"]
    assert table.n_obs == 180  # of 182 positions two have no counts
    raw = pd.read_csv(use_data / "counts" / "C3.tsv.gz", sep="\t", index_col=0)
    spot = "10x13"
    row = table.obs["spot_id"].tolist().index(spot)
    np.testing.assert_array_equal(np.asarray(table.X[row].todense()).ravel(), raw.loc[spot])
    assert table.obs["total"].sum() == raw.loc[table.obs["spot_id"]].to_numpy().sum()
    # an independent reading of the scale: 200 µm between rows and columns of the array
    where = pd.read_csv(use_data / "spots" / "C3_selection.tsv", sep="\t").set_index(["x", "y"])
    where = where.loc[list(zip(table.obs["array_x"], table.obs["array_y"], strict=True))]
    for column, axis in (("new_x", 0), ("new_y", 1)):
        slope = np.polyfit(where[column], table.obsm["spatial"][:, axis], 1)[0]
        assert slope == pytest.approx(200, rel=0.01)
    proportions = table.obsm["proportions"]
    np.testing.assert_allclose(proportions.sum(axis=1), 1, atol=1e-4)
    assert list(table.uns["ghistpy"]["cell_types"])[3] == "Epithelial"
    assert table.obs["cluster"].notna().mean() > 0.95
    assert sdata.attrs["ghistpy"]["patient"] == "C"
    assert type(sdata.images["he"]).__name__ == "DataTree"


def test_unknown_section():
    with pytest.raises(ValueError, match="section='C9': expected one of"):
        datasets.her2st("C9")


def test_every_file_of_every_section_is_registered():
    for section in ("C2", "C3", "C4", "C5"):
        assert len([name for name in registry.REGISTRY if f"/{section}" in name]) == 5
    assert all(len(remote.sha256) == 64 for remote in registry.REGISTRY.values())
    with pytest.raises(ValueError, match="not a known file"):
        registry.fetch("her2st/none")


def test_folder_without_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has no file data/her2st/spots/C2_selection.tsv"):
        registry.fetch("her2st/spots/C2_selection.tsv")


class TestDownload:
    """Without a network: the downloader copies from the local data."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.delenv("GHISTPY_DATA_DIR", raising=False)
        monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
        return tmp_path / "ghistpy"

    @pytest.mark.data
    def test_checked_and_kept(self, cache, data_dir):
        asked = []

        def copy(url: str, output: object, pooch: object) -> None:
            asked.append(url)
            source = data_dir / "data" / "her2st"
            if "props" in url:
                content = gzip.compress((source / "props" / "C2-major.tsv").read_bytes())
            else:
                content = (source / "spots" / "C2_selection.tsv").read_bytes()
            _write(output, content)

        for name in ("her2st/spots/C2_selection.tsv", "her2st/props/C2-major.tsv"):
            for _ in range(2):
                path = registry.fetch(name, download=copy)
                assert path.read_bytes() == (data_dir / "data" / name).read_bytes()
                assert cache in path.parents
        assert len(asked) == 2
        assert asked[0].startswith("https://")

    @pytest.mark.parametrize("name", ["her2st/spots/C2_selection.tsv", "her2st/props/C2-major.tsv"])
    def test_another_file_is_refused(self, cache, name):
        def wrong(url: str, output: object, pooch: object) -> None:
            _write(output, gzip.compress(b"something else"))

        for _ in range(2):  # and is not kept either
            with pytest.raises(ValueError, match="(?i)sha-?256|hash"):
                registry.fetch(name, download=wrong)


def _write(output: object, content: bytes) -> None:
    if hasattr(output, "write"):
        output.write(content)
    else:
        Path(str(output)).write_bytes(content)


@pytest.mark.data
def test_hashes_are_those_of_the_data(data_dir):
    import gzip
    import hashlib

    for name, remote in registry.REGISTRY.items():
        path = registry.fetch(name)
        assert path.is_relative_to(data_dir)
        content = path.read_bytes()
        if path.name != Path(name).name:  # kept packed where the public file is not
            content = gzip.decompress(content)
        assert hashlib.sha256(content).hexdigest() == remote.sha256
