"""Risk groups, Kaplan-Meier curves and the log-rank test; locked models on other patients."""

import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from lifelines import KaplanMeierFitter

import ghistpy as gp
from ghistpy.cohort_stats.survival_model import SurvivalModel


def make_patients(n=120, *, seed=0, start=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 20))
    months = rng.exponential(30 * np.exp(-0.9 * X[:, 2]))
    stop = rng.uniform(5, 60, n)
    obs = pd.DataFrame(
        {
            "months": np.minimum(months, stop).clip(0.01),
            "dead": (months <= stop).astype(int),
            "age": rng.normal(60, 9, n),
            "stage": rng.choice(["I", "II", "III"], n),
        },
        index=[f"P{i + start}" for i in range(n)],
    )
    return anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"f{i}" for i in range(20)]))


FOLLOW_UP = {"time_key": "months", "event_key": "dead"}


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["fig5a_nn_correlation", "supp14_bulk_RNAseq"])
def test_golden_log_rank(data_dir, dataset):
    folder = data_dir / "golden" / "downstream"
    want = json.loads((folder / "km_expected.json").read_text())[dataset]
    frame = pd.read_csv(folder / "km_inputs.csv").query("dataset == @dataset")
    frame.index = [f"P{i}" for i in range(len(frame))]
    frame["risk_group"] = frame["risk_cat"].where(frame["risk_cat"] != "other")
    adata = anndata.AnnData(np.zeros((len(frame), 1)), obs=frame)
    follow_up = {"time_key": "days_to_last_follow_up", "event_key": "vital_status"}
    with pytest.raises(ValueError, match="has the values 1 and 2"):
        gp.tl.kaplan_meier(adata, **follow_up)
    gp.tl.kaplan_meier(adata, **follow_up, event_value=2)
    test = gp.get.kaplan_meier(adata).iloc[0]
    assert test["chi2"] == pytest.approx(want["chisq"], rel=want["tol_rel"])
    assert test["pval"] == pytest.approx(want["p"], rel=want["tol_rel"])
    assert test["df"] == want["df"]
    groups = gp.get.kaplan_meier(adata, part="groups").set_index("group")
    assert groups.loc["high risk", ["n", "n_events"]].tolist() == [want["n_high"], want["events_high"]]
    assert groups.loc["low risk", ["n", "n_events"]].tolist() == [want["n_low"], want["events_low"]]
    notes = gp.get.kaplan_meier(adata).attrs["notes"]
    assert notes["n_without_group"] == want["n_total"] - want["n_high"] - want["n_low"]
    gp.tl.kaplan_meier(adata, **follow_up, event_value=2, groupby=None)
    everyone = gp.get.kaplan_meier(adata, part="groups").iloc[0]
    assert everyone[["n", "n_events"]].tolist() == [want["n_total"], want["events_total"]]


def test_curves_are_lifelines_and_numbers_at_risk_are_counts():
    adata = make_patients()
    gp.tl.kaplan_meier(adata, **FOLLOW_UP, groupby="stage")
    curves = gp.get.kaplan_meier(adata, part="curves")
    at_risk = gp.get.kaplan_meier(adata, part="at_risk")
    for stage in ("I", "II", "III"):
        own = adata.obs[adata.obs["stage"] == stage]
        fitted = KaplanMeierFitter().fit(own["months"], own["dead"])
        curve = curves[curves["group"] == stage]
        np.testing.assert_allclose(curve["survival"], fitted.survival_function_.iloc[:, 0])
        np.testing.assert_allclose(curve["ci_low"], fitted.confidence_interval_.iloc[:, 0].fillna(1))
        for row in at_risk[at_risk["group"] == stage].itertuples():
            assert row.at_risk == (own["months"] >= row.time).sum()
    test = gp.get.kaplan_meier(adata).iloc[0]
    assert (test["df"], bool(test["descriptive"])) == (2, False)
    assert np.isnan(test["hazard_ratio"])


def test_strata_by_hand(caplog):
    adata = make_patients(9)
    adata.obs["risk"] = [0, 1, 2, 3, 4, 5, 6, 7, np.nan]
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        gp.tl.stratify_risk(adata, method="quartiles")
    groups = adata.obs["risk_group"]
    assert groups.isna().sum() == 5
    assert groups[:2].tolist() == ["low risk"] * 2
    assert groups[6:8].tolist() == ["high risk"] * 2
    assert "2 high, 2 low, 4 in the middle, 1 without risk" in caplog.text
    with pytest.raises(ValueError, match="method='thirds'"):
        gp.tl.stratify_risk(adata, method="thirds")
    with pytest.raises(ValueError, match="risk_key='r' is not a column"):
        gp.tl.stratify_risk(adata, risk_key="r")
    adata.obs["risk"] = 1.0
    with pytest.raises(ValueError, match="no two patients have different risks"):
        gp.tl.stratify_risk(adata)


