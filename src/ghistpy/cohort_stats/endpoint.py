"""Follow-up read from a clinical table: explicit coding of events, one unit of time, nothing dropped silently."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_YEARS = {"days": 1 / 365.25, "weeks": 7 / 365.25, "months": 1 / 12, "years": 1.0}
_LONGEST_YEARS = 60.0
_MANY_EVENTS = 0.6
_FEW_TIMES, _MANY_TIMES = 20, 50  # patients: fewer tell nothing about modes; fewer are warned instead of refused


@dataclass(frozen=True)
class Endpoint:
    """Follow-up of the n patients that have one.

    rows (n,) positions in the table; time (n,) in ``unit`` ("" when unknown); event (n,) bool; excluded:
    reason → names of the patients left out; notes: what a reader should know.
    """

    rows: np.ndarray
    time: np.ndarray
    event: np.ndarray
    unit: str
    excluded: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def n_events(self) -> int:
        """Number of events."""
        return int(self.event.sum())


def read_endpoint(
    frame: pd.DataFrame,
    *,
    time_key: str,
    event_key: str,
    event_value: Any = None,
    time_unit: str | None = None,
    keep_zero: bool = False,
) -> Endpoint:
    """Time and event of each patient of a clinical table.

    Parameters
    ----------
    frame
        One row per patient, names as index.
    time_key, event_key
        Columns with the time of follow-up and with the event.
    event_value
        Value or values of ``event_key`` that mean an event. None = the column is boolean or 0/1, and not all 1.
    time_unit
        ``"days"``, ``"weeks"``, ``"months"`` or ``"years"``, or a column that says it for each patient.
        None = read from the name of ``time_key``, and the times are checked for a mixture.
    keep_zero
        Keep patients without any follow-up (time 0); otherwise they are excluded and counted.

    Returns
    -------
    Endpoint

    Raises
    ------
    ValueError
        A column is missing, the coding of events is ambiguous, a time is a date, a duration, negative or
        infinite, units are mixed, there is no event, or every patient has one and ``event_value`` does not
        say that this is meant.
    """
    for argument, key in (("time_key", time_key), ("event_key", event_key)):
        if key not in frame.columns:
            raise ValueError(f"{argument}={key!r} is not a column; there are {list(frame.columns)}")
    notes: list[str] = []
    event, event_missing = _read_event(frame[event_key], event_key, event_value, notes)
    time, time_missing = _read_time(frame[time_key], time_key)
    unit = _read_unit(frame, time_key, time, time_unit, notes)
    names = frame.index.astype(str).to_numpy()
    left_out = {"no time": time_missing, "no event status": event_missing & ~time_missing}
    if not keep_zero:
        left_out["time 0: never followed"] = (time == 0) & ~event_missing
    excluded = {reason: names[mask].tolist() for reason, mask in left_out.items() if mask.any()}
    rows = np.flatnonzero(~np.logical_or.reduce(list(left_out.values())))
    found = Endpoint(rows, time[rows], event[rows], unit, excluded, notes)
    if not found.n_events:
        raise ValueError(f"event_key={event_key!r}: none of the {len(rows)} patients with follow-up has an event")
    if found.n_events == len(rows) and event_value is None:
        raise ValueError(
            f"event_key={event_key!r}: all {len(rows)} patients with follow-up have an event; usually the column "
            "means something else, such as having been followed or censored, or the censored are not in the table. "
            "If it is so, say it with event_value="
        )
    share = found.n_events / len(rows)
    if share > _MANY_EVENTS:
        notes.append(
            f"{found.n_events} of {len(rows)} patients ({share:.0%}) have an event: is event_key={event_key!r} "
            "read the right way round?"
        )
    return found


def _read_event(column: pd.Series, key: str, event_value: Any, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    missing = column.isna().to_numpy()
    values = column[~missing]
    there = sorted(pd.unique(values).tolist(), key=str)
    shown = str(there[:8])
    if not there:
        raise ValueError(f"event_key={key!r} is empty")
    if event_value is None:
        if re.search("censor", key, flags=re.IGNORECASE):
            raise ValueError(
                f"event_key={key!r}, values {shown}: a column of this name often has 1 for censored; "
                "say which value is the event with event_value="
            )
        if set(there) == {1, 2}:
            raise ValueError(
                f"event_key={key!r} has the values 1 and 2, which tools read in different ways; "
                "say which one is the event with event_value= (in R's coding it is 2)"
            )
        if not set(there) <= {0, 1}:
            raise ValueError(
                f"event_key={key!r} has the values {shown}, expected booleans or 0 and 1; "
                "say which of them mean an event with event_value="
            )
        meant: list[Any] = [1]
    else:
        meant = list(event_value) if isinstance(event_value, Collection) and not isinstance(event_value, str) else []
        meant = meant or [event_value]
        absent = [value for value in meant if value not in there]
        if absent:
            raise ValueError(f"event_value={event_value!r} is not among the values {shown} of event_key={key!r}")
        others = [value for value in there if value not in meant]
        if len(others) > 1:
            notes.append(f"{key!r}: the values {others} all count as censored; competing events are not modelled")
    event = np.zeros(len(column), dtype=bool)
    event[~missing] = values.isin(meant).to_numpy()
    return event, missing


def _read_time(column: pd.Series, key: str) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise ValueError(
            f"time_key={key!r} holds {column.dtype}, expected numbers: turn it into days from the start of "
            "follow-up, such as (last - first).dt.days"
        )
    if pd.api.types.is_bool_dtype(column):
        raise ValueError(f"time_key={key!r} is boolean, expected times: have time and event been exchanged?")
    numbers = pd.to_numeric(column, errors="coerce")
    bad = column[numbers.isna() & column.notna()]
    if len(bad):
        raise ValueError(f"time_key={key!r}: {len(bad)} values are no numbers, such as {bad.iloc[0]!r}")
    time = numbers.to_numpy(dtype=np.float64)
    for what, mask in (("negative", time < 0), ("infinite", np.isinf(time))):
        if mask.any():
            names = column.index[mask].astype(str).tolist()
            raise ValueError(
                f"time_key={key!r} is {what} for {len(names)} patients ({', '.join(names[:5])}"
                f"{', …' if len(names) > 5 else ''}): correct or remove them"
            )
    return time, np.isnan(time)


def unit_of_name(key: str) -> str:
    """Unit of time that the name of a column tells; "" when none."""
    found = {unit for unit in _YEARS if re.search(rf"(?<![a-z]){unit[:-1]}s?(?![a-z])", key.lower().replace("_", " "))}
    return found.pop() if len(found) == 1 else ""


def _read_unit(frame: pd.DataFrame, key: str, time: np.ndarray, time_unit: str | None, notes: list[str]) -> str:
    if time_unit is not None and time_unit in frame.columns:
        units = sorted(frame[time_unit].dropna().astype(str).str.lower().unique())
        if len(units) > 1:
            counts = frame[time_unit].astype(str).str.lower().value_counts().to_dict()
            raise ValueError(f"time_unit={time_unit!r}: times are in different units {counts}; convert them to one")
        return units[0] if units else ""
    if time_unit is not None:
        if time_unit not in _YEARS:
            raise ValueError(f"time_unit={time_unit!r}: expected one of {list(_YEARS)} or a column of the table")
        return time_unit
    unit = unit_of_name(key)
    known = time[np.isfinite(time) & (time > 0)]
    if unit and len(known) and known.max() * _YEARS[unit] > _LONGEST_YEARS:
        raise ValueError(
            f"time_key={key!r} reaches {known.max():g} {unit}, {known.max() * _YEARS[unit]:.0f} years: "
            "other units are mixed in; convert them to one, or state it with time_unit="
        )
    ratio = mixed_units(known)
    if ratio:
        raise ValueError(
            f"time_key={key!r}: the times fall into two groups a factor {ratio:.0f} apart, as when days and months "
            "are mixed; convert them to one unit, or state it with time_unit= when it is one"
        )
    # few patients fall into two groups by chance, too: a question, not an error
    ratio = _two_modes(known, valley=0.15, share=0.2) if _FEW_TIMES <= len(known) < _MANY_TIMES else 0.0
    if ratio:
        notes.append(
            f"the times of {key!r} fall into two groups a factor {ratio:.0f} apart: make sure that days and months "
            "are not mixed"
        )
    return unit


def mixed_units(time: np.ndarray) -> float:
    """Factor between two groups of times that look like days beside months; 0 without.

    Either whole numbers (days) beside fractions (months), medians a factor 15 to 60 apart; or two modes of
    the density of log times (Gaussian kernel) a factor 18 to 50 apart, each with a tenth of the patients,
    and a valley between them of less than a third of the lower one. Follow-up in one unit has one mode.

    Examples
    --------
    >>> days = 30 + np.random.default_rng(0).exponential(1500, 300).round()
    >>> bool(mixed_units(days)), bool(mixed_units(np.r_[days[:150], days[150:] / 30.4]))
    (False, True)
    """
    time = time[time > 0]
    whole = time == np.round(time)
    if 0.05 <= whole.mean() <= 0.95 and len(time) >= 10:
        apart = float(np.median(time[whole]) / np.median(time[~whole]))
        if 15 <= apart <= 60:
            return apart
    return _two_modes(time, valley=0.33, share=0.1) if len(time) >= _MANY_TIMES else 0.0


def _two_modes(time: np.ndarray, *, valley: float, share: float) -> float:
    """Factor between two modes that are 18 to 50 apart; 0 without.

    Between them the density of log times falls below ``valley`` of the lower mode, and on either side lies
    at least ``share`` of the patients.
    """
    from scipy.signal import argrelmax
    from scipy.stats import gaussian_kde

    log = np.log10(time)
    if log.std() == 0:
        return 0.0
    grid = np.linspace(log.min() - 0.3, log.max() + 0.3, 400)
    density = gaussian_kde(log, bw_method=0.25)(grid)
    peaks = argrelmax(density)[0]
    for i, low in enumerate(peaks):
        for high in peaks[i + 1 :]:
            apart = float(10 ** (grid[high] - grid[low]))
            bottom = low + int(np.argmin(density[low:high]))
            deep = density[bottom] < valley * min(density[low], density[high])
            if 18 <= apart <= 50 and deep and share <= (log < grid[bottom]).mean() <= 1 - share:
                return apart
    return 0.0
