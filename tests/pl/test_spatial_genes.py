"""Figures of spatially variable genes: what is drawn is what is stored."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.text import Text

import ghistpy as gp


@pytest.fixture
def slide(evaluated):
    gp.tl.svg(evaluated, table_key="measured", n_perms=19, progress=False)
    gp.tl.svg(evaluated, table_key="insilico", progress=False)
    return evaluated


def test_best_genes_in_order_with_their_values(slide):
    table = slide["measured"]
    axes = gp.pl.svg(slide, table_key="measured", n_genes=4)
    best = gp.get.svg(slide, table_key="measured")["gene"].tolist()
    assert [a.get_title() for a in axes] == best[:4]
    assert all(a.title.get_fontstyle() == "italic" for a in axes)
    circles = next(c for c in axes[0].collections if isinstance(c, EllipseCollection))
    values = table.X.toarray()[:, table.var_names.get_loc(best[0])]
    np.testing.assert_allclose(np.sort(np.log1p(values)), circles.get_array())  # high values are drawn last
    score = next(t.get_text() for t in axes[0].texts if t.get_gid() == "score")
    assert f"Moran's I {table.var.loc[best[0], 'svg_score']:.3g}, adj. p =" in score
    bars = [a for a in axes[0].figure.axes if a.get_label() == "<colorbar>"]
    assert [b.get_ylabel() for b in bars] == ["log1p(count)"] * 4
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]


def test_of_an_anndata_and_over_the_image(slide):
    axes = gp.pl.svg(slide["measured"], [slide["measured"].var_names[3]])
    assert len(axes) == 1
    over = gp.pl.svg(slide, table_key="measured", image_key="he", n_genes=2)
    assert over[0].images
    spots = slide["spots_measured"]
    spots.obsm["spatial"] = np.stack(np.meshgrid(*[np.arange(5) * 20.0] * 2), -1).reshape(-1, 2)
    gp.tl.svg(spots, progress=False)
    assert len(gp.pl.svg(spots, n_genes=1)) == 1


def test_in_silico_titles_have_no_p(slide):
    (ax,) = gp.pl.svg(slide, table_key="insilico", n_genes=1)
    assert not any("adj. p" in t.get_text() for t in ax.texts)


def test_one_scale_for_all_genes(slide):
    axes = gp.pl.svg(slide, table_key="measured", n_genes=5, shared_scale=True)
    limits = {next(c for c in a.collections if isinstance(c, EllipseCollection)).get_clim() for a in axes}
    assert len(limits) == 1
    assert sum(a.get_label() == "<colorbar>" for a in axes[0].figure.axes) == 1


@pytest.mark.parametrize(
    ("change", "label"),
    [
        (lambda t: None, "log1p(count)"),
        (lambda t: t.uns.__setitem__("log1p", {}), "log1p, as stored"),
        (lambda t: t.__setattr__("X", t.X.toarray() - 0.5), "X, as stored"),
    ],
)
def test_only_counts_are_logged_and_the_bar_says_it(slide, change, label):
    table = slide["measured"]
    table.uns.pop("ghistpy", None)
    change(table)
    gene = table.var_names[0]
    (ax,) = gp.pl.svg(table, [gene])
    stored = np.asarray(table[:, gene].to_df()[gene], dtype=float)
    drawn = next(c for c in ax.collections if isinstance(c, EllipseCollection)).get_array()
    np.testing.assert_allclose(drawn, np.sort(np.log1p(stored) if label == "log1p(count)" else stored))
    assert next(a for a in ax.figure.axes if a.get_label() == "<colorbar>").get_ylabel() == label


def test_ranking_draws_every_gene_once(slide):
    ax = gp.pl.svg_ranking(slide, table_key="measured", n_labels=3)
    frame = gp.get.svg(slide, table_key="measured")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    np.testing.assert_allclose(points[np.argsort(points[:, 0])], frame[["rank", "score"]])
    assert [t.get_text() for t in ax.texts] == frame["gene"].head(3).tolist()
    assert ax.get_ylabel() == "Moran's I"
    labels = [t.get_text() for t in gp.pl.svg_ranking(slide, table_key="insilico").get_legend().get_texts()]
    assert labels == ["p withheld (24)"]


@pytest.mark.parametrize("scores", [np.linspace(1, 0, 60), np.repeat([1.0, 0.2], [20, 40]), np.full(60, 0.5)])
def test_names_keep_apart_inside_the_axes_even_when_scores_tie(slide, scores):
    import anndata
    import pandas as pd

    var = pd.DataFrame(
        {"svg_score": scores, "svg_pval": np.nan, "svg_pval_adj": np.nan}, index=[f"G{i:02d}" for i in range(60)]
    )
    var["svg_rank"] = np.arange(1.0, 61)
    table = anndata.AnnData(np.zeros((1, 60)), var=var, uns={"svg": slide["measured"].uns["svg"]})
    ax = gp.pl.svg_ranking(table, n_labels=25)
    names = [t for t in ax.texts if t.get_gid() == "label"]
    assert [t.get_text() for t in names] == var.index[: len(names)].tolist()
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    # of the text alone, without its line
    boxes = sorted((Text.get_window_extent(t, renderer) for t in names), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 + 1.5 for low, high in pairwise(boxes))
    frame = ax.get_window_extent(renderer)
    assert all(frame.y0 <= b.y0 and b.x1 <= frame.x1 for b in boxes)
    points = ax.transData.transform(np.concatenate([c.get_offsets() for c in ax.collections]))
    for b in boxes:
        assert not ((points > [b.x0, b.y0]) & (points < [b.x1, b.y1])).all(axis=1).any()


def test_the_null_is_spelt_out(slide):
    title = gp.pl.svg_ranking(slide, table_key="measured").get_title(loc="left")
    assert title == "null hypothesis: values shuffled among cells"


def test_low_c_is_at_the_top(slide):
    gp.tl.svg(slide, table_key="measured", method="geary", n_perms=9, progress=False, key_added="c")
    ax = gp.pl.svg_ranking(slide, table_key="measured", key="c")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_errors(slide):
    with pytest.raises(ValueError, match="not in the table"):
        gp.pl.svg(slide, ["TP53"], table_key="measured")
    with pytest.raises(ValueError, match="run tl.svg first"):
        gp.pl.svg_ranking(slide, table_key="spots_measured")
    with pytest.raises(ValueError, match="an AnnData has no image"):
        gp.pl.svg(slide["measured"], image_key="he")
    with pytest.raises(ValueError, match="layer='raw'"):
        gp.pl.svg(slide, table_key="measured", layer="raw")
