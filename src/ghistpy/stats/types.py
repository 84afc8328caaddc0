"""Agreement of cell types, cell by cell and as composition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ghistpy.stats.metrics import pearson, rmse, spearman


@dataclass(frozen=True)
class TypeAgreement:
    """Agreement of two labellings over the sorted union of their classes.

    Attributes
    ----------
    classes
        (C,) names.
    confusion
        (C, C) int64, rows measured, columns predicted.
    precision, recall, f1
        (C,) float64; precision is NaN for a class never predicted, recall for one never measured.
        ``f1`` = 2 tp / (2 tp + fp + fn), so it is 0 for a class that only one side knows.
    accuracy, macro_f1
        Share of equal labels; mean of ``f1`` over the classes.
    """

    classes: np.ndarray
    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    accuracy: float
    macro_f1: float


def type_agreement(truth: np.ndarray, predicted: np.ndarray) -> TypeAgreement:
    """Accuracy, macro-F1, per-class F1 and confusion of predicted cell types.

    Parameters
    ----------
    truth, predicted
        (n,) labels of the same cells (strings or integers), none missing.

    Raises
    ------
    ValueError
        Lengths differ or there is no cell.

    Examples
    --------
    >>> agreement = type_agreement(["T", "T", "B"], ["T", "B", "B"])
    >>> round(agreement.accuracy, 3), agreement.confusion.tolist()
    (0.667, [[1, 0], [1, 1]])
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth, predicted: expected one label per cell, got shapes {truth.shape}, {predicted.shape}")
    if len(truth) == 0:
        raise ValueError("truth: there is no cell with both labels")
    classes, code = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    c, n = len(classes), len(truth)
    confusion = np.bincount(code[:n] * c + code[n:], minlength=c * c).reshape(c, c)
    return agreement_from_confusion(classes, confusion)


def agreement_from_confusion(classes: np.ndarray, confusion: np.ndarray) -> TypeAgreement:
    """The same from a confusion matrix (C, C), rows measured, columns predicted."""
    confusion = np.asarray(confusion, dtype=np.int64)
    hit = np.diag(confusion).astype(np.float64)
    measured, predicted = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, f1 = hit / predicted, hit / measured, 2 * hit / (measured + predicted)
        accuracy = float(hit.sum() / confusion.sum())
    seen = (measured + predicted) > 0
    return TypeAgreement(
        np.asarray(classes),
        confusion,
        precision,
        recall,
        f1,
        accuracy,
        float(f1[seen].mean()) if seen.any() else np.nan,
    )


@dataclass(frozen=True)
class CompositionAgreement:
    """Agreement of two cell-type compositions over the union of their types.

    ``types`` (C,) names, ``truth`` and ``predicted`` (C,) proportions that sum to 1.
    """

    types: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    pearson: float
    spearman: float
    rmse: float


def composition_agreement(truth: Mapping[str, float], predicted: Mapping[str, float]) -> CompositionAgreement:
    """Pearson, Spearman and RMSE of proportions over the union of types.

    Parameters
    ----------
    truth, predicted
        Type to count or weight. A type that one side lacks is 0 there: dropping it would hide the
        very types a model never predicts.

    Raises
    ------
    ValueError
        A weight is negative or not finite, or one side sums to 0.

    Examples
    --------
    >>> result = composition_agreement({"T": 3, "B": 1}, {"T": 4})
    >>> result.types.tolist(), result.predicted.tolist(), round(result.rmse, 2)
    (['B', 'T'], [0.0, 1.0], 0.25)
    """
    types = sorted(set(truth) | set(predicted))
    shares = []
    for name, side in (("truth", truth), ("predicted", predicted)):
        weight = np.array([side.get(t, 0.0) for t in types], dtype=np.float64)
        if not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
            raise ValueError(f"{name}: expected finite weights >= 0 with a positive sum, got {dict(side)}")
        shares.append((weight / weight.sum())[:, None])
    values = (float(f(*shares)[0]) for f in (pearson, spearman, rmse))
    return CompositionAgreement(np.array(types), shares[0][:, 0], shares[1][:, 0], *values)
