"""References and cell types: against plain pandas, planted types, and the demo with its own profiles."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ghistpy as gp


def _cells(seed=0, n=600, genes=60, depth=120, biology=0):
    """Cells of four types with known profiles, depths that vary twentyfold."""
    profiles = np.random.default_rng(biology).gamma(0.3, 1.0, (4, genes)) + 0.01
    rng = np.random.default_rng(seed)
    types = rng.choice(4, n, p=[0.55, 0.25, 0.15, 0.05])
    size = depth * rng.gamma(2, 0.5, n)
    share = profiles / profiles.sum(axis=1, keepdims=True)
    table = ad.AnnData(sparse.csr_matrix(rng.poisson(share[types] * size[:, None]).astype(np.float32)))
    table.var_names = [f"G{i}" for i in range(genes)]
    table.obs_names = [f"c{i}" for i in range(n)]
    table.obs["cell_type"] = np.array(["B", "T/NK", "Tumour", "Mast"])[types]
    return table


def test_profiles_equal_a_group_by():
    cells = _cells()
    cells.obs.loc[cells.obs_names[:7], "cell_type"] = None
    reference = gp.pp.build_reference(cells, groupby="cell_type")
    frame = cells.to_df()
    total = frame.sum(axis=1)
    known = cells.obs["cell_type"].notna() & (total > 0)
    target = total[known].median()
    scaled = frame[known].mul(target / total[known], axis=0)
    expected = np.log1p(scaled.groupby(cells.obs["cell_type"][known]).mean())
    pd.testing.assert_frame_equal(
        reference.to_df(), expected.astype(np.float32), check_names=False, rtol=1e-5, check_index_type=False
    )
    assert reference.obs["n_cells"].to_dict() == cells.obs["cell_type"][known].value_counts().to_dict()
    params = json.loads(reference.uns["ghistpy"]["params"])
    assert params["target_sum"] == target
    assert params["left_out"]["cells_without_type"] == 7


def test_layer_panel_and_target():
    cells = _cells()
    cells.layers["raw"] = cells.X.copy()
    cells.X = np.log1p(cells.X.toarray())
    with pytest.raises(ValueError, match="not whole"):
        gp.pp.build_reference(cells, groupby="cell_type")
    panel = ["G5", "absent", "G0"]
    a = gp.pp.build_reference(cells, groupby="cell_type", layer="raw", genes=panel, target_sum=100)
    assert a.var_names.tolist() == ["G5", "G0"]
    np.testing.assert_allclose(np.expm1(a.X).sum(axis=1), 100, rtol=1e-4)


def test_subclusters_find_two_kinds_of_one_type():
    one, two = _cells(seed=1, biology=1), _cells(seed=2, biology=2)
    both = ad.concat([one, two], index_unique="-")
    both.obs["cell_type"] = "one name"
    kind = np.repeat([0, 1], len(one))
    reference = gp.pp.build_reference(both, groupby="cell_type", n_subclusters=8)
    assert reference.n_obs > 2
    assert reference.obs_names[0] == "one name #1"
    assert set(reference.obs["cell_type"]) == {"one name"}
    assert reference.obs["n_cells"].sum() <= len(both)
    gp.pp.annotate_cell_types(both, reference, method="correlation", key_added="kind", groupby="none")
    share = pd.crosstab(both.obs["kind_raw"], kind, normalize="index").max(axis=1)
    assert (share > 0.95).all()  # no sub-cluster mixes the two
    again = gp.pp.build_reference(both, groupby="cell_type", n_subclusters=8)
    np.testing.assert_array_equal(reference.X, again.X)


@pytest.mark.parametrize("method", ["correlation", "logistic"])
@pytest.mark.parametrize("kind", ["profiles", "cells"])
def test_planted_types_are_found_on_another_slide(method, kind):
    reference = _cells(seed=1)
    if kind == "profiles":
        reference = gp.pp.build_reference(reference, groupby="cell_type")
    query = _cells(seed=9)
    # a panel that is another, in another order
    query = query[:, np.random.default_rng(0).permutation(60)[:45]].copy()
    truth = query.obs.pop("cell_type")
    gp.pp.annotate_cell_types(query, reference, method=method)
    deep = np.asarray(query.X.sum(axis=1)).ravel() > 50
    assert (query.obs["cell_type_raw"] == truth)[deep].mean() > 0.97
    np.testing.assert_allclose(query.obsm["cell_type_proba"].sum(axis=1), 1, rtol=1e-4)
    report = json.loads(query.uns["ghistpy"]["annotation"])
    assert report["cell_types"] == ["B", "Mast", "T/NK", "Tumour"]
    assert report["shared_genes"] == 45
    unassigned = query.obs["cell_type"] == "unassigned"
    assert unassigned.sum() == report["unassigned_few_counts"] + report["unassigned_low_confidence"]
    same = query.obs["cell_type"].astype(str) == query.obs["cell_type_raw"].astype(str)
    assert (same | unassigned).all()
    confident = query.obs["cell_type_confidence"] > query.obs["cell_type_confidence"].median()
    right = (query.obs["cell_type_raw"] == truth).to_numpy()
    assert right[confident].mean() >= right[~confident].mean()


def test_gene_yield_of_the_assay_is_corrected():
    """Another assay finds every gene with another yield, tenfold apart."""
    reference = gp.pp.build_reference(_cells(seed=1), groupby="cell_type")
    query = _cells(seed=9, depth=1500)
    yields = np.exp(np.random.default_rng(3).normal(0, 1.0, 60))
    query.X = sparse.csr_matrix(np.rint(query.X.toarray() * yields / yields.mean() / 4).astype(np.float32))
    truth = query.obs.pop("cell_type")
    gp.pp.annotate_cell_types(query, reference)
    assert (query.obs["cell_type_raw"] == truth).mean() > 0.95


def test_result_does_not_depend_on_the_order_of_cells():
    reference = gp.pp.build_reference(_cells(seed=1), groupby="cell_type")
    a = _cells(seed=4)
    order = np.random.default_rng(0).permutation(a.n_obs)
    b = a[order].copy()
    gp.pp.annotate_cell_types(a, reference, method="correlation")
    gp.pp.annotate_cell_types(b, reference, method="correlation")
    np.testing.assert_allclose(a.obsm["cell_type_proba"][order], b.obsm["cell_type_proba"], atol=1e-6)


def _profiles(cells):
    return gp.pp.build_reference(cells, groupby="cell_type")


def _renamed(cells, change):
    cells.var_names = [change(g) for g in cells.var_names]
    return cells


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda c: _profiles(_renamed(c, lambda g: f"ENSG{g}")), "shares 0 genes .* Ensembl ids, the other symbols"),
        (lambda c: _profiles(_renamed(c, str.lower)), "shares 0 genes .* upper and lower case"),
        (lambda c: _renamed(_profiles(c), lambda g: "" if g == "G3" else g), "1 of 60 gene names are empty"),
        (lambda c: _renamed(_profiles(c), lambda g: "G1" if g == "G3" else g), r"gene names repeat: \['G1'\]"),
        (lambda c: c[:, :3].copy(), "shares 3 genes with the table, 5 or more"),
        (lambda c: c[c.obs["cell_type"] == "B"].copy(), "two or more types"),
        (lambda c: ad.AnnData(c.X, var=c.var), r"groupby='cell_type' is not among the columns of reference\.obs"),
        (lambda c: ad.AnnData(c.to_df() - 1.5, obs=c.obs), "finite values of 0 and above"),
        (lambda c: ad.AnnData(c.to_df() * 37.77, obs=c.obs), "neither raw counts nor log1p"),
    ],
)
def test_bad_reference_writes_nothing(reference, message):
    query = _cells(seed=2)
    before = query.copy()
    with pytest.raises(ValueError, match=message):
        gp.pp.annotate_cell_types(query, reference(_cells(seed=1)), key_added="found")
    pd.testing.assert_frame_equal(query.obs, before.obs)
    assert "found_proba" not in query.obsm


def test_bad_arguments():
    cells = _cells()
    reference = _profiles(cells)
    with pytest.raises(ValueError, match="method='knn': expected one of"):
        gp.pp.annotate_cell_types(cells, reference, method="knn")
    with pytest.raises(ValueError, match="min_confidence=2"):
        gp.pp.annotate_cell_types(cells, reference, min_confidence=2)
    with pytest.raises(TypeError, match="expected an AnnData"):
        gp.pp.annotate_cell_types(cells, "profiles.h5ad")
    with pytest.raises(TypeError, match="takes the name or path of a model"):
        gp.pp.annotate_cell_types(cells, reference, method="celltypist")
    with pytest.raises(ValueError, match="groupby='type' is not among the columns"):
        gp.pp.build_reference(cells, groupby="type")
    with pytest.raises(ValueError, match="has none of the 1 genes"):
        gp.pp.build_reference(cells, groupby="cell_type", genes=["X"])
    with pytest.raises(ValueError, match="no group has so many cells"):
        gp.pp.build_reference(cells, groupby="cell_type", min_cells=10_000)
    logs = cells.copy()
    logs.uns["ghistpy"] = {"units": "log1p(expected count)"}
    with pytest.raises(ValueError, match="raw counts are needed"):
        gp.pp.annotate_cell_types(logs, reference)


def test_celltypist_is_an_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "celltypist", None)
    with pytest.raises(ImportError, match=r"pip install 'ghistpy\[celltypist\]'"):
        gp.pp.annotate_cell_types(_cells(), "model.pkl", method="celltypist")


@pytest.mark.data
def test_demo_with_its_own_profiles(data_dir):
    """63 profiles without names: each is named by half of the cells, the other half is scored."""
    demo = data_dir / "data" / "ghist_demo"
    counts = pd.read_csv(demo / "expr_mat_breast_demo.csv.gz", index_col=0).drop(columns="cell_id")
    truth = pd.read_csv(demo / "cell_types_breast_demo.csv", index_col=0)["ct_idx"].reindex(counts.index).to_numpy()
    profiles = pd.read_csv(demo / "sc_breast.csv", index_col=0)
    reference = ad.AnnData(profiles.set_axis([f"p{i}" for i in range(len(profiles))]).astype(np.float32))
    table = ad.AnnData(counts.set_axis(counts.index.astype(str)).astype(np.float32))
    naming = np.random.default_rng(0).random(len(counts)) < 0.5
    gp.pp.annotate_cell_types(table, reference, method="correlation", key_added="profile")
    name = pd.crosstab(table.obs["profile_raw"][naming].astype(str), truth[naming]).idxmax(axis=1)
    named = reference[reference.obs_names.isin(name.index)].copy()
    named.obs["cell_type"] = [f"type_{name[p]}" for p in named.obs_names]
    expected = np.array([f"type_{t}" for t in truth])
    for method, least in (("correlation", 0.80), ("logistic", 0.82)):
        gp.pp.annotate_cell_types(table, named, method=method, key_added="found")
        right = (table.obs["found_raw"].astype(str) == expected)[~naming]
        assert right.mean() > least, method
    sure = (table.obs["found"] != "unassigned").to_numpy()
    assert 0.8 < sure.mean() < 0.97
    assert (table.obs["found"].astype(str) == expected)[~naming & sure].mean() > 0.87