def test_one_group_and_missing_groups():
    adata = make_patients()
    adata.obs["arm"] = "a"
    with pytest.raises(ValueError, match=r"one group only, \['a'\]"):
        gp.tl.kaplan_meier(adata, **FOLLOW_UP, groupby="arm")
    with pytest.raises(ValueError, match="groupby='x' is not a column"):
        gp.tl.kaplan_meier(adata, **FOLLOW_UP, groupby="x")
    adata.obs.loc["P3":"P60", "arm"] = "b"
    adata.obs.loc["P0":"P2", "arm"] = None
    gp.tl.kaplan_meier(adata, **FOLLOW_UP, groupby="arm")
    assert gp.get.kaplan_meier(adata).attrs["notes"]["n_without_group"] == 3


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_a_patient_with_several_rows_counts_once():
    adata = make_patients()
    adata.obs["arm"] = np.array(["a", "b"])[np.arange(120) % 2]
    twice = anndata.concat([adata, adata[:50]])
    twice.obs_names = [f"S{i}" for i in range(170)]
    twice.obs["patient"] = [*adata.obs_names, *adata.obs_names[:50]]
    gp.tl.kaplan_meier(adata, **FOLLOW_UP, groupby="arm")
    gp.tl.kaplan_meier(twice, **FOLLOW_UP, groupby="arm", patient_key="patient")
    pd.testing.assert_frame_equal(gp.get.kaplan_meier(adata), gp.get.kaplan_meier(twice))
    twice.obs.loc["S0", "arm"] = "b"
    with pytest.raises(ValueError, match="rows with different 'arm': P0"):
        gp.tl.kaplan_meier(twice, **FOLLOW_UP, groupby="arm", patient_key="patient")


def test_descriptive_is_said_and_permutation_stands_beside():
    adata = make_patients()
    options = FOLLOW_UP | {"n_features": 2, "n_repeats": 2, "progress": False}
    gp.tl.survival_cv(adata, **options)
    gp.tl.stratify_risk(adata)
    gp.tl.kaplan_meier(adata, **FOLLOW_UP)
    frame = gp.get.kaplan_meier(adata)
    assert frame["descriptive"].iloc[0]
    assert np.isnan(frame["pval_permutation"].iloc[0])
    assert "descriptive" in frame.attrs["notes"]["meaning_of_pval"]
    gp.tl.survival_cv(adata, **options, n_permutations=9, permutation_repeats=1)
    gp.tl.stratify_risk(adata, method="quartiles")
    gp.tl.kaplan_meier(adata, **FOLLOW_UP)
    want = gp.get.survival(adata, part="permutation").set_index("statistic").loc["logrank_quartiles", "pval"]
    assert gp.get.kaplan_meier(adata)["pval_permutation"].iloc[0] == want
    assert gp.get.kaplan_meier(adata)["hazard_ratio"].iloc[0] > 1  # high risk comes first


def test_locked_model_on_other_patients(tmp_path, caplog):
    model = gp.tl.survival_fit(make_patients(), **FOLLOW_UP, covariates=["age", "stage"], n_features=1)
    assert model.features == ("f2",)
    assert model.time_unit == "months"
    assert any("optimistic" in text for text in model.summary["warnings"])
    table = pd.DataFrame(model.summary["table"]).set_index("variable")
    assert len(table) == 4  # feature, age, two of three stages
    assert table.loc["f2", "ci_low"] > 1
    assert model.summary["proportional_hazards"]["f2"] > 0.01
    model.save(tmp_path / "model.json")
    again = SurvivalModel.load(tmp_path / "model.json")
    others = make_patients(100, seed=9, start=1000)
    gp.tl.predict_risk(others, again, **FOLLOW_UP)
    np.testing.assert_allclose(
        others.obs["risk"], model.risk(np.column_stack([others.X[:, 2], others.obs["age"], _stages(model, others)]))
    )
    frames = others.uns["ghistpy"]["external_validation"]
    summary = frames["summary"].set_index("measure")
    assert summary.loc["c_index", "value"] > 0.65
    assert 0.4 < summary.loc["calibration_slope", "value"] < 1.8
    assert (frames["times"]["auc"] > 0.6).all()
    assert (frames["times"]["brier"] < frames["times"]["brier_null"]).iloc[1:].all()
    # a test now: the model never saw these patients
    gp.tl.stratify_risk(others, model=again)
    gp.tl.kaplan_meier(others, **FOLLOW_UP)
    test = gp.get.kaplan_meier(others).iloc[0]
    assert not test["descriptive"]
    assert test["hazard_ratio"] > 1
    group = others.obs["risk_group"] == "high risk"
    np.testing.assert_array_equal(group, others.obs["risk"] > model.cutoffs[1])


