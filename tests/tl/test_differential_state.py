"""Differential state: pseudobulk, moderated t, families of tests; clusters of patients."""

import importlib.util
import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import ghistpy as gp
from ghistpy.stats.multiple import adjust_pvalues


def make_features(n=24, genes=60, *, seed=0, types=("B", "T/NK")):
    """Gene g5 of B differs between arms by 2."""
    rng = np.random.default_rng(seed)
    var = pd.DataFrame([(f"g{i}", t) for t in types for i in range(genes)], columns=["gene", "cell_type"])
    var["kind"] = "gene_mean_celltype"
    var.index = var["cell_type"] + "--" + var["gene"]
    arm = np.array(["b", "a"])[np.arange(n) % 2]
    sd = np.sqrt(4 / rng.chisquare(4, len(var)))
    X = rng.normal(size=(n, len(var))) * sd
    X[:, 5] = rng.normal(size=n) * 0.5 + 2.0 * (arm == "b")
    obs = pd.DataFrame(
        {"arm": arm, "age": rng.normal(size=n), "pair": np.arange(n) // 2}, index=[f"P{i}" for i in range(n)]
    )
    return anndata.AnnData(X, obs=obs, var=var)


def make_cells(n_patients=10, *, counts=False, seed=0):
    """Cells of two types; gene g3 of type B is higher in arm b; patient P0 has 4 cells of B."""
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(n_patients):
        for t, n in (("B", 4 if p == 0 else 30), ("T", 25)):
            rows += [(f"P{p}", t, "ab"[p % 2], p)] * n
    obs = pd.DataFrame(rows, columns=["patient", "cell_type", "arm", "number"])
    obs["own"] = np.arange(len(obs))
    obs.index = [f"c{i}" for i in range(len(obs))]
    rate = np.full((len(obs), 40), 3.0) * rng.lognormal(0, 0.1, 40)
    rate[((obs["cell_type"] == "B") & (obs["arm"] == "b")).to_numpy(), 3] *= 3
    X = rng.poisson(rate).astype(np.float32)
    X = X if counts else np.log1p(X)
    uns = {"ghistpy": {"units": "counts" if counts else "log1p(expected count)"}}
    return anndata.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(40)]), uns=uns)


def test_planted_difference_and_families():
    adata = make_features()
    gp.tl.differential_state(adata, groupby="arm", reference="a")
    frame = gp.get.differential_state(adata)
    top = frame.sort_values("pval").iloc[0]
    assert top[["gene", "cell_type", "contrast"]].tolist() == ["g5", "B", "b - a"]
    arm = adata.obs["arm"].to_numpy()
    assert top["log_fc"] == pytest.approx(adata.X[arm == "b", 5].mean() - adata.X[arm == "a", 5].mean())
    for name, part in frame.groupby("cell_type"):
        want = stats.false_discovery_control(part["pval"])
        np.testing.assert_allclose(part["pval_adj_local"], want, err_msg=name)
    np.testing.assert_allclose(frame["pval_adj_global"], stats.false_discovery_control(frame["pval"]))
    np.testing.assert_allclose(frame["pval_bonferroni"], np.minimum(frame["pval"] * 120, 1))
    notes = frame.attrs["notes"]
    assert notes["meaning"] == ""  # nothing says that these are predictions
    assert notes["reference"] == "a"


def test_calibrated_by_patients():
    """No difference anywhere: 5 % of 4,000 tests, also with a covariate and with missing patients."""
    adata = make_features(n=12, genes=2000, seed=4)
    adata.X[:, 5] = np.random.default_rng(0).normal(size=12)
    adata.X[:3, 2000:] = np.nan
    gp.tl.differential_state(adata, groupby="arm", covariates=["age"])
    p = gp.get.differential_state(adata)["pval"]
    assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(p))
    assert (gp.get.differential_state(adata)["pval_adj_global"] < 0.05).sum() <= 2


