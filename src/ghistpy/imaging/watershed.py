"""Nuclei of one window of an H&E image, without a trained model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ghistpy.imaging._regions import Look, Maps, ellipse_fill, find_regions
from ghistpy.imaging.stain import NOMINAL_OD, StainStats, to_od
from ghistpy.imaging.stitch import renumber

# Thresholds on the smoothed OD of red light, in units of the slide's own 95th percentile of tissue
# (StainStats.od_scale): the same for every tile of a slide, comparable between slides.
_THRESHOLDS = np.geomspace(0.18, 1.4, 22)
# OD below the lowest threshold everywhere: nothing to look for
_LOWEST = float(_THRESHOLDS[0])


@dataclass(frozen=True)
class WatershedParams:
    """Settings in µm, so that one setting holds at every magnification.

    Parameters
    ----------
    smoothing_um
        Standard deviation of the Gaussian before thresholding.
    min_area_um2, max_area_um2
        No nucleus is smaller or larger.
    min_quality
        0 to 1; regions that look less like a nucleus are left out. Lower finds more, and more that is none.
    hole_um2
        Paler centres up to this size belong to the nucleus.
    peak_um
        Two nuclei of a clump are at least twice as far apart.
    """

    smoothing_um: float = 0.5
    min_area_um2: float = 8.0
    max_area_um2: float = 450.0
    min_quality: float = 0.2
    hole_um2: float = 30.0
    peak_um: float = 1.6

    def __post_init__(self) -> None:
        for name in ("smoothing_um", "min_area_um2", "peak_um"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)!r}")
        if not self.max_area_um2 > 6 * self.min_area_um2:
            raise ValueError(
                f"max_area_um2: expected more than 6 times min_area_um2={self.min_area_um2}, got {self.max_area_um2!r}"
            )
        if not 0 <= self.min_quality < 1:
            raise ValueError(f"min_quality: expected a number in [0, 1), got {self.min_quality!r}")


def _maps(od: np.ndarray, mpp: float, smoothing_um: float) -> Maps:
    # red light: eosin hardly absorbs it, so it shows nuclei with less of the stroma than an unmixed channel
    red = od[0]
    total = np.tensordot(np.array(NOMINAL_OD, dtype=np.float32), od, axes=1)
    return Maps(
        nuclear=ndimage.gaussian_filter(red, smoothing_um / mpp),
        gradient=ndimage.gaussian_gradient_magnitude(red, 1.2 * smoothing_um / mpp) / mpp,
        red=red * np.float32(NOMINAL_OD[0]),
        total=np.maximum(total, 0),
    )


def _interior(labels: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours carry the same label."""
    inner = labels > 0
    inner[1:] &= labels[1:] == labels[:-1]
    inner[:-1] &= labels[:-1] == labels[1:]
    inner[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    inner[:, :-1] &= labels[:, :-1] == labels[:, 1:]
    return inner


def _shape_scores(labels: np.ndarray, n: int, look: Look, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Shape score and area in px of the labels 1..n."""
    at = np.flatnonzero(labels)
    of = labels.ravel()[at] - 1
    count = np.maximum(np.bincount(of, minlength=n), 1).astype(np.float64)
    fill = ellipse_fill(*np.divmod(at, labels.shape[1]), of, count)
    return look.shape(count * mpp**2, fill), count


def split_clumps(labels: np.ndarray, look: Look, mpp: float, *, peak_um: float) -> np.ndarray:
    """Divide labels at their necks where the parts look more like nuclei than the whole.

    Seeds are the peaks of the distance to the border, parts their watershed.

    Parameters
    ----------
    labels
        (h, w) int32, 1..n.
    look
        Scores the shape of whole and parts.
    mpp
        µm per px.
    peak_um
        Radius in which a peak is the highest.

    Returns
    -------
    numpy.ndarray
        (h, w) int32, 1..m with m >= n; the same foreground.
    """
    from skimage.segmentation import watershed

    n = int(labels.max(initial=0))
    if n == 0:
        return labels
    whole, _ = _shape_scores(labels, n, look, mpp)
    # what is as convex as an ellipse is not worth a watershed
    doubtful = np.where(np.append(0.0, whole < 0.95)[labels] > 0, labels, 0)
    interior = _interior(doubtful)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(interior).astype(np.float32), 0.6 / mpp)
    width = 2 * round(peak_um / mpp) + 1
    peaks = (distance >= ndimage.maximum_filter(distance, size=width)) & interior
    seeds, n_seeds = ndimage.label(peaks, structure=np.ones((3, 3)))
    if n_seeds == 0:
        return labels
    basin = watershed(-distance, seeds, mask=doubtful > 0)
    # a basin that flooded into a touching nucleus is cut at its border
    parts, n_parts = renumber(doubtful.astype(np.int64) * (n_seeds + 1) + basin * (doubtful > 0))
    score, count = _shape_scores(parts, n_parts, look, mpp)
    parent = np.zeros(n_parts, dtype=np.intp)
    parent[parts.ravel()[parts.ravel() > 0] - 1] = doubtful.ravel()[parts.ravel() > 0] - 1
    weight = count**0.75
    mean = np.bincount(parent, weight * score, n) / np.maximum(np.bincount(parent, weight, n), 1e-12)
    divide = (mean > whole) & (np.bincount(parent, minlength=n) > 1)
    offset = np.where(divide[parent], n + 1 + np.arange(n_parts), 0)
    return renumber(np.where(np.append(False, divide)[labels], np.append(0, offset)[parts], labels))[0]


def segment_window(
    rgb: np.ndarray,
    stats: StainStats,
    mpp: float,
    params: WatershedParams | None = None,
    *,
    open_edges: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> np.ndarray:
    """Segment the nuclei of one window.

    Regions that look like nuclei are chosen among the components of 22 thresholds of the OD of red light
    (see :mod:`ghistpy.imaging._regions`), then clumps are divided by a watershed on the distance to their
    border.

    Parameters
    ----------
    rgb
        (3, h, w) uint8.
    stats
        Of the whole slide, so that windows of one slide agree.
    mpp
        µm per px.
    params
        Settings in µm.
    open_edges
        Whether the slide goes on beyond the top, left, bottom and right edge.

    Returns
    -------
    numpy.ndarray
        (h, w) int32, 0 = background, nuclei numbered from 1.

    Notes
    -----
    The component tree follows the idea of maximally stable regions and of choosing among nested
    candidates by dynamic programming; the scores are ours, set by hand on annotated H&E tiles.

    References
    ----------
    Matas et al., Robust wide-baseline stereo from maximally stable extremal regions, Image and Vision
    Computing 22 (2004), doi:10.1016/j.imavis.2004.02.006. Arteta et al., Learning to detect cells using
    non-overlapping extremal regions, MICCAI 2012, doi:10.1007/978-3-642-33415-3_43.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.imaging.stain import StainStats
    >>> from ghistpy.imaging.watershed import segment_window
    >>> y, x = np.mgrid[:64, :64]
    >>> rgb = np.where(np.hypot(y - 32, x - 32) < 8, [[[90]], [[60]], [[140]]], 240).astype(np.uint8)
    >>> int(segment_window(rgb, StainStats((240, 240, 240), (1.2, 1.7, 0.9)), mpp=0.5).max())
    1
    """
    params = params or WatershedParams()
    if not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp: expected µm per px above 0, got {mpp!r}")
    od = to_od(rgb, stats)
    if od[0].size == 0 or od[0].max() < _LOWEST:
        return np.zeros(od.shape[1:], dtype=np.int32)
    look = Look(0.75 * params.min_area_um2, params.max_area_um2)
    labels = find_regions(
        _maps(od, mpp, params.smoothing_um),
        _THRESHOLDS,
        look,
        mpp,
        min_quality=params.min_quality,
        hole_um2=params.hole_um2,
        open_edges=open_edges,
    )
    return split_clumps(labels, look, mpp, peak_um=params.peak_um)