def _stages(model, adata):
    return np.stack([(adata.obs["stage"] == level).to_numpy(float) for level in model.levels["stage"][1:]], axis=1)


def test_training_patients_are_recognised(caplog):
    adata = make_patients()
    model = gp.tl.survival_fit(adata, **FOLLOW_UP, n_features=2)
    gp.tl.predict_risk(adata, model, **FOLLOW_UP)
    assert "fitted on 120 of these 120 patients" in caplog.text
    gp.tl.stratify_risk(adata)
    gp.tl.kaplan_meier(adata, **FOLLOW_UP)
    assert gp.get.kaplan_meier(adata)["descriptive"].iloc[0]


def test_model_equals_statsmodels_and_its_baseline_lifelines():
    from lifelines import CoxPHFitter
    from statsmodels.duration.hazard_regression import PHReg

    adata = make_patients()
    model = gp.tl.survival_fit(adata, **FOLLOW_UP, features=["f2", "f7"])
    X = adata.X[:, [2, 7]]
    want = PHReg(adata.obs["months"], X, adata.obs["dead"], ties="efron").fit()
    np.testing.assert_allclose(model.coef, want.params, atol=1e-6)
    np.testing.assert_allclose(model.se, want.bse, atol=1e-6)
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(t=adata.obs["months"].to_numpy(), e=adata.obs["dead"].to_numpy())
    fitted = CoxPHFitter().fit(frame, "t", "e")
    times = model.baseline_time[[5, 20, 40]]
    expected = fitted.predict_survival_function(frame, times=times).T.to_numpy()
    np.testing.assert_allclose(model.survival(model.risk(X), times), expected, atol=1e-4)


def test_bad_input_of_models(caplog):
    adata = make_patients()
    model = gp.tl.survival_fit(adata, **FOLLOW_UP, n_features=2, covariates=["stage"])
    others = make_patients(50, seed=1, start=500)
    with pytest.raises(ValueError, match="adata lacks 1 of 2 features of the model"):
        gp.tl.predict_risk(others[:, [n for n in others.var_names if n != model.features[0]]].copy(), model)
    days = others.copy()
    days.obs["days"] = days.obs["months"] * 30.4
    with pytest.raises(ValueError, match="is in days, the model was fitted in months"):
        gp.tl.predict_risk(days, model, time_key="days", event_key="dead")
    with pytest.raises(ValueError, match=r"times=\[900.0\]: expected between"):
        gp.tl.predict_risk(others, model, **FOLLOW_UP, times=[10.0, 900.0])
    others.X[0, int(model.features[0][1:])] = np.nan
    others.obs.iloc[1, others.obs.columns.get_loc("stage")] = "IV"
    gp.tl.predict_risk(others, model)
    assert "1 missing values are set to the means" in caplog.text
    assert "levels unknown to the model: IV" in caplog.text
    assert others.obs["risk"].notna().all()
    with pytest.raises(ValueError, match=r"features: x are not in the table"):
        gp.tl.survival_fit(adata, **FOLLOW_UP, features=["x"])
    with pytest.raises(ValueError, match="neither features nor covariates"):
        gp.tl.survival_fit(adata, **FOLLOW_UP, n_features=0)


CROSS_VALIDATED = FOLLOW_UP | {"n_features": 2, "n_repeats": 2, "progress": False}


@pytest.fixture(scope="module")
def cross_validated():
    adata = make_patients(90)
    gp.tl.survival_cv(adata, **CROSS_VALIDATED, n_permutations=9, permutation_repeats=1)
    gp.tl.stratify_risk(adata)
    return adata


def _test_of(adata, **options):
    gp.tl.kaplan_meier(adata, **FOLLOW_UP, **options)
    return gp.get.kaplan_meier(adata).iloc[0]


