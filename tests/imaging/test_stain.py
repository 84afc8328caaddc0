"""Background, density scale, optical density, deconvolution and conversions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from skimage.color import separate_stains

from ghistpy.geometry import MemorySource, Window
from ghistpy.imaging.stain import (
    NOMINAL_OD,
    StainStats,
    as_rgb_uint8,
    hematoxylin,
    sample_pixels,
    to_od,
    white_balance,
)


def slide_pixels(background, density, fraction, *, n=20_000, seed=0):
    """Glass of that colour with noise, and tissue whose OD has that 95th percentile."""
    rng = np.random.default_rng(seed)
    n_tissue = int(n * fraction)
    glass = np.asarray(background) + rng.normal(0, 2, (n - n_tissue, 3))
    od = np.asarray(density) * rng.uniform(0.3, 0.3 + 0.7 / 0.95, (n_tissue, 1))
    tissue = (np.asarray(background) + 1) * np.exp(-od) - 1
    return np.clip(np.rint(np.concatenate([glass, tissue])), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("background", [(235, 230, 238), (247, 247, 247), (253, 253, 253)])
@pytest.mark.parametrize("fraction", [0.1, 0.6, 0.97])
def test_white_balance_finds_glass_and_scale(background, fraction):
    density = (1.2, 1.7, 0.8)
    stats = white_balance(slide_pixels(background, density, fraction))
    np.testing.assert_allclose(stats.background, background, atol=3)
    np.testing.assert_allclose(stats.od_scale, density, rtol=0.05)


def test_padding_with_pure_white_is_not_glass():
    pixels = slide_pixels((230, 228, 231), (1.2, 1.7, 0.8), 0.3)
    padded = np.concatenate([pixels, np.full((30_000, 3), 255, np.uint8)])
    np.testing.assert_allclose(white_balance(padded).background, (230, 228, 231), atol=3)


def test_saturated_glass_is_white():
    pixels = slide_pixels((255, 255, 255), (1.2, 1.7, 0.8), 0.5)
    pixels[:10_000] = 255
    np.testing.assert_allclose(white_balance(pixels).background, 255)


def test_crop_without_glass_stays_sane():
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((150, 90, 160), 20, (5000, 3)), 0, 190).astype(np.uint8)
    stats = white_balance(tissue)
    assert min(stats.background) >= 200
    assert np.isfinite(stats.od_scale).all()


@pytest.mark.parametrize("value", [0, 235, 255])
def test_uniform_slide_has_finite_stats(value):
    stats = white_balance(np.full((500, 3), value, np.uint8))
    assert np.isfinite(to_od(np.full((3, 4, 4), value, np.uint8), stats)).all()
    if value:
        assert stats.od_scale == NOMINAL_OD


def test_od_is_the_formula():
    stats = StainStats((240.0, 235.0, 245.0), (1.1, 1.6, 0.9))
    rgb = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    expected = -np.log((rgb + 1.0) / (np.array(stats.background) + 1)[:, None, None])
    expected = np.clip(expected / np.array(stats.od_scale)[:, None, None], -0.5, 4)
    got = to_od(rgb, stats)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    white = to_od(np.full((3, 1, 1), 255, np.uint8), stats)
    assert np.abs(white).max() < 0.1


def test_one_stain_intensity_or_another_gives_one_density():
    rng = np.random.default_rng(0)
    shape = rng.uniform(0.1, 1.05, (3, 100, 100))
    densities = []
    for background, scale in (((240, 238, 242), (1.0, 1.5, 0.7)), ((225, 222, 228), (1.4, 1.9, 1.0))):
        values = (np.array(background)[:, None, None] + 1) * np.exp(-np.array(scale)[:, None, None] * shape) - 1
        image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        image[:, :50] = np.array(background)[:, None, None]
        densities.append(to_od(image, white_balance(image.reshape(3, -1).T)))
    np.testing.assert_allclose(densities[0], densities[1], atol=0.05)


def test_hematoxylin_equals_skimage():
    rgb = np.random.default_rng(0).uniform(0.05, 1, (50, 60, 3))
    od = -np.log(rgb).transpose(2, 0, 1) / np.array(NOMINAL_OD)[:, None, None]
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
    rows = np.stack([*vectors, np.cross(*vectors)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    theirs = separate_stains(rgb, np.linalg.inv(rows))[..., 0] * -np.log(1e-6)  # its OD unit
    ours = hematoxylin(od.astype(np.float32))
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, atol=1e-5)
    eosin = np.array([0.072, 0.990, 0.105]) / np.array(NOMINAL_OD)
    np.testing.assert_allclose(hematoxylin(eosin.astype(np.float32)), 0, atol=1e-6)
    blue = np.array([0.650, 0.704, 0.286]) / np.array(NOMINAL_OD)
    np.testing.assert_allclose(hematoxylin(blue.astype(np.float32)), np.hypot(np.hypot(0.65, 0.704), 0.286), rtol=1e-6)


def test_stats_round_trip_through_json():
    stats = white_balance(slide_pixels((235, 230, 238), (1.2, 1.7, 0.8), 0.5))
    assert StainStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats
    with pytest.raises(ValueError, match="missing"):
        StainStats.from_dict({"background": [1, 2, 3]})
    with pytest.raises(ValueError, match="od_scale"):
        StainStats((240, 240, 240), (1, np.nan, 1))


class CountingSource(MemorySource):
    largest = 0

    def read(self, window: Window):
        self.largest = max(self.largest, window.shape[0] * window.shape[1])
        return super().read(window)


def test_sample_covers_the_slide_and_is_bounded():
    image = np.zeros((3, 2000, 3000), dtype=np.uint8)
    image[0] = np.arange(3000) // 12
    image[1] = (np.arange(2000) // 8)[:, None]
    source = CountingSource(image)
    pixels = sample_pixels(source, max_pixels=10_000, windows=64)
    assert 4_000 < len(pixels) <= 10_000
    assert source.largest <= 128 * 128
    np.testing.assert_allclose(pixels.mean(axis=0), image.mean(axis=(1, 2)), atol=3)
    np.testing.assert_array_equal(pixels, sample_pixels(source, max_pixels=10_000, windows=64))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (17, 5)])
def test_sample_of_tiny_images(shape):
    pixels = sample_pixels(MemorySource(np.full((3, *shape), 7, np.uint8)))
    assert pixels.shape[1] == 3
    assert (pixels == 7).all()


def test_excluded_pixels_are_never_used():
    image = np.full((3, 1000, 1000), 10, dtype=np.uint8)
    image[:, 100:700, 200:900] = 99
    pixels = sample_pixels(MemorySource(image), excluded=np.array([[100.5, 200.2, 699.5, 899.7]]))
    assert len(pixels) > 1000
    assert (pixels == 10).all()
    with pytest.raises(ValueError, match="excluded"):
        sample_pixels(MemorySource(image), excluded=np.array([[0, 0, 1000, 1000]]))


def test_conversions():
    grey = np.array([[0, 128], [200, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(as_rgb_uint8(grey), np.stack([grey] * 3))
    np.testing.assert_array_equal(as_rgb_uint8(grey.astype(np.uint16) * 257), np.stack([grey] * 3))
    np.testing.assert_array_equal(as_rgb_uint8(grey / 255.0), np.stack([grey] * 3))
    np.testing.assert_array_equal(as_rgb_uint8(grey.astype(np.float32), white=255), np.stack([grey] * 3))
    np.testing.assert_array_equal(as_rgb_uint8(grey.astype(np.int64)), np.stack([grey] * 3))
    rgb = np.random.default_rng(0).integers(0, 255, (3, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(as_rgb_uint8(rgb.transpose(1, 2, 0), channel_axis=-1), rgb)
    alpha = np.broadcast_to(np.array([0, 255, 255, 255, 51], np.uint8), (1, 4, 5))
    got = as_rgb_uint8(np.concatenate([rgb, alpha]))
    assert (got[:, :, 0] == 255).all()
    np.testing.assert_array_equal(got[:, :, 1:4], rgb[:, :, 1:4])
    np.testing.assert_allclose(got[:, :, 4], 0.2 * rgb[:, :, 4] + 0.8 * 255, atol=0.51)
    assert as_rgb_uint8(np.concatenate([rgb[:1], alpha])).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((3, 2, 2), np.nan), "NaN or infinite"),
        (np.full((3, 2, 2), 200.0), "pass white="),
        (np.full((3, 2, 2), -1), "pass white="),
        (np.full((3, 2, 2), 200, np.uint16), "looks like 8-bit"),
        (np.zeros((7, 2, 2), np.uint8), "got 7"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros(4, np.uint8), "expected"),
    ],
)
def test_conversion_errors_name_the_argument(array, match):
    with pytest.raises(ValueError, match=match) as error:
        as_rgb_uint8(array, name="picture")
    assert str(error.value).startswith("picture")


def test_argument_errors():
    with pytest.raises(ValueError, match="sample_rgb"):
        white_balance(np.zeros((0, 3), np.uint8))
    with pytest.raises(ValueError, match="rgb: expected"):
        to_od(np.zeros((3, 4, 4)), StainStats((240, 240, 240), (1, 1, 1)))
    with pytest.raises(ValueError, match="source"):
        sample_pixels(MemorySource(np.zeros((4, 4), np.uint8)))
    with pytest.raises(ValueError, match="max_pixels"):
        sample_pixels(MemorySource(np.zeros((3, 4, 4), np.uint8)), max_pixels=0)
    with pytest.raises(ValueError, match="od: expected"):
        hematoxylin(np.zeros((4, 4)))
