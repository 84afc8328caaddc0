"""Correlation of neighbours, local composition, Moran's I over all pairs."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import cKDTree

from ghistpy import stats
from ghistpy.geometry import knn_graph, radius_graph


def _points(n=300, seed=0, side=400.0):
    rng = np.random.default_rng(seed)
    return rng, rng.uniform(0, side, (n, 2))


@pytest.fixture(scope="module")
def crops(request):
    request.getfixturevalue("data_dir")
    folder = request.getfixturevalue("data_dir") / "golden" / "downstream"
    return pd.read_csv(folder / "sc_crops.csv"), pd.read_csv(folder / "sc_crops_scfeatures_expected.csv")


def expected_of(crops, sample, kind):
    frame = crops[1]
    rows = frame[(frame["sample"] == sample) & (frame["feature_type"] == kind)]
    return rows.set_index("feature")["value"]


@pytest.mark.data
@pytest.mark.parametrize("sample", ["give_S1", "give_S2"])
@pytest.mark.parametrize("dense", [True, False])
def test_published_crops(crops, sample, dense):
    cells = crops[0].query("sample == @sample")
    expected = expected_of(crops, sample, "nn_correlation")
    X = cells[[f"{g}_pred" for g in expected.index]].to_numpy()
    X = X if dense else sparse.csr_array(X)
    xy = cells[["x", "y"]].to_numpy()
    np.testing.assert_allclose(stats.nn_correlation(X, xy), expected, atol=1e-6)
    moran = expected_of(crops, sample, "morans_I")
    assert (moran.index == expected.index).all()
    np.testing.assert_allclose(stats.morans_i_all_pairs(X, xy), moran, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("sample", ["give_S1", "give_S2"])
def test_published_proportions(crops, sample):
    cells = crops[0].query("sample == @sample")
    types = pd.Categorical(cells["celltype_pred"])
    counts = stats.type_counts(types.codes, len(types.categories))[0]
    expected = expected_of(crops, sample, "proportion_raw")
    np.testing.assert_allclose(counts / counts.sum(), expected[types.categories], atol=1e-6)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_radius_graph_equals_weighted_correlation_over_pairs(form):
    rng, xy = _points()
    X = rng.poisson(1.0, (300, 6)).astype(float)
    X[:, 3] = 2.0  # constant
    graph = radius_graph(xy, 40).weights
    out = stats.neighbor_correlation(form(X), graph)
    edges = graph.tocoo()
    w = 1 / np.diff(graph.indptr)[edges.row]
    for g in range(6):
        if g == 3:
            assert np.isnan(out.value[g])
            continue
        cov = np.cov(X[edges.row, g], X[edges.col, g], aweights=w)
        assert out.value[g] == pytest.approx(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]), abs=1e-12)
    assert out.n_cells.tolist() == [(np.diff(graph.indptr) > 0).sum()]


def test_within_types_equals_the_same_cells_alone():
    rng, xy = _points()
    codes = rng.integers(0, 3, 300)
    X = rng.normal(size=(300, 4)) + 5 * codes[:, None]  # types differ, nothing else does
    graph = radius_graph(xy, 60).weights
    within = stats.edges_of_types(graph, codes)
    out = stats.neighbor_correlation(X, within, strata=codes)
    for t in range(3):
        rows = np.flatnonzero(codes == t)
        alone = stats.neighbor_correlation(X[rows], graph[rows][:, rows])
        np.testing.assert_allclose(out.by_stratum[:, t], alone.value, atol=1e-12)
        assert out.n_cells[t] == alone.n_cells[0]
    assert (np.abs(out.value) < 0.15).all()
    assert (stats.neighbor_correlation(X, within).value > 0.8).all()  # types alone make neighbours alike
    np.testing.assert_allclose(
        stats.neighbor_correlation(sparse.csr_array(X), within, strata=codes).value, out.value, atol=1e-10
    )


def test_between_types_follows_the_direction():
    rng, xy = _points()
    codes = rng.integers(0, 2, 300)
    graph = knn_graph(xy, 5).weights
    X = rng.normal(size=(300, 3))
    edges = stats.edges_of_types(graph, codes, between=(1, 0)).tocoo()
    assert (codes[edges.row] == 1).all()
    assert (codes[edges.col] == 0).all()
    kept = graph.tocoo()
    assert edges.nnz == ((codes[kept.row] == 1) & (codes[kept.col] == 0)).sum()
    planted = X.copy()
    planted[codes == 1] = graph[codes == 1] @ (X * (codes == 0)[:, None])
    assert (stats.neighbor_correlation(planted, edges).value > 0.2).all()


def test_covariates_are_regressed_out_before():
    rng, xy = _points(500)
    xy[:250] = xy[:250] * 0.25  # a dense corner
    basis = stats.density_basis(xy)
    X = np.column_stack([basis[:, 0] + 0.5 * rng.normal(size=500), rng.normal(size=500), basis @ [1.0, 2.0, 3.0]])
    graph = knn_graph(xy, 1).weights
    raw = stats.neighbor_correlation(X, graph).value
    out = stats.neighbor_correlation(X, graph, covariates=basis).value
    design = np.column_stack([np.ones(500), basis])
    residual = X - design @ np.linalg.lstsq(design, X, rcond=None)[0]
    neighbour = graph.indices
    for g in range(2):
        assert out[g] == pytest.approx(np.corrcoef(residual[:, g], residual[neighbour, g])[0, 1], abs=1e-10)
    assert raw[0] > 0.5
    assert abs(out[0]) < 0.15
    assert np.isnan(out[2])  # density explains it wholly
    np.testing.assert_allclose(
        stats.neighbor_correlation(sparse.csr_array(X), graph, covariates=basis).value, out, atol=1e-10
    )


def test_border_rule():
    _, xy = _points(50)
    distance = cKDTree(xy).query(xy, 2)[0][:, 1]
    low, high = xy.min(0), xy.max(0)
    inner = [min(x - low[0], high[0] - x, y - low[1], high[1] - y) for x, y in xy]
    assert (stats.away_from_border(xy, distance) == (distance <= np.array(inner))).all()


def test_cells_at_one_place_are_each_other_s_neighbours():
    xy = np.array([[0, 0], [0, 0], [0, 0], [50, 0], [50, 0], [99, 99]], float)
    X = np.array([1.0, 1.0, 1.0, 5.0, 5.0, 5.0])[:, None]
    out = stats.nn_correlation(X, xy, border_rule=False)
    assert out[0] == pytest.approx(1.0)


def test_order_of_cells_does_not_matter():
    rng, xy = _points()
    X = rng.normal(size=(300, 3))
    order = rng.permutation(300)
    np.testing.assert_allclose(stats.nn_correlation(X, xy), stats.nn_correlation(X[order], xy[order]), atol=1e-12)
    np.testing.assert_allclose(
        stats.morans_i_all_pairs(X, xy), stats.morans_i_all_pairs(X[order], xy[order]), atol=1e-12
    )


def test_local_composition_counts_the_cell_itself():
    rng, xy = _points(200)
    codes = rng.integers(-1, 3, 200)
    graph = radius_graph(xy, 50).weights
    out = stats.local_composition(codes, 3, graph)
    for i in range(0, 200, 7):
        reach = np.hypot(*(xy - xy[i]).T) <= 50
        n = np.array([(reach & (codes == t)).sum() for t in range(3)])
        np.testing.assert_allclose(out[i], n / n.sum(), atol=1e-6)


def test_local_composition_without_typed_cells_is_nan():
    out = stats.local_composition([-1, 0], 2, sparse.csr_array((2, 2)))
    assert np.isnan(out[0]).all()
    assert out[1].tolist() == [1.0, 0.0]


def test_counts_by_region_leave_out_cells_without_type():
    counts = stats.type_counts([0, 1, 1, -1, 2], 3, groups=[0, 0, 1, 1, -1], n_groups=3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.neighbor_correlation(np.ones((3, 1)), sparse.csr_array((2, 2))), r"expected \(3, 3\)"),
        (lambda: stats.morans_i_all_pairs(np.ones((3, 1)), [[0, 0], [0, 0], [1, 1]]), "1 cells lie exactly"),
        (lambda: stats.morans_i_all_pairs(np.ones((5001, 1)), np.ones((5001, 2))), "2 to 5000 cells, got 5001"),
        (lambda: stats.type_counts([0, 5], 3), "codes below 3"),
        (lambda: stats.type_counts([0, 1], 3, groups=[0]), "one code per cell"),
        (lambda: stats.local_composition([0, 1], 2, sparse.csr_array((3, 3))), r"expected \(2, 2\)"),
        (lambda: stats.edges_of_types(sparse.csr_array((3, 3)), [0, 1]), "one code per cell"),
        (
            lambda: stats.neighbor_correlation(
                np.ones((2, 1)), sparse.csr_array(np.eye(2)[::-1]), strata=np.array([-1, 0])
            ),
            "negative code have edges",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_constant_genes_and_single_cells_are_nan():
    assert np.isnan(stats.nn_correlation(np.ones((1, 2)), np.zeros((1, 2)))).all()
    _, xy = _points(30)
    for X in (np.full((30, 2), 3.7), sparse.csr_array(np.full((30, 2), 3.7)), sparse.csr_array((30, 2))):
        assert np.isnan(stats.nn_correlation(X, xy)).all()
        assert np.isnan(stats.morans_i_all_pairs(X, xy)).all()


@pytest.mark.data
def test_published_summary_of_genes_that_do_not_vary_in_space(data_dir):
    import json

    folder = data_dir / "golden" / "downstream"
    genes = pd.read_csv(folder / "supp9_top20_nonSVG.csv")
    expected = json.loads((folder / "supp9_expected.json").read_text())
    for method, part in genes.groupby("method"):
        summary = stats.summarise(part["per_gene_cor"].to_numpy())
        assert summary.median == pytest.approx(expected[method]["median"], abs=1e-9)
        assert summary.mean == pytest.approx(expected[method]["mean"], abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("k", [1, 5])
def test_one_pass_is_numpys_correlation(dtype, k):
    """Wide and narrow, rows and columns in memory, sparse or not, against numpy.corrcoef over the edges."""
    rng, xy = _points(200)
    X = rng.poisson(0.7, (200, 700)).astype(dtype)
    X[:, 5] = 4
    X[:, 6] += 1000  # a variance far below the square of the mean
    graph = knn_graph(xy, k).weights
    edges = graph.tocoo()
    with np.errstate(invalid="ignore"):
        expected = np.array([np.corrcoef(X[edges.row, g], X[edges.col, g])[0, 1] for g in range(0, 700, 7)])
    unsorted = sparse.csr_array(X)
    order = np.concatenate([r[::-1] for r in np.split(np.arange(unsorted.nnz), unsorted.indptr[1:-1])])
    unsorted = sparse.csr_array((unsorted.data[order], unsorted.indices[order], unsorted.indptr), shape=X.shape)
    for given in (X, np.asfortranarray(X), sparse.csr_array(X), sparse.csc_array(X), unsorted):
        value = stats.neighbor_correlation(given, graph).value
        np.testing.assert_allclose(value[::7], expected, atol=1e-6 if k > 1 else 1e-9)
        assert np.isnan(value[5])
        assert np.isfinite(value[6])


def test_values_that_hardly_vary_about_a_large_mean():
    rng, xy = _points(400)
    noise = rng.normal(size=(400, 3))
    graph = knn_graph(xy, 3).weights
    expected = stats.neighbor_correlation(noise, graph).value
    shifted = 1e5 + noise * np.array([1.0, 1e-2, 1e-3])
    np.testing.assert_allclose(stats.neighbor_correlation(shifted, graph).value, expected, atol=1e-5)
    np.testing.assert_allclose(
        stats.neighbor_correlation(sparse.csr_array(shifted), graph).value[:2], expected[:2], atol=1e-5
    )
    constant = np.full((400, 1), 0.1) + rng.normal(size=(400, 1)) * 1e-17
    assert np.isnan(stats.neighbor_correlation(constant, graph).value).all()


def test_density_of_a_slide_is_its_own():
    _, xy = _points(400)
    groups = np.repeat([0, 1], 200)
    own = stats.density_basis(xy[:200])[:, 0]
    both = stats.density_basis(xy, groups=groups)[:200, 0]
    assert np.corrcoef(own, both)[0, 1] == pytest.approx(1)
    assert np.corrcoef(own, stats.density_basis(xy)[:200, 0])[0, 1] < 0.95
