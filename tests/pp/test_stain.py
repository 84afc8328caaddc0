"""pp.fit_stain and pp.normalize_stain on slides."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd

import ghistpy as gp
from ghistpy.geometry import Window
from ghistpy.imaging.normalize import DEFAULT_REFERENCE, StainTransform
from ghistpy.io.elements import image_element
from ghistpy.io.sources import DaskSource, stored_levels


def slide(stain=None, **kwargs):
    return gp.datasets.simulate_slide(n_cells=300, n_genes=5, size_um=300.0, mpp=0.5, seed=0, stain=stain, **kwargs)


def pixels(sdata, key):
    source = gp.io.open_image(sdata, key)
    return source.read(Window(0, 0, *source.shape[1:]))


def blank(value, shape=(300, 400), mpp=0.5):
    return sd.SpatialData(images={"he": image_element(np.full((3, *shape), value, np.uint8), mpp)})


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_lazy_and_equal_to_numpy(method):
    sdata = slide()
    gp.pp.normalize_stain(sdata, method=method)
    reference = gp.pp.fit_stain(sdata)
    done = sdata.attrs["ghistpy"]["normalized"]["he_normalized"]
    assert done["method"] == method
    assert done["image_key"] == "he"
    assert done["source"] == reference.to_dict()
    assert done["reference"] == DEFAULT_REFERENCE.to_dict()
    expected = StainTransform(reference, DEFAULT_REFERENCE, reference.background, method)(pixels(sdata, "he"))
    np.testing.assert_array_equal(pixels(sdata, "he_normalized"), expected)
    np.testing.assert_array_equal(sdata["he_normalized"].data.compute(), expected)
    np.testing.assert_array_equal(sdata["he_normalized"].data.rechunk((3, 37, 101)).compute(), expected)
    assert gp.io.get_mpp(sdata, "he_normalized") == 0.5
    assert not isinstance(gp.io.open_image(sdata, "he_normalized"), DaskSource)


def test_nothing_is_read_but_samples(monkeypatch):
    calls = []
    real = StainTransform.__call__
    monkeypatch.setattr(StainTransform, "__call__", lambda self, rgb: calls.append(rgb.shape) or real(self, rgb))
    sdata = slide()
    gp.pp.normalize_stain(sdata)
    assert calls == []
    gp.io.open_image(sdata, "he_normalized").read(Window(5, 7, 25, 47))
    assert calls == [(3, 20, 40)]


def test_two_scanners_come_closer():
    looks = {}
    for stain in (None, "purple"):
        sdata = slide(stain)
        gp.pp.normalize_stain(sdata)
        looks[stain] = pixels(sdata, "he").astype(float), pixels(sdata, "he_normalized").astype(float)
    before, after = (np.abs(looks[None][i] - looks["purple"][i]).mean() for i in (0, 1))
    assert after < 0.5 * before


def test_to_the_stain_of_another_slide():
    target, sdata = slide("purple"), slide()
    reference = gp.pp.fit_stain(target)
    gp.pp.normalize_stain(sdata, reference, key_added="as_target")
    sdata.attrs["ghistpy"].pop("normalized")
    got = gp.pp.fit_stain(sdata, image_key="as_target")
    np.testing.assert_allclose(got.hematoxylin, reference.hematoxylin, atol=0.03)
    np.testing.assert_allclose(got.eosin, reference.eosin, atol=0.03)
    np.testing.assert_allclose(got.max_concentration, reference.max_concentration, rtol=0.06)
    np.testing.assert_allclose(got.background, reference.background, atol=2)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
@pytest.mark.parametrize("value", [255, 243, 0])
def test_blank_slide(method, value, caplog):
    sdata = blank(value)
    with caplog.at_level(logging.WARNING, "ghistpy"):
        gp.pp.normalize_stain(sdata, method=method)
    assert "no tissue on this slide; only the value of glass is changed" in caplog.text
    got = pixels(sdata, "he_normalized")
    assert len(np.unique(got)) == 1
    assert got[0, 0, 0] == 241 or value == 0
    with pytest.raises(ValueError, match="no tissue on this slide, so it has no stain"):
        gp.pp.fit_stain(blank(value))


def test_little_tissue_on_a_large_slide_is_found():
    sdata = slide()
    tissue = pixels(sdata, "he")
    whole = np.full((3, 4000, 5000), 240, np.uint8)
    whole[:, 2500:3100, 400:1000] = tissue[:, :600, :600]
    large = sd.SpatialData(images={"he": image_element(whole, 0.5)})
    small, big = gp.pp.fit_stain(sdata), gp.pp.fit_stain(large)
    np.testing.assert_allclose(big.hematoxylin, small.hematoxylin, atol=0.04)
    np.testing.assert_allclose(big.eosin, small.eosin, atol=0.04)


def test_pen_does_not_change_the_stain():
    plain = np.full((3, 1600, 1600), 240, np.uint8)
    plain[:, 500:1100, 500:1100] = pixels(slide(), "he")[:, :600, :600]
    inked = plain.copy()
    inked[:, 100:260, 50:1500] = np.array([20, 120, 60], np.uint8)[:, None, None]  # green pen
    inked[:, 1300:1460, 50:1500] = np.array([20, 50, 150], np.uint8)[:, None, None]  # blue pen
    first, second = (gp.pp.fit_stain(sd.SpatialData(images={"he": image_element(a, 0.5)})) for a in (plain, inked))
    np.testing.assert_allclose(second.hematoxylin, first.hematoxylin, atol=0.02)
    np.testing.assert_allclose(second.eosin, first.eosin, atol=0.02)


def test_levels_of_a_pyramid_are_normalised_too():
    image = np.tile(pixels(slide(), "he")[:, :600, :600], (1, 4, 4))
    import dask.array as da

    levels = [da.from_array(a, chunks=(3, 512, 512)) for a in (image, np.ascontiguousarray(image[:, ::4, ::4]))]
    sdata = sd.SpatialData(images={"he": image_element(levels, 0.5)})
    gp.pp.normalize_stain(sdata)
    found = stored_levels(sdata, "he_normalized")
    assert [s.shape[1:] for s in found] == [(2400, 2400), (600, 600)]
    full = found[0].read(Window(0, 0, 2400, 2400))
    np.testing.assert_array_equal(found[1].read(Window(0, 0, 600, 600)), full[:, ::4, ::4])


def test_provenance_survives_a_store_and_is_refused(tmp_path):
    sdata = slide()
    gp.pp.normalize_stain(sdata)
    expected = pixels(sdata, "he_normalized")
    sdata.write(tmp_path / "s.zarr")
    again = gp.io.read_slide(tmp_path / "s.zarr")
    np.testing.assert_array_equal(pixels(again, "he_normalized"), expected)
    with pytest.raises(ValueError, match="is stain-normalised already; pass the original image"):
        gp.pp.normalize_stain(again, image_key="he_normalized", key_added="twice")
    model = gp.tl.fit(slide(), max_epochs=0, progress=False)
    with pytest.raises(ValueError, match="stain-normalised already; the model normalises what it is given"):
        gp.tl.predict_expression(again, model, image_key="he_normalized", progress=False)
    assert "insilico" not in again.tables


def test_replaces_without_a_warning():
    sdata = slide()
    gp.pp.normalize_stain(sdata)
    gp.pp.normalize_stain(sdata, method="reinhard")
    assert sdata.attrs["ghistpy"]["normalized"]["he_normalized"]["method"] == "reinhard"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"reference": "tcga"}, "reference='tcga': expected 'default' or what pp.fit_stain returns"),
        ({"method": "vahadane"}, "method='vahadane': expected one of"),
        ({"key_added": "he"}, "key_added='he' is the image itself"),
        ({"image_key": "x"}, "image_key='x' is not among the images"),
    ],
)
def test_bad_arguments_write_nothing(arguments, match):
    sdata = slide()
    with pytest.raises(ValueError, match=match):
        gp.pp.normalize_stain(sdata, **arguments)
    assert list(sdata.images) == ["he"]
    assert "normalized" not in sdata.attrs["ghistpy"]


@pytest.mark.data
def test_real_slides(data_dir):
    folder = data_dir / "data" / "slides"
    for name in ("CMU-1-Small-Region.svs", "HE_example.tif"):
        sdata = gp.io.read_slide(folder / name)
        gp.pp.normalize_stain(sdata)
        sdata.attrs["ghistpy"].pop("normalized")
        got = gp.pp.fit_stain(sdata, image_key="he_normalized")
        np.testing.assert_allclose(got.hematoxylin, DEFAULT_REFERENCE.hematoxylin, atol=0.06)
        np.testing.assert_allclose(got.eosin, DEFAULT_REFERENCE.eosin, atol=0.06)
        np.testing.assert_allclose(got.background, DEFAULT_REFERENCE.background, atol=3)
