"""The published network through the public verbs, at reduced width."""

from __future__ import annotations

import numpy as np

import ghistpy as gp


def test_fit_save_load_predict(tmp_path):
    slide = gp.datasets.simulate_slide(n_cells=250, n_genes=12, seed=1)
    config = gp.models.GHISTConfig.published(width_factor=1 / 32, embedding=16, patch_px=64, overlap_px=16)
    model = gp.tl.fit(slide, config=config, max_epochs=2, accelerator="cpu", progress=False)
    assert list(model.history["epoch"]) == [0, 1]
    model.save(tmp_path / "model")
    again = gp.models.GHIST.load(tmp_path / "model")
    gp.tl.predict_expression(slide, model, progress=False)
    gp.tl.predict_expression(slide, again, key_added="again", device="cpu", progress=False)
    table = slide["insilico"]
    assert sorted(table.obs["cell_id"]) == sorted(slide["measured"].obs["cell_id"])
    np.testing.assert_array_equal(table.X, slide["again"].X)
    assert np.isfinite(table.X).all()
    assert (table.X >= 0).all()
    proba = table.obsm["cell_type_proba"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (np.asarray(table.uns["ghistpy"]["cell_types"])[proba.argmax(axis=1)] == table.obs["cell_type"]).all()
