"""Neighbours, UMAP and markers of a table through scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import Table, cell_types, resolve_table, whole_number
from ghistpy.tl._values import expression

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_NEIGHBORS, _CONNECTIVITIES, _DISTANCES = "neighbors", "connectivities", "distances"  # names of scanpy
_LEAST_PER_TYPE = 50  # cells that a rare type keeps in a subsample, when it has them


def embed(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    layer: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    max_cells: int = 50_000,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    n_markers: int = 10,
    seed: int = 0,
    key_added: str | None = None,
) -> None:
    """Principal components, neighbours in expression, UMAP and markers of the cell types.

    Parameters
    ----------
    adata_or_sdata
        A table of cells, or a slide. Counts (by the provenance of the table, or whole numbers where it has none)
        are scaled to a common total per cell (the median) and logarithmised for this purpose; logarithms are taken
        as they are.
    table_key
        Table of the slide; may be left out when there is one only.
    layer
        Layer in place of ``X``.
    cell_type_key
        Column of ``obs`` with the types, by which the subsample is stratified and markers are looked for.
        When it is absent the subsample is not stratified and there are no markers.
    max_cells
        Larger tables are subsampled: every type in proportion, but at least 50 of its cells.
    n_pcs, n_neighbors
        Passed to scanpy (fewer where the table is smaller).
    n_markers
        Genes written per type.
    seed
        Of the subsample, PCA and UMAP.
    key_added
        Prefix of everything that is written, in place of the names below: ``"tumour"`` gives ``tumour_pca``,
        ``tumour_umap``, ``tumour_neighbors``, ``tumour_connectivities``, ``tumour_embedded`` and so on.

    Writes
    ------
    ================== ==== =============== =========================================================
    key                slot dtype           meaning
    ================== ==== =============== =========================================================
    ``X_pca``          obsm float32         components; NaN for cells that were not sampled
    ``X_umap``         obsm float32         (n, 2); NaN for cells that were not sampled
    ``connectivities`` obsp float32 (n, n)  neighbours in *expression*, as scanpy keeps them; rows of cells
                                            that were not sampled are empty
    ``distances``      obsp float64 (n, n)  their distances in principal components
    ``neighbors``      uns  dict            how scanpy finds both
    ``embedded``       obs  bool            whether the cell was sampled
    ``markers``        uns  DataFrame       cell_type, rank, gene, score (Welch's t, this type against the
                                            others), log2_fold_change; descriptive, no p-values
    ``X_umap_notes``   uns  JSON            parameters, cells sampled per type, genes left out
    ================== ==== =============== =========================================================

    The graph of places is another one: ``obsp["spatial_connectivities"]``, which the spatial verbs use. To go on in
    scanpy, take the cells that were sampled: ``sc.tl.leiden(small := table[table.obs["embedded"]].copy())``.

    Raises
    ------
    ValueError
        NaN or infinite expression, negative counts, fewer than 4 cells or 3 genes that vary, unknown table or
        layer, ``key_added="spatial"`` (its graph would replace that of the places).

    Notes
    -----
    Types of an in-silico table and its expression come from one model, and cells are many and dependent:
    markers describe, their p-values would not mean anything and are not written.

    References
    ----------
    McInnes et al., UMAP, arXiv:1802.03426 (2018). Wolf et al., SCANPY, Genome Biol 19:15 (2018),
    doi:10.1186/s13059-017-1382-0.

    Examples
    --------
    umap compiles for a while when it is first used in a process, so this is not run as a test:

    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=20)
    >>> gp.tl.embed(sdata, max_cells=200)  # doctest: +SKIP
    >>> table = sdata["measured"]
    >>> int(table.obs["embedded"].sum()), table.obsm["X_umap"].shape  # doctest: +SKIP
    (200, (300, 2))
    """
    table = resolve_table(adata_or_sdata, table_key)
    keys = _names(key_added)
    max_cells = whole_number(max_cells, "max_cells", 4)
    n_pcs, n_neighbors = whole_number(n_pcs, "n_pcs", 1), whole_number(n_neighbors, "n_neighbors", 2)
    n_markers = whole_number(n_markers, "n_markers", 1)
    codes, names = _types(table, cell_type_key)
    rows = stratified_sample(codes, max_cells, seed)
    small, transformed = _prepared(table, layer, rows)
    varying = small.n_vars
    if varying < 3:
        raise ValueError(f"{table.label}: only {varying} genes vary among {len(rows)} cells; at least 3 are needed")
    _run_scanpy(small, n_pcs, n_neighbors, seed)
    _spread(table, rows, small, keys)
    if names:
        write_frame(table, keys[_keys.MARKERS], _markers(small, codes[rows], names, n_markers))
    sampled = np.bincount(codes[rows][codes[rows] >= 0], minlength=len(names))
    notes = {
        "layer": layer,
        "transformed": transformed,
        "n_cells": table.n,
        "n_sampled": len(rows),
        "cell_types": names,
        "n_sampled_per_type": sampled.tolist(),
        "n_sampled_without_type": int((codes[rows] < 0).sum()),
        "n_constant_genes": int(table.adata.n_vars - varying),
        "n_pcs": int(small.obsm["X_pca"].shape[1]),
        "n_neighbors": n_neighbors,
        "seed": seed,
    }
    write_notes(table, keys[_keys.UMAP], notes)


def _names(key_added: str | None) -> dict[str, str]:
    """What is written under which key."""
    names = (_keys.PCA, _keys.UMAP, _keys.EMBEDDED, _keys.MARKERS, _NEIGHBORS, _CONNECTIVITIES, _DISTANCES)
    if key_added is None:
        return {name: name for name in names}
    if check_key(key_added) == _keys.SPATIAL:
        raise ValueError(
            f"key_added={key_added!r}: obsp['spatial_connectivities'] is the graph of the places of the cells, and "
            "neighbours in expression would replace it; take another name"
        )
    return {name: f"{key_added}_{name.removeprefix('X_')}" for name in names}


def _types(table: Table, key: str) -> tuple[np.ndarray, list[str]]:
    if key == _keys.CELL_TYPE and key not in table.adata.obs:
        return np.full(table.n, -1, np.int64), []
    return cell_types(table, key)


def stratified_sample(codes: np.ndarray, max_cells: int, seed: int) -> np.ndarray:
    """Rows of a sample of ``max_cells``, every code in proportion but 50 of its cells when it has them.

    Examples
    --------
    >>> rows = stratified_sample(np.repeat([0, 1], [900, 100]), 200, seed=0)
    >>> len(rows), int((rows >= 900).sum())
    (200, 50)
    """
    n = len(codes)
    if n <= max_cells:
        return np.arange(n)
    found, size = np.unique(codes, return_counts=True)
    least = np.minimum(size, max(1, min(_LEAST_PER_TYPE, max_cells // len(found))))
    rest = max_cells - least.sum()
    share = max_cells * size / n
    above = np.maximum(share - least, 0.0)
    wanted = least + (above * rest / above.sum() if above.sum() > 0 else 0.0)
    take = np.minimum(np.floor(wanted).astype(np.int64), size)
    order = np.argsort(take - wanted, kind="stable")  # largest remainders first
    open_types = order[(size - take)[order] > 0]
    take[open_types[: max_cells - take.sum()]] += 1
    rng = np.random.default_rng(seed)
    parts = [rng.choice(np.flatnonzero(codes == c), t, replace=False) for c, t in zip(found, take, strict=True)]
    return np.sort(np.concatenate(parts))


def _prepared(table: Table, layer: str | None, rows: np.ndarray) -> tuple[AnnData, str]:
    """The sampled cells on a log scale, without constant genes, and what was done."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    X = expression(table, layer=layer)
    X = sparse.csr_matrix(X)[rows] if sparse.issparse(X) else X[rows]
    X = X.astype(np.float32)
    low, high = (np.asarray(v.toarray() if sparse.issparse(v) else v).ravel() for v in (X.min(axis=0), X.max(axis=0)))
    varying = np.flatnonzero(high > low)
    index = pd.Index([str(r) for r in rows])
    small = AnnData(
        X=X[:, varying], obs=pd.DataFrame(index=index), var=pd.DataFrame(index=table.adata.var_names[varying])
    )
    if not _holds_counts(table, X, layer):
        return small, "none: taken as logarithms"
    import scanpy as sc

    sc.pp.normalize_total(small)
    sc.pp.log1p(small)
    return small, "counts scaled to the median total, log1p"


