"""Training windows: drawn by (seed, epoch) alone, wide enough, and true to their targets when augmented."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.data.sampling import (
    INSET_PX,
    Augment,
    Draw,
    Labelled,
    TrainingBatch,
    WindowDataset,
    WindowGrid,
    WindowSampler,
)
from ghistpy.data.targets import instances_of
from ghistpy.geometry import Window

SPOT_UM = 60 * np.sqrt(2)  # the square spots of the fixture lie in a circle of that diameter


def labelled_slide(slide):
    instances = instances_of(slide, 3)
    return Labelled(slide, instances, instances.values)


def grid_of(spots, mpp=0.5):
    return WindowGrid.for_instances(SPOT_UM if spots else None, mpp=mpp, stride=4, align=16)


def test_windows_lie_on_the_grid_and_hold_their_instance(slide_maker):
    labelled, grid = labelled_slide(slide_maker()), grid_of(spots=False)
    assert grid.side == 320
    sampler = WindowSampler([labelled], grid, per_epoch=200, seed=3)
    assert len(sampler) == 200
    for draw, centre in zip(sampler, _picked(sampler), strict=True):
        assert draw.y0 % 16 == draw.x0 % 16 == 0
        inside = Window(draw.y0 + INSET_PX, draw.x0 + INSET_PX, draw.y0 + 320 - INSET_PX, draw.x0 + 320 - INSET_PX)
        assert inside.y0 <= centre[0] < inside.y1
        assert inside.x0 <= centre[1] < inside.x1


def _picked(sampler):
    """Centres that the sampler chose, drawn again by its own rule."""
    rng = np.random.default_rng([sampler.seed, sampler.epoch])
    picks = rng.choice(len(sampler.probability), sampler.per_epoch, p=sampler.probability, replace=True)
    return sampler.centre[picks]


def test_an_epoch_is_a_function_of_seed_and_epoch(slide_maker):
    labelled, grid = labelled_slide(slide_maker()), grid_of(spots=False)
    one, two = (WindowSampler([labelled], grid, per_epoch=20, seed=3) for _ in range(2))
    list(one)
    assert list(one) == list(two)
    one.set_epoch(1)
    assert list(one) != list(two)
    two.set_epoch(1)
    assert list(one) == list(two)
    other = WindowSampler([labelled], grid, per_epoch=20, seed=4)
    other.set_epoch(1)
    assert list(one) != list(other)


def test_rare_types_are_drawn_more_often_than_they_occur(slide_maker):
    slides = [labelled_slide(slide_maker(seed=s)) for s in (0, 1)]
    sampler = WindowSampler(slides, grid_of(spots=False), per_epoch=10, seed=0)
    types = np.concatenate([s.instances.types for s in slides])
    slide_of = np.concatenate([np.full(len(s.instances), i) for i, s in enumerate(slides)])
    np.testing.assert_array_equal(sampler.slide_of, slide_of)
    # weight 1 / sqrt(number of cells of that type on the slide); unknown types: the mean weight
    expected = []
    for slide in slides:
        frequency = slide.instances.types.sum(axis=0)
        own = [1 / np.sqrt(frequency[row.argmax()]) if row.any() else np.nan for row in slide.instances.types]
        expected += np.nan_to_num(own, nan=np.nanmean(own)).tolist()
    np.testing.assert_allclose(sampler.probability, np.array(expected) / np.sum(expected), rtol=1e-5)
    share = types.sum(axis=0) / types.sum()
    drawn = sampler.probability @ types
    assert drawn[2] / drawn.sum() > 1.5 * share[2]


@pytest.mark.parametrize("mpp", [0.5, 0.497, 0.42])
def test_every_spot_is_whole_in_its_own_window(slide_maker, mpp):
    """However uneven its nuclei, and whatever the jitter: else it would never be learned from."""
    labelled, grid = labelled_slide(slide_maker(spots=True, mpp=mpp)), grid_of(spots=True)
    dataset = WindowDataset([labelled], grid, whole_only=True)
    rng = np.random.default_rng(0)
    centres = labelled.centres_px(0.5)
    for s, centre in enumerate(centres):
        for jitter in (np.zeros(2), rng.uniform(-0.5, 0.5, 2), np.array([0.5, -0.5])):
            item = dataset[grid.draw_at(0, centre, jitter, None)]
            assert any((row == labelled.values[s]).all() for row in item.values)


def test_centres_are_those_of_the_boxes(slide_maker):
    labelled = labelled_slide(slide_maker(spots=True, mpp=0.25))
    slide, member = labelled.slide, labelled.instances.member
    for s, centre in enumerate(labelled.centres_px(0.5)):
        at = slide.nuclei.centroid_px[member == s] / 2
        np.testing.assert_allclose(centre, (at.min(axis=0) + at.max(axis=0)) / 2)


def test_a_spot_that_is_cut_does_not_count(slide_maker):
    labelled, grid = labelled_slide(slide_maker(spots=True)), grid_of(spots=True)
    instances = labelled.instances
    for whole_only in (True, False):
        dataset = WindowDataset([labelled], grid, whole_only=whole_only)
        for y0, x0 in ((0, 0), (48, 112), (160, 16)):
            item = dataset[Draw(0, y0, x0, -1)]
            at = labelled.slide.nuclei.centroid_px - [y0, x0]
            inside = ((at >= INSET_PX) & (at < grid.side - INSET_PX)).all(axis=1) & (instances.member >= 0)
            whole = [s for s in range(len(instances)) if inside[instances.member == s].all()]
            partly = [s for s in range(len(instances)) if inside[instances.member == s].any()]
            expected = whole if whole_only else partly
            np.testing.assert_array_equal(item.values, labelled.values[expected])
            np.testing.assert_array_equal(item.types, instances.types[expected])
            members = instances.member[item.window.rows]
            np.testing.assert_array_equal(np.array(expected)[item.group], members)


def test_batches_keep_groups_apart(slide_maker):
    labelled, grid = labelled_slide(slide_maker(spots=True)), grid_of(spots=True)
    dataset = WindowDataset([labelled], grid, whole_only=True)
    items = [dataset[Draw(0, y, x, 5)] for y, x in ((0, 0), (-4000, 0), (96, 128))]
    batch = TrainingBatch(items, grid.stride)
    assert len(items[1].values) == 0
    assert batch.group.tolist() == [*items[0].group, *(items[2].group + len(items[0].values))]
    np.testing.assert_array_equal(batch.values, np.concatenate([i.values for i in items]))
    assert batch.mask.shape == batch.values.shape
    assert not batch.mask[:, -1].any()
    assert batch.mask[:, :-1].all()


def test_augmentation_moves_pixels_nuclei_and_centroids_together():
    side = 64
    labels = np.zeros((side, side), dtype=np.int32)
    corners = [(3, 5), (40, 8), (20, 50), (50, 50)]
    for k, (y, x) in enumerate(corners):
        labels[y : y + 6, x : x + 4] = k + 1
    level = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    od = np.repeat(level[labels][None], 3, axis=0).astype(np.float32)
    centroid = np.array([[y + 3.0, x + 2.0] for y, x in corners])
    seen = set()
    for seed in range(40):
        out, moved, at = Augment(np.random.default_rng(seed))(od, np.stack([labels, labels]), centroid)
        np.testing.assert_array_equal(moved[0], moved[1])
        seen.add(moved[0].tobytes())
        inner = [out[:, moved[0] == k + 1].mean() for k in range(4)]
        assert (np.diff(inner) > 0.1).all()  # darker nuclei stay darker
        for k in range(4):
            y, x = np.nonzero(moved[0] == k + 1)
            np.testing.assert_allclose(at[k], [y.mean() + 0.5, x.mean() + 0.5])
            assert len(y) == 24
        assert out.dtype == np.float32
        assert out.min() >= -0.5
        assert out.max() <= 4
    assert len(seen) == 8  # four turns, with and without mirror


def test_augmentation_is_a_function_of_its_seed(slide_maker):
    dataset = WindowDataset([labelled_slide(slide_maker())], grid_of(spots=False), whole_only=False)
    first, again, other, plain = (dataset[Draw(0, 32, 32, seed)] for seed in (9, 9, 10, -1))
    np.testing.assert_array_equal(first.window.od, again.window.od)
    np.testing.assert_array_equal(first.window.local, again.window.local)
    assert not np.array_equal(first.window.od, other.window.od)
    np.testing.assert_array_equal(first.values, plain.values)
    # flips and turns change no area
    np.testing.assert_allclose(first.window.local[:, 0], plain.window.local[:, 0], rtol=1e-5)
