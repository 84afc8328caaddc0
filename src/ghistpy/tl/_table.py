"""What the verbs on tables share: finding the table, its values, coordinates, types and neighbour graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.cohort_stats.options import whole_number
from ghistpy.tl._values import expression, gene_columns, require_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

__all__ = [
    "Neighbours",
    "Table",
    "cell_types",
    "check_radius",
    "coordinates",
    "expression",
    "gene_columns",
    "neighbours",
    "progress_bar",
    "region_names",
    "regions",
    "require_counts",
    "resolve_table",
    "whole_number",
]

logger = logging.getLogger("ghistpy")

MIN_CELLS = 4
GRAPH = "spatial_connectivities"  # where squidpy stores its graph
N_NEIGHBORS = 6
# cells per mm² of tissue; spots of 200 µm have 25 per mm², packed lymphocytes 20,000
_PLAUSIBLE_DENSITY = (5.0, 100_000.0)
_MANY_NEIGHBOURS = 1000
_MOST_PAIRS = 200_000_000  # ordered pairs with distance and edge weight: 6 GB


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


def coordinates(table: Table, key: str = _keys.SPATIAL, *, check_unit: bool = True) -> np.ndarray:
    """Places x, y in µm, (n, 2) float64; with ``check_unit`` warns when the implied density is none of tissue.

    Raises
    ------
    ValueError
        No such ``obsm``, no (n, 2) array, or rows without a finite place.
    """
    from ghistpy.geometry.points import check_coordinates, count_duplicates, local_density

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
    if np.isinf(density):
        warnings.warn(
            f"obsm[{key!r}] of {table.label}: {count_duplicates(xy)} of {len(xy)} rows lie exactly where another one "
            "does, and most have six others at their place; were places joined to the wrong rows?",
            UserWarning,
            stacklevel=3,
        )
    elif density < low or density > high:
        warnings.warn(
            f"obsm[{key!r}] of {table.label} implies {density:.3g} cells per mm², tissue has {low:g} to {high:g}: are "
            "its coordinates in µm?",
            UserWarning,
            stacklevel=3,
        )
    return xy


def region_names(table: Table) -> np.ndarray | None:
    """(n,) names of the elements that the rows annotate; None when the table is linked to none."""
    from ghistpy.io.tables import linked_to

    link = linked_to(table.adata)
    if link is None or link[1] not in table.adata.obs:
        return None
    return table.adata.obs[link[1]].astype(str).to_numpy(dtype=object)


def regions(table: Table) -> np.ndarray | None:
    """(n,) codes of the elements that the rows annotate, None when it is one: slides share no neighbours."""
    names = region_names(table)
    if names is None:
        return None
    codes = np.unique(names, return_inverse=True)[1]
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


def progress_bar(show: bool, what: str) -> Callable | None:
    """What wraps an iteration to show how far it is, None when nothing is to be shown."""
    if not show:
        return None
    from functools import partial

    from tqdm.auto import tqdm

    return partial(tqdm, desc=what, leave=False)


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
    TypeError
        A graph that is neither a key, nor a matrix, nor an AnnData.
    ValueError
        Several of the three given, a graph of another table (by shape, by row names or by the length of
        its edges), distances in place of weights, edges between slides, no coordinates.
    """
    if sum(v is not None for v in (graph, n_neighbors, radius)) > 1:
        raise ValueError("give one of graph=, n_neighbors= and radius=")
    if n_neighbors is not None:
        n_neighbors = whole_number(n_neighbors, "n_neighbors", 1)
    adata = table.adata
    if graph is None and n_neighbors is None and radius is None and GRAPH in adata.obsp:
        graph = GRAPH
    if graph is not None:
        return _given(table, graph, distances)
    from ghistpy.geometry.graph import knn_graph, radius_graph

    xy, groups = coordinates(table), regions(table)
    if radius is not None:
        made = radius_graph(xy, radius, groups=groups, distances=distances)
        _warn_of_radius(table.label, xy, radius, float(made.degree.mean()), "radius")
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

    from ghistpy.geometry.graph import check_graph
    from ghistpy.geometry.points import count_duplicates

    weights, source = _stored(table, graph)
    # a graph is there already: places only tell whether it belongs to these rows, in whatever unit or dimension
    place = np.asarray(table.adata.obsm[_keys.SPATIAL], np.float64) if _keys.SPATIAL in table.adata.obsm else None
    place = place if place is not None and np.isfinite(place).all() else None
    weights = check_graph(weights, table.n, coordinates=place, argument=f"graph ({source})")
    groups = regions(table)
    edges = weights.tocoo()
    crossing = 0 if groups is None else int((groups[edges.row] != groups[edges.col]).sum())
    if crossing:
        raise ValueError(
            f"graph ({source}): {crossing} of {weights.nnz} edges join cells of different slides or regions; build it "
            "slide by slide (library_key= of squidpy)"
        )
    isolated = int((np.diff(weights.indptr) == 0).sum())
    if isolated:
        logger.warning("%d of %d rows of %s have no neighbour (%s)", isolated, table.n, table.label, source)
    lengths = None
    if distances:
        xy = coordinates(table)
        length = np.hypot(*(xy[edges.row] - xy[edges.col]).T)
        lengths = sparse.csr_array((length, weights.indices, weights.indptr), shape=weights.shape)
    flat = place is not None and place.shape[1] == 2
    return Neighbours(weights, source, isolated, count_duplicates(place) if flat else 0, lengths)


