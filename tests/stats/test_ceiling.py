"""The noise ceiling against a simulation that knows it, Moran's I against its double sum."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ghistpy.stats.autocorrelation import morans_i
from ghistpy.stats.ceiling import noise_ceiling
from ghistpy.stats.depth import depth_adjusted_pearson
from ghistpy.stats.metrics import pearson


def test_ceiling_is_what_the_latent_rate_reaches():
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, [0.5, 2, 10, 50], size=(4000, 4))
    counts = rng.poisson(rate)
    reached = pearson(np.log1p(counts), np.log1p(rate))
    np.testing.assert_allclose(noise_ceiling(sparse.csr_array(counts)).pearson, reached, atol=0.04)


def test_ceiling_of_spots_with_depth():
    rng = np.random.default_rng(1)
    total = np.exp(rng.normal(8, 0.5, 3000))
    share = np.exp(rng.normal(size=(3000, 3)) * 0.5) * [1e-3, 4e-3, 2e-2]
    counts = rng.poisson(total[:, None] * share)
    got = noise_ceiling(counts, total=total)
    truth = np.log1p(1e4 * counts / total[:, None])
    latent = np.log1p(1e4 * share)
    np.testing.assert_allclose(got.depth_adjusted, depth_adjusted_pearson(truth, latent, total), atol=0.05)
    np.testing.assert_allclose(got.pearson[1:], pearson(truth, latent)[1:], atol=0.02)
    # both halves share the depth, and where counts are few it shows in the values
    assert got.pearson[0] > got.depth_adjusted[0]


@pytest.mark.data
def test_agrees_with_the_her2st_scorer(data_dir):
    spec = importlib.util.spec_from_file_location("score_her2st", data_dir / "tools" / "score_her2st.py")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    folder = str(data_dir / "data" / "her2st")
    counts, meta = scorer.load(folder, "C2")
    genes = counts.columns[np.argsort(-counts.to_numpy().sum(0), kind="stable")[:40]].tolist()
    index = np.arange(40)
    want = scorer.ceiling(folder, "C2", genes, {"top": index}, n_rep=3)["top"]
    got = noise_ceiling(counts[genes].to_numpy(), total=meta["total"].to_numpy(), n_repeats=5)
    # other random splits of the same counts
    assert np.median(np.nan_to_num(got.pearson)) == pytest.approx(want["raw"]["median"], abs=0.02)
    assert np.median(np.nan_to_num(got.depth_adjusted)) == pytest.approx(want["depth_adjusted"]["median"], abs=0.02)
    assert isinstance(meta, pd.DataFrame)


def test_ceiling_edges():
    counts = np.zeros((20, 2), int)
    counts[:, 1] = np.random.default_rng(0).poisson(5, 20)  # pure noise
    got = noise_ceiling(counts).pearson
    assert np.isnan(got[0])
    assert got[1] < 0.9
    assert (
        noise_ceiling(counts, n_repeats=3, seed=4).pearson[1] == noise_ceiling(counts, n_repeats=3, seed=4).pearson[1]
    )
    with pytest.raises(ValueError, match="needs whole counts"):
        noise_ceiling(np.log1p(counts))
    with pytest.raises(ValueError, match="20 totals are smaller"):
        noise_ceiling(counts + 1, total=np.ones(20))


def test_morans_i_equals_the_double_sum():
    rng = np.random.default_rng(0)
    weights = rng.random((30, 30)) * (rng.random((30, 30)) < 0.2)
    np.fill_diagonal(weights, 0)
    values = rng.normal(size=(30, 3))
    values[:, 2] = 5.0
    z = values - values.mean(0)
    double = np.array([sum(weights[i, j] * z[i, g] * z[j, g] for i in range(30) for j in range(30)) for g in range(2)])
    want = 30 / weights.sum() * double / (z[:, :2] ** 2).sum(0)
    got = morans_i(sparse.csr_array(values), sparse.csr_array(weights))
    np.testing.assert_allclose(got[:2], want, rtol=1e-10)
    assert np.isnan(got[2])
    assert np.isnan(morans_i(values, sparse.csr_array((30, 30)))).all()
    with pytest.raises(ValueError, match="weights: expected"):
        morans_i(values, sparse.eye_array(4))
