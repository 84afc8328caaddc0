"""What the verbs on tables share: finding the table, its values, coordinates, types and neighbour graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

MIN_CELLS = 4
GRAPH = "spatial_connectivities"  # where squidpy stores its graph
N_NEIGHBORS = 6
# cells per mm² of tissue; spots of 200 µm have 25 per mm², packed lymphocytes 20,000
_PLAUSIBLE_DENSITY = (5.0, 100_000.0)
_MANY_NEIGHBOURS = 1000


@dataclass(frozen=True)
class Table:
    """A table that a verb reads and writes.

    Attributes
    ----------
    adata
        The table itself, not a copy.
    label
        What errors call it: ``"adata"`` or ``"table_key='insilico'"``.
    units
        ``"counts"``, ``"log1p(expected count)"``, or None where nothing says it; of ``X``, not of layers.
    in_silico
        Predicted from H&E, by its provenance.
    """

    adata: AnnData
    label: str
    units: str | None
    in_silico: bool

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.adata.n_obs


def resolve_table(
    adata_or_sdata: AnnData | SpatialData, table_key: str | None = None, *, min_cells: int = MIN_CELLS
) -> Table:
    """The table of an AnnData, or of a SpatialData by name (its only one when ``table_key`` is None).

    Raises
    ------
    TypeError
        Neither an AnnData nor a SpatialData.
    ValueError
        No such table, several and none named, a view (nothing can be written into it), or fewer than
        ``min_cells`` rows.
    """
    if hasattr(adata_or_sdata, "tables"):
        tables = adata_or_sdata.tables
        listed = ", ".join(repr(k) for k in tables) or "none"
        if table_key is None:
            if len(tables) != 1:
                raise ValueError(f"table_key=None: name one of the tables of this SpatialData (available: {listed})")
            table_key = next(iter(tables))
        if table_key not in tables:
            raise ValueError(
                f"table_key={table_key!r} is not among the tables of this SpatialData (available: {listed})"
            )
        adata, label = tables[table_key], f"table_key={table_key!r}"
    elif hasattr(adata_or_sdata, "obs_names"):
        if table_key is not None:
            raise ValueError(f"table_key={table_key!r}: an AnnData has no tables; leave table_key out")
        adata, label = adata_or_sdata, "adata"
    else:
        raise TypeError(f"expected an AnnData or a SpatialData, got {type(adata_or_sdata).__name__}")
    if adata.is_view:
        raise ValueError(f"{label} is a view of another table, into which no result is written; copy it first: .copy()")
    if adata.n_obs < min_cells:
        raise ValueError(f"{label} has {adata.n_obs} rows; at least {min_cells} are needed")
    provenance = adata.uns.get(_keys.UNS, {})
    units = provenance.get("units") or ("log" if "log1p" in adata.uns else None)
    in_silico = "model_hash" in provenance or units == _keys.UNITS_LOG1P
    return Table(adata, label, units, in_silico)


def gene_columns(table: Table, genes: Sequence[str] | None) -> np.ndarray:
    """Positions of the named genes, all when None, or an error that lists what is unknown."""
    names = table.adata.var_names
    if genes is None:
        return np.arange(len(names))
    if isinstance(genes, str):
        genes = [genes]
    if not names.is_unique:
        raise ValueError(
            f"{table.label}: gene names repeat ({names[names.duplicated()][:5].tolist()}); make them unique"
        )
    position = names.get_indexer(list(genes))
    unknown = [g for g, p in zip(genes, position, strict=True) if p < 0]
    if unknown:
        raise ValueError(
            f"genes: {len(unknown)} are not in {table.label}: {unknown[:5]} (it has {names[:3].tolist()} ...)"
        )
    if len(np.unique(position)) < len(position):
        raise ValueError("genes: names repeat")
    return position


def expression(table: Table, *, layer: str | None = None, columns: np.ndarray | None = None) -> Any:
    """Values (n, G) of ``X`` or a layer: an ndarray or a csc_array, float32 or float64, all finite.

    Raises
    ------
    ValueError
        No such layer, or values that are NaN or infinite: how many, in how many rows and genes.
    """
    from scipy import sparse

    adata = table.adata
    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer={layer!r} is not in {table.label} (available: {list(adata.layers)})")
    X = adata.X if layer is None else adata.layers[layer]
    if X is None:
        raise ValueError(f"{table.label} has no X; name a layer with layer= (available: {list(adata.layers)})")
    X = X.compute() if hasattr(X, "compute") else X
    if sparse.issparse(X):
        X = sparse.csc_array(X)
        X = X if columns is None or len(columns) == X.shape[1] else X[:, columns]
    else:
        X = np.asarray(X)
        X = X if columns is None or len(columns) == X.shape[1] else X[:, columns]
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
    _check_finite(X, table, layer)
    return X


def _check_finite(X: Any, table: Table, layer: str | None) -> None:
    values = X.data if hasattr(X, "tocsc") else X
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):  # one pass without a mask; an overflow only sends us to the exact check
            return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    if hasattr(X, "tocsc"):
        coo = X.tocoo()
        rows, genes = coo.row[bad], coo.col[bad]
    else:
        rows, genes = np.nonzero(bad)
    where = "X" if layer is None else f"layer={layer!r}"
    raise ValueError(
        f"{where} of {table.label}: {int(bad.sum())} values are NaN or infinite, in {len(np.unique(rows))} of "
        f"{X.shape[0]} rows and {len(np.unique(genes))} of {X.shape[1]} genes; remove those rows or genes, or fill them"
    )


def require_counts(table: Table, X: Any, what: str, *, layer: str | None = None) -> None:
    """Refuse values that are no counts, by provenance first and then by the values.

    Raises
    ------
    ValueError
        Provenance says that ``X`` holds logarithms, or values are negative or not whole.
    """
    if layer is None and table.units not in (None, _keys.UNITS_COUNTS):
        raise ValueError(
            f"{what} needs raw counts, but X of {table.label} holds {table.units} by its provenance; name the layer "
            "that holds counts with layer="
        )
    values = X.data if hasattr(X, "tocsc") else X
    bad = (values < 0) | (values != np.floor(values))
    if bad.any():
        raise ValueError(
            f"{what} needs raw counts, but {int(bad.sum())} values of {table.label} are negative or not whole (such as "
            f"{float(values[bad][0]):g}); name the layer that holds counts with layer="
        )


def coordinates(table: Table, key: str = _keys.SPATIAL, *, check_unit: bool = True) -> np.ndarray:
    """Places x, y in µm, (n, 2) float64; with ``check_unit`` warns when the implied density is none of tissue.

    Raises
    ------
    ValueError
        No such ``obsm``, no (n, 2) array, or rows without a finite place.
    """
    from ghistpy.geometry.graph import check_coordinates, local_density

    if key not in table.adata.obsm:
        raise ValueError(
            f"{table.label} has no obsm[{key!r}] with x and y in µm (available: {list(table.adata.obsm)}); they are "
            "needed to find neighbours"
        )
    xy = check_coordinates(np.asarray(table.adata.obsm[key]), f"obsm[{key!r}] of {table.label}")
    if not check_unit:
        return xy
    density = local_density(xy)
    low, high = _PLAUSIBLE_DENSITY
    if density < low or density > high:
        warnings.warn(
            f"obsm[{key!r}] of {table.label} implies {density:.3g} cells per mm², tissue has {low:g} to {high:g}: are "
            "its coordinates in µm?",
            UserWarning,
            stacklevel=3,
        )
    return xy


def regions(table: Table) -> np.ndarray | None:
    """(n,) codes of the elements that the rows annotate, None when it is one: slides share no neighbours."""
    from ghistpy.io.tables import linked_to

    link = linked_to(table.adata)
    if link is None or link[1] not in table.adata.obs:
        return None
    codes = np.unique(table.adata.obs[link[1]].astype(str).to_numpy(), return_inverse=True)[1]
    return codes if codes.max(initial=0) > 0 else None


def cell_types(table: Table, key: str = _keys.CELL_TYPE) -> tuple[np.ndarray, list[str]]:
    """Codes (n,) of the cell types and their names; a missing type has code -1.

    Raises
    ------
    ValueError
        No such column of ``obs``.
    """
    import pandas as pd

    if key not in table.adata.obs:
        raise ValueError(f"cell_type_key={key!r} is not a column of {table.label} (available: {list(table.adata.obs)})")
    column = pd.Categorical(table.adata.obs[key]).remove_unused_categories()
    return np.asarray(column.codes, dtype=np.int64), [str(c) for c in column.categories]


@dataclass(frozen=True)
class Neighbours:
    """A graph that was found or made, and what is to be known of it."""

    weights: sparse.csr_array
    source: str  # such as "obsp['spatial_connectivities']" or "6 nearest neighbours"
    n_isolated: int
    n_duplicates: int
    distances: sparse.csr_array | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """Plain values for ``uns``."""
        return {
            "graph": self.source,
            "n_edges": int(self.weights.nnz),
            "n_isolated": self.n_isolated,
            "n_duplicates": self.n_duplicates,
        }


def neighbours(
    table: Table,
    *,
    graph: Any = None,
    n_neighbors: int | None = None,
    radius: float | None = None,
    symmetric: bool = False,
    distances: bool = False,
) -> Neighbours:
    """The graph of a table: the one given, else the one in ``obsp``, else one of its coordinates.

    Parameters
    ----------
    graph
        A key of ``obsp``, an (n, n) matrix, or another AnnData with the same rows in the same order, whose
        ``obsp["spatial_connectivities"]`` is taken. None: that key of the table itself, when it is there and
        neither ``n_neighbors`` nor ``radius`` is given.
    n_neighbors, radius
        Make a kNN graph, or one of all pairs within ``radius`` µm; not both.
    symmetric, distances
        As in :func:`ghistpy.geometry.knn_graph`; a graph that was given has no distances unless
        coordinates are there.

    Raises
    ------
    ValueError
        Several of the three given, a graph of another table (by shape, by row names or by the length of
        its edges), no coordinates.
    """
    if sum(v is not None for v in (graph, n_neighbors, radius)) > 1:
        raise ValueError("give one of graph=, n_neighbors= and radius=")
    adata = table.adata
    if graph is None and n_neighbors is None and radius is None and GRAPH in adata.obsp:
        graph = GRAPH
    if graph is not None:
        return _given(table, graph, distances)
    from ghistpy.geometry.graph import knn_graph, radius_graph

    xy, groups = coordinates(table), regions(table)
    if radius is not None:
        made = radius_graph(xy, radius, groups=groups, distances=distances)
        _check_radius(table, radius, made.degree.mean())
        source = f"radius {radius:g} µm"
    else:
        k = N_NEIGHBORS if n_neighbors is None else n_neighbors
        k = min(k, table.n - 1) if n_neighbors is None else k
        made = knn_graph(xy, k, groups=groups, symmetric=symmetric, distances=distances)
        source = f"{k} nearest neighbours" + (", symmetric" if symmetric else "")
    if made.n_isolated:
        logger.warning("%d of %d rows of %s have no neighbour (%s)", made.n_isolated, made.n, table.label, source)
    return Neighbours(made.weights, source, made.n_isolated, made.n_duplicates, made.distances)


def _given(table: Table, graph: Any, distances: bool) -> Neighbours:
    from scipy import sparse

    from ghistpy.geometry.graph import check_graph, count_duplicates

    adata = table.adata
    if isinstance(graph, str):
        if graph not in adata.obsp:
            raise ValueError(f"graph={graph!r} is not in obsp of {table.label} (available: {list(adata.obsp)})")
        weights, source = adata.obsp[graph], f"obsp[{graph!r}]"
    elif hasattr(graph, "obsp"):
        if graph.n_obs != adata.n_obs or not (graph.obs_names == adata.obs_names).all():
            raise ValueError(
                f"graph: its rows are not those of {table.label} ({graph.n_obs} and {adata.n_obs} rows; "
                f"{graph.obs_names[:2].tolist()} ... and {adata.obs_names[:2].tolist()} ...); build it from this table"
            )
        if GRAPH not in graph.obsp:
            raise ValueError(f"graph: its obsp has no {GRAPH!r} (available: {list(graph.obsp)})")
        weights, source = graph.obsp[GRAPH], "obsp of another table"
    else:
        weights, source = graph, "given matrix"
    # a graph is there already, so no distance is going to be taken in a unit
    xy = coordinates(table, check_unit=False) if _keys.SPATIAL in adata.obsm else None
    weights = check_graph(weights, table.n, coordinates=xy, argument=f"graph ({source})")
    isolated = int((np.diff(weights.indptr) == 0).sum())
    if isolated:
        logger.warning("%d of %d rows of %s have no neighbour (%s)", isolated, table.n, table.label, source)
    lengths, duplicates = None, 0
    if xy is not None:
        duplicates = count_duplicates(xy)
    if distances:
        if xy is None:
            raise ValueError(f"{table.label} has no obsm[{_keys.SPATIAL!r}], so the edges of {source} have no length")
        edges = weights.tocoo()
        lengths = sparse.csr_array(
            (np.hypot(*(xy[edges.row] - xy[edges.col]).T), weights.indices, weights.indptr), shape=weights.shape
        )
    return Neighbours(weights, source, isolated, duplicates, lengths)


def _check_radius(table: Table, radius: float, degree: float) -> None:
    from ghistpy.geometry.graph import local_density

    if 1 <= degree <= _MANY_NEIGHBOURS:
        return
    density = local_density(np.asarray(table.adata.obsm[_keys.SPATIAL]))
    warnings.warn(
        f"radius={radius:g} µm gives {degree:.3g} neighbours on average; {table.label} has {density:.3g} cells per "
        f"mm², about {np.sqrt(1e6 / density):.3g} µm from one to the next: is radius in µm?",
        UserWarning,
        stacklevel=4,
    )
