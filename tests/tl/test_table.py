"""What verbs on tables share: which table, which values, which graph, and what they say when something is wrong."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from ghistpy.geometry import knn_graph
from ghistpy.tl import _design
from ghistpy.tl._table import (
    cell_types,
    coordinates,
    expression,
    gene_columns,
    neighbours,
    regions,
    require_counts,
    resolve_table,
)


def make(n=200, g=6, seed=0, side=200.0):
    rng = np.random.default_rng(seed)
    table = AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (n, g)).astype(np.float32)),
        obs=pd.DataFrame({"cell_type": rng.choice(["a", "b"], n)}, index=[f"cell{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(g)]),
    )
    table.obsm["spatial"] = rng.uniform(0, side, (n, 2))
    return table


class TestTable:
    def test_of_anndata_and_of_slide(self):
        from spatialdata import SpatialData

        adata = make()
        assert resolve_table(adata).adata is adata
        sdata = SpatialData(tables={"one": adata})
        assert resolve_table(sdata).adata is sdata["one"]
        sdata["two"] = make()
        assert resolve_table(sdata, "two").label == "table_key='two'"
        with pytest.raises(ValueError, match="available: 'one', 'two'"):
            resolve_table(sdata)
        with pytest.raises(ValueError, match="available: 'one', 'two'"):
            resolve_table(sdata, "three")

    def test_refusals(self):
        with pytest.raises(TypeError, match="AnnData or a SpatialData, got DataFrame"):
            resolve_table(pd.DataFrame())
        with pytest.raises(ValueError, match="leave table_key out"):
            resolve_table(make(), "one")
        with pytest.raises(ValueError, match="view of another table"):
            resolve_table(make()[:50])
        with pytest.raises(ValueError, match="has 3 rows; at least 4"):
            resolve_table(make(n=3))

    def test_units_and_kind_come_from_provenance(self):
        adata = make()
        assert (resolve_table(adata).units, resolve_table(adata).in_silico) == (None, False)
        adata.uns["log1p"] = {}
        assert resolve_table(adata).units == "log"
        adata.uns["ghistpy"] = {"units": "counts"}
        assert (resolve_table(adata).units, resolve_table(adata).in_silico) == ("counts", False)
        adata.uns["ghistpy"] = {"units": "log1p(expected count)"}
        assert resolve_table(adata).in_silico


class TestValues:
    def test_of_a_layer_and_of_genes(self):
        adata = make()
        adata.layers["twice"] = adata.X.toarray() * 2
        table = resolve_table(adata)
        columns = gene_columns(table, ["G4", "G1"])
        np.testing.assert_array_equal(
            expression(table, layer="twice", columns=columns), adata.X.toarray()[:, [4, 1]] * 2
        )
        adata.X = adata.X.astype(int)
        assert expression(table).dtype == np.float64
        assert gene_columns(table, "G2").tolist() == [2]

    @pytest.mark.parametrize("dense", [True, False])
    def test_nan_and_infinite_values_are_counted(self, dense):
        adata = make()
        X = adata.X.toarray()
        X[3, 2], X[3, 4], X[9, 4] = np.nan, np.inf, -np.inf
        adata.X = X if dense else sparse.csr_matrix(X)
        with pytest.raises(ValueError, match="3 values are NaN or infinite, in 2 of 200 rows and 2 of 6 genes"):
            expression(resolve_table(adata))

    def test_unknown_names(self):
        table = resolve_table(make())
        with pytest.raises(ValueError, match="layer='x' is not in adata"):
            expression(table, layer="x")
        with pytest.raises(ValueError, match="1 are not in adata: \\['TP53'\\]"):
            gene_columns(table, ["G1", "TP53"])
        with pytest.raises(ValueError, match="named more than once"):
            gene_columns(table, ["G1", "G1"])

    def test_counts_are_demanded_by_provenance_and_by_value(self):
        adata = make()
        require_counts(resolve_table(adata), adata.X, "this")
        logged = adata.X.log1p()
        with pytest.raises(ValueError, match="negative or not whole"):
            require_counts(resolve_table(adata), logged, "this")
        adata.uns["ghistpy"] = {"units": "log1p(expected count)"}
        with pytest.raises(ValueError, match="by its provenance"):
            require_counts(resolve_table(adata), adata.X, "this")
        require_counts(resolve_table(adata), adata.X, "this", layer="counts")


class TestNeighbours:
    def test_obsp_comes_first_then_the_coordinates(self):
        adata = make()
        found = neighbours(resolve_table(adata))
        assert found.source == "6 nearest neighbours"
        assert abs(found.weights - knn_graph(adata.obsm["spatial"], 6).weights).sum() == 0
        adata.obsp["spatial_connectivities"] = sparse.csr_matrix(knn_graph(adata.obsm["spatial"], 3).weights)
        found = neighbours(resolve_table(adata), distances=True)
        assert found.source == "obsp['spatial_connectivities']"
        assert found.weights.nnz == 600
        edges = found.distances.tocoo()
        xy = adata.obsm["spatial"]
        np.testing.assert_allclose(edges.data, np.hypot(*(xy[edges.row] - xy[edges.col]).T))
        assert neighbours(resolve_table(adata), n_neighbors=2).weights.nnz == 400
        assert neighbours(resolve_table(adata), radius=15).source == "radius 15 µm"

    def test_isolated_and_duplicate_cells_are_counted(self, caplog):
        adata = make()
        adata.obsm["spatial"][0] = [2000, 2000]
        adata.obsm["spatial"][1] = adata.obsm["spatial"][2]
        with caplog.at_level(logging.WARNING, "ghistpy"):
            notes = neighbours(resolve_table(adata), radius=40).notes
        assert notes["n_isolated"] == 1
        assert notes["n_duplicates"] == 2
        assert "1 of 200 rows of adata have no neighbour" in caplog.text

    def test_graph_of_another_table(self):
        adata, other = make(), make(seed=1)
        table = resolve_table(adata)
        wrong = knn_graph(other.obsm["spatial"], 6).weights
        with pytest.raises(ValueError, match="another order of the rows"):
            neighbours(table, graph=wrong)
        with pytest.raises(ValueError, match="expected \\(200, 200\\)"):
            neighbours(table, graph=wrong[:100, :100])
        other.obs_names = [f"other{i}" for i in range(200)]
        with pytest.raises(ValueError, match="its rows are not those of adata"):
            neighbours(table, graph=other)
        adata.obsp["mine"] = sparse.csr_matrix(knn_graph(adata.obsm["spatial"], 4).weights)
        assert neighbours(table, graph="mine").weights.nnz == 800
        with pytest.raises(ValueError, match="available: \\['mine'\\]"):
            neighbours(table, graph="yours")
        with pytest.raises(ValueError, match="give one of"):
            neighbours(table, graph="mine", radius=10)

    def test_wrong_units_warn(self):
        adata = make()
        with pytest.warns(UserWarning, match="is radius in µm"):
            neighbours(resolve_table(adata), radius=0.02)
        adata.obsm["spatial"] = adata.obsm["spatial"] / 1000  # mm
        with pytest.warns(UserWarning, match="are its coordinates in µm"):
            coordinates(resolve_table(adata))

    def test_coordinates_must_be_there_and_finite(self):
        adata = make()
        adata.obsm["spatial"][5] = np.nan
        with pytest.raises(ValueError, match="1 of 200 rows are NaN"):
            coordinates(resolve_table(adata))
        del adata.obsm["spatial"]
        with pytest.raises(ValueError, match="has no obsm\\['spatial'\\]"):
            coordinates(resolve_table(adata))

    def test_slides_of_one_table_share_no_neighbours(self):
        from ghistpy.io import make_table

        adata = make()
        parts = np.repeat(["left", "right"], 100)
        table = make_table(
            adata.X, adata.var_names, region="left", instance_key="cell_id", ids=np.arange(200),
            obsm={"spatial": adata.obsm["spatial"]},
        )  # fmt: skip
        assert regions(resolve_table(table)) is None
        table.obs["region"] = pd.Categorical(parts)
        table.uns["spatialdata_attrs"]["region"] = ["left", "right"]
        edges = neighbours(resolve_table(table)).weights.tocoo()
        assert (parts[edges.row] == parts[edges.col]).all()


class TestDesign:
    def test_depth(self):
        adata = make()
        table = resolve_table(adata)
        total = np.asarray(adata.X.sum(axis=1)).ravel()
        found, source = _design.log_depth(table, expression(table), layer=None, depth_key=None)
        np.testing.assert_allclose(found, np.log(np.maximum(total, 0.5)))
        assert source == "sum over all genes"
        adata.obs["total"] = 7.0
        assert _design.log_depth(table, expression(table), layer=None, depth_key=None)[1] == "obs['total']"
        with pytest.raises(ValueError, match="depth_key='x'"):
            _design.log_depth(table, expression(table), layer=None, depth_key="x")

    def test_depth_of_logarithms(self):
        adata = make()
        counts = adata.X.toarray()
        adata.X = np.log1p(counts)
        adata.uns["log1p"] = {}
        table = resolve_table(adata)
        with pytest.raises(ValueError, match="name a column with depth_key="):
            _design.log_depth(table, expression(table), layer=None, depth_key=None)
        adata.uns["ghistpy"] = {"units": "log1p(expected count)"}
        found, _ = _design.log_depth(resolve_table(adata), expression(table), layer=None, depth_key=None)
        np.testing.assert_allclose(found, np.log(np.maximum(counts.sum(axis=1), 0.5)), rtol=1e-5)

    def test_strata_are_likeliest_types_cut_by_depth(self):
        types = np.eye(3)[np.repeat([0, 1, 2], [400, 100, 10])]
        depth = np.random.default_rng(0).normal(size=510)
        design, strata = _design.within_type(types, depth)
        assert design.shape == (510, 8)
        for code, bins in ((0, 10), (1, 5), (2, 1)):
            own = strata[types[:, code] == 1]
            assert len(np.unique(own)) == bins
            assert np.bincount(own - own.min()).max() - np.bincount(own - own.min()).min() <= 1
        first = strata == 0
        assert depth[first].max() <= depth[strata == 1].min()

    def test_types_and_covariates(self):
        adata = make()
        table = resolve_table(adata)
        codes, names = cell_types(table)
        assert [names[c] for c in codes] == adata.obs["cell_type"].tolist()
        adata.obs["x"] = np.arange(200.0)
        columns = _design.covariate_columns(table, ["x", "cell_type"])
        np.testing.assert_array_equal(columns[:, 0], np.arange(200.0))
        np.testing.assert_array_equal(columns[:, 1:], np.eye(2)[codes])
        adata.obs.loc["cell3", "x"] = np.nan
        with pytest.raises(ValueError, match="'x' of adata is missing in 1 of 200 rows"):
            _design.covariate_columns(table, ["x"])
        with pytest.raises(ValueError, match="'z' is not a column"):
            _design.covariate_columns(table, "z")
        with pytest.raises(ValueError, match="cell_type_key='z'"):
            cell_types(table, "z")
