"""Numbers, p-values and legends as figures write them."""

from __future__ import annotations

import pytest

from ghistpy.pl._style import legend_inches, number, p_text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0123, "= 0.012"), (3.21e-8, "= 3.2 × 10⁻⁸"), (1e-12, "= 1.0 × 10⁻¹²"), (0.0, "< 10⁻³⁰⁰"), (1.0, "= 1")],
)
def test_p_values_are_written_with_powers_of_ten(p, text):
    assert p_text(p) == text


def test_minus_signs_are_real():
    assert number(-1.25, ".1f") == "−1.2"
    assert number(3.0) == "3"


def test_room_for_legends_grows_with_columns_and_letters():
    none, few, long, many = (legend_inches(v) for v in ([], ["a"], ["a" * 30], ["a"] * 40))
    assert none == (0.0, 0.0)
    assert few[0] < long[0]
    assert many[0] > 2.5 * few[0]
    assert many[1] == legend_inches(["a"] * 17)[1]
