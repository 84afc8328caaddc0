"""Closed-form ridge against scikit-learn and against brute force."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge as SkRidge
from sklearn.model_selection import LeaveOneGroupOut

from ghistpy.stats.ridge import fit_ridge, reduced_rank


def _data(n=300, f=7, g=5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + rng.normal(size=f) * 50
    Y = X @ rng.normal(size=(f, g)) + rng.normal(size=(n, g)) * 3 + 1e4
    return X, Y, rng


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 500.0])
def test_equals_sklearn_with_weights(alpha):
    X, Y, rng = _data()
    w = rng.uniform(0.1, 3, len(X))
    ours = fit_ridge(X, Y, alphas=alpha, weights=w)
    Z = (X - ours.center) / ours.scale
    theirs = SkRidge(alpha, solver="svd").fit(Z, Y, sample_weight=w)
    np.testing.assert_allclose(ours.weight.T, theirs.coef_, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(Z), rtol=0, atol=1e-8)
    np.testing.assert_allclose(ours.center, np.average(X, axis=0, weights=w), rtol=1e-12)


def test_more_features_than_rows_and_a_constant_feature():
    X, Y, _ = _data(n=20, f=40)
    X[:, 3] = 7.1
    ours = fit_ridge(X, Y, alphas=0.5)
    Z = (X - ours.center) / ours.scale
    theirs = SkRidge(0.5, solver="svd").fit(Z, Y)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(Z), rtol=0, atol=1e-8)
    assert ours.scale[3] == 1.0
    np.testing.assert_allclose(ours.weight[3], 0, atol=1e-10)


def test_gcv_equals_the_hat_matrix_form():
    X, Y, _ = _data(n=60)
    alphas = np.geomspace(1e-3, 1e3, 9)
    ours = fit_ridge(X, Y, alphas=alphas)
    Z, n = (X - ours.center) / ours.scale, len(X)
    score = []
    for a in alphas:
        hat = np.full((n, n), 1 / n) + Z @ np.linalg.solve(Z.T @ Z + a * np.eye(Z.shape[1]), Z.T)
        residual = Y - hat @ Y
        score.append((residual**2).mean(0) / (1 - np.trace(hat) / n) ** 2)
    assert ours.alpha == alphas[np.sum(score, axis=1).argmin()]
    for k in (1, 3):  # judged by the targets that each penalty serves best
        judged = fit_ridge(X, Y, alphas=alphas, n_judged=k)
        assert judged.alpha == alphas[np.sort(score, axis=1)[:, :k].sum(axis=1).argmin()]


def test_grouped_choice_equals_leave_one_group_out():
    X, Y, rng = _data(n=90)
    groups = rng.integers(0, 4, len(X))
    X = X + groups[:, None] * 5  # groups differ, so the choice differs from GCV
    w = rng.uniform(0.5, 2, len(X))
    alphas = np.geomspace(1e-2, 1e4, 8)
    ours = fit_ridge(X, Y, alphas=alphas, groups=groups, weights=w)
    Z = (X - ours.center) / ours.scale
    error = np.zeros((len(alphas), Y.shape[1]))
    for i, a in enumerate(alphas):
        for train, test in LeaveOneGroupOut().split(Z, groups=groups):
            p = SkRidge(a, solver="svd").fit(Z[train], Y[train], sample_weight=w[train]).predict(Z[test])
            error[i] += w[test] @ (Y[test] - p) ** 2
    assert ours.alpha == alphas[error.sum(axis=1).argmin()]
    np.testing.assert_allclose(ours.score, error.sum(axis=1).min(), rtol=1e-8)


def test_correlation_on_left_out_groups_chooses_penalty_and_pattern():
    """Rows with the label -1 are never left out; an offset of a group has no say."""
    X, Y, rng = _data(n=120)
    Y = Y + rng.normal(0, 3 * Y.std(axis=0), Y.shape)
    groups = rng.integers(-1, 3, len(X))
    Y[groups == 1] += 50.0
    alphas = np.geomspace(1e-1, 1e5, 7)
    patterns = np.stack(
        [np.ones(X.shape[1]), np.r_[np.full(X.shape[1] // 2, 100.0), np.ones(X.shape[1] - X.shape[1] // 2)]]
    )
    ours = fit_ridge(X, Y, alphas=alphas, groups=groups, penalty=patterns, criterion="correlation", n_judged=2)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    cost = np.zeros((len(patterns), len(alphas), Y.shape[1]))
    for p, pattern in enumerate(patterns):
        for i, a in enumerate(alphas):
            for g in range(3):
                out = groups == g
                fit = SkRidge(a, solver="svd").fit(Z[~out] / np.sqrt(pattern), Y[~out])
                predicted = fit.predict(Z[out] / np.sqrt(pattern))
                cost[p, i] += [1 - np.corrcoef(predicted[:, k], Y[out, k])[0, 1] for k in range(Y.shape[1])]
    total = np.sort(cost, axis=2)[:, :, :2].sum(axis=2)
    p, i = np.unravel_index(total.argmin(), total.shape)
    assert (ours.pattern, ours.alpha) == (p, alphas[i])
    np.testing.assert_allclose(ours.score, total.min(), rtol=1e-8)
    np.testing.assert_allclose(ours.scale, X.std(axis=0) * np.sqrt(patterns[p]), rtol=1e-12)
    final = SkRidge(alphas[i], solver="svd").fit(Z / np.sqrt(patterns[p]), Y)
    np.testing.assert_allclose(ours.predict(X), final.predict(Z / np.sqrt(patterns[p])), rtol=0, atol=1e-7)


def test_reduced_rank_is_the_svd_of_the_fitted_values():
    X, Y, _ = _data(n=80)
    full = fit_ridge(X, Y, alphas=3.0)
    center = full.predict(X).mean(axis=0)
    _, _, leading = np.linalg.svd(full.predict(X) - center, full_matrices=False)
    for rank, fit in zip((1, 2, 99), reduced_rank(full, X, [1, 2, 99]), strict=True):
        projector = leading[:rank].T @ leading[:rank]
        expected = center + (full.predict(X) - center) @ projector
        np.testing.assert_allclose(fit.predict(X), expected, rtol=0, atol=1e-7)


def test_mask_fits_each_target_on_its_rows():
    X, Y, _rng = _data()
    mask = np.ones(Y.shape, bool)
    mask[:100, 1] = mask[:100, 4] = False
    mask[200:, 2] = False
    hidden = np.where(mask, Y, np.nan)
    ours = fit_ridge(X, hidden, alphas=2.0, mask=mask)
    for g in range(Y.shape[1]):
        rows = mask[:, g]
        Z = (X - ours.center) / ours.scale
        theirs = SkRidge(2.0, solver="svd").fit(Z[rows], Y[rows, g])
        np.testing.assert_allclose(ours.predict(X)[:, g], theirs.predict(Z), rtol=0, atol=1e-8)


def test_sparse_chunks_and_zero_weight_rows(monkeypatch):
    X, Y, _rng = _data()
    Y = np.maximum(Y - 1e4, 0)
    whole = fit_ridge(X[:250], Y[:250], alphas=[1.0, 10.0])
    monkeypatch.setattr("ghistpy.stats._moments._CHUNK", 37)
    w = np.r_[np.ones(250), np.zeros(50)]
    parts = fit_ridge(X, sparse.csr_array(Y), alphas=[1.0, 10.0], weights=w)
    np.testing.assert_allclose(parts.weight, whole.weight, rtol=1e-10, atol=1e-12)
    assert parts.alpha == whole.alpha


def test_float32_features_far_from_zero():
    rng = np.random.default_rng(1)
    X = (rng.normal(size=(500, 2)) + 1000).astype(np.float32)
    Y = X.astype(float) @ np.array([[1.0], [3.0]])
    ours = fit_ridge(X, Y, alphas=0.0)
    np.testing.assert_allclose(ours.predict(X), Y, rtol=1e-10)


def test_predict_fills_with_the_centre():
    X, Y, _ = _data()
    ours = fit_ridge(X, Y, alphas=1.0)
    np.testing.assert_allclose(ours.predict(np.full((1, X.shape[1]), np.nan)), ours.intercept[None], rtol=1e-12)
    with pytest.raises(ValueError, match=r"X: expected \(n, 7\)"):
        ours.predict(X[:, :3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": [-1.0]}, "alphas: expected finite penalties"),
        ({"alphas": []}, "alphas"),
        ({"weights": np.full(300, -1.0)}, "weights: expected"),
        ({"groups": np.zeros(300)}, "groups: cross-validation needs two groups"),
        ({"mask": np.zeros((300, 5), bool)}, "5 targets are observed in no row"),
        ({"mask": np.ones((300, 4), bool)}, "mask: expected the shape of Y"),
    ],
)
def test_bad_arguments(change, message):
    X, Y, _ = _data()
    with pytest.raises(ValueError, match=message):
        fit_ridge(X, Y, **({"alphas": [1.0, 2.0]} | change))


def test_values_that_are_not_finite():
    X, Y, _ = _data()
    bad = X.copy()
    bad[:3, 0] = np.nan
    with pytest.raises(ValueError, match="X: 3 of 300 rows"):
        fit_ridge(bad, Y, alphas=1.0)
    Y[4, 2] = np.nan
    with pytest.raises(ValueError, match="Y: 1 observed entries"):
        fit_ridge(X, Y, alphas=1.0)
