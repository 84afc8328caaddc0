"""Figures of patients: what is drawn equals what is stored."""

from itertools import pairwise

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import ghistpy as gp
from ghistpy.pl._labels import place_labels


def _patients(n=80):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 40))
    months = rng.exponential(30 * np.exp(-X[:, 3]))
    stop = rng.uniform(5, 60, n)
    var = pd.DataFrame({"gene": [f"G{i:02d}" for i in range(40)], "cell_type": "T/NK", "kind": "gene_mean_celltype"})
    var.index = var["cell_type"] + "--" + var["gene"]
    obs = pd.DataFrame(
        {"months": np.minimum(months, stop), "dead": months <= stop, "arm": np.array(["a", "b"])[np.arange(n) % 2]},
        index=[f"P{i}" for i in range(n)],
    )
    X[:, :4] += 1.5 * (obs["arm"] == "b").to_numpy()[:, None]
    obs["age"] = rng.normal(size=n)
    return anndata.AnnData(X, obs=obs, var=var, uns={"ghistpy": {"units": "log1p(expected count)"}})


@pytest.fixture(scope="module")
def _analysed():
    adata = _patients()
    follow_up = {"time_key": "months", "event_key": "dead"}
    gp.tl.survival_cv(
        adata, **follow_up, covariates=["age"], n_features=2, n_repeats=4, n_permutations=4, progress=False
    )
    gp.tl.stratify_risk(adata)
    gp.tl.kaplan_meier(adata, **follow_up)
    gp.tl.kaplan_meier(adata, **follow_up, groupby="arm", key_added="by_arm")
    gp.tl.predict_outcome(adata, outcome="arm", n_repeats=3, n_permutations=4, permutation_repeats=1, progress=False)
    gp.tl.differential_state(adata, groupby="arm")
    return adata


@pytest.fixture
def analysed(_analysed):
    return _analysed.copy()


def _by_gid(ax, gid):
    return [a for a in ax.get_children() if a.get_gid() == gid]


def test_kaplan_meier_draws_the_stored_curves(analysed):
    ax = gp.pl.kaplan_meier(analysed)
    curves = gp.get.kaplan_meier(analysed, part="curves")
    for name in ("high risk", "low risk"):
        curve = curves[curves["group"] == name]
        (line,) = _by_gid(ax, f"curve:{name}")
        np.testing.assert_allclose(line.get_ydata(), curve["survival"])
        (ticks,) = _by_gid(ax, f"censored:{name}")
        assert len(ticks.get_xdata()) == (curve["censored"] > 0).sum()
        (band,) = _by_gid(ax, f"band:{name}")
        assert band.get_datalim(ax.transData).y0 == pytest.approx(curve["ci_low"].min())
        stored = gp.get.kaplan_meier(analysed, part="at_risk").query("group == @name")["at_risk"]
        assert [t.get_text() for t in _by_gid(ax, f"at_risk:{name}")] == [str(n) for n in stored]
    test = gp.get.kaplan_meier(analysed).iloc[0]
    assert f"χ² = {test['chi2']:.2f}" in ax.get_title(loc="left")
    assert "descriptive p " in ax.get_title(loc="left")
    assert "this p is no test" in ax.get_title(loc="left")
    assert f"permutation p = {test['pval_permutation']:.3f}" in ax.get_title(loc="left")
    assert "descriptive" not in gp.pl.kaplan_meier(analysed, key="by_arm").get_title(loc="left")
    assert not list(gp.pl.kaplan_meier(analysed, risk_table=False).texts)
    assert ax.get_ylabel() == "survival (event: dead)"
    assert gp.pl.kaplan_meier(analysed, endpoint="overall survival").get_ylabel() == "overall survival"
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1  # on no curve