def _holds_counts(table: Table, X: Any, layer: str | None) -> bool:
    """By provenance, which knows of counts that are no whole numbers (corrected ones); else by the values."""
    values = X.data if hasattr(X, "tocsr") else X
    if layer is None and table.units is not None:
        negative = int((values < 0).sum()) if table.units == _keys.UNITS_COUNTS else 0
        if negative:
            raise ValueError(
                f"{table.label} holds counts by its provenance, but {negative} values are negative (lowest "
                f"{float(values.min()):g}); name the layer that holds the counts with layer="
            )
        return table.units == _keys.UNITS_COUNTS
    return bool((values >= 0).all() and (values == np.floor(values)).all())


def _run_scanpy(small: AnnData, n_pcs: int, n_neighbors: int, seed: int) -> None:
    import scanpy as sc

    n_pcs = min(n_pcs, small.n_vars - 1, small.n_obs - 1)
    sc.pp.pca(small, n_comps=n_pcs, random_state=seed)
    sc.pp.neighbors(small, n_neighbors=min(n_neighbors, small.n_obs - 1), use_rep="X_pca", random_state=seed)
    sc.tl.umap(small, random_state=seed)


def _spread(table: Table, rows: np.ndarray, small: AnnData, keys: dict[str, str]) -> None:
    """Write places and graph of the sampled cells into the whole table."""
    from scipy import sparse

    adata = table.adata
    for name in (_keys.PCA, _keys.UMAP):
        full = np.full((table.n, small.obsm[name].shape[1]), np.nan, np.float32)
        full[rows] = small.obsm[name]
        adata.obsm[keys[name]] = full
    for name in (_CONNECTIVITIES, _DISTANCES):
        edges = small.obsp[name].tocoo()
        adata.obsp[keys[name]] = sparse.csr_matrix((edges.data, (rows[edges.row], rows[edges.col])), (table.n, table.n))
    adata.uns[keys[_NEIGHBORS]] = {
        "connectivities_key": keys[_CONNECTIVITIES],
        "distances_key": keys[_DISTANCES],
        "params": dict(small.uns["neighbors"]["params"], use_rep=keys[_keys.PCA]),
    }
    sampled = np.zeros(table.n, dtype=bool)
    sampled[rows] = True
    adata.obs[keys[_keys.EMBEDDED]] = sampled


def _markers(small: AnnData, codes: np.ndarray, names: list[str], n_markers: int) -> pd.DataFrame:
    import pandas as pd
    import scanpy as sc

    size = np.bincount(codes[codes >= 0], minlength=len(names))
    groups = [str(k) for k in np.flatnonzero(size >= 2)]
    columns = ["cell_type", "rank", "gene", "score", "log2_fold_change"]
    if len(groups) < 2:
        return pd.DataFrame(columns=columns)
    known = small[codes >= 0].copy()
    known.obs["type"] = pd.Categorical([str(c) for c in codes[codes >= 0]])  # codes: names may be any text
    sc.tl.rank_genes_groups(known, "type", groups=groups, method="t-test", n_genes=min(n_markers, small.n_vars))
    result: Any = known.uns["rank_genes_groups"]
    parts = [
        pd.DataFrame(
            {
                "cell_type": names[int(g)],
                "rank": np.arange(1, len(result["names"][g]) + 1),
                "gene": result["names"][g].astype(object),
                "score": result["scores"][g].astype(np.float64),
                "log2_fold_change": result["logfoldchanges"][g].astype(np.float64),
            }
        )
        for g in groups
    ]
    return pd.concat(parts)[columns]
