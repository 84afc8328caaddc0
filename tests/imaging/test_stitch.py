"""Every nucleus once and whole, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from scipy import ndimage

from ghistpy.geometry import MemorySource
from ghistpy.imaging.stain import StainStats
from ghistpy.imaging.stitch import plan, renumber, segment_tiles
from ghistpy.imaging.watershed import segment_window

STATS = StainStats((240.0, 237.0, 241.0), (1.2, 1.6, 0.75))


def components(image, open_edges):
    """A segmentation that depends on nothing but the pixels of an object."""
    return ndimage.label(image[0] > 0)[0]


def same_partition(a, b):
    """Whether two label arrays have the same objects under any ids."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(a)) == len(np.unique(b)) and ((pairs == 0).all(0) | (pairs > 0).all(0)).all()


def random_discs(n=400, size=700, seed=0):
    rng = np.random.default_rng(seed)
    image = np.zeros((1, size, size), dtype=np.uint8)
    y, x = np.mgrid[:size, :size]
    for cy, cx, r in np.column_stack([rng.uniform(0, size, (n, 2)), rng.uniform(0.5, 9, n)]):
        box = slice(max(int(cy) - 10, 0), int(cy) + 11), slice(max(int(cx) - 10, 0), int(cx) + 11)
        image[0][box] |= np.hypot(y[box] - cy, x[box] - cx) < r
    return image


@pytest.mark.parametrize("tile_px", [64, 100, 256, 4096])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_equals_the_whole_image_at_once(tile_px, n_jobs):
    image = random_discs(n=150)
    whole, n = ndimage.label(image[0])
    out = np.zeros(whole.shape, np.int32)
    report = segment_tiles(MemorySource(image), components, out, mpp=1.0, margin_um=60, tile_px=tile_px, n_jobs=n_jobs)
    assert report.n_nuclei == n
    assert report.n_conflicts == 0
    assert same_partition(out, whole)
    np.testing.assert_array_equal(np.unique(out), np.arange(n + 1))  # ids 1..n


def test_writes_to_zarr_and_does_not_depend_on_threads(tmp_path):
    image = random_discs()
    reference = np.zeros(image.shape[1:], np.int32)
    segment_tiles(MemorySource(image), components, reference, mpp=1.0, tile_px=128)
    out = zarr.create_array(
        str(tmp_path / "labels.zarr"), shape=reference.shape, chunks=(100, 100), dtype=np.int32, fill_value=0
    )
    segment_tiles(MemorySource(image), components, out, mpp=1.0, tile_px=128, n_jobs=4)
    np.testing.assert_array_equal(out[:], reference)


def test_size_limits_are_counted_once():
    image = np.zeros((1, 300, 300), np.uint8)
    image[0, 10:12, 10:12] = 1  # 4 px
    image[0, 126:130, 126:130] = 1  # 16 px, over a corner of tiles
    image[0, 200:240, 190:230] = 1  # 1600 px
    out = np.zeros((300, 300), np.int32)
    report = segment_tiles(
        MemorySource(image), components, out, mpp=0.5, area_um2=(2.0, 100.0), tile_px=128, margin_um=30
    )
    assert (report.n_nuclei, report.n_small, report.n_large, report.n_tiles) == (1, 1, 1, 9)
    assert (out > 0).sum() == 16


def test_contested_pixels_go_to_the_first_tile():
    """Tiles that disagree: a later object loses a few pixels, or is left out when it loses more than a quarter."""

    def disagree(image, open_edges):
        labels = np.zeros(image.shape[1:], np.int32)
        if not open_edges[1]:  # left tile: centroid 62.5, reaches column 70
            labels[20:30, 55:70] = 7
        else:  # right tile, window starts at column 44
            labels[28:29, 60 - 44 : 68 - 44] = 5  # all contested; its centroid, 64, is the right tile's
            labels[20:30, 68 - 44 : 90 - 44] = 3  # two columns contested
        return labels

    out = np.zeros((64, 128), np.int32)
    report = segment_tiles(
        MemorySource(np.zeros((1, 64, 128), np.uint8)), disagree, out, mpp=1.0, tile_px=64, margin_um=20
    )
    assert report.n_nuclei == 2
    assert report.n_conflicts == 1
    assert (out == 1).sum() == 150
    assert (out == 2).sum() == 200


