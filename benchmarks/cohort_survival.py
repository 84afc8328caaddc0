"""Speed of the univariate Cox screening of cross-validated survival, against a loop over lifelines.

    python benchmarks/cohort_survival.py OUT [--features P] [--patients N] [--folds F] [--jobs J]
    python benchmarks/cohort_survival.py OUT --coverage [--cohorts 200] [--repeats 5]

Simulated patients (a third with events, ties from follow-up in whole months), ``--folds`` training folds of
two thirds. Times the score test and the full fit (Newton to the maximum, Efron's ties, Wald) of all features
in all folds, and their CPU seconds in one process; the loop over ``lifelines.CoxPHFitter`` is measured on a
sample of fits and extrapolated, and so is statsmodels' ``PHReg``, against which coefficients and standard
errors are compared. Then ``tl.survival_cv`` as a user calls it. Prints one table and writes OUT/cohort_survival.json.

With ``--coverage`` instead: in how many simulated cohorts of one population the 95 % intervals of C-indices, of
their differences and of balanced accuracies contain the mean over the cohorts, beside the intervals of a
bootstrap of patients with the models as fitted. Writes OUT/cohort_survival_coverage.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ghistpy.cohort_stats.cox import RiskSets, fit_univariate, score_test
from ghistpy.cohort_stats.folds import repeated_folds
from ghistpy.cohort_stats.survival_cv import run_jobs

SAMPLE = 40  # models in the loops
CPU_FOLDS = 15


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--folds", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--cohorts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.coverage:
        coverage(args)
        return
    X, time_, event = simulate(args.patients, args.features)
    folds = repeated_folds(event, n_splits=3, n_repeats=-(-args.folds // 3), seed=0)
    trains = [fold != k for fold in folds for k in range(3)][: args.folds]
    start = fit_univariate(X, RiskSets.of(time_, event)).coef
    n_models, rows = args.features * args.folds, {}
    for name, function in (("score test", screen_score), ("full fit (Wald)", screen_wald)):
        few = trains[:CPU_FOLDS]
        cpu = cpu_seconds(lambda f=function, t=few: part(f, X, time_, event, t, start)) * args.folds / len(few)
        seconds = wall(lambda f=function: screen(f, X, time_, event, trains, start, args.jobs))
        rows[name] = {"seconds": seconds, "CPU seconds": cpu, "CPU µs per model": cpu / n_models * 1e6}
    own = rows["full fit (Wald)"]["CPU seconds"]
    for name, function in (("lifelines, loop", one_lifelines), ("statsmodels PHReg, loop", one_statsmodels)):
        per_fit = loop(function, X, time_, event, trains)
        cpu = per_fit * n_models
        rows[name] = {"CPU seconds": cpu, "CPU µs per model": per_fit * 1e6, "times the CPU": cpu / own}
    rows["tl.survival_cv, score"] = {"seconds": user_call(X, time_, event, "score", args)}
    rows["tl.survival_cv, wald"] = {"seconds": user_call(X, time_, event, "wald", args)}
    table = pd.DataFrame(rows).T
    print(table.round(2).to_string())
    parity = compare(X, time_, event, trains)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"largest difference from PHReg: {parity:.1e}; peak memory {memory:.2f} GB; {os.cpu_count()} cores")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    result = {"settings": settings, "cpu": platform.processor(), "cores": os.cpu_count(), "rows": rows}
    result |= {"parity": parity, "peak_memory_gb": memory}
    (args.out / "cohort_survival.json").write_text(json.dumps(result, indent=1))


def simulate(n: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients with 20 features that matter a little."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    months = rng.exponential(80 * np.exp(-0.2 * X[:, :20].sum(1)))
    censored = rng.uniform(1, 60, n)
    return X, np.ceil(np.minimum(months, censored)), months <= censored


def wall(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of this process: what others do on the machine hardly matters."""
    started = time.process_time()
    function()
    return time.process_time() - started


def screen_score(X: np.ndarray, risk: RiskSets, start: np.ndarray) -> np.ndarray:
    """χ² of the score tests."""
    return score_test(X, risk)[0]


def screen_wald(X: np.ndarray, risk: RiskSets, start: np.ndarray) -> np.ndarray:
    """χ² of Wald's tests at the maximum."""
    return fit_univariate(X, risk, start=start).chi2


def part(function: Callable, X: np.ndarray, time_: np.ndarray, event: np.ndarray, trains: list, start: np.ndarray):
    """Screen some of the folds."""
    return [function(X[train], RiskSets.of(time_[train], event[train]), start) for train in trains]


def screen(function: Callable, X: np.ndarray, time_: np.ndarray, event: np.ndarray, trains: list, start, n_jobs: int):
    """Screen all features in all folds."""
    parts = [trains[i::n_jobs] for i in range(n_jobs)]
    return run_jobs(part, ((function, X, time_, event, p, start) for p in parts), n_jobs=n_jobs)


def one_lifelines(x: np.ndarray, time_: np.ndarray, event: np.ndarray) -> None:
    """One model by lifelines."""
    from lifelines import CoxPHFitter

    CoxPHFitter().fit(pd.DataFrame({"t": time_, "e": event, "x": x}), "t", "e")


def one_statsmodels(x: np.ndarray, time_: np.ndarray, event: np.ndarray):
    """One model by statsmodels, to its maximum."""
    from statsmodels.duration.hazard_regression import PHReg

    return PHReg(time_, x[:, None], event.astype(int), ties="efron").fit(method="newton", tol=1e-12, maxiter=100)


def loop(function: Callable, X: np.ndarray, time_: np.ndarray, event: np.ndarray, trains: list) -> float:
    """CPU seconds per model over a sample of features and folds."""
    function(X[trains[0], 0], time_[trains[0]], event[trains[0]])
    started = time.process_time()
    for i in range(SAMPLE):
        train = trains[i % len(trains)]
        function(X[train, i % X.shape[1]], time_[train], event[train])
    return (time.process_time() - started) / SAMPLE


