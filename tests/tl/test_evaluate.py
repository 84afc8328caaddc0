"""evaluate against numbers computed apart from it, and against inputs that must not pass."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import spatialdata
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score

import ghistpy as gp
from ghistpy.io import make_table
from ghistpy.stats import depth_adjusted_pearson


def _values(sdata, level="gene", **where):
    """metric -> name -> value of one method."""
    table_key = where.pop("table_key", "insilico")
    frame = gp.get.evaluation(sdata, table_key=table_key)
    frame = frame[(frame["level"] == level) & (frame["method"] == where.get("method", "model"))]
    return frame.pivot(index="metric", columns="name", values="value")


def _model(slide, supervision="cells"):
    """What evaluate reads of a GHIST model, made from the simulation."""
    genes = [*reversed(slide.sdata["insilico"].var_names), "EXTRA"]
    order = [7, 6, 5, 4, 3, 2, 1, 0]
    profiles = np.column_stack([np.log1p(slide.profile)[:, order], np.zeros(3)])
    rng = np.random.default_rng(5)
    f = 3 if supervision == "cells" else 4
    return SimpleNamespace(
        genes=genes,
        cell_types=["B", "T/NK", "Tumor"],
        supervision=supervision,
        gene_sets={"top3": genes[:3], "with a stranger": ["G1", "NOT MEASURED"]},
        baselines={
            "gene_mean": profiles.mean(0),
            "gene_var": profiles.var(0),
            "type_profiles": profiles,
            "ridge_center": np.arange(f) / 10,
            "ridge_scale": np.ones(f) * 2,
            "ridge_weight": rng.normal(size=(f, 9)),
            "ridge_intercept": rng.normal(size=9),
        },
    )


def test_pairs_shuffled_tables_and_reports_what_is_unmatched(cells):
    sdata = cells.sdata
    rng = np.random.default_rng(0)
    keep = rng.permutation(625)[:600]
    sdata.tables["measured"] = sdata["measured"][np.sort(keep)[::-1]].copy()
    sdata.tables["insilico"] = sdata["insilico"][rng.permutation(625)[:580], ::-1].copy()
    gp.tl.evaluate(sdata)
    measured = sdata["measured"].to_df().set_index(sdata["measured"].obs["cell_id"])
    predicted = sdata["insilico"].to_df().set_index(sdata["insilico"].obs["cell_id"])
    ids = measured.index.intersection(predicted.index)
    got = _values(sdata)
    for gene in predicted.columns:
        t, p = np.log1p(measured.loc[ids, gene].astype(float)), predicted.loc[ids, gene].astype(float)
        assert got.loc["pearson", gene] == pytest.approx(pearsonr(t, p)[0], abs=1e-10)
        assert got.loc["rmse", gene] == pytest.approx(np.sqrt(np.mean((t - p) ** 2)), rel=1e-10)
        assert got.loc["variance_ratio", gene] == pytest.approx(p.var() / t.var(), rel=1e-10)
    notes = gp.get.evaluation(sdata).attrs["notes"]
    assert notes["n"] == len(ids)
    assert notes["n_measured_unmatched"] == 600 - len(ids) > 0
    assert notes["n_predicted_unmatched"] == 580 - len(ids) > 0


def test_baselines_of_the_model_are_its_training_data(cells):
    sdata, model = cells.sdata, _model(cells)
    gp.tl.evaluate(sdata, model=model)
    truth = np.log1p(cells.counts)
    table = sdata["insilico"]
    own = model.baselines
    expect = {
        "global_mean": np.broadcast_to(own["gene_mean"][7::-1], truth.shape),
        "type_mean": own["type_profiles"][cells.predicted_code][:, 7::-1],
        "oracle_type_mean": own["type_profiles"][cells.code][:, 7::-1],
        "morphology": (
            (table.obsm["morphology"] - own["ridge_center"]) / 2 @ own["ridge_weight"] + own["ridge_intercept"]
        )[:, 7::-1],
    }
    mse = {name: ((truth - p) ** 2).mean(0) for name, p in expect.items()}
    for name, p in expect.items():
        got = _values(sdata, method=name)
        np.testing.assert_allclose(got.loc["rmse"], np.sqrt(mse[name]), rtol=1e-6)
        np.testing.assert_allclose(got.loc["skill"], 1 - mse[name] / mse["type_mean"], rtol=1e-5, atol=1e-9)
        if name == "global_mean":
            assert "pearson" not in got.index
            continue
        want = [pearsonr(truth[:, g], p[:, g])[0] for g in range(8)]
        np.testing.assert_allclose(got.loc["pearson"], want, atol=1e-6)
    skill = 1 - ((truth - table.X) ** 2).mean(0) / mse["type_mean"]
    np.testing.assert_allclose(_values(sdata).loc["skill"], skill, rtol=1e-5)
    frame = gp.get.evaluation(sdata)
    sources = frame.groupby("method", observed=True)["source"].first()
    assert sources["morphology"] == sources["type_mean"] == "training data of the model"
    assert sources["position"] == "this slide, cross-fitted on spatial blocks"


def test_another_model_is_refused(cells):
    cells.sdata["insilico"].uns["ghistpy"]["model_hash"] = "aa"
    model = _model(cells)
    model.hash = "aa"
    gp.tl.evaluate(cells.sdata, model=model)
    model.hash = "bb"
    with pytest.raises(ValueError, match="model: its hash is bb, but predicted='insilico' was made by the model aa"):
        gp.tl.evaluate(cells.sdata, model=model)


def test_gene_sets_of_the_model(cells):
    sdata, model = cells.sdata, _model(cells)
    gp.tl.evaluate(sdata, model=model)
    genes = _values(sdata)
    sets = _values(sdata, level="gene_set")
    assert sets.loc["pearson", "top3"] == pytest.approx(genes.loc["pearson", ["G7", "G6", "G5"]].median())
    assert sets.loc["rmse_mean", "top3"] == pytest.approx(genes.loc["rmse", ["G7", "G6", "G5"]].mean())
    frame = gp.get.evaluation(sdata)
    assert frame.attrs["notes"]["gene_sets_missing_genes"] == {"with a stranger": 1}
    assert frame.attrs["notes"]["gene_sets_chosen_on"] == "training data of the model"
    members = gp.get.evaluation(sdata, part="gene_sets")
    assert members.loc[members["gene_set"] == "top3", "gene"].tolist() == ["G7", "G6", "G5"]
    gp.tl.evaluate(sdata, gene_sets={"mine": ["G0"]}, baselines=())
    assert "mine" in _values(sdata, level="gene_set").columns


def test_sets_chosen_here_say_so(slide_maker):
    slide = slide_maker()
    table = slide.sdata["insilico"]
    kw = {"region": "nuclei", "instance_key": "cell_id", "ids": slide.ids}
    genes = [f"g{i}" for i in range(24)]
    slide.sdata.tables["measured"] = make_table(np.tile(slide.counts, 3).astype(np.float32), genes, **kw)
    slide.sdata.tables["insilico"] = make_table(
        np.tile(table.X, 3), genes, obsm={"spatial": slide.xy}, uns={"ghistpy": table.uns["ghistpy"]}, **kw
    )
    gp.tl.evaluate(slide.sdata, baselines=("global_mean",))
    assert _values(slide.sdata, level="gene_set").columns.tolist() == ["top20 (chosen on the evaluated slide)"]
    notes = gp.get.evaluation(slide.sdata).attrs["notes"]
    assert notes["gene_sets_chosen_on"] == "highest Moran's I on the evaluated slide"
    assert notes["skill_reference"] == "absent: no type_mean"


def test_a_constant_gene_is_counted(cells):
    sdata = cells.sdata
    sdata["measured"].X[:, 2] = 3
    gp.tl.evaluate(sdata, baselines=("type_mean",))
    overall = _values(sdata, level="overall")["all"]
    genes = _values(sdata).loc["pearson"]
    assert np.isnan(genes["G2"])
    assert overall["pearson_n_nan"] == 1
    assert overall["pearson"] == pytest.approx(genes.drop("G2").median())
    assert overall["pearson_median_nan0"] == pytest.approx(genes.fillna(0).median())


def test_cell_types_equal_sklearn_and_a_type_with_one_cell(cells):
    sdata = cells.sdata
    labels = sdata["measured"].obs["cell_type"].astype(object)
    labels.iloc[0], labels.iloc[1] = "Mast", None
    sdata["measured"].obs["cell_type"] = pd.Categorical(labels)
    gp.tl.evaluate(sdata)
    truth, guess = labels.drop(labels.index[1]), sdata["insilico"].obs["cell_type"].drop(labels.index[1])
    overall = _values(sdata, level="overall")["all"]
    assert overall["accuracy"] == accuracy_score(truth, guess)
    assert overall["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    types = _values(sdata, level="cell_type")
    assert types.loc["f1", "Mast"] == 0
    assert np.isnan(types.loc["pearson", "Mast"])
    assert types.loc["proportion_measured", "T/NK"] == pytest.approx((truth == "T/NK").mean())
    confusion = gp.get.evaluation(sdata, part="confusion")
    cell = confusion[(confusion["measured"] == "T/NK") & (confusion["predicted"] == "Tumor")]["n"].item()
    assert cell == ((truth == "T/NK") & (guess == "Tumor")).sum()
    notes = gp.get.evaluation(sdata).attrs["notes"]
    assert (notes["n_without_type"], notes["n_in_types_too_small"]) == (1, 1)
    # nobody else is a Mast cell or unlabelled: both read the mean of the other blocks
    assert notes["n_oracle_type_mean_fallback"] == 2


def test_within_type_is_the_part_that_types_do_not_explain(cells):
    gp.tl.evaluate(cells.sdata)
    got = _values(cells.sdata).loc["within_type_pearson"]
    truth, predicted = np.log1p(cells.counts), cells.sdata["insilico"].X.astype(float)
    for values in (truth, predicted):
        for c in range(3):
            values[cells.code == c] -= values[cells.code == c].mean(0)
    want = [pearsonr(truth[:, g], predicted[:, g])[0] for g in range(8)]
    np.testing.assert_allclose(got, want, atol=1e-8)
    by_type = _values(cells.sdata, level="cell_type").loc["pearson", "B"]
    rows = cells.code == 0
    assert by_type == pytest.approx(np.median([pearsonr(truth[rows, g], predicted[rows, g])[0] for g in range(8)]))


def test_types_with_other_names_are_absent_and_said_so(cells):
    cells.sdata["insilico"].obs["cell_type"] = "state_1"
    gp.tl.evaluate(cells.sdata)
    notes = gp.get.evaluation(cells.sdata).attrs["notes"]
    assert "no name in common" in notes["cell_types"]
    assert "accuracy" not in _values(cells.sdata, level="overall").index
    with pytest.raises(ValueError, match="part='confusion' is absent"):
        gp.get.evaluation(cells.sdata, part="confusion")


def test_spots_are_compared_at_their_depth(spots):
    sdata = spots.sdata
    sdata["spots"].loc[[100, 101], "radius"] = 1e-3  # spots without nuclei
    gp.tl.aggregate_spots(sdata)
    sdata["measured"].obs.loc["102", "total"] = 0.0
    gp.tl.evaluate(sdata, predicted="insilico_spots", min_total=1)
    table = sdata["insilico_spots"]
    keep = (table.obs["n_nuclei"] > 0).to_numpy() & (sdata["measured"].obs["total"] > 0).to_numpy()
    total = sdata["measured"].obs["total"].to_numpy()[keep]
    truth = np.log1p(1e4 * sdata["measured"].X[keep] / total[:, None])
    share = np.expm1(table.X[keep].astype(float)) / table.obs["total"].to_numpy()[keep, None]
    predicted = np.log1p(1e4 * share)
    got = _values(sdata, table_key="insilico_spots")
    want = [pearsonr(truth[:, g], predicted[:, g])[0] for g in range(8)]
    np.testing.assert_allclose(got.loc["pearson"], want, atol=1e-6)
    np.testing.assert_allclose(
        got.loc["pearson_depth_adjusted"], depth_adjusted_pearson(truth, predicted, total), atol=1e-6
    )
    notes = gp.get.evaluation(sdata, table_key="insilico_spots").attrs["notes"]
    empty = int((table.obs["n_nuclei"] == 0).sum())
    assert empty >= 1
    assert (notes["n_spots_without_prediction"], notes["n_spots_below_min_total"], notes["n"]) == (empty, 1, 63 - empty)
    assert notes["scale"] == "log1p(1e4 * count / total)"
    ceiling = _values(sdata, table_key="insilico_spots", method="noise_ceiling")
    assert set(ceiling.index) == {"pearson", "pearson_depth_adjusted"}


def test_spot_baselines_of_a_model(spots):
    sdata, model = spots.sdata, _model(spots, "spots")
    gp.tl.aggregate_spots(sdata)
    gp.tl.evaluate(sdata, model=model, predicted="insilico_spots")
    table = sdata["insilico_spots"]
    total = sdata["measured"].obs["total"].to_numpy()[:, None]
    truth = np.log1p(1e4 * sdata["measured"].X / total)
    mixture = np.log1p(table.obsm["composition"] @ np.expm1(model.baselines["type_profiles"][:, 7::-1]))
    got = _values(sdata, table_key="insilico_spots", method="type_mean").loc["rmse"]
    np.testing.assert_allclose(got, np.sqrt(((truth - mixture) ** 2).mean(0)), rtol=1e-5)
    features = np.column_stack([table.obsm["morphology"], np.log1p(table.obs["n_nuclei"])])
    own = model.baselines
    ridge = ((features - own["ridge_center"]) / 2 @ own["ridge_weight"] + own["ridge_intercept"])[:, 7::-1]
    got = _values(sdata, table_key="insilico_spots", method="morphology").loc["rmse"]
    np.testing.assert_allclose(got, np.sqrt(((truth - ridge) ** 2).mean(0)), rtol=1e-5)


def test_a_model_on_another_scale_lends_no_baseline(spots):
    gp.tl.aggregate_spots(spots.sdata)
    gp.tl.evaluate(spots.sdata, model=_model(spots, "cells"), predicted="insilico_spots")
    frame = gp.get.evaluation(spots.sdata, table_key="insilico_spots")
    assert "learnt from cells" in frame.attrs["notes"]["model_baselines"]
    assert set(frame.attrs["notes"]["baselines"].values()) == {"this slide, cross-fitted on spatial blocks"}


_ALL = ("global_mean", "type_mean", "position", "morphology")


def test_fold_restricts_to_its_test_ids(cells):
    ids = cells.ids[100:400]
    fold = SimpleNamespace(test={"S1": SimpleNamespace(ids=ids)})
    gp.tl.evaluate(cells.sdata, fold=fold, baselines=())
    truth, predicted = np.log1p(cells.counts[100:400]), cells.sdata["insilico"].X[100:400]
    got = _values(cells.sdata).loc["pearson"]
    np.testing.assert_allclose(got, [pearsonr(truth[:, g], predicted[:, g])[0] for g in range(8)], atol=1e-6)
    notes = gp.get.evaluation(cells.sdata).attrs["notes"]
    assert (notes["n"], notes["n_outside_fold"]) == (300, 325)
    with pytest.raises(ValueError, match="fold: sample 'S1'"):
        gp.tl.evaluate(cells.sdata, fold=SimpleNamespace(test={"S2": fold.test["S1"]}))
    with pytest.raises(ValueError, match="holds no id"):
        gp.tl.evaluate(cells.sdata, fold=SimpleNamespace(test={"S1": SimpleNamespace(ids=np.zeros(0, int))}))
    with pytest.raises(ValueError, match="no pair is left"):
        gp.tl.evaluate(cells.sdata, fold=SimpleNamespace(test={"S1": SimpleNamespace(ids=np.array([-5]))}))


def test_result_survives_a_store_and_the_store_is_not_touched(cells, tmp_path):
    path = tmp_path / "s.zarr"
    cells.sdata.write(path)
    sdata = spatialdata.read_zarr(path)

    def digest():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()

    before = digest()
    gp.tl.evaluate(sdata)
    assert digest() == before
    gp.io.save(sdata, "insilico")
    again = spatialdata.read_zarr(path)
    for part in ("metrics", "confusion", "gene_sets"):
        want, got = gp.get.evaluation(sdata, part=part), gp.get.evaluation(again, part=part)
        pd.testing.assert_frame_equal(got.astype(object), want.astype(object), check_dtype=False)
        assert got.attrs["notes"] == want.attrs["notes"]
    assert again["insilico"].uns["ghistpy"]["units"] == "log1p(expected count)"
    assert gp.get.evaluation(again["insilico"]).shape == gp.get.evaluation(again).shape


def test_arguments_that_cannot_be_right(cells):
    sdata = cells.sdata
    with pytest.raises(ValueError, match="predicted='x' is not among the tables"):
        gp.tl.evaluate(sdata, predicted="x")
    with pytest.raises(ValueError, match=r"baselines: unknown \['knn'\]"):
        gp.tl.evaluate(sdata, baselines=("knn",))
    with pytest.raises(ValueError, match="layer='counts' is not in measured"):
        gp.tl.evaluate(sdata, layer="counts")
    with pytest.raises(ValueError, match="key_added='units' is an entry of the provenance"):
        gp.tl.evaluate(sdata, key_added="units")
    with pytest.raises(ValueError, match="key_added='a/b'"):
        gp.tl.evaluate(sdata, key_added="a/b")
    model = _model(cells)
    model.genes[0] = "OTHER"
    with pytest.raises(ValueError, match="does not know 1 of 8 predicted genes"):
        gp.tl.evaluate(sdata, model=model)
    model = _model(cells)
    model.baselines["ridge_center"] = np.zeros(5)
    with pytest.raises(ValueError, match="knows 5 features, the predicted table has 3"):
        gp.tl.evaluate(sdata, model=model)
    with pytest.raises(ValueError, match=r"no such evaluation \(there are \[\]\); run tl.evaluate first"):
        gp.get.evaluation(sdata)
    with pytest.raises(ValueError, match="table_key='x'"):
        gp.get.evaluation(sdata, table_key="x")


def test_counts_in_a_layer(cells):
    gp.tl.evaluate(cells.sdata, baselines=())
    want = _values(cells.sdata)
    table = cells.sdata["measured"]
    table.layers["counts"] = table.X.copy()
    table.X = np.log1p(table.X)
    table.uns["log1p"] = {"base": None}
    gp.tl.evaluate(cells.sdata, layer="counts", baselines=())
    pd.testing.assert_frame_equal(_values(cells.sdata), want)


def test_one_nucleus_and_none(cells):
    cells.sdata.tables["insilico"] = cells.sdata["insilico"][:1].copy()
    gp.tl.evaluate(cells.sdata)
    assert np.isnan(_values(cells.sdata).loc["pearson"]).all()
    assert np.isfinite(_values(cells.sdata).loc["rmse"]).all()
    empty = make_table(
        np.zeros((0, 8), np.float32),
        cells.sdata["measured"].var_names,
        region="nuclei",
        instance_key="cell_id",
        ids=np.zeros(0, np.int64),
        uns={"ghistpy": {"units": "log1p(expected count)"}},
    )
    cells.sdata.tables["insilico"] = empty
    with pytest.raises(ValueError, match=r"predicted='insilico' \(0 rows\) share no id"):
        gp.tl.evaluate(cells.sdata)


def test_without_morphology_coordinates_or_types(cells):
    sdata = cells.sdata
    for key in ("morphology", "spatial"):
        del sdata["insilico"].obsm[key]
    del sdata["insilico"].obs["cell_type"]
    del sdata["measured"].obs["cell_type"]
    gp.tl.evaluate(sdata)
    notes = gp.get.evaluation(sdata).attrs["notes"]
    assert set(notes["baselines_left_out"]) == set(_ALL)
    assert notes["coordinates"].startswith("absent")
    assert notes["cell_types"] == "absent: no measured types"
    assert notes["within_type"] == "absent: no types"
    assert json.dumps(notes)


def test_the_verb_stays_the_verb():
    import importlib

    importlib.import_module("ghistpy.tl.evaluate")
    importlib.import_module("ghistpy.tl.aggregate")
    assert callable(gp.tl.evaluate)
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        _ = gp.tl.evaluat
