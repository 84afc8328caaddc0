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


def test_a_map_without_any_p_has_all_colours_and_says_why(slide):
    ax = gp.pl.local_moran(slide, table_key="insilico")
    quadrant = slide["insilico"].obsm["local_moran_quadrant"][:, 0]
    want = {to_rgba(_QUADRANTS[q][1]) for q in np.unique(quadrant)}
    assert {tuple(c) for c in _drawn(ax).get_facecolors()} == want
    assert _legend(ax)[0] == f"high among high ({(quadrant == 1).sum()})"
    assert len(_legend(ax)) == 4
    note = next(t for t in ax.texts if t.get_gid() == "note")
    assert " ".join(note.get_text().split()).startswith("all cells p withheld: in-silico")
    ax.figure.canvas.draw()
    box, frame = note.get_window_extent(), ax.get_window_extent()
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1
    assert box.y1 <= ax.title.get_window_extent().y0
    gp.tl.local_moran(slide, table_key="measured", genes=[slide["measured"].var_names[0]], n_perms=0)
    texts = [t.get_text() for t in gp.pl.local_moran(slide, table_key="measured").texts]
    assert "all cells\np not computed: n_perms was 0" in texts


def test_cells_without_p_are_grey_beside_those_with_one(slide):
    slide["measured"].obsm["local_moran_pval"][:5, 0] = np.nan
    assert _legend(gp.pl.local_moran(slide, table_key="measured"))[-1] == "no p-value (5)"


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
