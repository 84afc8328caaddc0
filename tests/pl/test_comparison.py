"""pl.comparison: what is drawn is what was stored."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import ghistpy as gp
from ghistpy.pl._style import type_colours


@pytest.fixture
def compared(evaluated):
    gp.tl.compare_tables(evaluated)
    return evaluated


def test_points_are_the_stored_values(compared):
    axes = gp.pl.comparison(compared)
    values = gp.get.comparison(compared, part="values")
    summary = gp.get.comparison(compared).set_index("statistic")
    names = ["morans_i", "nn_correlation", "nn_correlation_within_type", "interaction_log2_ratio", "composition"]
    for ax, name in zip(axes, names, strict=True):
        points = next(c for c in ax.collections if c.get_gid() == name)
        part = values[values["statistic"] == name].dropna()
        np.testing.assert_allclose(points.get_offsets(), part[["measured", "predicted"]])
        text = next(t.get_text() for t in ax.texts if t.get_gid() == "agreement")
        assert f"ρ = {summary.loc[name, 'spearman']:.2f}, {summary.loc[name, 'n']} ".replace("-", "−") in text
        identity = next(line for line in ax.lines if line.get_gid() == "identity")
        np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
        assert ax.get_xlim() == ax.get_ylim()
    assert axes[0].get_legend().get_texts()[0].get_text() == "identity"


def test_outliers_are_named_and_types_have_their_colours(compared):
    ax, types = gp.pl.comparison(compared, statistics=["morans_i", "composition"], n_labels=3)
    part = gp.get.comparison(compared, part="values").query("statistic == 'morans_i'")
    far = part.assign(far=(part["predicted"] - part["measured"]).abs()).nlargest(3, "far")["name"]
    drawn = [t for t in ax.texts if t.get_gid() == "label"]
    assert {t.get_text() for t in drawn} <= set(far)
    assert drawn
    assert all(t.get_fontstyle() == "italic" for t in drawn)
    names = gp.get.comparison(compared, part="values").query("statistic == 'composition'")["name"]
    want = [to_rgba(c) for c in type_colours(names).values()]
    np.testing.assert_allclose(types.collections[0].get_facecolors(), want)
    assert types.get_xlim()[0] == 0


def test_unknown_statistic_and_no_result(compared):
    with pytest.raises(ValueError, match=r"statistics: \['moran'\]; the comparison 'comparison' has \['morans_i'"):
        gp.pl.comparison(compared, statistics="moran")
    with pytest.raises(ValueError, match="run tl.compare_tables first"):
        gp.pl.comparison(compared, key="other")
