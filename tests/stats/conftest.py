"""Tissues and smooth maps for calibration."""

from __future__ import annotations

import numpy as np
import pytest

SHAPES = {
    "square": lambda x, y: x > -1,
    "L": lambda x, y: (x < 250) | (y < 250),
    "ring": lambda x, y: (np.hypot(x - 300, y - 300) < 300) & (np.hypot(x - 300, y - 300) > 130),
}


@pytest.fixture
def tissue():
    """Points in a tissue of 600 µm of a named shape."""

    def make(rng, shape, n):
        xy = rng.uniform(0, 600, (5 * n, 2))
        return xy[SHAPES[shape](*xy.T)][:n]

    return make


@pytest.fixture
def stationary():
    """Smooth Gaussian maps of correlation exp(-d² / 4 reach²), alike everywhere, also at the borders."""

    def make(rng, xy, reach, n_maps, n_waves=200):
        phase = xy @ rng.normal(scale=1 / (reach * np.sqrt(2)), size=(2, n_waves))
        waves = np.column_stack([np.cos(phase), np.sin(phase)])
        return waves @ rng.normal(scale=1 / np.sqrt(n_waves), size=(2 * n_waves, n_maps))

    return make


@pytest.fixture
def assert_level():
    """Rejection at 1, 5 and 10 % is not above the level, beyond what the spread between slides explains."""

    def check(pvals, label=""):
        for level in (0.01, 0.05, 0.1):
            rates = np.array([(p <= level).mean() for p in pvals])
            # genes of one slide share its layout: slides, not genes, are independent
            binomial = np.sqrt(level * (1 - level) / np.size(pvals))
            error = max(rates.std(ddof=1) / np.sqrt(len(rates)), binomial)
            assert rates.mean() <= level + 3 * error, (label, level, rates.mean(), error)

    return check
