"""Verbs on one slide's table: composition, neighbour correlation, interaction, Ripley's L."""

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import ghistpy as gp
from ghistpy import stats


def notes(table, key):
    return json.loads(table.uns[f"{key}_notes"])


def make(n=300, seed=0, n_genes=5, *, form=np.asarray, types=("A", "B/x", "C")):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, np.sqrt(n / 3000) * 1000, (n, 2))
    X = rng.poisson(2.0, (n, n_genes)).astype(np.float32)
    table = AnnData(form(X), var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    table.obs["cell_type"] = pd.Categorical(np.array(types)[rng.integers(0, len(types), n)])
    table.obsm["spatial"] = xy
    return table


@pytest.fixture(scope="module")
def crop(request):
    """The published crop as a table, and the expected features."""
    folder = request.getfixturevalue("data_dir") / "golden" / "downstream"
    cells = pd.read_csv(folder / "sc_crops.csv").query("sample == 'give_S1'")
    frame = pd.read_csv(folder / "sc_crops_scfeatures_expected.csv").query("sample == 'give_S1'")
    genes = ["SCD", "FASN", "FOXA1", "EPCAM", "IL7R", "CD3E", "LUM"]
    table = AnnData(cells[[f"{g}_pred" for g in genes]].to_numpy(), var=pd.DataFrame(index=genes))
    table.obs_names = cells["cell_id"].to_numpy()
    table.obs["cell_type"] = pd.Categorical(cells["celltype_pred"].to_numpy())
    table.obsm["spatial"] = cells[["x", "y"]].to_numpy()
    return table, frame


@pytest.mark.data
def test_published_numbers_through_the_verbs(crop):
    table, frame = crop
    expected = {k: part.set_index("feature")["value"] for k, part in frame.groupby("feature_type")}
    gp.tl.neighborhood_correlation(table, border_rule=True)
    np.testing.assert_allclose(table.var["nn_correlation"], expected["nn_correlation"][table.var_names], atol=1e-6)
    gp.tl.composition(table)
    shares = table.uns["composition"].set_index("cell_type")["proportion"]
    np.testing.assert_allclose(shares, expected["proportion_raw"][shares.index], atol=1e-6)
    gp.tl.cell_type_interaction(table, radius=50)
    pairs = table.uns["interaction"]
    scrambled = ["_".join(sorted(f"{a}_{b}".split("_"))) for a, b in pairs[["cell_type", "neighbor_type"]].to_numpy()]
    ours = pd.Series(pairs["fraction"].to_numpy(), index=scrambled)
    wanted = expected["celltype_interaction"]
    np.testing.assert_allclose(ours[wanted.index], wanted, atol=1e-6)
    gp.tl.ripley_l(table, window="origin", grid="spatstat")
    scores = table.uns["ripley_l_scores"]
    names = scores["cell_type"] + "_" + scores["neighbor_type"]
    np.testing.assert_allclose(scores["score"], expected["L_stats"][names], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_anndata_and_spatialdata_dense_and_sparse_agree(form, slide_maker):
    slide = slide_maker().sdata
    table = slide["measured"]
    table.X = form(np.asarray(table.X))
    gp.tl.neighborhood_correlation(slide, table_key="measured")
    alone = AnnData(np.asarray(slide_maker().sdata["measured"].X), obsm={"spatial": table.obsm["spatial"]})
    gp.tl.neighborhood_correlation(alone)
    np.testing.assert_allclose(table.var["nn_correlation"], alone.var["nn_correlation"], atol=1e-10)
    assert notes(table, "nn_correlation")["units"] == "counts"


def test_results_can_be_stored(slide_maker, tmp_path):
    import spatialdata

    slide = slide_maker().sdata
    for key in ("measured", "insilico"):
        gp.tl.composition(slide, table_key=key, radius=30)
        gp.tl.neighborhood_correlation(slide, table_key=key, n_neighbors=3, within_type=True)
        gp.tl.cell_type_interaction(slide, table_key=key, radius=20, n_perms=9)
        gp.tl.ripley_l(slide, table_key=key, max_radius=20, step=4, n_perms=9)
    gp.tl.compare_tables(slide)
    slide.write(tmp_path / "slide.zarr")
    read = spatialdata.read_zarr(tmp_path / "slide.zarr")["insilico"]
    for key in ("composition", "nn_correlation_by_type", "interaction", "ripley_l", "comparison_summary"):
        pd.testing.assert_frame_equal(read.uns[key], slide["insilico"].uns[key], check_dtype=False)
    assert "T/NK" in set(read.uns["composition"]["cell_type"])
    assert read.uns["interaction"]["pval"].isna().all()  # withheld in silico
    assert "withheld" in notes(read, "interaction")["pval"]
    assert slide["measured"].uns["interaction"]["pval"].notna().all()
    assert read.uns["ripley_l_scores"]["pval"].isna().all()
    assert slide["measured"].uns["ripley_l_scores"]["pval"].notna().all()


def test_composition_by_region_and_around_every_cell():
    table = make()
    table.obs["niche"] = np.where(table.obsm["spatial"][:, 0] < 150, "left", "right")
    table.obs.loc[table.obs_names[:7], "cell_type"] = None
    gp.tl.composition(table, groupby="niche", radius=60)
    frame = table.uns["composition"]
    counts = pd.crosstab(table.obs["niche"], table.obs["cell_type"])
    for region in ("left", "right"):
        part = frame[frame["region"] == region].set_index("cell_type")
        assert (part["n"] == counts.loc[region]).all()
        np.testing.assert_allclose(part["proportion"], counts.loc[region] / counts.loc[region].sum())
    assert notes(table, "composition")["n_without_type"] == 7
    local = table.obsm["composition_local"]
    reach = np.hypot(*(table.obsm["spatial"] - table.obsm["spatial"][40]).T) <= 60
    near = table.obs["cell_type"][reach].value_counts(normalize=True)
    np.testing.assert_allclose(local[40], near[notes(table, "composition")["cell_types"]], atol=1e-6)


def test_composition_agreement_over_the_union_of_types():
    table, other = make(), make(types=("A", "C", "D"))
    gp.tl.composition(table, reference=other, radius=50)
    frame = table.uns["composition_agreement"].set_index(["level", "name"])
    a = table.obs["cell_type"].value_counts(normalize=True).reindex(list("A") + ["B/x", "C", "D"], fill_value=0)
    b = other.obs["cell_type"].value_counts(normalize=True).reindex(list("A") + ["B/x", "C", "D"], fill_value=0)
    assert frame.loc[("global", "all"), "rmse"] == pytest.approx(np.sqrt(((a - b) ** 2).mean()))
    assert frame.loc[("global", "all"), "pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert (frame.loc["local"].index == ["A", "B/x", "C", "D"]).all()
    table.obs["cell_type_2"] = table.obs["cell_type"]
    gp.tl.composition(table, reference=table, radius=50)
    same = table.uns["composition_agreement"]
    np.testing.assert_allclose(same["pearson"], 1)
    np.testing.assert_allclose(same["rmse"], 0, atol=1e-7)


@pytest.mark.data
def test_published_composition_agreement(data_dir):
    folder = data_dir / "golden" / "downstream"
    counts = pd.read_csv(folder / "composition.csv")
    expected = json.loads((folder / "composition_expected.json").read_text())
    for name, part in counts.groupby("dataset"):
        tables = []
        for column in ("gt_n", "pred_n"):
            labels = np.repeat(part["celltype"].to_numpy(), part[column])
            obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=np.arange(len(labels)).astype(str))
            tables.append(AnnData(obs=obs))
        gp.tl.composition(tables[1], reference=tables[0])
        row = tables[1].uns["composition_agreement"].iloc[0]
        for metric in ("pearson", "spearman", "rmse"):
            assert row[metric] == pytest.approx(expected[name][metric], abs=1e-7)


@pytest.mark.data
def test_published_confusion_gives_the_published_composition(data_dir):
    folder = data_dir / "golden" / "downstream"
    confusion = pd.read_csv(folder / "celltype_confusion.csv")
    expected = json.loads((folder / "celltype_expected.json").read_text())
    for name, part in confusion.groupby("dataset"):
        sides = [part.groupby(side)["n"].sum().to_dict() for side in ("gt", "pred")]
        result = stats.composition_agreement(*sides)
        assert result.rmse == pytest.approx(expected[name]["composition_rmse_union_types"], abs=1e-7)
        assert result.pearson == pytest.approx(expected[name]["composition_pcc_union_types"], abs=1e-7)
        assert len(result.types) == expected[name]["n_types_union"]


def test_min_distance_skips_near_cells():
    from ghistpy.geometry.spaced import spaced_knn

    table = make(400)
    xy = table.obsm["spatial"]
    graph = spaced_knn(xy, 2, 25.0)
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    distance[distance < 25] = np.inf
    for i in range(0, 400, 11):
        assert set(graph[[i]].indices) == set(np.argsort(distance[i])[:2])
    gp.tl.neighborhood_correlation(table, min_distance=25)
    nearest = distance.argmin(axis=1)
    X = np.asarray(table.X)
    expected = [np.corrcoef(X[:, g], X[nearest, g])[0, 1] for g in range(5)]
    np.testing.assert_allclose(table.var["nn_correlation"], expected, atol=1e-10)
    gp.tl.neighborhood_correlation(table, min_distance=25, radius=70, key_added="ring")
    assert notes(table, "ring")["n_cells_used"] > 0


def test_within_type_and_between_types():
    table = make(2000, n_genes=2)
    code = table.obs["cell_type"].cat.codes.to_numpy()
    table.X = table.X + 10 * code[:, None]
    # types in stripes, so that composition alone makes neighbours alike
    order = np.argsort(table.obsm["spatial"][:, 0])
    table.obsm["spatial"][np.argsort(code, kind="stable")] = table.obsm["spatial"][order]
    gp.tl.neighborhood_correlation(table, n_neighbors=6)
    gp.tl.neighborhood_correlation(table, n_neighbors=6, within_type=True, key_added="within")
    assert (table.var["nn_correlation"] > 0.8).all()
    assert (table.var["within"].abs() < 0.06).all()
    by_type = table.uns["within_by_type"]
    assert by_type["n_cells"].max() <= 2000
    assert (by_type["value"].abs() < 0.1).all()
    gp.tl.neighborhood_correlation(table, n_neighbors=6, between=("A", "B/x"), key_added="ab")
    at_border = notes(table, "ab")["n_cells_used"]
    assert 0 < at_border < 300
    with pytest.warns(UserWarning, match="no cell of adata has such a neighbour"):
        gp.tl.neighborhood_correlation(table, between=("A", "C"), key_added="ac")
    assert table.var["ac"].isna().all()


def test_adjust_density_takes_out_what_crowding_explains():
    rng = np.random.default_rng(0)
    table = make(1500)
    table.obsm["spatial"][:700] *= 0.3
    crowd = stats.density_basis(table.obsm["spatial"])[:, 0]
    table.X = np.column_stack([crowd + rng.normal(size=1500), *rng.normal(size=(4, 1500))]).astype(np.float32)
    gp.tl.neighborhood_correlation(table)
    gp.tl.neighborhood_correlation(table, adjust_density=True, key_added="adjusted")
    assert table.var["nn_correlation"].iloc[0] > 0.3
    assert abs(table.var["adjusted"].iloc[0]) < 0.1


def test_graph_of_squidpy_is_used():
    import squidpy as sq

    table = make()
    sq.gr.spatial_neighbors_knn(table, n_neighs=5)
    gp.tl.cell_type_interaction(table)
    assert notes(table, "interaction")["graph"] == "obsp['spatial_connectivities']"
    gp.tl.neighborhood_correlation(table, graph="spatial_connectivities")
    expected = stats.neighbor_correlation(table.X, table.obsp["spatial_connectivities"]).value
    np.testing.assert_allclose(table.var["nn_correlation"], expected)
    sq.gr.interaction_matrix(table, cluster_key="cell_type", normalized=False)
    theirs = table.uns["cell_type_interactions"]
    # squidpy counts directed edges, ours each pair once
    edges = table.obsp["spatial_connectivities"]
    mutual = stats.pairs_of_graph(edges)
    assert table.uns["interaction"]["n_pairs"].sum() == len(mutual)
    both = (edges != 0).multiply((edges != 0).T).sum() / 2
    assert len(mutual) == theirs.sum() - both


def test_one_type_only():
    table = make(types=("A",))
    gp.tl.composition(table)
    assert table.uns["composition"]["proportion"].tolist() == [1.0]
    gp.tl.cell_type_interaction(table, radius=40, n_perms=9)
    row = table.uns["interaction"].iloc[0]
    assert (row["fraction"], row["expected"], row["log2_ratio"]) == (1.0, 1.0, 0.0)
    assert np.isnan(row["pval"])
    gp.tl.ripley_l(table, n_perms=9)
    assert np.isnan(table.uns["ripley_l_scores"]["pval"]).all()
    gp.tl.neighborhood_correlation(table, n_neighbors=3)
    gp.tl.neighborhood_correlation(table, n_neighbors=3, within_type=True, key_added="within")
    np.testing.assert_allclose(table.var["nn_correlation"], table.var["within"], atol=1e-10)


def test_constant_genes_are_nan_and_counted():
    table = make()
    table.X[:, 1] = 3
    gp.tl.neighborhood_correlation(table)
    assert np.isnan(table.var["nn_correlation"]["G1"])
    assert notes(table, "nn_correlation")["n_genes_without_value"] == 1


def test_isolated_cells_and_duplicates_are_counted(caplog):
    table = make()
    table.obsm["spatial"][0] = [2000, 2000]
    table.obsm["spatial"][1] = table.obsm["spatial"][2]
    gp.tl.cell_type_interaction(table, radius=40)
    assert "rows of adata have no neighbour" in caplog.text
    assert notes(table, "interaction")["n_isolated"] >= 1
    assert notes(table, "interaction")["n_duplicates"] == 2
    gp.tl.neighborhood_correlation(table)
    assert np.isfinite(table.var["nn_correlation"]).all()
    gp.tl.ripley_l(table)
    assert np.isfinite(table.uns["ripley_l"]["l"]).all()


def test_radius_in_the_wrong_unit_warns():
    table = make()
    with pytest.warns(UserWarning, match="is radius in µm"):
        gp.tl.composition(table, radius=0.05)
    table.obsm["spatial"] /= 1000  # mm
    with pytest.warns(UserWarning, match="coordinates in µm"):
        gp.tl.neighborhood_correlation(table)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_expression_that_is_not_finite(value):
    table = make()
    table.X[3, 2] = value
    with pytest.raises(ValueError, match="1 values are NaN or infinite, in 1 of 300 rows"):
        gp.tl.neighborhood_correlation(table)


def test_fewer_than_four_cells():
    table = make()[:3].copy()
    for verb in (gp.tl.composition, gp.tl.neighborhood_correlation, gp.tl.cell_type_interaction, gp.tl.ripley_l):
        with pytest.raises(ValueError, match="3 rows; at least 4"):
            verb(table)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: gp.tl.composition(t, cell_type_key="type"), "cell_type_key='type' is not a column"),
        (lambda t: gp.tl.composition(t, groupby="niche"), "groupby='niche' is not a column"),
        (lambda t: gp.tl.composition(t, reference="measured"), "an AnnData has no tables"),
        (lambda t: gp.tl.composition(t, key_added="a/b"), "key_added='a/b'"),
        (lambda t: gp.tl.neighborhood_correlation(t, within_type=True, between=("A", "C")), "exclude each other"),
        (lambda t: gp.tl.neighborhood_correlation(t, between=("A", "Z")), "'Z' is not among the types"),
        (lambda t: gp.tl.neighborhood_correlation(t, between="AC"), "expected \\(type, neighbour type\\)"),
        (lambda t: gp.tl.neighborhood_correlation(t, genes=["G9"]), "1 are not in adata"),
        (lambda t: gp.tl.neighborhood_correlation(t, min_distance=-1), "positive distance"),
        (lambda t: gp.tl.neighborhood_correlation(t, min_distance=50, radius=40), "smaller than radius"),
        (lambda t: gp.tl.neighborhood_correlation(t, graph="knn"), "graph='knn' is not in obsp"),
        (lambda t: gp.tl.neighborhood_correlation(t, graph=sparse.eye_array(9, k=1)), "made for another table"),
        (lambda t: gp.tl.cell_type_interaction(t, radius=-3), "positive distance"),
        (lambda t: gp.tl.cell_type_interaction(t, n_perms=-3), "n_perms=-3"),
        (lambda t: gp.tl.cell_type_interaction(t, radius=3, n_neighbors=2), "give one of"),
        (lambda t: gp.tl.ripley_l(t, grid="log"), "grid='log'"),
        (lambda t: gp.tl.ripley_l(t, grid="spatstat", n_perms=9), "parity of scores"),
        (lambda t: gp.tl.ripley_l(t, window="tissue"), "neither 'bounds' nor 'origin'"),
        (lambda t: gp.tl.ripley_l(t, window=(5000, 5000, 6000, 6000)), "none of the 300 cells lies inside"),
        (lambda t: gp.tl.ripley_l(t, window=(0, 1)), "expected \\(x0, y0, x1, y1\\)"),
        (lambda t: gp.tl.ripley_l(t, min_cells=1000), "no type of adata has more than min_cells=1000"),
        (lambda t: gp.tl.ripley_l(t, step=0), "0 < step"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(make())


def test_graph_of_another_table_is_refused():
    table, other = make(), make(seed=1)
    import squidpy as sq

    sq.gr.spatial_neighbors_knn(other, n_neighs=5)
    other.obs_names = [f"x{i}" for i in range(300)]
    with pytest.raises(ValueError, match="its rows are not those of adata"):
        gp.tl.cell_type_interaction(table, graph=other)
    with pytest.raises(ValueError, match="belongs to another table"):
        gp.tl.neighborhood_correlation(table, graph=other.obsp["spatial_connectivities"])


def test_ripley_in_a_polygon_of_the_slide(slide_maker):
    import geopandas as gpd
    from shapely import Polygon, box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    made = slide_maker()
    slide = made.sdata
    tissue = Polygon([(0, 0), (100, 0), (100, 100), (0, 100)], [[(40, 40), (60, 40), (60, 60), (40, 60)]])
    shapes = gpd.GeoDataFrame({"area_um2": [tissue.area]}, geometry=[tissue])
    slide["tissue"] = ShapesModel.parse(shapes, transformations={"microns": Identity()})
    gp.tl.ripley_l(slide, table_key="measured", max_radius=20)
    stored = notes(slide["measured"], "ripley_l")
    inside = ~((made.xy > 40) & (made.xy < 60)).all(axis=1)
    assert stored["window"] == "shapes 'tissue'"
    assert stored["n_outside"] == (~inside).sum()
    assert stored["area_um2"] == pytest.approx(9600, rel=1e-6)
    own = slide["measured"].uns["ripley_l"]["l"].to_numpy()
    alone = slide["measured"][inside].copy()
    gp.tl.ripley_l(alone, window=tissue, max_radius=20)
    np.testing.assert_allclose(alone.uns["ripley_l"]["l"], own)
    with pytest.warns(UserWarning, match="lie outside and are left out"):
        gp.tl.ripley_l(slide, table_key="measured", max_radius=20, window=box(0, 0, 50, 100))


def test_several_slides_in_one_table(slide_maker):
    tables = [slide_maker(seed=s, pitch=16).sdata["measured"] for s in (0, 1)]
    import anndata

    both = anndata.concat(tables, index_unique="-")
    both.obs["region"] = pd.Categorical(np.repeat(["one", "two"], tables[0].n_obs))
    both.uns["spatialdata_attrs"] = {"region": ["one", "two"], "region_key": "region", "instance_key": "cell_id"}
    gp.tl.cell_type_interaction(both, radius=10)
    single = []
    for table in tables:
        gp.tl.cell_type_interaction(table, radius=10)
        single.append(table.uns["interaction"]["n_pairs"])
    assert (both.uns["interaction"]["n_pairs"] == single[0] + single[1]).all()
    gp.tl.neighborhood_correlation(both, border_rule=True)
    with pytest.raises(ValueError, match="run ripley_l on each"):
        gp.tl.ripley_l(both)


def test_rare_types_are_left_out_and_named():
    table = make()
    labels = table.obs["cell_type"].astype(str).to_numpy()
    labels[labels == "C"] = "A"
    labels[:6] = "C"
    table.obs["cell_type"] = labels
    gp.tl.ripley_l(table)
    assert notes(table, "ripley_l")["rare_types"] == {"C": 6}
    assert set(table.uns["ripley_l"]["cell_type"]) == {"A", "B/x"}
