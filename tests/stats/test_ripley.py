"""Cross-type L: published values, edge correction against geometry, calibration."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from ghistpy import stats
from ghistpy.stats.ripley import inside_fraction, random_labelling, spatstat_radii


@pytest.mark.data
@pytest.mark.parametrize("sample", ["give_S1", "give_S2"])
def test_published_crops(data_dir, sample):
    folder = data_dir / "golden" / "downstream"
    cells = pd.read_csv(folder / "sc_crops.csv").query("sample == @sample")
    expected = pd.read_csv(folder / "sc_crops_scfeatures_expected.csv")
    expected = expected[(expected["sample"] == sample) & (expected["feature_type"] == "L_stats")]
    expected = expected.set_index("feature")["value"]
    types = pd.Categorical(cells["celltype_pred"])
    xy = cells[["x", "y"]].to_numpy()
    window = stats.Window.rectangle(0, 0, *xy.max(0))
    scores = stats.l_scores(xy, types.codes, 8, window, grid="spatstat")
    frame = pd.DataFrame(scores, index=types.categories, columns=types.categories)
    for a in types.categories:
        for b in types.categories:
            assert np.nan_to_num(frame.loc[a, b]) == pytest.approx(expected[f"{a}_{b}"], rel=0.02, abs=1e-5)
    rare = types.value_counts() <= 10
    assert frame.isna().all(axis=0).sum() == rare.sum()


SHAPES = {
    "square": (([[0, 0], [100, 0], [100, 100], [0, 100]],), ()),
    "clockwise L": (([[0, 0], [0, 100], [40, 100], [40, 40], [100, 40], [100, 0]],), ()),
    "hole": (([[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]],), ([[30, 30], [70, 30], [70, 70], [30, 70]],)),
    "two pieces": (([[0, 0], [45, 0], [45, 100], [0, 100]], [[55, 0], [100, 0], [100, 100], [55, 90]]), ()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_share_of_a_circle_inside_equals_sampling(name):
    import shapely

    outer, holes = (tuple(np.array(r, float) for r in rings) for rings in SHAPES[name])
    window = stats.Window.polygon(outer, holes)
    area = shapely.unary_union([shapely.Polygon(r) for r in outer]).difference(
        shapely.unary_union([shapely.Polygon(r) for r in holes])
    )
    assert window.area == pytest.approx(area.area, rel=1e-8)
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (120, 2))
    points = points[shapely.contains_xy(area, *points.T)]
    radius = rng.uniform(1, 70, len(points))
    share = inside_fraction(window, points, np.arange(len(points)), radius)
    angle = (np.arange(20_000) + 0.5) / 20_000 * 2 * np.pi
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    sampled = [shapely.contains_xy(area, *(p + r * circle).T).mean() for p, r in zip(points, radius, strict=True)]
    np.testing.assert_allclose(share, sampled, atol=5e-4)


def test_points_on_the_border_and_in_the_corner():
    window = stats.Window.rectangle(0, 0, 10, 10)
    points = np.array([[0.0, 5.0], [0.0, 0.0], [5.0, 5.0]])
    share = inside_fraction(window, points, np.array([0, 1, 2, 2]), np.array([1.0, 1.0, 1.0, 20.0]))
    np.testing.assert_allclose(share, [0.5, 0.25, 1.0, 0.0], atol=1e-6)


def test_l_against_loops():
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 100, (80, 2))
    codes = rng.integers(-1, 2, 80)
    window = stats.Window.rectangle(0, 0, 100, 100)
    radii = np.array([5.0, 20.0])
    pairs = stats.ripley_pairs(xy, window, 20)
    out = stats.cross_l(pairs, codes, 2, radii)
    angle = (np.arange(4000) + 0.5) / 4000 * 2 * np.pi
    for a in range(2):
        for b in range(2):
            for k, r in enumerate(radii):
                total = 0.0
                for i in np.flatnonzero(codes == a):
                    for j in np.flatnonzero(codes == b):
                        d = np.hypot(*(xy[i] - xy[j]))
                        if i != j and d <= r:
                            ring = xy[i] + d * np.stack([np.cos(angle), np.sin(angle)], -1)
                            total += 1 / ((ring > 0) & (ring < 100)).all(1).mean()
                n = (codes == a).sum() * ((codes == b).sum() - (a == b))
                assert out[a, b, k] == pytest.approx(np.sqrt(total * 1e4 / n / np.pi), rel=2e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_random_points_have_l_equal_r_in_any_window(name):
    """Without edge correction L would fall short of r; with it the mean over windows is r."""
    import shapely

    outer, holes = (tuple(np.array(r, float) for r in rings) for rings in SHAPES[name])
    window = stats.Window.polygon(outer, holes)
    area = shapely.unary_union([shapely.Polygon(r) for r in outer]).difference(
        shapely.unary_union([shapely.Polygon(r) for r in holes])
    )
    radii, corrected, raw = np.array([5.0, 10.0, 20.0]), [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        xy = rng.uniform(0, 100, (900, 2))
        xy = xy[shapely.contains_xy(area, *xy.T)]
        codes = rng.integers(0, 2, len(xy))
        for edge, store in ((True, corrected), (False, raw)):
            store.append(stats.cross_l(stats.ripley_pairs(xy, window, 20, edge_correction=edge), codes, 2, radii)[0, 1])
    np.testing.assert_allclose(np.mean(corrected, 0), radii, rtol=0.02)
    assert np.mean(raw, 0)[-1] < 19


def test_empty_slide_counts_as_area_only_when_asked():
    """Tissue in one corner: the window from the origin makes independent types look clustered."""
    xy = 400 + np.random.default_rng(0).uniform(0, 200, (2000, 2))
    codes = np.arange(2000) % 2
    tight = stats.l_scores(xy, codes, 2, stats.Window.rectangle(*xy.min(0), *xy.max(0)))
    empty = stats.l_scores(xy, codes, 2, stats.Window.rectangle(0, 0, *xy.max(0)))
    assert np.abs(tight).max() < 2
    assert empty.min() > 30


def test_spatstat_grid():
    window = stats.Window.rectangle(0, 0, 400, 800)
    assert spatstat_radii(window, 100)[-1] == pytest.approx(100)
    assert spatstat_radii(window, 100_000)[-1] == pytest.approx(np.sqrt(1000 / (np.pi * 100_000 / 320_000)))
    assert len(spatstat_radii(window, 100)) == 513


def test_p_values_are_calibrated_when_types_are_exchangeable():
    """Clustered positions, rare types: rejection within binomial 99.9 % at 1, 5 and 10 %; the band holds 95 %."""
    p, outside, n_tissues = [], [], 150
    radii = np.arange(5.0, 31, 5)
    for seed in range(n_tissues):
        rng = np.random.default_rng(seed)
        centres = rng.uniform(50, 250, (6, 2))
        xy = np.clip(centres[rng.integers(0, 6, 100)] + rng.normal(size=(100, 2)) * 30, 0, 300)
        codes = rng.permutation(np.repeat([0, 1, 2], [75, 20, 5]))
        pairs = stats.ripley_pairs(xy, stats.Window.rectangle(0, 0, 300, 300), 30)
        test = random_labelling(pairs, codes, 3, radii, n_perms=199, seed=seed)
        p.append(test.pval.ravel())
        L = stats.cross_l(pairs, codes, 3, radii)
        outside.append((L < test.low) | (L > test.high))
    p, outside = np.array(p), np.array(outside)
    for level in (0.01, 0.05, 0.1):
        for pair in range(p.shape[1]):
            assert (p[:, pair] <= level).sum() <= binom.ppf(0.9995, n_tissues, level)
        for pair in (0, 1, 3, 4):  # of the five cells of the rarest type L ties, and the test may be conservative
            assert (p[:, pair] <= level).sum() >= binom.ppf(0.0005, n_tissues, level) - 1
    # the band, at every radius: 5 %, and a little more for the finite number of permutations
    assert (outside.sum(axis=0) <= binom.ppf(0.9998, n_tissues, 0.05 + 1 / 200)).all()
    assert (outside[:, :2, :2, -1].sum(axis=0) >= binom.ppf(0.0005, n_tissues, 0.05)).all()


def test_niches_are_rejected_although_types_ignore_each_other():
    """What the p-value does not claim: two types that each follow a pattern of their own."""
    rejected, radii = 0, np.arange(5.0, 31, 5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        xy = rng.uniform(0, 300, (400, 2))
        chance = 0.5 + 0.5 * np.sin(xy / 40 + rng.uniform(0, 2 * np.pi, 2))
        codes = np.where(rng.random(400) < 0.5, rng.random(400) < chance[:, 0], 2 + (rng.random(400) < chance[:, 1]))
        pairs = stats.ripley_pairs(xy, stats.Window.rectangle(0, 0, 300, 300), 30)
        rejected += random_labelling(pairs, codes, 4, radii, n_perms=39, seed=seed).pval[0, 0] <= 0.05
    assert rejected > 14


def test_planted_clusters_are_found_and_the_envelope_holds_most_of_the_null():
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 300, (500, 2))
    near = np.hypot(*(xy - 150).T) < 50
    codes = np.where(near, 1, 0)
    pairs = stats.ripley_pairs(xy, stats.Window.rectangle(0, 0, 300, 300), 40)
    radii = np.arange(5.0, 41, 5)
    test = random_labelling(pairs, codes, 2, radii, n_perms=99)
    observed = stats.cross_l(pairs, codes, 2, radii)
    assert test.pval[1, 1] == pytest.approx(0.02)
    assert (observed[1, 1] > test.high[1, 1]).all()
    assert (observed[0, 1] < test.low[0, 1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.Window.rectangle(0, 0, 0, 5), "x0 < x1"),
        (lambda: stats.Window.rectangle(0, 0, np.inf, 5), "x0 < x1"),
        (lambda: stats.Window.polygon([np.array([[0.0, 0], [1, 1], [2, 2]])]), "enclose an area"),
        (lambda: stats.Window.polygon([np.array([[0.0, np.nan], [1, 1], [2, 0]])]), "finite"),
        (lambda: stats.l_scores(np.eye(2), [0, 1], 2, stats.Window.rectangle(0, 0, 1, 1), grid="r"), "grid='r'"),
        (lambda: stats.l_scores(np.eye(2), [0, 1], 2, stats.Window.rectangle(0, 0, 1, 1), step=99), "0 < step"),
        (lambda: stats.l_scores(np.eye(2), [0, 1], 2, stats.Window.rectangle(0, 0, 1, 1), step=1e-6), "5e\\+07 radii"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_cell_of_a_type_has_no_l_within_it():
    xy = np.array([[1.0, 1], [2, 2], [3, 3]])
    out = stats.cross_l(stats.ripley_pairs(xy, stats.Window.rectangle(0, 0, 4, 4), 1), [0, 1, 1], 3, np.array([1.0]))
    assert np.isnan(out[0, 0]).all()
    assert np.isnan(out[2]).all()
    assert np.isfinite(out[0, 1]).all()


def test_too_many_pairs_are_refused():
    xy = np.random.default_rng(0).uniform(0, 100, (40_000, 2))
    with pytest.raises(ValueError, match="max_radius=90 makes about 1.*e\\+09 pairs of 40000 cells"):
        stats.ripley_pairs(xy, stats.Window.rectangle(0, 0, 100, 100), 90)
