"""Spot assays: joining ids, geometry in µm, and tables that are not raw counts."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from ghistpy import io
from ghistpy.io.spots import check_counts

IMAGE = np.full((3, 90, 120), 220, np.uint8)
IDS = ["10x21", "10x22", "11x21", "11x22"]


def counts(ids=tuple(IDS)) -> pd.DataFrame:
    values = np.arange(4 * len(ids)).reshape(len(ids), 4)
    return pd.DataFrame(values, index=list(ids), columns=["ERBB2", "CD3E", "HLA-A", "MT/X"])


def positions(ids=tuple(IDS)) -> pd.DataFrame:
    n = np.arange(len(ids))
    return pd.DataFrame({"pixel_x": 10.0 + 20 * n, "pixel_y": 30.5 + 5 * n}, index=list(ids))


def read(counts=None, positions_=None, image=IMAGE, mpp=0.5, spot_diameter_um=10.0, **kwargs):
    counts = globals()["counts"]() if counts is None else counts
    where = positions() if positions_ is None else positions_
    return io.read_spots(image, counts, where, mpp=mpp, spot_diameter_um=spot_diameter_um, **kwargs)


class TestRead:
    def test_table_shapes_and_image(self):
        sdata = read()
        table = sdata.tables["measured"]
        np.testing.assert_array_equal(table.X.toarray(), counts().to_numpy())
        assert sparse.isspmatrix_csr(table.X)
        assert table.var_names.tolist() == ["ERBB2", "CD3E", "HLA-A", "MT/X"]
        assert table.obs["spot_id"].tolist() == IDS
        assert table.obs["total"].tolist() == counts().sum(axis=1).tolist()
        np.testing.assert_allclose(table.obsm["spatial"], positions().to_numpy() * 0.5)
        assert table.uns["ghistpy"]["units"] == "counts"
        spots = sdata.shapes["spots"]
        assert spots.index.tolist() == IDS
        assert (spots["radius"] == 5.0).all()
        np.testing.assert_allclose(np.c_[spots.geometry.x, spots.geometry.y], table.obsm["spatial"])
        assert io.get_mpp(sdata) == 0.5
        assert sdata.attrs["ghistpy"]["spot_diameter_um"] == 10.0
        assert sdata.attrs["ghistpy"]["join"]["spots"] == 4

    def test_round_trip_through_a_store_keeps_the_link(self, tmp_path):
        read().write(tmp_path / "s.zarr")
        back = sd.read_zarr(tmp_path / "s.zarr")
        assert back.tables["measured"].obs["spot_id"].tolist() == IDS
        assert back.attrs["ghistpy"]["join"]["spots"] == 4
        shapes, table = sd.join_spatialelement_table(
            sdata=back, spatial_element_names="spots", table_name="measured", how="inner"
        )
        assert table.obs["spot_id"].tolist() == shapes["spots"].index.tolist() == IDS

    @settings(max_examples=20, deadline=None)
    @given(order=st.permutations(IDS), chosen=st.sets(st.sampled_from(IDS), min_size=1))
    def test_join_is_by_id_in_any_order(self, order, chosen):
        kept = [i for i in order if i in chosen]
        sdata = read(counts().loc[order], positions().loc[sorted(chosen)])
        table = sdata.tables["measured"]
        assert table.obs["spot_id"].tolist() == kept
        np.testing.assert_array_equal(table.X.toarray(), counts().loc[kept])
        np.testing.assert_allclose(table.obsm["spatial"], positions().loc[kept] * 0.5)
        assert sdata.attrs["ghistpy"]["join"]["only_in_counts"] == 4 - len(kept)

    def test_files(self, tmp_path):
        Image.fromarray(IMAGE.transpose(1, 2, 0)).save(tmp_path / "C9.png")
        counts().to_csv(tmp_path / "c.tsv.gz", sep="\t")
        where = positions().reset_index(drop=True).assign(x=[10, 10, 11, 11], y=[21, 22, 21, 22], selected=[1, 1, 0, 1])
        where.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
        sdata = read(tmp_path / "c.tsv.gz", tmp_path / "p.tsv", image=tmp_path / "C9.png")
        assert sdata.tables["measured"].obs["spot_id"].tolist() == ["10x21", "10x22", "11x22"]
        assert sdata.tables["measured"].obs["array_y"].tolist() == [21, 22, 22]
        assert sdata.attrs["ghistpy"]["sample"] == "C9"
        assert sdata.attrs["ghistpy"]["join"]["not_selected"] == 1
        counts().to_csv(tmp_path / "c.csv")
        positions().rename_axis("spot_id").reset_index().to_csv(tmp_path / "p.csv", index=False)
        assert read(tmp_path / "c.csv", tmp_path / "p.csv").tables["measured"].n_obs == 4
        AnnData(
            sparse.csc_matrix(counts().to_numpy(float)), counts()[[]], pd.DataFrame(index=counts().columns)
        ).write_h5ad(tmp_path / "c.h5ad")
        np.testing.assert_array_equal(read(tmp_path / "c.h5ad").tables["measured"].X.toarray(), counts())

    def test_integer_ids_stay_integers(self):
        sdata = read(counts((7, 2**31 + 5)), positions((2**31 + 5, 7)))
        assert sdata.tables["measured"].obs["spot_id"].tolist() == [7, 2**31 + 5]
        assert sdata.shapes["spots"].index.tolist() == [7, 2**31 + 5]

    def test_image_arrays(self):
        for image in (IMAGE.transpose(1, 2, 0), IMAGE.astype(np.uint16) * 257, IMAGE / 255.0):
            source = io.open_image(read(image=image))
            assert source.shape == (3, 90, 120)
            assert source._blocks[0, 0].max() == 220

    def test_what_is_left_out_is_reported(self, caplog):
        where = pd.concat([positions(), pd.DataFrame({"pixel_x": [5.0], "pixel_y": [5.0]}, index=["1x1"])])
        where.loc["11x22", "pixel_x"] = 500.0
        with caplog.at_level(logging.WARNING, "ghistpy"):
            sdata = read(counts((*IDS, "9x9")), where)
        report = {"not_selected": 0, "only_in_positions": 1, "only_in_counts": 1, "outside_image": 1, "spots": 3}
        assert sdata.attrs["ghistpy"]["join"] == report
        assert "3 spots; left out: {'only_in_positions': 1, 'only_in_counts': 1, 'outside_image': 1}" in caplog.text


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c - 1, "1 values are negative \\(the smallest is -1\\)"),
            (np.log1p, "not whole .*log or normalised values, and raw counts are needed"),
            (lambda c: c.astype(float).mask(c == 5), "1 values are NaN or infinite"),
            (lambda c: c.astype(float).replace(5, np.inf), "1 values are NaN or infinite"),
            (lambda c: c.set_axis(["a", "a", "b", "c"], axis=0), "counts: spot ids repeat: \\['a'\\]"),
            (lambda c: c.set_axis(["g", "g", "h", "i"], axis=1), "counts: genes repeat: \\['g'\\]"),
            (lambda c: c.assign(name="x"), "columns \\['name'\\] hold no numbers"),
            (lambda c: c.T, "no spot in common.*are counts spots x genes"),
        ],
    )
    def test_counts(self, change, message):
        with pytest.raises(ValueError, match=message):
            read(change(counts()))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: p.drop(columns="pixel_y"), "no column \\['pixel_y'\\]; there are \\['pixel_x'\\]"),
            (lambda p: p.set_axis(["10x21", "10x21", "10x22", "11x21"]), "spot ids repeat: \\['10x21'\\]"),
            (lambda p: p.set_axis(["a", "b", "c", "d"]), "no spot in common"),
            (lambda p: p.assign(pixel_x=np.nan), "4 spots have no pixel_x"),
            (lambda p: p * 10, "spots lie outside the image of 120 x 90"),
        ],
    )
    def test_positions(self, change, message):
        with pytest.raises(ValueError, match=message):
            read(positions_=change(positions()))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"mpp": None}, "pass mpp="),
            ({"mpp": 0}, "mpp=0"),
            ({"spot_diameter_um": -5}, "spot_diameter_um=-5"),
            ({"image": np.zeros((6, 9, 9), np.uint8)}, "6"),
        ],
    )
    def test_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            read(**kwargs)

    def test_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="counts=.*no such file"):
            read(tmp_path / "none.tsv")
        with pytest.raises(FileNotFoundError, match="image=.*no such file"):
            read(image=tmp_path / "none.png")
        counts().to_csv(tmp_path / "c.tsv.gz", sep="\t")
        content = (tmp_path / "c.tsv.gz").read_bytes()
        (tmp_path / "c.tsv.gz").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="truncated or not a table"):
            read(tmp_path / "c.tsv.gz")
        (tmp_path / "c.xlsx").write_bytes(b"")
        with pytest.raises(ValueError, match="expected .csv, .tsv or .txt"):
            read(tmp_path / "c.xlsx")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_whole_numbers_of_any_dtype_are_counts(values):
    check_counts(np.array(values, dtype=np.int64), "X")
    check_counts(np.array(values, dtype=np.float64), "X")
    if any(0 < v < 1000 for v in values):
        with pytest.raises(ValueError, match="not whole"):
            check_counts(np.log1p(np.array(values, dtype=np.float64)), "X")
