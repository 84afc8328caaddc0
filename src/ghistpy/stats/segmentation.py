"""How well segmented objects agree with annotated ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of one image, and the counts that they are made of.

    f1: of objects matched at IoU > 0.5; aji: aggregated Jaccard index; panoptic_quality: f1 times
    segmentation_quality, the mean IoU of matched objects; dice: of foreground and background. NaN where
    neither image has an object.
    """

    f1: float
    aji: float
    panoptic_quality: float
    segmentation_quality: float
    dice: float
    n_true: int
    n_found: int
    n_matched: int


def segmentation_scores(truth: np.ndarray, found: np.ndarray) -> SegmentationScores:
    """Scores of found objects against annotated ones.

    Parameters
    ----------
    truth, found
        (y, x) integers, 0 = background.

    Returns
    -------
    SegmentationScores

    Raises
    ------
    ValueError
        Different shapes, or arrays that are no integers.

    Notes
    -----
    Above an IoU of one half a match is unique, so no assignment is needed. The aggregated Jaccard index takes
    for every annotated object the found one of the largest IoU, whether it was taken before or not, and adds
    found objects that nobody took to the union. O(pixels).

    References
    ----------
    Kumar et al., A dataset and a technique for generalized nuclear segmentation for computational pathology,
    IEEE Trans. Med. Imaging 36 (2017), doi:10.1109/TMI.2017.2677499. Kirillov et al., Panoptic segmentation,
    CVPR 2019, doi:10.1109/CVPR.2019.00963.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.stats import segmentation_scores
    >>> truth = np.kron(np.eye(2, dtype=int) * [[1, 0], [0, 2]], np.ones((4, 4), int))
    >>> round(segmentation_scores(truth, np.where(truth == 2, 9, 0)).f1, 3)
    0.667
    """
    truth, found = np.asarray(truth), np.asarray(found)
    if truth.shape != found.shape:
        raise ValueError(f"truth and found: expected the same shape, got {truth.shape} and {found.shape}")
    for name, labels in (("truth", truth), ("found", found)):
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected integer labels, got dtype {labels.dtype}")
    a, b = (np.unique(labels, return_inverse=True) for labels in (truth, found))
    true, ours = (index.ravel() + (ids[0] != 0) for ids, index in (a, b))  # 0 stays the background
    n_true, n_found = int(true.max(initial=0)), int(ours.max(initial=0))
    pair, shared = np.unique(true * (n_found + 1) + ours, return_counts=True)
    i, j = np.divmod(pair, n_found + 1)
    area_true, area_found = np.bincount(true, minlength=n_true + 1), np.bincount(ours, minlength=n_found + 1)
    both = (i > 0) & (j > 0)
    i, j, shared = i[both], j[both], shared[both]
    union = area_true[i] + area_found[j] - shared
    iou = shared / union
    matched = iou > 0.5
    f1 = 2 * matched.sum() / (n_true + n_found) if n_true + n_found else np.nan
    quality = float(iou[matched].mean()) if matched.any() else 0.0
    return SegmentationScores(
        f1=float(f1),
        aji=_aggregated(i, j, shared, union, iou, area_true, area_found),
        panoptic_quality=float(f1 * quality),
        segmentation_quality=quality,
        dice=float(2 * shared.sum() / max(area_true[1:].sum() + area_found[1:].sum(), 1)),
        n_true=n_true,
        n_found=n_found,
        n_matched=int(matched.sum()),
    )


def _aggregated(
    i: np.ndarray,
    j: np.ndarray,
    shared: np.ndarray,
    union: np.ndarray,
    iou: np.ndarray,
    area_true: np.ndarray,
    area_found: np.ndarray,
) -> float:
    """Aggregated Jaccard index from the overlapping pairs of objects."""
    order = np.lexsort((-iou, i))
    best = order[np.unique(i[order], return_index=True)[1]]
    lost = np.setdiff1d(np.arange(1, len(area_true)), i[best])
    spare = np.setdiff1d(np.arange(1, len(area_found)), j[best])
    total = union[best].sum() + area_true[lost].sum() + area_found[spare].sum()
    return float(shared[best].sum() / total) if total else np.nan