def test_paired_design_equals_the_differences():
    """With two rows a pair, the effect is the mean difference, and shifts of pairs do not matter."""
    adata = make_features()
    shifted = adata.copy()
    shifted.X += np.random.default_rng(1).normal(size=12)[adata.obs["pair"].to_numpy()][:, None] * 20
    for table in (adata, shifted):
        gp.tl.differential_state(table, groupby="arm", reference="a", pair_key="pair")
    a, b = gp.get.differential_state(adata), gp.get.differential_state(shifted)
    np.testing.assert_allclose(a["pval"], b["pval"], rtol=1e-6)
    d = adata.X[::2] - adata.X[1::2]
    np.testing.assert_allclose(a["log_fc"].to_numpy(), d.mean(0), rtol=1e-9)


def test_three_groups_against_the_reference():
    adata = make_features(n=30)
    adata.obs["arm"] = pd.Categorical(np.array(["x", "y", "z"])[np.arange(30) % 3], categories=["y", "x", "z"])
    gp.tl.differential_state(adata, groupby="arm")
    frame = gp.get.differential_state(adata)
    assert set(frame["contrast"]) == {"x - y", "z - y"}
    want = adata.X[adata.obs["arm"] == "z", 7].mean() - adata.X[adata.obs["arm"] == "y", 7].mean()
    got = frame.query("contrast == 'z - y' and gene == 'g7' and cell_type == 'B'")["log_fc"].item()
    assert got == pytest.approx(want)


def test_cells_are_pooled_by_patient():
    adata = make_cells()
    gp.tl.differential_state(adata, groupby="arm", patient_key="patient")
    frame = gp.get.differential_state(adata)
    assert frame.sort_values("pval").iloc[0][["gene", "cell_type"]].tolist() == ["g3", "B"]
    notes = frame.attrs["notes"]
    assert notes["pairs_dropped"] == ["P0/B"]
    assert frame.query("cell_type == 'B'")["n_reference"].unique().tolist() == [4]  # P0 is left out
    rows = (adata.obs["cell_type"] == "T").to_numpy()
    means = pd.DataFrame(adata.X[rows].toarray()).groupby(adata.obs["patient"][rows].to_numpy()).mean()
    arm = adata.obs.groupby("patient")["arm"].first()[means.index]
    want = means[arm.to_numpy() == "b"].mean() - means[arm.to_numpy() == "a"].mean()
    np.testing.assert_allclose(frame.query("cell_type == 'T'")["log_fc"], want, atol=1e-6)
    gp.tl.differential_state(adata, groupby="arm", patient_key="patient", min_cells=4, weighted=True)
    weighted = gp.get.differential_state(adata)
    assert weighted.attrs["notes"]["pairs_dropped"] == []
    assert not np.allclose(weighted.query("cell_type == 'B'")["log_fc"], frame.query("cell_type == 'B'")["log_fc"])


def test_counts_are_summed():
    adata = make_cells(counts=True)
    gp.tl.differential_state(adata, groupby="arm", patient_key="patient")
    frame = gp.get.differential_state(adata)
    top = frame.sort_values("pval").iloc[0]
    assert top[["gene", "cell_type"]].tolist() == ["g3", "B"]
    assert top["log_fc"] == pytest.approx(np.log2(3), abs=0.25)
    assert frame.attrs["notes"]["meaning"] == ""


def test_result_survives_the_disk(tmp_path):
    adata = make_features()
    gp.tl.differential_state(adata, groupby="arm")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = gp.get.differential_state(anndata.read_h5ad(tmp_path / "a.h5ad"))
    pd.testing.assert_frame_equal(again, gp.get.differential_state(adata), check_dtype=False, check_categorical=False)


