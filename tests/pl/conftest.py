"""A small slide with an evaluated prediction, and figures that are closed after each test."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest


def _predict(sdata):
    """A prediction that is the measured table with noise, types right for nine of ten."""
    from ghistpy.io import make_table

    measured = sdata["measured"]
    rng = np.random.default_rng(0)
    X = np.maximum(np.log1p(measured.X.toarray()) + rng.normal(size=measured.shape) * 0.4, 0).astype(np.float32)
    types = measured.obs["cell_type"].astype(str).to_numpy()
    types = np.where(rng.random(len(types)) < 0.9, types, rng.permutation(types))
    return make_table(
        X,
        measured.var_names,
        region="nuclei",
        instance_key="cell_id",
        ids=measured.obs["cell_id"].to_numpy(),
        obs={"cell_type": types, "area_um2": measured.obs["area_um2"], "total": np.expm1(X).sum(1)},
        obsm={"spatial": measured.obsm["spatial"]},
        uns={"ghistpy": {"units": "log1p(expected count)"}},
    )


def _add_spots(sdata):
    import geopandas as gpd
    from shapely import Point
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    from ghistpy.io import make_table

    side = sdata["he"].sizes["x"] * 0.5
    grid = np.stack(np.meshgrid(*[(np.arange(5) + 0.5) * side / 5] * 2), -1).reshape(-1, 2)
    circles = gpd.GeoDataFrame({"radius": np.full(25, side / 15)}, geometry=[Point(p) for p in grid])
    sdata.shapes["spots"] = ShapesModel.parse(circles, transformations={"microns": Identity()})
    counts = np.random.default_rng(1).poisson(20, (25, sdata["measured"].n_vars)).astype(np.float32)
    sdata.tables["spots_measured"] = make_table(
        counts, sdata["measured"].var_names, region="spots", instance_key="spot_id", ids=np.arange(25)
    )


@pytest.fixture(scope="session")
def _slide():
    import ghistpy as gp

    sdata = gp.datasets.simulate_slide(n_cells=400, n_genes=24, seed=1)
    sdata.tables["insilico"] = _predict(sdata)
    _add_spots(sdata)
    gp.tl.evaluate(sdata)
    gp.tl.aggregate_spots(sdata)
    return sdata


@pytest.fixture
def evaluated(_slide):
    """Tables are copied, so that a test may change them; the image is shared."""
    from spatialdata import SpatialData

    elements = {name: element for _, name, element in _slide.gen_elements() if not hasattr(element, "obs")}
    tables = {name: table.copy() for name, table in _slide.tables.items()}
    return SpatialData.init_from_elements({**elements, **tables}, attrs=dict(_slide.attrs))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def clear_names():
    """Check of the names in a figure; returns how many pieces of text they have."""
    return _clear_of_everything


def _clear_of_everything(ax):
    """Names overlap no other name and no ink, and their lines cross no name and no other line."""
    names = [t for t in ax.texts if str(t.get_gid()).startswith("label")]
    leaders = [line for line in ax.lines if line.get_gid() == "leader"]
    for artist in (*names, *leaders):
        artist.set_visible(False)
    ax.figure.canvas.draw()
    ink = np.abs(np.asarray(ax.figure.canvas.buffer_rgba())[::-1, :, :3] / 255 - 1).max(-1) > 0.15
    renderer = ax.figure.canvas.get_renderer()
    frame = ax.get_window_extent(renderer)
    for artist in names:
        artist.set_visible(True)
    boxes = [t.get_window_extent(renderer) for t in names]
    ends = [ax.transData.transform(np.column_stack(line.get_data())) for line in leaders]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :] if abs(box.x1 - other.x0) > 0.01)
        assert not ink[int(box.y0) : int(np.ceil(box.y1)), int(box.x0) : int(np.ceil(box.x1))].any()
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        for a, b in ends:
            along = a + np.linspace(0.05, 0.95, 200)[:, None] * (b - a)
            assert not ((along > [box.x0, box.y0]) & (along < [box.x1, box.y1])).all(axis=1).any()
    return len(names)
