"""Polygons and labels into each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import polygon2mask

from ghistpy.imaging.polygons import Polygons, RunLabels, fill, overlapping, trace


def polygons(*objects):
    """Objects as lists of rings, each (k, 2) x, y."""
    rings = [(np.asarray(ring, float), i) for i, rings in enumerate(objects) for ring in rings]
    offsets = np.cumsum([0, *(len(ring) for ring, _ in rings)])
    return Polygons(np.concatenate([r for r, _ in rings]), offsets, np.array([i for _, i in rings]), len(objects))


def paint(polys, shape, **kwargs):
    return RunLabels(fill(polys, **kwargs), np.arange(1, polys.n + 1), shape)[:, :]


def random_labels(seed):
    rng = np.random.default_rng(seed)
    labels = ndimage.label(rng.random((60, 80)) < 0.55)[0]
    if seed % 2:  # pieces of one label apart from each other, labels inside the holes of others
        labels = np.where(rng.random(labels.shape) < 0.3, rng.integers(0, 9, labels.shape), labels)
    return np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape)


@pytest.mark.parametrize("seed", range(8))
def test_outlines_filled_are_the_labels(seed):
    labels = random_labels(seed)
    polys, _ = trace(labels)
    runs = fill(polys)
    lazy = RunLabels(runs, np.arange(1, polys.n + 1), labels.shape)
    np.testing.assert_array_equal(lazy[:, :], labels)
    np.testing.assert_array_equal(lazy[7:33, 11:64], labels[7:33, 11:64])
    np.testing.assert_array_equal(lazy[59:60, ::3], labels[59:60, ::3])
    assert len(overlapping(runs)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_rings_agree_with_connected_components(seed):
    labels = (random_labels(seed) > 0).astype(int)
    polys, holes = trace(labels)
    outside = np.pad(labels == 0, 1, constant_values=True)
    assert (~holes).sum() == ndimage.label(labels)[1]
    assert holes.sum() == ndimage.label(outside, structure=np.ones((3, 3)))[1] - 1
    assert (np.diff(polys.offsets) >= 4).all()


def test_a_square_has_four_corners():
    labels = np.zeros((9, 9), int)
    labels[2:5, 3:8] = 1
    polys, holes = trace(labels)
    assert sorted(map(tuple, polys.points)) == [(3, 2), (3, 5), (8, 2), (8, 5)]
    assert holes.tolist() == [False]
    empty, _ = trace(np.zeros((3, 3), int))
    assert empty.n == 0
    assert len(fill(empty).row) == 0


@pytest.mark.parametrize("seed", range(5))
def test_filling_equals_skimage(seed):
    """Its points are pixel centres at whole numbers, rows before columns."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    ring = 30 + rng.uniform(5, 28, 12)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    expected = polygon2mask((64, 64), ring[:, ::-1] - 0.5)
    got = paint(polygons([ring]), (64, 64)) > 0
    assert (got != expected).sum() <= 1  # a pixel whose centre lies on an edge


def test_hole_stays_empty_and_the_image_cuts():
    outer, hole = [(-5, -5), (20, -5), (20, 30), (-5, 30)], [(5, 5), (10, 5), (10, 10), (5, 10)]
    got = paint(polygons([outer, hole]), (12, 25))
    expected = np.zeros((12, 25), int)
    expected[:, :20] = 1
    expected[5:10, 5:10] = 0
    np.testing.assert_array_equal(got, expected)


def test_the_first_of_overlapping_objects_keeps_the_pixel():
    a, b, c = ([[(x, 2), (x + 6, 2), (x + 6, 8), (x, 8)]] for x in (2, 5, 30))
    polys = polygons(a, b, c)
    got = paint(polys, (10, 40))
    assert (got[2:8, 2:8] == 1).all()
    assert (got[2:8, 8:11] == 2).all()
    assert (got[2:8, 30:36] == 3).all()
    assert overlapping(fill(polys)).tolist() == [0, 1]


def test_vertices_that_are_pixels_belong_to_the_object():
    got = paint(polygons([[(2, 1), (6, 1), (6, 4), (2, 4)]]), (8, 9), vertices_are_pixels=True)
    expected = np.zeros((8, 9), int)
    expected[1:5, 2:7] = 1
    np.testing.assert_array_equal(got, expected)
