"""Verbs that take ``genes=`` give every gene its own result, in whatever order genes are named."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import ghistpy as gp


@pytest.fixture(params=[np.asarray, sparse.csr_matrix])
def table(request):
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 400, (700, 2))
    fold = 1 + np.linspace(0, 1, 12) * (xy[:, :1] > 200)
    adata = AnnData(request.param(rng.poisson(2 * fold).astype(np.float32)))
    adata.obsm["spatial"] = xy
    return adata


@pytest.mark.parametrize("take", [slice(None, None, -1), [7, 2, 9]])
@pytest.mark.parametrize(
    "options",
    [{"method": "moran"}, {"method": "geary", "n_perms": 9}, {"method": "sparkx"}, {"null": "variogram"}],
)
def test_svg(table, options, take):
    names = list(table.var_names[take])
    gp.tl.svg(table, **options, key_added="all", progress=False)
    gp.tl.svg(table, **options, genes=names, key_added="some", progress=False)
    columns = ["score", "pval"] if "n_perms" not in options else ["score"]  # draws do not depend on the order either
    for column in columns:
        whole, part = (table.var.loc[names, f"{key}_{column}"] for key in ("all", "some"))
        np.testing.assert_allclose(part, whole, rtol=1e-4)
    assert table.var["some_score"].notna().sum() == len(names)


def test_local_moran(table):
    names = list(table.var_names[::-1])
    gp.tl.local_moran(table, list(table.var_names), key_added="all", progress=False)
    gp.tl.local_moran(table, names, key_added="turned", progress=False)
    np.testing.assert_allclose(table.obsm["turned"], table.obsm["all"][:, ::-1])


def test_neighborhood_correlation(table):
    gp.tl.neighborhood_correlation(table, key_added="all")
    gp.tl.neighborhood_correlation(table, genes=list(table.var_names[::-1]), key_added="turned")
    np.testing.assert_allclose(table.var["turned"], table.var["all"], rtol=1e-6)
