"""Cross-fitted baselines: what they may see, and their values."""

import numpy as np
from sklearn.linear_model import Ridge

import ghistpy as gp
from ghistpy.get.pairs import pair_tables
from ghistpy.tl._baselines import build_baselines
from ghistpy.tl._blocks import CrossFit, spatial_folds

_ALL = ("global_mean", "type_mean", "position", "morphology")


def test_blocks_are_apart_and_balanced():
    xy = np.random.default_rng(0).uniform(0, 3000, (4000, 2))
    fold = spatial_folds(xy)
    assert np.bincount(fold).min() > 0.1 * len(xy)
    crossfit = CrossFit(xy)
    assert crossfit.buffer_um == 50
    assert np.concatenate([test for _, test in crossfit.splits]).size == len(xy)
    for train, test in crossfit.splits:
        gap = np.sqrt(((xy[test, None] - xy[None, train]) ** 2).sum(2).min())
        assert gap > 50
    moved = spatial_folds(xy[::-1])[::-1]
    np.testing.assert_array_equal(moved, fold)


def test_cross_fitted_baselines_do_not_see_what_they_predict(cells):
    pairs = pair_tables(cells.sdata, "measured", "insilico")
    test = CrossFit(pairs.xy).splits[0][1]
    columns = np.arange(8)
    before = {m.name: m.values(columns, pairs.truth.toarray()) for m in build_baselines(pairs, None, _ALL)}
    changed = pairs.truth.tolil()
    changed[test] = 9.0
    pairs.truth = changed.tocsc()
    k = pairs.notes["position_neighbours"]
    after = {m.name: m.values(columns, pairs.truth.toarray()) for m in build_baselines(pairs, None, _ALL)}
    assert set(before) == {*_ALL, "oracle_type_mean"}
    for name, values in before.items():
        if name == "position" and pairs.notes["position_neighbours"] != k:
            continue
        np.testing.assert_allclose(after[name][test], values[test], atol=1e-10, err_msg=name)
        assert np.abs(after[name] - values).max() > 0.1, name


def test_cross_fitted_values_equal_a_plain_loop(cells):
    pairs = pair_tables(cells.sdata, "measured", "insilico")
    truth, crossfit = pairs.truth.toarray(), CrossFit(pairs.xy)
    got = {m.name: m.values(np.arange(8), truth) for m in build_baselines(pairs, None, _ALL)}
    features = cells.sdata["insilico"].obsm["morphology"].astype(float)
    for train, test in crossfit.splits:
        others = crossfit.fold != crossfit.fold[test[0]]
        np.testing.assert_allclose(got["global_mean"][test], np.tile(truth[others].mean(0), (len(test), 1)))
        for c in range(3):
            rows = test[cells.predicted_code[test] == c]
            want = truth[others & (cells.predicted_code == c)].mean(0)
            np.testing.assert_allclose(got["type_mean"][rows], np.tile(want, (len(rows), 1)))
        # the penalty is one of the grid; the fit is that of scikit-learn
        z = (features - features[train].mean(0)) / features[train].std(0)
        fits = [Ridge(a * len(train)).fit(z[train], truth[train]).predict(z[test]) for a in np.geomspace(1e-4, 10, 11)]
        assert min(np.abs(f - got["morphology"][test]).max() for f in fits) < 1e-8


def test_position_finds_a_smooth_map_and_nothing_in_noise(slide_maker):
    slide = slide_maker(side=400)
    rng = np.random.default_rng(0)
    n = len(slide.ids)
    wave = 5 * (1 + np.sin(slide.xy[:, 0] / 30))
    counts = rng.poisson(np.column_stack([wave] * 4 + [np.full(n, 5.0)] * 4)).astype(np.float32)
    slide.sdata["measured"].X = counts
    gp.tl.evaluate(slide.sdata, baselines=("position",))
    frame = gp.get.evaluation(slide.sdata).query("level == 'gene' and method == 'position' and metric == 'pearson'")
    r = frame.set_index("name")["value"].reindex(slide.sdata["measured"].var_names).to_numpy()
    assert r[:4].min() > 0.6
    assert np.abs(r[4:]).max() < 0.15


def test_few_cells_leave_baselines_out_with_a_reason(cells, caplog):
    cells.sdata.tables["insilico"] = cells.sdata["insilico"][:5].copy()
    gp.tl.evaluate(cells.sdata)
    left_out = gp.get.evaluation(cells.sdata).attrs["notes"]["baselines_left_out"]
    assert set(left_out) == {*_ALL, "oracle_type_mean"}
    assert "5 observations are too few" in left_out["position"]
    assert "baseline 'position' is left out" in caplog.text
