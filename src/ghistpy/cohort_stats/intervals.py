"""Intervals of cross-validated accuracy that cover what they are said to."""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95


def cross_validated_interval(
    estimate: np.ndarray, per_fold: np.ndarray, folds: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the accuracy that a procedure has on average in cohorts like this one.

    Parameters
    ----------
    estimate
        (M,) mean accuracy of each model, or difference of two.
    per_fold
        (M, R, K) accuracy in each test fold of each repeat; NaN where there is none.
    folds
        (R, n) fold of each patient.
    samples
        (M, B) the same mean on bootstrap samples of patients, with the models as they were fitted.

    Returns
    -------
    low, high : (M,)

    Notes
    -----
    Accuracies of folds are correlated, as they share training patients, so that neither their spread divided by
    their number nor that over repeats is a variance of their mean. Nadeau and Bengio's is (1/J + ρ) s², with s²
    the variance over the J folds and ρ the ratio of test to training patients; repeats that divide the
    patients in the same way count once. A bootstrap with the models as fitted leaves out that another cohort
    trains other models; it is taken where it is wider. The interval is symmetric, with Student's t on J - 1
    degrees of freedom. Its coverage is measured by ``benchmarks/cohort_survival.py --coverage``.

    References
    ----------
    Nadeau & Bengio, Mach Learn 52:239 (2003), doi 10.1023/A:1024068626366.

    Examples
    --------
    >>> folds = np.array([[0, 0, 1, 1, 2, 2]])
    >>> low, high = cross_validated_interval(
    ...     np.array([0.6]), np.array([[[0.5, 0.6, 0.7]]]), folds, np.full((1, 9), 0.6)
    ... )
    >>> (high - low).round(3)  # 2 · 4.303 · (0.01 (1/3 + 1/2))½
    array([0.786])
    """
    from scipy import stats

    from ghistpy.cohort_stats.folds import distinct_partitions

    size = np.stack([(folds == k).sum(1) for k in range(per_fold.shape[2])])
    ratio = float((size / (folds.shape[1] - size)).mean())
    n_values = distinct_partitions(folds) * per_fold.shape[2]
    with np.errstate(invalid="ignore"):
        corrected = (1 / n_values + ratio) * np.nanvar(per_fold.reshape(len(per_fold), -1), axis=1, ddof=1)
    error = np.sqrt(np.fmax(corrected, samples.var(axis=1)))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n_values - 1) * error
    return estimate - half, estimate + half