@pytest.mark.parametrize("make", ["copy", "cut", "rename", "three pieces"])
def test_groups_of_risk_under_another_name_stay_descriptive(cross_validated, make):
    adata = cross_validated.copy()
    risk = adata.obs["risk"]
    adata.obs["mine"] = {
        "copy": adata.obs["risk_group"].astype(str),
        "cut": np.where(risk > risk.quantile(0.7), "hi", "lo"),
        "rename": np.where(adata.obs["risk_group"] == "high risk", 1, 0),
        "three pieces": pd.cut(risk, [-1, 0.4, 0.6, 2], labels=["low", "middle", "high"]),
    }[make]
    test = _test_of(adata, groupby="mine")
    assert test["descriptive"]
    assert gp.get.kaplan_meier(adata).attrs["notes"]["descriptive"]
    # the p of the permutations is of the median and its two groups
    assert np.isfinite(test["pval_permutation"]) == (make == "copy")
    adata.obs["stage_group"] = adata.obs["stage"]
    assert not _test_of(adata, groupby="stage_group")["descriptive"]


def test_groups_whose_record_is_lost_are_descriptive(cross_validated):
    joined = anndata.concat([cross_validated[:45], cross_validated[45:]])  # leaves uns out
    test = _test_of(joined)
    assert test["descriptive"]
    assert "is not recorded" in gp.get.kaplan_meier(joined).attrs["notes"]["meaning_of_pval"]
    joined.obs["mine"] = joined.obs["risk_group"].astype(str)
    assert _test_of(joined, groupby="mine")["descriptive"]
    kept = anndata.concat([cross_validated[:45], cross_validated[45:]], uns_merge="first")
    assert "cross-validated" in _meaning(kept)


def _meaning(adata):
    _test_of(adata)
    return gp.get.kaplan_meier(adata).attrs["notes"]["meaning_of_pval"]


def test_permutation_p_is_shown_for_its_patients_and_cuts_only(cross_validated):
    want = gp.get.survival(cross_validated, part="permutation").set_index("statistic")["pval"]
    assert _test_of(cross_validated.copy())["pval_permutation"] == want["logrank_median"]
    subset = cross_validated[:40].copy()
    assert np.isnan(_test_of(subset)["pval_permutation"])
    assert "other patients" in gp.get.kaplan_meier(subset).attrs["notes"]["no_pval_permutation"]
    # cut-offs of a model fitted elsewhere are other groups
    model = gp.tl.survival_fit(make_patients(80, seed=4, start=500), **FOLLOW_UP, n_features=2)
    other = cross_validated.copy()
    other.obs["risk"] = (other.obs["risk"] - 0.7) * 3
    gp.tl.stratify_risk(other, model=model)
    assert other.obs["risk_group"].nunique() == 2
    test = _test_of(other)
    assert test["descriptive"]
    assert np.isnan(test["pval_permutation"])


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_patients_of_slides_are_recognised_under_both_names(caplog):
    adata = make_patients(90)
    slides = anndata.concat([adata, adata])
    slides.obs_names = [f"S{i}" for i in range(180)]
    slides.obs["patient"] = list(adata.obs_names) * 2
    model = gp.tl.survival_fit(slides, **FOLLOW_UP, patient_key="patient", n_features=2)
    again = slides.copy()
    gp.tl.predict_risk(again, model, **FOLLOW_UP)  # rows are known, too
    assert "give patient_key='patient'" in caplog.text
    assert json.loads(again.uns["ghistpy"]["external_validation"]["notes"])["n_in_training"] == 180
    gp.tl.stratify_risk(again)
    assert _test_of(again, patient_key="patient")["descriptive"]
    renamed = slides.copy()
    renamed.obs_names = [f"T{i}" for i in range(180)]
    gp.tl.predict_risk(renamed, model, **FOLLOW_UP, patient_key="patient")
    notes = json.loads(renamed.uns["ghistpy"]["external_validation"]["notes"])
    assert (notes["n_in_training"], notes["n_patients"], notes["descriptive"]) == (90, 90, True)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_slides_of_other_patients_count_once():
    model = gp.tl.survival_fit(make_patients(), **FOLLOW_UP, n_features=2)
    others = make_patients(60, seed=3, start=700)
    slides = anndata.concat([others, others])
    slides.X[:60] += 0.5
    slides.X[60:] -= 0.5
    slides.obs_names = [f"S{i}" for i in range(120)]
    slides.obs["patient"] = list(others.obs_names) * 2
    for table, options in ((others, {}), (slides, {"patient_key": "patient"})):
        gp.tl.predict_risk(table, model, **FOLLOW_UP, **options)
    a, b = (t.uns["ghistpy"]["external_validation"]["summary"] for t in (others, slides))
    pd.testing.assert_frame_equal(a, b)
    np.testing.assert_allclose(slides.obs["risk"], np.tile(others.obs["risk"], 2))


