"""Moran's I and Geary's C: parity, published values, and p-values that hold under the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from ghistpy.geometry import knn_graph, radius_graph
from ghistpy.stats import autocorrelation_test, morans_i, row_standardised
from ghistpy.stats.permutation_moments import form_moments, graph_sums
from ghistpy.stats.quadratic_form import Graph
from ghistpy.stats.tails import pearson3_p

LEVELS = (0.01, 0.05, 0.1)


def inside_bounds(pval, level, sd=4.0):
    """Rejections within ``sd`` binomial standard deviations of the level."""
    p = pval[~np.isnan(pval)]
    return abs((p <= level).mean() - level) <= sd * np.sqrt(level * (1 - level) / len(p))


def central_powers(values):
    z = values.toarray() - values.toarray().mean(axis=0)
    return np.stack([(z**k).sum(axis=0) for k in range(2, 7)])


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 600, (1500, 2))
    return xy, row_standardised(knn_graph(xy, 6).weights)


def naive(values, w, method):
    """The definitions, pair by pair."""
    z = values - values.mean(axis=0)
    n, total = len(z), w.sum()
    if method == "moran":
        return n / total * np.array([c @ w @ c for c in z.T]) / (z**2).sum(axis=0)
    pairs = np.array([(w * (c[:, None] - c[None]) ** 2).sum() for c in z.T])
    return (n - 1) / (2 * total) * pairs / (z**2).sum(axis=0)


@pytest.mark.parametrize("method", ["moran", "geary"])
@pytest.mark.parametrize("graph", ["knn", "radius"])
def test_equals_the_definition_dense_and_sparse(method, graph):
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 100, (120, 2))
    w = knn_graph(xy, 5).weights if graph == "knn" else radius_graph(xy, 8).weights
    values = rng.poisson(0.3 + rng.gamma(0.5, 2, 70), (120, 70)).astype(np.float32)
    expected = naive(values.astype(float), w.toarray().astype(float), method)
    for given in (values, sparse.csr_matrix(values), values.astype(np.float64), sparse.csc_array(values.astype(float))):
        found = autocorrelation_test(given, w, method=method, min_positive=0)
        tolerance = {"rtol": 1e-9} if given.dtype == np.float64 else {"atol": 1e-6}  # in the precision of the values
        np.testing.assert_allclose(found.score, expected, **tolerance)
        assert (found.n_positive == (values > 0).sum(axis=0)).all()
    if method == "moran":
        np.testing.assert_allclose(found.score, morans_i(values, w), rtol=1e-9)


def test_dense_sparse_and_thread_counts_give_one_result(cells):
    _, w = cells
    values = np.random.default_rng(2).poisson(0.7, (1500, 130)).astype(np.float32)
    reference = autocorrelation_test(values, w, n_perms=19, n_jobs=1)
    for given, jobs in ((values, 3), (sparse.csc_array(values), 2)):
        found = autocorrelation_test(given, w, n_perms=19, n_jobs=jobs)
        np.testing.assert_allclose(found.score, reference.score, atol=1e-7)
        assert (found.pval == reference.pval).all()
    dense, thin = (autocorrelation_test(v, w, min_positive=0).pval for v in (values, sparse.csc_array(values)))
    np.testing.assert_allclose(dense, thin, rtol=1e-4)


def test_a_diagonal_changes_nothing(cells):
    _, w = cells
    values = np.random.default_rng(2).poisson(0.7, (1500, 5)).astype(float)
    loops = sparse.csr_array(w + sparse.eye_array(1500))
    for method in ("moran", "geary"):
        expected, found = (autocorrelation_test(values, g, method=method) for g in (w, loops))
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-12)
        np.testing.assert_allclose(found.pval, expected.pval, rtol=1e-9)


def test_levels_far_from_zero_cost_no_precision(cells):
    """Sparse float32 with a mean of 1,000 and 10,000 standard deviations: sums of raw products cancel."""
    _, w = cells
    noise = np.random.default_rng(2).poisson(4.0, (1500, 5)).astype(np.float32)
    expected = autocorrelation_test(noise.astype(float), w).score
    for level in (2_000, 20_000):
        shifted = noise + np.float32(level)
        for given in (shifted, sparse.csc_array(shifted)):
            np.testing.assert_allclose(autocorrelation_test(given, w).score, expected, atol=1e-6)


def test_entries_that_repeat_are_added_up(cells):
    """A CSC matrix and a graph may hold one place twice."""
    _, w = cells
    values = sparse.csc_array(np.random.default_rng(2).poisson(0.7, (1500, 5)).astype(float))
    twice = sparse.csc_array(
        (np.repeat(values.data / 2, 2), np.repeat(values.indices, 2), values.indptr * 2), shape=values.shape
    )
    graph = sparse.csr_array((np.repeat(w.data / 2, 2), np.repeat(w.indices, 2), w.indptr * 2), shape=w.shape)
    expected, found = autocorrelation_test(values, w), autocorrelation_test(twice, graph)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-12)
    np.testing.assert_allclose(found.pval, expected.pval, rtol=1e-9)


def test_order_of_the_cells_does_not_matter(cells):
    _, w = cells
    values = np.random.default_rng(3).poisson(0.7, (1500, 30)).astype(float)
    order = np.random.default_rng(4).permutation(1500)
    first, second = autocorrelation_test(values, w), autocorrelation_test(values[order], w[order][:, order])
    np.testing.assert_allclose(first.score, second.score, rtol=1e-10)
    np.testing.assert_allclose(first.pval, second.pval, rtol=1e-8)


def test_permutations_and_exact_moments_agree(cells):
    _, w = cells
    values = np.random.default_rng(5).negative_binomial(0.4, 0.1, (1500, 60)).astype(float)
    for method in ("moran", "geary"):
        exact = autocorrelation_test(values, w, method=method)
        drawn = autocorrelation_test(values, w, method=method, n_perms=999)
        np.testing.assert_allclose(drawn.expected, exact.expected, atol=0.2 * exact.sd.max())
        np.testing.assert_allclose(drawn.sd, exact.sd, rtol=0.15)
        given = ~np.isnan(exact.pval)
        assert given.sum() >= 50  # some are withheld for their outliers
        np.testing.assert_allclose(drawn.pval[given], exact.pval[given], atol=0.08)


@pytest.mark.parametrize("n_positive", [5, 20, 80, 400, 1500])
def test_permutation_p_holds_its_level(cells, n_positive):
    _, w = cells
    rng = np.random.default_rng(n_positive)
    n_genes = 1200
    rows = np.argsort(rng.random((n_genes, 1500)), axis=1)[:, :n_positive]
    values = sparse.csc_array(
        (1.0 + rng.poisson(0.5, rows.size), (rows.ravel(), np.repeat(np.arange(n_genes), n_positive))), (1500, n_genes)
    )
    for method in ("moran", "geary"):
        found = autocorrelation_test(values, w, method=method, n_perms=99, seed=n_positive)
        for level in LEVELS:
            # few positive cells make few different scores, and ties count against the gene
            if n_positive >= 20:
                assert inside_bounds(found.pval, level), (method, level, (found.pval <= level).mean())
            else:
                assert (found.pval <= level).mean() <= level + 4 * np.sqrt(level / n_genes)


@pytest.mark.parametrize(("n_positive", "heavy"), [(400, False), (400, True), (1500, False), (1500, True)])
def test_analytic_p_holds_its_level_and_is_withheld_below_400(cells, n_positive, heavy):
    _, w = cells
    rng = np.random.default_rng(n_positive + heavy)
    n_genes = 3000
    rows = np.argsort(rng.random((n_genes, 1500)), axis=1)[:, :n_positive]
    count = 1.0 + (rng.negative_binomial(0.3, 0.05, rows.size) if heavy else rng.poisson(0.5, rows.size))
    values = sparse.csc_array((count, (rows.ravel(), np.repeat(np.arange(n_genes), n_positive))), (1500, n_genes))
    for method in ("moran", "geary"):
        for alternative in ("greater", "two-sided"):
            found = autocorrelation_test(values, w, method=method, alternative=alternative)
            for level in LEVELS:
                assert inside_bounds(found.pval, level), (method, alternative, level, (found.pval <= level).mean())
    assert np.isnan(autocorrelation_test(values, w, min_positive=n_positive + 1).pval).all()


def with_outliers(n_outliers, n_genes, seed=0):
    """Positive in every cell; ``n_outliers`` cells carry all of the variance."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(2.0, (1500, n_genes)).astype(np.float32) + 1
    values[np.argsort(rng.random((1500, n_genes)), axis=0)[:n_outliers], np.arange(n_genes)] += 500
    return values


