"""From a planned tile to the arrays that the default network takes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ghistpy.data.slide import Slide
from ghistpy.geometry import Coverage, MaskedSource, NamedSource, Nuclei, Window, cover, read_image, read_labels
from ghistpy.geometry.nuclei import as_int64
from ghistpy.imaging.morphology import FEATURES, nucleus_features
from ghistpy.imaging.stain import sample_pixels, to_od, white_balance
from ghistpy.imaging.surround import SURROUND, surround_features

LOCAL_FEATURES: tuple[str, ...] = FEATURES + SURROUND
N_MORPHOLOGY = len(FEATURES)


@dataclass(frozen=True)
class WindowInput:
    """One window: od (3, h, w) float32; rows (k,) of its nuclei; local (k, F) float32; coverage.

    checksum (2,) int64 of the pixels and of the nuclei's labels that were read, when asked for.
    """

    od: np.ndarray
    rows: np.ndarray
    local: np.ndarray
    coverage: Coverage
    checksum: np.ndarray | None = None


def prepare(slide: Slide) -> Slide:
    """Blank what is held out, drop its nuclei, and measure the slide's stain if that was not done.

    What cannot be read from then on is named (:class:`~ghistpy.geometry.NamedSource`).
    """
    image = NamedSource(slide.image, f"slide {slide.name!r}: image")
    labels = NamedSource(slide.labels, f"slide {slide.name!r}: labels")
    boxes = _held_out_px(slide)
    stain = slide.stain or white_balance(sample_pixels(image, excluded=boxes))
    if len(boxes) == 0:
        return replace(slide, image=image, labels=labels, stain=stain)
    return replace(
        slide,
        image=MaskedSource(image, boxes, 255),
        labels=MaskedSource(labels, boxes, 0),
        nuclei=slide.nuclei.take(~_touches(slide.nuclei, boxes)),
        stain=stain,
        excluded_um=np.zeros((0, 4)),
    )


def _held_out_px(slide: Slide) -> np.ndarray:
    """(k, 4) int64 rows (y0, x0, y1, x1): the held-out rectangles in px, inside the slide."""
    size = np.tile(slide.labels.shape, 2)
    # A side may be infinite; as an integer it would turn negative, and nothing be blanked.
    boxes = np.clip(np.asarray(slide.excluded_um).reshape(-1, 4) / slide.mpp, 0, size)
    # Outwards to whole pixels: a pixel that is held out in part is held out.
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)


def _touches(nuclei: Nuclei, boxes: np.ndarray) -> np.ndarray:
    out = np.zeros(len(nuclei), dtype=bool)
    for y0, x0, y1, x1 in boxes:
        b = nuclei.bbox
        out |= (b[:, 0] < y1) & (b[:, 2] > y0) & (b[:, 1] < x1) & (b[:, 3] > x0)
    return out


def load_window(
    slide: Slide,
    window: Window,
    rows: np.ndarray,
    *,
    scale: float,
    mpp: float,
    stride: int,
    augment: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    checksum: bool = False,
) -> WindowInput:
    """Read one window of a prepared slide and measure its nuclei.

    Parameters
    ----------
    slide
        With its stain known, see :func:`prepare`.
    window
        In model px, aligned to the grid of the network; may reach beyond the slide.
    rows
        (k,) int64, the nuclei to measure: rows of ``slide.nuclei``, ascending.
    scale, mpp
        Slide px per model px; µm per model px.
    stride
        Model px between feature positions.
    augment
        Changes od (3, h, w), labels (2, h, w) and centroids (k, 2) together.
    checksum
        Also return what :func:`window_checksum` does.

    Raises
    ------
    UnreadableError
        The image or the labels of a prepared slide cannot be read there; both are named, in slide px.
    """
    pixels, labels, anything = _read(slide, window, rows, scale)
    read = _checksum(pixels, labels) if checksum else None
    od = to_od(pixels, slide.stain)
    centroid = slide.nuclei.centroid_px[rows] / scale - [window.y0, window.x0]
    if augment is not None:
        stacked = np.stack([labels, anything.astype(np.int32)])
        od, stacked, centroid = augment(od, stacked, centroid)
        labels, anything = stacked[0], stacked[1] > 0
    local = np.concatenate(
        [
            nucleus_features(od, labels, len(rows), mpp),
            surround_features(od, anything, centroid, mpp),
        ],
        axis=1,
    )
    return WindowInput(od, rows, local, cover(labels, len(rows), stride, centroid), read)


def window_checksum(slide: Slide, window: Window, rows: np.ndarray, scale: float) -> np.ndarray:
    """(2,) int64: CRC-32 of the pixels of a window, and of the labels of the nuclei ``rows`` in it."""
    pixels, labels, _ = _read(slide, window, rows, scale)
    return _checksum(pixels, labels)


def _checksum(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(pixels)), zlib.crc32(labels)], dtype=np.int64)


def _read(slide: Slide, window: Window, rows: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (3, h, w) uint8; labels (h, w) int32, local ids 1..k in the order of ``rows``; any nucleus (h, w)."""
    pixels = read_image(slide.image, window, scale)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    raw = as_int64(read_labels(slide.labels, window, scale))
    anything = raw > 0
    # The nuclei of other tiles are background to the measurements.
    labels = np.zeros(raw.shape, dtype=np.int32)
    labels[anything] = slide.nuclei.take(rows).index_of(raw[anything]) + 1
    return pixels, labels, anything


def collate(items: Sequence[WindowInput], stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows of equal size to (od (B, 3, h, w), coverage (n, B * positions), local (n, F))."""
    od = torch.from_numpy(np.stack([item.od for item in items]))
    positions = (od.shape[2] // stride) * (od.shape[3] // stride)
    size = np.concatenate([np.diff(item.coverage.indptr) for item in items])
    index = np.concatenate([item.coverage.index + b * positions for b, item in enumerate(items)])
    # COO rather than CSR: torch calls its CSR support beta and warns at the first use.
    coverage = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([np.repeat(np.arange(len(size)), size), index])),
        torch.from_numpy(np.concatenate([item.coverage.weight for item in items])),
        size=(len(size), len(items) * positions),
        check_invariants=False,
        is_coalesced=True,
    )
    return od, coverage, torch.from_numpy(np.concatenate([item.local for item in items]))
