"""The configuration checks itself and survives JSON."""

from __future__ import annotations

import json

import pytest

from ghistpy.nn.config import GHISTConfig


def test_published_has_the_values_of_the_paper():
    config = GHISTConfig.published()
    assert config.widths == (64, 128, 256, 512, 1024)
    assert (config.embedding, config.expression_scale) == (256, 5.0)
    assert (config.patch_px, config.overlap_px, config.min_nucleus_px) == (256, 30, 10)
    assert not config.use_reference


@pytest.mark.parametrize(
    "config",
    [
        GHISTConfig(),
        GHISTConfig(widths=(8, 16), context_um=(30.0,), mpp=0.687),
        GHISTConfig.published(width_factor=0.125, embedding=64, use_reference=True, mpp=0.25),
    ],
)
def test_json_round_trip(config):
    again = GHISTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnet"}, r"architecture: got 'resnet'; use one of \['default', 'published'\]"),
        ({"mpp": 0}, "mpp: expected a finite number above 0, got 0"),
        ({"mpp": float("nan")}, "mpp: .* got nan"),
        ({"widths": ()}, "widths: got ()"),
        ({"widths": 64}, "widths: expected a tuple"),
        ({"widths": (8, -1)}, "widths: expected an integer above 0, got -1"),
        ({"embedding": 1.5}, "embedding: expected an integer above 0, got 1.5"),
        ({"stride": 3}, "stride: got 3; use a power of two"),
        ({"tile_px": 510}, "tile_px: got 510, not a multiple of"),
        ({"context_um": (0.0,)}, "context_um: .* got 0.0"),
        ({"colour": 1}, r"unknown field\(s\) \['colour'\]"),
    ],
)
def test_default_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        GHISTConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": (8, 16)}, "widths: .* has 5 levels"),
        ({"embedding": 20}, "embedding: got 20; .* multiple of 8"),
        ({"patch_px": 250}, "patch_px: got 250; .* multiple of 16"),
        ({"overlap_px": 256}, "overlap_px: got 256; .* less than patch_px=256"),
        ({"overlap_px": -1}, "overlap_px: got -1"),
        ({"overlap_px": 3.5}, "overlap_px: expected an integer"),
        ({"min_nucleus_px": -1}, "min_nucleus_px: got -1"),
        ({"expression_scale": 0}, "expression_scale: expected a finite number above 0"),
        ({"high_confidence": 0.0}, "high_confidence: got 0.0"),
        ({"width_factor": 0}, "width_factor: .* got 0"),
        ({"architecture": "default"}, r"architecture: published\(\) sets it"),
    ],
)
def test_published_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        GHISTConfig.published(**values)
