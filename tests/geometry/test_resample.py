"""Resampling by global coordinates: equal to a dense weight matrix, and the same from every window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghistpy.geometry import MemorySource, Window, read_image, read_labels

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 61, 83), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 2**62, (61, 83))


def triangle_matrix(start: int, stop: int, pad: int, size: int, scale: float) -> np.ndarray:
    """(stop - start, size + 2 pad): row i holds the weights of output px start + i, from the definition."""
    reach = max(1.0, scale)
    centre = (np.arange(start, stop) + 0.5) * scale
    source = np.arange(-pad, size + pad) + 0.5
    weight = np.maximum(0, 1 - np.abs(source[None] - centre[:, None]) / reach)
    return weight / weight.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.5, 2.5),
    corner=st.tuples(st.integers(-10, 30), st.integers(-10, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_image_equals_the_dense_definition(scale, corner, size):
    if scale == 1.0:
        return
    window = Window(*corner, corner[0] + size[0], corner[1] + size[1])
    pad = 200
    padded = np.pad(IMAGE.astype(np.float64), ((0, 0), (pad, pad), (pad, pad)), constant_values=255)
    rows = triangle_matrix(window.y0, window.y1, pad, 61, scale)
    columns = triangle_matrix(window.x0, window.x1, pad, 83, scale)
    expected = rows @ padded @ columns.T
    got = read_image(MemorySource(IMAGE), window, scale)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.one_of(st.just(1.0), st.floats(0.3, 3.0)),
    outer=st.tuples(st.integers(-40, 0), st.integers(-40, 0), st.integers(31, 70), st.integers(31, 70)),
    inner=st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(16, 31), st.integers(16, 31)),
)
def test_a_window_is_a_crop_of_a_larger_one(scale, outer, inner):
    """Bit by bit, so that no result can depend on the tile."""
    big, small = Window(*outer), Window(*inner)
    crop = slice(small.y0 - big.y0, small.y1 - big.y0), slice(small.x0 - big.x0, small.x1 - big.x0)
    image, labels = MemorySource(IMAGE), MemorySource(LABELS)
    np.testing.assert_array_equal(read_image(image, small, scale), read_image(image, big, scale)[(..., *crop)])
    np.testing.assert_array_equal(read_labels(labels, small, scale), read_labels(labels, big, scale)[crop])


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0.3, 3.0), corner=st.tuples(st.integers(-20, 60), st.integers(-20, 60)))
def test_labels_are_those_under_the_pixel_centres(scale, corner):
    window = Window(*corner, corner[0] + 25, corner[1] + 25)
    got = read_labels(MemorySource(LABELS), window, scale)
    for _ in range(20):
        i, j = np.random.default_rng(corner[0] + 20).integers(0, 25, 2)
        y, x = int((window.y0 + i + 0.5) * scale // 1), int((window.x0 + j + 0.5) * scale // 1)
        assert got[i, j] == (LABELS[y, x] if 0 <= y < 61 and 0 <= x < 83 else 0)


def test_scale_1_is_the_slide_itself():
    window = Window(-3, 5, 20, 90)
    image, labels = read_image(MemorySource(IMAGE), window, 1.0), read_labels(MemorySource(LABELS), window, 1.0)
    assert (image.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(image[:, 3:, :78], IMAGE[:, :20, 5:])
    np.testing.assert_array_equal(labels[3:, :78], LABELS[:20, 5:])
    assert (image[:, :3] == 255).all()
    assert (image[:, :, 78:] == 255).all()
    assert (labels[:3] == 0).all()


@pytest.mark.parametrize("scale", [0.31, 0.5, 0.99, 1.374, 2.0, 3.7])
@pytest.mark.parametrize("value", [0, 1, 173, 255])
def test_a_constant_image_stays_constant(scale, value):
    image = np.full((3, 50, 50), value, dtype=np.uint8)
    got = read_image(MemorySource(image), Window(-10, -10, 30, 30), scale, fill=value)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert (np.rint(got) == value).all()


def test_fine_stripes_do_not_alias():
    """Stripes of one px, seen at half the resolution, are grey."""
    image = np.zeros((1, 64, 64), dtype=np.uint8)
    image[:, :, ::2] = 200
    got = read_image(MemorySource(image), Window(4, 4, 28, 28), 2.0)
    np.testing.assert_allclose(got, 100, atol=1e-3)