def test_slides_are_pooled():
    from spatialdata import SpatialData

    cells = make_cells()
    slides = {}
    for patient in cells.obs["patient"].unique():
        table = cells[cells.obs["patient"] == patient].copy()
        half = table.n_obs // 2
        for k, part in enumerate((table[:half], table[half:])):
            sdata = SpatialData(tables={"insilico": part.copy()}, attrs={"ghistpy": {"patient": patient}})
            slides[f"{patient}_{k}"] = sdata
    slides["broken"] = SpatialData()
    clinical = cells.obs.groupby("patient")[["arm"]].first()
    clinical.loc["P99"] = "a"
    found = gp.tl.differential_state(slides, groupby="arm", clinical=clinical)
    gp.tl.differential_state(cells, groupby="arm", patient_key="patient")
    a, b = gp.get.differential_state(found), gp.get.differential_state(cells)
    np.testing.assert_allclose(a["log_fc"], b["log_fc"], rtol=1e-5)
    warnings = " ".join(a.attrs["notes"]["warnings"])
    assert "1 patients have a clinical row but no cells: P99" in warnings
    assert "1 slides are left out: broken" in warnings
    assert found.shape == (10, 80)


@pytest.mark.skipif(importlib.util.find_spec("pydeseq2") is None, reason="extra 'state' is not installed")
def test_deseq2_agrees_in_direction():
    adata = make_cells(counts=True)
    gp.tl.differential_state(adata, groupby="arm", patient_key="patient", method="deseq2")
    top = gp.get.differential_state(adata).sort_values("pval").iloc[0]
    assert top[["gene", "cell_type"]].tolist() == ["g3", "B"]
    assert top["log_fc"] == pytest.approx(np.log2(3), abs=0.25)


def test_deseq2_says_how_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydeseq2", None)
    monkeypatch.setitem(sys.modules, "pydeseq2.dds", None)
    with pytest.raises(ImportError, match=r"ghistpy\[state\]"):
        gp.tl.differential_state(make_cells(counts=True), groupby="arm", patient_key="patient", method="deseq2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groupby": "sex"}, "groupby='sex' is not a column"),
        ({"groupby": "one"}, "one group only"),
        ({"reference": "c"}, r"reference='c' is not among the groups \['a', 'b'\]"),
        ({"method": "wilcoxon"}, "method='wilcoxon': expected one of 'moderated_t', 'deseq2'"),
        ({"method": "deseq2"}, "needs counts, and the table holds logarithms"),
        ({"weighted": True}, "does not know numbers of cells"),
        ({"min_patients": 20}, "no cell type has 20 patients in two groups"),
        ({"covariates": ["bmi"]}, "covariates='bmi' is not a column"),
        ({"kind": "x"}, r"no features of \['x'\]"),
    ],
)
def test_bad_input(change, message):
    adata = make_features()
    adata.obs["one"] = "x"
    with pytest.raises(ValueError, match=message):
        gp.tl.differential_state(adata, **({"groupby": "arm"} | change))


