"""What is computed in squares and blocks of a slide is what the whole slide gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.engine import extract as extract_module
from ghistpy.engine import features as features_module
from ghistpy.engine.extract import extract, extract_blocks, plan_blocks, plan_slide
from ghistpy.engine.features import composition, head_features, plan_squares, square_features
from ghistpy.engine.options import RunOptions
from ghistpy.engine.predict import predict
from ghistpy.engine.scratch import Blocks, Scratch, StoredRows
from ghistpy.geometry import neighborhood_mean


@pytest.fixture
def small_squares(monkeypatch):
    """Squares of 40 µm, though neighbourhoods reach 180 µm."""
    monkeypatch.setattr(features_module, "_SQUARE_UM", 40.0)
    monkeypatch.setattr(features_module, "_MARGINS", 0.1)


@pytest.mark.usefixtures("small_squares")
def test_features_of_squares_are_those_of_the_slide(model, slide):
    extracted = extract(model.network, slide, model.config)
    whole = head_features(slide, extracted, model.config)
    squares = plan_squares(slide, model.config)
    assert len(squares) > 20
    assert sorted(np.concatenate([s.rows for s in squares])) == list(range(len(slide.nuclei)))
    for square in squares:
        values, logits = square_features(slide, square, extracted, model.config)
        np.testing.assert_allclose(values, whole[square.rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(logits, extracted.logits[square.rows])


@pytest.mark.usefixtures("small_squares")
def test_composition_of_squares_is_that_of_the_slide(model, slide):
    proba = np.random.default_rng(0).dirichlet(np.ones(4), len(slide.nuclei)).astype(np.float32)
    sigma = min(model.config.context_um)
    expected, _ = neighborhood_mean(slide.nuclei.centroid_px * slide.mpp, proba, sigma_um=sigma)
    np.testing.assert_allclose(composition(slide, proba, model.config), expected, rtol=1e-6)


@pytest.mark.usefixtures("small_squares")
def test_prediction_does_not_depend_on_where_blocks_lie(model, slide, tmp_path, monkeypatch):
    """In memory, or everything through the disk: the same bits."""
    monkeypatch.setattr(extract_module, "_BLOCK_TILES", 3)
    monkeypatch.setattr("ghistpy.engine.predict._IN_MEMORY", 0)
    config = dataclasses.replace(model.config, tile_px=64)
    one = predict(model.network, model.head, slide, config, spots=False)
    scratch = Scratch(tmp_path / "run", {})
    other = predict(model.network, model.head, slide, config, spots=False, scratch=scratch)
    assert isinstance(other.expression, StoredRows)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(a, b[:], err_msg=field.name)
    assert len(list((tmp_path / "run" / "tiles").iterdir())) > 5
    assert not list((tmp_path / "run" / "features").iterdir())  # removed as they are used up
    scratch.remove()


def test_blocks_hold_every_tile_once(model, slide):
    plan = plan_slide(slide, dataclasses.replace(model.config, tile_px=64))
    first = plan_blocks(plan)
    assert (first[0], first[-1]) == (0, len(plan))
    assert (np.diff(first) > 0).all()
    assert np.diff(first).max() <= 8


def test_rows_are_read_from_their_blocks(model, slide, monkeypatch):
    monkeypatch.setattr(extract_module, "_BLOCK_TILES", 1)
    config = dataclasses.replace(model.config, tile_px=64)
    whole = extract(model.network, slide, config)
    blocks = Blocks()
    found = extract_blocks(model.network, slide, config, blocks, RunOptions())
    rows = np.sort(np.random.default_rng(0).choice(len(slide.nuclei), 50, replace=False))
    got = found.take(rows)
    for name in ("embedding", "logits", "local"):
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name)[rows])
    blocks.drop(0)
    with pytest.raises(OSError, match="block 0 of the extracted features was removed"):
        found.take(np.arange(len(slide.nuclei)))


def test_threads_are_given_back(model, slide):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        extract(model.network, slide, model.config, workers=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inside torch
def test_compiled_is_the_same_function(model, slide):
    exact = predict(model.network, model.head, slide, model.config, spots=False)
    compiled = predict(model.network, model.head, slide, model.config, spots=False, options=RunOptions(compiled=True))
    np.testing.assert_allclose(compiled.expression, exact.expression, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same(model, slide):
    exact = predict(model.network, model.head, slide, model.config, spots=False)
    for options, rtol in ((RunOptions("cuda", 4, 2), 1e-3), (RunOptions("cuda", 4, 2, torch.bfloat16), 0.05)):
        got = predict(model.network, model.head, slide, model.config, spots=False, options=options)
        np.testing.assert_allclose(got.expression, exact.expression, rtol=rtol, atol=rtol)
    model.head.cpu()
