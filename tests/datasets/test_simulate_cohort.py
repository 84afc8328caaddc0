"""Simulated cohorts: planted effects are there, nulls are null, slides have the shares of their patients."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ghistpy as gp
from ghistpy.datasets.registry import REGISTRY


@pytest.fixture(scope="module")
def cohort():
    return gp.datasets.simulate_cohort(n_patients=600, n_genes=60, seed=4)


def test_survival_follows_the_planted_hazards(cohort):
    from statsmodels.duration.hazard_regression import PHReg

    var = cohort.var
    planted = np.flatnonzero(var["log_hr"] != 0)
    fit = PHReg(cohort.obs["time"], cohort.X[:, planted[1:]], status=cohort.obs["event"].to_numpy(int)).fit()
    # gene features are on the scale of their effect; the T/NK share is a log share
    expected = var["log_hr"].to_numpy()[planted[1:]]
    np.testing.assert_allclose(fit.params, expected, atol=0.35)
    share = PHReg(cohort.obs["time"], cohort.X[:, planted], status=cohort.obs["event"].to_numpy(int)).fit()
    assert share.tvalues[0] < -8
    assert cohort.obs["event"].mean() == pytest.approx(0.5, abs=0.05)
    assert (cohort.obs["time"] > 0).all()


def test_states_and_copies_shift_their_features_and_no_other(cohort):
    var, B = cohort.var, (cohort.obs["state"] == "B").to_numpy()
    p = stats.mannwhitneyu(cohort.X[B], cohort.X[~B]).pvalue
    planted = (var["state_effect"] != 0).to_numpy()
    assert (p[planted] < 1e-6).all()
    types = (var["kind"] == "log_share").to_numpy()  # shares sum to one, so the others move, too
    assert (p[~planted & ~types] < 0.05).mean() < 0.15
    for name, row in var[(var["cna_effect"] != 0) & (var["gene"] != "")].iterrows():
        r = stats.spearmanr(cohort[:, name].X.ravel(), cohort.uns["cna"][row["gene"]]).statistic
        assert np.sign(r) == np.sign(row["cna_effect"])
        assert abs(r) > 0.4


def test_no_effect_is_a_null(cohort):
    null = gp.datasets.simulate_cohort(n_patients=300, effect=0, seed=1)
    assert (null.var[["log_hr", "state_effect", "cna_effect"]] == 0).all(axis=None)
    p = stats.mannwhitneyu(null.X[null.obs["state"] == "A"], null.X[null.obs["state"] == "B"]).pvalue
    assert (p < 0.05).mean() < 0.15


def test_seeds(cohort):
    one, two = (gp.datasets.simulate_cohort(n_patients=20, seed=7) for _ in range(2))
    np.testing.assert_array_equal(one.X, two.X)
    pd.testing.assert_frame_equal(one.obs, two.obs)
    assert not np.array_equal(one.X, gp.datasets.simulate_cohort(n_patients=20, seed=8).X)


def test_slides_have_the_composition_of_their_patients():
    truth, cohort = gp.datasets.simulate_cohort(n_patients=10, slides=True, n_cells=400, panel=8, seed=2)
    found = gp.tl.cohort_features(cohort, kinds="proportion_raw", table_key="measured", missing="zero", progress=False)
    assert found.obs_names.tolist() == truth.obs_names.tolist()
    pd.testing.assert_series_equal(found.obs["time"], truth.obs["time"])
    shares = truth.to_df().filter(like="log_share--").rename(columns=lambda c: c.split("--")[1])
    for cell_type in ("T/NK", "Malignant"):
        ours = found[:, f"proportion_raw--{cell_type}"].X.ravel()
        np.testing.assert_allclose(ours, np.exp(shares[cell_type]), atol=0.1)


def test_slides_are_written_with_their_manifest(tmp_path):
    _, cohort = gp.datasets.simulate_cohort(n_patients=10, slides=tmp_path / "c", n_cells=20, panel=5)
    assert (tmp_path / "c" / "manifest.csv").is_file()
    assert cohort[cohort.samples[3]]["measured"].n_obs == 20
    assert cohort.cache_dir is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_patients": 5}, "n_patients=5"),
        ({"n_planted": 30}, "n_planted=30: expected 0 to n_genes / 3 = 20"),
        ({"n_cna_genes": 2}, "n_cna_genes=2"),
        ({"event_fraction": 1.0}, "event_fraction=1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        gp.datasets.simulate_cohort(**options)


@pytest.mark.data
def test_gene_positions(data_dir):
    import gzip

    genes = gp.datasets.gene_positions()
    assert genes.shape == (60483, 5)
    assert genes.set_index("gene").loc["ERBB2", ["chrom", "start", "end", "strand"]].tolist() == [
        "chr17", 39687914, 39730426, "+",
    ]  # fmt: skip
    name = "gene_positions/gencode.v22.annotation.gene.probeMap"
    content = gzip.decompress((data_dir / "data" / f"{name}.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == REGISTRY[name].sha256
