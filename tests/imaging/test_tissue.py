"""Tissue at low resolution: mask, holes, outlines in µm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ghistpy.geometry import MemorySource, Window
from ghistpy.imaging.tissue import outlines, read_coarse, tissue_mask

GLASS, PINK = np.array([236, 233, 238]), np.array([200, 140, 180])


def slide(mask, seed=0):
    rng = np.random.default_rng(seed)
    values = np.where(mask, PINK[:, None, None], GLASS[:, None, None]) + rng.normal(0, 3, (3, *mask.shape))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def disc(n, centre, radius):
    y, x = np.mgrid[:n, :n] + 0.5
    return np.hypot(y - centre[0], x - centre[1]) < radius


def test_coarse_equals_block_means():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 1030, 777), dtype=np.uint8)

    class Bounded(MemorySource):
        def read(self, window: Window):
            assert window.shape[0] <= 512
            return super().read(window)

    got = read_coarse(Bounded(image), 16)
    assert got.shape == (3, 65, 49)
    np.testing.assert_array_equal(
        got[:, :64, :48], np.rint(image[:, :1024, :768].reshape(3, 64, 16, 48, 16).mean(axis=(2, 4)))
    )
    np.testing.assert_array_equal(got[:, 64, 48], np.rint(image[:, 1024:, 768:].mean(axis=(1, 2))))


def test_mask_is_the_tissue():
    truth = disc(300, (150, 140), 90) & ~disc(300, (150, 140), 30)
    got = tissue_mask(slide(truth), 8.0)
    assert (got & truth).sum() / (got | truth).sum() > 0.95
    assert not got[150, 140]  # the hole stays


def test_dust_and_haze_are_not_tissue():
    truth = disc(300, (100, 100), 60)
    image = slide(truth | disc(300, (250, 250), 4)).astype(float)
    image[1, :, 200:] -= 12  # pink haze on the glass, mean OD 0.02
    got = tissue_mask(image.astype(np.uint8), 8.0)
    assert not got[:, 200:].any()
    assert (got & truth).sum() / (got | truth).sum() > 0.95


def test_small_holes_are_filled():
    truth = disc(200, (100, 100), 80)
    holed = truth & ~disc(200, (100, 100), 5)  # 5,000 µm²
    assert tissue_mask(slide(holed), 8.0)[100, 100]
    assert not tissue_mask(slide(holed), 8.0, min_hole_um2=1000.0)[100, 100]


def test_blank_and_full_slides():
    assert not tissue_mask(slide(np.zeros((200, 200), bool)), 8.0).any()
    assert not tissue_mask(np.full((3, 50, 50), 255, np.uint8), 8.0).any()
    rng = np.random.default_rng(0)
    full = np.clip(rng.normal([[[190]], [[110]], [[170]]], 25, (3, 200, 200)), 0, 215).astype(np.uint8)
    assert tissue_mask(full, 8.0).mean() > 0.95


def test_outlines_enclose_what_the_mask_holds():
    from shapely import Polygon, contains_xy

    mask = disc(100, (50, 50), 40) & ~disc(100, (45, 50), 12)
    mask |= disc(100, (8, 92), 5)
    mask[:, 97:] = True  # reaches the edge
    pieces = [Polygon(outer, holes) for outer, holes in outlines(mask, 8.0)]
    assert sum(len(p.interiors) for p in pieces) == 1
    y, x = (np.mgrid[:100, :100] + 0.5) * 8.0
    inside = np.any([contains_xy(p, x.ravel(), y.ravel()) for p in pieces], axis=0).reshape(mask.shape)
    np.testing.assert_array_equal(inside, mask)
    assert sum(p.area for p in pieces) == pytest.approx(mask.sum() * 64, rel=0.03)
    assert max(p.bounds[2] for p in pieces) == 800.0


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # 92 MP; decoded at 1/8
@pytest.mark.parametrize(("section", "mm2"), [("C2", 7.4), ("C4", 7.35)])
def test_her2st_section_is_one_piece(data_dir, section, mm2):
    """A faint pink smear beside the tissue of C2 must not count."""
    from PIL import Image

    with Image.open(data_dir / "data" / "her2st" / "images" / f"{section}.jpg") as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        coarse = np.asarray(image).transpose(2, 0, 1)
    mpp = 0.687 * 8
    mask = tissue_mask(np.ascontiguousarray(coarse), mpp)
    assert len(outlines(mask, mpp)) == 1
    assert mask.sum() * mpp**2 / 1e6 == pytest.approx(mm2, rel=0.03)


@pytest.mark.parametrize(
    "colour", [(20, 120, 60), (20, 50, 150), (10, 10, 12), (200, 25, 20)], ids=["green", "blue", "black", "red"]
)
def test_pen_is_no_tissue(colour):
    truth = disc(300, (150, 140), 90)
    values = slide(truth)
    stroke = np.zeros_like(truth)
    stroke[20:40, 10:290] = True  # on glass
    stroke[20:200, 270:285] = True
    stroke[140:160, 100:180] = True  # across the tissue
    rng = np.random.default_rng(1)
    inked = np.clip(np.array(colour)[:, None, None] + rng.normal(0, 1, values.shape), 0, 255)
    values = np.where(stroke, inked, values).astype(np.uint8)
    got = tissue_mask(values, 8.0)
    assert not got[stroke].any()
    wanted = truth & ~ndimage.binary_dilation(stroke, iterations=4)
    assert got[wanted].mean() > 0.98
    assert (got & ~truth).sum() < 0.02 * truth.sum()


def test_haematoxylin_alone_and_small_pigment_are_tissue():
    truth = disc(200, (100, 100), 70)
    values = slide(truth)
    purple = np.array([95, 70, 150])[:, None, None]  # red over green of 1.1
    values = np.where(disc(200, (100, 100), 40), purple, values).astype(np.uint8)
    values[:, 90:93, 60:63] = 15  # a grain of pigment of 24 µm
    got = tissue_mask(values, 8.0)
    assert (got & truth).sum() / (got | truth).sum() > 0.95
