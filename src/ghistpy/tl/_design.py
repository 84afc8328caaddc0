"""Columns that tests on tables condition on: types, depth, covariates, layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._table import Table, cell_types, require_counts

if TYPE_CHECKING:
    from scipy import sparse

_BINS = 10  # strata of depth within a type, at most
_CELLS_PER_BIN = 20


def indicators(codes: np.ndarray, n_types: int) -> np.ndarray:
    """One column per type, (n, n_types) float64; a missing type is 0 everywhere."""
    return (codes[:, None] == np.arange(n_types)).astype(np.float64)


def type_columns(table: Table, cell_type_key: str) -> tuple[np.ndarray, str]:
    """Probabilities of the types when the table has them, else indicators, and where they came from.

    Raises
    ------
    ValueError
        Neither probabilities nor the column of types, probabilities that are not finite, no row with a type.
    """
    if cell_type_key == _keys.CELL_TYPE and _keys.CELL_TYPE_PROBA in table.adata.obsm:
        proba = np.asarray(table.adata.obsm[_keys.CELL_TYPE_PROBA], dtype=np.float64)
        bad = int((~np.isfinite(proba)).any(axis=1).sum())
        if bad:
            raise ValueError(
                f"obsm[{_keys.CELL_TYPE_PROBA!r}] of {table.label} is NaN or infinite in {bad} of {table.n} rows; give "
                "rows without a type probabilities of 0, or name another column of types with cell_type_key="
            )
        return proba, f"obsm[{_keys.CELL_TYPE_PROBA!r}]"
    codes, names = cell_types(table, cell_type_key)
    if not names:
        raise ValueError(f"cell_type_key={cell_type_key!r} of {table.label}: no row has a type; name another column")
    return indicators(codes, len(names)), f"obs[{cell_type_key!r}]"


def log_depth(table: Table, values: Any, *, layer: str | None, depth_key: str | None) -> tuple[np.ndarray, str]:
    """Log of the counts of each row, (n,), and where they came from.

    From ``obs[depth_key]``; when None from ``obs["total"]``; else the sum over all genes, for which the
    values must be counts or log1p(expected count).

    Raises
    ------
    ValueError
        No such column, depths that are negative or not finite, values that are no counts.
    """
    obs = table.adata.obs
    if depth_key is not None and depth_key not in obs:
        raise ValueError(f"depth_key={depth_key!r} is not a column of {table.label} (available: {list(obs)})")
    key = depth_key or (_keys.TOTAL if _keys.TOTAL in obs else None)
    if key is not None:
        total, source = obs[key].to_numpy(dtype=np.float64), f"obs[{key!r}]"
    elif layer is None and table.units == _keys.UNITS_LOG1P:
        counts = values.copy() if hasattr(values, "tocsc") else values
        counts = np.expm1(counts) if not hasattr(counts, "tocsc") else counts.expm1()
        total, source = np.asarray(counts.sum(axis=1)).ravel(), "sum of expm1 over all genes"
    else:
        require_counts(
            table, values, "the depth of a row (no obs['total']; or name a column with depth_key=)", layer=layer
        )
        total, source = np.asarray(values.sum(axis=1)).ravel().astype(np.float64), "sum over all genes"
    if not np.isfinite(total).all() or (total < 0).any():
        raise ValueError(f"{source} of {table.label}: depths must be finite and at least 0")
    return np.log(np.maximum(total, 0.5)), source


def covariate_columns(table: Table, covariates: Sequence[str]) -> np.ndarray:
    """Columns of ``obs`` as (n, p) float64, categories as indicators.

    Raises
    ------
    ValueError
        No such column, or values that are missing.
    """
    import pandas as pd

    if isinstance(covariates, str):
        covariates = [covariates]
    columns = []
    for key in covariates:
        if key not in table.adata.obs:
            raise ValueError(
                f"covariates: {key!r} is not a column of {table.label} (available: {list(table.adata.obs)})"
            )
        series = table.adata.obs[key]
        if pd.api.types.is_numeric_dtype(series):
            column = series.to_numpy(dtype=np.float64)[:, None]
            missing = int((~np.isfinite(column)).sum())
        else:
            codes, names = cell_types(table, key)
            column, missing = indicators(codes, len(names)), int((codes < 0).sum())
        if missing:
            raise ValueError(f"covariates: {key!r} of {table.label} is missing in {missing} of {table.n} rows")
        columns.append(column)
    return np.column_stack(columns)


def depth_powers(depth: np.ndarray) -> np.ndarray:
    """Standardised log depth, its square and cube, (n, 3): log1p of a count is curved in log depth."""
    spread = depth.std()
    l = (depth - depth.mean()) / (spread if spread > 0 else 1.0)
    return np.column_stack([l, l**2, l**3])


def within_type(
    types: np.ndarray, depth: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What is regressed out and where values are permuted, given types (n, C), log depth (n,) and regions (n,).

    Returns
    -------
    design
        (n, 2 C + 2): types, their products with log depth, and its square and cube.
    strata
        (n,) integers: the likeliest type, within its region, cut into up to ten parts of equal size by depth.
        Residuals of shallow and of deep cells differ in spread, and depth is smooth; a permutation must keep
        both.
    """
    powers = depth_powers(depth)
    l = powers[:, 0]
    design = np.column_stack([types, types * l[:, None], powers[:, 1:]])
    code = np.where(types.sum(axis=1) > 0, types.argmax(axis=1), types.shape[1])
    if groups is not None:
        code = code * (groups.max() + 1) + groups
    strata = np.zeros(len(l), np.int64)
    for c in np.unique(code):  # a loop over types and regions
        rows = np.flatnonzero(code == c)
        bins = int(np.clip(len(rows) // _CELLS_PER_BIN, 1, _BINS))
        rank = np.argsort(np.argsort(l[rows], kind="stable"), kind="stable")
        strata[rows] = c * _BINS + rank * bins // len(rows)
    return design, strata


def layout_columns(table: Table, key: str, weights: sparse.csr_array | None) -> np.ndarray:
    """A layout (n, p) from ``obs`` or ``obsm``; categories as their shares among the neighbours.

    Raises
    ------
    ValueError
        No such key, or a layout that does not vary or is not finite.
    """
    import pandas as pd

    from ghistpy.stats.quadratic_form import row_standardised

    adata = table.adata
    if key in adata.obs and not pd.api.types.is_numeric_dtype(adata.obs[key]):
        codes, names = cell_types(table, key)
        columns = indicators(codes, len(names))
        if weights is not None:
            columns = row_standardised(weights) @ columns
    elif key in adata.obs:
        columns = adata.obs[key].to_numpy(dtype=np.float64)[:, None]
    elif key in adata.obsm:
        columns = np.asarray(adata.obsm[key], dtype=np.float64).reshape(table.n, -1)
    else:
        raise ValueError(
            f"layout_key={key!r} is neither in obs nor in obsm of {table.label} (available: "
            f"{[*adata.obs, *adata.obsm]})"
        )
    missing = int((~np.isfinite(columns)).any(axis=1).sum())
    if missing:
        raise ValueError(
            f"layout_key={key!r} of {table.label} is missing or infinite in {missing} of {table.n} rows; fill them, or "
            "test a table without those rows"
        )
    if np.ptp(columns, axis=0).max(initial=0.0) <= 0:
        raise ValueError(
            f"layout_key={key!r} of {table.label} does not vary (one type only?), so nothing can follow it"
        )
    return columns