def test_plan_covers_every_pixel_once():
    covered = np.zeros((130, 201), int)
    for tile in plan(130, 201, 64, 10):
        core, window = tile.core, tile.window
        covered[core.y0 : core.y1, core.x0 : core.x1] += 1
        assert window.y0 <= core.y0
        assert window.x1 >= core.x1
        assert tile.open_edges == (window.y0 > 0, window.x0 > 0, window.y1 < 130, window.x1 < 201)
    assert (covered == 1).all()


def test_renumber():
    out, n = renumber(np.array([[0, 9, 9], [2**40, 0, 4]]))
    np.testing.assert_array_equal(out, [[0, 2, 2], [3, 0, 1]])
    assert n == 3


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (lambda shape: np.zeros(shape, float), "integer dtype"),
        (lambda shape: np.zeros((3, 3), int), "expected labels of shape"),
        (lambda shape: np.full(shape, -1), "got -1"),
    ],
)
def test_functions_that_return_no_labels(labels, match):
    with pytest.raises(ValueError, match=match):
        segment_tiles(
            MemorySource(np.zeros((1, 80, 80), np.uint8)),
            lambda image, edges: labels(image.shape[1:]),
            np.zeros((80, 80), np.int32),
            mpp=1.0,
        )


def test_error_in_a_thread_stops_the_run():
    def fail(image, open_edges):
        raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        segment_tiles(
            MemorySource(np.zeros((1, 300, 300), np.uint8)),
            fail,
            np.zeros((300, 300), np.int32),
            mpp=1,
            tile_px=64,
            n_jobs=2,
        )


def test_bad_arguments():
    source, out = MemorySource(np.zeros((1, 80, 80), np.uint8)), np.zeros((80, 80), np.int32)
    with pytest.raises(ValueError, match="tile_px and n_jobs"):
        segment_tiles(source, components, out, mpp=1.0, tile_px=8)
    with pytest.raises(ValueError, match="out: expected shape"):
        segment_tiles(source, components, out[1:], mpp=1.0)


def _watershed(source, tile_px, mpp):
    out = np.zeros(source.shape[1:], np.int32)
    segment_tiles(
        source, lambda rgb, edges: segment_window(rgb, STATS, mpp, open_edges=edges), out, mpp=mpp, tile_px=tile_px
    )
    return out


def test_watershed_does_not_depend_on_tile_size(make_tissue, iou):
    drawn = make_tissue(260.0, 0.5, seed=5)
    source = MemorySource(drawn.rgb)
    small, large = _watershed(source, 150, 0.5), _watershed(source, 2000, 0.5)
    a, b = iou(small, large)
    assert (a == 1).mean() > 0.99
    assert (b == 1).mean() > 0.99


@pytest.mark.data
def test_watershed_does_not_depend_on_tile_size_on_real_tissue(data_dir, iou):
    """Identical outlines for at least 99 % of the nuclei of a dense, clumped crop."""
    from tifffile import imread

    image = imread(data_dir / "data" / "slides" / "HE_example.tif")[100:900, 100:900]
    source = MemorySource(np.ascontiguousarray(image.transpose(2, 0, 1)))
    global_stats = StainStats((229.0, 224.0, 230.0), (1.22, 1.86, 0.71))
    results = []
    for tile_px in (256, 1024):
        out = np.zeros(source.shape[1:], np.int32)
        segment_tiles(
            source,
            lambda rgb, edges: segment_window(rgb, global_stats, 0.5, open_edges=edges),
            out,
            mpp=0.5,
            tile_px=tile_px,
        )
        results.append(out)
    a, b = iou(*results)
    assert len(a) > 1000
    assert (a == 1).mean() >= 0.99
    assert (b == 1).mean() >= 0.99
