"""Skill, within-type correlation and variance ratio against their definitions."""

import numpy as np
import pytest
from scipy import sparse

from ghistpy.stats import skill as s
from ghistpy.stats.metrics import Columns


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 300)
    codes[codes == 3] = 2
    codes[:2] = 3  # a type with two cells
    codes[5:15] = -1
    profile = rng.gamma(2, 1, size=(4, 6))
    inside = rng.normal(size=(300, 6))
    truth = profile[codes] + inside
    predicted = profile[codes] + 0.3 * inside + rng.normal(size=(300, 6)) * 0.3 + 0.5
    return truth, predicted, profile[codes], codes


def test_skill_is_one_minus_the_ratio_of_errors(cells):
    truth, predicted, baseline, _ = cells
    want = 1 - ((truth - predicted) ** 2).mean(0) / ((truth - baseline) ** 2).mean(0)
    np.testing.assert_allclose(s.skill_score(truth, predicted, baseline), want, rtol=1e-12)
    np.testing.assert_allclose(s.skill_score(sparse.csc_array(truth), predicted, baseline), want, rtol=1e-12)
    np.testing.assert_allclose(s.skill_score(truth, baseline, baseline), 0, atol=1e-12)
    assert np.isnan(s.skill_score(truth, predicted, truth)).all()


def test_offset_is_taken_from_both_sides(cells):
    truth, predicted, baseline, _ = cells
    free = s.skill_score(truth, predicted, baseline, offset=True)
    want = 1 - (truth - predicted).var(0) / (truth - baseline).var(0)
    np.testing.assert_allclose(free, want, rtol=1e-12)
    np.testing.assert_allclose(s.skill_score(truth, predicted + 7, baseline - 3, offset=True), free, rtol=1e-9)
    assert (free > s.skill_score(truth, predicted, baseline)).all()  # the fixture is 0.5 too high


def test_within_type_equals_a_loop(cells):
    truth, predicted, baseline, codes = cells
    left_t, left_p = [], []
    within = s.WithinType(codes, 4)
    pooled, by_type = within.correlate(*(within.prepare(Columns(v)) for v in (truth, predicted)))
    for c in range(3):
        rows = codes == c
        left_t.append(truth[rows] - truth[rows].mean(0))
        left_p.append(predicted[rows] - predicted[rows].mean(0))
        want = [np.corrcoef(truth[rows, g], predicted[rows, g])[0, 1] for g in range(6)]
        np.testing.assert_allclose(by_type[c], want, atol=1e-10)
    want = [np.corrcoef(np.concatenate(left_t)[:, g], np.concatenate(left_p)[:, g])[0, 1] for g in range(6)]
    np.testing.assert_allclose(pooled, want, atol=1e-10)
    np.testing.assert_allclose(s.within_type_pearson(truth, predicted, codes), want, atol=1e-10)
    assert np.isnan(by_type[3]).all()
    assert within.n_left_out == 2
    assert np.isnan(s.within_type_pearson(truth, baseline, codes)).all()  # types alone know nothing inside


def test_no_usable_cell():
    truth = np.random.default_rng(0).normal(size=(3, 2))
    assert np.isnan(s.within_type_pearson(truth, truth, [-1, -1, -1])).all()
    assert np.isnan(s.within_type_pearson(truth, truth, [0, 1, 2])).all()
    with pytest.raises(ValueError, match="codes: expected one type per observation"):
        s.within_type_pearson(truth, truth, [0, 1])


def test_variance_ratio(cells):
    truth, predicted, _, _ = cells
    truth[:, 1] = 4.0
    got = s.variance_ratio(truth, predicted)
    assert np.isnan(got[1])
    np.testing.assert_allclose(got[2], predicted[:, 2].var() / truth[:, 2].var(), rtol=1e-12)
