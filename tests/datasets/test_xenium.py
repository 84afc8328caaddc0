"""The lung core: against its own file, read as labelled and read right."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from ghistpy import datasets, io
from ghistpy.datasets import registry


@pytest.mark.data
def test_table_equals_its_file(data_dir, monkeypatch):
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    raw = ad.read_h5ad(data_dir / "data" / "xenium_lung_tma" / "NCBI858.h5ad")
    right, wrong = datasets.xenium_lung_tma(), datasets.xenium_lung_tma(as_labelled=True)
    table = right["measured"]
    assert table.shape == (200, 338)
    np.testing.assert_array_equal(table.X.toarray(), raw.X)
    assert table.obs["original_id"].tolist() == raw.obs_names.tolist()
    assert table.obs["total"].sum() == raw.X.sum()
    assert io.get_mpp(right) == 2.125
    np.testing.assert_allclose(table.obsm["spatial"][:, 0], raw.obs["y_pixel"] * 2.125)
    np.testing.assert_allclose(wrong["measured"].obsm["spatial"], raw.obs[["x_pixel", "y_pixel"]] * 2.125)
    size = np.array([right["he"].sizes["x"], right["he"].sizes["y"]]) * 2.125
    assert (table.obsm["spatial"] < size).all()
    assert right.attrs["ghistpy"]["sample"] == "NCBI858"


def test_files_are_registered():
    names = [name for name in registry.REGISTRY if name.startswith("xenium_lung_tma/")]
    assert len(names) == 2
    assert all(len(registry.REGISTRY[name].sha256) == 64 for name in names)
    assert all(registry.REGISTRY[name].url.startswith("https://") for name in names)
