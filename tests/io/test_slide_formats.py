"""Pyramids, several images in one file, vendor formats, thumbnails, files that must be refused."""

from __future__ import annotations

import logging
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from ghistpy import io, pp
from ghistpy.geometry import Window
from ghistpy.io.sources import stored_levels

RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (40, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 320 x 480
CYX = RGB.transpose(2, 0, 1)


def pixels(sdata, key="he"):
    source = io.open_image(sdata, key)
    return source.read(Window(0, 0, *source.shape[1:]))


def write_pyramid(path, levels, **first):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(levels[0], photometric="rgb", tile=(64, 64), subifds=len(levels) - 1, **first)
        for level in levels[1:]:
            tiff.write(level, photometric="rgb", tile=(64, 64), subfiletype=1)


class TestPyramid:
    def test_levels_of_a_tiff_are_used(self, tmp_path):
        # other pixels than a mean would give, so that it shows where they come from
        levels = [RGB, 255 - RGB[::2, ::2], RGB[::4, ::4]]
        write_pyramid(tmp_path / "a.tif", levels)
        sdata = io.read_slide(tmp_path / "a.tif", mpp=0.5)
        found = stored_levels(sdata)
        assert [s.shape for s in found] == [(3, 320, 480), (3, 160, 240), (3, 80, 120)]
        for source, level in zip(found, levels, strict=True):
            np.testing.assert_array_equal(source.read(Window(0, 0, *source.shape[1:])), level.transpose(2, 0, 1))
        assert io.get_mpp(sdata) == 0.5

    def test_is_written_and_read_again(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", [RGB, RGB[::4, ::4]])
        sdata = io.read_slide(tmp_path / "a.tif", mpp=0.5)
        sdata.write(tmp_path / "a.zarr")
        again = io.read_slide(tmp_path / "a.zarr")
        assert [s.shape[1:] for s in stored_levels(again)] == [(320, 480), (80, 120)]
        np.testing.assert_array_equal(pixels(again), CYX)
        assert io.get_mpp(again) == 0.5

    def test_what_is_missing_at_the_coarse_end_is_lazy(self, tmp_path):
        big = np.kron(RNG.integers(0, 256, (50, 45, 3)), np.ones((100, 100, 1))).astype(np.uint8)
        write_pyramid(tmp_path / "a.tif", [big, big[::2, ::2]])
        image = io.read_slide(tmp_path / "a.tif", mpp=0.5).images["he"]
        shapes = [next(iter(level.data_vars.values())).shape for level in image.children.values()]
        assert shapes == [(3, 5000, 4500), (3, 2500, 2250), (3, 1250, 1125)]
        coarse = image["scale2"]["image"].data[:, ::25, ::25].compute()
        np.testing.assert_array_equal(coarse, big[::100, ::100].transpose(2, 0, 1))

    def test_white_of_16_bits_is_one_rule_for_all_levels(self, tmp_path):
        deep = RGB.astype(np.uint16)
        deep[0, 0] = 4095
        coarse = np.minimum(deep[::4, ::4], 200)
        write_pyramid(tmp_path / "a.tif", [deep, coarse])
        sdata = io.read_slide(tmp_path / "a.tif", mpp=0.5)
        source = stored_levels(sdata)[1]
        got = source.read(Window(0, 0, *source.shape[1:]))
        np.testing.assert_array_equal(got, np.rint(coarse * (255 / 4095)).astype(np.uint8).transpose(2, 0, 1))

    def test_ome_zarr_levels_and_series(self, tmp_path, caplog):
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
        meta = []
        for name, arrays in (("label", [CYX[:, :64, :64]]), ("slide", [CYX, CYX[:, ::2, ::2]])):
            for i, array in enumerate(arrays):
                group.create_array(f"{name}{i}", data=np.ascontiguousarray(array), chunks=(3, 64, 64))
            meta.append({
                "name": name,
                "axes": [{"name": "c"}, *({"name": a, "unit": "micrometer"} for a in "yx")],
                "datasets": [
                    {"path": f"{name}{i}", "coordinateTransformations": [{"type": "scale", "scale": [1, s, s]}]}
                    for i, s in enumerate([0.5, 1.0][: len(arrays)])
                ],
            })  # fmt: skip
        group.attrs.update({"ome": {"version": "0.5", "multiscales": meta}})
        with caplog.at_level(logging.INFO, "ghistpy"):
            sdata = io.read_slide(tmp_path / "a.zarr")
        assert "holds 2 images: 0 'label' (64 x 64 px), 1 'slide' (480 x 320 px)" in caplog.text
        assert [s.shape[1:] for s in stored_levels(sdata)] == [(320, 480), (160, 240)]
        assert io.get_mpp(sdata) == 0.5
        np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "a.zarr", series="label")), CYX[:, :64, :64])
        del group["slide1"]
        with pytest.raises(ValueError, match="damaged; its metadata name 'slide1'"):
            io.read_slide(tmp_path / "a.zarr")


