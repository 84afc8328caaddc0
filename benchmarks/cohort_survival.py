"""Speed of the univariate Cox screening of cross-validated survival, against a loop over lifelines.

    python benchmarks/cohort_survival.py OUT [--features P] [--patients N] [--folds F] [--jobs J]

Simulated patients (a third with events, ties from follow-up in whole months), ``--folds`` training folds of
two thirds. Times the score test and the full fit (Newton to the maximum, Efron's ties, Wald) of all features
in all folds, and their CPU seconds in one process; the loop over ``lifelines.CoxPHFitter`` is measured on a
sample of fits and extrapolated, and so is statsmodels' ``PHReg``, against which coefficients and standard
errors are compared. Then ``tl.survival_cv`` as a user calls it. Prints one table and writes OUT/cohort_survival.json.
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
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
