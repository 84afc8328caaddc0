"""Spots as sums of nuclei, against a plain double loop."""

import json

import geopandas as gpd
import numpy as np
import pytest
import spatialdata
from shapely import Point, box
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import ghistpy as gp


def _reference(xy, circles, X, total):
    """Member lists by brute force: inside, nearest centre."""
    counts, sums, n = np.zeros((len(circles), X.shape[1])), np.zeros(len(circles)), np.zeros(len(circles), int)
    for i, p in enumerate(xy):
        best, owner = np.inf, None
        for s, (x, y, r) in enumerate(circles):
            d = np.hypot(p[0] - x, p[1] - y)
            if d <= r and d < best:
                best, owner = d, s
        if owner is not None:
            counts[owner] += np.expm1(X[i].astype(float))
            sums[owner] += total[i]
            n[owner] += 1
    return np.log1p(counts), sums, n


def _circles(sdata, xyr, transformation=None, index=None):
    frame = gpd.GeoDataFrame({"radius": xyr[:, 2]}, geometry=[Point(p) for p in xyr[:, :2]])
    frame.index = np.arange(len(xyr)) if index is None else index
    sdata.shapes["spots"] = ShapesModel.parse(frame, transformations={"microns": transformation or Identity()})


def test_sums_equal_a_double_loop_with_overlap_and_several_radii(cells):
    sdata = cells.sdata
    rng = np.random.default_rng(0)
    xyr = np.column_stack([rng.uniform(0, 100, (40, 2)), rng.choice([4.0, 9.0, 20.0], 40)])
    _circles(sdata, xyr)
    gp.tl.aggregate_spots(sdata)
    table, source = sdata["insilico_spots"], sdata["insilico"]
    X, total, n = _reference(cells.xy, xyr, source.X, source.obs["total"].to_numpy())
    np.testing.assert_allclose(table.X, X, rtol=1e-5)
    np.testing.assert_allclose(table.obs["total"], total, rtol=1e-12)
    np.testing.assert_array_equal(table.obs["n_nuclei"], n)
    assert table.obs["spot_id"].tolist() == list(range(40))
    assert table.var_names.tolist() == source.var_names.tolist()
    notes = json.loads(table.uns["ghistpy"]["aggregation"])
    inside = np.linalg.norm(cells.xy[:, None] - xyr[None, :, :2], axis=2) <= xyr[:, 2]
    assert notes["n_nuclei_in_several_spots"] == (inside.sum(1) > 1).sum() > 0
    assert notes["n_nuclei_outside_spots"] == (~inside.any(1)).sum()
    assert table.uns["ghistpy"]["units"] == "log1p(expected count)"


def test_means_and_spots_without_nuclei(cells):
    sdata = cells.sdata
    _circles(sdata, np.array([[50.0, 50.0, 15.0], [-500.0, 0.0, 10.0]]), index=["a", "b"])
    gp.tl.aggregate_spots(sdata, key_added="other")
    table = sdata["other"]
    inside = np.linalg.norm(cells.xy - 50, axis=1) <= 15
    source = sdata["insilico"]
    np.testing.assert_allclose(table.obsm["composition"][0], source.obsm["cell_type_proba"][inside].mean(0), rtol=1e-6)
    np.testing.assert_allclose(table.obsm["morphology"][0], source.obsm["morphology"][inside].mean(0), rtol=1e-5)
    assert table.obs["spot_id"].tolist() == ["a", "b"]
    assert table.obs["n_nuclei"].tolist() == [inside.sum(), 0]
    assert (table.X[1] == 0).all()
    assert np.isnan(table.obsm["composition"][1]).all()
    assert json.loads(table.uns["ghistpy"]["aggregation"])["n_spots_without_nuclei"] == 1


def test_shuffled_rows_and_scaled_coordinates_change_nothing(spots):
    sdata = spots.sdata
    gp.tl.aggregate_spots(sdata)
    want = sdata["insilico_spots"].copy()
    order = np.random.default_rng(0).permutation(sdata["insilico"].n_obs)
    sdata.tables["insilico"] = sdata["insilico"][order].copy()
    shapes = sdata["spots"]
    in_px = gpd.GeoDataFrame(
        {"radius": shapes["radius"] / 0.5}, geometry=[Point(p.x / 0.5, p.y / 0.5) for p in shapes.geometry]
    ).set_index(shapes.index)
    sdata.shapes["spots"] = ShapesModel.parse(in_px, transformations={"microns": Scale([0.5, 0.5], axes=("x", "y"))})
    gp.tl.aggregate_spots(sdata)
    got = sdata["insilico_spots"]
    np.testing.assert_allclose(got.X, want.X, rtol=1e-6)
    np.testing.assert_allclose(got.obsm["spatial"], want.obsm["spatial"])
    assert got.obs["spot_id"].tolist() == want.obs["spot_id"].tolist() == list(range(100, 164))


