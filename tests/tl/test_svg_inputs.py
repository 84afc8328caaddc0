"""The verb svg on tables of several slides, on some genes, and on input that it cannot use."""

from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import ghistpy as gp


def quiet(adata, **options):
    gp.tl.svg(adata, progress=False, **options)


def make(n=800, n_genes=10, seed=0, level=1.5):
    rng = np.random.default_rng(seed)
    table = AnnData(rng.poisson(level, (n, n_genes)).astype(np.float32))
    table.obs["cell_type"] = pd.Categorical(rng.choice(["a", "b"], n))
    table.obsm["spatial"] = rng.uniform(0, 500, (n, 2))
    return table


@pytest.fixture
def slides():
    """Two slides of 800 cells in one table, 200 genes without a pattern, 1.3 times as high in the second."""
    parts = [make(n_genes=200, seed=i, level=1.5 * (1 + 0.3 * i)) for i in range(2)]
    table = anndata.concat(parts, index_unique="-", keys=["s0", "s1"], label="region")
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["cell_id"] = np.tile(np.arange(800), 2)
    table.uns["spatialdata_attrs"] = {"region": ["s0", "s1"], "region_key": "region", "instance_key": "cell_id"}
    return table


class TestSeveralSlides:
    @pytest.mark.parametrize("null", ["values", "within_type"])
    def test_levels_of_slides_are_no_pattern(self, slides, null):
        quiet(slides, n_perms=99, null=null)
        for level in (0.01, 0.05, 0.1):
            most = level + 4 * np.sqrt(level * (1 - level) / 200)
            assert (slides.var["svg_pval"] <= level).mean() <= most
        assert slides.uns["svg"]["n_regions"] == 2

    def test_the_score_is_that_of_values_minus_the_mean_of_their_slide(self, slides):
        quiet(slides, n_perms=9)
        centred = AnnData(slides.X.copy())
        for name in ("s0", "s1"):
            rows = (slides.obs["region"] == name).to_numpy()
            centred.X[rows] -= centred.X[rows].mean(axis=0)
        weights = [gp.geometry.knn_graph(slides.obsm["spatial"][k : k + 800], 6).weights for k in (0, 800)]
        quiet(centred, graph=sparse.csr_array(sparse.block_diag(weights)), n_perms=9)
        np.testing.assert_allclose(slides.var["svg_score"], centred.var["svg_score"], atol=1e-5)

    def test_a_pattern_within_slides_is_found(self, slides):
        slides.X[:, 0] += 2.0 * (slides.obsm["spatial"][:, 0] > 250)
        quiet(slides, n_perms=99)
        assert slides.var["svg_pval"].iloc[0] == 0.01

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "annotates 2 elements .* Give n_perms"),
            ({"method": "sparkx"}, "is a pattern to SPARK-X; test one slide at a time"),
            ({"null": "map_shift", "n_perms": 9}, "null='map_shift': .* test one slide at a time"),
            ({"null": "variogram"}, "null='variogram': .* test one slide at a time"),
        ],
    )
    def test_what_takes_slides_for_one_is_refused(self, slides, options, message):
        with pytest.raises(ValueError, match=message):
            quiet(slides, **options)

    def test_predicted_slides_get_a_score(self, slides):
        slides.uns["ghistpy"] = {"units": "log1p(expected count)"}
        quiet(slides)
        assert slides.var["svg_score"].abs().max() < 0.1
        assert slides.var["svg_pval"].isna().all()


@pytest.mark.parametrize("options", [{"method": "sparkx"}, {"n_perms": 19}, {}, {"null": "variogram"}])
def test_a_gene_does_not_depend_on_which_others_are_asked_for(options):
    rng = np.random.default_rng(0)
    table = make(1500, 20)
    hot = np.hypot(*(table.obsm["spatial"] - 350).T) < 120
    table.X[:, 0] = np.where(hot, rng.random(1500) < 0.6, rng.random(1500) < 0.3)
    quiet(table, **options)
    quiet(table, **options, genes=["0"], key_added="one")
    for column in ("score", "pval"):
        assert table.var[f"one_{column}"].iloc[0] == pytest.approx(table.var[f"svg_{column}"].iloc[0], rel=1e-9)
    assert table.uns["one"].get("n_cells_without_counts") == table.uns["svg"].get("n_cells_without_counts")


def test_sparkx_keeps_cells_with_negative_values():
    table = make()
    table.X -= 1.5
    quiet(table, method="sparkx")
    assert table.uns["svg"]["n_cells_without_counts"] == 0
    assert "partly negative" in table.uns["svg"]["note"]


@pytest.mark.parametrize("options", [{"null": "map_shift", "n_perms": 9}, {"null": "variogram"}])
def test_stray_cells_are_left_out_and_counted(options, caplog):
    table = make(1500)
    rest = table[1:].copy()
    table.obsm["spatial"][0] = [9000, 9000]
    with caplog.at_level(logging.WARNING, "ghistpy"):
        quiet(table, **options)
    assert "1 of 1500 rows of adata lie far from all others" in caplog.text
    assert table.uns["svg"]["n_stray_cells"] == 1
    quiet(rest, **options)
    np.testing.assert_allclose(table.var["svg_pval"], rest.var["svg_pval"])


def test_types_that_are_missing():
    table = make()
    table.obs["cell_type"] = np.nan
    with pytest.raises(ValueError, match="cell_type_key='cell_type' of adata: no row has a type"):
        quiet(table, null="within_type", n_perms=9)
    with pytest.raises(ValueError, match="layout_key='cell_type' of adata is missing or infinite in 800 of 800 rows"):
        quiet(table, null="variogram", layout_key="cell_type")
    table.obsm["cell_type_proba"] = np.full((800, 2), 0.5)
    table.obsm["cell_type_proba"][:3, 1] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['cell_type_proba'\] of adata is NaN or infinite in 3 of 800 rows"):
        quiet(table, null="within_type", n_perms=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_perms": None}, "n_perms=None: expected a whole number"),
        ({"n_perms": float("nan")}, "n_perms=nan: expected a whole number"),
        ({"n_perms": "9"}, "n_perms='9': expected a whole number"),
        ({"key_added": "a/b"}, "key_added='a/b': expected a name without '/'"),
        ({"genes": []}, "genes: .*name at least one"),
        ({"null": "variogram", "n_perms": 9}, "leave n_perms at 0"),
        ({"null": "variogram", "covariates": ["total"]}, "null='variogram' takes no covariates"),
        ({"null": "variogram", "alternative": "less"}, "have no direction"),
    ],
)
def test_arguments(options, message):
    table = make(100, 3)
    with pytest.raises(ValueError, match=message):
        quiet(table, **options)
    assert "svg" not in table.uns


def test_a_table_that_is_too_small_for_a_variogram():
    with pytest.raises(ValueError, match="a variogram needs 100"):
        quiet(make(60), null="variogram")
