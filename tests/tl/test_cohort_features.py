"""Features of patients: published values, plain loops, plans that are used again, what is missing."""

from __future__ import annotations

import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats as sps
from shapely import Point

import ghistpy as gp
from ghistpy.stats import patient_features as pf
from ghistpy.tl._features import KINDS

GENES = [f"G{i:02d}" for i in range(24)]
TYPES = ["B", "T/NK", "Tumor"]
SETS = {"early": GENES[:11], "late": GENES[12:], "small": GENES[:3]}
PAIRS = [("G00", "G05"), ("G07", "G01"), ("G02", "absent")]


def cells(seed, n=150, types=TYPES, genes=GENES, units="log1p(expected count)"):
    rng = np.random.default_rng(seed)
    X = rng.gamma(1, 1, (n, len(genes))) * (rng.random((n, len(genes))) < 0.7)
    table = AnnData(X, var=pd.DataFrame(index=genes))
    table.obs["cell_type"] = pd.Categorical(
        rng.choice(types, n, p=np.arange(len(types), 0, -1) / (len(types) * (len(types) + 1) / 2))
    )
    table.obsm["spatial"] = rng.uniform(0, 250, (n, 2))
    table.uns["ghistpy"] = {"units": units}
    return table


@pytest.fixture(scope="module")
def slides():
    return {f"S{i}": cells(i) for i in range(3)}


def features(slides, **options):
    return gp.tl.cohort_features(slides, progress=False, **options)


def row(adata, sample, kind):
    return pd.Series(
        adata[sample, adata.var["kind"] == kind].X.ravel(), index=adata.var_names[adata.var["kind"] == kind]
    )


@pytest.mark.data
def test_published_crops(data_dir):
    """All 13 kinds with published values, on the forms that scFeatures used."""
    folder = data_dir / "golden" / "downstream"
    crops, expected = (pd.read_csv(folder / f) for f in ("sc_crops.csv", "sc_crops_scfeatures_expected.csv"))
    names = [c.removesuffix("_pred") for c in crops if c.endswith("_pred") and c != "celltype_pred"]
    slides = {}
    for sample, part in crops.groupby("sample"):
        table = AnnData(part[[f"{g}_pred" for g in names]].to_numpy(), var=pd.DataFrame(index=names))
        table.obs["cell_type"] = pd.Categorical(part["celltype_pred"].to_numpy())
        table.obsm["spatial"] = part[["x", "y"]].to_numpy()
        slides[sample] = table
    # order of first appearance, which fixes the sign of ratios
    types = list(dict.fromkeys(crops["celltype_pred"]))
    found = features(
        slides, genes=names, cell_types=types, missing="zero", moran="all_pairs", window="origin", grid="spatstat"
    )
    assert set(found.var["kind"]) == set(expected["feature_type"])
    for (kind, sample), part in expected.groupby(["feature_type", "sample"]):
        ours = _by_published_name(found, sample, kind)
        theirs = part.set_index("feature")["value"]
        if kind == "celltype_interaction":
            assert ours.drop(theirs.index).eq(0).all()  # pairs that do not occur are not listed there
        else:  # correlations are listed under both orders of their genes
            assert len(ours) == len(theirs) * (2 if kind.startswith("gene_cor") else 1)
        tolerance = {"rtol": 0.02, "atol": 0.05} if kind == "L_stats" else {"rtol": 0, "atol": 1e-6}
        np.testing.assert_allclose(ours[theirs.index], theirs, **tolerance, err_msg=f"{kind} {sample}")


def _by_published_name(found, sample, kind):
    """Our values under the names of the published table (which scrambles names with underscores)."""
    var = found.var[found.var["kind"] == kind]
    values = found[sample, var.index].X.ravel()
    out = {}
    for value, (gene, a, b) in zip(values, var[["gene", "cell_type", "partner"]].to_numpy(), strict=True):
        if kind.startswith("proportion_r") and b:
            out[f"{a}-vs-{b}"] = value
        elif kind == "celltype_interaction":
            out["_".join(sorted(f"{a}_{b}".split("_")))] = value
        elif kind == "L_stats":
            out[f"{a}_{b}"] = value
        elif kind.startswith("gene_cor"):
            for first, second in ((gene, b), (b, gene)):
                out[f"{a}--{first}-with-{second}" if a else f"{first}-with-{second}"] = value
        else:
            out[f"{a}--{gene}" if a and gene else a or gene] = value
    return pd.Series(out)


