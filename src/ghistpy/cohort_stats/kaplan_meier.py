"""Kaplan-Meier curves and the log-rank test, by lifelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ghistpy.cohort_stats.cox import RiskSets
from ghistpy.cohort_stats.coxfit import fit_cox

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LogRank:
    """Log-rank test of all groups: statistic, degrees of freedom, p-value."""

    chi2: float
    df: int
    pval: float


def logrank(time: np.ndarray, event: np.ndarray, group: np.ndarray) -> LogRank:
    """Test that the hazards of all groups are equal.

    Examples
    --------
    >>> test = logrank(np.array([1.0, 2, 3, 4]), np.ones(4, bool), np.array(["a", "a", "b", "b"]))
    >>> round(test.chi2, 4), test.df
    (2.8824, 1)
    """
    from lifelines.statistics import multivariate_logrank_test

    found = multivariate_logrank_test(time, group, event)
    return LogRank(float(found.test_statistic), len(np.unique(group)) - 1, float(found.p_value))


def curve(time: np.ndarray, event: np.ndarray) -> pd.DataFrame:
    """Kaplan-Meier estimate of one group.

    Returns
    -------
    pandas.DataFrame
        time, survival, ci_low, ci_high (95 %, log-log), at_risk, events, censored; the first row is time 0.
    """
    import pandas as pd
    from lifelines import KaplanMeierFitter

    fitted = KaplanMeierFitter().fit(time, event)
    table = fitted.event_table
    interval = fitted.confidence_interval_survival_function_
    return pd.DataFrame(
        {
            "time": table.index.to_numpy(dtype=np.float64),
            "survival": fitted.survival_function_.iloc[:, 0].to_numpy(),
            # no event, no variance: the interval is that of certainty
            "ci_low": interval.iloc[:, 0].fillna(1.0).to_numpy(),
            "ci_high": interval.iloc[:, 1].fillna(1.0).to_numpy(),
            "at_risk": table["at_risk"].to_numpy(dtype=np.int64),
            "events": table["observed"].to_numpy(dtype=np.int64),
            "censored": table["censored"].to_numpy(dtype=np.int64),
        }
    )


def median_of(curve: pd.DataFrame) -> float:
    """First time at which survival is at most one half; infinite when it never is."""
    reached = curve.loc[curve["survival"] <= 0.5, "time"]
    return float(reached.iloc[0]) if len(reached) else np.inf


def followup_median(time: np.ndarray, event: np.ndarray) -> float:
    """Median follow-up by the reverse Kaplan-Meier estimate: censoring is what is waited for."""
    return median_of(curve(time, ~np.asarray(event, dtype=bool)))


def hazard_ratio(time: np.ndarray, event: np.ndarray, high: np.ndarray) -> tuple[float, float, float]:
    """Hazard ratio of ``high`` against the rest, 95 % interval; Firth's: finite also without events in a group."""
    fit = fit_cox(np.asarray(high, dtype=np.float64)[:, None], RiskSets.of(time, event), penalty="firth")
    half = 1.959964 * np.sqrt(fit.covariance[0, 0])
    return tuple(float(np.exp(fit.coef[0] + d)) for d in (0.0, -half, half))  # type: ignore[return-value]


def numbers_at_risk(time: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Patients still followed at each of the times ``at``."""
    return (np.asarray(time)[None] >= np.asarray(at)[:, None]).sum(1)


def round_times(longest: float, n: int = 6) -> np.ndarray:
    """About ``n`` round times from 0 to the longest follow-up."""
    rough = longest / n
    power = 10.0 ** np.floor(np.log10(rough))
    step = min((m * power for m in (1, 2, 2.5, 3, 5, 6, 10)), key=lambda s: abs(s - rough))
    return np.arange(0, longest + 1e-9, step)
