"""Held-out rectangles are blanked whatever their sides."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.data.slide import Slide
from ghistpy.data.windows import prepare
from ghistpy.geometry import MemorySource, Window, find_nuclei


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([5.0, -np.inf, 10.2, np.inf], slice(10, 21), slice(None)),
        ([-np.inf, 8.0, np.inf, 12.0], slice(None), slice(16, 24)),
        ([-np.inf, -np.inf, 3.9, 4.1], slice(0, 8), slice(0, 9)),
        ([10.0, 10.0, 500.0, 500.0], slice(20, None), slice(20, None)),
    ],
)
def test_sides_may_be_infinite_or_beyond_the_slide(box, rows, columns):
    image = np.random.default_rng(0).integers(0, 200, (3, 40, 48), dtype=np.uint8)
    labels = np.arange(1, 40 * 48 + 1).reshape(40, 48)
    source = MemorySource(labels)
    slide = prepare(Slide("s", MemorySource(image), source, 0.5, find_nuclei(source), excluded_um=np.array([box])))
    held = np.zeros((40, 48), dtype=bool)
    held[rows, columns] = True
    everything = Window(0, 0, 40, 48)
    np.testing.assert_array_equal(slide.image.read(everything), np.where(held, 255, image))
    np.testing.assert_array_equal(slide.labels.read(everything), np.where(held, 0, labels))
    np.testing.assert_array_equal(slide.nuclei.ids, labels[~held])
