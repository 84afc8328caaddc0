"""The published network's grid of patches over a slide, and how a patch is read.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ghistpy.data.slide import Slide
from ghistpy.geometry import Window, model_scale, read_image, read_labels


def patch_starts(length: int, patch: int, overlap: int) -> list[int]:
    """Where patches start along one axis, as the published program counts them.

    The last ones are moved back so that they end with the axis; they may coincide. An axis shorter than
    a patch has one patch, which starts at 0 and reaches beyond it.

    Examples
    --------
    >>> patch_starts(1000, 256, 30)
    [0, 226, 452, 678, 744]
    """
    if length < 1 or not 0 <= overlap < patch:
        raise ValueError(
            f"patch_starts: got length={length}, patch={patch}, overlap={overlap}; "
            "expected length >= 1 and 0 <= overlap < patch, in px"
        )
    last = max(length - patch, 0)
    return [min(start, last) for start in range(0, length, patch - overlap)]


@dataclass(frozen=True)
class PatchGrid:
    """Patches of one slide that hold nuclei, in model px.

    ``scale`` slide px per model px; ``corners`` (P, 2) int64 rows (y0, x0), in raster order;
    ``side`` px.
    """

    scale: float
    corners: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.corners)

    def window(self, patch: int) -> Window:
        """Window of a patch, in model px; may reach beyond a slide that is smaller than a patch."""
        y, x = (int(v) for v in self.corners[patch])
        return Window(y, x, y + self.side, x + self.side)


def plan_patches(slide: Slide, *, mpp: float, side: int, overlap: int) -> PatchGrid:
    """The published grid over a slide, without the patches that no nucleus' box touches.

    ``mpp`` µm/px of the patches, ``side`` and ``overlap`` in their px.
    """
    scale = model_scale(slide.mpp, mpp)
    starts = [np.unique(patch_starts(int(np.ceil(size / scale)), side, overlap)) for size in slide.labels.shape]
    # A nucleus touches the patches from `first` to `last` of each axis: +1 and -1 at the corners of that
    # block, summed up, count the nuclei of every patch without a loop over either.
    low, high = slide.nuclei.bbox[:, :2] / scale, slide.nuclei.bbox[:, 2:] / scale
    first = [np.searchsorted(s + side, low[:, a] - 1, side="right") for a, s in enumerate(starts)]
    last = [np.searchsorted(s, high[:, a] + 1, side="left") for a, s in enumerate(starts)]
    counts = np.zeros((len(starts[0]) + 1, len(starts[1]) + 1), dtype=np.int64)
    for y, y_sign in ((first[0], 1), (last[0], -1)):
        for x, x_sign in ((first[1], 1), (last[1], -1)):
            np.add.at(counts, (y, x), y_sign * x_sign)
    rows, columns = np.nonzero(counts.cumsum(0).cumsum(1)[:-1, :-1])
    corners = np.stack([starts[0][rows], starts[1][columns]], axis=1).astype(np.int64)
    return PatchGrid(scale, corners, side)


@dataclass(frozen=True)
class Patch:
    """One patch: image (3, s, s) float32, standardised; rows (s, s) int64, 0 = background, else 1 + row.

    checksum (2,) int64: CRC-32 of the pixels and of the rows.
    """

    image: np.ndarray
    rows: np.ndarray
    checksum: np.ndarray


class PatchReader:
    """Reads the patches of one slide: resampled, standardised, labels as rows of ``slide.nuclei``.

    What lies beyond the slide is white background; labels that are none of ``slide.nuclei`` are
    background. A nucleus so small that resampling leaves no pixel of it gets the one under its centroid.

    Parameters
    ----------
    slide, grid
        The slide, and its patches.
    image_mean, image_std
        (3,), 0-255 scale.
    """

    def __init__(self, slide: Slide, grid: PatchGrid, image_mean: np.ndarray, image_std: np.ndarray) -> None:
        self.slide, self.grid = slide, grid
        self._mean, self._std = (np.asarray(v, dtype=np.float32).reshape(3, 1, 1) for v in (image_mean, image_std))
        # Only resampling can lose a nucleus, and hardly one that covers many samples.
        small = slide.nuclei.area_px <= 16 * grid.scale**2 if grid.scale != 1.0 else np.zeros(0, dtype=bool)
        self._small = np.flatnonzero(small)
        self._small_pixel = np.floor(slide.nuclei.centroid_px[self._small] / grid.scale).astype(np.int64)

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, patch: int) -> Patch:
        window = self.grid.window(patch)
        try:
            pixels = read_image(self.slide.image, window, self.grid.scale)
            labels = read_labels(self.slide.labels, window, self.grid.scale)
        except OSError as error:
            raise OSError(f"slide {self.slide.name!r}: patch {window} (model px) cannot be read: {error}") from error
        ids, inverse = np.unique(labels, return_inverse=True)
        # int64 first: searchsorted on mixed int64 and uint64 compares as float64 and merges large ids
        ids = ids.astype(np.int64)
        rows = np.where(ids == 0, 0, self.slide.nuclei.index_of(ids) + 1)[inverse].reshape(window.shape)
        pixel = self._small_pixel - [window.y0, window.x0]
        inside = ((pixel >= 0) & (pixel < window.shape)).all(axis=1)
        lost = inside & ~np.isin(self._small + 1, rows)
        rows[pixel[lost, 0], pixel[lost, 1]] = self._small[lost] + 1
        checksum = np.array([zlib.crc32(np.ascontiguousarray(pixels)), zlib.crc32(rows)], dtype=np.int64)
        return Patch((pixels.astype(np.float32) - self._mean) / self._std, rows, checksum)
