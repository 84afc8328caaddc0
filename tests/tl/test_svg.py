"""The verbs svg and local_moran: what is written, which p-values are given and which are withheld, bad input."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import ghistpy as gp
from ghistpy.geometry import knn_graph
from ghistpy.stats import adjust_pvalues, row_standardised
from ghistpy.stats.coordinate_tests import coordinate_kernels, sparkx
from ghistpy.stats.spatial_autocorrelation import autocorrelation_test
from ghistpy.stats.variogram import variogram_test


def quiet(adata, **options):
    gp.tl.svg(adata, progress=False, **options)


@pytest.fixture
def slide():
    """1,200 cells; genes: 0 and 1 follow x, 2 to 9 do not, 10 is rare, 11 is constant."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 500, (1200, 2))
    fold = np.ones((1200, 12))
    fold[:, :2] = 0.5 + xy[:, :1] / 250
    counts = rng.poisson(1.5 * fold)
    counts[:, 10] = rng.random(1200) < 0.02
    counts[:, 11] = 0
    adata = AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(rng.choice(["a", "b"], 1200))}, index=[f"c{i}" for i in range(1200)]
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(12)]),
    )
    adata.obsm["spatial"] = xy
    return adata


@pytest.fixture
def predicted(slide):
    slide.X = np.log1p(slide.X.toarray())
    slide.uns["ghistpy"] = {"units": "log1p(expected count)", "model_hash": "abc"}
    return slide


@pytest.mark.parametrize("method", ["moran", "geary"])
def test_writes_what_the_arrays_say(slide, method, caplog):
    with caplog.at_level(logging.WARNING, "ghistpy"):
        quiet(slide, method=method)
    expected = autocorrelation_test(
        slide.X, row_standardised(knn_graph(slide.obsm["spatial"], 6).weights), method=method
    )
    var, notes = slide.var, slide.uns["svg"]
    np.testing.assert_array_equal(var["svg_score"], expected.score)
    np.testing.assert_array_equal(var["svg_pval"], expected.pval)
    np.testing.assert_array_equal(var["svg_pval_adj"], adjust_pvalues(expected.pval, "bh"))
    assert set(var["svg_rank"].iloc[:2]) == {1, 2}
    assert var["svg_rank"].isna().tolist() == [False] * 11 + [True]
    assert (notes["method"], notes["null"], notes["graph"]) == (method, "values", "6 nearest neighbours")
    assert (notes["n_constant_genes"], notes["n_genes_too_sparse"], notes["n_genes_without_pval"]) == (1, 1, 2)
    assert np.isnan(var["svg_pval"].iloc[10])
    assert "give n_perms" in caplog.text
    assert (var["svg_pval"].iloc[:2] < 1e-6).all()


def test_sparkx_adjusts_as_the_original(slide):
    quiet(slide, method="sparkx")
    expected = sparkx(slide.X, slide.obsm["spatial"])
    np.testing.assert_allclose(slide.var["svg_score"], -expected.log_p / np.log(10))
    np.testing.assert_allclose(slide.var["svg_pval_adj"], adjust_pvalues(expected.pval, "by"))
    assert (slide.uns["svg"]["adjust"], slide.uns["svg"]["n_empty_genes"]) == ("by", 1)
    quiet(slide, method="sparkx", adjust="bh", key_added="other")
    np.testing.assert_allclose(slide.var["other_pval_adj"], adjust_pvalues(expected.pval, "bh"))


def test_permutations_give_rare_genes_a_p(slide):
    quiet(slide, n_perms=99)
    assert slide.var["svg_pval"].iloc[:11].notna().all()
    assert (slide.var["svg_pval"].iloc[:2] == 0.01).all()
    before = slide.var["svg_pval"].to_numpy()
    quiet(slide, n_perms=99, n_jobs=1)
    np.testing.assert_array_equal(slide.var["svg_pval"], before)
    quiet(slide, n_perms=99, seed=1)
    assert (slide.var["svg_pval"].iloc[:11] != before[:11]).any()


def test_slide_subset_layer_and_store(slide, tmp_path):
    from spatialdata import SpatialData, read_zarr

    slide.layers["log"] = slide.X.log1p()
    sdata = SpatialData(tables={"measured": slide})
    gp.tl.svg(sdata, table_key="measured", layer="log", genes=["G0", "G5"], progress=False)
    var = sdata["measured"].var
    assert var["svg_score"].notna().sum() == 2
    assert var["svg_rank"].dropna().tolist() == [1, 2]
    sdata.write(tmp_path / "s.zarr")
    back = gp.get.svg(read_zarr(tmp_path / "s.zarr"))
    assert back["gene"].tolist() == ["G0", "G5"]
    assert back.attrs["notes"]["layer"] == "log"


