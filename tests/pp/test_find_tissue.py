"""pp.find_tissue."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

import ghistpy as gp


def make(tissue, *, mpp=2.0, **kwargs):
    rng = np.random.default_rng(0)
    colour = np.where(tissue, np.array([190, 120, 170])[:, None, None], 238) + rng.normal(0, 3, (3, *tissue.shape))
    array = np.clip(colour, 0, 255).astype(np.uint8)
    scale = {"transformations": {"microns": Scale([mpp, mpp], axes=("x", "y"))}} if mpp else {}
    return sd.SpatialData(images={"he": Image2DModel.parse(array, dims=("c", "y", "x"), **scale, **kwargs)})


@pytest.fixture
def ring():
    """Radius 300 µm with a hole of 100 µm, centre (500, 400) µm, and a second piece of radius 100 µm."""
    y, x = (np.mgrid[:700, :600] + 0.5) * 2
    r = np.hypot(y - 400, x - 500)
    return ((r < 300) & (r > 100)) | (np.hypot(y - 1200, x - 900) < 100)


def test_polygons_in_microns_with_holes(ring, caplog):
    sdata = make(ring)
    with caplog.at_level(logging.INFO, "ghistpy"):
        gp.pp.find_tissue(sdata)
    shapes = sdata["tissue"]
    assert len(shapes) == 2
    large, small = shapes.geometry
    assert large.area == pytest.approx(np.pi * (300**2 - 100**2), rel=0.06)
    assert small.area == pytest.approx(np.pi * 100**2, rel=0.15)
    np.testing.assert_allclose(large.centroid.coords[0], (500, 400), atol=6)
    assert len(large.interiors) == 1
    np.testing.assert_allclose(shapes["area_um2"], shapes.geometry.area)
    assert get_transformation(shapes, "microns") == Identity()
    assert "2 pieces of tissue, 0.29 mm²" in caplog.text


@pytest.mark.parametrize("mpp", [1.0, 2.0, 8.0, 20.0])
def test_pixel_size_does_not_matter(mpp):
    n = round(1200 / mpp)
    y, x = (np.mgrid[:n, :n] + 0.5) * mpp
    sdata = make(np.hypot(y - 600, x - 600) < 400, mpp=mpp)
    gp.pp.find_tissue(sdata)
    assert sdata["tissue"].geometry[0].area == pytest.approx(np.pi * 400**2, rel=0.08)


def test_pyramid_and_store(ring, tmp_path):
    plain = make(ring)
    gp.pp.find_tissue(plain)
    pyramid = make(ring, scale_factors=[2, 2])
    gp.pp.find_tissue(pyramid)
    pyramid.write(tmp_path / "s.zarr")
    stored = sd.read_zarr(tmp_path / "s.zarr")
    assert stored["tissue"].geometry.area.sum() == pytest.approx(plain["tissue"].geometry.area.sum(), rel=0.02)
    gp.pp.find_tissue(stored, key_added="again")  # from the coarse level on disk
    assert stored["again"].geometry.area.sum() == pytest.approx(plain["tissue"].geometry.area.sum(), rel=0.02)


def test_replaces_without_a_warning(ring):
    sdata = make(ring)
    gp.pp.find_tissue(sdata)
    gp.pp.find_tissue(sdata, min_area_um2=100_000)
    assert len(sdata["tissue"]) == 1


def test_blank_slide_and_bad_input(ring):
    with pytest.raises(ValueError, match="image_key='he': no tissue"):
        gp.pp.find_tissue(make(np.zeros((300, 300), bool)))
    with pytest.raises(ValueError, match="mpp="):
        gp.pp.find_tissue(make(ring, mpp=None))
    with pytest.raises(ValueError, match="image_key='x'"):
        gp.pp.find_tissue(make(ring), image_key="x")
