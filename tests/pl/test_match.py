"""The residual map: tiles, colours and arrows are those of the report."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.quiver import Quiver

import ghistpy as gp


def test_map_shows_the_report():
    sdata = gp.datasets.simulate_slide(n_cells=1500, n_genes=5, size_um=600.0, seed=1)
    del sdata["measured"].uns["spatialdata_attrs"]
    sdata["measured"].obsm["spatial"] += [4.0, 0.0]
    gp.pp.match_cells(sdata)
    tiles = gp.get.matching(sdata, "tiles")
    ax = gp.pl.matching(sdata)
    drawn = next(c for c in ax.collections if c.get_gid() == "tiles")
    kept = tiles[tiles["reliable"]]
    np.testing.assert_allclose(drawn.get_array(), np.hypot(kept["dx_um"], kept["dy_um"]))
    quiver = next(c for c in ax.collections if isinstance(c, Quiver))
    assert (quiver.U < 0).all()  # back to the left
    np.testing.assert_allclose(quiver.V / quiver.U, kept["dy_um"] / kept["dx_um"], atol=1e-9)
    assert ax.get_title().startswith("matched: z ")
    ax.figure.canvas.draw()
    assert len(plt.get_fignums()) == 1


def test_needs_a_report():
    sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5)
    with pytest.raises(ValueError, match=r"no report 'matching'.*pp\.match_cells writes it"):
        gp.pl.matching(sdata)