def test_every_kind_has_its_axis(slides):
    found = features(slides, gene_sets=SETS, lr_pairs=PAIRS)
    assert set(found.var["kind"]) == {*KINDS, "presence"}
    assert found.var_names.is_unique
    assert found.shape[0] == 3
    assert np.isfinite(found.X).all()
    one = found.var.loc["gene_cor_celltype--T/NK--" + "--".join(sorted(_pair(found))[:2])]
    assert (one["kind"], one["cell_type"]) == ("gene_cor_celltype", "T/NK")
    cci = found.var.loc["CCI--B--T/NK--G00--G05"]
    assert cci[["gene", "cell_type", "partner", "partner_gene"]].tolist() == ["G00", "B", "T/NK", "G05"]
    notes = json.loads(found.uns["ghistpy"]["feature_notes"])
    assert notes["gene_sets_left_out"] == ["small"]
    assert notes["lr_pairs_left_out"] == ["G02--absent"]


def _pair(found):
    rows = found.var[(found.var["kind"] == "gene_cor_celltype") & (found.var["cell_type"] == "T/NK")]
    return rows.iloc[0][["gene", "partner"]].tolist()


def test_means_shares_and_correlations_against_loops(slides):
    found = features(slides, kinds=["gene_mean_celltype", "gene_prop_celltype", "gene_cor_celltype"], genes=GENES[:4])
    table = slides["S1"]
    for t in TYPES:
        X = table[table.obs["cell_type"] == t, GENES[:4]].X
        for i, g in enumerate(GENES[:4]):
            at = lambda kind: found["S1", f"{kind}--{t}--{g}"].X.item()  # noqa: E731, B023
            assert at("gene_mean_celltype") == pytest.approx(X[:, i].mean())
            assert at("gene_prop_celltype") == pytest.approx((X[:, i] > 1).mean())
        r = found["S1", f"gene_cor_celltype--{t}--G01--G03"].X.item()
        assert r == pytest.approx(sps.pearsonr(X[:, 1], X[:, 3]).statistic)


def test_gene_sets_against_loops(slides):
    table = slides["S0"]
    found = features(slides, kinds=["pathway_gsva", "pathway_mean", "pathway_prop"], gene_sets=SETS)
    B = (table.obs["cell_type"] == "B").to_numpy()
    score = {k: table[:, SETS["late"]].X.mean(1) - table.X.mean(1) for k, table in slides.items()}
    assert found["S0", "pathway_mean--B--late"].X.item() == pytest.approx(score["S0"][B].mean())
    cut = np.quantile(np.concatenate(list(score.values())), 0.75)
    assert found["S0", "pathway_prop--B--late"].X.item() == pytest.approx((score["S0"][B] >= cut).mean(), abs=0.03)
    member = np.isin(GENES, SETS["late"])
    expected = np.mean([_running_sum(x, member) for x in table.X[B]])
    assert found["S0", "pathway_gsva--B--late"].X.item() == pytest.approx(expected)


def _running_sum(x, member):
    """ssGSEA as published: walk down the ranked list."""
    ranks = sps.rankdata(x)
    if len(np.unique(ranks)) < len(ranks):  # ties have no walk; the definition by ranks
        weight = ranks**0.25
        return (ranks * weight)[member].sum() / weight[member].sum() - ranks[~member].sum() / (~member).sum()
    order = np.argsort(-x)
    hit = np.where(member[order], ranks[order] ** 0.25, 0)
    return (np.cumsum(hit) / hit.sum() - np.cumsum(~member[order]) / (~member).sum()).sum()


def test_ssgsea_is_the_walk_down_the_list():
    rng = np.random.default_rng(0)
    X, member = rng.normal(size=(20, 30)), rng.random((4, 30)) < 0.4
    expected = [[_running_sum(x, m) for m in member] for x in X]
    np.testing.assert_allclose(pf.ssgsea(X, member), expected)


def test_ligand_receptor_scores_against_the_formula(slides):
    table = slides["S2"]
    found = features(slides, kinds="CCI", lr_pairs=PAIRS[:2])
    mean = {t: table[table.obs["cell_type"] == t].X.mean(0) for t in TYPES}
    product = np.sqrt(mean["Tumor"][7] * mean["B"][1])
    assert found["S2", "CCI--Tumor--B--G07--G01"].X.item() == pytest.approx(product / (table.X.mean() + product))


