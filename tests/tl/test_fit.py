"""Fitting through the public verb: it repeats itself, sees nothing held out, and carries what it should."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ghistpy as gp
from ghistpy.models import GHIST
from ghistpy.tl.split import Fold, Region


@pytest.fixture(scope="module")
def slide():
    return gp.datasets.simulate_slide(n_cells=350, n_genes=10, seed=1)


def test_same_seed_same_model(slide, quick_fit):
    assert quick_fit(slide, seed=3).hash == quick_fit(slide, seed=3).hash
    assert quick_fit(slide, seed=3).hash != quick_fit(slide, seed=4).hash


def test_nothing_of_a_held_out_block_reaches_training(slide, quick_fit, slide_copy, slide_pixels):
    """Noise for its pixels and other counts for its cells: network, head, baselines and stain are the same bits."""
    fold = gp.tl.split(slide, by="blocks", n_splits=3, buffer_um=15.0)[1]
    name = "simulated_1"
    (y0, x0, y1, x1) = np.clip(fold.test[name].boxes_um[0] / 0.5, 0, slide_pixels(slide).shape[-1])
    held = np.s_[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))]
    image = slide_pixels(slide).copy()
    image[(slice(None), *held)] = np.random.default_rng(0).integers(0, 256, image[(slice(None), *held)].shape)
    table = slide["measured"].copy()
    counts = table.X.toarray()
    counts[np.isin(table.obs["cell_id"], fold.test[name].ids)] *= 50
    table.X = sparse.csr_matrix(counts)
    other = slide_copy(slide, image=image, table=table)
    models = [quick_fit(s, fold=fold, max_epochs=2) for s in (slide, other)]
    assert models[0].hash == models[1].hash
    # the comparison is not idle
    assert quick_fit(other, max_epochs=2).hash != quick_fit(slide, max_epochs=2).hash
    assert fold.left_out > 0


def test_a_resumed_fit_is_the_undisturbed_one(slide, tmp_path, quick_fit):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.current_epoch == 1:
                raise InterruptedError

    whole = quick_fit(slide, max_epochs=3)
    with pytest.raises(InterruptedError):
        quick_fit(slide, max_epochs=3, checkpoint_dir=tmp_path, callbacks=[Stop()])
    assert quick_fit(slide, max_epochs=3, checkpoint_dir=tmp_path).hash == whole.hash
    assert whole.history["epoch"].tolist() == [0, 1, 2]
    assert {"train_loss", "val_loss"} <= set(whole.history)
    other = gp.datasets.simulate_slide(n_cells=350, n_genes=10, seed=2)
    with pytest.raises(ValueError, match=r"checkpoint_dir=.* holds a training of other slides, settings or seed"):
        quick_fit(other, max_epochs=3, checkpoint_dir=tmp_path)


def test_what_a_model_carries(slide, quick_fit):
    model = quick_fit(slide, max_epochs=0)
    table = slide["measured"]
    x, types = np.log1p(table.X.toarray()), table.obs["cell_type"].astype(str).to_numpy()
    baselines = model.baselines
    np.testing.assert_allclose(baselines["gene_mean"], x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(baselines["gene_var"], x.var(axis=0), rtol=1e-4)
    assert model.cell_types == sorted(set(types))
    for k, name in enumerate(model.cell_types):
        np.testing.assert_allclose(baselines["type_profiles"][k], x[types == name].mean(axis=0), rtol=1e-4)
    gp.tl.predict_expression(slide, model, device="cpu", progress=False)
    features = slide["insilico"].obsm["morphology"]
    ridge = (features - baselines["ridge_center"]) / baselines["ridge_scale"] @ baselines["ridge_weight"]
    ridge += baselines["ridge_intercept"]
    mse, floor = ((ridge - x) ** 2).mean(axis=0), x.var(axis=0)
    assert mse.sum() < floor.sum()  # it was fitted on these features
    assert sorted(model.gene_sets["all"]) == sorted(table.var_names)
    assert set(model.calibration) == {"expected_pcc", "expected_skill"}


def test_a_gene_set_is_the_most_spatial_genes(quick_fit):
    from ghistpy.stats.autocorrelation import morans_i

    slide = gp.datasets.simulate_slide(n_cells=300, n_genes=60, seed=3)
    model = quick_fit(slide, max_epochs=0)
    table = slide["measured"]
    distance = ((table.obsm["spatial"][:, None] - table.obsm["spatial"][None]) ** 2).sum(axis=2)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, 1:7]
    graph = sparse.csr_array((np.ones(nearest.size), (np.repeat(np.arange(300), 6), nearest.ravel())), shape=(300, 300))
    score = morans_i(np.log1p(table.X.toarray()), graph)
    expected = table.var_names[np.argsort(-score)]
    assert len(set(model.gene_sets["top20"]) & set(expected[:20])) >= 19  # a centroid may round to the other side
    assert len(model.gene_sets["top50"]) == 50
    assert "top100" not in model.gene_sets


def test_panels_may_differ(quick_fit, slide_copy):
    """The union of the panels; what a slide did not measure has no part in anything."""
    first, second = (gp.datasets.simulate_slide(n_cells=200, n_genes=8, seed=s) for s in (1, 2))
    names = list(first["measured"].var_names)
    part = slide_copy(second, table=second["measured"][:, [5, 0, 1, 2, 3]].copy())
    model = quick_fit({"a": first, "b": part}, max_epochs=1)
    assert model.genes == names
    x, y = (np.log1p(s["measured"].X.toarray()) for s in (first, second))
    both = np.concatenate([x, y]).mean(axis=0)
    np.testing.assert_allclose(model.baselines["gene_mean"][[0, 1, 2, 3, 5]], both[[0, 1, 2, 3, 5]], rtol=1e-5)
    np.testing.assert_allclose(model.baselines["gene_mean"][[4, 6, 7]], x.mean(axis=0)[[4, 6, 7]], rtol=1e-5)
    gp.tl.predict_expression(part, model, device="cpu", progress=False)
    table = part["insilico"]
    assert list(table.var_names) == names
    assert np.isfinite(table.X).all()
    assert (table.X.mean(axis=0) > 0.3 * model.baselines["gene_mean"]).all()
    some = quick_fit({"a": first, "b": part}, max_epochs=0, genes=[names[6], names[0]])
    assert some.genes == [names[6], names[0]]


def test_a_type_with_one_cell_and_cells_without_type(quick_fit):
    slide = gp.datasets.simulate_slide(n_cells=150, n_genes=6, seed=4)
    types = slide["measured"].obs["cell_type"].astype(object)
    types.iloc[10] = "T/NK (rare)"
    types.iloc[20:40] = np.nan
    types.iloc[40:50] = "unassigned"
    slide["measured"].obs["cell_type"] = pd.Categorical(types)
    model = quick_fit(slide, max_epochs=1)
    assert "T/NK (rare)" in model.cell_types
    assert not {"nan", "unassigned"} & set(model.cell_types)
    k = model.cell_types.index("T/NK (rare)")
    x = np.log1p(slide["measured"].X.toarray()[10])
    np.testing.assert_allclose(model.baselines["type_profiles"][k], x, rtol=1e-5)
    gp.tl.predict_expression(slide, model, device="cpu", progress=False)
    assert np.isfinite(slide["insilico"].X).all()


def test_measured_cells_without_nucleus_are_counted(slide, caplog, quick_fit, slide_copy):
    table = slide["measured"].copy()
    table.obs["cell_id"] = table.obs["cell_id"].to_numpy() + np.where(np.arange(table.n_obs) < 50, 10**6, 0)
    with caplog.at_level(logging.WARNING, logger="ghistpy"):
        model = quick_fit(slide_copy(slide, table=table), max_epochs=0)
    assert "50 of 350 measured instances have no nucleus" in caplog.text
    x = np.log1p(table.X.toarray()[50:])
    np.testing.assert_allclose(model.baselines["gene_mean"], x.mean(axis=0), rtol=1e-5)


def test_a_table_of_several_labels_gives_its_own_rows(slide, quick_fit, slide_copy):
    """Ids repeat between two label images: only the rows of the one that is asked for count."""
    import anndata

    table, other = slide["measured"].copy(), slide["measured"].copy()
    other.obs["region"] = pd.Categorical(["elsewhere"] * other.n_obs)
    other.X = other.X * 100
    both = anndata.concat([table, other], index_unique="-", uns_merge="first")
    both.uns["spatialdata_attrs"] = {
        "region": ["nuclei", "elsewhere"],
        "region_key": "region",
        "instance_key": "cell_id",
    }
    both.obs["region"] = both.obs["region"].astype("category")
    joined = slide_copy(slide)
    del joined.tables["measured"]
    from ghistpy.io.elements import labels_element

    joined["elsewhere"] = labels_element(np.asarray(slide["nuclei"].data.compute()), 0.5)
    joined["measured"] = both
    fold = Fold({"simulated_1": Region(table.obs["cell_id"].to_numpy())}, {}, {})
    got, expected = quick_fit(joined, max_epochs=0, fold=fold), quick_fit(slide, max_epochs=0, fold=fold)
    np.testing.assert_array_equal(got.baselines["gene_mean"], expected.baselines["gene_mean"])


def test_the_model_is_a_ghist(slide, quick_fit):
    model = quick_fit(slide, max_epochs=0, mpp=0.6)
    assert isinstance(model, GHIST)
    assert model.mpp == 0.6
    assert model.history.empty
