"""Genome and composition of cohorts: what is drawn, where, and what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

import ghistpy as gp


@pytest.fixture(scope="module")
def tested():
    cohort = gp.datasets.simulate_cohort(n_patients=120, n_cna_genes=220, n_planted=2, effect=1.5, seed=1)
    gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"], progress=False)
    return cohort


def test_bars_lie_on_their_chromosomes(tested):
    ax = gp.pl.cna_genome(tested)
    bins = gp.get.cna(tested, part="bins")
    drawn = ax.containers[0].patches
    np.testing.assert_allclose([b.get_height() for b in drawn], bins["score_per_feature"])
    chr3 = bins.index[bins["chrom"] == "chr3"][0]
    before = 248956422 + 242193529  # chr1 and chr2 of hg38
    centre = drawn[chr3].get_x() + drawn[chr3].get_width() / 2
    assert centre == pytest.approx(before + (bins["start"][chr3] + bins["end"][chr3]) / 2)
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in range(1, 23)]
    assert any("descriptive" in t.get_text() for t in ax.texts)


def test_hotspots_are_named_on_the_chromosomes_of_the_planted_genes(tested):
    ax = gp.pl.cna_genome(tested, n_hotspots=4)
    labels = [t.get_text() for t in ax.texts if t.get_gid() == "label"]
    chrom = tested.uns["positions"].set_index("gene")["chrom"]
    planted = tested.var["gene"][(tested.var["cna_effect"] != 0) & (tested.var["gene"] != "")]
    assert len(labels) == 4
    assert set(chrom[planted]) <= set(chrom[labels])
    highest = gp.get.cna(tested, part="bins")["score_per_feature"].idxmax()
    genes = gp.get.cna(tested, part="genes")
    assert genes.loc[genes["bin"] == highest, "gene"].isin(labels).sum() == 1


def test_names_of_hotspots_cover_nothing(tested, clear_names):
    assert clear_names(gp.pl.cna_genome(tested, n_hotspots=25)) > 8


def test_tested_bins_are_orange(tested):
    copy = tested.copy()
    gp.tl.cna_association(copy, copy.uns["cna"], positions=copy.uns["positions"], n_permutations=59, progress=False)
    ax = gp.pl.cna_genome(copy)
    bins = gp.get.cna(copy, part="bins")
    orange = [tuple(np.round(b.get_facecolor()[:3], 3)) == (0.835, 0.369, 0.0) for b in ax.containers[0].patches]
    np.testing.assert_array_equal(orange, bins["pval_adj"] <= 0.05)
    assert not any("descriptive" in t.get_text() for t in ax.texts)


def test_genome_without_a_result(tested):
    with pytest.raises(ValueError, match="value='p'"):
        gp.pl.cna_genome(tested, value="p")
    with pytest.raises(ValueError, match="run tl.cna_association"):
        gp.pl.cna_genome(gp.datasets.simulate_cohort(n_patients=20))


@pytest.fixture
def composed():
    cohort = gp.datasets.simulate_cohort(n_patients=30, seed=3)
    types = (cohort.var["kind"] == "log_share").to_numpy()
    shares = cohort[:, types].copy()
    shares.X = np.exp(shares.X)
    shares.var["kind"] = "proportion_raw"
    return shares


def test_bars_are_the_shares_of_patients_in_order_of_likeness(composed):
    ax = gp.pl.cohort_composition(composed)
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert sorted(names) == sorted(composed.obs_names)
    assert [p.get_text() for p in ax.get_legend().get_texts()][-1] == "Malignant"  # lowest in the stack
    drawn = {c.patches[0].get_gid(): [b.get_height() for b in c.patches] for c in ax.containers}
    column = composed[names].to_df()
    for cell_type, heights in drawn.items():
        np.testing.assert_allclose(heights, column[f"log_share--{cell_type}"])
    tops = [b.get_y() + b.get_height() for b in ax.containers[-1].patches]
    np.testing.assert_allclose(tops, 1.0)
    step = lambda order: np.linalg.norm(np.diff(composed[order].X, axis=0), axis=1).mean()  # noqa: E731
    assert step(names) < 0.8 * step(composed.obs_names)


def test_sparse_shares_are_drawn(composed):
    from scipy import sparse

    dense = gp.pl.cohort_composition(composed)
    composed.X = sparse.csr_matrix(composed.X)
    drawn = gp.pl.cohort_composition(composed)
    for a, b in zip(dense.containers, drawn.containers, strict=True):
        np.testing.assert_allclose([p.get_height() for p in a], [p.get_height() for p in b])


def test_patients_without_group_stand_last(composed):
    state = composed.obs["state"].cat.reorder_categories(["B", "A"])
    composed.obs["state"] = state.where(np.arange(30) > 3)
    ax = gp.pl.cohort_composition(composed, groupby="state")
    labels = [t.get_text().split(" (")[0] for t in ax.get_xticklabels()]
    assert labels == ["B", "A", "not stated"]


def test_groups_are_side_by_side(composed):
    ax = gp.pl.cohort_composition(composed, groupby="state")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["A (15)", "B (15)"]
    assert len(ax.containers[0].patches) == 30


def test_composition_of_what_is_none(composed):
    with pytest.raises(ValueError, match="kind='CCI'"):
        gp.pl.cohort_composition(composed, kind="CCI")
    with pytest.raises(ValueError, match="groupby='stage'"):
        gp.pl.cohort_composition(composed, groupby="stage")
    composed.X[3, 1] = np.nan
    with pytest.raises(ValueError, match="shares of 1 patients are missing"):
        gp.pl.cohort_composition(composed)
