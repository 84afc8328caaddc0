"""Clusters of patients: golden values, and the record of what they were made of."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest

import ghistpy as gp


@pytest.mark.data
def test_golden_clusters(data_dir):
    frame = pd.read_csv(data_dir / "golden" / "downstream" / "fig5c_heatmap_kmeans.csv", index_col=0)
    adata = anndata.AnnData(frame.iloc[:, :5].to_numpy(float), obs=frame[["paper_cluster"]])
    gp.tl.cluster_patients(adata, standardise=False)
    table = pd.crosstab(adata.obs["paper_cluster"], adata.obs["patient_cluster"]).to_numpy()
    assert sorted(table.ravel().tolist()) == [0, 0, 25, 29]
    notes = json.loads(adata.uns["ghistpy"]["patient_cluster"]["notes"])
    assert notes["inertia"] == pytest.approx(269.9645, abs=1e-3)


def test_clusters_say_what_they_are_made_of(caplog):
    adata = anndata.AnnData(np.random.default_rng(0).normal(size=(24, 120)))
    adata.obs_names, adata.var_names = [f"P{i}" for i in range(24)], [f"f{i}" for i in range(120)]
    adata.X[:12, :40] += 6
    adata.X[0, 3] = np.nan
    gp.tl.cluster_patients(adata, features=list(adata.var_names[:40]))
    assert len(set(adata.obs["patient_cluster"][:12])) == 1
    assert adata.obs["patient_cluster"].nunique() == 2
    notes = json.loads(adata.uns["ghistpy"]["patient_cluster"]["notes"])
    assert notes["features"] == adata.var_names[:40].tolist()
    assert notes["silhouette"] > 0.5
    assert "1 of 960 values are missing" in caplog.text
    with pytest.raises(ValueError, match="n_clusters=24: expected at least 2 and fewer than the 24"):
        gp.tl.cluster_patients(adata, n_clusters=24)
    with pytest.raises(ValueError, match="features: zzz are not in the table"):
        gp.tl.cluster_patients(adata, features=["zzz"])
