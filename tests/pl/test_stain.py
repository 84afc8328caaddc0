"""pl.stain: the two pictures, where they lie, and what is missing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import ghistpy as gp
from ghistpy.geometry import Window


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_same_window_before_and_after():
    sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5, size_um=200.0, seed=2)
    gp.pp.normalize_stain(sdata, method="reinhard", key_added="after")
    ax = gp.pl.stain(sdata, normalized_key="after", window_um=(20, 30, 120, 80))
    left, right = ax.images
    window = Window(60, 40, 160, 240)
    for image, key in ((left, "he"), (right, "after")):
        expected = gp.io.open_image(sdata, key).read(window).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(image.get_array()), expected)
    assert left.get_extent() == [20, 120, 80, 30]
    np.testing.assert_allclose(right.get_extent(), [123, 223, 80, 30])
    assert [t.get_text() for t in ax.texts][:2] == ["he", "after (reinhard)"]


def test_errors_name_what_is_missing():
    sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5, size_um=100.0)
    with pytest.raises(ValueError, match="'he_normalized' is not among the images"):
        gp.pl.stain(sdata)