def test_kaplan_meier_of_many_groups(analysed):
    analysed.obs["centre"] = [f"c{i % 11}" for i in range(analysed.n_obs)]
    analysed.obs["follow_up"] = analysed.obs["months"]
    gp.tl.kaplan_meier(analysed, time_key="follow_up", event_key="dead", groupby="centre")
    ax = gp.pl.kaplan_meier(analysed)
    lines = [line for line in ax.lines if str(line.get_gid()).startswith("curve:")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 11
    assert not any(str(c.get_gid()).startswith("band:") for c in ax.collections)
    assert ax.get_xlabel() == "time (unit not stated)"
    assert any(str(c.get_gid()).startswith("band:") for c in gp.pl.kaplan_meier(analysed, band=True).collections)


def test_c_index_boxes_and_intervals(analysed):
    ax = gp.pl.c_index(analysed)
    summary = gp.get.survival(analysed)
    for row in summary.itertuples():
        (interval,) = _by_gid(ax, f"interval:{row.model}")
        np.testing.assert_allclose(interval.get_ydata(), [row.ci_low, row.ci_high])
        (mean,) = _by_gid(ax, f"mean:{row.model}")
        assert mean.get_ydata()[0] == pytest.approx(row.c_index)
    assert [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()] == [
        "model", "clinical", "clinical + model", "random features",
    ]  # fmt: skip
    assert _by_gid(ax, "chance")[0].get_ydata()[0] == 0.5
    table = gp.get.survival(analysed, part="permutation").set_index("statistic")
    assert f"permutation p of the model = {table.loc['c_index', 'pval']:.3f}" in ax.get_title(loc="left")
    legend = [t.get_text().replace("\n", " ") for t in ax.get_legend().get_texts()]
    assert legend == ["repeats of the split", "mean, 95 % interval over cohorts", "chance"]


def test_risk_features_are_the_frequencies(analysed):
    ax = gp.pl.risk_features(analysed, n=5)
    frame = gp.get.survival(analysed, part="selected").head(5).iloc[::-1]
    np.testing.assert_allclose([bar.get_width() for bar in _by_gid(ax, "frequency")], frame["frequency"])
    assert [t.get_text() for t in ax.get_yticklabels()] == frame["feature"].tolist()


def test_outcome_accuracy(analysed):
    ax = gp.pl.outcome_accuracy(analysed)
    row = gp.get.outcome(analysed).iloc[0]
    assert _by_gid(ax, "mean:model")[0].get_ydata()[0] == pytest.approx(row["balanced_accuracy"])
    assert f"permutation p of the model = {row['pval']:.3f}" in ax.get_title(loc="left")
    gp.tl.cluster_patients(analysed)
    gp.tl.predict_outcome(analysed, outcome="patient_cluster", n_repeats=1, progress=False)
    assert "descriptive: the groups were made of these" in gp.pl.outcome_accuracy(analysed).get_title(loc="left")


def test_outcome_accuracy_with_long_names(analysed):
    names = ["Invasive ductal carcinoma", "Invasive lobular carcinoma", "Medullary carcinoma", "Mucinous carcinoma"]
    analysed.obs["histology"] = np.array(names)[np.arange(analysed.n_obs) % 4]
    gp.tl.predict_outcome(analysed, outcome="histology", n_repeats=1, n_bootstraps=9, progress=False)
    ax = gp.pl.outcome_accuracy(analysed)
    ax.figure.canvas.draw()
    page = ax.figure.bbox
    title = ax._left_title.get_window_extent()
    assert title.x1 <= page.x1
    labels = [t.get_window_extent() for t in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(labels))


def test_state_heatmap_of_many_groups_in_their_order_missing_last(analysed):
    centre = pd.Series([f"c{i % 11}" for i in range(analysed.n_obs)], index=analysed.obs_names, dtype=object)
    centre[:5] = None
    analysed.obs["centre"] = pd.Categorical(centre, categories=[f"c{i}" for i in reversed(range(11))])
    ax = gp.pl.state_heatmap(analysed, groupby="centre", n=6)
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == [*(f"c{i}" for i in reversed(range(11))), "not stated"]
    strip = next(a for a in ax.child_axes if a.patches)
    place = {c.get_label(): [p.get_x() for p in c] for c in strip.containers}
    assert len(place["not stated"]) == 5
    assert all(max(place[a]) < min(place[b]) for a, b in pairwise(names))
    assert len({c.patches[0].get_facecolor() for c in strip.containers}) == 12
    ax.figure.canvas.draw()
    bar = next(a for a in ax.child_axes if not a.patches)
    assert not bar.get_tightbbox().overlaps(ax.get_legend().get_window_extent())


def test_state_heatmap_orders_patients_by_group(analysed):
    ax = gp.pl.state_heatmap(analysed, groupby="arm", n=6)
    results = gp.get.differential_state(analysed).sort_values("pval").head(6)
    assert [t.get_text() for t in ax.get_yticklabels()] == results["gene"].tolist()
    types = [t.get_text() for t in ax.texts if t.get_gid() == "cell_type"]
    assert types == results["cell_type"].tolist()
    drawn = np.asarray(ax.images[0].get_array())
    column = analysed.X[:, analysed.var["gene"].tolist().index(results["gene"].iloc[0])]
    z = (column - column.mean()) / column.std()
    arm = (analysed.obs["arm"] == "b").to_numpy()
    np.testing.assert_allclose(np.sort(drawn[0, : (~arm).sum()]), np.sort(np.clip(z[~arm], -2.5, 2.5)))
    with pytest.raises(ValueError, match="groupby='x' is not a column"):
        gp.pl.state_heatmap(analysed, groupby="x")
    with pytest.raises(ValueError, match="no row of 'differential_state' is left"):
        gp.pl.state_heatmap(analysed, groupby="arm", max_pval_adj=0.0)


def test_volcano_counts_and_names(analysed):
    ax = gp.pl.volcano(analysed)
    frame = gp.get.differential_state(analysed)
    up = frame[(frame["pval_adj_global"] <= 0.05) & (frame["log_fc"] > 0)]
    (points,) = _by_gid(ax, "up")
    order = np.argsort(points.get_offsets()[:, 0])
    want = up.sort_values("log_fc")
    np.testing.assert_allclose(points.get_offsets()[order, 1], -np.log10(want["pval"]))
    assert ax.get_title(loc="left").startswith(f"{len(up)} up, ")
    with pytest.raises(ValueError, match=r"columns \['beta'\] are not in the result"):
        gp.pl.volcano(analysed, effect="beta")


@pytest.mark.parametrize(("column", "value"), [("log_p", -2000.0), ("log10_p", -2000 / np.log(10))])
def test_volcano_of_any_frame_reads_log_p(column, value):
    frame = pd.DataFrame({"x": ["A", "B"], "beta": [1.0, -1], "p": [0.0, 0.5], "q": [0.0, 0.5]})
    frame[column] = [value, -0.7]
    ax = gp.pl.volcano(frame, effect="beta", pval="p", pval_adj="q", name="x")
    assert _by_gid(ax, "up")[0].get_offsets()[0, 1] == pytest.approx(2000 / np.log(10))
    ax = gp.pl.volcano(frame.drop(columns=column), effect="beta", pval="p", pval_adj="q", name="x")
    assert _by_gid(ax, "up_clipped")[0].get_offsets().tolist() == [[1.0, 300.0]]
    assert "1 ▲: p < 10⁻³⁰⁰" in ax.get_title(loc="left")


def test_names_in_a_volcano_cover_nothing(analysed, clear_names):
    ax = gp.pl.volcano(analysed, max_pval_adj=1.0)
    assert clear_names(ax) > 20  # gene and type of more than ten


def test_groups_made_of_the_features_are_marked(analysed):
    """p-values of a clustering of the same rows test nothing: volcano and heat map say so."""
    gp.tl.cluster_patients(analysed)
    gp.tl.differential_state(analysed, groupby="patient_cluster", key_added="clusters")
    assert "p-values are descriptive" in gp.pl.volcano(analysed, key="clusters").get_title(loc="left")
    ax = gp.pl.state_heatmap(analysed, groupby="patient_cluster", key="clusters")
    assert [t.get_gid() for t in ax.texts].count("descriptive") == 1
    assert "descriptive" not in gp.pl.volcano(analysed).get_title(loc="left")


def test_volcano_says_what_it_shows(analysed):
    ax = gp.pl.volcano(analysed)
    assert ax.get_xlabel() == "difference of log1p values (base e)\nb − a"
    assert "values are predictions" in ax.get_title(loc="left")
    analysed.obs["arm3"] = np.array(["a", "b", "c"])[np.arange(analysed.n_obs) % 3]
    gp.tl.differential_state(analysed, groupby="arm3")
    with pytest.raises(ValueError, match=r"contrast=None: the result holds \['b - a', 'c - a'\]"):
        gp.pl.volcano(analysed)
    ax = gp.pl.volcano(analysed, contrast="c - a")
    assert sum(len(c.get_offsets()) for c in ax.collections) == 40
    assert ax.get_xlabel().endswith("c − a")
    with pytest.raises(ValueError, match="contrast='x' is not in the result"):
        gp.pl.volcano(analysed, contrast="x")


@pytest.mark.parametrize(
    ("kind", "label"),
    [("proportion_clr", "difference of means (centred log-ratios of shares)"), ("CCI", "difference of means (CCI)")],
)
def test_a_volcano_names_the_scale_of_its_features(analysed, kind, label):
    analysed.var["kind"] = kind
    gp.tl.differential_state(analysed, groupby="arm", kind=kind)
    assert gp.pl.volcano(analysed).get_xlabel() == f"{label}\nb − a"
    analysed.var = analysed.var.drop(columns="kind")
    gp.tl.differential_state(analysed, groupby="arm")
    assert gp.pl.volcano(analysed).get_xlabel() == "difference of means\nb − a"


def test_volcano_of_copy_number():
    cohort = gp.datasets.simulate_cohort(n_patients=80, seed=1)
    gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"])
    pairs = gp.get.cna(cohort)
    for ax in (gp.pl.volcano(cohort, key="cna_association"), gp.pl.volcano(pairs)):
        up = pairs[(pairs["pval_adj"] <= 0.05) & (pairs["mean_difference"] > 0)].sort_values("mean_difference")
        assert len(up) > 1
        offsets = _by_gid(ax, "up")[0].get_offsets()
        want = up[["mean_difference", "log10_pval"]] * [1, -1]
        np.testing.assert_allclose(offsets[np.argsort(offsets[:, 0])], want)
        assert ax.get_xlabel().startswith("mean difference, gains − losses")
        names = [t for t in ax.texts if t.get_gid() == "label"]
        assert {t.get_text() for t in names} <= set(pairs["gene"])
        assert names[0].get_fontstyle() == "italic"
    with pytest.raises(ValueError, match=r"columns \['log_fc', .* name them by effect="):
        gp.pl.volcano(pairs.drop(columns="feature"))


def test_labels_collide_neither_with_each_other_nor_with_points(clear_names):
    rng = np.random.default_rng(0)
    _, ax = plt.subplots(figsize=(5, 4))
    x, y = rng.normal(0, 0.1, 60), rng.normal(0, 0.1, 60)  # a dense clump
    ax.set_xlim(-1, 1)
    ax.set_ylim(-1, 1)
    ax.scatter(x, y, s=9)
    ax.scatter(*rng.uniform(-1, 1, (2, 400)), s=5, color="grey")  # without names
    ax.axvline(0.3)
    drawn = place_labels(ax, x, y, [f"GENE{i}" for i in range(60)], notes=["T"] * 60, italic=True)
    assert 5 < len(drawn) < 60
    assert clear_names(ax) == 2 * len(drawn)


def test_labels_collide_with_no_bar(clear_names):
    heights = np.random.default_rng(1).gamma(2, 1, 60)
    _, ax = plt.subplots(figsize=(8, 3))
    ax.bar(np.arange(60), heights, 1.0)
    ax.set_ylim(0, heights.max() * 1.4)
    best = np.argsort(-heights)[:12]
    drawn = place_labels(ax, best.astype(float), heights[best], [f"GENE{i}" for i in best])
    assert len(drawn) > 6
    assert clear_names(ax) == len(drawn)


def test_labels_of_points_out_of_view_are_left_out():
    _, ax = plt.subplots()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    assert [t.get_text() for t in place_labels(ax, np.array([0.5, 3.0]), np.array([0.5, 0.5]), ["in", "out"])] == ["in"]
    assert place_labels(ax, np.array([]), np.array([]), []) == []


def test_nothing_stored(analysed):
    del analysed.uns["ghistpy"]
    for draw in (gp.pl.kaplan_meier, gp.pl.c_index, gp.pl.risk_features, gp.pl.outcome_accuracy, gp.pl.volcano):
        with pytest.raises(ValueError, match="there is no such result"):
            draw(analysed)


def test_figures_can_be_saved(analysed, tmp_path):
    figures = {
        "km": gp.pl.kaplan_meier(analysed),
        "c": gp.pl.c_index(analysed),
        "volcano": gp.pl.volcano(analysed),
        "heatmap": gp.pl.state_heatmap(analysed, groupby="arm"),
    }
    for name, ax in figures.items():
        ax.figure.savefig(tmp_path / f"{name}.pdf")
        assert 2_000 < (tmp_path / f"{name}.pdf").stat().st_size < 1_000_000
