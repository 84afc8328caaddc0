"""Cell-type agreement against the paper's tables and scikit-learn."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from ghistpy.stats.types import agreement_from_confusion, composition_agreement, type_agreement


@pytest.mark.data
def test_confusions_of_the_paper(data_dir):
    folder = data_dir / "golden" / "downstream"
    table = pd.read_csv(folder / "celltype_confusion.csv")
    expected = json.loads((folder / "celltype_expected.json").read_text())
    assert set(table["dataset"]) == set(expected)
    for name, group in table.groupby("dataset"):
        want = expected[name]
        truth = np.repeat(group["gt"].to_numpy(), group["n"])
        predicted = np.repeat(group["pred"].to_numpy(), group["n"])
        got = type_agreement(truth.astype(str), predicted.astype(str))
        assert got.confusion.sum() == want["n"]
        assert got.accuracy == pytest.approx(want["accuracy"], abs=want["tol"])
        sides = [dict(zip(got.classes, got.confusion.sum(axis), strict=True)) for axis in (1, 0)]
        composition = composition_agreement(*sides)
        assert len(composition.types) == want["n_types_union"]
        assert composition.rmse == pytest.approx(want["composition_rmse_union_types"], abs=want["tol"])
        assert composition.pearson == pytest.approx(want["composition_pcc_union_types"], abs=want["tol"])


@pytest.mark.data
def test_compositions_of_the_paper(data_dir):
    folder = data_dir / "golden" / "downstream"
    expected = json.loads((folder / "composition_expected.json").read_text())
    table = pd.read_csv(folder / "composition.csv")
    assert set(table["dataset"]) == set(expected)
    for name, group in table.groupby("dataset"):
        want = expected[name]
        # a type with no cell on one side is absent there, as it is in real tables
        truth = {t: n for t, n in zip(group["celltype"], group["gt_n"], strict=True) if n}
        predicted = {t: n for t, n in zip(group["celltype"], group["pred_n"], strict=True) if n}
        got = composition_agreement(truth, predicted)
        assert len(got.types) == want["n_types"]
        for key in ("pearson", "spearman", "rmse"):
            assert getattr(got, key) == pytest.approx(want[key], abs=want["tol"])


def test_equals_sklearn():
    rng = np.random.default_rng(0)
    truth = rng.choice(list("ABCD"), 300, p=[0.6, 0.2, 0.19, 0.01])
    predicted = np.where(rng.random(300) < 0.6, truth, rng.choice(list("ABCE"), 300))
    got = type_agreement(truth, predicted)
    classes = list("ABCDE")
    assert got.classes.tolist() == classes
    np.testing.assert_array_equal(got.confusion, confusion_matrix(truth, predicted, labels=classes))
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(got.precision), precision)
    np.testing.assert_allclose(np.nan_to_num(got.recall), recall)
    np.testing.assert_allclose(got.f1, f1)
    assert got.accuracy == accuracy_score(truth, predicted)
    assert got.macro_f1 == pytest.approx(f1.mean())
    assert np.isnan(got.recall[4])
    assert got.f1[4] == 0


def test_a_class_that_nobody_has_does_not_count():
    got = agreement_from_confusion(["A", "B"], [[5, 0], [0, 0]])
    assert got.macro_f1 == 1.0
    assert np.isnan(got.f1[1])


def test_bad_input():
    with pytest.raises(ValueError, match="one label per cell"):
        type_agreement(["A"], ["A", "B"])
    with pytest.raises(ValueError, match="no cell with both labels"):
        type_agreement([], [])
    with pytest.raises(ValueError, match="predicted: expected finite weights"):
        composition_agreement({"A": 1}, {"A": 0})
    with pytest.raises(ValueError, match="truth: expected finite weights"):
        composition_agreement({"A": -1, "B": 3}, {"A": 1})
