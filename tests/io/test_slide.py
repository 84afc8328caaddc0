"""Slide files of every supported format, their µm/px, and damaged or foreign files."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import tifffile
import zarr
from PIL import Image

from ghistpy import io
from ghistpy.geometry import Window
from ghistpy.io import _store

RGB = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
CYX = RGB.transpose(2, 0, 1)
PER_CM = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}  # 0.25 µm/px


def pixels(sdata: sd.SpatialData, key: str = "he") -> np.ndarray:
    source = io.open_image(sdata, key)
    assert source.dtype == np.uint8
    return source.read(Window(0, 0, *source.shape[1:]))


class TestTiff:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"tile": (64, 48)},
            {"rowsperstrip": 7, "compression": "zlib"},
            {"tile": (64, 64), "compression": "lzw", "predictor": True},
            {"planarconfig": "separate"},
            {"bigtiff": True, "tile": (128, 128)},
        ],
    )
    def test_layouts(self, tmp_path, options):
        array = CYX if options.get("planarconfig") == "separate" else RGB
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", **PER_CM, **options)
        sdata = io.read_slide(tmp_path / "a.tif")
        np.testing.assert_array_equal(pixels(sdata), CYX)
        assert io.get_mpp(sdata) == 0.25
        assert sdata.attrs["ghistpy"]["sample"] == "a"
        assert sdata.images["he"].c.values.tolist() == ["r", "g", "b"]

    def test_is_lazy(self, tmp_path, monkeypatch):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((3000, 2500, 3), np.uint8), photometric="rgb", tile=(256, 256))
        read = []
        from ghistpy.io._rgb import LazyRGB

        real = LazyRGB.__getitem__
        monkeypatch.setattr(LazyRGB, "__getitem__", lambda self, key: read.append(key) or real(self, key))
        sdata = io.read_slide(tmp_path / "a.tif", mpp=0.5)
        assert read == []
        assert len(sdata.images["he"].children) == 3  # a pyramid, since it is larger than 2048 px
        io.open_image(sdata).read(Window(10, 20, 40, 50))
        assert len(read) == 1

    def test_ome_wins_over_tags(self, tmp_path):
        for unit, value in (("µm", 0.5), ("nm", 500.0), ("mm", 0.0005)):
            meta = {"axes": "YXS", "PhysicalSizeX": value, "PhysicalSizeXUnit": unit, "PhysicalSizeY": value,
                    "PhysicalSizeYUnit": unit}  # fmt: skip
            path = tmp_path / f"{unit}.ome.tif"
            tifffile.imwrite(path, RGB, photometric="rgb", metadata=meta, **PER_CM)
            sdata = io.read_slide(path)
            assert io.get_mpp(sdata) == pytest.approx(0.5)
            assert sdata.attrs["ghistpy"]["sample"] == unit

    def test_ome_planes(self, tmp_path):
        meta = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tifffile.imwrite(tmp_path / "c.ome.tif", CYX, photometric="minisblack", metadata=meta)
        np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "c.ome.tif")), CYX)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
            ({"imagej": True, "resolution": (2.0, 2.0), "metadata": {"unit": "um", "axes": "YXS"}}, 0.5),
            ({"description": "Aperio|AppMag = 20|MPP = 0.4990", "metadata": None}, 0.499),
        ],
    )
    def test_other_tags(self, tmp_path, options, expected):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **options)
        assert io.get_mpp(io.read_slide(tmp_path / "a.tif")) == pytest.approx(expected)

    @pytest.mark.parametrize(
        "options",
        [{}, {"resolution": (72, 72), "resolutionunit": "INCH"}, {"resolution": (1, 1), "resolutionunit": "NONE"}],
    )
    def test_no_scale_names_mpp(self, tmp_path, options):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **options)
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(tmp_path / "a.tif")
        assert io.get_mpp(io.read_slide(tmp_path / "a.tif", mpp=0.4)) == 0.4

    def test_argument_wins_and_disagreement_is_logged(self, tmp_path, caplog):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **PER_CM)
        with caplog.at_level(logging.WARNING, "ghistpy"):
            assert io.get_mpp(io.read_slide(tmp_path / "a.tif", mpp=0.2501)) == 0.2501
            assert not caplog.records
            assert io.get_mpp(io.read_slide(tmp_path / "a.tif", mpp=0.5)) == 0.5
        assert "says 0.25 µm/px; mpp=0.5 wins" in caplog.text

    @pytest.mark.parametrize("mpp", [0, -1, np.nan, np.inf, "0.5", True])
    def test_bad_argument(self, tmp_path, mpp):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
        with pytest.raises(ValueError, match="mpp=.* expected"):
            io.read_slide(tmp_path / "a.tif", mpp=mpp)

    def test_anisotropic_metadata(self, tmp_path):
        meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.7}
        tifffile.imwrite(tmp_path / "a.ome.tif", RGB, photometric="rgb", metadata=meta)
        with pytest.raises(ValueError, match="0.5 x 0.7 µm/px; ghistpy needs square pixels"):
            io.read_slide(tmp_path / "a.ome.tif")

    def test_colours(self, tmp_path):
        path = tmp_path / "a.tif"
        alpha = np.full((*RGB.shape[:2], 1), 255, np.uint8)
        alpha[:40] = 0
        over_white = np.where(alpha == 0, 255, RGB).transpose(2, 0, 1)
        for kind in ("unassalpha", "assocalpha"):
            colour = RGB if kind == "unassalpha" else np.where(alpha == 0, 0, RGB).astype(np.uint8)
            tifffile.imwrite(path, np.concatenate([colour, alpha], axis=2), photometric="rgb", extrasamples=[kind])
            np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), over_white, err_msg=kind)
        tifffile.imwrite(path, np.concatenate([RGB, alpha], axis=2), photometric="rgb", extrasamples=["unspecified"])
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), CYX)
        tifffile.imwrite(path, RGB[..., 0], photometric="minisblack")
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), np.repeat(CYX[:1], 3, axis=0))
        tifffile.imwrite(path, 255 - RGB[..., 0], photometric="miniswhite")
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), np.repeat(CYX[:1], 3, axis=0))
        tifffile.imwrite(path, RGB.astype(np.uint16) * 257, photometric="rgb")
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), CYX)
        tifffile.imwrite(path, (RGB / 255).astype(np.float32), photometric="rgb")
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), CYX)
        palette = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
        tifffile.imwrite(path, RGB[..., 0], photometric="palette", colormap=palette)
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), (palette >> 8)[:, RGB[..., 0]])

    @pytest.mark.parametrize(
        ("array", "options", "message"),
        [
            (RGB[None].repeat(5, axis=0), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "expected one plane"),
            (np.zeros((40, 40, 4), np.uint8), {"photometric": "separated"}, "stored as SEPARATED"),
            (np.zeros((6, 40, 40), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "6 channels"),
            (np.full((40, 40, 3), np.nan, np.float32), {"photometric": "rgb"}, "without NaN"),
        ],
    )
    def test_refused_pixels(self, tmp_path, array, options, message):
        tifffile.imwrite(tmp_path / "a.ome.tif", array, **options)
        with pytest.raises(ValueError, match=message):
            io.read_slide(tmp_path / "a.ome.tif", mpp=0.5)

    def test_largest_of_several_images(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            tiff.write(RGB[:50, :50], photometric="rgb")
            tiff.write(RGB, photometric="rgb")
        np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "a.tif", mpp=1)), CYX)

    @pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
    @pytest.mark.parametrize("tiled", [True, False])
    def test_truncated(self, tmp_path, keep, tiled):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, RGB, photometric="rgb", **({"tile": (64, 64)} if tiled else {}))
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(ValueError, match="truncated|not a readable TIFF"):
            io.read_slide(path, mpp=0.5)

    def test_foreign(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"not a picture at all" * 50)
        with pytest.raises(ValueError, match="not a readable TIFF"):
            io.read_slide(tmp_path / "a.tif", mpp=0.5)
        (tmp_path / "empty.tif").write_bytes(b"")
        with pytest.raises(ValueError, match="not a readable TIFF"):
            io.read_slide(tmp_path / "empty.tif", mpp=0.5)

    @pytest.mark.data
    def test_real_ome_tiff(self, data_dir):
        path = data_dir / "data" / "slides" / "HE_example.tif"
        sdata = io.read_slide(path)
        assert io.get_mpp(sdata) == pytest.approx(0.5, rel=1e-3)
        np.testing.assert_array_equal(pixels(sdata), tifffile.imread(path).transpose(2, 0, 1))


class TestPictures:
    def test_png_is_exact_and_jpeg_close(self, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "a.png", mpp=0.5)), CYX)
        smooth = np.broadcast_to(np.linspace(0, 250, 210, dtype=np.uint8)[None, :, None], RGB.shape)
        Image.fromarray(smooth.copy()).save(tmp_path / "a.jpg", quality=95)
        got = pixels(io.read_slide(tmp_path / "a.jpg", mpp=0.5)).astype(int)
        assert np.abs(got - smooth.transpose(2, 0, 1)).max() <= 4

    def test_colours(self, tmp_path):
        path = tmp_path / "a.png"
        alpha = np.full((*RGB.shape[:2], 1), 255, np.uint8)
        alpha[:, :30] = 0
        Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(path)
        np.testing.assert_array_equal(
            pixels(io.read_slide(path, mpp=1)), np.where(alpha == 0, 255, RGB).transpose(2, 0, 1)
        )
        Image.fromarray(RGB[..., 0]).save(path)
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), np.repeat(CYX[:1], 3, axis=0))
        Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(path)
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), np.repeat(CYX[:1], 3, axis=0))
        indexed = Image.fromarray(RGB).quantize(64)
        indexed.save(path)
        np.testing.assert_array_equal(
            pixels(io.read_slide(path, mpp=1)), np.asarray(indexed.convert("RGB")).transpose(2, 0, 1)
        )

    def test_resolution(self, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.png", dpi=(50800, 50800))
        assert io.get_mpp(io.read_slide(tmp_path / "a.png")) == pytest.approx(0.5, rel=1e-3)
        Image.fromarray(RGB).save(tmp_path / "b.jpg", dpi=(300, 300))
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(tmp_path / "b.jpg")

    def test_max_pixels(self, tmp_path, monkeypatch):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match="210 x 150 px exceed max_pixels=1000"):
            io.read_slide(tmp_path / "a.png", mpp=1, max_pixels=1000)
        # pillow's own limit, a warning and beyond twice of it an error, does not come in the way, and stays
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert pixels(io.read_slide(tmp_path / "a.png", mpp=1)).shape == CYX.shape
        assert Image.MAX_IMAGE_PIXELS == 100

    def test_turned_picture_keeps_its_pixels(self, tmp_path, caplog):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
        with caplog.at_level(logging.WARNING, "ghistpy"):
            np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "a.png", mpp=1)), CYX)
        assert "EXIF orientation is not applied" in caplog.text

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_truncated_and_foreign(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(RGB).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="truncated or damaged"):
            io.read_slide(path, mpp=1)
        path.write_bytes(b"text" * 100)
        with pytest.raises(ValueError, match="not a PNG or JPEG"):
            io.read_slide(path, mpp=1)

    @pytest.mark.data
    def test_real_jpeg_without_scale(self, data_dir):
        path = data_dir / "data" / "slides" / "histo_500x300.jpg"
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(path)
        assert pixels(io.read_slide(path, mpp=0.5)).shape == (3, 300, 500)


class TestFiles:
    def test_absent(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            io.read_slide(tmp_path / "none.tif")

    def test_unknown_and_vendor_formats(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "openslide", None)  # as if it were not installed
        for name, error, message in (
            ("a.svs", ValueError, "not a readable TIFF"),
            ("a.NDPI", ImportError, "ghistpy\\[wsi\\]"),
            ("a.bmp", ValueError, "unknown format '.bmp'; expected one of .tif"),
        ):
            (tmp_path / name).write_bytes(b"")
            with pytest.raises(error, match=message):
                io.read_slide(tmp_path / name)

    def test_folder_that_is_no_zarr(self, tmp_path):
        with pytest.raises(ValueError, match="a folder that is no zarr group"):
            io.read_slide(tmp_path)
        zarr.create_group(tmp_path / "g.zarr")
        with pytest.raises(ValueError, match="without OME 'multiscales' metadata"):
            io.read_slide(tmp_path / "g.zarr")


def ome_zarr(path: Path, array: np.ndarray, axes: str, scale: list[float], unit: str | None, version: str) -> Path:
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    group.create_array("0", data=array, chunks=tuple(min(64, n) for n in array.shape))
    meta = {
        "version": version,
        "axes": [{"name": a, "type": "space", **({"unit": unit} if unit and a in "yx" else {})} for a in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
    group.attrs.update(
        {"ome": {"version": version, "multiscales": [meta]}} if version == "0.5" else {"multiscales": [meta]}
    )
    return path


class TestZarr:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_ome_zarr(self, tmp_path, version):
        path = ome_zarr(tmp_path / "a.zarr", CYX, "cyx", [1, 0.5, 0.5], "micrometer", version)
        sdata = io.read_slide(path)
        np.testing.assert_array_equal(pixels(sdata), CYX)
        assert io.get_mpp(sdata) == 0.5

    def test_axes_units_and_planes(self, tmp_path):
        path = ome_zarr(tmp_path / "a.zarr", CYX[None, :, None], "tczyx", [1, 1, 1, 250, 250], "nanometer", "0.4")
        sdata = io.read_slide(path)
        np.testing.assert_array_equal(pixels(sdata), CYX)
        assert io.get_mpp(sdata) == 0.25
        path = ome_zarr(tmp_path / "b.zarr", RGB, "yxc", [0.5, 0.5, 1], None, "0.5")
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(path)
        np.testing.assert_array_equal(pixels(io.read_slide(path, mpp=1)), CYX)
        path = ome_zarr(tmp_path / "c.zarr", np.stack([CYX, CYX], 1), "czyx", [1, 1, 1, 1], None, "0.5")
        with pytest.raises(ValueError, match="expected one plane"):
            io.read_slide(path, mpp=1)

    @pytest.fixture
    def store(self, tmp_path) -> Path:
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **PER_CM)
        io.read_slide(tmp_path / "a.tif").write(tmp_path / "a.zarr")
        return tmp_path / "a.zarr"

    def test_spatialdata_store(self, store):
        sdata = io.read_slide(store)
        assert sdata.is_backed()
        np.testing.assert_array_equal(pixels(sdata), CYX)
        assert io.get_mpp(sdata) == 0.25
        assert sdata.attrs["ghistpy"]["sample"] == "a"
        with pytest.raises(ValueError, match="image_key='x' is not among the images .*'he'"):
            io.read_slide(store, image_key="x")

    def test_argument_wins_in_a_store(self, store, caplog):
        with caplog.at_level(logging.WARNING, "ghistpy"):
            assert io.get_mpp(io.read_slide(store, mpp=0.5)) == 0.5
        assert "mpp=0.5 wins" in caplog.text

    def test_store_without_scale(self, tmp_path):
        from spatialdata.models import Image2DModel

        sdata = sd.SpatialData(images={"he": Image2DModel.parse(CYX, dims=("c", "y", "x"))})
        sdata.write(tmp_path / "s.zarr")
        with pytest.raises(ValueError, match="mpp="):
            io.read_slide(tmp_path / "s.zarr")
        assert io.get_mpp(io.read_slide(tmp_path / "s.zarr", mpp=0.5)) == 0.5

    def test_an_unfinished_write_is_resolved(self, store):
        table = io.make_table(np.ones((1, 1), np.float32), ["A"], region="he", instance_key="cell_id", ids=[1])
        del table.uns["spatialdata_attrs"]
        _store._write_staging(store, "t", table)
        _store._mark(_store.staging_path(store), "t")
        assert "t" in io.read_slide(store).tables
        assert not _store.staging_path(store).exists()
