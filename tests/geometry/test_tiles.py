"""Every nucleus is owned once and wholly seen, whatever its size, place and scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghistpy.geometry import MemorySource, Nuclei, find_nuclei, model_scale, plan_tiles


def nuclei_of(boxes, ids=None):
    """Nuclei that fill their boxes (y0, x0, h, w)."""
    boxes = np.array(boxes, dtype=np.int64).reshape(-1, 4)
    corner = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    ids = np.arange(1, len(boxes) + 1) if ids is None else np.asarray(ids)
    return Nuclei(ids, corner, boxes[:, 2] * boxes[:, 3], (corner[:, :2] + corner[:, 2:]) / 2)


BOX = st.tuples(
    st.integers(0, 3000),
    st.integers(0, 3000),
    # mostly ordinary nuclei, some larger than a tile
    st.one_of(st.integers(1, 30), st.integers(100, 900)),
    st.one_of(st.integers(1, 30), st.integers(100, 900)),
)


@settings(max_examples=150, deadline=None)
@given(
    boxes=st.lists(BOX, max_size=25),
    scale=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    tile=st.sampled_from([(64, 16), (128, 32), (512, 16), (96, 32)]),
    halo=st.integers(0, 130),
)
@example(boxes=[], scale=1.0, tile=(512, 16), halo=64)
@example(boxes=[(0, 0, 1, 1)], scale=0.5, tile=(64, 16), halo=0)
@example(boxes=[(10, 10, 2000, 2000)], scale=2.0, tile=(64, 16), halo=64)
def test_plan(boxes, scale, tile, halo):
    core, align = tile
    nuclei = nuclei_of(boxes)
    plan = plan_tiles(nuclei, scale=scale, core=core, halo=halo, align=align)

    owned = [plan.owned(t) for t in range(len(plan))]
    assert sorted(np.concatenate([*owned, np.zeros(0, int)]).tolist()) == list(range(len(nuclei)))
    assert all(len(rows) > 0 for rows in owned)
    assert all((np.diff(rows) > 0).all() for rows in owned)  # by id
    assert (plan.windows % align == 0).all()
    assert len(np.unique(plan.windows, axis=0)) == len(plan)
    for t, rows in enumerate(owned):
        y0, x0, y1, x1 = plan.windows[t]
        # the px whose centre lies in the box, and the halo around them
        low, high = nuclei.bbox[rows, :2] / scale - halo, nuclei.bbox[rows, 2:] / scale + halo
        assert (np.array([y0, x0]) <= low + 1e-9).all()
        assert (high - 1e-9 <= np.array([y1, x1])).all()
        seen = plan.slide_window(t)
        model = np.array([y0, x0, y1, x1])
        # slide px under the model px
        assert seen.y0 <= model[0] * scale
        assert seen.x0 <= model[1] * scale
        assert seen.y1 >= model[2] * scale
        assert seen.x1 >= model[3] * scale


@settings(max_examples=30, deadline=None)
@given(boxes=st.lists(BOX, min_size=2, max_size=20), seed=st.integers(0, 10), scale=st.floats(0.5, 2.0))
def test_windows_do_not_depend_on_the_order_of_ids(boxes, seed, scale):
    one = nuclei_of(boxes)
    order = np.random.default_rng(seed).permutation(len(boxes))
    other = one.take(order)
    a, b = plan_tiles(one, scale=scale, core=128, align=16), plan_tiles(other, scale=scale, core=128, align=16)
    np.testing.assert_array_equal(a.windows, b.windows)
    for t in range(len(a)):
        assert sorted(order[b.owned(t)].tolist()) == sorted(a.owned(t).tolist())


def test_ordinary_nuclei_share_few_windows():
    """A window of its own is for nuclei that are too large, not for those at a border."""
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.integers(0, 2000, (500, 2)), rng.integers(5, 40, (500, 2))])
    plan = plan_tiles(nuclei_of(boxes), core=512, halo=64, align=16)
    assert len(plan) <= 16
    height = plan.windows[:, 2] - plan.windows[:, 0]
    assert height.max() == 512 + 2 * 96
    # only windows at the border of all nuclei are smaller: there is nothing to see beyond
    inner = (plan.windows[:, 0] > plan.windows[:, 0].min()) & (plan.windows[:, 2] < plan.windows[:, 2].max())
    assert (height[inner] == 512 + 2 * 96).all()


def test_squares_without_nuclei_are_not_planned():
    labels = np.zeros((400, 400), dtype=np.int64)
    labels[5:9, 5:9], labels[380:390, 380:390] = 3, 8
    plan = plan_tiles(find_nuclei(MemorySource(labels)), core=64, halo=8, align=16)
    assert len(plan) == 2
    assert plan.owned(0).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0.0}, "scale=0.0: expected a positive number"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"core": 100}, "core=100: expected a positive multiple of align=16"),
        ({"core": 0}, "core=0"),
        ({"align": 0}, "align=0"),
        ({"halo": -1}, "halo=-1: expected 0 or more"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        plan_tiles(nuclei_of([(0, 0, 5, 5)]), **values)


@pytest.mark.parametrize(
    ("slide", "model", "scale"), [(0.5, 0.5, 1.0), (0.4975, 0.5, 1.0), (0.25, 0.5, 2.0), (0.49, 0.5, 0.5 / 0.49)]
)
def test_scale_of_a_scanner_that_rounds_is_1(slide, model, scale):
    assert model_scale(slide, model) == scale
