"""What permuted patients give: the largest statistic, p-values of features with ties, scores of genome bins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from ghistpy.stats.adjusted import adjusted_welch, residuals
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
    tested against calls and covariates again, which is exact only for large samples.

    Cost: per permutation four products of (K, n) with (n, F) in float32, one for features with ties.

    References
    ----------
    Westfall and Young, Resampling-Based Multiple Testing (1993). Wallace, Ann Math Stat 30:1121 (1959),
    doi:10.1214/aoms/1177706101. ter Braak, Permutation versus bootstrap significance tests (1992),
    doi:10.1007/978-3-642-48850-4_10.
    """
    from concurrent.futures import ThreadPoolExecutor

    run = _Runner(design, features)
    observed = run.deviates(np.arange(len(features.z)), observed=True)
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
        z = features.z
        if design.covariates is not None:
            self.rest = residuals(features, design.covariates)
        self.z = z.astype(np.float32)
        self.present = features.present.astype(np.float32)

    def deviates(self, order: np.ndarray, *, observed: bool = False) -> np.ndarray:
        """(K, F) float32 normal deviates, >= 0; NaN where a group is too small."""
        if self.design.covariates is not None:
            return self._adjusted(order, observed=observed)
        z, present = self.z[order], self.present[order]
        squares = z**2
        out = np.empty((len(self.low), z.shape[1]), np.float32)
        for rows in row_blocks(*out.shape):
            sums = []
            for mask in (self.low[rows], self.high[rows]):
                number = (mask @ present)[:, self.features.pattern]
                sums.append((number, mask @ z, mask @ squares))
            out[rows] = self._one_block(*sums)
        return out

    def _one_block(self, low: tuple, high: tuple) -> np.ndarray:
        testable = (low[0] >= self.design.min_samples) & (high[0] >= self.design.min_samples)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = [total / n for n, total, _ in (low, high)]
            difference = mean[1] - mean[0]
            error = [np.maximum(s - n * m * m, 0) / (n - 1) / n for (n, _, s), m in zip((low, high), mean, strict=True)]
            total = error[0] + error[1]
            df = total**2 / (error[0] ** 2 / (low[0] - 1) + error[1] ** 2 / (high[0] - 1))
            t2 = difference**2 / total
            out = (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log1p(t2 / df))
            ties = self.design.ties
            if ties.any():
                # z has variance 1 over all patients
                spread = np.sqrt(1 / low[0][:, ties] + 1 / high[0][:, ties])
                out[:, ties] = np.abs(difference[:, ties]) / spread
        out[~testable] = np.nan
        return out

    def _adjusted(self, order: np.ndarray, *, observed: bool) -> np.ndarray:
        features = self.features if observed else self.rest.permuted(order)
        d = self.design
        found = adjusted_welch(d.low, d.high, features, d.covariates, min_samples=d.min_samples)
        out = np.abs(special.ndtri_exp(found.log_p - np.log(2)))
        ties = d.ties
        spread = np.sqrt(found.spread[:, features.pattern[ties]])
        out[:, ties] = np.abs(found.difference[:, ties] / features.scale[ties]) / spread
        return out.astype(np.float32)

    def bin_scores(self, deviates: np.ndarray) -> np.ndarray:
        """(n_bins,) sums of -log10 p over the tests of the genes of every bin."""
        log_p = special.log_ndtr(-np.nan_to_num(deviates, nan=0.0)) + np.float32(np.log(2))
        log_p[np.isnan(deviates)] = 0.0
        return self.design.bins @ (-log_p.sum(axis=1, dtype=np.float64) / np.log(10))