@pytest.mark.parametrize("missing", ["nan", "zero"])
def test_a_missing_type(slides, missing):
    lacking = {**slides, "S3": cells(9, types=["Tumor", "B"])}
    kinds = ["proportion_logit", "gene_mean_celltype", "gene_cor_celltype", "celltype_interaction", "L_stats"]
    found = features(lacking, kinds=kinds, missing=missing)
    touched = (found.var["cell_type"] == "T/NK") | (found.var["partner"] == "T/NK")
    touched &= ~found.var["kind"].isin(["proportion_logit", "presence"])
    values = found["S3", touched].X
    assert np.isnan(values).all() if missing == "nan" else (values == 0).all()
    assert found["S3", "proportion_logit--T/NK"].X.item() == pytest.approx(np.log(0.001 / 0.999))
    if missing == "nan":
        assert found[:, "presence--T/NK"].X.ravel().tolist() == [1, 1, 1, 0]
        assert np.isfinite(found["S0"].X).all()
    else:
        assert "presence" not in set(found.var["kind"])


def test_counts_become_logarithms_and_sparse_is_dense(slides):
    from scipy import sparse

    counts = cells(4, units="counts")
    logs = cells(4)
    counts.X = sparse.csr_matrix(np.round(counts.X * 5))
    logs.X = np.log1p(counts.X.toarray())
    kinds = list(KINDS)
    options = {"kinds": kinds, "gene_sets": SETS, "lr_pairs": PAIRS[:2]}
    np.testing.assert_allclose(features({"a": counts}, **options).X, features({"a": logs}, **options).X, atol=1e-10)


def test_reference_uses_genes_types_and_cut_offs_again(slides, caplog):
    first = features(slides, gene_sets=SETS, lr_pairs=PAIRS, n_top={"gene_mean_celltype": 2, "gene_cor_bulk": 4})
    new = {"N": cells(31, types=["B", "T/NK", "Tumor", "Mast"])}
    with caplog.at_level(logging.WARNING, "ghistpy"):
        again = features(new, reference=first)
    assert again.var_names.tolist() == first.var_names.tolist()
    assert "Mast" in caplog.text
    same = features(slides, reference=first)
    np.testing.assert_array_equal(same.X, first.X)


def test_plan_is_made_on_training_samples_only(slides):
    only = features(slides, kinds=["gene_mean_bulk"], n_top={"gene_mean_bulk": 3}, train=["S0"])
    best = slides["S0"].X.var(axis=0).argsort()[::-1][:3]
    assert set(only.var["gene"]) - {""} == {GENES[i] for i in best}


@pytest.mark.parametrize("combine", ["weighted", "mean", "largest"])
def test_samples_of_a_patient_are_combined(combine):
    slides = {"a1": cells(0, n=100), "b": cells(1), "a2": cells(2, n=300)}
    manifest = pd.DataFrame(
        {"sample": list(slides), "patient": ["A", "B", "A"], "age": [50, 60, 50], "block": [1, 1, 2]}
    )
    each = features(slides, kinds=["gene_mean_bulk"], genes=GENES[:2]).to_df().iloc[:, 0]
    found = features(gp.Cohort(manifest, slides=slides), kinds=["gene_mean_bulk"], genes=GENES[:2], combine=combine)
    expected = {
        "weighted": 0.25 * each["a1"] + 0.75 * each["a2"],
        "mean": each[["a1", "a2"]].mean(),
        "largest": each["a2"],
    }
    assert found.obs_names.tolist() == ["A", "B"]
    assert found["A"].X[0, 0] == pytest.approx(expected[combine])
    assert found.obs["n_cells"].tolist() == [400, 150]
    assert found.obs["age"].tolist() == [50, 60]
    assert json.loads(found.uns["ghistpy"]["feature_notes"])["columns_that_vary_within_patients"] == ["block"]


def test_samples_weigh_as_many_cells_as_a_feature_was_measured_on():
    one, other = cells(0, n=100), cells(2, n=300)
    manifest = pd.DataFrame({"sample": ["a1", "a2"], "patient": "A"})
    slides = {"a1": one, "a2": other}
    options = {"genes": GENES[:2], "lr_pairs": PAIRS[:1], "kinds": ["gene_mean_celltype", "proportion_raw", "CCI"]}
    found = features(gp.Cohort(manifest, slides=slides), **options)
    both = anndata.concat([one, other], index_unique="-")
    both.uns = one.uns
    whole = features({"both": both}, **options)
    pooled = found.var["kind"].isin(["gene_mean_celltype", "proportion_raw"])
    np.testing.assert_allclose(found[:, pooled].X, whole[:, pooled].X)
    each = features(slides, **options)
    n = [t.obs["cell_type"].value_counts()[["B", "Tumor"]].min() for t in (one, other)]
    name = "CCI--B--Tumor--G00--G05"
    assert found[:, name].X.item() == pytest.approx(np.average(each[:, name].X.ravel(), weights=n))


