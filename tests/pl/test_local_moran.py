"""pl.local_moran: cells in the colours of their stored quadrants."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba

import ghistpy as gp
from ghistpy.pl.local_moran import _ALONE, _GREY, _QUADRANTS


@pytest.fixture
def slide(evaluated):
    genes = list(evaluated["measured"].var_names[:2])
    gp.tl.local_moran(evaluated, genes, table_key="measured", n_perms=19)
    gp.tl.local_moran(evaluated, genes, table_key="insilico", n_perms=19)
    return evaluated


def _drawn(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def _legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_colours_and_counts_are_those_of_the_quadrants(slide):
    table = slide["measured"]
    gene = table.var_names[1]
    ax = gp.pl.local_moran(slide, gene, table_key="measured", alpha=0.1)
    quadrant, pval = (table.obsm[f"local_moran_{k}"][:, 1] for k in ("quadrant", "pval"))
    shown = np.where(pval <= 0.1, quadrant, 0)
    assert len(set(shown)) > 2
    want = {tuple(xy): _QUADRANTS[q][1] if q else _GREY for xy, q in zip(table.obsm["spatial"], shown, strict=True)}
    circles = _drawn(ax)
    colours = [to_rgba(want[tuple(xy)]) for xy in np.asarray(circles.get_offsets())]
    np.testing.assert_allclose(circles.get_facecolors(), colours)
    assert _legend(ax)[0] == f"high among high ({(shown == 1).sum()})"
    assert _legend(ax)[-1] == f"p > 0.1 ({(shown == 0).sum()})"
    assert ax.get_title() == gene
    assert any("not adjusted" in t.get_text() for t in ax.texts)


def test_cells_without_p_are_grey_unless_all_are_asked_for(slide):
    ax = gp.pl.local_moran(slide, table_key="insilico")
    assert {tuple(c) for c in _drawn(ax).get_facecolors()} == {to_rgba(_GREY)}
    assert _legend(ax)[-1] == "no p-value (400)"
    assert any(t.get_text().startswith("p withheld: in-silico") for t in ax.texts)
    everything = gp.pl.local_moran(slide, table_key="insilico", alpha=None)
    assert to_rgba(_GREY) not in {tuple(c) for c in _drawn(everything).get_facecolors()}


def test_cells_alone_are_counted(slide):
    table = slide["measured"]
    table.obsm["local_moran_quadrant"][:3, 0] = 0
    ax = gp.pl.local_moran(table)
    assert _legend(ax)[-1] == "no neighbours or constant (3)"
    assert (np.isclose(_drawn(ax).get_facecolors(), to_rgba(_ALONE)).all(axis=1)).sum() == 3


def test_errors(slide):
    with pytest.raises(ValueError, match="gene='TP53' has no local Moran's I"):
        gp.pl.local_moran(slide, "TP53", table_key="measured")
    with pytest.raises(ValueError, match="run tl.local_moran first"):
        gp.pl.local_moran(slide, table_key="measured", key="x")
    with pytest.raises(ValueError, match="table_key=None is not among"):
        gp.pl.local_moran(slide)
    with pytest.raises(ValueError, match="an AnnData has no image"):
        gp.pl.local_moran(slide["measured"], image_key="he")
