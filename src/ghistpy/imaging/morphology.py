"""Shape, stain and chromatin of every nucleus of a window, without a loop over nuclei.

Every feature is a function of the nucleus' own mask and of the pixels in and around it (up to
``EDGE_UM``). Which other nuclei lie in the window, their ids and the place of the window do not matter.
"""

from __future__ import annotations

import numpy as np

from ghistpy.imaging.stain import hematoxylin

FEATURES: tuple[str, ...] = (
    "log_area_um2",
    "major_axis_um",
    "minor_axis_um",
    "eccentricity",
    "ellipse_fill",
    "roundness",
    "od_mean_r",
    "od_mean_g",
    "od_mean_b",
    "od_sd_r",
    "od_sd_g",
    "od_sd_b",
    "hematoxylin_sd",
    "hematoxylin_skew",
    "texture_fine",
    "texture_coarse",
    "rim_contrast",
    "edge_contrast_r",
    "edge_contrast_g",
    "edge_contrast_b",
)

# Distances of pixel pairs, in µm so that they mean the same at every magnification.
FINE_UM, COARSE_UM, EDGE_UM = 0.6, 1.4, 1.4

_FORWARD = ((0, 1), (1, 0), (1, 1), (1, -1))
_AXES = ((0, 1), (1, 0), (0, -1), (-1, 0))


class _Pixels:
    """The pixels of all nuclei, sorted by nucleus, in an array padded so that neighbours always exist.

    Sorted, a sum per nucleus is a sum over a slice, and ``reduceat`` is several times faster than
    ``bincount``. Quantities stay float32 rows (sums are float64): small arrays are cheap to allocate.
    """

    def __init__(self, labels: np.ndarray, pad: int) -> None:
        # 16-bit ids sort by radix and halve the traffic of the neighbour look-ups
        small = labels.astype(np.uint16) if labels.max(initial=0) < 2**16 else labels
        padded = _pad(small, pad)
        self.pad, self.width, self.flat = pad, padded.shape[1], padded.ravel()
        at = np.flatnonzero(self.flat != 0)  # of a bool array: several times faster
        of = self.flat.take(at)
        order = np.argsort(of, kind="stable")
        self.at, self.of = at.take(order), of.take(order)
        self.start = np.flatnonzero(np.diff(self.of, prepend=0))
        self.nuclei = self.of[self.start].astype(np.intp) - 1
        self.size = np.diff(self.start, append=len(self.at))
        self.count = self.size.astype(np.float64)
        self._same: dict[tuple[int, int], np.ndarray] = {}

    def sums(self, rows: list[np.ndarray]) -> np.ndarray:
        """(k, present nuclei) sums of k quantities given per pixel."""
        return np.stack([np.add.reduceat(row, self.start, dtype=np.float64) for row in rows])

    def spread(self, of_nucleus: np.ndarray) -> np.ndarray:
        """A value per present nucleus as a value per pixel."""
        return np.repeat(of_nucleus, self.size)

    def neighbour(self, dy: int, dx: int) -> np.ndarray:
        """Flat index of the pixel at that offset of every nucleus pixel."""
        return self.at + (dy * self.width + dx)

    def same(self, dy: int, dx: int) -> np.ndarray:
        """Whether that pixel belongs to the same nucleus."""
        if (dy, dx) not in self._same:
            self._same[dy, dx] = self.flat.take(self.neighbour(dy, dx)) == self.of
        return self._same[dy, dx]


def _pad(array: np.ndarray, pad: int) -> np.ndarray:
    shape = (*array.shape[:-2], array.shape[-2] + 2 * pad, array.shape[-1] + 2 * pad)
    out = np.zeros(shape, dtype=array.dtype)
    out[..., pad:-pad, pad:-pad] = array
    return out


