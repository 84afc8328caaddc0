"""What permuted patients give: the largest statistic, p-values of features with ties, scores of genome bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from ghistpy.stats.adjusted import Regression, regressions, residuals
from ghistpy.stats.association import Features, row_blocks

_TIE = 1e-5  # statistics in float32 that differ by less are equal


@dataclass(frozen=True)
class Null:
    """Results of B permutations of the patients against the calls.

    ``deviate`` (K, F): the observed statistics as normal deviates, >= 0, NaN where there is no test;
    ``largest`` (B, 2): the largest deviate of each permutation among features without and with ties, whose
    statistics are not alike; ``log_p_ties`` (K, T): natural logarithm of
    the permutation p of the features that were asked for; ``inflation`` (B,): median squared deviate over
    0.4549, features without ties; ``bin_score`` and ``bin_exceed`` (n_bins,): observed sum of -log10 p by the
    deviates, and how many permutations reached it.
    """

    deviate: np.ndarray
    largest: np.ndarray
    log_p_ties: np.ndarray
    inflation: np.ndarray
    bin_score: np.ndarray | None
    bin_exceed: np.ndarray | None


def family_wise(deviate: np.ndarray, largest: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Family-wise error rate adjusted p-values from the distribution of the largest deviate.

    Parameters
    ----------
    deviate
        Observed deviates, any shape.
    largest
        (B, 2) largest deviates by permutation, features without and with ties; NaN where there are none.
    ties
        Whether each deviate is of a feature with ties, broadcastable to ``deviate``.

    Notes
    -----
    Each family is compared with its own largest deviate; with two families p is doubled (Bonferroni).
    """
    deviate, ties = np.asarray(deviate), np.broadcast_to(ties, np.shape(deviate))
    families = [k for k in (0, 1) if np.isfinite(largest[:, k]).any()]
    out = np.full(deviate.shape, np.nan)
    for k in families:
        ordered = np.sort(largest[:, k])
        here = (ties == bool(k)) & ~np.isnan(deviate)
        reached = len(ordered) - np.searchsorted(ordered, deviate[here] - _TIE)
        out[here] = np.minimum(1.0, len(families) * (1 + reached) / (len(ordered) + 1))
    return out


@dataclass(frozen=True)
class Design:
    """What stays fixed: groups low, high (K, n), which features have ties (F,), and the bins (n_bins, K)."""

    low: np.ndarray
    high: np.ndarray
    ties: np.ndarray
    min_samples: int
    bins: sparse.csr_array | None = None
    covariates: np.ndarray | None = None


def permutation_null(
    design: Design,
    features: Features,
    *,
    n_permutations: int,
    seed: int = 0,
    n_jobs: int = 1,
    progress: Callable | None = None,
) -> Null:
    """Permute patients and collect what the family of all tests would have shown by chance.

    Parameters
    ----------
    design
        Groups, features with ties, bins, covariates.
    features
        From :func:`ghistpy.stats.association.prepare`.
    n_permutations
        B.
    seed
        One generator per permutation is spawned from it, so that ``n_jobs`` changes nothing.
    n_jobs
        Threads.
    progress
        Wraps the iterable of permutations.

    Notes
    -----
    Features without ties: Welch's t as a normal deviate (Wallace's approximation, the same for observed and
    permuted). With ties: the difference of means over the standard deviation of all patients, which is
    defined even if a group is constant. With covariates: the residuals of the features are permuted and
    tested against calls and covariates again, which is exact only for large samples; what does not change
    with the order of patients (three float32 matrices (K, n)) is computed once.

    Cost: per permutation four products of (K, n) with (n, F) in float32; with q covariates 3 (q + 2), but one
    for features with ties.

    References
    ----------
    Westfall and Young, Resampling-Based Multiple Testing (1993). Wallace, Ann Math Stat 30:1121 (1959),
    doi:10.1214/aoms/1177706101. ter Braak, Permutation versus bootstrap significance tests (1992),
    doi:10.1007/978-3-642-48850-4_10.
    """
    from concurrent.futures import ThreadPoolExecutor

    run = _Runner(design, features)
    observed = run.deviates()
    score = None if design.bins is None else run.bin_scores(observed)
    K, n_ties = len(design.low), int(design.ties.sum())
    exceed = np.zeros((K, n_ties), np.int32)
    bin_exceed = None if score is None else np.zeros(len(score), np.int32)
    largest, inflation = np.full((n_permutations, 2), np.nan), np.full(n_permutations, np.nan)
    seeds = np.random.SeedSequence(seed).spawn(n_permutations)

    def one(b: int) -> tuple:
        found = run.deviates(np.random.default_rng(seeds[b]).permutation(len(features.z)))
        parts = [found[:, ~design.ties], found[:, design.ties]]
        top = [float(np.nanmax(part, initial=0.0)) if part.size else np.nan for part in parts]
        plain = parts[0][~np.isnan(parts[0])]
        lam = float(np.median(plain) ** 2 / special.ndtri(0.25) ** 2) if len(plain) else np.nan
        reached = found[:, design.ties] >= observed[:, design.ties] - _TIE
        return b, top, lam, reached, None if score is None else run.bin_scores(found) >= score * (1 - 1e-6)

    with ThreadPoolExecutor(max(1, n_jobs)) as pool:
        done = pool.map(one, range(n_permutations)) if n_jobs > 1 else map(one, range(n_permutations))
        for b, top, lam, reached, above in done if progress is None else progress(done, total=n_permutations):
            largest[b], inflation[b] = top, lam
            exceed += reached
            if bin_exceed is not None:
                bin_exceed += above
    log_p = np.log((1 + exceed) / (n_permutations + 1))
    log_p[np.isnan(observed[:, design.ties])] = np.nan
    return Null(observed, largest, log_p, inflation, score, bin_exceed)


