"""What the verbs on tables take from ``X`` and layers: chosen genes, finite values, raw counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from ghistpy.tl._table import Table


def gene_columns(table: Table, genes: Sequence[str] | None) -> np.ndarray:
    """Positions of the named genes, all when None, or an error that lists what is unknown."""
    names = table.adata.var_names
    if genes is None:
        return np.arange(len(names))
    genes = [genes] if isinstance(genes, str) else list(genes)
    if not genes:
        raise ValueError("genes: the list is empty; name at least one gene")
    if not names.is_unique:
        raise ValueError(
            f"{table.label}: gene names repeat ({names[names.duplicated()][:5].tolist()}); make them unique"
        )
    position = names.get_indexer(genes)
    unknown = [g for g, p in zip(genes, position, strict=True) if p < 0]
    if unknown:
        raise ValueError(
            f"genes: {len(unknown)} are not in {table.label}: {unknown[:5]} (it has {names[:3].tolist()} ...)"
        )
    if len(np.unique(position)) < len(position):
        repeated = sorted({g for g in genes if genes.count(g) > 1})
        raise ValueError(f"genes: {repeated[:5]} are named more than once; name each gene once")
    return position


def expression(
    table: Table, *, layer: str | None = None, columns: np.ndarray | None = None, by_row: bool = False
) -> Any:
    """Values (n, G) of ``X`` or a layer: an ndarray, or a csc_array (csr_array ``by_row``), all finite floats.

    What lies on disk or in dask is read.

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
    if hasattr(X, "compute"):
        X = X.compute()
    elif hasattr(X, "to_memory"):  # sparse values of a table that was opened with backed="r"
        X = X.to_memory()
    if sparse.issparse(X):
        X = sparse.csr_array(X) if by_row else sparse.csc_array(X)
    else:
        X = np.asarray(X)
    X = X if columns is None else take_columns(X, columns)
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32 if X.dtype.itemsize <= 2 else np.float64)
    _check_finite(X, table, layer)
    return X


def take_columns(X: Any, columns: np.ndarray) -> Any:
    """Those columns in that order; ``X`` itself, not a copy, when they are all of them as they are."""
    return X if np.array_equal(columns, np.arange(X.shape[1])) else X[:, columns]


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
