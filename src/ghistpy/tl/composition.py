"""Which cell types there are: on the slide, in its regions, around every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import (
    Table,
    cell_types,
    check_radius,
    coordinates,
    neighbours,
    region_names,
    regions,
    resolve_table,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

ALL = "all"  # name of the whole slide among the regions


def composition(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    groupby: str | None = None,
    radius: float | None = None,
    reference: str | AnnData | None = None,
    key_added: str = _keys.COMPOSITION,
) -> None:
    """Shares of the cell types, and how well those of another table agree.

    Parameters
    ----------
    adata_or_sdata
        A table of cells, or a slide.
    table_key
        Table of the slide; may be left out when there is one only.
    cell_type_key
        Column of ``obs`` with the types; cells without type are counted and left out.
    groupby
        Column of ``obs`` with regions (niches, annotations, samples) to describe one by one.
    radius
        µm. Also describe the surroundings of every cell: shares among the cells within this distance,
        itself included.
    reference
        Another table of the slide, or an AnnData, to compare with: measured cells, usually. Its types
        come from the column ``cell_type_key``, too.
    key_added
        See Writes.

    Writes
    ------
    ============================ ==== ========= =====================================================
    key                          slot dtype     meaning
    ============================ ==== ========= =====================================================
    ``key_added``                uns  DataFrame region ("all" first), cell_type, n, proportion
    ``key_added`` + _local       obsm float32   (n, C) shares around every cell; with ``radius``
    ``key_added`` + _agreement   uns  DataFrame level (global, region, local), name, pearson,
                                                spearman, rmse, n; with ``reference``
    ``key_added`` + _notes       uns  JSON      parameters, ``cell_types`` (columns of the local
                                                shares), counts of what was left out
    ============================ ==== ========= =====================================================

    Raises
    ------
    ValueError
        No such table, column or coordinates, a type column without a single type, a region named "all", a radius
        that is no positive number.

    Warns
    -----
    UserWarning
        Coordinates or a radius that are hardly in µm.

    Notes
    -----
    Agreement is over the union of the types of both tables, missing ones 0. ``level="local"``: over
    the cells of this table that have typed reference cells within ``radius``, one row per type; neighbouring
    surroundings overlap, so these correlations come without p-values. Cells of other slides or regions of a
    table are in no surroundings, and slides meet those of the reference by name. O(n), O(edges) with ``radius``.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=5)
    >>> gp.tl.composition(sdata, groupby="niche", radius=50)
    >>> frame = sdata["measured"].uns["composition"]
    >>> float(round(frame.groupby("region")["proportion"].sum()["all"], 6))
    1.0
    >>> sdata["measured"].obsm["composition_local"].shape
    (300, 6)
    """
    from ghistpy import stats

    table = resolve_table(adata_or_sdata, table_key)
    check_key(key_added)
    codes, names = cell_types(table, cell_type_key)
    _require_types(names, cell_type_key, table)
    groups, regions = _regions(table, groupby)
    write_frame(table, key_added, _frame(codes, names, groups, regions))
    notes = {
        "cell_types": names,
        "cell_type_key": cell_type_key,
        "groupby": groupby,
        "radius_um": radius,
        "n_cells": table.n,
        "n_without_type": int((codes < 0).sum()),
        "n_without_region": int((groups < 0).sum()) if groupby is not None else 0,
    }
    local = None
    if radius is not None:
        found = neighbours(table, radius=radius)
        local = stats.local_composition(codes, len(names), found.weights)
        table.adata.obsm[key_added + _keys.LOCAL] = local
        notes |= found.notes
    if reference is not None:
        other = _reference(adata_or_sdata, reference)
        frame, counts = _agreement(table, other, cell_type_key, groupby, radius, local)
        write_frame(table, f"{key_added}_agreement", frame)
        notes |= counts
    write_notes(table, key_added, notes)


def _require_types(names: list[str], key: str, table: Table) -> None:
    if not names:
        raise ValueError(f"cell_type_key={key!r}: no cell of {table.label} has a type")


def _regions(table: Table, groupby: str | None) -> tuple[np.ndarray, list[str]]:
    """Codes (n,) of the regions and their names; -1 = in none."""
    import pandas as pd

    if groupby is None:
        return np.full(table.n, -1, np.int64), []
    if groupby not in table.adata.obs:
        raise ValueError(f"groupby={groupby!r} is not a column of {table.label} (available: {list(table.adata.obs)})")
    column = pd.Categorical(table.adata.obs[groupby]).remove_unused_categories()
    names = [str(c) for c in column.categories]
    if ALL in names:
        raise ValueError(
            f"groupby={groupby!r}: a region of {table.label} is named {ALL!r}, which stands for the whole slide in the "
            f"result; rename it, as by adata.obs[{groupby!r}].astype(str).replace({ALL!r}, 'rest')"
        )
    return np.asarray(column.codes, np.int64), names


def _frame(codes: np.ndarray, names: list[str], groups: np.ndarray, regions: list[str]) -> pd.DataFrame:
    import pandas as pd

    from ghistpy import stats

    counts = stats.type_counts(codes, len(names))
    if regions:
        counts = np.concatenate([counts, stats.type_counts(codes, len(names), groups=groups, n_groups=len(regions))])
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return pd.DataFrame(
        {
            "region": np.repeat(np.array([ALL, *regions], dtype=object), len(names)),
            "cell_type": np.tile(np.array(names, dtype=object), len(counts)),
            "n": counts.ravel(),
            "proportion": share.ravel(),
        }
    )


def _reference(adata_or_sdata: Any, reference: Any) -> Table:
    if not isinstance(reference, str):
        return resolve_table(reference, min_cells=1)
    if not hasattr(adata_or_sdata, "tables"):
        raise ValueError(f"reference={reference!r}: an AnnData has no tables; give the other AnnData itself")
    try:
        return resolve_table(adata_or_sdata, reference, min_cells=1)
    except ValueError as error:
        raise ValueError(str(error).replace("table_key=", "reference=", 1)) from error


def _agreement(
    table: Table, other: Table, key: str, groupby: str | None, radius: float | None, local: np.ndarray | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    import pandas as pd

    from ghistpy import stats

    codes, names = cell_types(table, key)
    other_codes, other_names = cell_types(other, key)
    _require_types(other_names, key, other)
    frames = []
    for t, c, n in ((table, codes, names), (other, other_codes, other_names)):
        groups = _regions(t, groupby)
        frames.append(_frame(c, n, *groups).pivot(index="region", columns="cell_type", values="n"))
    shared = [r for r in frames[0].index if r in frames[1].index and frames[0].loc[r].sum() and frames[1].loc[r].sum()]
    rows = []
    for region in [ALL, *(r for r in shared if r != ALL)]:
        ours, theirs = (f.loc[region] for f in frames)
        a = stats.composition_agreement(theirs.to_dict(), ours.to_dict())
        level = "global" if region == ALL else "region"
        rows.append((level, region, a.pearson, a.spearman, a.rmse, int(ours.sum())))
    if radius is not None:
        rows += _local_agreement(table, other, names, other_codes, other_names, radius, local)
    left_out = sorted((set(frames[0].index) | set(frames[1].index)) - set(shared))
    counts = {"n_reference": other.n, "n_reference_without_type": int((other_codes < 0).sum())}
    if left_out:
        counts["regions_without_partner"] = left_out
    columns = ["level", "name", "pearson", "spearman", "rmse", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"level": object, "name": object}), counts


def _local_agreement(
    table: Table,
    other: Table,
    names: list[str],
    other_codes: np.ndarray,
    other_names: list[str],
    radius: float,
    local: np.ndarray,
) -> list[tuple]:
    """Shares around every cell of this table, here and in the reference, type by type."""
    from scipy.spatial import cKDTree

    from ghistpy import stats

    union = sorted(set(names) | set(other_names))
    here = np.zeros((table.n, len(union)))
    here[:, [union.index(n) for n in names]] = local
    position = np.append([union.index(n) for n in other_names], -1)[other_codes]  # -1: no type
    xy, other_xy = coordinates(table), coordinates(other)
    check_radius(other.label, other_xy, radius)
    counts = np.zeros((table.n, len(union)))
    for rows, other_rows in _same_slide(table, other):
        other_rows = other_rows[position[other_rows] >= 0]
        near = cKDTree(xy[rows]).sparse_distance_matrix(cKDTree(other_xy[other_rows]), radius, output_type="ndarray")
        key = near["i"] * len(union) + position[other_rows][near["j"]]
        counts[rows] = np.bincount(key, minlength=len(rows) * len(union)).reshape(len(rows), len(union))
    kept = (counts.sum(axis=1) > 0) & np.isfinite(here).all(axis=1)
    if kept.sum() < 2:
        return []
    there = counts[kept] / counts[kept].sum(axis=1, keepdims=True)
    scores = stats.gene_metrics(there, here[kept], ["pearson", "spearman", "rmse"])
    return [
        ("local", name, *(float(scores[m][i]) for m in ("pearson", "spearman", "rmse")), int(kept.sum()))
        for i, name in enumerate(union)
    ]


def _same_slide(table: Table, other: Table) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of both tables, slide by slide; all of them where each table is one slide."""
    if regions(table) is None and regions(other) is None:
        return [(np.arange(table.n), np.arange(other.n))]
    ours, theirs = region_names(table), region_names(other)
    if ours is None or theirs is None or not set(ours) & set(theirs):
        found = [sorted(set(names)) if names is not None else None for names in (ours, theirs)]
        raise ValueError(
            f"reference: {table.label} and {other.label} annotate the slides or regions {found[0]} and {found[1]}, of "
            "which none is common, so no surroundings can be compared; give both the same names of regions"
        )
    return [(np.flatnonzero(ours == name), np.flatnonzero(theirs == name)) for name in sorted(set(ours) & set(theirs))]