def test_backed_store_is_written_through(spots, tmp_path):
    spots.sdata.write(tmp_path / "s.zarr")
    sdata = spatialdata.read_zarr(tmp_path / "s.zarr")
    gp.tl.aggregate_spots(sdata)
    again = spatialdata.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(again["insilico_spots"].X, sdata["insilico_spots"].X)
    assert again["insilico_spots"].obs["n_nuclei"].sum() > 0


@pytest.mark.parametrize("n", [0, 1])
def test_zero_and_one_nucleus(spots, n):
    sdata = spots.sdata
    table = sdata["insilico"][:n].copy()
    if n == 0:
        table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
        table.uns["spatialdata_attrs"] = {"region": [], "region_key": "region", "instance_key": "cell_id"}
    sdata.tables["insilico"] = table
    sdata["spots"].loc[100, "radius"] = 30.0
    gp.tl.aggregate_spots(sdata)
    got = sdata["insilico_spots"]
    assert got.obs["n_nuclei"].sum() == n
    if n:
        np.testing.assert_allclose(got.X[0], table.X[0], rtol=1e-6)
    assert (got.X[1:] == 0).all()


def test_regions_are_chosen_not_mixed(spots):
    sdata = spots.sdata
    table = sdata["insilico"].copy()
    table.obs["region"] = np.where(np.arange(table.n_obs) < 300, "nuclei", "more")
    table.obs["region"] = table.obs["region"].astype("category")
    table.uns["spatialdata_attrs"]["region"] = ["nuclei", "more"]
    sdata.labels["more"] = sdata["nuclei"]
    sdata.tables["insilico"] = table
    with pytest.raises(ValueError, match=r"annotates \['more', 'nuclei'\]; choose one of them with labels_key="):
        gp.tl.aggregate_spots(sdata)
    gp.tl.aggregate_spots(sdata, labels_key="nuclei")
    assert json.loads(sdata["insilico_spots"].uns["ghistpy"]["aggregation"])["n_nuclei"] == 300
    with pytest.raises(ValueError, match="labels_key='cells' is not annotated"):
        gp.tl.aggregate_spots(sdata, labels_key="cells")


def test_clear_errors(spots):
    sdata = spots.sdata
    with pytest.raises(ValueError, match="table_key='predicted' is not among the tables"):
        gp.tl.aggregate_spots(sdata, table_key="predicted")
    with pytest.raises(ValueError, match=r"uns\['ghistpy'\]\['units'\] is None"):
        gp.tl.aggregate_spots(sdata, table_key="measured")
    with pytest.raises(ValueError, match="shapes_key='dots' is not among the shapes"):
        gp.tl.aggregate_spots(sdata, shapes_key="dots")
    gp.tl.aggregate_spots(sdata)
    with pytest.raises(ValueError, match="does not annotate nuclei"):
        gp.tl.aggregate_spots(sdata, table_key="insilico_spots", key_added="again")
    polygons = gpd.GeoDataFrame(geometry=[box(0, 0, 1, 1)])
    sdata.shapes["boxes"] = ShapesModel.parse(polygons, transformations={"microns": Identity()})
    with pytest.raises(ValueError, match=r"holds \['Polygon'\]; expected circles"):
        gp.tl.aggregate_spots(sdata, shapes_key="boxes")
    squeeze = Affine(np.diag([1.0, 2.0, 1.0]), input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["spots"], squeeze, "microns")
    with pytest.raises(ValueError, match="turns circles into ellipses"):
        gp.tl.aggregate_spots(sdata)
    set_transformation(sdata["spots"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="has no transformation to 'microns'"):
        gp.tl.aggregate_spots(sdata)


def test_values_that_are_missing(spots):
    sdata = spots.sdata
    sdata["insilico"].X[:, 2] = np.nan
    with pytest.raises(ValueError, match="X holds NaN or infinite values in the nuclei of"):
        gp.tl.aggregate_spots(sdata)
    del sdata["insilico"].obs["total"]
    with pytest.raises(ValueError, match=r"has no obs\['total'\]"):
        gp.tl.aggregate_spots(sdata)
    sdata["insilico"].obsm["spatial"] = np.full((sdata["insilico"].n_obs, 2), np.nan)
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] is not finite in 625 of 625 rows"):
        gp.tl.aggregate_spots(sdata)
    del sdata["insilico"].obsm["spatial"]
    with pytest.raises(ValueError, match=r"has no obsm\['spatial'\]"):
        gp.tl.aggregate_spots(sdata)
