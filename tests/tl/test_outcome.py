"""Classification of patients: golden values, calibration, circular outcomes, bad input."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ghistpy as gp
from ghistpy.cohort_stats.outcome import Classifier, Outcomes, balanced_accuracy, cross_validate, permuted, pooled_f


def make_patients(n=60, p=40, *, seed=0, effect=1.5):
    rng = np.random.default_rng(seed)
    X, label = rng.normal(size=(n, p)), np.array(["no", "yes"])[np.arange(n) % 3 // 2]
    X[:, :3] += effect * (label == "yes")[:, None]
    obs = pd.DataFrame(
        {"response": label, "age": rng.normal(size=n), "ward": rng.choice(list("abcdef"), n)},
        index=[f"P{i}" for i in range(n)],
    )
    return anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"f{i}" for i in range(p)]))


@pytest.mark.data
@pytest.mark.parametrize("kind", ["nn_correlation", "celltype_interaction", "proportion_raw"])
@pytest.mark.parametrize("decision", ["margin", "platt"])
def test_golden_accuracy(data_dir, kind, decision):
    folder = data_dir / "golden" / "downstream"
    want = json.loads((folder / "fig5d_expected.json").read_text())["expected"][kind]
    frame = pd.read_csv(folder / f"fig5d_{kind}.csv.gz", index_col=0)
    adata = anndata.AnnData(frame.drop(columns="outcome").to_numpy(float), obs=frame[["outcome"]])
    assert adata.shape == (want["n"], want["p"])
    repeats = 100 if decision == "margin" else 25  # five fits more in each fold
    gp.tl.predict_outcome(
        adata, outcome="outcome", decision=decision, n_repeats=repeats, n_bootstraps=20, progress=False
    )
    name = "balanced_accuracy_decision" if decision == "margin" else "balanced_accuracy_argmax_platt(=ClassifyR way)"
    got = gp.get.outcome(adata)["balanced_accuracy"].iloc[0]
    assert got == pytest.approx(want[name]["mean"], abs=want["tol_mean"])


def test_planted_classes_and_baselines():
    adata = make_patients()
    gp.tl.predict_outcome(
        adata,
        outcome="response",
        covariates=["age"],
        image_keys=["age"],
        group_key="ward",
        n_features=5,
        n_repeats=6,
        n_permutations=19,
        permutation_repeats=1,
        progress=False,
    )
    summary = gp.get.outcome(adata).set_index("model")
    accuracy = summary["balanced_accuracy"]
    assert list(summary.index) == ["model", "clinical", "clinical+model", "image", "random"]
    assert accuracy["model"] > 0.75
    assert accuracy["clinical"] < 0.62
    assert accuracy["random"] < accuracy["model"]
    assert (summary["ci_low"] <= accuracy).all()
    assert (accuracy <= summary["ci_high"]).all()
    assert summary.loc["model", "pval"] == 0.05
    assert set(gp.get.outcome(adata, part="selected")["feature"].head(3)) == {"f0", "f1", "f2"}
    predictions = gp.get.outcome(adata, part="predictions")
    assert (predictions.groupby("patient")["share"].sum() == 1).all()
    assert gp.get.outcome(adata).attrs["notes"]["n_per_class"] == {"no": 40, "yes": 20}


def test_result_does_not_depend_on_jobs():
    a, b = make_patients(), make_patients()
    gp.tl.predict_outcome(a, outcome="response", n_repeats=3, progress=False)
    gp.tl.predict_outcome(b, outcome="response", n_repeats=3, n_jobs=2, progress=False)
    pd.testing.assert_frame_equal(gp.get.outcome(a), gp.get.outcome(b))


def test_selection_is_the_pooled_t_test():
    adata = make_patients()
    label = (adata.obs["response"] == "yes").to_numpy()
    t = stats.ttest_ind(adata.X[label], adata.X[~label]).statistic
    np.testing.assert_allclose(pooled_f(adata.X, label.astype(int)), t**2)
    three = np.arange(60) % 3
    f = stats.f_oneway(*(adata.X[three == k] for k in range(3))).statistic
    np.testing.assert_allclose(pooled_f(adata.X, three), f)


def test_balanced_accuracy_is_that_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 3, 40), rng.integers(0, 3, (2, 5, 40))
    got = balanced_accuracy(predicted, label)
    assert got[1, 2] == pytest.approx(balanced_accuracy_score(label, predicted[1, 2]))
    counts = rng.multinomial(40, np.full(40, 1 / 40), 3).astype(float)
    boot = balanced_accuracy(predicted, label, counts)
    rows = np.repeat(np.arange(40), counts[1].astype(int))
    assert boot[1, 0, 3] == pytest.approx(balanced_accuracy_score(label[rows], predicted[0, 3, rows]))


def test_permutation_p_is_calibrated():
    """Labels that say nothing: 5 % of 40 cohorts inside binomial bounds, mean near one half."""
    rng = np.random.default_rng(3)
    how, p = Classifier(n_features=3, n_repeats=1), []
    for _ in range(40):
        data = Outcomes(rng.normal(size=(30, 12)), np.arange(30) % 2)
        observed, null = permuted(data, how, n_permutations=19)
        p.append((1 + np.sum(null >= observed)) / 20)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    assert 0.35 < np.mean(p) < 0.72


def test_selection_sees_no_test_patient():
    """A thousand features without meaning: selected inside the folds, accuracy is that of chance."""
    rng = np.random.default_rng(1)
    data = Outcomes(rng.normal(size=(50, 1000)), np.arange(50) % 2)
    predicted, _, _ = cross_validate(data, Classifier(n_features=20, n_repeats=10))
    assert abs(balanced_accuracy(predicted[0], data.label).mean() - 0.5) < 0.15


def test_circular_outcomes_are_said(caplog):
    adata = make_patients()
    gp.tl.cluster_patients(adata, features=["f0", "f1", "f2"])
    gp.tl.predict_outcome(adata, outcome="patient_cluster", n_repeats=1, progress=False)
    assert "was made by tl.cluster_patients from 3 of these features (f0, f1, f2)" in caplog.text
    assert "circular" in gp.get.outcome(adata).attrs["notes"]["warnings"][0]
    caplog.clear()
    adata.var["kind"] = np.where(np.arange(40) < 3, "a", "b")
    gp.tl.predict_outcome(adata, outcome="patient_cluster", kind="b", n_repeats=1, progress=False)
    assert "circular" not in caplog.text
    assert "outcome_made_of_same_slides" in gp.get.outcome(adata).attrs["notes"]


def test_missing_labels_and_values_are_counted():
    adata = make_patients()
    adata.obs.loc["P3", "response"] = None
    adata.X[5, 0] = np.nan
    gp.tl.predict_outcome(adata, outcome="response", n_repeats=1, progress=False)
    notes = gp.get.outcome(adata).attrs["notes"]
    assert notes["n_analysed"] == 59
    assert "1 patients have no 'response' and are left out: P3" in notes["warnings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "x"}, "outcome='x' is not a column"),
        ({"outcome": "one"}, "one class only"),
        ({"outcome": "age"}, "it must be a class, not a number"),
        ({"outcome": "rare"}, "the rarest outcome has 2 patients"),
        ({"decision": "vote"}, "decision='vote'"),
        ({"n_features": 0}, "n_features=0"),
        ({"group_key": "one"}, "only 1 groups"),
        ({"kind": "x"}, r"the table has no var\['kind'\]"),
    ],
)
def test_bad_input(change, message):
    adata = make_patients()
    adata.obs["one"] = "x"
    adata.obs["rare"] = np.where(np.arange(60) < 2, "a", "b")
    with pytest.raises(ValueError, match=message):
        gp.tl.predict_outcome(adata, **({"outcome": "response", "n_repeats": 1, "progress": False} | change))


def test_clusters_under_another_name_are_circular(caplog):
    adata = make_patients()
    gp.tl.cluster_patients(adata)
    adata.obs["mine"] = np.where(adata.obs["patient_cluster"] == "cluster_1", "x", "y")
    gp.tl.predict_outcome(adata, outcome="mine", n_repeats=1, progress=False)
    assert "was made (as 'patient_cluster') by tl.cluster_patients" in caplog.text
    assert gp.get.outcome(adata).attrs["notes"]["descriptive"]
    gp.tl.predict_outcome(adata, outcome="response", n_repeats=1, progress=False)
    assert not gp.get.outcome(adata).attrs["notes"]["descriptive"]