def test_bad_tables():
    plain = anndata.AnnData(np.zeros((3, 2)), obs=pd.DataFrame({"arm": list("aab")}, index=list("xyz")))
    with pytest.raises(ValueError, match="neither a table of features"):
        gp.tl.differential_state(plain, groupby="arm")
    doubled = make_features()
    doubled.var["gene"] = "g0"
    with pytest.raises(ValueError, match="genes occur more than once"):
        gp.tl.differential_state(doubled, groupby="arm")
    cells = make_cells()
    cells.X.data[0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        gp.tl.differential_state(cells, groupby="arm", patient_key="patient")


@pytest.mark.data
def test_golden_adjusted_p_values(data_dir):
    folder = data_dir / "golden" / "downstream"
    frame = pd.read_csv(folder / "supp15_de.csv")
    got = adjust_pvalues(frame["p_val"].to_numpy(), family=frame["cluster_id"].to_numpy())
    np.testing.assert_allclose(got, frame["p_adj.loc"], atol=1e-14)
    expected = json.loads((folder / "supp15_expected.json").read_text())
    for name, part in frame.assign(own=got).groupby("cluster_id"):
        assert len(part) == expected[name]["n"]
        assert (part["p_val"] < 0.05).sum() == expected[name]["p<.05"]
        assert (part["own"] < 0.05).sum() == expected[name]["loc<.05"]
        assert (part["p_adj.glb"] < 0.05).sum() == expected[name]["glb<.05"]


def make_null_cells(seed, genes=60):
    """Patients differ as much as their cells do, and not by arm; 15 to 600 cells each."""
    rng = np.random.default_rng(seed)
    cells = rng.choice([15, 30, 100, 600], 12)
    X = rng.normal(size=(12, genes))[np.repeat(np.arange(12), cells)] + rng.normal(size=(cells.sum(), genes))
    obs = pd.DataFrame({"patient": np.repeat([f"P{i}" for i in range(12)], cells), "cell_type": "B"})
    obs["arm"] = np.repeat(np.array(["a", "b"])[np.arange(12) % 2], cells)
    return anndata.AnnData(X, obs=obs.set_index("c" + obs.index.astype(str)))


def test_weighted_is_a_test():
    pvalues = []
    for seed in range(25):
        adata = make_null_cells(seed)
        gp.tl.differential_state(adata, groupby="arm", patient_key="patient", weighted=True)
        pvalues.append(gp.get.differential_state(adata)["pval"])
    p = np.concatenate(pvalues)
    for level in (0.01, 0.05, 0.1):
        assert abs((p < level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p))
    assert gp.get.differential_state(adata).attrs["notes"]["weighted"]
    assert gp.get.differential_state(adata).attrs["notes"]["meaning"] == ""  # measured logarithms


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_rows_of_a_patient_are_averaged_and_count_once():
    adata = make_features()
    double = anndata.concat([adata, adata])
    double.var = adata.var
    double.obs_names = [f"S{i}" for i in range(48)]
    double.obs["patient"] = np.tile(adata.obs_names, 2)
    double.X[:24] += 0.3
    double.X[24:] -= 0.3
    gp.tl.differential_state(adata, groupby="arm", reference="a")
    gp.tl.differential_state(double, groupby="arm", reference="a", patient_key="patient")
    a, b = gp.get.differential_state(adata), gp.get.differential_state(double)
    pd.testing.assert_frame_equal(a, b)
    assert (b["n_test"].iloc[0], b["n_reference"].iloc[0]) == (12, 12)
    double.obs.loc["S0", "arm"] = "a"
    with pytest.raises(ValueError, match="rows with different 'arm': P0"):
        gp.tl.differential_state(double, groupby="arm", patient_key="patient")


@pytest.mark.parametrize("name", ["patient_cluster", "mine", "risk"])
def test_groups_made_of_these_features_are_descriptive(name, caplog):
    """Clusters of noise differ in what they were made of: a fifth of the p-values is below 0.05."""
    rng = np.random.default_rng(0)
    var = pd.DataFrame({"gene": [f"g{i}" for i in range(50)], "cell_type": "B"})
    obs = pd.DataFrame(
        {"months": rng.exponential(20, 40), "dead": np.arange(40) % 2}, index=[f"P{i}" for i in range(40)]
    )
    adata = anndata.AnnData(rng.normal(size=(40, 50)), obs=obs, var=var.set_index("B--" + var["gene"]))
    if name == "risk":
        follow_up = {"time_key": "months", "event_key": "dead"}
        gp.tl.survival_cv(adata, **follow_up, n_repeats=2, n_features=2, progress=False)
        gp.tl.stratify_risk(adata)
    else:
        gp.tl.cluster_patients(adata)
        adata.obs["mine"] = adata.obs["patient_cluster"].astype(str).str[-1]
    caplog.clear()
    gp.tl.differential_state(adata, groupby="risk_group" if name == "risk" else name)
    frame = gp.get.differential_state(adata)
    assert name == "risk" or (frame["pval"] < 0.05).mean() > 0.15
    assert frame.attrs["notes"]["descriptive"]
    assert frame.attrs["notes"]["meaning_of_pval"].startswith("descriptive")
    assert "differences between them are there by construction" in caplog.text
    adata.obs["arm"] = np.array(["a", "b"])[rng.permutation(40) % 2]
    gp.tl.differential_state(adata, groupby="arm")
    assert not gp.get.differential_state(adata).attrs["notes"]["descriptive"]


def test_cohort_on_disk_with_a_broken_slide(tmp_path, caplog):
    """Patients and clinical columns come from the manifest; slides that fail are reported."""
    cells = make_cells(12)
    cells.obs["patient"] = cells.obs["patient"].astype(str)
    rows = []
    for patient, part in cells.obs.groupby("patient"):
        for k, half in enumerate((part.index[::2], part.index[1::2])):
            table = cells[half].copy()
            table.obs["patient"] = "not the one of the manifest"
            table.write_h5ad(tmp_path / f"{patient}_{k}.h5ad")
            arm = cells.obs.loc[half[0], "arm"]
            rows.append({"sample": f"{patient}_{k}", "path": f"{patient}_{k}.h5ad", "patient": patient, "arm": arm})
    broken = {"sample": "X", "path": "X.h5ad", "patient": "PX", "arm": "a"}
    (tmp_path / "X.h5ad").write_bytes(b"no table")
    pd.DataFrame([*rows, broken]).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = gp.io.read_cohort(tmp_path / "cohort.csv")
    found = gp.tl.differential_state(cohort, groupby="arm")
    frame = gp.get.differential_state(found)
    gp.tl.differential_state(cells, groupby="arm", patient_key="patient")
    want = gp.get.differential_state(cells)
    np.testing.assert_allclose(frame["log_fc"], want["log_fc"], rtol=1e-5)
    np.testing.assert_allclose(frame["pval"], want["pval"], rtol=1e-4)
    assert found.obs["arm"].value_counts().to_dict() == {"a": 6, "b": 6}
    assert list(frame.attrs["notes"]["failures"]) == ["X"]
    assert "1 slides are left out: X" in caplog.text
    assert "predictions" in frame.attrs["notes"]["meaning"]  # their tables say so
    cohort.obs.loc["P0_1", "arm"] = "b"
    with pytest.raises(ValueError, match="'arm' has different values within the patients P0"):
        gp.tl.differential_state(cohort, groupby="arm")


def test_slides_without_clinical_columns():
    with pytest.raises(ValueError, match="clinical=None: slides have no clinical columns"):
        gp.tl.differential_state({"a": make_cells()}, groupby="arm")


def test_what_cannot_be_tested_is_said(caplog):
    adata = make_features()
    adata.X[:, 3], adata.X[:, 4] = np.nan, 1.0
    adata.obs.loc["P0", "pair"] = np.nan
    gp.tl.differential_state(adata, groupby="arm", pair_key="pair")
    notes = gp.get.differential_state(adata).attrs["notes"]
    assert notes["features_constant"] == ["B--g4"]
    assert notes["features_without_any_value"] == ["B--g3"]
    assert notes["n_without_covariates"] == 1
    assert "1 patients lack a covariate or their pair and are left out: P0" in caplog.text
    frame = gp.get.differential_state(adata)
    assert len(frame) == 118  # and no more in any family
    assert not {"g3", "g4"} & set(frame.query("cell_type == 'B'")["gene"])
    adata.obs["age"] = (adata.obs["arm"] == "a").astype(float)
    with pytest.raises(ValueError, match=r"\['age'\] determine who is in 'b'"):
        gp.tl.differential_state(adata, groupby="arm", covariates="age")
    adata.obs["number"] = np.arange(24.0)
    with pytest.raises(ValueError, match="groupby='number' has 24 values"):
        gp.tl.differential_state(adata, groupby="number")
    cells = make_cells()
    cells.X = sparse.csr_matrix(cells.X.toarray() * (np.arange(40) > 0))
    cells.obs.iloc[0, cells.obs.columns.get_loc("cell_type")] = None
    gp.tl.differential_state(cells, groupby="arm", patient_key="patient")
    notes = gp.get.differential_state(cells).attrs["notes"]
    assert notes["genes_constant"] == {"B": ["g0"], "T": ["g0"]}
    assert notes["n_cells_without_type"] == 1
    cells.obs.loc["c1", "arm"] = "b"
    with pytest.raises(ValueError, match="'arm' has different values within the patients P0"):
        gp.tl.differential_state(cells, groupby="arm", patient_key="patient")


def test_shares_of_types_are_tested_under_their_name():
    adata = make_features(genes=3)
    adata.var["kind"], adata.var["gene"] = "proportion_logit", ""
    adata = adata[:, [0, 3]].copy()
    adata.X[:, 0] = np.random.default_rng(0).normal(size=24) + 4 * (adata.obs["arm"] == "b")
    gp.tl.differential_state(adata, groupby="arm", reference="a", kind="proportion_logit")
    frame = gp.get.differential_state(adata).set_index("gene")
    assert frame["cell_type"].unique().tolist() == ["all cells"]
    assert frame.loc["B", "pval"] < 1e-6
    assert frame.loc["T/NK", "pval"] > 0.01


@pytest.mark.parametrize("data", ["cells", "slides", "cohort"])
def test_kind_is_refused_where_there_are_no_kinds(data):
    cells = make_cells()
    given = {"cells": cells, "slides": {"S0": cells}, "cohort": gp.Cohort(slides={"S0": cells})}[data]
    with pytest.raises(ValueError, match=r"kind='nonsense': expected None; .* kinds='proportion_clr'\), then"):
        gp.tl.differential_state(given, groupby="arm", patient_key="patient", kind="nonsense")


def test_sums_of_slides_are_kept_on_disk(tmp_path, caplog, monkeypatch):
    cells = make_cells()
    rows = []
    for patient, arm in cells.obs.groupby("patient")["arm"].first().items():
        cells[cells.obs["patient"] == patient].copy().write_h5ad(tmp_path / f"{patient}.h5ad")
        rows.append((patient, f"{patient}.h5ad", patient, arm))
    frame = pd.DataFrame(rows, columns=["sample", "path", "patient", "arm"])
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    cached, of_cohort = [], gp.Cohort.map

    def counting(cohort, *args, **kwargs):
        results = of_cohort(cohort, *args, **kwargs)
        cached.append(results.n_cached)
        return results

    monkeypatch.setattr(gp.Cohort, "map", counting)
    found = [
        gp.get.differential_state(gp.tl.differential_state(gp.io.read_cohort(tmp_path / "cohort.csv"), groupby="arm"))
        for _ in range(2)
    ]
    assert cached == [0, 10]
    assert "cannot be kept" not in caplog.text
    pd.testing.assert_frame_equal(*found)
    gp.tl.differential_state(cells, groupby="arm", patient_key="patient")
    np.testing.assert_allclose(found[0]["pval"], gp.get.differential_state(cells)["pval"], rtol=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
def test_groups_that_differ_in_cells_are_named(weighted, caplog):
    rng = np.random.default_rng(0)
    arm = np.repeat(["few", "many"], 6)
    cells = np.where(arm == "few", 15, 300)
    obs = pd.DataFrame({"patient": np.repeat([f"P{i}" for i in range(12)], cells), "arm": np.repeat(arm, cells)})
    obs = pd.concat([obs.assign(cell_type="B"), obs.groupby("patient").head(12).assign(cell_type="T")])
    adata = anndata.AnnData(rng.normal(size=(len(obs), 20)), obs=obs.set_index(np.arange(len(obs)).astype(str)))
    gp.tl.differential_state(adata, groupby="arm", patient_key="patient", weighted=weighted)
    notes = gp.get.differential_state(adata).attrs["notes"]
    assert notes["median_cells_where_unequal"] == {"B": {"few": 15, "many": 300}}
    assert "differ more than 3 times between groups of 'arm' in B" in caplog.text
    assert ("7 % at 5 %" in caplog.text) == weighted