def test_a_few_outliers_withhold_the_analytic_p(cells):
    """With two outliers among 1,500 cells the null is two spikes: the curve rejected 64 % at 10 %."""
    _, w = cells
    values = np.column_stack([with_outliers(2, 20), with_outliers(30, 20)])
    found = autocorrelation_test(values, w)
    assert np.isnan(found.pval).all()
    assert np.isfinite(found.score).all()
    np.testing.assert_allclose(found.n_effective[:20], 2, rtol=0.02)
    z = values.astype(float) - values.mean(axis=0, dtype=float)
    np.testing.assert_allclose(found.n_effective, (z**2).sum(axis=0) ** 2 / (z**4).sum(axis=0), rtol=1e-5)
    drawn = autocorrelation_test(values, w, n_perms=99)
    assert (drawn.pval <= 0.1).mean() < 0.1 + 4 * np.sqrt(0.09 / 40)


def test_scaling_does_not_make_a_rare_gene_testable(cells):
    """Scaled to mean 0, every cell of a gene of 5 positive cells is not 0."""
    _, w = cells
    rare = np.zeros((1500, 1))
    rare[:5] = 1
    scaled = (rare - rare.mean()) / rare.std()
    found = autocorrelation_test(scaled, w)
    assert (found.n_positive[0], round(found.n_effective[0], 1)) == (1500, 5.0)
    assert np.isnan(found.pval[0])


