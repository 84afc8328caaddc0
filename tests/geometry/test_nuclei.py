"""Nuclei gathered block by block agree with scikit-image, whatever the ids, chunks and sizes."""

from __future__ import annotations

import numpy as np
import pytest

from ghistpy.geometry import MaskedSource, MemorySource, Nuclei, Window, find_nuclei, read_padded

LARGEST = 2**63 - 1


class Chunked(MemorySource):
    """A source in memory with chunks of any size, which notes what is read at once."""

    def __init__(self, array, chunks):
        super().__init__(array)
        self.chunks = chunks
        self.read_sizes = []

    def read(self, window):
        self.read_sizes.append(window.shape)
        return super().read(window)


def random_labels(ids, shape=(70, 53), seed=0):
    """Overlapping rectangles, so that nuclei are ragged, touch, and may fall into pieces."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.asarray(ids).dtype)
    for i in ids:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        labels[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = i
    return labels


def check_against_skimage(nuclei: Nuclei, labels: np.ndarray) -> None:
    from skimage.measure import regionprops

    ids = np.unique(labels[labels > 0])
    # scikit-image indexes an array by the label, so it gets small ones in the same order
    props = regionprops(np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0))
    assert nuclei.ids.dtype == np.int64
    assert nuclei.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(nuclei.bbox, [p.bbox for p in props])
    np.testing.assert_array_equal(nuclei.area_px, [p.area for p in props])
    np.testing.assert_allclose(nuclei.centroid_px, np.array([p.centroid for p in props]) + 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(1, 40, dtype=np.int32),
        np.array([3, 900, 7, 2**31 + 5, 2**31 + 6, 2**32 + 1], dtype=np.int64),
        # neighbours above 2**53, which are one number as float64
        np.array([LARGEST, LARGEST - 1, LARGEST - 2, 2**53 + 1, 2**53 + 2, 1], dtype=np.int64),
        np.array([LARGEST, LARGEST - 1, 2**60 + 1, 12], dtype=np.uint64),
        np.array([1, 255, 17], dtype=np.uint8),
    ],
    ids=["consecutive", "above 2**31", "above 2**53", "uint64", "uint8"],
)
@pytest.mark.parametrize("block", [1, 8, 1024])
def test_agrees_with_skimage(ids, block):
    labels = random_labels(ids)
    source = Chunked(labels, (16, 8))
    check_against_skimage(find_nuclei(source, block=block), labels)
    largest = max(block, 16), max(block, 8)
    assert all(h <= largest[0] and w <= largest[1] for h, w in source.read_sizes)


def test_one_nucleus_over_the_whole_image():
    labels = np.full((33, 20), 7)
    nuclei = find_nuclei(Chunked(labels, (8, 8)), block=8)
    check_against_skimage(nuclei, labels)
    assert nuclei.centroid_px.tolist() == [[16.5, 10.0]]


def test_one_pixel_in_a_corner():
    labels = np.zeros((33, 20), dtype=np.int64)
    labels[-1, -1] = LARGEST
    nuclei = find_nuclei(MemorySource(labels))
    assert nuclei.bbox.tolist() == [[32, 19, 33, 20]]
    assert (nuclei.ids.tolist(), nuclei.area_px.tolist()) == ([LARGEST], [1])


def test_no_nucleus():
    nuclei = find_nuclei(MemorySource(np.zeros((10, 10), dtype=np.uint16)))
    assert len(nuclei) == 0
    assert (nuclei.bbox.shape, nuclei.centroid_px.shape) == ((0, 4), (0, 2))
    assert nuclei.index_of(np.array([1, 2])).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((4, 4)), "expected an integer array, got dtype float64; float labels merge ids"),
        (np.ones((4, 4), dtype=bool), "expected an integer array, got dtype bool"),
        (np.full((4, 4), -3), "negative id -3; nuclei need ids of 1 and above"),
        (np.full((4, 4), 2**63, dtype=np.uint64), r"id 9223372036854775808 is above 2\*\*63 - 1"),
        (np.ones((1, 4, 4), dtype=int), r"expected shape \(y, x\), got \(1, 4, 4\)"),
    ],
)
def test_refuses(labels, message):
    with pytest.raises(ValueError, match=message):
        find_nuclei(MemorySource(labels))


def test_a_block_that_cannot_be_read_is_named():
    class Broken(Chunked):
        def read(self, window):
            if window.y0 == 8:
                raise RuntimeError("bad chunk")
            return super().read(window)

    with pytest.raises(OSError, match=r"labels: Window\(y0=8, x0=0, .* cannot be read: bad chunk"):
        find_nuclei(Broken(np.ones((20, 20), int), (8, 8)), block=8)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_index_of_tells_large_ids_apart(dtype):
    labels = np.array([[LARGEST, LARGEST - 2], [2**53, 5]])
    nuclei = find_nuclei(MemorySource(labels))
    asked = np.array([LARGEST, LARGEST - 1, LARGEST - 2, 2**53 + 1, 2**53, 4, 5, 6], dtype=dtype)
    assert nuclei.index_of(asked).tolist() == [3, -1, 2, -1, 1, -1, 0, -1]


def test_take_keeps_rows_together():
    labels = random_labels(np.arange(1, 20) * 7)
    nuclei = find_nuclei(MemorySource(labels))
    some = nuclei.take(nuclei.area_px > 20)
    check_against_skimage(some, np.where(np.isin(labels, some.ids), labels, 0))


def test_masked_source_blanks_its_boxes_only():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 200, (3, 40, 30), dtype=np.uint8)
    boxes = np.array([[5, 4, 12, 40], [30, 0, 99, 3], [12, 12, 12, 20]])
    masked = MaskedSource(MemorySource(image), boxes, 255)
    held = np.zeros((40, 30), dtype=bool)
    held[5:12, 4:] = held[30:, :3] = True
    expected = np.where(held, 255, image)
    for _ in range(50):
        y, x = rng.integers(-5, 40, 2), rng.integers(-5, 30, 2)
        window = Window(int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1)
        padded = np.pad(expected, ((0, 0), (50, 50), (50, 50)), constant_values=7)
        part = padded[:, window.y0 + 50 : window.y1 + 50, window.x0 + 50 : window.x1 + 50]
        np.testing.assert_array_equal(read_padded(masked, window, 7), part)
    np.testing.assert_array_equal(MemorySource(image).read(Window(0, 0, 40, 30)), image)


def test_a_window_outside_the_array_is_fill():
    source = MemorySource(np.ones((4, 4), dtype=np.uint8))
    assert (read_padded(source, Window(-9, 2, -3, 6), 9) == 9).all()
    assert (read_padded(source, Window(4, 4, 6, 6), 9) == 9).all()


def test_memory_source_refuses_other_axes():
    with pytest.raises(ValueError, match=r"expected \(y, x\) labels or a \(c, y, x\) image, got shape \(4,\)"):
        MemorySource(np.zeros(4))