@pytest.mark.parametrize("options", [{}, {"n_perms": 9}, {"method": "sparkx"}, {"null": "within_type", "n_perms": 9}])
def test_p_of_in_silico_tables_is_withheld_and_explained(predicted, options, caplog):
    with caplog.at_level(logging.WARNING, "ghistpy"):
        quiet(predicted, **options)
    assert predicted.var["svg_score"].iloc[:11].notna().all()
    assert predicted.var[["svg_pval", "svg_pval_adj"]].isna().all(axis=None)
    notes = predicted.uns["svg"]
    assert "map_shift" in notes["withheld"]
    assert notes["claim"].startswith("none")
    assert "withheld" in caplog.text


@pytest.mark.parametrize("method", ["moran", "geary", "sparkx"])
def test_map_shift_gives_in_silico_tables_a_p(predicted, method):
    quiet(predicted, method=method, null="map_shift", n_perms=99)
    notes = predicted.uns["svg"]
    assert notes["withheld"] == ""
    pval = predicted.var["svg_pval"]
    assert pval.iloc[:11].notna().all()
    assert np.isnan(pval.iloc[11])
    assert pval.iloc[:2].max() <= 0.15
    assert (pval.iloc[2:11] <= 0.05).sum() <= 3
    assert (notes["layout"], notes["n_shifts_redrawn"]) == ("SPARK-X's functions of the coordinates", 0)
    assert notes["share_of_rows_compared"] > 0.95


@pytest.mark.parametrize("method", ["moran", "geary", "sparkx"])
def test_variogram_gives_in_silico_tables_a_p(predicted, method):
    quiet(predicted, method=method, null="variogram")
    notes, pval = predicted.uns["svg"], predicted.var["svg_pval"]
    assert notes["withheld"] == ""
    assert notes["claim"].startswith("The map follows the layout more closely")
    assert np.isnan(pval).tolist() == [False] * 11 + [True]
    assert pval.iloc[:2].max() <= 0.01
    assert (pval.iloc[2:11] <= 0.05).sum() <= 2
    assert notes["n_tiles"] >= 270
    expected = variogram_test(predicted.X, predicted.obsm["spatial"], coordinate_kernels(predicted.obsm["spatial"]))
    np.testing.assert_array_equal(pval, expected.pval)


def test_map_shift_against_a_layout(predicted):
    rng = np.random.default_rng(1)
    niche = np.hypot(*(predicted.obsm["spatial"] - [150, 350]).T) < 110
    predicted.obs["niche"] = pd.Categorical(np.where(niche, "in", "out"))
    predicted.X[:, 5] += 2.0 * niche + 0.5 * rng.normal(size=1200)
    quiet(predicted, null="map_shift", n_perms=99, layout_key="niche", genes=[f"G{i}" for i in range(2, 10)])
    assert predicted.var["svg_pval"]["G5"] <= 0.03
    assert (predicted.var["svg_pval"].drop("G5").dropna() > 0.01).sum() >= 5
    assert predicted.uns["svg"]["layout"] == "niche"
    with pytest.raises(ValueError, match="neither in obs nor in obsm"):
        quiet(predicted, null="map_shift", n_perms=9, layout_key="nothing")
    predicted.obs["one"] = pd.Categorical(["same"] * 1200)
    with pytest.raises(ValueError, match="does not vary"):
        quiet(predicted, null="map_shift", n_perms=9, layout_key="one")


def test_within_type_explains_what_types_and_depth_do():
    """Genes that follow types and depth only are many under the null 'values' and few within types."""
    sdata = gp.datasets.simulate_slide(n_cells=2500, n_genes=40, seed=3, unpredictable_fraction=1.0)
    table = sdata["measured"]
    # genes that follow nothing but the type and the depth of a cell
    codes = table.obs["cell_type"].cat.codes.to_numpy()
    rate = table.varm["type_profiles"].T[codes] * table.obs["depth"].to_numpy()[:, None]
    table.layers["null"] = np.random.default_rng(0).poisson(np.maximum(rate, 0.2)).astype(np.float32)
    quiet(table, layer="null", n_perms=99)
    assert (table.var["svg_pval"] <= 0.05).mean() > 0.6
    quiet(table, layer="null", n_perms=99, null="within_type", key_added="within")
    most = 0.05 + 4 * np.sqrt(0.05 * 0.95 / 40)  # 40 genes; test_svg_calibration.py has more
    assert (table.var["within_pval"] <= 0.05).mean() <= most
    notes = table.uns["within"]
    assert (notes["types"], notes["n_types"], notes["n_without_type"]) == ("obs['cell_type']", 6, 0)
    assert "given the cell types" in notes["claim"].lower()
    quiet(table, layer="null", method="sparkx", null="within_type", key_added="spark")
    assert (table.var["spark_pval"] <= 0.05).mean() <= most


