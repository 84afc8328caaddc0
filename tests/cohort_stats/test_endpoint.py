"""Follow-up: codings that mean two things are refused, what is left out is counted."""

import numpy as np
import pandas as pd
import pytest

from ghistpy.cohort_stats.endpoint import mixed_units, read_endpoint, unit_of_name


def _frame(time, event, **other):
    return pd.DataFrame({"time": time, "event": event, **other}, index=[f"P{i}" for i in range(len(time))])


def _read(frame, **options):
    return read_endpoint(frame, time_key="time", event_key="event", **options)


@pytest.mark.parametrize("event", [[True, False, False], [1, 0, 0], [1.0, 0.0, 0.0]])
def test_plain_codings(event):
    found = _read(_frame([1, 2, 3], event))
    assert found.event.tolist() == [True, False, False]
    assert found.n_events == 1


def test_codings_that_are_refused():
    with pytest.raises(ValueError, match=r"values 1 and 2.*event_value= \(in R's coding it is 2\)"):
        _read(_frame([1, 2, 3], [1, 2, 1]))
    assert _read(_frame([1, 2, 3], [1, 2, 1]), event_value=2).event.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="'Alive', 'Dead'"):
        _read(_frame([1, 2, 3], ["Dead", "Alive", "Dead"]))
    assert _read(_frame([1, 2, 3], ["Dead", "Alive", "Dead"]), event_value="Dead").n_events == 2
    with pytest.raises(ValueError, match="event_value='dead' is not among"):
        _read(_frame([1, 2, 3], ["Dead", "Alive", "Dead"]), event_value="dead")
    censored = _frame([1, 2, 3], [0, 1, 1]).rename(columns={"event": "censorship"})
    with pytest.raises(ValueError, match="often has 1 for censored"):
        read_endpoint(censored, time_key="time", event_key="censorship")
    assert read_endpoint(censored, time_key="time", event_key="censorship", event_value=0).n_events == 1


def test_no_events_and_many_events():
    with pytest.raises(ValueError, match="none of the 3 patients with follow-up has an event"):
        _read(_frame([1, 2, 3], [0, 0, 0]))
    assert "right way round" in _read(_frame([1, 2, 3], [1, 1, 0])).notes[0]


def test_competing_codes_are_said():
    found = _read(_frame([1, 2, 3], [0, 1, 2]), event_value=1)
    assert found.n_events == 1
    assert "competing events are not modelled" in found.notes[0]


def test_times():
    with pytest.raises(ValueError, match=r"negative for 2 patients \(P0, P2\)"):
        _read(_frame([-1, 2, -3], [1, 0, 0]))
    with pytest.raises(ValueError, match="infinite for 1 patients"):
        _read(_frame([np.inf, 2, 3], [1, 0, 0]))
    with pytest.raises(ValueError, match="are no numbers, such as 'x'"):
        _read(_frame(["x", "2", "3"], [1, 0, 0]))
    found = _read(_frame([0, 2, np.nan, 4, 5], [1, 0, 0, np.nan, 1]))
    assert found.rows.tolist() == [1, 4]
    assert found.excluded == {"no time": ["P2"], "no event status": ["P3"], "time 0: never followed": ["P0"]}
    assert _read(_frame([0, 2, 5], [1, 0, 1]), keep_zero=True).rows.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="time_key='months' is not a column"):
        read_endpoint(_frame([1], [1]), time_key="months", event_key="event")


def test_mixed_units_are_refused():
    rng = np.random.default_rng(0)
    days = np.round(30 + rng.exponential(1200, 100))
    event = rng.random(100) < 0.4
    mixed = np.where(np.arange(100) < 40, np.round(days / 30.4, 1), days)
    with pytest.raises(ValueError, match="two groups a factor .* apart"):
        _read(_frame(mixed, event))
    assert len(_read(_frame(mixed, event), time_unit="days").rows) == 100  # the user knows better
    unit = np.where(np.arange(100) < 40, "months", "days")
    with pytest.raises(ValueError, match="in different units"):
        _read(_frame(mixed, event, unit=unit), time_unit="unit")
    assert _read(_frame(days, event, unit="days"), time_unit="unit").unit == "days"
    with pytest.raises(ValueError, match="time_unit='hours': expected one of"):
        _read(_frame(days, event), time_unit="hours")
    named = _frame(days, event).rename(columns={"time": "survival_months"})
    with pytest.raises(ValueError, match="reaches .* months, .* years"):
        read_endpoint(named, time_key="survival_months", event_key="event")
    whole = np.where(np.arange(100) < 50, rng.integers(300, 3000, 100), rng.integers(10, 100, 100)).astype(float)
    assert 18 < mixed_units(whole) < 50  # whole numbers in both units


def test_one_unit_is_not_called_mixed():
    rng = np.random.default_rng(1)
    refused = 0
    for scale in (300, 1000, 3000):
        for n in (50, 200, 1000):
            for _ in range(10):
                days = np.minimum(rng.exponential(scale, n), rng.uniform(10, 4000, n))
                refused += bool(mixed_units(np.round(days))) + bool(mixed_units(np.round(days / 30.4, 2)))
    assert refused <= 2  # of 180


def test_units_of_names():
    assert unit_of_name("survival_months") == "months"
    assert unit_of_name("days_to_last_follow_up") == "days"
    assert unit_of_name("OS.time") == ""
    assert unit_of_name("birthdays") == ""


def test_times_that_are_none():
    start = pd.Timestamp("2020-01-01")
    with pytest.raises(ValueError, match=r"holds timedelta64\[ns\], expected numbers"):
        _read(_frame(pd.to_timedelta([1, 2, 3], unit="D"), [1, 0, 0]))
    with pytest.raises(ValueError, match=r"holds datetime64\[ns\], expected numbers"):
        _read(_frame(start + pd.to_timedelta([1, 2, 3], unit="D"), [1, 0, 0]))
    with pytest.raises(ValueError, match="is boolean, expected times: have time and event been exchanged"):
        _read(_frame([True, False, True], [1, 0, 0]))


def test_everybody_with_an_event_is_asked_about():
    with pytest.raises(ValueError, match="all 3 patients with follow-up have an event; usually the column means"):
        _read(_frame([1, 2, 3], [1, 1, 1]))
    assert _read(_frame([1, 2, 3], [1, 1, 1]), event_value=1).n_events == 3


def test_few_patients_in_two_units_are_warned():
    """Below 50 patients two modes also come about by chance: a note instead of an error."""
    rng = np.random.default_rng(0)
    time = np.r_[rng.integers(900, 2000, 15), rng.integers(30, 65, 15)].astype(float)
    found = _read(_frame(time, np.arange(30) % 3 == 0))
    assert "make sure that days and months are not mixed" in found.notes[0]
    one = np.round(30 + rng.exponential(1200, 30))
    assert not _read(_frame(one, np.arange(30) % 3 == 0)).notes
