"""Windows: which px, nuclei and measurements a network is given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ghistpy.data.windows import LOCAL_FEATURES, N_MORPHOLOGY, collate, load_window, prepare
from ghistpy.geometry import MemorySource, Window, cover
from ghistpy.imaging.morphology import nucleus_features
from ghistpy.imaging.stain import StainStats, sample_pixels, to_od, white_balance
from ghistpy.imaging.surround import surround_features

OPTIONS = {"scale": 1.0, "mpp": 0.5, "stride": 4}


def test_a_window_holds_its_pixels_and_its_nuclei(slide_maker):
    slide = slide_maker()
    window = Window(96, 128, 256, 320)
    at = slide.nuclei.centroid_px
    rows = np.flatnonzero((at > [96, 128]).all(axis=1) & (at < [256, 320]).all(axis=1))[1::2]
    item = load_window(slide, window, rows, **OPTIONS)
    crop = np.s_[96:256, 128:320]
    od = to_od(slide.image._array[(slice(None), *crop)], slide.stain)
    np.testing.assert_array_equal(item.od, od)
    labels = np.zeros((160, 192), dtype=np.int32)
    for k, row in enumerate(rows):
        labels[slide.labels._array[crop] == slide.nuclei.ids[row]] = k + 1
    centroid = at[rows] - [96, 128]
    np.testing.assert_array_equal(item.local[:, :N_MORPHOLOGY], nucleus_features(od, labels, len(rows), 0.5))
    # the tissue around holds all nuclei, not only those of this tile
    around = surround_features(od, slide.labels._array[crop], centroid, 0.5)
    np.testing.assert_array_equal(item.local[:, N_MORPHOLOGY:], around)
    expected = cover(labels, len(rows), 4, centroid)
    for field in ("indptr", "index", "weight"):
        np.testing.assert_array_equal(getattr(item.coverage, field), getattr(expected, field))
    assert item.local.shape == (len(rows), len(LOCAL_FEATURES))


def test_a_window_without_nuclei(slide_maker):
    slide = slide_maker()
    item = load_window(slide, Window(-64, -64, 0, 0), np.zeros(0, np.int64), **OPTIONS)
    assert item.local.shape == (0, len(LOCAL_FEATURES))
    np.testing.assert_allclose(item.od, 0, atol=1e-6)  # white beyond the slide


def test_collate_is_block_diagonal(slide_maker):
    import torch

    slide = slide_maker()
    windows = [Window(0, 0, 64, 64), Window(96, 96, 160, 160), Window(-64, -64, 0, 0)]
    rows = [np.array([0, 1, 20]), np.array([105, 106, 107, 126]), np.zeros(0, np.int64)]
    items = [load_window(slide, w, r, **OPTIONS) for w, r in zip(windows, rows, strict=True)]
    od, coverage, local = collate(items, 4)
    assert od.shape == (3, 3, 64, 64)
    dense = coverage.to_dense().numpy()
    assert dense.shape == (7, 3 * 256)
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-6)
    assert (dense[:3, 256:] == 0).all()
    assert (dense[3:, :256] == 0).all()
    one = collate(items[1:2], 4)
    np.testing.assert_array_equal(dense[3:, 256:512], one[1].to_dense().numpy())
    assert torch.equal(local[3:], one[2])


@pytest.mark.parametrize("name", ["image", "labels"])
def test_what_cannot_be_read_is_named(slide_maker, name):
    class Broken(MemorySource):
        def read(self, window):
            raise KeyError("c/0/0")

    slide = slide_maker()
    broken = prepare(dataclasses.replace(slide, **{name: Broken(getattr(slide, name)._array)}))
    message = rf"^slide 's': {name}: Window\(y0=32, x0=0, .*\) \(px\) cannot be read: 'c/0/0'"
    with pytest.raises(OSError, match=message):
        load_window(prepare(broken), Window(32, 0, 96, 64), np.array([0]), **OPTIONS)


def test_a_lack_of_memory_is_not_a_fault_of_the_file(slide_maker):
    class Large(MemorySource):
        def read(self, window):
            raise MemoryError

    slide = slide_maker()
    with pytest.raises(MemoryError):
        prepare(dataclasses.replace(slide, image=Large(slide.image._array), stain=None))


def test_stain_is_measured_without_what_is_held_out(slide_maker):
    slide = dataclasses.replace(slide_maker(), stain=None)
    assert prepare(slide).stain == white_balance(sample_pixels(slide.image))
    box = np.array([[0.0, 0.0, 100.0, 200.0]])
    dark = slide.image._array.copy()
    dark[:, :200] = 3
    held = [
        prepare(dataclasses.replace(slide, image=MemorySource(image), excluded_um=box)).stain
        for image in (slide.image._array, dark)
    ]
    assert held[0] == held[1]
    assert prepare(dataclasses.replace(slide, image=MemorySource(dark))).stain != held[0]


def test_a_given_stain_is_kept(slide_maker):
    slide = slide_maker()
    given = StainStats((250.0, 240.0, 230.0), (1.1, 1.2, 1.3))
    assert prepare(dataclasses.replace(slide, stain=given)).stain == given
    held = dataclasses.replace(slide, stain=given, excluded_um=np.array([[0.0, 0.0, 50.0, 50.0]]))
    assert prepare(held).stain == given
    assert len(prepare(held).excluded_um) == 0