def test_nothing_is_written_before_an_error():
    model = gp.tl.survival_fit(make_patients(), **FOLLOW_UP, n_features=2)
    others = make_patients(40, seed=2, start=300)
    others.obs["dead"] = 0
    with pytest.raises(ValueError, match="none of the 40 patients"):
        gp.tl.predict_risk(others, model, **FOLLOW_UP)
    with pytest.raises(ValueError, match="event_key=None: give both"):
        gp.tl.predict_risk(others, model, time_key="months")
    with pytest.raises(ValueError, match="n_bootstraps=0"):
        gp.tl.predict_risk(others, model, **FOLLOW_UP, n_bootstraps=0)
    assert "risk" not in others.obs
    assert "ghistpy" not in others.uns


def test_what_is_imputed_in_a_fit_is_counted(caplog):
    adata = make_patients(90)
    adata.obs.loc[adata.obs_names[:30], "age"] = np.nan
    adata.X[:20, 2] = np.nan
    model = gp.tl.survival_fit(adata, **FOLLOW_UP, covariates=["age"], features=["f2"])
    assert model.summary["n_missing_covariates"] == {"age": 30}
    assert model.summary["n_missing_values"] == 20
    assert "'age' for 30 of 90 patients is missing, and becomes the mean of these patients" in caplog.text
    for options, message in (
        ({"screen": "x"}, "screen='x': expected one of 'score', 'wald'"),
        ({"penalty": "Firth"}, "penalty='Firth': expected one of"),
        ({"ridge": -1}, "ridge=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            gp.tl.survival_fit(adata, **FOLLOW_UP, **options)


def test_groups_that_are_none():
    adata = make_patients(90)
    adata.obs["mixed"] = ["x", 1, 2.5] * 30
    assert _test_of(adata, groupby="mixed")["df"] == 2
    with pytest.raises(ValueError, match="groupby='age' has 90 values among 90 patients"):
        _test_of(adata, groupby="age")
    adata.obs["risk"] = "x"
    with pytest.raises(ValueError, match="risk_key='risk' holds object, expected numbers"):
        gp.tl.stratify_risk(adata)


@pytest.mark.parametrize("change", ["none", "renamed", "order of patients", "permuted", "truncated", "other event"])
@pytest.mark.parametrize("method", ["median", "quartiles"])
def test_permutation_p_is_of_these_times_and_events(cross_validated, change, method):
    adata = cross_validated.copy()
    gp.tl.stratify_risk(adata, method=method)
    follow_up = dict(FOLLOW_UP)
    months = adata.obs["months"].to_numpy()
    if change == "renamed":
        adata.obs["t_months"] = months
        follow_up["time_key"] = "t_months"
    elif change == "order of patients":
        adata = adata[::-1].copy()
    elif change == "permuted":
        adata.obs["months"] = np.random.default_rng(0).permutation(months)
    elif change == "truncated":
        limit = np.quantile(months, 0.7)
        adata.obs["dead"] = np.where(months > limit, 0, adata.obs["dead"].astype(int))
        adata.obs["months"] = months.clip(max=limit)
    elif change == "other event":
        follow_up["event_value"] = 1 - int(FOLLOW_UP.get("event_value", 1))
    gp.tl.kaplan_meier(adata, **follow_up)
    found = gp.get.kaplan_meier(adata)
    same = change in ("none", "renamed", "order of patients")
    assert np.isfinite(found["pval_permutation"].iloc[0]) == same
    assert ("no_pval_permutation" in found.attrs["notes"]) != same


def test_too_many_groups_say_what_helps():
    adata = make_patients(90)
    adata.obs["site"] = pd.Categorical([f"H{i % 37}" for i in range(90)])
    message = (
        r"groupby='site' has 37 values among 90 patients, .*: expected at most 20 groups, .*; merge values, or keep"
    )
    with pytest.raises(ValueError, match=message):
        _test_of(adata, groupby="site")
    with pytest.raises(ValueError, match="cut the number into groups"):
        _test_of(adata, groupby="age")
