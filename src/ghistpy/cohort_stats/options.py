"""Options of procedures, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value that is not among those allowed.

    Examples
    --------
    >>> one_of("penalty", "Firth", ("none", "ridge", "firth"))
    Traceback (most recent call last):
    ValueError: penalty='Firth': expected one of 'none', 'ridge', 'firth'
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


def whole_number(value: Any, argument: str, least: int = 0) -> int:
    """A whole number of at least ``least``, or an error; 2.0 is none, as for ``range``.

    Examples
    --------
    >>> whole_number(1.5, "n_splits", 2)
    Traceback (most recent call last):
    ValueError: n_splits=1.5: expected a whole number of at least 2
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{argument}={value!r}: expected a whole number of at least {least}")
    return int(value)


def not_negative(name: str, value: Any, *, zero: bool = True) -> None:
    """Refuse what is no finite number above 0, or with ``zero`` at least 0."""
    number = isinstance(value, int | float) or hasattr(value, "__float__")
    if isinstance(value, bool) or not number or not (0 < value < float("inf") or (zero and value == 0)):
        raise ValueError(f"{name}={value!r}: expected a finite number {'of at least' if zero else 'above'} 0")


def check_resampling(
    *, n_bootstraps: int = 1, n_permutations: int = 0, permutation_repeats: int | None = None, n_jobs: int = 1
) -> None:
    """Refuse numbers of resamples and processes that mean nothing."""
    whole_number(n_bootstraps, "n_bootstraps", 1)
    whole_number(n_permutations, "n_permutations")
    if permutation_repeats is not None:
        whole_number(permutation_repeats, "permutation_repeats", 1)
    if isinstance(n_jobs, bool) or not hasattr(n_jobs, "__index__") or n_jobs == 0:
        raise ValueError(f"n_jobs={n_jobs!r}: expected a number of processes, or -1 for all cores")
