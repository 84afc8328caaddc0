"""Embedding through scanpy; umap compiles for ten seconds, so it is run once and PCA stands for it elsewhere."""

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import ghistpy as gp
from ghistpy.tl.embed import stratified_sample


def make(n=400, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.choice(3, n, p=[0.7, 0.25, 0.05])
    profile = rng.gamma(1, 4, (3, 15))
    X = rng.poisson(profile[code]).astype(np.float32)
    X[:, 14] = 0
    table = AnnData(X, var=pd.DataFrame(index=[f"G{i}" for i in range(15)]))
    table.obs["cell_type"] = pd.Categorical(np.array(["A", "B/x", "rare"])[code])
    return table, code, profile


@pytest.fixture
def no_umap(monkeypatch):
    """PCA only; its first components stand for UMAP."""
    import ghistpy.tl  # noqa: F401

    def quick(small, n_pcs, n_neighbors, seed):
        import scanpy as sc

        sc.pp.pca(small, n_comps=min(n_pcs, small.n_vars - 1), random_state=seed)
        small.obsm["X_umap"] = small.obsm["X_pca"][:, :2]
        small.obsp["connectivities"] = small.obsp["distances"] = sparse.csr_matrix(np.eye(small.n_obs, k=1))
        small.uns["neighbors"] = {"params": {"n_neighbors": n_neighbors}}

    from importlib import import_module

    monkeypatch.setattr(import_module("ghistpy.tl.embed"), "_run_scanpy", quick)


def test_sample_is_stratified_and_recorded(no_umap):
    table, code, _ = make(2000)
    gp.tl.embed(table, max_cells=300, n_pcs=5)
    sampled = table.obs["embedded"].to_numpy()
    assert sampled.sum() == 300
    n = np.bincount(code[sampled])
    notes = json.loads(table.uns["X_umap_notes"])
    assert notes["n_sampled_per_type"] == n.tolist()
    assert n[2] >= 50  # of 100, where the proportional share is 15
    assert n[0] / n[1] == pytest.approx(0.7 / 0.25, rel=0.5)
    assert (np.isfinite(table.obsm["X_umap"]).all(axis=1) == sampled).all()
    assert notes["n_constant_genes"] == 1
    assert "median total" in notes["transformed"]
    again = make(2000)[0]
    gp.tl.embed(again, max_cells=300, n_pcs=5)
    np.testing.assert_array_equal(again.obsm["X_umap"], table.obsm["X_umap"])


@pytest.mark.parametrize(
    ("sizes", "max_cells"), [([900, 100], 200), ([5, 1000, 3], 50), ([40] * 30, 90), ([10], 4), ([7, 3], 10)]
)
def test_sample_sizes(sizes, max_cells):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    rows = stratified_sample(codes, max_cells, 0)
    assert len(rows) == min(max_cells, sum(sizes))
    assert len(np.unique(rows)) == len(rows)
    assert (np.bincount(codes[rows], minlength=len(sizes)) >= 1).all()


def test_markers_are_those_of_the_profiles(no_umap):
    table, _, profile = make(3000)
    gp.tl.embed(table, n_markers=3)
    markers = table.uns["markers"]
    share = profile[:, :14] / profile[:, :14].sum(axis=1, keepdims=True)
    for k, name in enumerate(["A", "B/x", "rare"]):
        ratio = np.log2(share[k] / np.delete(share, k, axis=0).max(axis=0))
        first = markers[(markers["cell_type"] == name) & (markers["rank"] == 1)].iloc[0]
        assert ratio[int(first["gene"][1:])] > 0
        assert first["log2_fold_change"] > 0
    assert "pval" not in " ".join(markers.columns)


def test_logarithms_are_taken_as_they_are(no_umap):
    table, *_ = make()
    table.X = np.log1p(table.X)
    table.uns["ghistpy"] = {"units": "log1p(expected count)"}
    gp.tl.embed(table)
    assert json.loads(table.uns["X_umap_notes"])["transformed"].startswith("none")


def test_without_types_there_are_no_markers(no_umap):
    table, *_ = make()
    del table.obs["cell_type"]
    gp.tl.embed(table)
    assert "markers" not in table.uns


def test_errors():
    table, *_ = make()
    with pytest.raises(ValueError, match="max_cells=2"):
        gp.tl.embed(table, max_cells=2)
    with pytest.raises(ValueError, match="cell_type_key='type'"):
        gp.tl.embed(table, cell_type_key="type")
    table.X[:, 2:] = 1
    with pytest.raises(ValueError, match="only 2 genes vary"):
        gp.tl.embed(table)
    table.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        gp.tl.embed(table)


def test_corrected_counts_are_counts_by_provenance(no_umap):
    table, *_ = make()
    whole = table.copy()
    gp.tl.embed(whole)
    table.X = table.X * 1.25  # no whole numbers, as after a correction of ambient counts
    gp.tl.embed(table)
    assert json.loads(table.uns["X_umap_notes"])["transformed"].startswith("none")  # nothing says what they are
    table.uns["ghistpy"] = {"units": "counts"}
    gp.tl.embed(table)
    assert "median total" in json.loads(table.uns["X_umap_notes"])["transformed"]
    assert table.uns["markers"]["gene"].tolist() == whole.uns["markers"]["gene"].tolist()
    table.X[3, 2] = -1
    with pytest.raises(ValueError, match="1 values are negative \\(lowest -1\\)"):
        gp.tl.embed(table)


def test_key_added_is_the_prefix_of_everything(no_umap):
    table, *_ = make()
    before = [set(v) for v in (table.obs, table.obsm, table.obsp, table.uns)]
    gp.tl.embed(table, key_added="mine")
    new = [set(v) - b for v, b in zip((table.obs, table.obsm, table.obsp, table.uns), before, strict=True)]
    assert new == [
        {"mine_embedded"},
        {"mine_pca", "mine_umap"},
        {"mine_connectivities", "mine_distances"},
        {"mine_markers", "mine_neighbors", "mine_umap_notes"},
    ]
    with pytest.raises(ValueError, match="is the graph of the places"):
        gp.tl.embed(table, key_added="spatial")
    with pytest.raises(ValueError, match="without '/'"):
        gp.tl.embed(table, key_added="a/b")


def test_umap_separates_the_types_and_scanpy_goes_on_from_its_graph(tmp_path):
    import anndata
    import scanpy as sc

    table, code, _ = make(500)
    table.obsp["spatial_connectivities"] = sparse.csr_matrix(np.eye(500, k=1))
    gp.tl.embed(table, max_cells=400, n_pcs=5)
    assert (table.obsp["spatial_connectivities"] != sparse.csr_matrix(np.eye(500, k=1))).nnz == 0
    sampled = table.obs["embedded"].to_numpy()
    assert sampled.sum() == 400
    place = table.obsm["X_umap"][sampled]
    near = np.argsort(((place[:, None] - place[None]) ** 2).sum(-1), axis=1)[:, 1]
    assert (code[sampled][near] == code[sampled]).mean() > 0.95
    edges = table.obsp["connectivities"].tocoo()
    assert sampled[edges.row].all()
    assert sampled[edges.col].all()
    assert (code[edges.row] == code[edges.col]).mean() > 0.9
    table.write_h5ad(tmp_path / "table.h5ad")
    small = anndata.read_h5ad(tmp_path / "table.h5ad")[sampled].copy()
    sc.tl.diffmap(small, n_comps=3)  # finds the graph where leiden, which is no dependency, looks for it
    assert np.isfinite(small.obsm["X_diffmap"]).all()
