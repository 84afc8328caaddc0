"""benchmarks/segmentation.py: its tiles, and the scores that the docs report."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from ghistpy.stats import segmentation_scores


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "segmentation.py"
    spec = importlib.util.spec_from_file_location("segmentation_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_run_lengths(benchmark):
    mask = np.zeros((4, 5), bool)
    mask[1:3, 0] = mask[0, 2:4] = True
    np.testing.assert_array_equal(benchmark._unpacked([1, 2, 5, 1, 3, 1, 7], (4, 5)), mask)


@pytest.mark.data
def test_breast_tiles(benchmark, data_dir):
    tiles = [t for t in benchmark.read_tiles(data_dir / "data") if t.dataset.startswith("PanNuke")]
    assert len(tiles) == 25
    assert sum(segmentation_scores(t.truth, t.truth).n_true for t in tiles) == 631
    # the channels are put right: eosin lets red through and absorbs green
    median = np.median(np.concatenate([t.rgb.reshape(3, -1) for t in tiles], axis=1), axis=1)
    assert median[0] > median[2] > median[1]
    scores = [benchmark.score(t) for t in tiles[::4]]
    assert np.mean([s["f1"] for s in scores]) > 0.55