class TestSeries:
    @pytest.fixture
    def two(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
            for array, name, mpp in ((RGB[:200, :240], "first", 0.25), (RGB, "second", 0.5)):
                meta = {"axes": "YXS", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
                tiff.write(array, photometric="rgb", metadata=meta)
        return tmp_path / "a.ome.tif"

    def test_the_largest_is_read_and_a_rival_is_a_warning(self, two, caplog):
        with caplog.at_level(logging.WARNING, "ghistpy"):
            sdata = io.read_slide(two)
        np.testing.assert_array_equal(pixels(sdata), CYX)
        assert io.get_mpp(sdata) == 0.5
        assert "holds 2 images: 0 'first' (240 x 200 px), 1 'second' (480 x 320 px)" in caplog.text

    @pytest.mark.parametrize("series", [0, "first"])
    def test_choice_has_its_own_pixel_size(self, two, series):
        sdata = io.read_slide(two, series=series)
        np.testing.assert_array_equal(pixels(sdata), CYX[:, :200, :240])
        assert io.get_mpp(sdata) == 0.25

    @pytest.mark.parametrize("series", [2, -1, "third", True])
    def test_absent(self, two, series):
        with pytest.raises(ValueError, match="there are 0 'first' .*, 1 'second'"):
            io.read_slide(two, series=series)

    def test_where_there_is_one_only(self, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match="series=0: .* is a single picture; leave series out"):
            io.read_slide(tmp_path / "a.png", mpp=1, series=0)


class FakeSlide:
    """What ghistpy uses of openslide.OpenSlide: a slide of two levels whose left half was not scanned."""

    alive = True

    def __init__(self, path):
        content = Path(path).read_bytes()
        if content == b"foreign":
            raise sys.modules["openslide"].OpenSlideUnsupportedFormatError("unsupported")
        self._broken = content == b"broken"
        self._levels = [RGB, np.ascontiguousarray(RGB[::4, ::4])]
        self.level_dimensions = tuple((a.shape[1], a.shape[0]) for a in self._levels)
        self.dimensions = self.level_dimensions[0]
        self.properties = {"openslide.mpp-x": "0.2503", "openslide.mpp-y": "0.2501"}
        if content == b"no scale":
            self.properties = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        pass

    def read_region(self, location, level, size):
        if self._broken:
            raise sys.modules["openslide"].OpenSlideError("cannot decode")
        step = 4**level
        x, y = location[0] // step, location[1] // step
        part = self._levels[level][y : y + size[1], x : x + size[0]]
        alpha = np.where(np.arange(x, x + size[0]) < self._levels[level].shape[1] // 2, 0, 255)
        alpha = np.broadcast_to(alpha[None, :, None], (*part.shape[:2], 1)).astype(np.uint8)
        return Image.fromarray(np.concatenate([part * (alpha > 0), alpha], axis=2))


@pytest.fixture
def fake_openslide(monkeypatch):
    module = types.ModuleType("openslide")
    module.OpenSlide = FakeSlide
    module.OpenSlideError = type("OpenSlideError", (Exception,), {})
    module.OpenSlideUnsupportedFormatError = type("OpenSlideUnsupportedFormatError", (module.OpenSlideError,), {})
    monkeypatch.setitem(sys.modules, "openslide", module)


class TestVendor:
    @pytest.mark.parametrize("suffix", [".ndpi", ".mrxs", ".scn", ".dcm", ".BIF"])
    def test_levels_scale_and_unscanned_area(self, tmp_path, fake_openslide, suffix):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"slide")
        sdata = io.read_slide(path)
        assert io.get_mpp(sdata) == pytest.approx(0.2502)
        assert [s.shape for s in stored_levels(sdata)] == [(3, 320, 480), (3, 80, 120)]
        expected = CYX.copy()
        expected[:, :, :240] = 255  # not scanned: white
        np.testing.assert_array_equal(pixels(sdata), expected)
        coarse = stored_levels(sdata)[1]
        np.testing.assert_array_equal(coarse.read(Window(7, 50, 61, 99)), expected[:, ::4, ::4][:, 7:61, 50:99])

    def test_pickles(self, tmp_path, fake_openslide):
        from ghistpy.io._openslide import open_openslide

        (tmp_path / "a.ndpi").write_bytes(b"slide")
        levels, _ = open_openslide(tmp_path / "a.ndpi")
        again = pickle.loads(pickle.dumps(levels[1]))
        np.testing.assert_array_equal(again[:, 3:9, 70:80], levels[1][:, 3:9, 70:80])

    def test_refused(self, tmp_path, fake_openslide):
        path = tmp_path / "a.ndpi"
        path.write_bytes(b"foreign")
        with pytest.raises(ValueError, match="no slide format that OpenSlide knows"):
            io.read_slide(path)
        path.write_bytes(b"no scale")
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(path)
        path.write_bytes(b"broken")
        sdata = io.read_slide(path)
        with pytest.raises(ValueError, match="damaged; level 0, columns 0 to 480.* cannot be read"):
            pixels(sdata)

    def test_real_library(self, tmp_path):
        pytest.importorskip("openslide")
        (tmp_path / "a.ndpi").write_bytes(b"text" * 100)
        with pytest.raises(ValueError, match="no slide format that OpenSlide knows"):
            io.read_slide(tmp_path / "a.ndpi")

    @pytest.mark.data
    def test_real_svs(self, data_dir, caplog):
        path = data_dir / "data" / "slides" / "CMU-1-Small-Region.svs"
        with caplog.at_level(logging.INFO, "ghistpy"):
            sdata = io.read_slide(path)
        assert io.get_mpp(sdata) == pytest.approx(0.499)
        assert "1 'Thumbnail' (574 x 768 px), 2 'Label' (387 x 463 px), 3 'Macro'" in caplog.text
        assert io.open_image(sdata).shape == (3, 2967, 2220)
        assert len(sdata.images["he"].children) == 3  # one level in the file: a lazy pyramid
        np.testing.assert_array_equal(pixels(sdata), tifffile.imread(path).transpose(2, 0, 1))
        # a thumbnail does not have the µm/px of the slide, whatever its description repeats
        with pytest.raises(ValueError, match="pass mpp="):
            io.read_slide(path, series="Thumbnail")

    @pytest.mark.data
    def test_tifffile_and_openslide_agree(self, data_dir, tmp_path):
        pytest.importorskip("openslide")
        source = data_dir / "data" / "slides" / "CMU-1-Small-Region.svs"
        (tmp_path / "a.svslide").symlink_to(source)
        np.testing.assert_array_equal(pixels(io.read_slide(tmp_path / "a.svslide")), pixels(io.read_slide(source)))


class TestThumbnail:
    @pytest.mark.parametrize("max_px", [7, 60, 100, 480, 5000])
    def test_is_a_mean_of_the_slide(self, tmp_path, max_px):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
        got = io.thumbnail(io.read_slide(tmp_path / "a.tif", mpp=1), max_px=max_px)
        assert max(got.shape[:2]) <= max_px
        assert got.dtype == np.uint8
        factor = -(-480 // max_px)
        np.testing.assert_allclose(got[0, 0], RGB[:factor, :factor].reshape(-1, 3).mean(0), atol=0.51)
        assert got.shape[:2] == (-(-320 // factor), -(-480 // factor))

    def test_reads_the_stored_level(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", [RGB, np.full((80, 120, 3), 7, np.uint8)])
        assert (io.thumbnail(io.read_slide(tmp_path / "a.tif", mpp=1), max_px=100) == 7).all()

    def test_bad_size(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
        with pytest.raises(ValueError, match="max_px=0"):
            io.thumbnail(io.read_slide(tmp_path / "a.tif", mpp=1), max_px=0)


class TestRefused:
    def test_print_colours(self, tmp_path):
        Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match="stored as CMYK, for print; convert the file to RGB"):
            io.read_slide(tmp_path / "a.jpg", mpp=0.5)

    def test_truncated_level_of_a_pyramid(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", [RGB, RGB[::2, ::2]])
        content = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(content[: int(0.9 * len(content))])
        with pytest.raises(ValueError, match="truncated|not a readable TIFF"):
            io.read_slide(tmp_path / "a.tif", mpp=0.5)

    def test_huge_blank_slide(self, tmp_path):
        """2.5 gigapixels without a byte of tissue: opened at once, searched by its coarse level, refused."""
        group = zarr.create_group(tmp_path / "a.zarr")
        datasets = []
        for i in range(4):
            n = 50_000 // 4**i
            group.create_array(str(i), shape=(3, n, n), chunks=(3, 1024, 1024), dtype=np.uint8, fill_value=255)
            scale = [1, 0.25 * 4**i, 0.25 * 4**i]
            datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        axes = [{"name": "c"}, {"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}})
        sdata = io.read_slide(tmp_path / "a.zarr")
        assert io.open_image(sdata).shape == (3, 50_000, 50_000)
        assert io.thumbnail(sdata, max_px=500).min() == 255
        with pytest.raises(ValueError, match="no tissue of .* the slide is blank"):
            pp.find_tissue(sdata)
        assert not sdata.shapes


def write_dicom(path, rgb, mpp, tile=64):
    """A whole-slide DICOM of one level, in JPEG tiles, as scanners write them."""
    import io as buffers

    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.FrameOfReferenceUID = generate_uid()
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Rows = data.Columns = tile
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = rgb.shape[:2]
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
    data.DimensionOrganizationType = "TILED_FULL"
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    groups.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [groups]
    frames = []
    for y in range(0, rgb.shape[0], tile):
        for x in range(0, rgb.shape[1], tile):
            part = np.full((tile, tile, 3), 255, np.uint8)
            cut = rgb[y : y + tile, x : x + tile]
            part[: cut.shape[0], : cut.shape[1]] = cut
            buffer = buffers.BytesIO()
            Image.fromarray(part).save(buffer, "jpeg", quality=95, subsampling=0)
            frames.append(buffer.getvalue())
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def test_real_dicom(tmp_path):
    pytest.importorskip("openslide")
    pytest.importorskip("pydicom")
    y, x = np.mgrid[:200, :300]
    rgb = np.stack([x % 256, y, 128 + 0 * x], axis=-1).astype(np.uint8)
    rgb = np.where((x > 256)[..., None], 90, rgb).astype(np.uint8)
    write_dicom(tmp_path / "a.dcm", rgb, 0.5)
    sdata = io.read_slide(tmp_path / "a.dcm")
    assert io.get_mpp(sdata) == pytest.approx(0.5)
    got = pixels(sdata).astype(int)
    assert got.shape == (3, 200, 300)
    assert np.abs(got - rgb.transpose(2, 0, 1)).mean() < 2
