"""The test of a cross-validated model: the whole procedure repeated under permuted outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ghistpy.cohort_stats.folds import permute_within
from ghistpy.cohort_stats.survival_cv import (
    MODEL,
    Design,
    Procedure,
    combine_risk,
    cross_validate,
    run_jobs,
    signed_logrank,
    split_risk,
)

METHODS = ("median", "quartiles")


@dataclass(frozen=True)
class Permutations:
    """Observed statistics and their values (P,) under permuted outcomes, by name."""

    observed: dict[str, float]
    null: dict[str, np.ndarray]
    n_repeats: int

    def pvalue(self, name: str) -> float:
        """One-sided p-value, at least 1 / (P + 1); statistics that are NaN count as no smaller."""
        null, seen = self.null[name], self.observed[name]
        if not np.isfinite(seen):
            return np.nan
        return float((1 + np.sum(~(null < seen))) / (1 + len(null)))


def statistics_of(design: Design, how: Procedure, *, n_jobs: int = 1) -> dict[str, float]:
    """What is tested: the mean C-index of the model, and the signed log-rank between its risk groups."""
    found = cross_validate(design, how, tau=None, n_jobs=n_jobs)
    m = found.models.index(MODEL)
    risk = combine_risk(found.score[m], found.folds, scale=how.risk_scale)
    out = {"c_index": float(np.nanmean(found.harrell[m]))}
    for method in METHODS:
        out[f"logrank_{method}"] = signed_logrank(design.time, design.event, split_risk(risk, method))
    return out


def permute(
    design: Design, how: Procedure, *, n_permutations: int, n_jobs: int = 1, progress: bool = False
) -> Permutations:
    """Repeat the whole procedure, folds and screening included, with outcomes dealt to other patients.

    With ``design.groups`` outcomes are dealt within each group. The null hypothesis is then that features and
    outcome are independent within every group, while features, hazards and censoring may differ between
    groups; a group of one patient contributes nothing. Without groups: that patients are exchangeable.

    Returns
    -------
    Permutations
        One-sided: a procedure that ranks patients the wrong way round is not significant.
    """
    how = replace(how, models=(MODEL,))
    observed = statistics_of(design, how, n_jobs=n_jobs)
    seeds = np.random.SeedSequence([how.seed, 1]).spawn(n_permutations)
    jobs = ((design, how, seed) for seed in seeds)
    rows = run_jobs(_one_permutation, jobs, n_jobs=n_jobs, progress=progress, total=n_permutations)
    null = {name: np.array([row[name] for row in rows]) for name in observed}
    return Permutations(observed, null, how.n_repeats)


def _one_permutation(design: Design, how: Procedure, seed: np.random.SeedSequence) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    order = permute_within(design.groups, len(design.time), rng)
    shuffled = replace(design, time=design.time[order], event=design.event[order])
    try:
        return statistics_of(shuffled, replace(how, seed=int(rng.integers(2**31))))
    except ValueError:
        # groups can leave a fold without event under a permutation: counted as no smaller than observed
        return {"c_index": np.nan, **{f"logrank_{method}": np.nan for method in METHODS}}