def compare(X: np.ndarray, time_: np.ndarray, event: np.ndarray, trains: list) -> float:
    """Largest difference of coefficients and standard errors from PHReg."""
    worst = 0.0
    for i in range(10):
        train = trains[i % len(trains)]
        own = fit_univariate(X[train, i : i + 1], RiskSets.of(time_[train], event[train]))
        other = one_statsmodels(X[train, i], time_[train], event[train])
        worst = max(worst, abs(own.coef[0] - other.params[0]), abs(own.se[0] - other.bse[0]))
    return float(worst)


def user_call(X: np.ndarray, time_: np.ndarray, event: np.ndarray, screen_by: str, args: argparse.Namespace) -> float:
    """Seconds of tl.survival_cv with its default baselines and intervals."""
    import anndata

    import ghistpy as gp

    obs = pd.DataFrame({"months": time_, "dead": event}, index=[f"P{i}" for i in range(len(X))])
    adata = anndata.AnnData(X, obs=obs)
    options = {"n_repeats": -(-args.folds // 3), "n_jobs": args.jobs, "screen": screen_by, "progress": False}
    return wall(lambda: gp.tl.survival_cv(adata, time_key="months", event_key="dead", **options))


# patients, features, log hazard ratio (shift of a class in SD) of one feature
POPULATIONS = ((150, 30, 0.0), (150, 30, 0.6), (80, 100, 0.8), (300, 100, 0.4))


def coverage(args: argparse.Namespace) -> None:
    """Share of cohorts whose intervals contain the mean over the cohorts."""
    import logging

    logging.getLogger("ghistpy").setLevel(logging.ERROR)
    rows = []
    for n, p, effect in POPULATIONS:
        found = [one_cohort(n, p, effect, args.repeats, seed) for seed in range(args.cohorts)]
        for name in found[0]:
            estimate, low, high, plain_low, plain_high = np.array([row[name] for row in found]).T
            truth = estimate.mean()
            rows.append(
                {
                    "patients": n, "features": p, "effect": effect, "quantity": name, "mean": truth,
                    "SD over cohorts": estimate.std(), "half width": (high - low).mean() / 2,
                    "covered": ((low <= truth) & (truth <= high)).mean(),
                    "covered, bootstrap of patients": ((plain_low <= truth) & (truth <= plain_high)).mean(),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    print(pd.DataFrame(rows).round(3).to_string())
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"cohorts": args.cohorts, "repeats": args.repeats, "rows": rows}
    (args.out / "cohort_survival_coverage.json").write_text(json.dumps(result, indent=1))


def one_cohort(n: int, p: int, effect: float, n_repeats: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Estimate, interval, and interval of the bootstrap alone, of every quantity."""
    from ghistpy.cohort_stats.survival_cv import Design, Procedure, bootstrap_c_index, cross_validate
    from ghistpy.tl._survival_frames import survival_frames

    rng = np.random.default_rng(seed)
    X, age = rng.normal(size=(n, p)), rng.normal(size=(n, 1))
    months = rng.exponential(np.exp(-effect * X[:, 0] - 0.5 * age[:, 0]))
    stop = rng.uniform(0.1, 2, n)
    design = Design(X, np.minimum(months, stop), months <= stop, clinical=age)
    how = Procedure(n_features=3, n_repeats=n_repeats, models=("model", "clinical", "clinical+model"))
    found = cross_validate(design, how, tau=float(np.quantile(design.time, 0.9)))
    frames = survival_frames(found, design, np.arange(p).astype(str), 200, seed)
    samples = bootstrap_c_index(found, design.time, design.event, n_bootstraps=200, seed=seed)
    out = {}
    columns = ["c_index", "ci_low", "ci_high"]
    for name, row, sample in zip(found.models, frames["summary"][columns].to_numpy(), samples, strict=True):
        out[name] = (*row, *np.quantile(sample, [0.025, 0.975]))
    at = {name: i for i, name in enumerate(found.models)}
    for row in frames["differences"].itertuples():
        sample = samples[at[row.model]] - samples[at[row.baseline]]
        plain = np.quantile(sample, [0.025, 0.975])
        out[f"{row.model} - {row.baseline}"] = (row.difference, row.ci_low, row.ci_high, *plain)
    return out | accuracy_of_classes(X, effect, n_repeats, rng, seed)


def accuracy_of_classes(
    X: np.ndarray, effect: float, n_repeats: int, rng: np.random.Generator, seed: int
) -> dict[str, tuple[float, ...]]:
    """The same of the balanced accuracy of two classes."""
    from ghistpy.cohort_stats.concordance import bootstrap_counts
    from ghistpy.cohort_stats.intervals import cross_validated_interval
    from ghistpy.cohort_stats.outcome import (
        Classifier,
        Outcomes,
        accuracy_of_folds,
        balanced_accuracy,
        cross_validate,
    )

    label = rng.integers(0, 2, len(X))
    values = X.copy()
    values[:, 0] += 2 * effect * label
    predicted, _, folds = cross_validate(Outcomes(values, label), Classifier(n_features=3, n_repeats=n_repeats))
    estimate = balanced_accuracy(predicted, label).mean(1)
    samples = balanced_accuracy(predicted, label, bootstrap_counts(len(X), 200, seed)).mean(2).T
    low, high = cross_validated_interval(estimate, accuracy_of_folds(predicted, label, folds), folds, samples)
    return {"balanced accuracy": (estimate[0], low[0], high[0], *np.quantile(samples[0], [0.025, 0.975]))}


if __name__ == "__main__":
    main()
