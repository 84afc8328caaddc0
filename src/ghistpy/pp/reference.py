"""Single cells of a reference into profiles of their types."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("ghistpy")


def build_reference(
    adata: AnnData,
    *,
    groupby: str,
    layer: str | None = None,
    genes: Any = None,
    target_sum: float | None = None,
    n_subclusters: int = 1,
    min_cells: int = 10,
    seed: int = 0,
) -> AnnData:
    """Average the cells of each type into profiles, on the scale that the model uses.

    Parameters
    ----------
    adata
        Reference cells x genes, raw counts.
    groupby
        Column of ``obs`` with the cell types.
    layer
        Layer with the counts; default ``X``.
    genes
        Keep these genes only, in this order (a panel, or ``model.genes``); those that the reference lacks are
        left out and logged.
    target_sum
        Counts per cell to which cells are scaled, over the genes that are kept. Default: their median.
    n_subclusters
        Up to this many profiles per type, by k-means on the log profiles of its cells (20 principal components).
    min_cells
        Groups and sub-clusters with fewer cells give no profile, and are logged.
    seed
        Of the k-means.

    Returns
    -------
    AnnData
        Profiles x genes:

        ============ ===== ======== ===============================================================
        key          slot  dtype    meaning
        ============ ===== ======== ===============================================================
        X            X     float32  log1p(mean of the scaled counts)
        (index)      obs   str      name of the type, with ``" #1"``, ``" #2"`` ... for sub-clusters
        cell_type    obs   category the type
        n_cells      obs   int64    cells averaged
        ghistpy      uns   dict     ``units``, ``kind`` = ``"reference"``, ``params`` (JSON)
        ============ ===== ======== ===============================================================

        It goes into ``tl.fit(reference=)`` and :func:`annotate_cell_types`.

    Raises
    ------
    ValueError
        No such column or layer, values that are no counts, gene names that are empty or repeat, no shared gene,
        or no group with enough cells.

    Examples
    --------
    >>> import ghistpy as gp
    >>> cells = gp.datasets.simulate_slide(n_cells=300, n_genes=8)["measured"]
    >>> reference = gp.pp.build_reference(cells, groupby="cell_type")
    >>> reference.shape == (cells.obs["cell_type"].nunique(), 8)
    True
    """
    from anndata import AnnData

    counts = counts_of(adata, layer, "adata")
    types = _groups(adata, groupby)
    columns = _columns(adata, genes)
    counts = counts[:, columns]
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    usable = (total > 0) & types.notna().to_numpy()
    if not usable.any():
        raise ValueError(f"groupby={groupby!r}: no cell has both a type and counts of the genes that are kept")
    target = float(np.median(total[usable])) if target_sum is None else float(target_sum)
    if not (np.isfinite(target) and target > 0):
        raise ValueError(f"target_sum={target_sum!r}: expected counts per cell above 0")
    rows = np.flatnonzero(usable)
    scaled = _scale_rows(counts[rows], target / total[rows])
    member, names, parents = _members(scaled, types.iloc[rows], n_subclusters, min_cells, seed)
    profiles = _mean_rows(scaled, member, len(names))
    out = AnnData(np.log1p(profiles).astype(np.float32))
    out.obs_names, out.var_names = names, adata.var_names[columns].astype(str)
    out.obs[_keys.CELL_TYPE] = parents
    out.obs[_keys.CELL_TYPE] = out.obs[_keys.CELL_TYPE].astype("category")
    out.obs["n_cells"] = np.bincount(member[member >= 0], minlength=len(names))
    left = {
        "cells_without_type": int(types.isna().sum()),
        "cells_without_counts": int(((total == 0) & types.notna().to_numpy()).sum()),
        "cells_in_small_groups": int((member < 0).sum()),
    }
    params = {"groupby": groupby, "target_sum": target, "n_subclusters": n_subclusters, "min_cells": min_cells}
    out.uns[_keys.UNS] = {
        "units": _keys.UNITS_LOG1P,
        "kind": "reference",
        "params": json.dumps(params | {"seed": seed, "left_out": left}),
    }
    if any(left.values()):
        _log.info("build_reference: %d profiles; left out: %s", len(names), {k: n for k, n in left.items() if n})
    return out


def counts_of(adata: AnnData, layer: str | None, name: str) -> Any:
    """Checked raw counts of a table, as CSR float32."""
    from scipy import sparse

    from ghistpy.io.spots import check_counts

    if layer is not None and layer not in adata.layers:
        raise ValueError(
            f"layer={layer!r} is not among the layers of {name} (available: {list(adata.layers) or 'none'})"
        )
    units = adata.uns.get(_keys.UNS, {}).get("units", _keys.UNITS_COUNTS)
    if layer is None and units != _keys.UNITS_COUNTS:
        raise ValueError(f"{name}: holds {units!r}; raw counts are needed")
    matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
    check_counts(matrix.data, name if layer is None else f"{name}.layers[{layer!r}]")
    check_genes(adata.var_names, name)
    return matrix.astype(np.float32)


def check_genes(names: Any, name: str) -> None:
    """Check that gene names are there, and each once."""
    import pandas as pd

    index = pd.Index(names).astype(str)
    empty = (index.str.strip() == "") | index.str.lower().isin(["nan", "none"])
    if empty.any():
        raise ValueError(f"{name}: {int(empty.sum())} of {len(index)} gene names are empty; name or remove these genes")
    if index.has_duplicates:
        raise ValueError(
            f"{name}: gene names repeat: {index[index.duplicated()].unique()[:5].tolist()}; make them unique"
        )


def _groups(adata: AnnData, groupby: str) -> Any:
    if groupby not in adata.obs:
        raise ValueError(f"groupby={groupby!r} is not among the columns of obs (available: {list(adata.obs)})")
    column = adata.obs[groupby]
    return column.astype(str).where(column.notna())


def _columns(adata: AnnData, genes: Any) -> np.ndarray:
    if genes is None:
        return np.arange(adata.n_vars)
    wanted = [str(g) for g in genes]
    index = adata.var_names.astype(str).get_indexer(wanted)
    if (index < 0).all():
        raise ValueError(
            f"genes: the reference has none of the {len(wanted)} genes; they are named such as {wanted[:3]}, those "
            "of the "
            f"reference {adata.var_names[:3].tolist()}: symbols and Ensembl ids do not meet"
        )
    if (index < 0).any():
        _log.warning("build_reference: %d of %d genes are not in the reference", int((index < 0).sum()), len(wanted))
    return index[index >= 0]


def _scale_rows(counts: Any, factor: np.ndarray) -> Any:
    from scipy import sparse

    return sparse.diags(factor.astype(np.float32)) @ counts


def _mean_rows(matrix: Any, member: np.ndarray, n: int) -> np.ndarray:
    """Mean rows (n, G) of the members; -1 belongs to none."""
    from scipy import sparse

    rows = np.flatnonzero(member >= 0)
    choose = sparse.csr_matrix((np.ones(len(rows)), (member[rows], rows)), shape=(n, len(member)))
    size = np.maximum(np.bincount(member[rows], minlength=n), 1)
    return np.asarray((choose @ matrix).todense()) / size[:, None]


def _members(scaled: Any, types: Any, k: int, min_cells: int, seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Group of each cell (-1 = none), names of the groups and of their types."""
    member = np.full(len(types), -1, dtype=np.int64)
    names: list[str] = []
    parents: list[str] = []
    small = {}
    values = types.to_numpy(dtype=str)
    for name in sorted(set(values)):
        rows = np.flatnonzero(values == name)
        if len(rows) < min_cells:
            small[name] = len(rows)
            continue
        part = _subclusters(scaled[rows], k, min_cells, seed)
        kept = [c for c in range(part.max() + 1) if (part == c).sum() >= min_cells]
        for number, c in enumerate(kept, start=1):
            member[rows[part == c]] = len(names)
            names.append(name if len(kept) == 1 else f"{name} #{number}")
            parents.append(name)
    if small:
        _log.warning("build_reference: fewer than min_cells=%d cells, left out: %s", min_cells, small)
    if not names:
        raise ValueError(f"min_cells={min_cells}: no group has so many cells ({small}); lower it")
    return member, names, parents


def _subclusters(scaled: Any, k: int, min_cells: int, seed: int) -> np.ndarray:
    """Cluster of each cell, 0 .. below k."""
    k = min(k, scaled.shape[0] // min_cells)
    if k <= 1:
        return np.zeros(scaled.shape[0], dtype=np.int64)
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    logs = np.log1p(scaled.toarray())
    logs = PCA(min(20, *logs.shape), random_state=seed).fit_transform(logs)
    return KMeans(k, n_init=5, random_state=seed).fit_predict(logs).astype(np.int64)