def test_a_type_is_present_when_it_is_in_one_sample():
    slides = {"a1": cells(0), "a2": cells(9, types=["Tumor", "B"]), "b": cells(3, types=["Tumor", "B"])}
    manifest = pd.DataFrame({"sample": list(slides), "patient": ["A", "A", "B"]})
    found = features(gp.Cohort(manifest, slides=slides), kinds="proportion_raw")
    assert found[:, "presence--T/NK"].X.ravel().tolist() == [1, 0]


def test_a_sample_without_types_has_no_composition(slides):
    untyped = cells(7)
    untyped.obs["cell_type"] = pd.Categorical([None] * 150, categories=TYPES)
    kinds = ["proportion_raw", "proportion_logit", "proportion_ratio", "proportion_clr", "gene_mean_bulk"]
    found = features({**slides, "S9": untyped}, kinds=kinds, cell_types=TYPES)
    bulk = found.var["kind"] == "gene_mean_bulk"
    assert np.isnan(found["S9", ~bulk].X).all()
    assert np.isfinite(found["S9", bulk].X).all()
    assert np.isfinite(found["S0"].X).all()


@pytest.mark.parametrize(
    ("column", "chosen"),
    [
        ([True, False, False], ["S0"]),
        ([0, 1.0, 1], ["S1", "S2"]),
        (["yes", "no", "no"], None),
        (["True", "False", "False"], None),
        ([True, None, False], None),
    ],
)
def test_a_column_of_training_samples_is_true_or_false(slides, column, chosen):
    manifest = pd.DataFrame({"sample": list(slides), "discovery": column})
    cohort = gp.Cohort(manifest, slides=slides)
    options = {"kinds": "gene_mean_bulk", "n_top": {"gene_mean_bulk": 3}}
    if chosen is None:
        with pytest.raises(ValueError, match=r"train='discovery': the column holds .*; expected true and false"):
            features(cohort, train="discovery", **options)
    else:
        found, expected = (features(cohort, train=t, **options) for t in ("discovery", chosen))
        assert found.var_names.tolist() == expected.var_names.tolist()


IMAGE = ["image_density", "image_morphology", "image_stain"]


def test_what_the_image_gives_without_expression():
    slides = {f"S{i}": gp.datasets.simulate_slide(n_cells=60, n_genes=5, size_um=150.0, seed=i) for i in range(3)}
    rng = np.random.default_rng(0)
    for slide in slides.values():
        table = slide["measured"]
        table.obs["area_um2"] = rng.gamma(20, 2, 60)
        table.obsm["morphology"] = rng.normal(size=(60, 2)).astype(np.float32)
        table.uns["ghistpy"] |= {"morphology_features": ["roundness", "rim"]}
    gp.pp.find_tissue(slides["S0"], min_area_um2=100.0)
    found = features(slides, kinds=IMAGE, table_key="measured")
    values = found.to_df().loc["S0"]
    outline = slides["S0"].shapes["tissue"].union_all()
    xy = slides["S0"]["measured"].obsm["spatial"]
    inside = sum(outline.covers(Point(p)) for p in xy)
    assert values["image_density--cells_per_mm2"] == pytest.approx(inside / outline.area * 1e6)
    box = np.ptp(slides["S1"]["measured"].obsm["spatial"], axis=0).prod()
    assert found["S1", "image_density--cells_per_mm2"].X.item() == pytest.approx(60 / box * 1e6)
    table = slides["S0"]["measured"]
    assert values["image_morphology--area_um2_sd"] == pytest.approx(table.obs["area_um2"].std(ddof=0))
    assert values["image_morphology--rim_mean"] == pytest.approx(table.obsm["morphology"][:, 1].mean(), rel=1e-5)
    stain = found[:, found.var["kind"] == "image_stain"]
    assert stain.var["gene"].tolist() == [f"od_{w}_{c}" for w in ("mean", "sd") for c in "rgb"]
    assert ((stain.X > 0) & (stain.X < 3)).all()
    again = features({"N": slides["S2"]}, reference=found, table_key="measured")
    np.testing.assert_array_equal(again.X, found["S2"].X)


