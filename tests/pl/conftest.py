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