def test_analytic_p_holds_its_level_with_as_many_outliers_as_it_needs(cells):
    _, w = cells
    found = autocorrelation_test(with_outliers(60, 3000), w)
    assert np.isfinite(found.pval).all()
    for level in LEVELS:
        assert inside_bounds(found.pval, level), (level, (found.pval <= level).mean())


def test_a_normal_curve_would_not_hold_for_sparse_genes(cells):
    """Why there is a Pearson III curve and a threshold: few positive cells, far tail."""
    from scipy.stats import norm

    _, w = cells
    rng = np.random.default_rng(7)
    rows = np.argsort(rng.random((4000, 1500)), axis=1)[:, :20]
    values = sparse.csc_array((np.ones(rows.size), (rows.ravel(), np.repeat(np.arange(4000), 20))), (1500, 4000))
    found = autocorrelation_test(values, w, min_positive=0)
    z = (found.score - found.expected) / found.sd
    skewness = form_moments(graph_sums(Graph.of(w, "moran").upper), central_powers(values))[2]
    assert (norm.sf(z) <= 0.01).mean() > 0.018
    assert (pearson3_p(z, np.zeros(4000), np.ones(4000), skewness) <= 0.01).mean() < 0.016
    assert np.isnan(found.pval).all()  # even so: 20 equal cells make few different scores


def test_alternatives_and_direction(cells):
    xy, w = cells
    rng = np.random.default_rng(8)
    alike = (xy[:, 0] > 300) * 2.0 + rng.normal(size=1500)
    # opposite to the mean of the neighbours
    noise = rng.normal(size=1500)
    unlike = noise - 1.5 * (w @ noise)
    values = np.stack([alike, unlike], axis=1)
    for n_perms in (0, 199):
        for method in ("moran", "geary"):
            options = {"method": method, "n_perms": n_perms, "min_positive": 0}
            greater, less, both = (
                autocorrelation_test(values, w, alternative=a, **options).pval for a in ("greater", "less", "two-sided")
            )
            assert greater[0] < 0.01 < 0.9 < less[0]
            assert less[1] < 0.01 < 0.9 < greater[1]
            np.testing.assert_allclose(both, np.minimum(1, 2 * np.minimum(greater, less)))


def test_constant_genes_are_nan_and_flagged(cells):
    _, w = cells
    values = np.random.default_rng(9).poisson(2.0, (1500, 4)).astype(float)
    values[:, 1], values[:, 3] = 0.1, 0.0
    for given in (values, sparse.csc_array(values)):
        for n_perms in (0, 9):
            found = autocorrelation_test(given, w, n_perms=n_perms)
            assert found.constant.tolist() == [False, True, False, True]
            assert (np.isnan(found.score) == found.constant).all()
            assert (np.isnan(found.pval) == found.constant).all()


def test_isolated_points_change_nothing_but_the_graph(cells):
    _, w = cells
    cut = w.toarray()
    cut[:5], cut[:, :5] = 0, 0
    values = np.random.default_rng(10).poisson(2.0, (1500, 3)).astype(float)
    found = autocorrelation_test(values, sparse.csr_array(cut))
    np.testing.assert_allclose(found.score, naive(values, cut, "moran"), rtol=1e-9)


@pytest.fixture(scope="module")
def slide():
    rng = np.random.default_rng(11)
    n, n_genes = 1500, 400
    xy = rng.uniform(0, 600, (n, 2))
    near = np.exp(-(cdist(xy, xy) ** 2) / (2 * 50**2))
    field = near @ rng.normal(size=(n, 5))
    field = (field - field.mean(axis=0)) / field.std(axis=0)
    types = (field[:, :4] + 0.3 * rng.normal(size=(n, 4))).argmax(axis=1)
    depth = np.exp(0.5 * field[:, 4])
    rate = 0.5 * rng.gamma(1, 1, (4, n_genes))[types] * depth[:, None]
    counts = rng.poisson(rate).astype(float)
    total = rng.poisson(300 * depth)
    return xy, row_standardised(knn_graph(xy, 6).weights), types, np.log(total), counts, near


