"""Batched Cox regression against statsmodels, lifelines and brute force."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ghistpy.cohort_stats.cox import RiskSets, fit_univariate, score_test
from ghistpy.cohort_stats.coxfit import fit_cox, proportional_hazards


def _phreg(time, X, event):
    from statsmodels.duration.hazard_regression import PHReg

    return PHReg(time, X, event.astype(int), ties="efron")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("censored", [0.2, 0.85])
def test_univariate_equals_phreg(cohort, ties, censored):
    X, time, event = cohort(ties=ties, censored=censored, p=200)
    risk = RiskSets.of(time, event)
    assert risk.has_ties == ties
    own = fit_univariate(X, risk)
    warm = fit_univariate(X, risk, start=own.coef + 0.3)
    chi2, sign = score_test(X, risk)
    for j in [0, 1, 2, 130, 199]:  # of three chunks
        model = _phreg(time, X[:, [j]], event)
        other = model.fit(method="newton", tol=1e-14, maxiter=100)
        assert own.coef[j] == pytest.approx(other.params[0], abs=1e-8)
        assert own.se[j] == pytest.approx(other.bse[0], abs=1e-8)
        assert own.loglik[j] == pytest.approx(other.llf, abs=1e-8)
        assert warm.coef[j] == pytest.approx(other.params[0], abs=1e-8)
        score = model.score(np.zeros(1))[0]
        assert chi2[j] == pytest.approx(-(score**2) / model.hessian(np.zeros(1))[0, 0], abs=1e-8)
        assert sign[j] == np.sign(score)
    assert own.converged.all()
    np.testing.assert_allclose(own.chi2, (own.coef / own.se) ** 2)


@pytest.mark.parametrize("ties", [False, True])
def test_multivariate_equals_phreg(cohort, ties):
    X, time, event = cohort(ties=ties)
    own = fit_cox(X, RiskSets.of(time, event))
    other = _phreg(time, X, event).fit(method="newton", tol=1e-14, maxiter=100)
    np.testing.assert_allclose(own.coef, other.params, atol=1e-8)
    np.testing.assert_allclose(own.covariance, other.cov_params(), atol=1e-8)
    assert own.loglik == pytest.approx(other.llf, abs=1e-8)
    assert own.converged
    assert not own.separated.any()


def _efron_loglik(beta, X, time, event):
    """Efron's likelihood and information by loops over deaths: nothing shared with the module."""
    w, total, info = np.exp(X @ beta), 0.0, np.zeros((X.shape[1],) * 2)
    for t in np.unique(time[event]):
        at_risk, dead = time >= t, (time == t) & event
        d = dead.sum()
        total += (X[dead] @ beta).sum()
        for k in range(d):
            weight = w * at_risk - k / d * w * dead
            total -= np.log(weight.sum())
            mean = weight @ X / weight.sum()
            info += (X * weight[:, None]).T @ X / weight.sum() - np.outer(mean, mean)
    return total, info


@pytest.mark.parametrize("penalty", ["ridge", "firth"])
def test_penalties_against_brute_force(cohort, penalty):
    X, time, event = cohort(n=60, p=3, ties=True)
    X = (X - X.mean(0)) / X.std(0)

    def objective(beta):
        loglik, info = _efron_loglik(beta, X, time, event)
        return -loglik - (0.5 * np.linalg.slogdet(info)[1] if penalty == "firth" else -1.5 * (beta**2).sum())

    want = minimize(objective, np.zeros(3), tol=1e-14, options={"gtol": 1e-9}).x
    rows = time >= time[event].min()  # standard deviations are of patients at risk
    scale = X[rows].std(0)
    got = fit_cox(X, RiskSets.of(time, event), penalty=penalty, ridge=3.0 * scale**-2.0)
    np.testing.assert_allclose(got.coef, want, atol=1e-5)


def test_firth_is_finite_where_a_variable_separates(cohort):
    _, time, event = cohort(n=40)
    x = event.astype(float)[:, None]  # nobody with 0 has an event
    risk = RiskSets.of(time, event)
    plain, firth = fit_cox(x, risk), fit_cox(x, risk, penalty="firth")
    assert plain.separated[0]
    assert firth.converged
    assert 0 < firth.coef[0] < 10


def test_constant_and_duplicated_features(cohort):
    X, time, event = cohort()
    X[:, 2] = 3.0
    X[:, 3] = X[:, 0]
    risk = RiskSets.of(time, event)
    chi2, _ = score_test(X, risk)
    own = fit_univariate(X, risk)
    assert np.isnan(chi2[2])
    assert np.isnan(own.coef[2])
    assert not own.converged[2]
    both = fit_cox(X, risk)
    assert both.coef[2] == 0
    assert both.coef[0] == pytest.approx(both.coef[3])  # the effect is shared
    alone = fit_cox(X[:, [0, 1, 4, 5]], risk)
    np.testing.assert_allclose(X @ both.coef, X[:, [0, 1, 4, 5]] @ alone.coef, atol=1e-6)


def test_perfect_separation_is_flagged_not_fatal():
    time = np.arange(1.0, 31.0)
    event = np.ones(30, dtype=bool)
    x = -time[:, None]
    own = fit_univariate(x, RiskSets.of(time, event))
    assert not own.converged[0] or own.coef[0] * x.std() > 5
    assert fit_cox(x, RiskSets.of(time, event)).separated[0]


def test_score_test_is_the_log_rank_test(cohort):
    """Of two groups and without ties: lifelines' statistic."""
    from lifelines.statistics import logrank_test

    X, time, event = cohort()
    group = X[:, 1] == 1
    want = logrank_test(time[group], time[~group], event[group], event[~group]).test_statistic
    assert score_test(X[:, [1]], RiskSets.of(time, event))[0][0] == pytest.approx(want, rel=1e-9)


def test_no_event():
    with pytest.raises(ValueError, match="event: there is none"):
        RiskSets.of(np.arange(3.0), np.zeros(3, dtype=bool))


def test_proportional_hazards_equal_lifelines_and_are_calibrated(cohort):
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.statistics import proportional_hazard_test

    X, time, event = cohort(p=3)
    frame = pd.DataFrame(X, columns=list("abc")).assign(time=time, event=event)
    fitted = CoxPHFitter().fit(frame, "time", "event", fit_options={"precision": 1e-10})
    want = proportional_hazard_test(fitted, frame, time_transform="rank").p_value
    got = proportional_hazards(X, time, event, fit_cox(X, RiskSets.of(time, event)))
    np.testing.assert_allclose(got, want, atol=1e-3)
    p = []
    for seed in range(150):
        X, time, event = cohort(p=2, effect=0.5, seed=seed)
        p.append(proportional_hazards(X, time, event, fit_cox(X, RiskSets.of(time, event))))
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)


def test_changing_effects_are_seen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    early = rng.exponential(np.exp(-1.5 * x))
    time = np.where(early < 0.5, early, 0.5 + rng.exponential(np.exp(1.5 * x)))  # the sign turns
    event = np.ones(400, dtype=bool)
    assert proportional_hazards(x[:, None], time, event, fit_cox(x[:, None], RiskSets.of(time, event)))[0] < 1e-6
