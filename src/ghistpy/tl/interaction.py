"""Which cell types are neighbours."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import cell_types, neighbours, progress_bar, regions, resolve_table, whole_number

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

WITHHELD = (
    "withheld: the types of an in-silico table were refined by those of the neighbours and read from overlapping "
    "fields of view, so they are not exchangeable among cells even where tissue has no structure"
)


def cell_type_interaction(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    radius: float | None = None,
    n_neighbors: int | None = None,
    graph: Any = None,
    n_perms: int = 0,
    seed: int = 0,
    key_added: str = _keys.INTERACTION,
    progress: bool = True,
) -> None:
    """Count neighbour pairs by cell type, against types shuffled among the cells.

    Parameters
    ----------
    adata_or_sdata
        A table of cells, or a slide.
    table_key
        Table of the slide; may be left out when there is one only.
    cell_type_key
        Column of ``obs`` with the types; cells without type are left out and counted.
    radius
        µm; all pairs no further apart. 50 is the feature of scFeatures and of cohorts.
    n_neighbors
        Nearest neighbours in place of a radius; a pair counts once when one is a neighbour of the other.
    graph
        A key of ``obsp`` (squidpy's graph), an (n, n) matrix, or an AnnData with one. Without any of the
        three: ``obsp["spatial_connectivities"]`` when it is there, else 6 nearest neighbours.
    n_perms
        Permutations of the types for z-score and p-value; 0 = neither.
    seed
        Of the permutations.
    key_added
        See Writes.
    progress
        Show a progress bar over permutations.

    Writes
    ------
    ====================== ==== ========= ==========================================================
    key                    slot dtype     meaning
    ====================== ==== ========= ==========================================================
    ``key_added``          uns  DataFrame one row per unordered pair of types: cell_type, neighbor_type,
                                          n_pairs, fraction (of all pairs), expected (fraction under
                                          shuffled types, exact), log2_ratio (NaN for pairs that are
                                          never seen or never expected), zscore, pval, pval_adj (BH over
                                          the pairs of types)
    ``key_added`` + _notes uns  JSON      parameters, graph, cells left out, what p claims
    ====================== ==== ========= ==========================================================

    Raises
    ------
    ValueError
        No such table or column, no cell with a type, a graph of other cells, several graphs.

    Notes
    -----
    **The null hypothesis** is that types are exchangeable among the cells, positions fixed: rejection is
    at the nominal level then, for rare and common types and clustered positions alike. Any niche breaks it,
    so a small p does not say that two types seek each other. For in-silico tables p-values and z-scores, which
    are the same claim, are withheld (NaN): their types were refined by those of the neighbours. Slides of one
    table are shuffled apart.

    O(pairs · (1 + n_perms)).

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=5)
    >>> gp.tl.cell_type_interaction(sdata, radius=30, n_perms=99, progress=False)
    >>> frame = sdata["measured"].uns["interaction"]
    >>> float(round(frame["fraction"].sum(), 6)), float(round(frame["expected"].sum(), 6))
    (1.0, 1.0)
    """
    from ghistpy import stats

    table = resolve_table(adata_or_sdata, table_key)
    check_key(key_added)
    n_perms = whole_number(n_perms, "n_perms")
    codes, names = cell_types(table, cell_type_key)
    if not names:
        raise ValueError(f"cell_type_key={cell_type_key!r}: no cell of {table.label} has a type")
    found = neighbours(table, graph=graph, n_neighbors=n_neighbors, radius=radius)
    pairs = stats.pairs_of_graph(found.weights)
    groups = regions(table)
    withheld = table.in_silico and n_perms > 0
    if withheld:
        logger.warning("p-values and z-scores of cell_type_interaction on %s are %s", table.label, WITHHELD)
    result = stats.cell_type_interaction(
        codes, len(names), pairs, groups=groups, n_perms=0 if withheld else n_perms, seed=seed,
        progress=progress_bar(progress, "interaction"),
    )  # fmt: skip
    write_frame(table, key_added, _frame(result, names))
    notes = found.notes | {
        "cell_types": names,
        "cell_type_key": cell_type_key,
        "radius_um": radius,
        "n_cells": table.n,
        "n_without_type": int((codes < 0).sum()),
        "n_pairs": int(result.count.sum()),
        "n_perms": n_perms,
        "seed": seed,
        "pval": WITHHELD if withheld else "two-sided; null: types are exchangeable among cells, positions fixed",
    }
    write_notes(table, key_added, notes)


def _frame(result: Any, names: list[str]) -> pd.DataFrame:
    import pandas as pd

    from ghistpy import stats

    labels = np.array(names, dtype=object)
    seen = (result.fraction > 0) & (result.expected > 0)
    ratio = np.divide(result.fraction, result.expected, out=np.ones(len(seen)), where=seen)
    return pd.DataFrame(
        {
            "cell_type": labels[result.first],
            "neighbor_type": labels[result.second],
            "n_pairs": result.count.astype(np.int64),
            "fraction": result.fraction,
            "expected": result.expected,
            "log2_ratio": np.where(seen, np.log2(ratio), np.nan),
            "zscore": result.zscore,
            "pval": result.pval,
            "pval_adj": stats.adjust_pvalues(result.pval),
        }
    )
