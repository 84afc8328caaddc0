"""Neighbour pairs by type against an independent count, and calibration of the p-values."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import binom

from ghistpy import stats
from ghistpy.geometry import knn_graph


@pytest.mark.data
@pytest.mark.parametrize("sample", ["give_S1", "give_S2"])
def test_published_crops(data_dir, sample):
    folder = data_dir / "golden" / "downstream"
    cells = pd.read_csv(folder / "sc_crops.csv").query("sample == @sample")
    expected = pd.read_csv(folder / "sc_crops_scfeatures_expected.csv")
    expected = expected[(expected["sample"] == sample) & (expected["feature_type"] == "celltype_interaction")]
    expected = expected.set_index("feature")["value"]
    types = pd.Categorical(cells["celltype_pred"])
    out = stats.cell_type_interaction(types.codes, 8, stats.pairs_within(cells[["x", "y"]].to_numpy(), 50))
    scrambled = [
        "_".join(sorted(f"{types.categories[a]}_{types.categories[b]}".split("_")))
        for a, b in zip(out.first, out.second, strict=True)
    ]
    ours = pd.Series(out.fraction, index=scrambled)
    np.testing.assert_allclose(ours[expected.index], expected, atol=1e-6)
    assert ours.drop(expected.index).eq(0).all()


def _tissue(seed, n=120, n_types=3):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 300, (n, 2))
    return rng, xy, rng.choice(n_types, n, p=[0.6, 0.3, 0.1])


def test_counts_and_expectation_against_loops():
    rng, xy, codes = _tissue(0)
    codes[:5] = -1
    pairs = stats.pairs_within(xy, 30)
    out = stats.cell_type_interaction(codes, 3, pairs, n_perms=400, seed=1)
    count = {}
    for i in range(len(xy)):
        for j in range(i):
            if np.hypot(*(xy[i] - xy[j])) <= 30 and min(codes[i], codes[j]) >= 0:
                key = (min(codes[i], codes[j]), max(codes[i], codes[j]))
                count[key] = count.get(key, 0) + 1
    for a, b, n in zip(out.first, out.second, out.count, strict=True):
        assert count.get((a, b), 0) == n
    assert out.fraction.sum() == pytest.approx(1)
    assert out.expected.sum() == pytest.approx(1)
    known = np.flatnonzero(codes >= 0)
    inner = pairs[(codes[pairs] >= 0).all(axis=1)]
    mean = np.zeros(6)
    for _ in range(400):
        shuffled = codes.copy()
        shuffled[known] = rng.permutation(codes[known])
        mean += stats.cell_type_interaction(shuffled, 3, inner).fraction / 400
    np.testing.assert_allclose(out.expected, mean, atol=0.01)


def test_shuffling_stays_within_groups():
    """Two slides of one type each: nothing can be shuffled, so nothing is tested."""
    xy = np.random.default_rng(0).uniform(0, 100, (60, 2))
    codes = np.repeat([0, 1], 30)
    pairs = np.concatenate([stats.pairs_within(xy[:30], 30), 30 + stats.pairs_within(xy[30:], 30)])
    out = stats.cell_type_interaction(codes, 2, pairs, groups=codes, n_perms=50)
    np.testing.assert_allclose(out.expected, out.fraction)
    assert np.isnan(out.pval).all()
    pooled = stats.cell_type_interaction(codes, 2, pairs, n_perms=50)
    assert (pooled.pval < 0.05).all()


def test_permutations_do_not_depend_on_their_number():
    from ghistpy.stats.interaction import shuffled_codes

    codes, groups, known = np.arange(20) % 4, np.zeros(20, int), np.arange(20)
    few = list(shuffled_codes(codes, groups, known, 3, 7))
    many = list(shuffled_codes(codes, groups, known, 9, 7))
    np.testing.assert_array_equal(few, many[:3])


def test_planted_attraction_and_avoidance():
    rng, xy, _ = _tissue(3, n=600)
    codes = (xy[:, 0] > 150).astype(int)
    codes[rng.random(600) < 0.1] = 2
    out = stats.cell_type_interaction(codes, 3, stats.pairs_within(xy, 20), n_perms=199, seed=0)
    z = {(a, b): z for a, b, z in zip(out.first, out.second, out.zscore, strict=True)}
    p = {(a, b): q for a, b, q in zip(out.first, out.second, out.pval, strict=True)}
    assert z[0, 0] > 5
    assert z[0, 1] < -5
    assert p[0, 0] == p[0, 1] == pytest.approx(2 / 200)
    assert p[2, 2] > 0.05


@pytest.mark.parametrize("graph", ["radius", "knn"])
def test_p_values_are_calibrated_when_types_are_exchangeable(graph):
    """Clustered positions, rare and common types: no more than level · tests reject, binomial 99.9 %."""
    p, n_tissues = [], 150
    for seed in range(n_tissues):
        rng = np.random.default_rng(seed)
        centres = rng.uniform(0, 300, (6, 2))
        xy = centres[rng.integers(0, 6, 100)] + rng.normal(size=(100, 2)) * 25
        codes = rng.permutation(np.repeat([0, 1, 2, 3], [55, 30, 10, 5]))
        pairs = stats.pairs_within(xy, 15) if graph == "radius" else stats.pairs_of_graph(knn_graph(xy, 4).weights)
        p.append(stats.cell_type_interaction(codes, 4, pairs, n_perms=199, seed=seed).pval)
    p = np.array(p)
    for level in (0.01, 0.05, 0.1):
        for pair in range(p.shape[1]):
            assert (p[:, pair] <= level).sum() <= binom.ppf(0.9995, n_tissues, level)
        # counts of the common types have few ties, so there the test is not conservative either
        for pair in (0, 1, 4):
            assert (p[:, pair] <= level).sum() >= binom.ppf(0.0005, n_tissues, level)


def test_niches_are_rejected_although_types_ignore_each_other():
    """What the p-value does not claim: two independent types with patterns of their own."""
    rejected = 0
    for seed in range(30):
        rng, xy, _ = _tissue(seed, n=400)
        phase = rng.uniform(0, 2 * np.pi, 2)
        chance = 0.5 + 0.5 * np.sin(xy / 40 + phase)
        codes = np.where(rng.random(400) < 0.5, rng.random(400) < chance[:, 0], 2 + (rng.random(400) < chance[:, 1]))
        out = stats.cell_type_interaction(codes, 4, stats.pairs_within(xy, 20), n_perms=99, seed=seed)
        rejected += out.pval[(out.first == 0) & (out.second == 0)][0] <= 0.05
    assert rejected > 20


def test_pairs_of_a_directed_graph_count_once():
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]]))
    assert stats.pairs_of_graph(graph).tolist() == [[0, 1], [0, 2]]


def test_no_pair_and_no_permutation():
    out = stats.cell_type_interaction([0, 1], 2, np.zeros((0, 2), int), n_perms=9)
    assert np.isnan(out.fraction).all()
    assert np.isnan(out.pval).all()
    with pytest.raises(ValueError, match="refer to cell 5"):
        stats.cell_type_interaction([0, 1], 2, np.array([[0, 5]]))
