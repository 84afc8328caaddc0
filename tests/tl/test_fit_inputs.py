"""Fitting names what is wrong with slides, tables, genes, types, folds and options."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ghistpy as gp
from ghistpy.tl.split import Fold, Region


@pytest.fixture(scope="module")
def slide():
    return gp.datasets.simulate_slide(n_cells=350, n_genes=10, seed=1)


def test_no_microns_per_pixel(slide, quick_fit, slide_copy, slide_pixels):
    from spatialdata.transformations import Identity, set_transformation

    other = slide_copy(slide, image=slide_pixels(slide))
    set_transformation(other["he"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match=r"mpp="):
        quick_fit(other)


def test_labels_and_image_of_different_shape(slide, quick_fit, slide_copy, slide_pixels):
    other = slide_copy(slide, image=slide_pixels(slide)[:, :-3])
    with pytest.raises(ValueError, match=r"labels_key='nuclei' has shape .* but image_key='he' has"):
        quick_fit(other)


def test_no_nucleus(slide, quick_fit, slide_copy):
    empty = np.zeros(slide["nuclei"].shape, np.int32)
    with pytest.raises(ValueError, match="labels_key='nuclei' of sample 'simulated_1' holds no nucleus"):
        quick_fit(slide_copy(slide, labels=empty))


def with_counts(slide_copy, slide, change, units="counts"):
    table = slide["measured"].copy()
    X = table.X.toarray().astype(np.float64)
    table.X = change(X)
    table.uns["ghistpy"]["units"] = units
    return slide_copy(slide, table=table)


def put(value):
    def change(X):
        X[3, 4] = value
        return X

    return change


@pytest.mark.parametrize(
    ("change", "units", "message"),
    [
        (put(np.nan), "counts", r"'measured' of sample 'simulated_1': X holds 1 NaN or infinite values"),
        (put(np.inf), "counts", "X holds 1 NaN or infinite values"),
        (put(-2.0), "counts", "X holds 1 negative values; training needs raw counts"),
        (np.log1p, "counts", r"X holds fractions \(e.g. .*\), so it looks normalised or log-transformed"),
        (np.log1p, "log1p(expected count)", r"holds 'log1p\(expected count\)'; training needs raw counts"),
    ],
)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_values_that_are_no_counts(slide, change, units, message, is_sparse, quick_fit, slide_copy):
    stored = (lambda X: sparse.csr_matrix(change(X))) if is_sparse else change
    with pytest.raises(ValueError, match=message):
        quick_fit(with_counts(slide_copy, slide, stored, units))


def test_fractions_far_down_are_found():
    """Not in the first rows of a large table."""
    from anndata import AnnData

    from ghistpy.tl._training import raw_counts

    X = sparse.csr_matrix(np.ones((3000, 100), np.float32))
    raw_counts(AnnData(X), "table")
    X.data[-1] = 1.5
    with pytest.raises(ValueError, match=r"table: X holds fractions \(e.g. 1.5\)"):
        raw_counts(AnnData(X), "table")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["ABC", "DEF"]}, r"genes: none of \['ABC', 'DEF'\].* is in table_key='measured', which has \["),
        ({"genes": ["ABC", "SIM0001"]}, r"genes: .*\['ABC'"),
        ({"genes": []}, "genes: expected at least one"),
        ({"cell_type_key": "leiden"}, r"cell_type_key='leiden' is not in obs .* has \[.*'cell_type'"),
        ({"supervision": "bulk"}, "supervision='bulk': expected 'cells' or 'spots'"),
        ({"supervision": "spots"}, r"spot_diameter_um'\] is missing"),
        ({"max_epochs": -1}, "max_epochs=-1: expected 0 or a positive number"),
        ({"max_epochs": 1.5}, "max_epochs=1.5"),
        ({"seed": -1}, "seed=-1: expected 0 or a positive whole number"),
        ({"table_key": "nope"}, "table_key='nope'.*measured"),
        ({"labels_key": "nope"}, "labels_key='nope'.*nuclei"),
        ({"image_key": "nope"}, "image_key='nope'.*he"),
        (
            {"fold": Fold({"x": Region(np.arange(3))}, {}, {})},
            r"fold names samples \['x'\] .* sdatas \['simulated_1'\]",
        ),
        ({"fold": Fold({"simulated_1": Region(np.array([10**9]))}, {}, {})}, "fold: none of its training ids is in"),
        ({"fold": Fold({}, {}, {})}, "fold: it has no training ids; make it with tl.split"),
    ],
)
def test_refuses(slide, options, message, quick_fit):
    with pytest.raises(ValueError, match=message):
        quick_fit(slide, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.obs.update({"cell_id": t.obs["cell_id"] + 10**7}), r"none of its 350 ids .* is in labels_key"),
        (
            lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), [f"c{i}" for i in range(350)]),
            "none of its 350 ids",
        ),
        (
            lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), np.arange(350) + 0.5),
            "must be integers or strings",
        ),
        (lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_id"), np.ones(350, int)), r"ids repeat: \[1\]"),
        (lambda t: setattr(t, "var_names", ["a", "a", *t.var_names[2:]]), r"gene names repeat: \['a'\]"),
        (lambda t: t.obs.isetitem(t.obs.columns.get_loc("cell_type"), pd.Categorical([None] * 350)), "no cell .* type"),
        (
            lambda t: t.uns["spatialdata_attrs"].update(region="elsewhere"),
            r"annotates \['elsewhere'\], not labels 'nuclei'",
        ),
        (lambda t: t.uns.pop("spatialdata_attrs"), "annotates (None|no element)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_tables_that_do_not_belong(slide, change, message, quick_fit, slide_copy):
    other = slide_copy(slide)
    table = slide["measured"].copy()
    table.uns = {**table.uns, "spatialdata_attrs": dict(table.uns["spatialdata_attrs"])}
    change(table)
    other.tables.data["measured"] = table  # past the checks of SpatialData, as a table on disk comes
    fold = Fold({"simulated_1": Region(slide["measured"].obs["cell_id"].to_numpy())}, {}, {})
    with pytest.raises(ValueError, match=message):
        quick_fit(other, fold=fold)


def test_everything_is_held_out(slide, quick_fit):
    fold = Fold(
        {"simulated_1": Region(slide["measured"].obs["cell_id"].to_numpy())},
        {},
        {"simulated_1": Region(np.zeros(0, np.int64), np.array([[5.0, -np.inf, np.inf, np.inf]]))},
    )
    with pytest.raises(ValueError, match=r"none of the measured instances of \['simulated_1'\] has a nucleus outside"):
        quick_fit(slide, fold=fold)
