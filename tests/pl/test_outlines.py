"""pl.tissue and pl.nuclei: what is drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import ghistpy as gp
from ghistpy.pl.outlines import _border_lines


@pytest.fixture(scope="module")
def sdata():
    sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5, seed=2)
    gp.pp.find_tissue(sdata)
    return sdata


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_border_lines_are_the_edges_between_labels():
    labels = np.zeros((5, 6), int)
    labels[1:3, 1:4] = 1
    labels[1:3, 4:5] = 2
    lines = _border_lines(labels)
    length = np.abs(lines[:, 1] - lines[:, 0]).sum()
    assert length == 2 * (4 + 2) + 2  # around both, and between them
    assert lines.min() == 1
    assert lines[..., 0].max() == 5
    assert lines[..., 1].max() == 3


def test_near_view_draws_outlines_in_microns(sdata):
    ax = gp.pl.nuclei(sdata, window_um=(10, 20, 70, 60))
    (lines,) = ax.collections
    points = np.concatenate(lines.get_segments())
    assert (points >= (10, 20)).all()
    assert (points <= (70, 60)).all()
    expected = _border_lines(sdata["nuclei"].values[40:120, 20:140]) * 0.5 + (10, 20)
    np.testing.assert_allclose(np.sort(points.ravel()), np.sort(expected.ravel()))
    assert ax.get_xlim() == (10, 70)
    assert ax.get_ylim() == (60, 20)


def test_far_view_paints_nuclei(sdata, monkeypatch):
    monkeypatch.setattr("ghistpy.pl.outlines._OUTLINES_BELOW_PX", 100)
    ax = gp.pl.nuclei(sdata)
    (painted,) = [image for image in ax.images if image.get_gid() == "nuclei"]
    share = (np.asarray(painted.get_array())[..., 3] > 0).mean()
    assert share == pytest.approx((sdata["nuclei"].values > 0).mean(), abs=0.03)


def test_tissue_draws_every_polygon(sdata):
    figure, ax = plt.subplots()
    assert gp.pl.tissue(sdata, ax=ax) is ax
    assert len(ax.patches) == len(sdata["tissue"])
    assert ax.images
    figure.canvas.draw()


def test_holes_stay_empty(sdata):
    import geopandas as gpd
    from shapely import Polygon, box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    square = Polygon(box(10, 10, 50, 50).exterior, [box(20, 20, 40, 40).exterior])
    sdata.shapes["square"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[square]), transformations={"microns": Identity()}
    )
    figure, ax = plt.subplots()
    gp.pl.tissue(sdata, shapes_key="square", ax=ax, color="black")
    (patch,) = ax.patches
    patch.set_facecolor("black")
    for image in ax.images:
        image.remove()
    ax.set(xlim=(0, 60), ylim=(60, 0), position=(0, 0, 1, 1))
    figure.set_size_inches(3, 3)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., 0]
    at = lambda x, y: pixels[int(y / 60 * pixels.shape[0]), int(x / 60 * pixels.shape[1])]  # noqa: E731
    assert at(15, 15) == 0
    assert at(30, 30) == 255
    assert at(55, 55) == 255


def test_errors_name_what_is_missing(sdata):
    with pytest.raises(ValueError, match="shapes_key='nothing'"):
        gp.pl.tissue(sdata, shapes_key="nothing")
    with pytest.raises(ValueError, match="labels_key='nothing'"):
        gp.pl.nuclei(sdata, labels_key="nothing")
    with pytest.raises(ValueError, match="window_um"):
        gp.pl.nuclei(sdata, window_um=(1e6, 1e6, 2e6, 2e6))