def test_one_type_and_missing_types(slide):
    slide.obs["cell_type"] = pd.Categorical(["a"] * 1200)
    slide.obs.loc["c3", "cell_type"] = np.nan
    quiet(slide, null="within_type", n_perms=19)
    notes = slide.uns["svg"]
    assert (notes["n_types"], notes["n_without_type"]) == (1, 1)
    assert slide.var["svg_pval"].iloc[:2].max() == 0.05


def test_sparkx_leaves_out_empty_cells_and_notes_logarithms(slide):
    X = slide.X.toarray()
    X[:30] = 0
    slide.X = X
    quiet(slide, method="sparkx")
    assert slide.uns["svg"]["n_cells_without_counts"] == 30
    slide.uns["log1p"] = {}
    quiet(slide, method="sparkx")
    assert "made for counts" in slide.uns["svg"]["note"]


def test_graph_options(slide):
    quiet(slide, radius=30)
    assert slide.uns["svg"]["graph"] == "radius 30 µm"
    slide.obsp["spatial_connectivities"] = sparse.csr_matrix(knn_graph(slide.obsm["spatial"], 4).weights)
    quiet(slide)
    assert slide.uns["svg"]["graph"] == "obsp['spatial_connectivities']"
    by_key = slide.var["svg_score"].copy()
    quiet(slide, n_neighbors=4)
    np.testing.assert_array_equal(slide.var["svg_score"], by_key)


