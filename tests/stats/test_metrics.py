"""Metrics against reference tables and against scipy, scikit-learn and brute force."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

from ghistpy.stats import metrics as m


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = rng.poisson(rng.gamma(1, 1, size=12), size=(400, 12)).astype(float)
    predicted = np.maximum(0.5 * truth + rng.normal(size=truth.shape), 0)
    truth[:, 3] = 2.0  # constant truth
    predicted[:, 5] = 0.1  # constant prediction
    return truth, predicted


@pytest.mark.data
def test_single_cell_crops_of_the_paper(data_dir):
    folder = data_dir / "golden" / "downstream"
    cells, expected = pd.read_csv(folder / "sc_crops.csv"), pd.read_csv(folder / "sc_crops_metrics_expected.csv")
    expected = expected.rename(columns={"ssim": "ssim_global", "auc_gt0": "auc", "js_div": "js_divergence"})
    for sample, want in expected.groupby("sample"):
        crop = cells[cells["sample"] == sample]
        truth = crop[[f"{g}_gt" for g in want["gene"]]].to_numpy()
        predicted = crop[[f"{g}_pred" for g in want["gene"]]].to_numpy()
        got = m.gene_metrics(truth, predicted)
        for name in want.columns.intersection(list(m.METRICS)):
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-6, err_msg=f"{sample} {name}")
        assert (want["n"] == len(crop)).all()


@pytest.mark.data
def test_epcam_of_the_paper(data_dir):
    folder = data_dir / "golden" / "downstream"
    table = pd.read_csv(folder / "fig2g_EPCAM.csv.gz")
    want = json.loads((folder / "fig2g_EPCAM_expected.json").read_text())
    got = m.gene_metrics(table[["gt"]].to_numpy(), table[["pred"]].to_numpy(), ["pearson", "spearman", "rmse"])
    assert len(table) == want["n"]
    for name, value in got.items():
        assert value[0] == pytest.approx(want[name], abs=want["tol"])


@pytest.mark.data
def test_summaries_of_the_papers_gene_sets(data_dir):
    folder = data_dir / "golden" / "downstream"
    keys = ["figure", "sample", "model", "n"]
    genes = pd.read_csv(folder / "pcc_per_gene.csv")
    expected = pd.read_csv(folder / "pcc_per_gene_expected.csv").set_index(keys)
    assert len(expected) == genes.groupby(keys).ngroups
    for key, group in genes.groupby(keys):
        got, want = m.summarise(group["corr"].to_numpy()), expected.loc[key]
        assert got.n == want["count"]
        assert got.n + got.n_nan == len(group)
        assert got.median == pytest.approx(want["median"], abs=1e-7)
        assert got.mean == pytest.approx(want["mean"], abs=1e-7)
        assert got.median_nan0 == pytest.approx(group["corr"].fillna(0).median(), abs=1e-12)


def test_equals_scipy_and_sklearn(pair):
    truth, predicted = pair
    got = m.gene_metrics(truth, predicted)
    for g in range(truth.shape[1]):
        t, p = truth[:, g], predicted[:, g]
        rmse = np.sqrt(np.mean((t - p) ** 2))
        assert got["rmse"][g] == pytest.approx(rmse, rel=1e-12)
        assert got["js_divergence"][g] == pytest.approx(jensenshannon(t, p, base=2) ** 2, abs=1e-10)
        if g in (3, 5):
            assert np.isnan([got[k][g] for k in ("pearson", "spearman", "ssim_global", "mutual_information")]).all()
            continue
        assert got["pearson"][g] == pytest.approx(pearsonr(t, p)[0], abs=1e-12)
        assert got["spearman"][g] == pytest.approx(spearmanr(t, p)[0], abs=1e-12)
        assert got["auc"][g] == pytest.approx(roc_auc_score(t > 0, p), abs=1e-12)
        assert got["nrmse_range"][g] == pytest.approx(rmse / np.ptp(t), rel=1e-12)
        assert got["nrmse_sd"][g] == pytest.approx(rmse / t.std(ddof=1), rel=1e-12)
    assert np.isnan(got["nrmse_range"][3])
    assert np.isnan(got["auc"][3])
    assert got["auc"][5] == 0.5  # a constant prediction ranks nothing, but the classes exist


def test_mutual_information_equals_sklearn_on_the_same_bins():
    rng = np.random.default_rng(1)
    t = rng.permutation(8000).astype(float)
    p = t + rng.normal(scale=2000, size=8000)
    k = 20  # = 8000 ** (1 / 3), no ties: bins are exact k-quantiles
    bins = [np.argsort(np.argsort(v)) * k // 8000 for v in (t, p)]
    want = normalized_mutual_info_score(*bins, average_method="geometric")
    assert m.mutual_information(t, p)[0] == pytest.approx(want, abs=1e-12)
    ties = np.repeat([0.0, 1.0], 4000)
    assert m.mutual_information(ties, ties)[0] == pytest.approx(1.0)


def test_single_functions_are_the_same_numbers(pair):
    got = m.gene_metrics(*pair)
    single = {
        "pearson": m.pearson(*pair),
        "spearman": m.spearman(*pair),
        "rmse": m.rmse(*pair),
        "nrmse_range": m.nrmse(*pair),
        "nrmse_sd": m.nrmse(*pair, by="sd"),
        "ssim_global": m.ssim_global(*pair),
        "auc": m.auc(*pair),
        "js_divergence": m.js_divergence(*pair),
        "mutual_information": m.mutual_information(*pair),
    }
    assert set(single) == set(m.METRICS)
    for name, value in single.items():
        np.testing.assert_array_equal(value, got[name])


def test_sparse_and_blocks_do_not_change_anything(pair, monkeypatch):
    want = m.gene_metrics(*pair)
    monkeypatch.setattr(m, "_BLOCK_VALUES", 900)
    got = m.gene_metrics(sparse.csr_matrix(pair[0]), sparse.coo_array(pair[1].astype(np.float64)))
    for name in m.METRICS:
        np.testing.assert_array_equal(got[name], want[name])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 1e3), st.floats(-1e3, 1e3))
def test_order_scale_and_offset(seed, scale, offset):
    rng = np.random.default_rng(seed)
    t, p = rng.normal(size=(2, 30, 3))
    order = rng.permutation(30)
    base, moved = m.gene_metrics(t, p), m.gene_metrics(t[order], p[order])
    for name in m.METRICS:
        np.testing.assert_allclose(moved[name], base[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(m.pearson(t, p * scale + offset), base["pearson"], atol=1e-7)
    np.testing.assert_allclose(m.auc(t, np.exp(p)), base["auc"], atol=1e-12)


def test_constant_up_to_rounding_is_constant():
    column = np.full((50, 1), 0.1) * 3  # sums of this are not exact
    wobble = column * (1 + 1e-15 * np.arange(50)[:, None])
    assert np.isnan(m.pearson(np.arange(50.0), wobble)).all()
    small = np.arange(50.0) * 1e-7  # small, but it varies
    assert m.pearson(small, small)[0] == pytest.approx(1.0)


def test_one_observation_and_all_zero():
    got = m.gene_metrics(np.zeros((1, 2)), np.zeros((1, 2)))
    assert np.isnan(got["pearson"]).all()
    assert got["rmse"].tolist() == [0, 0]
    assert got["js_divergence"].tolist() == [0, 0]  # both uniform


def test_summaries_count_nan():
    got = m.summarise([np.nan, 0.5, 0.1, np.nan, np.nan])
    assert (got.n, got.n_nan, got.median, got.median_nan0, got.mean) == (2, 3, 0.3, 0.0, 0.3)
    empty = m.summarise([np.nan])
    assert np.isnan(empty.median)
    assert empty.median_nan0 == 0.0


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "one shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no observation"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "truth: 6 values are NaN"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), "predicted: 6 values are NaN or infinite"),
    ],
)
def test_bad_input(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        m.gene_metrics(truth, predicted)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"metrics: unknown \['r2'\]"):
        m.gene_metrics(np.zeros((3, 2)), np.zeros((3, 2)), ["r2"])
    with pytest.raises(ValueError, match="by: expected 'range' or 'sd'"):
        m.nrmse(np.zeros((3, 2)), np.zeros((3, 2)), by="iqr")