class TestStrata:
    """Permutation within types and depth."""

    def rejected(self, slide, types, counts, **options):
        from ghistpy.tl._design import indicators, within_type

        _, w, _, depth, _, _ = slide
        design, strata = within_type(indicators(types, 4), depth)
        return autocorrelation_test(counts, w, n_perms=99, strata=strata, design=design, **options).pval

    @pytest.mark.parametrize("method", ["moran", "geary"])
    def test_holds_its_level_with_types_and_smooth_depth(self, slide, method):
        _, w, types, _, counts, _ = slide
        pval = self.rejected(slide, types, counts, method=method)
        assert (autocorrelation_test(counts, w, n_perms=99).pval <= 0.05).mean() > 0.9  # what it has to withstand
        for level in LEVELS:
            assert inside_bounds(pval, level), (pval <= level).mean()

    def test_finds_a_pattern_within_a_type(self, slide):
        xy, _, types, _, counts, _ = slide
        planted = np.random.default_rng(12).poisson(counts * (1 + 2 * (xy[:, :1] > 300)))
        assert (self.rejected(slide, types, planted) <= 0.05).mean() > 0.6

    def test_must_fail_with_wrong_types(self, slide):
        """Documented: it claims non-exchangeability given the labels, and labels that are wrong explain little."""
        _, _, types, _, counts, _ = slide
        rng = np.random.default_rng(13)
        wrong = np.where(rng.random(len(types)) < 0.2, rng.integers(0, 4, len(types)), types)
        assert (self.rejected(slide, wrong, counts) <= 0.05).mean() > 0.3

    def test_must_fail_through_a_blur(self, slide):
        """Documented: a blur, as of a prediction or of spill-over, makes neighbours alike without any biology."""
        xy, _, types, _, _, _ = slide
        blur = np.exp(-(cdist(xy, xy) ** 2) / (2 * 15**2))
        noise = np.random.default_rng(14).poisson(2.0, (len(xy), 50))
        assert (self.rejected(slide, types, blur @ noise / blur.sum(axis=1)[:, None]) <= 0.05).mean() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "getis"}, "there are \\['moran', 'geary'\\]"),
        ({"alternative": "more"}, "alternative='more'"),
        ({"n_perms": -1}, "at least 0"),
        ({"strata": np.zeros(20)}, "need permutations"),
        ({"strata": np.zeros(3), "n_perms": 9}, "one label per point"),
        ({"design": np.zeros((3, 1)), "n_perms": 9}, "design"),
        ({"n_jobs": 0}, "number of threads"),
    ],
)
def test_errors(change, message):
    w = knn_graph(np.random.default_rng(0).uniform(size=(20, 2)), 3).weights
    with pytest.raises(ValueError, match=message):
        autocorrelation_test(np.random.default_rng(0).random((20, 2)), w, **change)


def test_values_that_are_not_finite_are_refused():
    w = knn_graph(np.random.default_rng(0).uniform(size=(20, 2)), 3).weights
    with pytest.raises(ValueError, match="2 are NaN or infinite"):
        autocorrelation_test(np.where(np.arange(20) < 2, np.nan, 1.0)[:, None], w)


@pytest.mark.data
def test_published_values_of_two_breast_crops(data_dir):
    """Weights 1 / distance over all pairs, rows scaled to 1 (ape): the golden table, to 1e-6."""
    crops = pd.read_csv(data_dir / "golden/downstream/sc_crops.csv")
    expected = pd.read_csv(data_dir / "golden/downstream/sc_crops_scfeatures_expected.csv")
    expected = expected[expected["feature_type"] == "morans_I"]
    assert len(expected) == 14
    for sample, cells in crops.groupby("sample"):
        wanted = expected[expected["sample"] == sample].set_index("feature")["value"]
        apart = cdist(cells[["x", "y"]], cells[["x", "y"]])
        with np.errstate(divide="ignore"):
            w = sparse.csr_array(np.where(apart > 0, 1 / apart, 0))
        values = cells[[f"{gene}_pred" for gene in wanted.index]].to_numpy()
        found = autocorrelation_test(values, row_standardised(w), min_positive=0)
        np.testing.assert_allclose(found.score, wanted.to_numpy(), atol=1e-6)
        np.testing.assert_allclose(morans_i(values, row_standardised(w)), wanted.to_numpy(), atol=1e-6)


def test_scores_are_those_of_squidpy():
    import squidpy as sq
    from anndata import AnnData

    rng = np.random.default_rng(15)
    xy = rng.uniform(0, 200, (300, 2))
    table = AnnData(rng.poisson(1.0, (300, 20)).astype(np.float32))
    w = knn_graph(xy, 6).weights
    table.obsp["spatial_connectivities"] = sparse.csr_matrix(w)
    for method, key, column in (("moran", "moranI", "I"), ("geary", "gearyC", "C")):
        sq.gr.spatial_autocorr(table, mode=method, n_perms=None, show_progress_bar=False)
        theirs = table.uns[key].loc[table.var_names, column]
        ours = autocorrelation_test(table.X, row_standardised(w), method=method).score
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