def _ellipse(sums: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Larger and smaller eigenvalue of the second central moments, px²."""
    mean_y, mean_x, yy, xx, yx = sums / area
    var_y, var_x = yy - mean_y**2, xx - mean_x**2
    centre, spread = (var_y + var_x) / 2, np.hypot((var_y - var_x) / 2, yx - mean_y * mean_x)
    return np.maximum(centre + spread, 0), np.maximum(centre - spread, 0)


def _coordinates(px: _Pixels) -> list[np.ndarray]:
    y, x = np.divmod(px.at, px.width)
    # from the first pixel of each nucleus, as small integers: exact sums wherever the window lies
    y = (y - px.spread(y[px.start])).astype(np.float32)
    x = (x - px.spread(x[px.start])).astype(np.float32)
    return [y, x, y * y, x * x, y * x]


def _crossings(px: _Pixels) -> np.ndarray:
    """Border crossings per pixel of lines in four directions, weighted by the distance of the lines."""
    total = np.zeros(len(px.at), dtype=np.float32)
    for dy, dx in _FORWARD:
        # a border that is left in one direction was entered before: twice the exits
        total += ~px.same(dy, dx) * np.float32(2 / np.sqrt(2) if dy and dx else 2)
    return total


def _pairs(px: _Pixels, image: np.ndarray, at: np.ndarray, lag: int) -> list[np.ndarray]:
    """Squared difference to the pixels ``lag`` further in y and x inside the nucleus; number of them."""
    right, down = px.same(0, lag), px.same(lag, 0)
    energy = right * (image.take(px.neighbour(0, lag)) - at) ** 2
    energy += down * (image.take(px.neighbour(lag, 0)) - at) ** 2
    return [energy, right.astype(np.float32) + down]


def _rim(px: _Pixels, at: np.ndarray, lag: int) -> list[np.ndarray]:
    """Value and number of the pixels within ``lag`` of the own border."""
    rim = ~(px.same(0, lag) & px.same(lag, 0) & px.same(0, -lag) & px.same(-lag, 0))
    return [at * rim, rim]


def _outside(px: _Pixels, od: np.ndarray, shape: tuple[int, int], lag: int) -> np.ndarray:
    """(4, present nuclei) sum of OD per channel, and number, of the pixels ``lag`` beyond the border."""
    window = _pad(np.ones(shape, dtype=bool), px.pad).ravel()  # what lies beyond the window is unknown
    rank = px.spread(np.arange(len(px.size)))
    at, of = [], []
    for dy, dx in _AXES:
        leaves = np.flatnonzero(~px.same(dy * lag, dx * lag))
        at.append(px.at.take(leaves) + (dy * lag * px.width + dx * lag))
        of.append(rank.take(leaves))
    at, of = np.concatenate(at), np.concatenate(of)
    known = window.take(at)
    if not known.all():
        at, of = at[known], of[known]
    n = len(px.size)
    return np.stack([*(np.bincount(of, channel.take(at), n) for channel in od), np.bincount(of, minlength=n)])


def _moments(mean: np.ndarray, second: np.ndarray, third: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation and skewness from raw moments."""
    variance = np.maximum(second - mean**2, 0)
    sd = np.sqrt(variance)
    central = third - 3 * mean * variance - mean**3
    # below 1e-3 OD the nucleus is flat and its skewness would be rounding noise
    return sd, np.divide(central, sd**3, out=np.zeros_like(sd), where=sd > 1e-3)


def _assemble(sums: np.ndarray, outside: np.ndarray, area: np.ndarray, origin: np.ndarray) -> list[np.ndarray]:
    """The features at 1 µm/px, in the order of ``FEATURES``, from the sums of ``nucleus_features``.

    ``origin`` (3, nuclei) is the OD that was taken off before summing.
    """
    large, small = _ellipse(sums[0:5], area)
    perimeter = np.maximum(sums[5] * np.pi / 8, 1.0)
    mean, square = sums[6:9] / area, sums[9:12] / area
    stain = sums[12:15] / area
    sd, skew = _moments(*stain)
    rim = np.where(sums[20] > 0, sums[19] / np.maximum(sums[20], 1) - stain[0], 0.0)
    around = np.where(outside[3] > 0, mean + origin - outside[:3] / np.maximum(outside[3], 1), 0.0)
    return [
        np.log(area),
        4 * np.sqrt(large),
        4 * np.sqrt(small),
        np.sqrt(1 - np.divide(small, large, out=np.ones_like(small), where=large > 1e-9)),
        # a pixel is a square, not a point: its own variance 1/12 keeps the ellipse of 1 px finite
        area / (4 * np.pi * np.sqrt((large + 1 / 12) * (small + 1 / 12))),
        4 * np.pi * area / perimeter**2,
        *(mean + origin),
        *np.sqrt(np.maximum(square - mean**2, 0)),
        sd,
        skew,
        np.sqrt(sums[15] / np.maximum(sums[16], 1)),
        np.sqrt(sums[17] / np.maximum(sums[18], 1)),
        rim,
        *around,
    ]


def _check(od: np.ndarray, labels: np.ndarray, n_nuclei: int, mpp: float) -> None:
    if od.ndim != 3 or od.shape[0] != 3 or od.dtype.kind != "f":
        raise ValueError(f"od: expected (3, h, w) floats, got shape {od.shape}, dtype {od.dtype}")
    if labels.shape != od.shape[1:] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected {od.shape[1:]} integers, got shape {labels.shape}, dtype {labels.dtype}")
    if not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp: expected µm per px above 0, got {mpp!r}")
    if labels.size and (labels.min() < 0 or labels.max() > n_nuclei):
        raise ValueError(
            f"labels: expected local ids 0..n_nuclei={n_nuclei}, got {labels.min()}..{labels.max()}; renumber them"
        )


def nucleus_features(od: np.ndarray, labels: np.ndarray, n_nuclei: int, mpp: float) -> np.ndarray:
    """Morphology of the nuclei of one window.

    Parameters
    ----------
    od
        (3, h, w) float32 scaled optical density, see :func:`ghistpy.imaging.stain.to_od`.
    labels
        (h, w) integers, 0 = background, 1..n_nuclei = the nuclei.
    n_nuclei
        Number of rows to return; an id without pixels gets a row of zeros.
    mpp
        µm per px.

    Returns
    -------
    numpy.ndarray
        (n_nuclei, len(FEATURES)) float32, always finite. Areas and axes in µm (axes are those of the
        ellipse of equal second moments, as in ``skimage.measure.regionprops``); ``ellipse_fill`` = area /
        ellipse area (1 for an ellipse, less when concave); ``roundness`` = 4π area / perimeter²;
        ``texture_*`` = root mean square haematoxylin difference at 0.6 and 1.4 µm; ``edge_contrast_*`` =
        mean OD minus that 1.4 µm outside (pixels beyond the window are ignored, so give nuclei a margin
        of 2 µm when windows must agree).

    Notes
    -----
    O(pixels); no loop over nuclei.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.imaging.morphology import FEATURES, nucleus_features
    >>> labels = np.zeros((32, 32), np.int32)
    >>> labels[8:20, 8:20] = 1
    >>> features = nucleus_features(np.ones((3, 32, 32), np.float32), labels, 1, mpp=0.5)
    >>> round(float(np.exp(features[0, FEATURES.index("log_area_um2")])), 3)
    36.0
    """
    od, labels = np.asarray(od), np.asarray(labels)
    _check(od, labels, n_nuclei, mpp)
    features = np.zeros((n_nuclei, len(FEATURES)), dtype=np.float32)
    fine, coarse, edge = (max(1, round(distance / mpp)) for distance in (FINE_UM, COARSE_UM, EDGE_UM))
    pad = max(fine, coarse, edge)
    px = _Pixels(labels, pad)
    if len(px.at) == 0:
        return features
    od_image = _pad(od, pad).reshape(3, -1)
    own = od_image.take(px.at, axis=1)  # (3, pixels)
    # from the first pixel of each nucleus: the moments of float32 values keep their precision
    origin = own[:, px.start]
    own -= np.stack([px.spread(channel) for channel in origin])
    stain = hematoxylin(own)
    stain_image = np.zeros(od_image.shape[1], dtype=np.float32)
    stain_image[px.at] = stain
    inside = px.sums(
        [
            *_coordinates(px),
            _crossings(px),
            *own,
            *own**2,
            stain,
            stain**2,
            stain**3,
            *_pairs(px, stain_image, stain, fine),
            *_pairs(px, stain_image, stain, coarse),
            *_rim(px, stain, fine),
        ]
    )
    outside = _outside(px, od_image, labels.shape, edge)
    features[px.nuclei] = np.stack(_assemble(inside, outside, px.count, origin), axis=1)
    features[px.nuclei, 0] += 2 * np.log(mpp)
    features[px.nuclei, 1:3] *= mpp
    return features
