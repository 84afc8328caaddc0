"""Preservation of structure: predicted against measured."""

import json

import numpy as np
import pandas as pd
import pytest

import ghistpy as gp
from ghistpy import stats
from ghistpy.geometry import knn_graph


def test_values_are_those_of_the_single_statistics(cells):
    slide = cells.sdata
    gp.tl.compare_tables(slide, radius=15)
    table = slide["insilico"]
    frame = table.uns["comparison"].set_index(["statistic", "name", "partner"]).sort_index()
    genes = list(table.var_names)
    graph = knn_graph(cells.xy, 6).weights
    sides = {"measured": np.log1p(cells.counts), "predicted": np.asarray(table.X, dtype=float)}
    for side, X in sides.items():
        np.testing.assert_allclose(
            frame.loc["morans_i", side].droplevel("partner")[genes], stats.morans_i(X, graph), atol=1e-6
        )
        np.testing.assert_allclose(
            frame.loc["nn_correlation", side].droplevel("partner")[genes],
            stats.nn_correlation(X, cells.xy, border_rule=False),
            atol=0.15,  # on a grid the nearest neighbour is a tie
        )
    shares = pd.Series(cells.code).value_counts(normalize=True)
    assert frame.loc[("composition", "T/NK", ""), "measured"] == pytest.approx(shares[1])
    assert frame.loc["interaction", "measured"].sum() == pytest.approx(1)
    gp.tl.cell_type_interaction(slide, table_key="insilico", radius=15)
    stored = table.uns["interaction"].set_index(["cell_type", "neighbor_type"])["fraction"]
    pd.testing.assert_series_equal(frame.loc["interaction", "predicted"], stored, check_names=False)


def test_summary_and_notes(cells):
    gp.tl.compare_tables(cells.sdata, moran="all_pairs")
    table = cells.sdata["insilico"]
    summary = table.uns["comparison_summary"].set_index("statistic")
    part = table.uns["comparison"].query("statistic == 'morans_i'")
    assert summary.loc["morans_i", "pearson"] == pytest.approx(part[["measured", "predicted"]].corr().iloc[0, 1])
    expected = stats.morans_i_all_pairs(np.log1p(cells.counts), cells.xy)
    np.testing.assert_allclose(part["measured"], expected, atol=1e-6)
    notes = json.loads(table.uns["comparison_notes"])
    assert notes["moran"] == "all_pairs"
    assert notes["n"] == len(cells.ids)


def test_a_perfect_prediction_of_noise_free_counts_agrees_everywhere(cells):
    table = cells.sdata["insilico"]
    table.X = np.log1p(cells.counts).astype(np.float32)
    table.obs["cell_type"] = cells.sdata["measured"].obs["cell_type"].to_numpy()
    gp.tl.compare_tables(cells.sdata)
    summary = table.uns["comparison_summary"]
    np.testing.assert_allclose(summary["rmse"], 0, atol=1e-6)
    np.testing.assert_allclose(summary["spearman"], 1)


def test_a_shuffled_prediction_loses_structure_not_composition(cells):
    table = cells.sdata["insilico"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    table.X = np.log1p(cells.counts)[order].astype(np.float32)
    table.obs["cell_type"] = cells.sdata["measured"].obs["cell_type"].to_numpy()[order]
    gp.tl.compare_tables(cells.sdata, radius=15)
    summary = table.uns["comparison_summary"].set_index("statistic")
    assert summary.loc["composition", "rmse"] == pytest.approx(0)
    assert summary.loc["interaction", "rmse"] > 0.05
    assert abs(summary.loc["morans_i", "median_predicted"]) < 0.03


def test_spots_have_no_types(spots):
    gp.tl.aggregate_spots(spots.sdata)
    gp.tl.compare_tables(spots.sdata, predicted="insilico_spots", n_neighbors=4)
    table = spots.sdata["insilico_spots"]
    assert set(table.uns["comparison"]["statistic"]) == {"morans_i", "nn_correlation"}
    assert "not compared" in json.loads(table.uns["comparison_notes"])["cell_types"]


def test_errors(cells, spots):
    with pytest.raises(ValueError, match="moran='x'"):
        gp.tl.compare_tables(cells.sdata, moran="x")
    with pytest.raises(ValueError, match="aggregate_spots"):
        gp.tl.compare_tables(spots.sdata)
    with pytest.raises(ValueError, match="measured='m'"):
        gp.tl.compare_tables(cells.sdata, "m")
    del cells.sdata["insilico"].obsm["spatial"]
    with pytest.raises(ValueError, match="no obsm\\['spatial'\\]"):
        gp.tl.compare_tables(cells.sdata)
