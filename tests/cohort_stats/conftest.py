"""Simulated follow-up."""

import numpy as np
import pytest


@pytest.fixture
def cohort():
    """Features, time, event of patients; the first feature acts, ties by rounding on request."""

    def make(n=120, p=6, *, ties=False, effect=0.7, seed=0, censored=0.5):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n, p))
        X[:, 1] = rng.integers(0, 2, n)
        time = rng.exponential(np.exp(-effect * X[:, 0]))
        event = rng.random(n) > censored
        return X, np.ceil(time * 6) if ties else time, event

    return make
