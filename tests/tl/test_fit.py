"""Fitting through the public verb: it repeats itself, sees nothing held out, and names what is wrong."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ghistpy as gp
from ghistpy.models import GHIST, GHISTConfig
from ghistpy.tl.split import Fold, Region

CONFIG = GHISTConfig(widths=(6, 8), embedding=8, decoder=8, random_features=16, context_um=(20.0,), tile_px=256)
QUICK = {"config": CONFIG, "accelerator": "cpu", "progress": False}


def fit(slides, **options):
    return gp.tl.fit(slides, **{**QUICK, "max_epochs": 1, **options})


def copy_of(slide, *, image=None, labels=None, table=None, mpp=0.5, attrs=None):
    """A new slide with some elements replaced."""
    from spatialdata import SpatialData

    from ghistpy.io.elements import image_element, labels_element

    return SpatialData(
        images={"he": slide["he"] if image is None else image_element(image, mpp)},
        labels={"nuclei": slide["nuclei"] if labels is None else labels_element(labels, mpp)},
        tables={"measured": slide["measured"].copy() if table is None else table},
        attrs=slide.attrs if attrs is None else attrs,
    )


def pixels(slide):
    return np.asarray(slide["he"].data.compute())


@pytest.fixture(scope="module")
def slide():
    return gp.datasets.simulate_slide(n_cells=350, n_genes=10, seed=1)


def test_same_seed_same_model(slide):
    assert fit(slide, seed=3).hash == fit(slide, seed=3).hash
    assert fit(slide, seed=3).hash != fit(slide, seed=4).hash


def test_nothing_of_a_held_out_block_reaches_training(slide):
    """Noise for its pixels and other counts for its cells: network, head, baselines and stain are the same bits."""
    fold = gp.tl.split(slide, by="blocks", n_splits=3, buffer_um=15.0)[1]
    name = "simulated_1"
    (y0, x0, y1, x1) = np.clip(fold.test[name].boxes_um[0] / 0.5, 0, pixels(slide).shape[-1])
    held = np.s_[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))]
    image = pixels(slide).copy()
    image[(slice(None), *held)] = np.random.default_rng(0).integers(0, 256, image[(slice(None), *held)].shape)
    table = slide["measured"].copy()
    counts = table.X.toarray()
    counts[np.isin(table.obs["cell_id"], fold.test[name].ids)] *= 50
    table.X = sparse.csr_matrix(counts)
    other = copy_of(slide, image=image, table=table)
    models = [fit(s, fold=fold, max_epochs=2) for s in (slide, other)]
    assert models[0].hash == models[1].hash
    # the comparison is not idle
    assert fit(other, max_epochs=2).hash != fit(slide, max_epochs=2).hash
    assert fold.left_out > 0


def test_a_resumed_fit_is_the_undisturbed_one(slide, tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.current_epoch == 1:
                raise InterruptedError

    whole = fit(slide, max_epochs=3)
    with pytest.raises(InterruptedError):
        fit(slide, max_epochs=3, checkpoint_dir=tmp_path, callbacks=[Stop()])
    assert fit(slide, max_epochs=3, checkpoint_dir=tmp_path).hash == whole.hash
    assert whole.history["epoch"].tolist() == [0, 1, 2]
    assert {"train_loss", "val_loss"} <= set(whole.history)
    other = gp.datasets.simulate_slide(n_cells=350, n_genes=10, seed=2)
    with pytest.raises(ValueError, match=r"checkpoint_dir=.* holds a training of other slides, settings or seed"):
        fit(other, max_epochs=3, checkpoint_dir=tmp_path)


def test_what_a_model_carries(slide):
    model = fit(slide, max_epochs=0)
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


def test_a_gene_set_is_the_most_spatial_genes():
    from ghistpy.stats.autocorrelation import morans_i

    slide = gp.datasets.simulate_slide(n_cells=300, n_genes=60, seed=3)
    model = fit(slide, max_epochs=0)
    table = slide["measured"]
    distance = ((table.obsm["spatial"][:, None] - table.obsm["spatial"][None]) ** 2).sum(axis=2)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, 1:7]
    graph = sparse.csr_array((np.ones(nearest.size), (np.repeat(np.arange(300), 6), nearest.ravel())), shape=(300, 300))
    score = morans_i(np.log1p(table.X.toarray()), graph)
    expected = table.var_names[np.argsort(-score)]
    assert len(set(model.gene_sets["top20"]) & set(expected[:20])) >= 19  # a centroid may round to the other side
    assert len(model.gene_sets["top50"]) == 50
    assert "top100" not in model.gene_sets


def test_panels_may_differ():
    """The union of the panels; what a slide did not measure has no part in anything."""
    first, second = (gp.datasets.simulate_slide(n_cells=200, n_genes=8, seed=s) for s in (1, 2))
    names = list(first["measured"].var_names)
    part = copy_of(second, table=second["measured"][:, [5, 0, 1, 2, 3]].copy())
    model = fit({"a": first, "b": part}, max_epochs=1)
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
    some = fit({"a": first, "b": part}, max_epochs=0, genes=[names[6], names[0]])
    assert some.genes == [names[6], names[0]]


def test_a_type_with_one_cell_and_cells_without_type():
    slide = gp.datasets.simulate_slide(n_cells=150, n_genes=6, seed=4)
    types = slide["measured"].obs["cell_type"].astype(object)
    types.iloc[10] = "T/NK (rare)"
    types.iloc[20:40] = np.nan
    slide["measured"].obs["cell_type"] = pd.Categorical(types)
    model = fit(slide, max_epochs=1)
    assert "T/NK (rare)" in model.cell_types
    assert "nan" not in model.cell_types
    k = model.cell_types.index("T/NK (rare)")
    x = np.log1p(slide["measured"].X.toarray()[10])
    np.testing.assert_allclose(model.baselines["type_profiles"][k], x, rtol=1e-5)
    gp.tl.predict_expression(slide, model, device="cpu", progress=False)
    assert np.isfinite(slide["insilico"].X).all()


def test_measured_cells_without_nucleus_are_counted(slide, caplog):
    table = slide["measured"].copy()
    table.obs["cell_id"] = table.obs["cell_id"].to_numpy() + np.where(np.arange(table.n_obs) < 50, 10**6, 0)
    with caplog.at_level(logging.WARNING, logger="ghistpy"):
        model = fit(copy_of(slide, table=table), max_epochs=0)
    assert "50 of 350 measured instances have no nucleus" in caplog.text
    x = np.log1p(table.X.toarray()[50:])
    np.testing.assert_allclose(model.baselines["gene_mean"], x.mean(axis=0), rtol=1e-5)


def test_a_table_of_several_labels_gives_its_own_rows(slide):
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
    joined = copy_of(slide)
    del joined.tables["measured"]
    from ghistpy.io.elements import labels_element

    joined["elsewhere"] = labels_element(np.asarray(slide["nuclei"].data.compute()), 0.5)
    joined["measured"] = both
    fold = Fold({"simulated_1": Region(table.obs["cell_id"].to_numpy())}, {}, {})
    got, expected = fit(joined, max_epochs=0, fold=fold), fit(slide, max_epochs=0, fold=fold)
    np.testing.assert_array_equal(got.baselines["gene_mean"], expected.baselines["gene_mean"])


# ---- spots


def spot_slide(seed, n_cells=900):
    """Circles of 50 µm whose counts are the sums of the cells in them."""
    import geopandas as gpd
    from shapely import Point
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    slide = gp.datasets.simulate_slide(n_cells=n_cells, n_genes=10, seed=seed, unpredictable_fraction=0.3)
    cells = slide["measured"]
    xy, side = cells.obsm["spatial"], cells.obsm["spatial"].max()
    steps = np.arange(25, side, 50.0)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    inside = (((xy[None] - centres[:, None]) ** 2).sum(axis=2) <= 25**2).astype(float)
    types = pd.get_dummies(cells.obs["cell_type"]).to_numpy(float)
    number = inside.sum(axis=1, keepdims=True)
    circles = gpd.GeoDataFrame({"radius": np.full(len(centres), 25.0)}, geometry=[Point(*c) for c in centres])
    circles.index = np.arange(len(centres)) + 10
    slide["spots"] = ShapesModel.parse(circles, transformations={"microns": Identity()})
    counts = inside @ cells.X.toarray()
    table = gp.io.make_table(
        counts.astype(np.float32),
        cells.var_names,
        region="spots",
        instance_key="spot_id",
        ids=circles.index.to_numpy(),
        obs={"total": counts.sum(axis=1)},
        obsm={"spatial": centres, "shares": inside @ types / np.maximum(number, 1)},
        uns={"shares_cell_types": list(cells.obs["cell_type"].cat.categories)},
    )
    del slide.tables["measured"]
    slide["measured"] = table
    slide.attrs["ghistpy"]["spot_diameter_um"] = 50.0
    return slide, cells, number.ravel()


@pytest.fixture(scope="module")
def spots():
    return spot_slide(1), spot_slide(2)


@pytest.fixture(scope="module")
def spot_model(spots):
    (slide, *_), _ = spots
    return fit(slide, supervision="spots", max_epochs=3, proportions_key="shares")


def evaluation_scale(table):
    counts = table.X.toarray() if sparse.issparse(table.X) else np.asarray(table.X)
    return np.log1p(1e4 * counts / np.maximum(table.obs["total"].to_numpy(), 1e-9)[:, None])


def test_spots_teach_more_than_their_mean(spots, spot_model):
    """On another slide: the nuclei of a spot add up to its counts, and single cells are told apart."""
    _, (other, cells, number) = spots
    assert spot_model.supervision == "spots"
    gp.tl.predict_expression(other, spot_model, device="cpu", progress=False)
    gp.tl.aggregate_spots(other)
    predicted, measured = other["insilico_spots"].copy(), other["measured"]
    predicted.X = np.expm1(predicted.X)
    enough = number >= 4
    x, y = (evaluation_scale(t)[enough] for t in (predicted, measured))
    mean = spot_model.baselines["gene_mean"]
    assert ((x - y) ** 2).mean() < 0.85 * ((mean - y) ** 2).mean()
    correlation = [np.corrcoef(x[:, g], y[:, g])[0, 1] for g in range(10)]
    assert np.median(correlation) > 0.35
    # never trained on a cell, yet cells follow their own counts
    own = np.log1p(cells.X.toarray())
    per_cell = [np.corrcoef(other["insilico"].X[:, g], own[:, g])[0, 1] for g in range(10)]
    assert np.median(per_cell) > 0.25
    # and their totals: counts per nucleus that sum to those of the spots
    total = other["insilico_spots"].obs["total"].to_numpy()[enough]
    assert np.corrcoef(total, measured.obs["total"][enough])[0, 1] > 0.6
    assert 0.7 < total.sum() / measured.obs["total"][enough].sum() < 1.4


def test_types_of_spots(spots, spot_model):
    (_, cells, _), (other, other_cells, _) = spots
    assert spot_model.cell_types == list(cells.obs["cell_type"].cat.categories)
    gp.tl.predict_expression(other, spot_model, device="cpu", progress=False)
    truth = other_cells.obs["cell_type"].astype(str).to_numpy()
    frequent = pd.Series(truth).value_counts(normalize=True).iloc[0]
    assert (other["insilico"].obs["cell_type"].astype(str).to_numpy() == truth).mean() > frequent + 0.1


def test_spots_without_types_get_states_or_a_reference(spots, caplog):
    (slide, cells, _), _ = spots
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        latent = fit(slide, supervision="spots", max_epochs=0)
    assert "latent states stand in" in caplog.text
    assert latent.cell_types == [f"state_{k + 1}" for k in range(len(latent.cell_types))]
    profiles = pd.DataFrame(
        np.log1p(cells.varm["type_profiles"].T),
        index=list(cells.obs["cell_type"].cat.categories),
        columns=cells.var_names,
    )
    known = fit(slide, supervision="spots", max_epochs=0, reference=profiles.iloc[:, ::-1])
    assert known.cell_types == list(profiles.index)


def test_held_out_blocks_of_spots(spots):
    (slide, *_), _ = spots
    fold = gp.tl.split(slide, by="blocks", n_splits=3, buffer_um=30)[0]
    image = pixels(slide).copy()
    box = fold.test["simulated_1"].boxes_um[0] / 0.5
    axis = int(np.isfinite(box[1]) or np.isfinite(box[3]))
    low, high = (int(np.clip(v, 0, 1e6)) for v in (np.floor(box[axis]), np.ceil(box[axis + 2])))
    held = [slice(None)] * 3
    held[axis + 1] = slice(low, high)
    image[tuple(held)] = 9
    from ghistpy.io.elements import image_element

    noisy, _, _ = spot_slide(1)
    del noisy.images["he"]
    noisy["he"] = image_element(image, 0.5)
    options = {"supervision": "spots", "fold": fold, "proportions_key": "shares"}
    assert fit(noisy, **options).hash == fit(slide, **options).hash


# ---- bad input


def test_no_microns_per_pixel(slide):
    from spatialdata.transformations import Identity, set_transformation

    other = copy_of(slide, image=pixels(slide))
    set_transformation(other["he"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match=r"mpp="):
        fit(other)


def test_labels_and_image_of_different_shape(slide):
    other = copy_of(slide, image=pixels(slide)[:, :-3])
    with pytest.raises(ValueError, match=r"labels_key='nuclei' has shape .* but image_key='he' has"):
        fit(other)


def test_no_nucleus(slide):
    empty = np.zeros(slide["nuclei"].shape, np.int32)
    with pytest.raises(ValueError, match="labels_key='nuclei' of sample 'simulated_1' holds no nucleus"):
        fit(copy_of(slide, labels=empty))


def with_counts(slide, change, units="counts"):
    table = slide["measured"].copy()
    X = table.X.toarray().astype(np.float64)
    table.X = change(X)
    table.uns["ghistpy"]["units"] = units
    return copy_of(slide, table=table)


def put(value):
    def change(X):
        X[3, 4] = value
        return X

    return change


@pytest.mark.parametrize(
    ("change", "units", "message"),
    [
        (put(np.nan), "counts", r"'measured' of sample 'simulated_1': X holds 1 NaN or infinite values"),
        (put(np.inf), "counts", "X holds 1 NaN or infinite values"),
        (put(-2.0), "counts", "X holds 1 negative values; training needs raw counts"),
        (np.log1p, "counts", r"X holds fractions \(e.g. .*\), so it looks normalised or log-transformed"),
        (np.log1p, "log1p(expected count)", r"holds 'log1p\(expected count\)'; training needs raw counts"),
    ],
)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_values_that_are_no_counts(slide, change, units, message, is_sparse):
    stored = (lambda X: sparse.csr_matrix(change(X))) if is_sparse else change
    with pytest.raises(ValueError, match=message):
        fit(with_counts(slide, stored, units))


def test_fractions_far_down_are_found():
    """Not in the first rows of a large table."""
    from anndata import AnnData

    from ghistpy.tl._training import raw_counts

    X = sparse.csr_matrix(np.ones((3000, 100), np.float32))
    raw_counts(AnnData(X), "table")
    X.data[-1] = 1.5
    with pytest.raises(ValueError, match=r"table: X holds fractions \(e.g. 1.5\)"):
        raw_counts(AnnData(X), "table")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["ABC", "DEF"]}, r"genes: none of \['ABC', 'DEF'\].* is in table_key='measured', which has \["),
        ({"genes": ["ABC", "SIM0001"]}, r"genes: .*\['ABC'"),
        ({"genes": []}, "genes: expected at least one"),
        ({"cell_type_key": "leiden"}, r"cell_type_key='leiden' is not in obs .* has \[.*'cell_type'"),
        ({"supervision": "bulk"}, "supervision='bulk': expected 'cells' or 'spots'"),
        ({"supervision": "spots"}, r"spot_diameter_um'\] is missing"),
        ({"max_epochs": -1}, "max_epochs=-1: expected 0 or a positive number"),
        ({"max_epochs": 1.5}, "max_epochs=1.5"),
        ({"seed": -1}, "seed=-1: expected 0 or a positive whole number"),
        ({"table_key": "nope"}, "table_key='nope'.*measured"),
        ({"labels_key": "nope"}, "labels_key='nope'.*nuclei"),
        ({"image_key": "nope"}, "image_key='nope'.*he"),
        (
            {"fold": Fold({"x": Region(np.arange(3))}, {}, {})},
            r"fold names samples \['x'\] .* sdatas \['simulated_1'\]",
        ),
        ({"fold": Fold({"simulated_1": Region(np.array([10**9]))}, {}, {})}, "fold: none of its training ids is in"),
        ({"fold": Fold({}, {}, {})}, "fold: it has no training ids; make it with tl.split"),
    ],
)
def test_refuses(slide, options, message):
    with pytest.raises(ValueError, match=message):
        fit(slide, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.obs.update({"cell_id": t.obs["cell_id"] + 10**7}), r"none of its 350 ids .* is in labels_key"),
        (
            lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), [f"c{i}" for i in range(350)]),
            "none of its 350 ids",
        ),
        (
            lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), np.arange(350) + 0.5),
            "must be integers or strings",
        ),
        (lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), np.ones(350, int)), r"ids repeat: \[1\]"),
        (lambda t: setattr(t, "var_names", ["a", "a", *t.var_names[2:]]), r"gene names repeat: \['a'\]"),
        (lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_type"), pd.Categorical([None] * 350)), "no cell .* type"),
        (
            lambda t: t.uns["spatialdata_attrs"].update(region="elsewhere"),
            r"annotates \['elsewhere'\], not labels 'nuclei'",
        ),
        (lambda t: t.uns.pop("spatialdata_attrs"), "annotates (None|no element)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_tables_that_do_not_belong(slide, change, message):
    other = copy_of(slide)
    table = slide["measured"].copy()
    table.uns = {**table.uns, "spatialdata_attrs": dict(table.uns["spatialdata_attrs"])}
    change(table)
    other.tables.data["measured"] = table  # past the checks of SpatialData, as a table on disk comes
    fold = Fold({"simulated_1": Region(slide["measured"].obs["cell_id"].to_numpy())}, {}, {})
    with pytest.raises(ValueError, match=message):
        fit(other, fold=fold)


def test_everything_is_held_out(slide):
    fold = Fold(
        {"simulated_1": Region(slide["measured"].obs["cell_id"].to_numpy())},
        {},
        {"simulated_1": Region(np.zeros(0, np.int64), np.array([[5.0, -np.inf, np.inf, np.inf]]))},
    )
    with pytest.raises(ValueError, match=r"none of the measured instances of \['simulated_1'\] has a nucleus outside"):
        fit(slide, fold=fold)


def test_spots_without_nuclei(spots):
    (slide, *_), _ = spots
    from spatialdata.transformations import Scale, set_transformation

    far, _, _ = spot_slide(1, n_cells=200)
    set_transformation(far["spots"], Scale([1e4, 1e4], axes=("x", "y")), "microns")
    with pytest.raises(ValueError, match="no nucleus lies in any of its .* spots"):
        fit(far, supervision="spots")
    with pytest.raises(ValueError, match=r"proportions_key='types' is not in obsm .* there are \[.*'shares'"):
        fit(slide, supervision="spots", proportions_key="types")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (pd.DataFrame([[1.0]], columns=["zzz"], index=["T"]), "reference: shares no gene with the panel"),
        (pd.DataFrame(-np.ones((1, 1)), columns=["first"], index=["T"]), "expected finite log1p values"),
    ],
)
def test_references_that_do_not_fit(spots, reference, message):
    (slide, *_), _ = spots
    reference = reference.rename(columns={"first": slide["measured"].var_names[0]})
    with pytest.raises(ValueError, match=message):
        fit(slide, supervision="spots", reference=reference)


def test_the_model_is_a_ghist(slide):
    model = fit(slide, max_epochs=0, config=dataclasses.replace(CONFIG, mpp=0.6))
    assert isinstance(model, GHIST)
    assert model.mpp == 0.6
    assert model.history.empty