def test_tables_without_image_or_shape_of_nuclei(slides, caplog):
    found = features(slides, kinds=["image_density", "image_stain", "proportion_raw"], missing="zero")
    assert np.isnan(found[:, found.var["kind"] == "image_stain"].X).all()
    assert "3 samples without an image of tissue: ['S0', 'S1', 'S2']" in caplog.text
    with pytest.raises(ValueError, match=r"'image_morphology' needs obs\['area_um2'\]"):
        features(slides, kinds="image_morphology")
    assert not set(IMAGE) & set(features(slides).var["kind"])


def test_what_needs_no_types_needs_no_column_of_them(slides):
    untyped = {name: table.copy() for name, table in slides.items()}
    for table in untyped.values():
        del table.obs["cell_type"]
    kinds = ["image_density", "gene_mean_bulk", "nn_correlation"]
    found, expected = (features(s, kinds=kinds) for s in (untyped, slides))
    np.testing.assert_array_equal(found.X, expected[:, expected.var["kind"] != "presence"].X)
    assert found.var_names.tolist() == features(untyped, reference=found).var_names.tolist()
    with pytest.raises(RuntimeError, match="cell_type_key='cell_type' is not a column"):
        features(untyped, kinds=[*kinds, "L_stats"])


def test_image_kinds_are_the_image_baseline_of_survival():
    rng = np.random.default_rng(0)
    slides = {f"S{i}": cells(i, n=40 + 5 * (i % 9)) for i in range(40)}
    for table in slides.values():
        table.obs["area_um2"] = rng.gamma(20, 2, table.n_obs)
    found = features(slides, kinds=["image_density", "image_morphology", "gene_mean_bulk"], genes=GENES[:8])
    found.obs["months"] = rng.exponential(30, 40) + 0.1
    found.obs["dead"] = rng.random(40) < 0.7
    options = {"time_key": "months", "event_key": "dead", "n_features": 2, "n_repeats": 3, "progress": False}
    gp.tl.survival_cv(found, image_keys=["image_density", "image_morphology"], **options)
    assert "image" in set(gp.get.survival(found)["model"])
    chosen = set(gp.get.survival(found, part="selected")["feature"])
    assert not any(name.startswith("image") for name in chosen)


def test_a_broken_sample_does_not_lose_the_others(slides, caplog):
    broken = {**slides, "bad": cells(5)[:, :4].copy()}
    del broken["bad"].obsm["spatial"]
    found = features(broken, kinds=["morans_I", "proportion_raw"])
    notes = json.loads(found.uns["ghistpy"]["feature_notes"])
    assert found.obs_names.tolist() == ["S0", "S1", "S2"]
    assert "obsm['spatial']" in notes["failures"]["bad"]
    assert notes["patients_without_sample"] == ["bad"]


def test_features_survive_a_store(slides, tmp_path):
    found = features(slides)
    found.write_h5ad(tmp_path / "f.h5ad")
    again = anndata.read_h5ad(tmp_path / "f.h5ad")
    np.testing.assert_array_equal(again.X, found.X)
    assert again.uns["ghistpy"]["feature_plan"] == found.uns["ghistpy"]["feature_plan"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["means"]}, "kinds=.'means'.: expected some of"),
        ({"kinds": "CCI"}, "lr_pairs: kind 'CCI' needs"),
        ({"kinds": "pathway_mean"}, "gene_sets: .* need gene sets"),
        ({"gene_sets": {"few": ["G01"]}}, "none of 1 sets has 10 genes"),
        ({"kinds": "CCI", "lr_pairs": [("x", "y")]}, "none of 1 pairs"),
        ({"genes": ["nothing"]}, "genes: 1 are in no sample"),
        ({"missing": "drop"}, "missing='drop': expected"),
        ({"combine": "sum"}, "combine='sum'"),
        ({"moran": "auto"}, "moran='auto'"),
        ({"threshold": np.nan}, "threshold=nan: expected a finite"),
        ({"radius_um": -1}, "radius_um=-1: expected a length above 0"),
        ({"n_top": {"gene_means": 5}}, "n_top: unknown kinds .'gene_means'."),
        ({"n_top": {"gene_mean_bulk": 0}}, "n_top=.'gene_mean_bulk': 0.: expected 1 gene or more"),
        ({"genes": {"gene_bulk": ["G01"]}}, "genes: unknown kinds .'gene_bulk'."),
        ({"genes": {"gene_mean_celltype": {"Mast": ["G01"]}}}, "there are no cells of types .'Mast'."),
        ({"train": ["S9"]}, "train: samples"),
        ({"reference": cells(0)}, "holds no feature plan"),
    ],
)
def test_bad_options(slides, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        features(slides, **options)
