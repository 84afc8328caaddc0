"""Neighbourhood means against the exact Gaussian-weighted sum over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.geometry import neighborhood_features, neighborhood_mean
from ghistpy.geometry.context import REACH


def exact(yx, values, sigma):
    """Untruncated, over all pairs: mean, and density per mm²."""
    square = ((yx[:, None] - yx[None]) ** 2).sum(axis=2)
    weight = np.exp(-0.5 * square / sigma**2)
    density = weight.sum(axis=1) / (2 * np.pi * sigma**2) * 1e6
    return weight @ values / weight.sum(axis=1, keepdims=True), density


def tissue(n=1500, size=600.0, seed=0):
    """Points with a dense corner, and values that are smooth, patchy, and noise."""
    rng = np.random.default_rng(seed)
    yx = np.concatenate([rng.uniform(0, size, (n, 2)), rng.uniform(0, size / 4, (n // 2, 2))])
    values = np.column_stack([np.sin(yx[:, 0] / 60), yx[:, 1] > size / 2, rng.normal(size=len(yx))])
    return yx, values


@pytest.mark.parametrize("sigma", [20.0, 60.0])
def test_close_to_the_exact_sum(sigma):
    yx, values = tissue()
    mean, density = neighborhood_mean(yx, values, sigma_um=sigma)
    true_mean, true_density = exact(yx, values, sigma)
    assert (mean.dtype, density.dtype) == (np.float32, np.float32)
    error = np.abs(mean - true_mean) / values.std(axis=0)
    # a few per cent of the spread: bins of sigma / 4, kernel cut at 2.5 sigma
    assert error.max() < 0.12
    assert np.sqrt((error**2).mean(axis=0)).max() < 0.02
    np.testing.assert_allclose(density, true_density, rtol=0.12)
    assert np.corrcoef(density, true_density)[0, 1] > 0.998


def test_constant_values_stay_constant():
    yx, _ = tissue(300)
    mean, _ = neighborhood_mean(yx, np.full((len(yx), 2), 3.5), sigma_um=20.0)
    np.testing.assert_allclose(mean, 3.5, rtol=1e-6)


def test_a_shift_and_the_order_change_nothing():
    yx, values = tissue(400)
    here = neighborhood_features(yx, values, sigmas_um=(20.0, 60.0))
    there = neighborhood_features(yx + np.array([8192.0, 512.5]), values, sigmas_um=(20.0, 60.0))
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(yx))
    shuffled = neighborhood_features(yx[order], values[order], sigmas_um=(20.0, 60.0))
    np.testing.assert_allclose(shuffled, here[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4])
def test_nothing_comes_from_beyond_the_reach(angle):
    sigma = 20.0
    step = np.array([np.sin(angle), np.cos(angle)])
    rng = np.random.default_rng(1)
    for distance in REACH * sigma * np.array([1.0, 1.0001, 1.3]):
        near = rng.uniform(0, 3, (5, 2))
        far = near + step * distance / max(abs(step))  # beyond the reach along one axis at least
        yx = np.concatenate([near, far])
        values = np.concatenate([np.ones(5), np.full(5, 1e6)])[:, None]
        # rounding of the sums is all that may come through
        pairs = np.abs(yx[:5, None] - yx[None, 5:]).max(axis=2).min()
        mean, _ = neighborhood_mean(yx, values, sigma_um=sigma)
        if pairs >= REACH * sigma:
            np.testing.assert_array_equal(mean[:5], np.float32(1))


def test_one_point_is_its_own_neighbourhood():
    mean, density = neighborhood_mean(np.array([[1e5, 3.0]]), np.array([[2.0, -1.0]]), sigma_um=20.0)
    np.testing.assert_allclose(mean, [[2.0, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(density, 1e6 / (2 * np.pi * 400), rtol=0.15)


def test_no_point_and_no_width():
    empty = neighborhood_features(np.zeros((0, 2)), np.zeros((0, 3)), sigmas_um=(20.0, 60.0))
    assert (empty.shape, empty.dtype) == ((0, 8), np.float32)
    assert neighborhood_features(np.zeros((5, 2)), np.zeros((5, 3)), sigmas_um=()).shape == (5, 0)


def test_columns_are_density_then_means_of_each_width():
    yx, values = tissue(100)
    features = neighborhood_features(yx, values, sigmas_um=(20.0, 60.0))
    for i, sigma in enumerate((20.0, 60.0)):
        mean, density = neighborhood_mean(yx, values, sigma_um=sigma)
        np.testing.assert_array_equal(features[:, 4 * i], np.log(density))
        np.testing.assert_array_equal(features[:, 4 * i + 1 : 4 * i + 4], mean)
