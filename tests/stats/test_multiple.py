"""Adjusting against statsmodels, combining against exact arithmetic."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest

from ghistpy.stats.multiple import adjust_pvalues, cauchy_combination


@pytest.mark.parametrize(("ours", "theirs"), [("bh", "fdr_bh"), ("by", "fdr_by"), ("bonferroni", "bonferroni")])
def test_adjusted_as_statsmodels_does(ours, theirs):
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(200) ** 2
    np.testing.assert_allclose(adjust_pvalues(p, ours), multipletests(p, method=theirs)[1], rtol=1e-12)
    with_nan = np.insert(p, [3, 90], np.nan)
    np.testing.assert_allclose(adjust_pvalues(with_nan, ours)[~np.isnan(with_nan)], adjust_pvalues(p, ours))
    assert np.isnan(adjust_pvalues([np.nan])).all()


def test_unknown_adjustment():
    with pytest.raises(ValueError, match="there are .'bh', 'by', 'bonferroni'."):
        adjust_pvalues([0.1], "holm")


def test_cauchy_by_its_formula():
    p = np.random.default_rng(1).random((11, 300)) * 0.9 + 0.01
    expected = 0.5 - np.arctan(np.tan((0.5 - p) * np.pi).mean(axis=0)) / np.pi
    np.testing.assert_allclose(np.exp(cauchy_combination(np.log(p))), expected, rtol=1e-12)


def test_cauchy_beyond_double_precision():
    """A p of 1e-500 among moderate ones: k p up to the terms that it dwarfs."""
    getcontext().prec = 50
    log_p = np.array([[-500 * np.log(10)], [np.log(0.4)], [np.log(0.9)]])
    expected = float((Decimal(3) * Decimal("1e-500")).ln())
    assert cauchy_combination(log_p)[0] == pytest.approx(expected, rel=1e-12)
    # continuous where the computation changes over
    around = np.array([[-30.001, -29.999], [np.log(0.5)] * 2])
    below, above = cauchy_combination(around)
    assert 0 < above - below < 0.01


def test_a_p_of_one_does_not_hide_the_others():
    log_p = np.log(np.array([[1e-8], [1.0], [1.0]]))
    assert np.exp(cauchy_combination(log_p))[0] == pytest.approx(3e-8, rel=0.01)


def test_combined_p_of_a_true_null_is_uniform():
    p = np.random.default_rng(2).random((11, 20_000))
    combined = np.exp(cauchy_combination(np.log(p)))
    for level in (0.01, 0.05, 0.1):
        assert abs((combined <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 20_000)
