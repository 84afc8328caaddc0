"""Features against scikit-image, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.draw import ellipse
from skimage.measure import perimeter_crofton, regionprops

from ghistpy.imaging.morphology import FEATURES, nucleus_features

COLUMN = {name: i for i, name in enumerate(FEATURES)}


@pytest.fixture
def window():
    """256 x 256 px with 49 random ellipses and random optical density."""
    rng = np.random.default_rng(0)
    labels = np.zeros((256, 256), dtype=np.int32)
    for i, (row, column) in enumerate(np.ndindex(7, 7)):
        at = ellipse(
            20 + 35 * row, 20 + 35 * column, *rng.uniform(3, 14, 2), shape=labels.shape, rotation=rng.uniform(0, 3)
        )
        labels[at] = i + 1
    return rng.uniform(0, 2, (3, 256, 256)).astype(np.float32), labels


def test_equals_skimage(window):
    od, labels = window
    mpp = 0.4
    got = nucleus_features(od, labels, 49, mpp)
    regions = regionprops(labels, od.transpose(1, 2, 0))
    expected = {
        "log_area_um2": [np.log(r.area * mpp**2) for r in regions],
        "major_axis_um": [r.axis_major_length * mpp for r in regions],
        "minor_axis_um": [r.axis_minor_length * mpp for r in regions],
        "eccentricity": [r.eccentricity for r in regions],
        "roundness": [4 * np.pi * r.area / perimeter_crofton(r.image) ** 2 for r in regions],
        "od_mean_r": [r.intensity_mean[0] for r in regions],
        "od_mean_b": [r.intensity_mean[2] for r in regions],
        "od_sd_g": [r.image_intensity[r.image][:, 1].std() for r in regions],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(got[:, COLUMN[name]], values, rtol=2e-5, atol=2e-5, err_msg=name)


def test_contrast_texture_and_skewness_of_a_known_nucleus():
    # columns of 0 and 1: neighbours in x differ by 1, neighbours in y by 0
    labels = np.zeros((40, 40), dtype=np.int32)
    labels[10:30, 10:30] = 1
    od = np.zeros((3, 40, 40), dtype=np.float32)
    od[0, :, ::2] = 1.0
    od[1] = 0.75 * (labels == 1) + 0.25
    got = nucleus_features(od, labels, 1, mpp=1.0)[0]
    unit = nucleus_features(np.stack([od[0], od[0] * 0, od[0] * 0]), labels, 1, mpp=1.0)[0]
    one = unit[COLUMN["hematoxylin_sd"]] / 0.5  # haematoxylin of red OD 1
    np.testing.assert_allclose(unit[COLUMN["texture_fine"]], one / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(unit[COLUMN["hematoxylin_skew"]], 0, atol=1e-6)
    np.testing.assert_allclose(got[COLUMN["edge_contrast_g"]], 0.75, rtol=1e-6)
    np.testing.assert_allclose(got[COLUMN["edge_contrast_b"]], 0, atol=1e-7)
    dark_rim = np.zeros((3, 40, 40), dtype=np.float32)
    dark_rim[0] = 1.0
    dark_rim[0, 11:29, 11:29] = 0.0
    rim = nucleus_features(dark_rim, labels, 1, mpp=1.0)[0, COLUMN["rim_contrast"]]
    np.testing.assert_allclose(rim, one * (1 - 76 / 400), rtol=1e-5)


def test_skewness_equals_scipy(window):
    from scipy.stats import skew

    from ghistpy.imaging.stain import hematoxylin

    od, labels = window
    got = nucleus_features(od**2, labels, 49, 0.5)[:, COLUMN["hematoxylin_skew"]]
    stain = hematoxylin(od**2)
    np.testing.assert_allclose(got, [skew(stain[labels == i]) for i in range(1, 50)], atol=2e-4)


def test_place_order_and_company_do_not_matter(window):
    od, labels = window
    reference = nucleus_features(od, labels, 49, 0.5)
    rng = np.random.default_rng(1)
    new_id = np.concatenate([[0], rng.permutation(49) + 1])
    shuffled = nucleus_features(od, new_id[labels].astype(np.int64), 49, 0.5)
    np.testing.assert_allclose(shuffled[new_id[1:] - 1], reference, rtol=1e-6, atol=1e-6)
    alone = nucleus_features(od, (labels == 25).astype(np.int32), 1, 0.5)
    np.testing.assert_allclose(alone[0], reference[24], rtol=1e-6, atol=1e-6)
    y, x = np.nonzero(labels == 25)
    part = (slice(y.min() - 5, y.max() + 6), slice(x.min() - 5, x.max() + 6))
    moved = nucleus_features(od[:, *part], np.where(labels[part] == 25, 3, 0), 3, 0.5)
    np.testing.assert_allclose(moved[2], reference[24], rtol=1e-6, atol=1e-6)
    many = nucleus_features(od, np.where(labels == 25, 70_000, 0), 70_000, 0.5)  # ids beyond 16 bit
    np.testing.assert_allclose(many[-1], reference[24], rtol=1e-6, atol=1e-6)


def test_turning_and_mirroring_do_not_matter(window):
    od, labels = window
    reference = nucleus_features(od, labels, 49, 0.5)
    for turn in (lambda a: np.rot90(a, axes=(-2, -1)), lambda a: a[..., ::-1]):
        turned = nucleus_features(np.ascontiguousarray(turn(od)), np.ascontiguousarray(turn(labels)), 49, 0.5)
        np.testing.assert_allclose(turned, reference, rtol=1e-4, atol=1e-5)


def test_same_nucleus_at_two_magnifications():
    def disc(mpp):
        y, x = (np.mgrid[: 30 / mpp, : 30 / mpp] + 0.5) * mpp - 15
        labels = (np.hypot(y / 4, x / 3) <= 1).astype(np.int32)
        od = np.broadcast_to(0.2 + 0.8 * labels, (3, *labels.shape)).astype(np.float32)
        return nucleus_features(od, labels, 1, mpp)[0]

    fine, coarse = disc(0.25), disc(0.5)
    for name in ("log_area_um2", "major_axis_um", "minor_axis_um", "ellipse_fill", "roundness", "edge_contrast_r"):
        assert fine[COLUMN[name]] == pytest.approx(coarse[COLUMN[name]], rel=0.03), name
    assert fine[COLUMN["log_area_um2"]] == pytest.approx(np.log(np.pi * 12), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (64, 64)])
def test_extreme_nuclei_are_finite(shape):
    """One pixel, a line, and a nucleus that fills the window (nothing around it to compare with)."""
    labels = np.zeros((64, 64), dtype=np.int32)
    labels[: shape[0], : shape[1]] = 2
    got = nucleus_features(np.full((3, 64, 64), 1.5, np.float32), labels, 3, 0.25)
    assert np.isfinite(got).all()
    assert (got[[0, 2]] == 0).all()  # ids without pixels
    assert got[1, COLUMN["hematoxylin_skew"]] == 0
    assert nucleus_features(np.zeros((3, 8, 8), np.float32), np.zeros((8, 8), int), 0, 0.25).shape == (0, len(FEATURES))


def test_bad_input():
    od, labels = np.zeros((3, 8, 8), np.float32), np.zeros((8, 8), np.int32)
    with pytest.raises(ValueError, match=r"od: expected \(3, h, w\)"):
        nucleus_features(od[:2], labels, 0, 0.5)
    with pytest.raises(ValueError, match="labels: expected"):
        nucleus_features(od, labels[:4], 0, 0.5)
    with pytest.raises(ValueError, match="labels: expected local ids"):
        nucleus_features(od, labels + 5, 2, 0.5)
    with pytest.raises(ValueError, match="mpp"):
        nucleus_features(od, labels, 0, np.nan)
