"""Scores of segmentations: planted cases, and the definitions written out object by object."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ghistpy.stats import segmentation_scores


def plain(truth, found):
    """F1, AJI and PQ by loops over objects."""
    true, ours = ([labels == i for i in np.unique(labels) if i] for labels in (truth, found))
    iou = np.array([[(t & f).sum() / (t | f).sum() for f in ours] for t in true]).reshape(len(true), len(ours))
    hits = iou > 0.5
    f1 = 2 * hits.sum() / (len(true) + len(ours))
    shared = union = 0
    used = set()
    for t, row in zip(true, iou, strict=True):
        if len(row) and row.max() > 0:
            best = int(row.argmax())
            used.add(best)
            shared, union = shared + (t & ours[best]).sum(), union + (t | ours[best]).sum()
        else:
            union += t.sum()
    union += sum(f.sum() for k, f in enumerate(ours) if k not in used)
    return f1, shared / union, f1 * (iou[hits].mean() if hits.any() else 0)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definitions(seed):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(70, 90)), 2.5)
    truth = ndimage.label(field > 0.04)[0]
    noise = ndimage.gaussian_filter(rng.normal(size=field.shape), 2) * 0.4
    moved = np.roll(field, rng.integers(-2, 3, 2), (0, 1)) + noise
    found = ndimage.label(moved > 0.05)[0] * 7  # ids that jump
    got = segmentation_scores(truth, found.astype(np.uint64))
    np.testing.assert_allclose((got.f1, got.aji, got.panoptic_quality), plain(truth, found))
    assert (got.n_true, got.n_found) == (truth.max(), len(np.unique(found)) - 1)


def test_known_values():
    truth = np.zeros((10, 20), int)
    truth[:4, :4], truth[:4, 10:14] = 1, 2
    same = segmentation_scores(truth, truth * 3)
    assert (same.f1, same.aji, same.panoptic_quality, same.dice) == (1, 1, 1, 1)
    half = np.where(truth == 1, 1, 0)
    half[:4, 10:13] = 2  # IoU of 0.75
    got = segmentation_scores(truth, half)
    assert (got.f1, got.segmentation_quality, got.aji) == (1, 0.875, 28 / 32)
    merged = np.zeros_like(truth)
    merged[:4, :14] = 1
    assert segmentation_scores(truth, merged).f1 == 0
    nothing = segmentation_scores(truth, truth * 0)
    assert (nothing.f1, nothing.aji, nothing.n_found) == (0, 0, 0)


def test_no_object_at_all_is_nan():
    empty = np.zeros((5, 5), int)
    got = segmentation_scores(empty, empty)
    assert np.isnan([got.f1, got.aji, got.panoptic_quality]).all()


def test_image_without_background():
    full = np.repeat([[1, 1, 2, 2]], 4, axis=0)
    assert segmentation_scores(full, full).f1 == 1


def test_bad_input():
    with pytest.raises(ValueError, match="expected the same shape"):
        segmentation_scores(np.zeros((3, 3), int), np.zeros((3, 4), int))
    with pytest.raises(ValueError, match="found: expected integer labels, got dtype float64"):
        segmentation_scores(np.zeros((3, 3), int), np.zeros((3, 3)))