def test_alternatives_change_the_order(slide):
    quiet(slide, alternative="less")
    assert slide.var["svg_score"].idxmin() == slide.var["svg_rank"].idxmin()
    quiet(slide, alternative="two-sided")
    assert slide.uns["svg"]["ranked_by"].startswith("distance")
    assert set(slide.var["svg_rank"].iloc[:2]) == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "spark"}, "there are \\['moran', 'geary', 'sparkx'\\]"),
        ({"null": "types"}, "there are \\['values', 'within_type', 'map_shift', 'variogram'\\]"),
        ({"alternative": "up"}, "alternative='up'"),
        ({"adjust": "holm"}, "adjust='holm'"),
        ({"n_perms": 1.5}, "whole number"),
        ({"null": "within_type"}, "n_perms=999"),
        ({"null": "map_shift"}, "number of shifts"),
        ({"null": "map_shift", "n_perms": 9, "log_depth": True}, "takes no covariates"),
        ({"layout_key": "cell_type"}, "belongs to null='map_shift'"),
        ({"method": "sparkx", "n_perms": 9}, "leave n_perms at 0"),
        ({"method": "sparkx", "alternative": "less"}, "no direction"),
        ({"log_depth": True}, "have no analytic p-value"),
        ({"null": "within_type", "n_perms": 9, "cell_type_key": "kind"}, "cell_type_key='kind'"),
        ({"genes": ["TP53"]}, "not in adata"),
        ({"layer": "raw"}, "layer='raw'"),
        ({"covariates": ["age"], "n_perms": 9}, "'age' is not a column"),
        ({"graph": "mine"}, "graph='mine'"),
    ],
)
def test_errors(slide, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(slide, **options)
    assert "svg" not in slide.uns  # nothing half-written


def test_values_and_rows_that_cannot_be_used(slide):
    with pytest.raises(ValueError, match="at least 4"):
        quiet(slide[:3].copy())
    slide.X = slide.X.toarray()
    slide.X[4, 4] = np.inf
    with pytest.raises(ValueError, match="1 values are NaN or infinite, in 1 of 1200 rows and 1 of 12 genes"):
        quiet(slide)


def test_depth_of_logarithms_is_refused_by_provenance(slide):
    slide.X = slide.X.log1p()
    slide.uns["log1p"] = {}
    with pytest.raises(ValueError, match="depth_key="):
        quiet(slide, method="sparkx", log_depth=True)


class TestLocalMoran:
    def test_writes_and_finds_the_hot_spot(self, slide):
        hot = np.hypot(*(slide.obsm["spatial"] - 250).T) < 70
        X = slide.X.toarray()
        X[:, 3] += 6 * hot
        slide.X = X
        gp.tl.local_moran(slide, ["G3", "G4"], n_perms=99)
        assert slide.uns["local_moran"]["genes"] == ["G3", "G4"]
        called = (slide.obsm["local_moran_pval"] <= 0.02) & (slide.obsm["local_moran_quadrant"] == 1)
        assert called[hot, 0].mean() > 0.8
        assert called[:, 1].mean() < 0.03

    def test_in_silico_p_is_withheld(self, predicted):
        gp.tl.local_moran(predicted, "G1", n_perms=99)
        assert np.isfinite(predicted.obsm["local_moran"]).all()
        assert np.isnan(predicted.obsm["local_moran_pval"]).all()
        assert predicted.uns["local_moran"]["withheld"]

    def test_errors(self, slide):
        with pytest.raises(ValueError, match="name at least one"):
            gp.tl.local_moran(slide, [])
        with pytest.raises(ValueError, match="not in adata"):
            gp.tl.local_moran(slide, "TP53")
        with pytest.raises(ValueError, match="whole number"):
            gp.tl.local_moran(slide, "G1", n_perms=-1)


def test_get_names_what_there_is(slide):
    with pytest.raises(ValueError, match="run tl.svg first"):
        gp.get.svg(slide)
    quiet(slide, key_added="mine")
    with pytest.raises(ValueError, match="there are \\['mine'\\]"):
        gp.get.svg(slide)
    assert len(gp.get.svg(slide, key="mine")) == 11


@pytest.mark.data
def test_methods_agree_on_a_breast_tumour(data_dir):
    """Xenium breast, region squirtle: three statistics find the same genes, and controls of the tumour lead."""
    frame = pd.read_csv(data_dir / "data/xenium_breast_rep1/squirtle.csv.gz", index_col=0)
    genes = [c for c in frame if c not in ("x_centroid", "y_centroid", "area")]
    table = AnnData(sparse.csr_matrix(frame[genes].to_numpy(np.float32)), var=pd.DataFrame(index=genes))
    table.obs_names = frame.index.astype(str)
    table.obsm["spatial"] = frame[["x_centroid", "y_centroid"]].to_numpy()
    for method in ("moran", "geary", "sparkx"):
        quiet(table, method=method, key_added=method)
    ranks = table.var[["moran_rank", "geary_rank", "sparkx_rank"]]
    agreement = ranks.corr("spearman").to_numpy()
    assert agreement[0, 1] > 0.9
    assert agreement[0, 2] > 0.7
    best = set(ranks["moran_rank"].nsmallest(20).index)
    assert len(best & set(ranks["sparkx_rank"].nsmallest(20).index)) >= 10
    assert {"GATA3", "FASN", "KRT7", "FOXA1", "EPCAM"} <= best


@pytest.mark.data
def test_prediction_smooths_and_raises_the_score(data_dir):
    """Published crops: Moran's I of the predicted gene is above that of the measured one for all 14 maps."""
    crops = pd.read_csv(data_dir / "golden/downstream/sc_crops.csv")
    for _, cells in crops.groupby("sample"):
        names = [c.removesuffix("_gt") for c in cells if c.endswith("_gt") and c != "celltype_gt"]
        tables = {}
        for kind in ("gt", "pred"):
            tables[kind] = AnnData(cells[[f"{g}_{kind}" for g in names]].to_numpy())
            tables[kind].obsm["spatial"] = cells[["x", "y"]].to_numpy()
            quiet(tables[kind], n_perms=9)
        assert (tables["pred"].var["svg_score"].to_numpy() > tables["gt"].var["svg_score"].to_numpy()).all()


@pytest.mark.data
def test_published_accuracy_of_genes_without_pattern(data_dir):
    """Supplementary figure 9: the 20 least variable genes, two methods."""
    import json

    from ghistpy.stats import summarise

    folder = data_dir / "golden/downstream"
    frame = pd.read_csv(folder / "supp9_top20_nonSVG.csv")
    for method, expected in json.loads((folder / "supp9_expected.json").read_text()).items():
        summary = summarise(frame.loc[frame["method"] == method, "per_gene_cor"].to_numpy())
        assert summary.n == 20
        assert summary.median == pytest.approx(expected["median"], abs=1e-9)
        assert summary.mean == pytest.approx(expected["mean"], abs=1e-9)
