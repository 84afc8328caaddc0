"""Figures of spatially variable genes: what is drawn is what is stored."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

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
    assert [a.get_title().split()[0] for a in axes] == best[:4]
    circles = next(c for c in axes[0].collections if isinstance(c, EllipseCollection))
    values = table.X.toarray()[:, table.var_names.get_loc(best[0])]
    np.testing.assert_array_equal(np.sort(values), circles.get_array())  # high values are drawn last
    assert "adj. p" in axes[0].get_title()
    assert f"{table.var.loc[best[0], 'svg_score']:.3g}" in axes[0].get_title()
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
    assert "p " not in gp.pl.svg(slide, table_key="insilico", n_genes=1)[0].get_title()


def test_ranking_draws_every_gene_once(slide):
    ax = gp.pl.svg_ranking(slide, table_key="measured", n_labels=3)
    frame = gp.get.svg(slide, table_key="measured")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    np.testing.assert_allclose(points[np.argsort(points[:, 0])], frame[["rank", "score"]])
    assert [t.get_text() for t in ax.texts] == frame["gene"].head(3).tolist()
    assert ax.get_ylabel() == "Moran's I"
    labels = [t.get_text() for t in gp.pl.svg_ranking(slide, table_key="insilico").get_legend().get_texts()]
    assert labels == ["p withheld (24)"]


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
