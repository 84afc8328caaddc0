"""A Cox model that is fitted once and then applied as it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FORMAT = 1


@dataclass(frozen=True)
class SurvivalModel:
    """A locked Cox model.

    Attributes
    ----------
    features, covariates
        Names of the features, and of the clinical columns that were encoded.
    coef, se
        (features + clinical variables,) log hazard ratio per unit and its standard error.
    centre, scale
        (same,) means and standard deviations of the training patients; missing values become ``centre``.
    levels
        Clinical column → its levels, the reference first; absent for numbers.
    baseline_time, baseline_hazard
        Breslow's cumulative baseline hazard at ``centre``.
    cutoffs
        Quartiles of the risk of the training patients.
    time_unit
        Unit of the follow-up; another unit is refused.
    patients
        Hashes of the names of the training patients and of their rows.
    summary
        What was counted at the fit: patients, events, candidates, warnings.
    """

    features: tuple[str, ...]
    covariates: tuple[str, ...]
    coef: np.ndarray
    se: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    levels: dict[str, list[str]]
    baseline_time: np.ndarray
    baseline_hazard: np.ndarray
    cutoffs: tuple[float, float, float]
    time_unit: str
    patients: frozenset[str]
    summary: dict

    def risk(self, values: np.ndarray) -> np.ndarray:
        """Linear predictor (n,) of values (n, features + clinical variables); NaN becomes the training mean."""
        return (np.where(np.isnan(values), self.centre, values) - self.centre) @ self.coef

    def survival(self, risk: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Probability (n, times) to be without event at each time."""
        at = np.searchsorted(self.baseline_time, times, side="right") - 1
        hazard = np.where(at >= 0, self.baseline_hazard[np.maximum(at, 0)], 0.0)
        return np.exp(-np.exp(risk)[:, None] * hazard)

    def group(self, risk: np.ndarray, method: str) -> np.ndarray:
        """1 high, 0 low, -1 left out, by the quartiles of the training patients."""
        q25, median, q75 = self.cutoffs
        out = np.full(len(risk), -1)
        known = np.isfinite(risk)
        low, high = (risk <= median, risk > median) if method == "median" else (risk <= q25, risk >= q75)
        out[known & low], out[known & high] = 0, 1
        return out

    def save(self, path: str | Path) -> None:
        """Write the model as one JSON file."""
        state = {"format": FORMAT, **asdict(self)}
        state["patients"] = sorted(self.patients)
        Path(path).write_text(json.dumps(state, default=_plain, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SurvivalModel:
        """Read a model that :meth:`save` wrote."""
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        if state.pop("format", None) != FORMAT:
            raise ValueError(f"{path} holds no survival model of this version")
        for name in ("coef", "se", "centre", "scale", "baseline_time", "baseline_hazard"):
            state[name] = np.asarray(state[name], dtype=np.float64)
        for name in ("features", "covariates", "cutoffs"):
            state[name] = tuple(state[name])
        state["patients"] = frozenset(state["patients"])
        return cls(**state)


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)


def hash_of(name: str) -> str:
    """What is kept of a patient's name: enough to recognise it."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def breslow(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative baseline hazard: its times and values."""
    order = np.argsort(time, kind="stable")
    t, e, weight = time[order], event[order], np.exp(risk[order])
    distinct, count = np.unique(t[e], return_counts=True)
    left = np.cumsum(weight[::-1])[::-1][np.searchsorted(t, distinct)]
    return distinct, np.cumsum(count / left)