def _stored(table: Table, graph: Any) -> tuple[Any, str]:
    """The weights that ``graph`` stands for, and what to call them."""
    adata = table.adata
    if isinstance(graph, str):
        if graph not in adata.obsp:
            raise ValueError(f"graph={graph!r} is not in obsp of {table.label} (available: {list(adata.obsp)})")
        if graph.endswith("distances"):
            raise ValueError(
                f"graph={graph!r} holds the distances to the neighbours, so that the farthest would count most; give "
                f"the key of the weights, such as {graph.removesuffix('distances') + 'connectivities'!r}"
            )
        return adata.obsp[graph], f"obsp[{graph!r}]"
    if hasattr(graph, "obsp"):
        if graph.n_obs != adata.n_obs or not (graph.obs_names == adata.obs_names).all():
            raise ValueError(
                f"graph: its rows are not those of {table.label} ({graph.n_obs} and {adata.n_obs} rows; "
                f"{graph.obs_names[:2].tolist()} ... and {adata.obs_names[:2].tolist()} ...); build it from this table"
            )
        if GRAPH not in graph.obsp:
            raise ValueError(f"graph: its obsp has no {GRAPH!r} (available: {list(graph.obsp)})")
        return graph.obsp[GRAPH], "obsp of another table"
    if not hasattr(graph, "shape"):
        raise TypeError(
            f"graph={graph!r}: expected a key of obsp, an (n, n) array or sparse matrix, or an AnnData with one; got "
            f"{type(graph).__name__}"
        )
    return graph, "given matrix"


def check_radius(
    label: str, xy: np.ndarray, radius: Any, *, argument: str = "radius", groups: np.ndarray | None = None
) -> float:
    """A radius in µm; an error when it is none or makes too many pairs, a warning when it is hardly in µm."""
    from ghistpy.geometry.points import mean_within

    mean = mean_within(xy, radius, groups=groups, argument=argument, most_edges=_MOST_PAIRS)
    _warn_of_radius(label, xy, radius, mean, argument)
    return float(radius)


def _warn_of_radius(label: str, xy: np.ndarray, radius: float, mean: float, argument: str) -> None:
    from ghistpy.geometry.points import local_density

    extent = float(np.ptp(xy, axis=0).max())
    if 1 <= mean <= _MANY_NEIGHBOURS and radius < extent:
        return
    density = local_density(xy)
    known = f" ({density:.3g} cells per mm², about {np.sqrt(1e6 / density):.3g} µm from one to the next)"
    warnings.warn(
        f"{argument}={radius:g} µm gives {mean:.3g} neighbours on average; {label} is {extent:.3g} µm wide"
        f"{known if np.isfinite(density) else ''}: is {argument} in µm?",
        UserWarning,
        stacklevel=4,
    )
