"""What the verbs on neighbours refuse, warn of and withhold; slides that share a table; readers of the results."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat, read_h5ad
from scipy import sparse

import ghistpy as gp
from ghistpy.geometry import knn_graph


def make(n=300, seed=0, n_genes=4, *, form=np.asarray, scale=1.0):
    rng = np.random.default_rng(seed)
    table = AnnData(form(rng.poisson(2.0, (n, n_genes)).astype(np.float32) * np.float32(scale)))
    table.var_names = [f"G{i}" for i in range(n_genes)]
    table.obs["cell_type"] = pd.Categorical(rng.choice(["A", "B", "C"], n))
    table.obsm["spatial"] = rng.uniform(0, 300, (n, 2))
    return table


def two_slides(*, shift=0.0, scale=3.0):
    """Two slides in one table, the second brighter, its coordinates over those of the first or beside them."""
    both = concat([make(seed=0), make(seed=1, scale=scale)], index_unique="-")
    both.obs["region"] = pd.Categorical(np.repeat(["one", "two"], 300))
    both.obs["cell_id"] = np.tile(np.arange(1, 301), 2)
    both.obsm["spatial"][300:] += shift
    both.uns["spatialdata_attrs"] = {"region": ["one", "two"], "region_key": "region", "instance_key": "cell_id"}
    return both


def notes(table, key):
    return json.loads(table.uns[f"{key}_notes"])


LENGTHS = {
    "nn": lambda t, r: gp.tl.neighborhood_correlation(t, radius=r),
    "min_distance": lambda t, r: gp.tl.neighborhood_correlation(t, min_distance=r),
    "interaction": lambda t, r: gp.tl.cell_type_interaction(t, radius=r),
    "ripley": lambda t, r: gp.tl.ripley_l(t, max_radius=r, step=r / 10 if isinstance(r, float) and r > 0 else 1),
    "composition": lambda t, r: gp.tl.composition(t, radius=r),
    "reference": lambda t, r: gp.tl.composition(t, radius=r, reference=make(seed=3)),
    "local": lambda t, r: gp.tl.local_moran(t, "G0", radius=r),
    "compare": lambda t, r: gp.tl.compare_tables(t, radius=r),
}


@pytest.fixture
def subject(request, slide_maker):
    return lambda verb: slide_maker().sdata if verb == "compare" else make()


@pytest.mark.parametrize("verb", LENGTHS)
class TestLengths:
    @pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "30"])
    def test_no_positive_number(self, verb, value, subject):
        with pytest.raises(ValueError, match="expected (a positive distance|0 < step)"):
            LENGTHS[verb](subject(verb), value)

    @pytest.mark.filterwarnings("ignore:no cell of adata:UserWarning")
    @pytest.mark.parametrize("value", [0.03, 50_000.0])
    def test_hardly_in_um(self, verb, value, subject, caplog):
        if verb == "min_distance" and value > 1:
            with pytest.warns(UserWarning, match="no cell of adata has such a neighbour"):
                LENGTHS[verb](subject(verb), value)
            return
        with pytest.warns(UserWarning, match="in µm\\?"):
            LENGTHS[verb](subject(verb), value)


def test_too_many_pairs_for_ripley(monkeypatch):
    from ghistpy.tl import _table

    monkeypatch.setattr(_table, "_MOST_PAIRS", 1000)
    with pytest.raises(ValueError, match="max_radius=50 µm makes about"):
        gp.tl.ripley_l(make())


class TestGraphs:
    @pytest.mark.parametrize("graph", [3, [[0]], 2.5])
    def test_what_is_no_graph(self, graph):
        with pytest.raises(TypeError, match="expected a key of obsp, an \\(n, n\\) array"):
            gp.tl.cell_type_interaction(make(), graph=graph)

    def test_distances_are_no_weights(self):
        table = make()
        made = knn_graph(table.obsm["spatial"], 6, distances=True)
        table.obsp["spatial_distances"] = sparse.csr_matrix(made.distances)
        table.obsp["spatial_connectivities"] = sparse.csr_matrix(made.weights)
        with pytest.raises(ValueError, match="such as 'spatial_connectivities'"):
            gp.tl.neighborhood_correlation(table, graph="spatial_distances")
        with pytest.raises(ValueError, match="the farthest would count most"):
            gp.tl.neighborhood_correlation(table, graph=made.distances)

    def test_a_graph_needs_no_places_in_the_plane(self):
        table = make()
        graph = knn_graph(table.obsm["spatial"], 6).weights
        gp.tl.local_moran(table, "G0", graph=graph)
        expected = table.obsm["local_moran"].copy()
        for place in (np.column_stack([table.obsm["spatial"], np.zeros(300)]), None):
            del table.obsm["spatial"]
            if place is not None:
                table.obsm["spatial"] = place
            gp.tl.local_moran(table, "G0", graph=graph)
            np.testing.assert_array_equal(table.obsm["local_moran"], expected)
        with pytest.raises(ValueError, match="has no obsm\\['spatial'\\]"):
            gp.tl.local_moran(table, "G0")

    def test_edges_between_slides(self):
        both = two_slides()
        with pytest.raises(ValueError, match="edges join cells of different slides"):
            gp.tl.cell_type_interaction(both, graph=knn_graph(both.obsm["spatial"], 6).weights)

    def test_a_graph_in_obsp_is_used_by_neighbour_correlation_when_named_only(self):
        table = make()
        gp.tl.neighborhood_correlation(table)
        nearest = table.var["nn_correlation"].copy()
        table.obsp["spatial_connectivities"] = sparse.csr_matrix(knn_graph(table.obsm["spatial"], 9).weights)
        gp.tl.neighborhood_correlation(table)
        pd.testing.assert_series_equal(table.var["nn_correlation"], nearest)
        gp.tl.neighborhood_correlation(table, graph="spatial_connectivities")
        assert notes(table, "nn_correlation")["graph"] == "obsp['spatial_connectivities']"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: gp.tl.neighborhood_correlation(t, n_neighbors=0), "n_neighbors=0: expected a whole number"),
        (lambda t: gp.tl.neighborhood_correlation(t, n_neighbors=0, min_distance=10), "n_neighbors=0"),
        (lambda t: gp.tl.neighborhood_correlation(t, n_neighbors=6, radius=30), "give one of"),
        (lambda t: gp.tl.neighborhood_correlation(t, n_neighbors=1, graph="x"), "give one of"),
        (lambda t: gp.tl.neighborhood_correlation(t, genes=[]), "the list is empty"),
        (lambda t: gp.tl.neighborhood_correlation(t, graph=np.eye(300), min_distance=9), "leave out min_distance"),
        (lambda t: gp.tl.local_moran(t, []), "the list is empty"),
        (lambda t: gp.tl.local_moran(t, ["G0", "G0"]), "\\['G0'\\] are named more than once"),
        (lambda t: gp.tl.local_moran(t, "G0", key_added="a/b"), "key_added='a/b'"),
        (lambda t: gp.tl.local_moran(t, "G0", n_perms="9"), "n_perms='9'"),
        (lambda t: gp.tl.cell_type_interaction(t, n_perms=None), "n_perms=None"),
        (lambda t: gp.tl.cell_type_interaction(t, n_perms=np.nan), "n_perms=nan"),
        (lambda t: gp.tl.ripley_l(t, n_perms=2.5), "n_perms=2.5"),
        (lambda t: gp.tl.ripley_l(t, cell_type_key="none"), "no cell of adata has a type"),
        (lambda t: gp.tl.ripley_l(t, window=5), "expected \\(x0, y0, x1, y1\\)"),
        (lambda t: gp.tl.embed(t, n_neighbors=1), "n_neighbors=1"),
    ],
)
def test_bad_input(call, message):
    table = make()
    table.obs["none"] = np.nan
    with pytest.raises(ValueError, match=message):
        call(table)


def test_cells_at_one_place_are_named():
    table = make()
    table.obsm["spatial"][:200] = table.obsm["spatial"][0]
    with pytest.warns(UserWarning, match="200 of 300 rows lie exactly where another one does"):
        gp.tl.composition(table, radius=40)


def test_a_region_named_all():
    table = make()
    table.obs["niche"] = np.where(np.arange(300) < 100, "all", "core")
    with pytest.raises(ValueError, match="a region of adata is named 'all'.*rename it"):
        gp.tl.composition(table, groupby="niche")


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_a_table_on_disk(form, tmp_path):
    table = make(form=form)
    table.write_h5ad(tmp_path / "table.h5ad")
    backed = read_h5ad(tmp_path / "table.h5ad", backed="r")
    for t in (table, backed):
        gp.tl.neighborhood_correlation(t)
        gp.tl.local_moran(t, ["G2", "G0"])
    np.testing.assert_array_equal(backed.var["nn_correlation"], table.var["nn_correlation"])
    np.testing.assert_array_equal(backed.obsm["local_moran"], table.obsm["local_moran"])


class TestSeveralSlides:
    def test_a_difference_between_slides_is_no_resemblance_of_neighbours(self):
        for options in ({}, {"n_neighbors": 6, "within_type": True}, {"adjust_density": True}, {"min_distance": 15}):
            values = []
            for shift in (0.0, 5000.0):
                both = two_slides(shift=shift)
                gp.tl.neighborhood_correlation(both, **options)
                values.append(both.var["nn_correlation"])
            assert values[0].abs().max() < 0.2  # 0.7 about a common mean
            np.testing.assert_allclose(*values, atol=1e-9)

    def test_local_moran_is_that_of_each_slide(self):
        both = two_slides()
        gp.tl.local_moran(both, ["G1", "G3"], n_neighbors=5, n_perms=19, progress=False)
        for name, rows in (("one", slice(0, 300)), ("two", slice(300, 600))):
            alone = both[both.obs["region"] == name].copy()
            gp.tl.local_moran(alone, ["G1", "G3"], n_neighbors=5, n_perms=19, progress=False)
            np.testing.assert_allclose(both.obsm["local_moran"][rows], alone.obsm["local_moran"])
            np.testing.assert_array_equal(both.obsm["local_moran_pval"][rows], alone.obsm["local_moran_pval"])

    def test_composition_meets_the_same_slide_of_the_reference(self):
        frames = []
        for shift in (0.0, 5000.0):
            both, other = two_slides(shift=shift), two_slides(shift=shift)
            gp.tl.composition(both, radius=40, reference=other)
            frames.append(both.uns["composition_agreement"])
        pd.testing.assert_frame_equal(*frames)
        np.testing.assert_allclose(frames[0]["pearson"], 1)
        with pytest.raises(ValueError, match="none is common"):
            gp.tl.composition(two_slides(), radius=40, reference=make())

    def test_compare_keeps_slides_apart(self):
        from spatialdata import SpatialData

        summaries = []
        for shift in (0.0, 5000.0):
            measured = two_slides(shift=shift)
            measured.uns["ghistpy"] = {"units": "counts"}
            predicted = measured.copy()
            predicted.X = np.log1p(predicted.X)
            predicted.uns["ghistpy"] = {"units": "log1p(expected count)"}
            with pytest.warns(UserWarning, match="not present|does not exist|annotat"):
                slide = SpatialData(tables={"measured": measured, "insilico": predicted})
            gp.tl.compare_tables(slide, radius=30)
            summaries.append(gp.get.comparison(slide))
        np.testing.assert_allclose(*(s.iloc[:, 1:].to_numpy(dtype=float) for s in summaries), atol=1e-9)
        first = summaries[0].set_index("statistic")
        assert first.loc[["morans_i", "nn_correlation"], "median_measured"].abs().max() < 0.1
        assert first.loc["interaction_log2_ratio", "median_measured"] == pytest.approx(0, abs=0.2)
        assert gp.get.comparison(slide).attrs["notes"]["n_slides"] == 2
        with pytest.raises(ValueError, match="several slides or regions"):
            gp.tl.compare_tables(slide, moran="all_pairs")


def test_claims_on_in_silico_tables_are_withheld_and_the_rest_is_drawn(slide_maker, caplog):
    import matplotlib.pyplot as plt

    slide = slide_maker().sdata
    table = slide["insilico"]
    gp.tl.cell_type_interaction(slide, table_key="insilico", radius=20, n_perms=9)
    gp.tl.ripley_l(slide, table_key="insilico", max_radius=20, step=4, n_perms=9, min_cells=5)
    gp.tl.local_moran(slide, table.var_names[0], table_key="insilico", n_perms=9)
    assert table.uns["interaction"][["zscore", "pval", "pval_adj"]].isna().all(axis=None)
    assert table.uns["interaction"]["log2_ratio"].notna().any()
    assert table.uns["ripley_l"][["low", "high"]].isna().all(axis=None)
    assert table.uns["ripley_l"]["l"].notna().all()
    assert np.isnan(table.obsm["local_moran_pval"]).all()
    assert caplog.text.count("withheld") == 3
    assert "withheld" in notes(table, "ripley_l")["pval"]
    gp.pl.interaction(slide, table_key="insilico")
    ax = gp.pl.ripley(slide, table.uns["ripley_l"]["cell_type"].iloc[0], table_key="insilico")
    assert not ax.collections  # no band
    plt.close("all")
    with pytest.raises(ValueError, match="no 'zscore'"):
        gp.pl.interaction(slide, table_key="insilico", value="zscore")


def test_progress_is_shown_when_it_is_asked_for(monkeypatch):
    shown = []
    monkeypatch.setattr("tqdm.auto.tqdm", lambda items, desc, leave: shown.append(desc) or items)
    for show in (False, True):
        gp.tl.cell_type_interaction(make(), n_perms=9, progress=show)
        gp.tl.ripley_l(make(), n_perms=9, progress=show)
        gp.tl.local_moran(make(), "G0", n_perms=9, progress=show)
        assert shown == (["interaction", "ripley_l", "local_moran"] if show else [])


class TestReaders:
    def test_neighbour_correlation(self):
        table = make()
        table.X[:, 1] = 1
        with pytest.raises(ValueError, match="run tl.neighborhood_correlation first"):
            gp.get.nn_correlation(table)
        gp.tl.neighborhood_correlation(table, n_neighbors=6, within_type=True)
        frame = gp.get.nn_correlation(table)
        assert frame["value"].iloc[:3].is_monotonic_decreasing
        assert frame["gene"].iloc[-1] == "G1"  # constant
        assert frame.set_index("gene")["value"]["G2"] == table.var["nn_correlation"]["G2"]
        assert frame.attrs["notes"]["within_type"]
        by_type = gp.get.nn_correlation(table, part="by_type")
        assert list(by_type) == ["gene", "cell_type", "value", "n_cells"]
        gp.tl.neighborhood_correlation(table, key_added="plain")
        with pytest.raises(ValueError, match="within_type=True"):
            gp.get.nn_correlation(table, key="plain", part="by_type")

    def test_local_moran(self):
        table = make()
        with pytest.raises(ValueError, match="run tl.local_moran first"):
            gp.get.local_moran(table)
        gp.tl.local_moran(table, ["G3", "G0"], n_perms=9, progress=False)
        frame = gp.get.local_moran(table)
        assert frame["gene"].unique().tolist() == ["G3", "G0"]
        part = frame[frame["gene"] == "G0"].set_index("cell").loc[table.obs_names]
        np.testing.assert_array_equal(part["score"], table.obsm["local_moran"][:, 1])
        np.testing.assert_array_equal(part["pval"], table.obsm["local_moran_pval"][:, 1])
        np.testing.assert_array_equal(part["quadrant"].cat.codes, table.obsm["local_moran_quadrant"][:, 1])
        assert frame.attrs["notes"]["n_perms"] == 9

    def test_markers(self):
        table = make()
        with pytest.raises(ValueError, match="run tl.embed"):
            gp.get.markers(table)
        table.uns["mine_markers"] = pd.DataFrame({"cell_type": ["A"], "rank": [1], "gene": ["G0"]})
        frame = gp.get.markers(table, key="mine_markers")
        frame["rank"] = 2
        assert table.uns["mine_markers"]["rank"].tolist() == [1]