class _Runner:
    """Statistics for one order of the patients, in single precision."""

    def __init__(self, design: Design, features: Features) -> None:
        self.design, self.features = design, features
        self.low, self.high = design.low.astype(np.float32), design.high.astype(np.float32)
        self.present = features.present.astype(np.float32)
        if design.covariates is not None:
            features = residuals(features, design.covariates)
            self.complete = features.present.all(axis=0)
            everybody = np.ones(len(features.z), dtype=bool)
            self.fits = list(self._regressions(everybody)) if self.complete.any() else []
        self.z = features.z.astype(np.float32)
        # without missing values one product gives the difference of means in every order
        n_low, n_high = (np.maximum(mask.sum(axis=1, keepdims=True), 1) for mask in (self.low, self.high))
        self.contrast = self.high / n_high - self.low / n_low if features.present.all() else None

    def deviates(self, order: np.ndarray | None = None) -> np.ndarray:
        """(K, F) float32 normal deviates, >= 0, observed or in an order; NaN where a group is too small."""
        z, present = self.features.z.astype(np.float32), self.present
        if order is not None:
            z, present = self.z[order], self.present[order]
        if self.design.covariates is not None:
            return self._adjusted(z, present > 0)
        ties, pattern = self.design.ties, self.features.pattern
        plain, tied, squares = z[:, ~ties], z[:, ties], z[:, ~ties] ** 2
        out = np.empty((len(self.low), len(ties)), np.float32)
        for rows in row_blocks(*out.shape):
            masks = self.low[rows], self.high[rows]
            numbers = [mask @ present for mask in masks]
            with np.errstate(invalid="ignore", divide="ignore"):
                if plain.shape[1]:
                    groups = zip(masks, [n[:, pattern[~ties]] for n in numbers], strict=True)
                    out[rows, ~ties] = _welch_deviate(*((n, mask @ plain, mask @ squares) for mask, n in groups))
                if tied.shape[1]:
                    low, high = (n[:, pattern[ties]] for n in numbers)
                    if self.contrast is not None:
                        difference = self.contrast[rows] @ tied
                    else:
                        difference = masks[1] @ tied / high - masks[0] @ tied / low
                    # z has variance 1 over all patients
                    out[rows, ties] = np.abs(difference) / np.sqrt(1 / low + 1 / high)
            small = np.minimum(*numbers) < self.design.min_samples
            out[rows][small[:, pattern]] = np.nan
        return out

    def _regressions(self, here: np.ndarray) -> Iterator[tuple[np.ndarray, Regression]]:
        d = self.design
        options = {"min_samples": d.min_samples, "n_features": len(d.ties), "dtype": np.float32}
        return regressions(d.low[:, here], d.high[:, here], d.covariates[here], **options)

    def _adjusted(self, z: np.ndarray, present: np.ndarray) -> np.ndarray:
        out, ties = np.full((len(self.low), z.shape[1]), np.nan, np.float32), self.design.ties
        for p in range(present.shape[1]):
            here, of_pattern = present[:, p], self.features.pattern == p
            # who is missing moves with the features, and with it the regressions
            fits = self.fits if self.complete[p] else self._regressions(here)
            plain, tied = np.flatnonzero(of_pattern & ~ties), np.flatnonzero(of_pattern & ties)
            y, y_tied = z[np.ix_(here, plain)], z[np.ix_(here, tied)]
            for rows, fit in fits:
                if len(plain):
                    effect = fit.effect(y)
                    low, high = fit.variance(y, effect)
                    out[np.ix_(rows, plain)] = _deviate(effect, low + high, fit.df(low, high))
                if len(tied):
                    out[np.ix_(rows, tied)] = np.abs(fit.effect(y_tied)) / np.sqrt(fit.spread)[:, None]
        return out

    def bin_scores(self, deviates: np.ndarray) -> np.ndarray:
        """(n_bins,) sums of -log10 p over the tests of the genes of every bin."""
        log_p = special.log_ndtr(-np.nan_to_num(deviates, nan=0.0)) + np.float32(np.log(2))
        log_p[np.isnan(deviates)] = 0.0
        return self.design.bins @ (-log_p.sum(axis=1, dtype=np.float64) / np.log(10))


def _welch_deviate(low: tuple, high: tuple) -> np.ndarray:
    """From number, sum and sum of squares of either group."""
    mean = [total / n for n, total, _ in (low, high)]
    error = [np.maximum(s - n * m * m, 0) / (n - 1) / n for (n, _, s), m in zip((low, high), mean, strict=True)]
    total = error[0] + error[1]
    df = total**2 / (error[0] ** 2 / (low[0] - 1) + error[1] ** 2 / (high[0] - 1))
    return _deviate(mean[1] - mean[0], total, df)


def _deviate(effect: np.ndarray, variance: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Abs(t) as a normal deviate (Wallace)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log1p(effect**2 / variance / df))
