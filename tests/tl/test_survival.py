"""Cross-validated survival: golden values, planted effects, calibration, what is said and what is refused."""

import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest

import ghistpy as gp
from ghistpy.cohort_stats.cox import RiskSets, score_test
from ghistpy.cohort_stats.survival_cv import (
    Design,
    Procedure,
    cross_validate,
    impute,
)

COMMON = {"time_key": "months", "event_key": "dead", "progress": False}


def make_cohort(n=150, p=30, *, seed=0, effect=1.2):
    """Feature f3 acts (adverse), and so does age; f0 holds missing values, the site is noise."""
    rng = np.random.default_rng(seed)
    X, age = rng.normal(size=(n, p)), rng.normal(60, 9, n)
    months = rng.exponential(40 * np.exp(-effect * X[:, 3] - 0.04 * (age - 60)))
    stop = rng.uniform(5, 60, n)
    X[rng.random(n) < 0.1, 0] = np.nan
    obs = pd.DataFrame(
        {
            "months": np.minimum(months, stop).clip(0.01),
            "dead": months <= stop,
            "age": age,
            "stage": rng.choice(["I", "II"], n),
            "density": rng.normal(size=n),
            "hospital_id": rng.choice(list("abcdefgh"), n),
        },
        index=[f"P{i:03d}" for i in range(n)],
    )
    var = pd.DataFrame({"kind": ["a", "b"] * (p // 2)}, index=[f"f{i}" for i in range(p)])
    return anndata.AnnData(X, obs=obs, var=var)


@pytest.fixture(scope="module")
def _analysed():
    adata = make_cohort()
    gp.tl.survival_cv(
        adata,
        **COMMON,
        covariates=["age", "stage"],
        image_keys=["density"],
        group_key="hospital_id",
        baselines=("clinical", "image", "random", "coxnet"),
        n_features=3,
        n_repeats=8,
        n_permutations=19,
        permutation_repeats=2,
    )
    return adata


@pytest.fixture
def analysed(_analysed):
    return _analysed.copy()


def test_planted_effect_is_found_and_baselines_stand_beside(analysed):
    summary = gp.get.survival(analysed).set_index("model")
    assert list(summary.index) == ["model", "clinical", "clinical+model", "image", "random", "coxnet"]
    c = summary["c_index"]
    assert c["model"] > 0.72
    assert c["clinical+model"] > c["model"]
    assert c["coxnet"] > 0.68
    assert abs(c["image"] - 0.5) < 0.1
    assert c["random"] < c["model"] - 0.1
    assert (summary["ci_low"] < c).all()
    assert (c < summary["ci_high"]).all()
    selected = gp.get.survival(analysed, part="selected")
    assert selected.loc[0, ["feature", "frequency", "share_positive"]].tolist() == ["f3", 1.0, 1.0]
    assert selected["n_selected"].sum() == 8 * 3 * 3
    # larger risk, earlier death
    assert np.corrcoef(analysed.obs["risk"], analysed.X[:, 3])[0, 1] > 0.7
    permutation = gp.get.survival(analysed, part="permutation").set_index("statistic")
    np.testing.assert_allclose(permutation["pval"], 1 / 20)
    assert permutation.loc["c_index", "n_repeats"] == 2
    difference = gp.get.survival(analysed, part="differences").iloc[0]
    assert difference[["model", "baseline"]].tolist() == ["clinical+model", "clinical"]
    assert difference["difference"] == pytest.approx(c["clinical+model"] - c["clinical"])
    assert difference["ci_low"] > 0


def test_folds_keep_groups_and_c_index_is_of_test_folds(analysed):
    folds = analysed.uns["ghistpy"]["survival"]["folds"]
    assert folds.shape == (8, 150)
    site = analysed.obs["hospital_id"].to_numpy()
    for fold in folds:
        assert all(len(set(fold[site == s])) == 1 for s in set(site))
    notes = gp.get.survival(analysed).attrs["notes"]
    assert (notes["n_analysed"], notes["n_groups"]) == (150, 8)
    assert notes["n_events"] == analysed.obs["dead"].sum()
    assert notes["events_per_candidate"] == pytest.approx(notes["n_events"] / 30)
    frame = gp.get.survival(analysed, part="c_index")
    mean = frame[frame["model"] == "model"]["c_index"].mean()
    assert mean == pytest.approx(gp.get.survival(analysed)["c_index"].iloc[0])


def test_result_does_not_depend_on_jobs_and_survives_the_disk(tmp_path):
    a, b = make_cohort(80), make_cohort(80)
    options = COMMON | {"n_repeats": 3, "n_features": 2, "n_permutations": 4, "permutation_repeats": 1}
    gp.tl.survival_cv(a, **options, covariates=["age"])
    gp.tl.survival_cv(b, **options, covariates=["age"], n_jobs=2)
    for part in ("summary", "c_index", "selected", "permutation", "differences"):
        pd.testing.assert_frame_equal(gp.get.survival(a, part=part), gp.get.survival(b, part=part))
    np.testing.assert_array_equal(a.obs["risk"], b.obs["risk"])
    a.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(gp.get.survival(again), gp.get.survival(a), check_dtype=False)
    gp.tl.stratify_risk(again)
    gp.tl.kaplan_meier(again, time_key="months", event_key="dead")
    assert gp.get.kaplan_meier(again)["descriptive"].iloc[0]


def test_nothing_of_the_test_fold_is_seen():
    """Changing the outcome of the test patients changes no score, only its C-index."""
    adata = make_cohort(90)
    time, event = adata.obs["months"].to_numpy(), adata.obs["dead"].to_numpy()
    how = Procedure(n_features=3, n_repeats=1, models=("model", "random"))
    fold = np.arange(90)[None] % 3
    base = cross_validate(Design(adata.X, time, event), how, tau=30.0, folds=fold)
    other = time.copy()
    other[fold[0] == 0] = time[fold[0] == 0][::-1]
    X = adata.X.copy()
    changed = cross_validate(Design(X, other, event), how, tau=30.0, folds=fold)
    np.testing.assert_array_equal(base.score[:, 0, fold[0] == 0], changed.score[:, 0, fold[0] == 0])
    assert not np.array_equal(base.score[:, 0, fold[0] == 1], changed.score[:, 0, fold[0] == 1])
    # values of test patients do not move the medians that stand in for missing ones
    train = np.arange(90) < 60
    X[60:] += 100
    np.testing.assert_array_equal(impute(X, train)[:60], impute(adata.X, train)[:60])


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_rows_of_a_patient_are_combined():
    adata = make_cohort(60)
    double = anndata.concat([adata, adata])
    double.obs_names = [f"S{i}" for i in range(120)]
    double.obs["patient"] = np.tile(adata.obs_names, 2)
    double.X = double.X + np.repeat([0.1, -0.1], 60)[:, None]
    double.var = adata.var
    options = COMMON | {"n_repeats": 2, "n_features": 2}
    gp.tl.survival_cv(adata, **options)
    gp.tl.survival_cv(double, **options, patient_key="patient")
    assert gp.get.survival(double)["c_index"].iloc[0] == pytest.approx(gp.get.survival(adata)["c_index"].iloc[0])
    np.testing.assert_allclose(double.obs["risk"], np.tile(adata.obs["risk"], 2))
    assert gp.get.survival(double).attrs["notes"]["n_analysed"] == 60
    folds = double.uns["ghistpy"]["survival"]["folds"]
    np.testing.assert_array_equal(folds[:, :60], folds[:, 60:])
    double.obs.loc["S0", "months"] = 99.0
    with pytest.raises(ValueError, match="rows with different 'months': P000"):
        gp.tl.survival_cv(double, **options, patient_key="patient")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_covariates_that_differ_between_rows_of_a_patient():
    adata = make_cohort(60)
    double = anndata.concat([adata, adata])
    double.obs_names = [f"S{i}" for i in range(120)]
    double.obs["patient"] = np.tile(adata.obs_names, 2)
    double.obs["density"] += np.repeat([0.5, -0.5], 60)
    options = COMMON | {"n_repeats": 2, "n_features": 2, "image_keys": ["density"]}
    gp.tl.survival_cv(adata, **options)
    gp.tl.survival_cv(double, **options, patient_key="patient")
    one, two = (gp.get.survival(a).set_index("model").loc["image", "c_index"] for a in (adata, double))
    assert two == pytest.approx(one)
    assert gp.get.survival(double).attrs["notes"]["columns_averaged"] == ["density"]
    double.obs["stage"] = ["I"] * 60 + ["II"] + ["I"] * 59
    with pytest.raises(ValueError, match="covariates: 'stage' differs between the rows of P000; give them one value"):
        gp.tl.survival_cv(double, **options, patient_key="patient", covariates=["stage"])


def test_what_is_left_out_is_counted(caplog):
    adata = make_cohort(60)
    adata.X[:, 4], adata.X[:, 5] = 1.0, np.nan
    adata.obs.loc["P001", "months"] = np.nan
    adata.obs.loc["P002", "months"] = 0.0
    with caplog.at_level(logging.WARNING, logger="ghistpy"):
        gp.tl.survival_cv(adata, **COMMON, n_repeats=1, n_features=2)
    notes = gp.get.survival(adata).attrs["notes"]
    assert notes["features_constant"] == ["f4"]
    assert notes["features_without_any_value"] == ["f5"]
    assert notes["excluded_names"] == {"no time": ["P001"], "time 0: never followed": ["P002"]}
    assert "1 patients are left out (no time): P001" in caplog.text
    assert np.isnan(adata.obs.loc[["P001", "P002"], "risk"]).all()
    assert adata.obs["risk"].notna().sum() == 58
    assert not set(gp.get.survival(adata, part="selected")["feature"]) & {"f4", "f5"}


def test_warnings_of_honest_statistics(caplog):
    adata = make_cohort(60)
    adata.obs["site"] = adata.obs["hospital_id"]
    with caplog.at_level(logging.WARNING, logger="ghistpy"):
        gp.tl.survival_cv(adata, **COMMON, n_repeats=1)
    assert "give group_key='site'" in caplog.text
    assert "events per variable in a training fold" in caplog.text
    notes = gp.get.survival(adata).attrs["notes"]
    assert ("more_features_than_events" in notes) == (notes["n_events"] < 30)
    caplog.clear()
    top = gp.get.survival(adata, part="selected")["feature"].head(4)
    fewer = adata[:, list(top)].copy()  # chosen by the outcome, outside the folds
    gp.tl.survival_cv(fewer, **COMMON, n_repeats=1, n_features=2)
    assert "selection belongs inside the folds" in caplog.text
    caplog.clear()
    barcodes = make_cohort(60, p=60)
    barcodes.obs_names = [f"TCGA-A{i % 3}-{i:04d}" for i in range(60)]
    gp.tl.survival_cv(barcodes, **COMMON, n_repeats=1)
    assert "TCGA barcodes of 3 sites" in caplog.text
    assert "60 candidate features" in gp.get.survival(barcodes).attrs["notes"]["more_features_than_events"]


def test_kinds_and_image_kinds():
    adata = make_cohort(60)
    gp.tl.survival_cv(adata, **COMMON, kind="b", n_repeats=1, n_features=2)  # odd positions
    assert all(int(name[1:]) % 2 for name in gp.get.survival(adata, part="selected")["feature"])
    gp.tl.survival_cv(adata, **COMMON, image_keys=["a", "density"], n_repeats=1, n_features=2)
    assert "image" in set(gp.get.survival(adata)["model"])
    assert all(int(name[1:]) % 2 for name in gp.get.survival(adata, part="selected")["feature"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_key": "days"}, "time_key='days' is not a column"),
        ({"event_key": "censored"}, "event_key='censored', values"),
        ({"event_key": "status"}, "has the values 1 and 2"),
        ({"event_key": "nobody"}, "none of the 60 patients with follow-up has an event"),
        ({"time_key": "negative"}, "negative for 1 patients"),
        ({"kind": "c"}, r"no features of \['c'\]; there are \['a', 'b'\]"),
        ({"covariates": ["bmi"]}, "covariates='bmi' is not a column of obs"),
        ({"image_keys": ["bmi"]}, r"image_keys: \['bmi'\] are neither"),
        ({"group_key": "bmi"}, "group_key='bmi' is not a column of obs"),
        ({"group_key": "one"}, "only 1 groups"),
        ({"n_features": 31}, "expected between 1 and the 30 features"),
        ({"n_features": 0}, "n_features=0"),
        ({"baselines": ["xgboost"]}, r"baselines: \['xgboost'\] are unknown"),
        ({"layer": "raw"}, "layer='raw' is not among the layers"),
        ({"event_key": "rare"}, "the rarest outcome has 2 patients"),
        ({"event_key": "dead_in_a", "group_key": "hospital_id"}, "a test fold holds no event"),
    ],
)
def test_bad_input(change, message):
    adata = make_cohort(60)
    adata.obs["censored"] = ~adata.obs["dead"]
    adata.obs["status"] = adata.obs["dead"] + 1
    adata.obs["nobody"] = False
    adata.obs["one"] = "x"
    adata.obs["negative"] = adata.obs["months"].where(np.arange(60) > 0, -1)
    adata.obs["rare"] = np.arange(60) < 2
    adata.obs["dead_in_a"] = adata.obs["dead"] & (adata.obs["hospital_id"] == "a")
    with pytest.raises(ValueError, match=message):
        gp.tl.survival_cv(adata, **(COMMON | {"n_repeats": 1} | change))
    assert "ghistpy" not in adata.uns
    assert "risk" not in adata.obs


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_bad_tables():
    adata = make_cohort(60)
    twice = adata.copy()
    twice.obs_names = ["P000", "P000", *adata.obs_names[2:]]
    with pytest.raises(ValueError, match="1 patients are in the table more than once: P000"):
        gp.tl.survival_cv(twice, **COMMON)
    infinite = adata.copy()
    infinite.X[0, 2] = np.inf
    with pytest.raises(ValueError, match="infinite values in the features f2"):
        gp.tl.survival_cv(infinite, **COMMON)
    constant = adata.copy()
    constant.X[:] = 1
    with pytest.raises(ValueError, match="none of the 30 features varies"):
        gp.tl.survival_cv(constant, **COMMON)
    with pytest.raises(TypeError, match="expected an AnnData of patients"):
        gp.tl.survival_cv(adata.to_df(), **COMMON)
    with pytest.raises(ValueError, match="run tl.survival_cv first"):
        gp.get.survival(adata)


@pytest.mark.data
@pytest.mark.parametrize("screen", ["wald", "score"])
def test_golden_cox_cross_validation(data_dir, screen):
    folder = data_dir / "golden" / "downstream"
    accept = json.loads((folder / "coxcv_expected.json").read_text())["accept"]
    frame = pd.read_csv(folder / "coxcv_fig5_nn.csv.gz")
    frame.index = [f"P{i}" for i in range(len(frame))]
    adata = anndata.AnnData(frame.iloc[:, :280].to_numpy(float), obs=frame.iloc[:, 280:].rename(columns={}))
    gp.tl.survival_cv(
        adata,
        time_key="days_to_last_follow_up",
        event_key="vital_status",
        event_value=2,
        screen=screen,
        n_bootstraps=20,
        baselines=(),
        progress=False,
    )
    low, high = accept["cindex_mean_range"]
    assert low < gp.get.survival(adata)["c_index"].iloc[0] < high
    gp.tl.stratify_risk(adata, method="quartiles")
    group, paper = adata.obs["risk_group"].astype(str), adata.obs["risk_cat"].astype(str)
    assert ((group == "high risk") & (paper == "high risk")).sum() >= accept["overlap_high_min"]
    assert ((group == "low risk") & (paper == "low risk")).sum() >= accept["overlap_low_min"]
    from sklearn.metrics import roc_auc_score

    rows = (paper != "other").to_numpy()
    auc = roc_auc_score(paper[rows] == "high risk", adata.obs["risk"][rows])
    assert auc >= accept["auc_high_vs_low_min"]


@pytest.mark.data
def test_tcga_by_site(data_dir, monkeypatch):
    """Age beats five genes: folds by site, few repeats."""
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    adata = gp.datasets.tcga_brca()
    gp.tl.survival_cv(
        adata,
        time_key="survival_months",
        event_key="censorship",
        event_value=0,
        group_key="site",
        covariates=["age", "site"],
        n_repeats=3,
        n_bootstraps=50,
        progress=False,
    )
    summary = gp.get.survival(adata).set_index("model")
    assert 0.58 < summary.loc["clinical", "c_index"] < 0.69
    assert summary.loc["model", "c_index"] < summary.loc["clinical", "c_index"]
    notes = gp.get.survival(adata).attrs["notes"]
    assert (notes["n_analysed"], notes["n_events"], notes["n_groups"]) == (956, 130, 37)
    assert notes["time_unit"] == "months"


def test_screening_picks_by_score(analysed):
    rows = np.isfinite(analysed.X).all(1)
    risk = RiskSets.of(analysed.obs["months"].to_numpy()[rows], analysed.obs["dead"].to_numpy()[rows])
    assert np.argmax(score_test(analysed.X[rows], risk)[0]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"screen": "x"}, "screen='x': expected one of 'score', 'wald'"),
        ({"penalty": "Firth"}, "penalty='Firth': expected one of 'none', 'ridge', 'firth'"),
        ({"risk_scale": "x"}, "risk_scale='x': expected one of"),
        ({"ridge": -1}, "ridge=-1: expected a finite number of at least 0"),
        ({"tau": 0}, "tau=0: expected a finite number above 0"),
        ({"n_splits": 1}, "n_splits=1: expected a whole number of at least 2"),
        ({"n_bootstraps": 0}, "n_bootstraps=0: expected a whole number of at least 1"),
        ({"n_permutations": -1}, "n_permutations=-1: expected a whole number of at least 0"),
        ({"permutation_repeats": 0}, "permutation_repeats=0"),
        ({"n_jobs": 0}, "n_jobs=0: expected a number of processes"),
    ],
)
def test_options_that_mean_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        gp.tl.survival_cv(make_cohort(60), **(COMMON | {"n_repeats": 1} | change))


