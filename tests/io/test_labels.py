"""Labels of other tools in, GeoJSON out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from PIL import Image
from scipy import ndimage

import ghistpy as gp
from ghistpy import io
from ghistpy.geometry import Window
from ghistpy.io.elements import image_element, labels_element

REFERENCE = Path(__file__).parents[1] / "reference"
LABELS = np.kron(np.arange(12).reshape(3, 4), np.ones((20, 25))).astype(np.uint16)  # (60, 100)
LABELS[::20] = 0


def slide(shape=(60, 100), mpp=0.5, labels=None):
    sdata = sd.SpatialData(images={"he": image_element(np.full((3, *shape), 200, np.uint8), mpp)})
    if labels is not None:
        sdata["nuclei"] = labels_element(labels, mpp)
    return sdata


def hovernet(path, nuclei, **more):
    path.write_text(json.dumps({"mag": 40, "nuc": nuclei, **more}))
    return path


def square(x, y, side=6):
    return [[x, y], [x, y + side - 1], [x + side - 1, y + side - 1], [x + side - 1, y]]


def feature(x, y, side=6, **properties):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


class TestLabelImages:
    @pytest.mark.parametrize("name", ["a.tif", "tiled.tif", "a.png", "a.npy"])
    def test_ids_stay(self, tmp_path, name):
        path = tmp_path / name
        if path.suffix == ".tif":
            tifffile.imwrite(path, LABELS, **({"tile": (16, 16)} if name != "a.tif" else {}))
        elif path.suffix == ".png":
            Image.fromarray(LABELS).save(path)
        else:
            np.save(path, LABELS)
        sdata = slide()
        sdata["nuclei"] = io.read_labels(path, like=sdata)
        source = io.open_labels(sdata)
        assert type(source).__name__ == "ZarrSource"  # read directly, not through a graph
        np.testing.assert_array_equal(source.read(Window(0, 0, 60, 100)), LABELS)
        np.testing.assert_array_equal(source.read(Window(3, 7, 44, 90)), LABELS[3:44, 7:90])
        io.open_slide(sdata)
        sdata.write(tmp_path / "s.zarr")
        np.testing.assert_array_equal(io.read_slide(tmp_path / "s.zarr")["nuclei"].values, LABELS)

    def test_large_ids(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.uint64) * 2**40)
        got = io.read_labels(tmp_path / "a.tif", mpp=0.5)
        np.testing.assert_array_equal(got.values, LABELS.astype(np.uint64) * 2**40)

    def test_scale_of_the_file_is_used_and_checked(self, tmp_path):
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, LABELS, metadata={"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
        sdata = slide(mpp=0.25)
        sdata["nuclei"] = io.read_labels(path)
        io.open_slide(sdata)
        with pytest.raises(ValueError, match="labels at 0.25 µm/px, the image at 0.5"):
            io.read_labels(path, like=slide(mpp=0.5))

    @pytest.mark.parametrize(
        ("shape", "why"),
        [
            ((60, 120), "they were cut off, or belong to another image"),
            ((59, 100), "they were cut off"),
            ((120, 200), "a resolution 2.00 times coarser"),
            ((100, 60), "rows and columns are exchanged"),
        ],
    )
    def test_other_size_than_the_image(self, tmp_path, shape, why):
        tifffile.imwrite(tmp_path / "a.tif", LABELS)
        with pytest.raises(ValueError, match=rf"labels of \(y, x\) = \(60, 100\).*{why}"):
            io.read_labels(tmp_path / "a.tif", like=slide(shape))

    @pytest.mark.parametrize(
        ("array", "match"),
        [
            (LABELS.astype(np.float32), "dtype float32; expected integers"),
            (np.zeros((60, 100, 3), np.uint8), "expected one plane of ids"),
        ],
    )
    def test_no_labels(self, tmp_path, array, match):
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb" if array.ndim == 3 else "minisblack")
        with pytest.raises(ValueError, match=match):
            io.read_labels(tmp_path / "a.tif")

    def test_damaged_and_foreign(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", LABELS)
        content = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="truncated"):
            io.read_labels(tmp_path / "a.tif")
        (tmp_path / "a.png").write_bytes(b"text")
        with pytest.raises(ValueError, match="not a PNG, or damaged"):
            io.read_labels(tmp_path / "a.png")
        (tmp_path / "a.mat").write_bytes(b"text")
        with pytest.raises(ValueError, match="unknown format '.mat' of labels"):
            io.read_labels(tmp_path / "a.mat")
        with pytest.raises(FileNotFoundError, match="no such file"):
            io.read_labels(tmp_path / "none.tif")

    def test_arguments_that_contradict_the_image(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", LABELS)
        with pytest.raises(ValueError, match="mpp=0.25: image_key='he' says 0.5; leave mpp out"):
            io.read_labels(tmp_path / "a.tif", like=slide(), mpp=0.25)
        with pytest.raises(ValueError, match="mpp=-1"):
            io.read_labels(tmp_path / "a.tif", mpp=-1)


class TestHoverNet:
    def test_contours_of_opencv(self):
        """Contours that OpenCV drew around known masks, as HoVer-Net writes them: see tests/reference/README.md."""
        expected = np.load(REFERENCE / "hovernet_opencv_labels.npy")
        got = io.read_labels(REFERENCE / "hovernet_opencv.json", shape=expected.shape, mpp=0.25)
        np.testing.assert_array_equal(got.values, expected)

    def test_ids_types_and_probability(self, tmp_path):
        nuclei = {"7": {"contour": square(3, 3), "type": 2, "type_prob": 0.75}, "12": {"contour": square(20, 3)}}
        path = hovernet(tmp_path / "a.json", nuclei)
        frame = io.read_label_table(path)
        assert frame["cell_id"].tolist() == [7, 12]
        assert frame["cell_type"].astype(object).where(frame["cell_type"].notna(), None).tolist() == ["2", None]
        assert frame["probability"][0] == 0.75
        got = io.read_labels(path, like=slide()).values
        assert (got[3:9, 3:9] == 7).all()
        assert (got == 12).sum() == 36

    def test_pixels_of_another_magnification(self, tmp_path):
        path = hovernet(tmp_path / "a.json", {"1": {"contour": square(40, 20, 20)}})
        got = io.read_labels(path, like=slide(mpp=0.5), file_mpp=0.25).values
        # 20 x 20 px at 0.25 are 10 x 10 at 0.5; the outline runs through the middle of its pixels
        assert ndimage.find_objects(got)[0] == (slice(10, 20), slice(20, 30))
        with pytest.raises(ValueError, match="file_mpp=0.25: .*pass like= or mpp="):
            io.read_labels(path, file_mpp=0.25)

    def test_duplicate_ids(self, tmp_path):
        nucleus = json.dumps({"contour": square(3, 3)})
        (tmp_path / "a.json").write_text(f'{{"nuc": {{"1": {nucleus}, "2": {nucleus}, "1": {nucleus}}}}}')
        with pytest.raises(ValueError, match=r"a.json: duplicate ids, such as \['1'\]"):
            io.read_labels(tmp_path / "a.json")

    def test_lost_and_cut_objects_are_counted(self, tmp_path, caplog):
        nuclei = {
            "1": {"contour": square(10, 10)},
            "2": {"contour": square(97, 10)},  # reaches beyond the right border
            "3": {"contour": square(300, 10)},  # outside
            "4": {"contour": [[5, 5], [6, 6]]},  # no outline
            "5": {"contour": square(13, 13)},  # overlaps the first
        }
        with caplog.at_level(logging.WARNING, "ghistpy"):
            got = io.read_labels(hovernet(tmp_path / "a.json", nuclei), like=slide()).values
        assert np.unique(got).tolist() == [0, 1, 2, 5]
        assert "left out: 1 without an outline" in caplog.text
        assert (
            "3 of 4 objects; 1 outside the image, 0 smaller than a pixel, 1 cut at its border, 2 overlap" in caplog.text
        )

    def test_nothing_in_the_image(self, tmp_path):
        path = hovernet(tmp_path / "a.json", {"1": {"contour": square(5000, 9000)}})
        with pytest.raises(ValueError, match="none of its 1 objects lies in the image of 100 x 60 px.*file_mpp="):
            io.read_labels(path, like=slide())

    def test_empty_file_gives_empty_labels(self, tmp_path):
        assert io.read_labels(hovernet(tmp_path / "a.json", {}), like=slide()).values.max() == 0

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ('{"nuc": {"1": {"cont', "not JSON, or cut off"),
            ('{"nuc": {"1": {}}}', "without what is expected of it .*contour"),
            ('{"nuc": {"1": {"contour": [[1, 2], [3], [4, 5]]}}}', "no lists of x, y"),
            ('{"nuc": {"1": {"contour": [[1, 2], [3, NaN], [4, 5]]}}}', "NaN or infinite"),
            ('{"boxes": []}', "expected GeoJSON .* found \\['boxes'\\]"),
        ],
    )
    def test_damaged(self, tmp_path, content, match):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=match):
            io.read_labels(tmp_path / "a.json", like=slide())


class TestCellViT:
    def test_types_by_name(self, tmp_path):
        cells = [
            {"contour": square(3, 3), "type": 1, "type_prob": 0.9, "centroid": [5, 5]},
            {"contour": square(30, 3), "type": 2, "type_prob": 0.6},
        ]
        content = {"wsi_metadata": {}, "type_map": {"1": "Neoplastic", "2": "Inflammatory"}, "cells": cells}
        (tmp_path / "cells.json").write_text(json.dumps(content))
        frame = io.read_label_table(tmp_path / "cells.json")
        assert frame["cell_type"].tolist() == ["Neoplastic", "Inflammatory"]
        assert frame["cell_id"].tolist() == [1, 2]
        got = io.read_labels(tmp_path / "cells.json", like=slide()).values
        assert (got[3:9, 30:36] == 2).all()


class TestQuPath:
    def write(self, path, features):
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return path

    def test_detections_cells_and_annotations(self, tmp_path, caplog):
        nucleus = feature(32, 12, 4)["geometry"]
        point = {"type": "Feature", "id": "p", "geometry": {"type": "Point", "coordinates": [1, 2]},
                 "properties": {"objectType": "detection"}}  # fmt: skip
        features = [
            {**feature(0, 0, 60, objectType="annotation"), "id": "region"},
            {**feature(10, 10, objectType="detection", classification={"name": "Tumor"}), "id": "a"},
            {**feature(30, 10, 8, objectType="cell", classification={"names": ["Immune", "CD3"]}), "id": "b",
             "nucleusGeometry": nucleus},
            point,
        ]  # fmt: skip
        path = self.write(tmp_path / "a.geojson", features)
        with caplog.at_level(logging.WARNING, "ghistpy"):
            frame = io.read_label_table(path)
        assert "1 of type 'annotation' beside detections, 1 of geometry Point" in caplog.text
        assert frame["original_id"].tolist() == ["a", "b"]
        assert frame["cell_type"].tolist() == ["Tumor", "Immune: CD3"]
        got = io.read_labels(path, like=slide()).values
        assert (got[10:16, 10:16] == 1).all()
        assert (got == 2).sum() == 16  # the nucleus of the cell
        assert (got[12:16, 32:36] == 2).all()

    def test_annotations_alone_are_read(self, tmp_path):
        path = self.write(tmp_path / "a.geojson", [feature(4, 4), feature(20, 4)])
        assert io.read_labels(path, like=slide()).values.max() == 2

    def test_duplicate_ids(self, tmp_path):
        path = self.write(tmp_path / "a.geojson", [{**feature(4, 4), "id": "x"}, {**feature(20, 4), "id": "x"}])
        with pytest.raises(ValueError, match=r"duplicate ids, such as \['x'\]"):
            io.read_labels(path)
        path = self.write(tmp_path / "b.geojson", [feature(4, 4, cell_id=3), feature(20, 4, cell_id=3)])
        with pytest.raises(ValueError, match=r"duplicate ids, such as \[3\]"):
            io.read_labels(path)


class TestWriteGeojson:
    @pytest.fixture
    def sdata(self):
        rng = np.random.default_rng(0)
        labels = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(300, 400)), 3) > 0.06)[0].astype(np.int64)
        labels[40:60, 40:60] = 0
        labels[42:58, 42:58] = 5000
        labels[46:50, 46:50] = 0  # a hole
        labels[47, 47] = 5000  # and an island in it
        return slide(labels.shape, labels=labels)

    @pytest.mark.parametrize("block", [2048, 64])
    def test_labels_come_back(self, sdata, tmp_path, monkeypatch, block):
        monkeypatch.setattr("ghistpy.io.geojson._BLOCK", block)
        io.write_geojson(sdata, tmp_path / "a.geojson", progress=False)
        got = io.read_labels(tmp_path / "a.geojson", like=sdata)
        np.testing.assert_array_equal(got.values, sdata["nuclei"].values)
        assert not list(tmp_path.glob(".*"))

    def test_geometry_is_valid_and_has_the_area(self, sdata, tmp_path):
        import geopandas as gpd

        io.write_geojson(sdata, tmp_path / "a.geojson", progress=False)
        features = json.loads((tmp_path / "a.geojson").read_text())["features"]
        frame = gpd.GeoDataFrame.from_features(features)
        assert frame.geometry.is_valid.all()
        area = np.bincount(sdata["nuclei"].values.ravel())
        np.testing.assert_array_equal(frame.geometry.area, area[frame["cell_id"]])
        assert len({f["id"] for f in features}) == len(features) == (area[1:] > 0).sum()

    def table(self, sdata, ids, types):
        return io.make_table(
            np.ones((len(ids), 1), np.float32), ["A"], region="nuclei", instance_key="cell_id", ids=ids,
            obs={"cell_type": pd.Categorical(types), "cell_type_confidence": np.linspace(0.5, 1, len(ids))},
        )  # fmt: skip

    def test_types_and_measurements(self, sdata, tmp_path, caplog):
        ids = np.unique(sdata["nuclei"].values)[1:]
        types = np.where(ids % 2, "T/NK", "B cell")
        sdata.tables["insilico"] = self.table(sdata, ids[:-1], types[:-1])
        with caplog.at_level(logging.WARNING, "ghistpy"):
            io.write_geojson(sdata, tmp_path / "a.geojson", progress=False)
        assert f"1 of {len(ids)} nuclei have no row in the table" in caplog.text
        frame = io.read_label_table(tmp_path / "a.geojson").set_index("cell_id")
        assert frame.loc[ids[:-1], "cell_type"].tolist() == types[:-1].tolist()
        assert frame.loc[ids[-1], "cell_type"] is np.nan
        np.testing.assert_allclose(frame.loc[ids[:-1], "probability"], np.linspace(0.5, 1, len(ids) - 1))

    def test_a_prediction(self, tmp_path):
        sdata = gp.datasets.simulate_slide(n_cells=60, n_genes=5, size_um=100.0, seed=0)
        gp.tl.predict_expression(sdata, gp.tl.fit(sdata, max_epochs=0, progress=False), progress=False)
        io.write_geojson(sdata, tmp_path / "a.geojson", progress=False)
        frame = io.read_label_table(tmp_path / "a.geojson")
        obs = sdata["insilico"].obs.set_index("cell_id").loc[frame["cell_id"]]
        assert frame["cell_type"].tolist() == obs["cell_type"].tolist()

    def test_bad_arguments_write_nothing(self, sdata, tmp_path):
        sdata.tables["a"], sdata.tables["b"] = (self.table(sdata, [1, 2], ["x", "y"]) for _ in range(2))
        for arguments, match in (
            ({}, r"table_key: the tables \['a', 'b'\] all have types"),
            ({"table_key": "c"}, r"table_key='c' is no table of labels_key='nuclei' \(those are: \['a', 'b'\]\)"),
            ({"table_key": "a", "cell_type_key": "x"}, "cell_type_key='x' is not among the columns"),
            ({"labels_key": "x"}, "labels_key='x'"),
        ):
            with pytest.raises(ValueError, match=match):
                io.write_geojson(sdata, tmp_path / "a.geojson", progress=False, **arguments)
        with pytest.raises(ValueError, match="ends in .geojson or .json"):
            io.write_geojson(sdata, tmp_path / "a.csv")
        assert not list(tmp_path.iterdir())
