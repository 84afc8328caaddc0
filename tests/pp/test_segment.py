"""pp.segment_nuclei: what is written, what is refused, what is logged."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd
from scipy import ndimage
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

import ghistpy as gp
from ghistpy.imaging.watershed import WatershedParams


def picture(n_px=240, mpp=0.5):
    """(3, y, x) uint8 with 25 nuclei of radius 4 µm, 24 µm apart, and their true labels."""
    y, x = (np.mgrid[:n_px, :n_px] + 0.5) * mpp
    nucleus = np.hypot(y % 24 - 12, x % 24 - 12) < 4
    od = np.where(nucleus, 1.0, 0.05)
    rng = np.random.default_rng(0)
    values = 241 * np.exp(-od * np.array([1.2, 1.4, 0.6])[:, None, None]) - 1 + rng.normal(0, 1, (3, n_px, n_px))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8), ndimage.label(nucleus)[0]


def slide(array, *, mpp=0.5, **kwargs):
    scale = {} if mpp is None else {"transformations": {"microns": Scale([mpp, mpp], axes=("x", "y"))}}
    return sd.SpatialData(images={"he": Image2DModel.parse(array, dims=("c", "y", "x"), **scale, **kwargs)})


def same_objects(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(a)) == len(np.unique(b))


@pytest.fixture(scope="module")
def drawn():
    return picture()


@pytest.fixture
def sdata(drawn):
    return slide(drawn[0])


def overlap(labels, truth):
    return ((labels > 0) & (truth > 0)).sum() / ((labels > 0) | (truth > 0)).sum()


def test_writes_labels_at_the_scale_of_the_image(sdata, drawn, caplog):
    with caplog.at_level(logging.INFO, "ghistpy"):
        assert gp.pp.segment_nuclei(sdata, progress=False) is None
    labels = sdata["nuclei"].values
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(26))
    assert overlap(labels, drawn[1]) > 0.85
    assert get_transformation(sdata["nuclei"], "microns") == Scale([0.5, 0.5], axes=("x", "y"))
    assert "25 nuclei" in caplog.text
    assert "0 smaller than 8" in caplog.text


@pytest.mark.parametrize("mpp", [0.25, 0.687])
def test_one_setting_for_every_magnification(mpp):
    array, truth = picture(round(120 / mpp), mpp)
    sdata = slide(array, mpp=mpp)
    gp.pp.segment_nuclei(sdata, progress=False)
    assert sdata["nuclei"].values.max() == 25
    assert overlap(sdata["nuclei"].values, truth) > 0.8


@pytest.mark.parametrize("tile_px", [70, 512])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_tiles_and_threads_do_not_matter(sdata, tile_px, n_jobs):
    gp.pp.segment_nuclei(sdata, progress=False)
    gp.pp.segment_nuclei(sdata, key_added="again", tile_px=tile_px, n_jobs=n_jobs, progress=False)
    assert same_objects(sdata["nuclei"].values, sdata["again"].values)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.astype(np.uint16) * 257,
        lambda a: (a / 255).astype(np.float32),
        lambda a: np.concatenate([a, np.full_like(a[:1], 255)]),
    ],
    ids=["uint16", "float", "rgba"],
)
def test_other_kinds_of_image_give_the_same_nuclei(drawn, sdata, convert):
    gp.pp.segment_nuclei(sdata, progress=False)
    other = slide(convert(drawn[0]))
    gp.pp.segment_nuclei(other, progress=False)
    np.testing.assert_array_equal(other["nuclei"].values, sdata["nuclei"].values)


def test_grey_image(drawn):
    grey = slide(drawn[0].mean(axis=0, keepdims=True).astype(np.uint8))
    gp.pp.segment_nuclei(grey, progress=False)
    assert grey["nuclei"].values.max() == 25


def test_nan_is_refused(drawn):
    array = (drawn[0] / 255).astype(np.float32)
    array[0, 5, 5] = np.nan
    sdata = slide(array)
    with pytest.raises(ValueError, match="image_key='he'.*NaN"):
        gp.pp.segment_nuclei(sdata, progress=False)
    assert "nuclei" not in sdata.labels


def test_unknown_scale_names_mpp_and_takes_it(drawn):
    sdata = slide(drawn[0], mpp=None)
    with pytest.raises(ValueError, match="mpp="):
        gp.pp.segment_nuclei(sdata, progress=False)
    gp.pp.segment_nuclei(sdata, mpp=0.5, progress=False)
    assert sdata["nuclei"].values.max() == 25
    assert gp.io.get_mpp(sdata) == 0.5
    with pytest.raises(ValueError, match="mpp=0.25 contradicts"):
        gp.pp.segment_nuclei(sdata, mpp=0.25, progress=False)


def test_identity_is_no_scale(drawn):
    sdata = slide(drawn[0], mpp=None)
    sd.transformations.set_transformation(sdata["he"], Identity(), "microns")
    with pytest.raises(ValueError, match="mpp="):
        gp.pp.segment_nuclei(sdata, progress=False)


@pytest.mark.parametrize("mpp", [0.0, -1, "0.5", np.nan])
def test_bad_mpp(sdata, mpp):
    with pytest.raises(ValueError, match="mpp="):
        gp.pp.segment_nuclei(sdata, mpp=mpp, progress=False)


@pytest.mark.parametrize("shape", [(3, 300, 300), (3, 1, 1), (3, 7, 90)])
def test_slide_without_nuclei_gets_empty_labels_and_a_warning(shape, caplog):
    sdata = slide(np.full(shape, 238, np.uint8))
    with caplog.at_level(logging.WARNING, "ghistpy"):
        gp.pp.segment_nuclei(sdata, progress=False)
    assert "no nucleus found in image 'he'" in caplog.text
    assert sdata["nuclei"].shape == shape[1:]
    assert sdata["nuclei"].values.max() == 0


def test_too_small_objects_are_counted(sdata, caplog):
    with caplog.at_level(logging.INFO, "ghistpy"):
        gp.pp.segment_nuclei(
            sdata,
            method=lambda rgb: ndimage.label(rgb[..., 0] < 150)[0],
            params=WatershedParams(min_area_um2=60.0, max_area_um2=500.0),
            progress=False,
        )
    assert "0 nuclei" in caplog.text
    assert "25 smaller than 60" in caplog.text


def test_a_function_is_called_per_tile_and_stitched(sdata, drawn):
    seen = []

    def method(rgb):
        assert rgb.dtype == np.uint8
        assert rgb.shape[2] == 3
        assert rgb.flags.c_contiguous
        seen.append(rgb.shape)
        # ids that jump and start anywhere are fine
        return ndimage.label(rgb[..., 0] < 150)[0].astype(np.uint64) * 1000

    gp.pp.segment_nuclei(sdata, method=method, tile_px=100, progress=False)
    assert len(seen) == 9
    np.testing.assert_array_equal(np.unique(sdata["nuclei"].values), np.arange(26))
    assert same_objects(sdata["nuclei"].values, ndimage.label(drawn[0][0] < 150)[0])


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (lambda rgb: rgb[..., 0].astype(float), "integer dtype"),
        (lambda rgb: np.zeros((3, 3), int), "expected labels of shape"),
        ("stardist", "expected one of"),
        (3, "expected one of"),
    ],
)
def test_bad_methods(sdata, method, match):
    with pytest.raises(ValueError, match=f"method.*{match}"):
        gp.pp.segment_nuclei(sdata, method=method, progress=False)
    assert "nuclei" not in sdata.labels


def test_bad_keys(sdata):
    with pytest.raises(ValueError, match="image_key='x'.*'he'"):
        gp.pp.segment_nuclei(sdata, image_key="x", progress=False)
    with pytest.raises(ValueError, match="scratch_dir"):
        gp.pp.segment_nuclei(sdata, scratch_dir="/nowhere/at/all", progress=False)


def test_scratch_folder_holds_the_labels(sdata, tmp_path):
    gp.pp.segment_nuclei(sdata, progress=False)
    before = sdata["nuclei"].values
    for _ in range(2):  # a second call while the first element still reads from its file
        gp.pp.segment_nuclei(sdata, scratch_dir=tmp_path, progress=False)
        np.testing.assert_array_equal(sdata["nuclei"].values, before)
    assert len(list(tmp_path.iterdir())) == 2


def test_store_round_trip(sdata, tmp_path):
    """On a backed slide the verb writes in memory; what is saved comes back."""
    sdata.write(tmp_path / "s.zarr")
    backed = sd.read_zarr(tmp_path / "s.zarr")
    gp.pp.segment_nuclei(backed, progress=False)
    assert "nuclei" not in sd.read_zarr(tmp_path / "s.zarr").labels
    backed.write_element("nuclei")
    again = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(again["nuclei"].values, backed["nuclei"].values)
    assert gp.io.open_slide(again)[2] == 0.5


def test_multiscale_image(drawn):
    sdata = slide(drawn[0], scale_factors=[2])
    gp.pp.segment_nuclei(sdata, progress=False)
    assert sdata["nuclei"].shape == drawn[1].shape
    assert sdata["nuclei"].values.max() == 25


def test_finds_the_nuclei_of_a_simulated_slide():
    sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=5, mpp=0.5, seed=0)
    gp.pp.segment_nuclei(sdata, key_added="found", progress=False)
    truth, found = sdata["nuclei"].values, sdata["found"].values
    pairs, counts = np.unique(np.stack([truth.ravel(), found.ravel()]).astype(np.int64), axis=1, return_counts=True)
    area_t, area_f = np.bincount(truth.ravel().astype(int)), np.bincount(found.ravel())
    iou = counts / (area_t[pairs[0]] + area_f[pairs[1]] - counts)
    hits = (iou[(pairs > 0).all(axis=0)] > 0.5).sum()
    assert 2 * hits / ((area_t[1:] > 0).sum() + (area_f[1:] > 0).sum()) > 0.7


@pytest.mark.data
def test_real_tissue(data_dir):
    """A tissue core: thousands of nuclei, none beside the tissue, of plausible size."""
    sdata = gp.io.read_slide(data_dir / "data" / "slides" / "HE_example.tif")
    gp.pp.segment_nuclei(sdata, progress=False)
    labels = sdata["nuclei"].values
    area = np.bincount(labels.ravel())[1:] * 0.25
    assert 3000 < len(area) < 5500
    assert 18 < np.median(area) < 40
    assert labels[:200, :200].max() == 0  # glass