def test_missing_covariates_are_counted(caplog):
    adata = make_cohort(60)
    adata.obs.loc[adata.obs_names[:20], "age"] = np.nan
    adata.obs.loc[adata.obs_names[:5], "stage"] = None
    adata.obs.loc["P001", "density"] = np.nan
    options = {"covariates": ["age", "stage"], "image_keys": ["density"], "n_repeats": 1}
    gp.tl.survival_cv(adata, **COMMON, **options)
    notes = gp.get.survival(adata).attrs["notes"]
    assert notes["n_missing_covariates"] == {"age": 20, "stage": 5}
    assert notes["n_missing_image_keys"] == {"density": 1}
    assert "'age' for 20, 'stage' for 5 of 60 patients is missing" in caplog.text


def test_few_groups_are_said(caplog):
    adata = make_cohort(90)
    adata.obs["three"] = np.where(np.arange(90) < 55, "big", np.where(np.arange(90) % 2, "x", "y"))
    gp.tl.survival_cv(adata, **COMMON, group_key="three", n_repeats=20, n_features=2, n_permutations=2)
    notes = gp.get.survival(adata).attrs["notes"]
    assert notes["n_distinct_partitions"] == 1
    assert notes["fold_sizes"][1] == 55
    assert "20 repeats hold 1 different ones" in caplog.text
    assert "folds hold 17 to 55 patients" in caplog.text
    assert "within groups" in notes["permutation_null"]
    caplog.clear()
    gp.tl.survival_cv(adata, **COMMON, n_repeats=20, n_features=2)
    notes = gp.get.survival(adata).attrs["notes"]
    assert (notes["n_distinct_partitions"], notes["fold_sizes"]) == (20, [30, 30])
    assert "different ones" not in caplog.text


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_image_columns_of_a_patient_are_averaged_and_covariates_agree():
    adata = make_cohort(60)
    double = anndata.concat([adata, adata])
    double.obs_names = [f"S{i}" for i in range(120)]
    double.obs["patient"] = np.tile(adata.obs_names, 2)
    double.obs["density"] += np.repeat([0.3, -0.3], 60)
    options = COMMON | {"image_keys": ["density"], "n_repeats": 2, "n_features": 2}
    gp.tl.survival_cv(adata, **options)
    gp.tl.survival_cv(double, **options, patient_key="patient")
    want = gp.get.survival(adata).set_index("model")["c_index"]
    assert gp.get.survival(double).set_index("model")["c_index"]["image"] == pytest.approx(want["image"])
    double.obs.loc["S0", "age"] += 1
    gp.tl.survival_cv(double, **options, covariates=["age"], patient_key="patient")  # numbers are averaged
    assert "age" in gp.get.survival(double).attrs["notes"]["columns_averaged"]
    double.obs.loc["S0", "stage"] = "III"
    with pytest.raises(ValueError, match="'stage' differs between the rows of P000"):
        gp.tl.survival_cv(double, **options, covariates=["stage"], patient_key="patient")
