"""How neighbouring cells resemble each other, gene by gene."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import Table, cell_types, coordinates, neighbours, regions, resolve_table, whole_number
from ghistpy.tl._values import expression, gene_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

_NONE_NEARER = 0.001  # nearer neighbours of a cell on average, below which a least distance does nothing


def neighborhood_correlation(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    n_neighbors: int | None = None,
    radius: float | None = None,
    graph: Any = None,
    within_type: bool = False,
    between: tuple[str, str] | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    border_rule: bool = False,
    min_distance: float | None = None,
    adjust_density: bool = False,
    key_added: str = _keys.NN_CORRELATION,
) -> None:
    """Correlate every gene of a cell with the same gene of its neighbours.

    Parameters
    ----------
    adata_or_sdata
        A table of cells, or a slide. Values are taken as they are (counts or logarithms).
    table_key
        Table of the slide; may be left out when there is one only.
    layer
        Layer in place of ``X``.
    genes
        Genes to compute; the others get NaN. None = all.
    n_neighbors
        Nearest neighbours of a cell. None = 1, the form of the article and of scFeatures, where neither ``radius``
        nor ``graph`` is given.
    radius
        µm; all cells within it are neighbours, in place of ``n_neighbors``.
    graph
        A key of ``obsp`` (squidpy's graph), an (n, n) matrix, or an AnnData with one, in place of both. Unlike in the
        other verbs a graph in ``obsp`` is used when it is named only: the *nearest* neighbour is the definition of
        the statistic, whatever graph was made for something else.
    within_type
        Pairs of cells of one type only, means taken within the type: what is left when composition is
        taken out. One value per type is written beside the pooled one.
    between
        (type, neighbour type): cells of the first, their neighbours of the second.
    cell_type_key
        Column of ``obs`` with the types.
    border_rule
        scFeatures' rule: only cells that are no nearer to the bounding box than to their nearest
        neighbour.
    min_distance
        µm; nearer cells do not count as neighbours. Fields of view that overlap and transcripts that
        spill over make near cells alike.
    adjust_density
        Regress a cubic of the log local density out of every gene first: where nuclei are crowded, a
        predicted or spilled-over gene may be high in all of them.
    key_added
        Column that is written.

    Writes
    ------
    ========================== ==== ========= ====================================================
    key                        slot dtype     meaning
    ========================== ==== ========= ====================================================
    ``key_added``              var  float64   correlation; NaN for constant genes (counted)
    ``key_added`` + _by_type   uns  DataFrame gene, cell_type, value, n_cells; with ``within_type``
    ``key_added`` + _notes     uns  JSON      parameters, graph, cells and genes left out
    ========================== ==== ========= ====================================================

    Raises
    ------
    ValueError
        NaN or infinite expression, no coordinates, a graph of other cells, unknown types or genes, fewer
        than 4 cells, options that exclude each other, lengths that are no positive numbers.

    Warns
    -----
    UserWarning
        Coordinates or lengths that are hardly in µm; no cell has such a neighbour.

    Notes
    -----
    Pearson over pairs (cell, neighbour), every cell with the same weight. Pairs that are each other's
    nearest neighbour count twice. No p-value is given: neighbouring pairs share cells, so no standard test
    of a correlation holds; see :func:`ghistpy.tl.svg` for tests. Slides or regions of one table share no
    neighbours and have means of their own, so that a difference between them is no resemblance of neighbours.
    O(edges · genes).

    References
    ----------
    Cao et al., scFeatures, Bioinformatics 38:4745 (2022), doi:10.1093/bioinformatics/btac590.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=1000, n_genes=10)
    >>> gp.tl.neighborhood_correlation(sdata, n_neighbors=6)
    >>> gp.tl.neighborhood_correlation(sdata, n_neighbors=6, within_type=True, key_added="nn_within")
    >>> values = sdata["measured"].var
    >>> bool(values["nn_correlation"].mean() > values["nn_within"].mean())
    True
    """
    from ghistpy import stats

    table = resolve_table(adata_or_sdata, table_key)
    check_key(key_added)
    _check_options(within_type, between, graph, n_neighbors, min_distance, radius)
    columns = gene_columns(table, genes)
    X = expression(table, layer=layer, columns=columns, by_row=True)
    weights, notes = _weights(table, n_neighbors, radius, graph, min_distance, border_rule)
    strata = names = None
    if within_type or between is not None:
        codes, names = cell_types(table, cell_type_key)
        pair = None if between is None else tuple(_code_of(t, names, cell_type_key) for t in between)
        weights = stats.edges_of_types(weights, codes, between=pair)
        strata = codes if within_type else None
        notes["n_without_type"] = int((codes < 0).sum())
    result = stats.neighbor_correlation(X, weights, strata=strata, covariates=_covariates(table, adjust_density))
    _write(table, columns, result, names if within_type else None, key_added)
    notes |= {
        "layer": layer,
        "within_type": within_type,
        "between": None if between is None else list(between),
        "border_rule": border_rule,
        "min_distance_um": min_distance,
        "adjust_density": adjust_density,
        "n_cells_used": int(result.n_cells.sum()),
        "n_cells": table.n,
        "n_genes": len(columns),
        "n_genes_without_value": int(np.isnan(result.value).sum()),
    }
    write_notes(table, key_added, notes)
    if notes["n_cells_used"] == 0:
        warnings.warn(f"no cell of {table.label} has such a neighbour: all values are NaN", UserWarning, stacklevel=2)


def _check_options(
    within_type: bool, between: Any, graph: Any, n_neighbors: Any, min_distance: Any, radius: Any
) -> None:
    from ghistpy.geometry.points import check_length

    if within_type and between is not None:
        raise ValueError("within_type=True and between= exclude each other")
    if between is not None and (isinstance(between, str) or len(between) != 2):
        raise ValueError(f"between={between!r}: expected (type, neighbour type)")
    if sum(v is not None for v in (graph, n_neighbors, radius)) > 1:
        raise ValueError("give one of graph=, n_neighbors= and radius=")
    if graph is not None and min_distance is not None:
        raise ValueError("graph= brings its own neighbours; leave out min_distance=")
    for name, value in (("radius", radius), ("min_distance", min_distance)):
        if value is not None:
            check_length(value, name)
    if min_distance is not None and radius is not None and min_distance >= radius:
        raise ValueError(f"min_distance={min_distance!r} must be smaller than radius={radius!r}")


def _covariates(table: Table, adjust_density: bool) -> np.ndarray | None:
    """Columns to regress out: which slide or region a cell lies in, how crowded it is there."""
    from ghistpy import stats

    groups, columns = regions(table), []
    if groups is not None:
        columns.append((groups[:, None] == np.arange(1, groups.max() + 1)).astype(np.float64))
    if adjust_density:
        columns.append(stats.density_basis(coordinates(table), groups=groups))
    return np.column_stack(columns) if columns else None


def _weights(
    table: Table,
    n_neighbors: int | None,
    radius: float | None,
    graph: Any,
    min_distance: float | None,
    border_rule: bool,
) -> tuple[sparse.csr_array, dict[str, Any]]:
    """Graph and notes; rows of cells near the border are emptied by the border rule."""
    nearest = graph is None and radius is None
    k = whole_number(1 if n_neighbors is None else n_neighbors, "n_neighbors", 1) if nearest else None
    if min_distance is not None and nearest:
        weights, notes = _spaced(table, k, min_distance)
    else:
        needed = border_rule or min_distance is not None
        found = neighbours(table, n_neighbors=k, radius=radius, graph=graph, distances=needed)
        weights, notes = found.weights, found.notes
        if min_distance is not None:
            weights = _longer(weights, found.distances, min_distance)
    if border_rule:
        weights, notes["n_at_border"] = _away_from_border(table, weights)
    return weights, notes


def _spaced(table: Table, k: int, min_distance: float) -> tuple[sparse.csr_array, dict[str, Any]]:
    """The ``k`` nearest of those that are not too near."""
    from ghistpy.geometry.points import count_duplicates, mean_within
    from ghistpy.geometry.spaced import spaced_knn

    xy, groups = coordinates(table), regions(table)
    nearer = mean_within(xy, min_distance, groups=groups, argument="min_distance")
    if nearer < _NONE_NEARER:
        warnings.warn(
            f"min_distance={min_distance:g} µm leaves out next to no neighbour ({nearer:.2g} of them are nearer, per "
            "cell): is it in µm?",
            UserWarning,
            stacklevel=4,
        )
    weights = spaced_knn(xy, k, min_distance, groups=groups)
    weights.data[:] = 1.0
    return weights, {
        "graph": f"{k} nearest neighbours from {min_distance:g} µm on",
        "n_edges": int(weights.nnz),
        "n_isolated": int((np.diff(weights.indptr) == 0).sum()),
        "n_duplicates": count_duplicates(xy),
    }


def _longer(weights: sparse.csr_array, lengths: sparse.csr_array, least: float) -> sparse.csr_array:
    from scipy import sparse

    edges, distance = weights.tocoo(), lengths.tocoo().data
    kept = distance >= least
    return sparse.csr_array((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=weights.shape)


def _away_from_border(table: Table, weights: sparse.csr_array) -> tuple[sparse.csr_array, int]:
    from scipy import sparse

    from ghistpy import stats
    from ghistpy.geometry.graph import knn_graph

    xy, groups = np.asarray(table.adata.obsm[_keys.SPATIAL], dtype=np.float64), regions(table)
    nearest = knn_graph(xy, 1, groups=groups, distances=True).distances
    length = np.full(table.n, np.inf)
    length[np.diff(nearest.indptr) > 0] = nearest.data
    kept = np.zeros(table.n, dtype=bool)
    for group in [0] if groups is None else np.unique(groups):  # each slide has its own border
        rows = np.arange(table.n) if groups is None else np.flatnonzero(groups == group)
        kept[rows] = stats.away_from_border(xy[rows], length[rows])
    return sparse.csr_array(sparse.diags_array(kept.astype(np.float64)) @ weights), int((~kept).sum())


def _code_of(name: str, names: list[str], key: str) -> int:
    if str(name) not in names:
        raise ValueError(f"between: {name!r} is not among the types of {key!r}: {names}")
    return names.index(str(name))


def _write(table: Table, columns: np.ndarray, result: Any, names: list[str] | None, key: str) -> None:
    import pandas as pd

    values = np.full(table.adata.n_vars, np.nan)
    values[columns] = result.value
    table.adata.var[key] = values
    if names is None:
        return
    genes = table.adata.var_names[columns].astype(str).to_numpy(dtype=object)
    by_type = np.full((len(columns), len(names)), np.nan)
    by_type[:, : result.by_stratum.shape[1]] = result.by_stratum
    n_cells = np.zeros(len(names), np.int64)
    n_cells[: len(result.n_cells)] = result.n_cells
    frame = pd.DataFrame(
        {
            "gene": np.repeat(genes, len(names)),
            "cell_type": np.tile(np.array(names, dtype=object), len(genes)),
            "value": by_type.ravel(),
            "n_cells": np.tile(n_cells, len(genes)),
        }
    )
    write_frame(table, f"{key}_by_type", frame)
