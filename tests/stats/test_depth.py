"""Depth adjustment against an independent scorer and against what it is for."""

import importlib.util

import numpy as np
import pytest
from scipy import sparse

from ghistpy.stats.depth import depth_adjusted_pearson, depth_basis
from ghistpy.stats.metrics import pearson


def _spots(n=150, g=20, seed=0):
    rng = np.random.default_rng(seed)
    total = np.exp(rng.normal(8, 0.7, n)).round()
    rate = rng.gamma(1, 1e-3, g) * np.exp(rng.normal(size=(n, g)) * 0.3)
    counts = rng.poisson(total[:, None] * rate)
    truth = np.log1p(1e4 * counts / total[:, None])
    predicted = np.log1p(1e4 * rate) + rng.normal(size=(n, g)) * 0.2 + 0.3 * np.log(total)[:, None]
    predicted[:, 4] = 1.0
    truth[:, 7] = 0.0
    return truth, predicted, total


@pytest.mark.data
def test_equals_the_her2st_scorer(data_dir):
    spec = importlib.util.spec_from_file_location("score_her2st", data_dir / "tools" / "score_her2st.py")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    truth, predicted, total = _spots()
    basis = scorer.depth_cov(total, 3)
    want = scorer.colcorr(scorer.resid(truth, basis), scorer.resid(predicted, basis))
    got = depth_adjusted_pearson(truth, predicted, total)
    assert np.isnan(want).sum() == 2
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(pearson(truth, predicted), scorer.colcorr(truth, predicted), rtol=0, atol=1e-10)


def test_equals_least_squares_within_sections():
    truth, predicted, total = _spots()
    groups = np.repeat(["a", "b", "b"], 50)
    left = []
    for values in (truth, predicted):
        out = np.empty_like(values)
        for name in ("a", "b"):
            rows = groups == name
            x = np.vander((np.log(total[rows]) - 8) / 0.7, 4)
            out[rows] = values[rows] - x @ np.linalg.lstsq(x, values[rows], rcond=None)[0]
        left.append(out)
    want = [np.corrcoef(left[0][:, g], left[1][:, g])[0, 1] for g in range(20) if g not in (4, 7)]
    got = depth_adjusted_pearson(sparse.csr_array(truth), predicted, total, groups=groups)
    np.testing.assert_allclose(np.delete(got, [4, 7]), want, atol=1e-9)


def test_depth_alone_scores_nothing_but_a_line_leaks():
    truth, _, total = _spots(n=2000)
    depth = np.repeat(np.log(total)[:, None] ** 2, 20, axis=1)
    assert np.isnan(depth_adjusted_pearson(truth, depth, total)).all()
    line = depth_adjusted_pearson(truth, depth, total, degree=1)
    assert np.nanmax(np.abs(line)) > 0.01


def test_equal_depth_and_few_spots():
    truth, predicted, _ = _spots()
    same = depth_adjusted_pearson(truth, predicted, np.full(150, 1000.0))
    np.testing.assert_allclose(same, pearson(truth, predicted), atol=1e-12)
    assert np.isnan(depth_adjusted_pearson(truth[:4], predicted[:4], [10, 20, 30, 50])).all()


def test_bad_totals():
    with pytest.raises(ValueError, match="total: 2 of 3 spots have a total that is not above 0"):
        depth_basis([1.0, 0.0, np.nan])
    with pytest.raises(ValueError, match="total: expected one value per observation"):
        depth_adjusted_pearson(np.zeros((3, 1)), np.zeros((3, 1)), [1.0, 2.0])
