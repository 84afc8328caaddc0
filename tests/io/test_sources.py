"""Windowed reading of images and labels, µm/px, and what does not fit together."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from ghistpy import io
from ghistpy.geometry import ArraySource, Window
from ghistpy.io import sources

HEIGHT, WIDTH = 130, 170
PIXELS = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 2**62, (HEIGHT, WIDTH))
HALF = Scale([0.5, 0.5], axes=("x", "y"))


def slide(image=None, labels=None, transformation=HALF, scale_factors=None) -> sd.SpatialData:
    image = PIXELS if image is None else image
    labels = IDS if labels is None else labels
    to = {"microns": transformation} if transformation is not None else None
    return sd.SpatialData(
        images={
            "he": Image2DModel.parse(
                image, dims=("c", "y", "x"), transformations=to, scale_factors=scale_factors, chunks=(3, 64, 64)
            )
        },
        labels={
            "nuclei": Labels2DModel.parse(labels, dims=("y", "x"), chunks=(64, 64), transformations={"microns": HALF})
        },
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "slide.zarr"
    both = slide()
    both.images["pyramid"] = slide(scale_factors=[2]).images["he"]
    both.write(path)
    return path


windows = st.tuples(st.integers(0, HEIGHT), st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, WIDTH)).map(
    lambda w: Window(min(w[0], w[2]), min(w[1], w[3]), max(w[0], w[2]), max(w[1], w[3]))
)


class TestReading:
    @settings(max_examples=40, deadline=None)
    @given(window=windows)
    def test_every_kind_of_source_equals_numpy(self, stored, window):
        opened = _opened(stored)
        expected = PIXELS[:, window.y0 : window.y1, window.x0 : window.x1]
        for name, source in opened.items():
            if name.startswith("labels"):
                np.testing.assert_array_equal(
                    source.read(window), IDS[window.y0 : window.y1, window.x0 : window.x1], err_msg=name
                )
            else:
                np.testing.assert_array_equal(source.read(window), expected, err_msg=name)

    def test_the_cheapest_reader_is_chosen(self, stored):
        kinds = {name: type(source).__name__ for name, source in _opened(stored).items()}
        assert kinds == {
            "memory": "BlockSource",
            "pyramid in memory": "BlockSource",
            "computed": "DaskSource",
            "numpy": "MemorySource",
            "store": "ZarrSource",
            "pyramid in store": "ZarrSource",
            "labels in memory": "BlockSource",
            "labels in store": "ZarrSource",
        }
        assert all(isinstance(source, ArraySource) for source in _opened(stored).values())

    def test_threads_read_the_same(self, stored):
        source = io.open_image(sd.read_zarr(stored))
        boxes = [Window(y, x, y + 40, x + 50) for y in range(0, 90, 7) for x in range(0, 120, 11)]
        with ThreadPoolExecutor(8) as pool:
            for box, got in zip(boxes, pool.map(source.read, boxes), strict=True):
                np.testing.assert_array_equal(got, PIXELS[:, box.y0 : box.y1, box.x0 : box.x1])

    def test_what_is_read_is_a_copy(self):
        sdata = slide()
        io.open_image(sdata).read(Window(0, 0, 4, 4))[:] = 0
        np.testing.assert_array_equal(io.open_image(sdata).read(Window(0, 0, 4, 4)), PIXELS[:, :4, :4])

    def test_an_element_replaced_in_memory_is_not_read_from_the_store(self, stored):
        sdata = sd.read_zarr(stored)
        element = sdata.images["he"]
        sdata.images["he"] = element.copy(data=255 - element.data)
        np.testing.assert_array_equal(io.open_image(sdata).read(Window(3, 5, 80, 90)), 255 - PIXELS[:, 3:80, 5:90])

    def test_large_ids_are_exact(self, stored):
        assert io.open_labels(sd.read_zarr(stored)).read(Window(0, 0, HEIGHT, WIDTH)).max() == IDS.max() > 2**53


def _opened(stored: Path) -> dict[str, ArraySource]:
    if not hasattr(_opened, "cache"):
        memory, backed = slide(), sd.read_zarr(stored)
        computed, plain = slide(), slide()
        computed.images["he"] = computed.images["he"].copy(data=computed.images["he"].data + np.uint8(0))
        plain.images["he"].data = PIXELS
        _opened.cache = {
            "memory": io.open_image(memory),
            "pyramid in memory": io.open_image(slide(scale_factors=[2])),
            "computed": io.open_image(computed),
            "numpy": io.open_image(plain),
            "store": io.open_image(backed),
            "pyramid in store": io.open_image(backed, "pyramid"),
            "labels in memory": io.open_labels(memory),
            "labels in store": io.open_labels(backed),
        }
    return _opened.cache


class TestMpp:
    def test_scale_is_read(self):
        assert io.get_mpp(slide()) == 0.5

    def test_scale_survives_a_store_and_a_pyramid(self, stored):
        assert io.get_mpp(sd.read_zarr(stored)) == 0.5
        assert io.get_mpp(sd.read_zarr(stored), "pyramid") == 0.5

    @pytest.mark.parametrize(
        ("transformation", "message"),
        [
            (None, "has no transformation to 'microns'"),
            (Identity(), "is an Identity"),
            (Scale([0.5, 0.6], axes=("x", "y")), "anisotropic \\(0.5 µm/px along x, 0.6 along y\\)"),
            (Scale([0.5, 0.502], axes=("x", "y")), "anisotropic"),
            (Scale([-0.5, 0.5], axes=("x", "y")), "mirrored"),
            (Scale([0.0, 0.0], axes=("x", "y")), "not a usable scale"),
            (
                Affine([[0, -0.5, 0], [0.5, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")),
                "rotated or sheared",
            ),
            (Sequence([HALF, Translation([10, 0], axes=("x", "y"))]), "shifted by \\(10, 0\\)"),
        ],
    )
    def test_refuses_and_names_mpp(self, transformation, message):
        with pytest.raises(ValueError, match=message) as error:
            io.get_mpp(slide(transformation=transformation))
        assert "mpp=" in str(error.value)

    @pytest.mark.parametrize(
        "transformation",
        [
            Scale([0.5, 0.5004], axes=("x", "y")),
            Sequence([HALF, Identity()]),
            Affine([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")),
        ],
    )
    def test_what_amounts_to_a_scale_is_one(self, transformation):
        assert io.get_mpp(slide(transformation=transformation)) == pytest.approx(0.5, rel=1e-3)


class TestMismatch:
    def test_absent_elements_are_listed(self):
        with pytest.raises(ValueError, match="image_key='xx' is not among the images .*available: 'he'"):
            io.open_image(slide(), "xx")
        with pytest.raises(ValueError, match="labels_key='xx' is not among the labels .*available: 'nuclei'"):
            io.open_labels(slide(), "xx")

    def test_float_labels(self):
        with pytest.raises(ValueError, match="labels_key='nuclei' has dtype float32, expected integers"):
            io.open_labels(slide(labels=IDS.astype(np.float32)))

    def test_different_shapes(self):
        with pytest.raises(ValueError, match=r"labels_key='nuclei' has shape \(y, x\) = \(130, 100\) .* \(130, 170\)"):
            io.open_slide(slide(labels=IDS[:, :100]))

    def test_different_scales(self):
        with pytest.raises(ValueError, match="is at 0.5 µm/px but image_key='he' at 0.25"):
            io.open_slide(slide(transformation=Scale([0.25, 0.25], axes=("x", "y"))))

    def test_matching_slide(self):
        image, labels, mpp = io.open_slide(slide())
        assert (image.shape, labels.shape, mpp) == ((3, HEIGHT, WIDTH), (HEIGHT, WIDTH), 0.5)


class TestColours:
    """Grey, alpha and more than 8 bits become uint8 RGB by one rule for the slide."""

    window = Window(20, 30, 70, 75)

    def read(self, image: np.ndarray) -> np.ndarray:
        got = io.rgb_source(io.open_image(slide(image=image)))
        assert (got.shape, got.dtype) == ((3, HEIGHT, WIDTH), np.uint8)
        part = got.read(self.window)
        whole = got.read(Window(0, 0, HEIGHT, WIDTH))
        np.testing.assert_array_equal(part, whole[:, 20:70, 30:75])
        return whole

    def test_rgb_is_untouched(self):
        source = io.open_image(slide())
        assert io.rgb_source(source) is source

    @pytest.mark.parametrize(
        ("image", "tolerance"),
        [
            (PIXELS.astype(np.uint16) * 257, 0),
            ((PIXELS / 255).astype(np.float32), 0),
            (PIXELS.astype(np.float64), 0),
            (PIXELS.astype(np.int64), 0),
            (PIXELS.astype(np.uint16), 0),
            (PIXELS.astype(np.uint16) * 16, 1),  # 12 bits
        ],
    )
    def test_depths(self, image, tolerance):
        assert np.abs(self.read(image).astype(int) - PIXELS.astype(int)).max() <= tolerance

    def test_grey_is_repeated(self):
        np.testing.assert_array_equal(self.read(PIXELS[:1]), np.repeat(PIXELS[:1], 3, axis=0))

    def test_alpha_is_composited_over_white(self):
        alpha = np.zeros((1, HEIGHT, WIDTH), np.uint8)
        alpha[:, :, 80:] = 255
        got = self.read(np.concatenate([PIXELS, alpha]))
        assert (got[:, :, :80] == 255).all()
        np.testing.assert_array_equal(got[:, :, 80:], PIXELS[:, :, 80:])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.where(PIXELS == 7, np.nan, PIXELS / 255.0), "nan"),
            (PIXELS.astype(np.int16) - 1, "values from -1 to"),
            (PIXELS.astype(np.float32) * 1e6, "rescale the image"),
            (np.concatenate([PIXELS, PIXELS]), "6 channels"),
        ],
    )
    def test_refused(self, image, message):
        with pytest.raises(ValueError, match=message):
            io.rgb_source(io.open_image(slide(image=image)))


def test_lazy_image_can_be_pickled(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", PIXELS.transpose(1, 2, 0), photometric="rgb", tile=(64, 64))
    sdata = io.read_slide(tmp_path / "a.tif", mpp=0.5)
    again = pickle.loads(pickle.dumps(sdata.images["he"].data))
    np.testing.assert_array_equal(again.compute(scheduler="synchronous"), PIXELS)
    assert isinstance(io.open_image(sdata), sources.ZarrSource)
    assert isinstance(da.asarray(again), da.Array)
