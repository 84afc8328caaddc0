"""Results of :func:`ghistpy.tl.svg` as a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_COLUMNS = ("score", "pval", "pval_adj", "rank")


def svg(adata_or_sdata: AnnData | SpatialData, *, table_key: str | None = None, key: str = _keys.SVG) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.svg` wrote.

    Parameters
    ----------
    adata_or_sdata
        The table, or the slide that holds it.
    table_key
        Table of the slide; None = its only one.
    key
        Key that ``svg`` wrote (its ``key_added``).

    Returns
    -------
    pandas.DataFrame
        gene, score, pval, pval_adj, rank: one row per gene that has a score, the best first;
        ``frame.attrs["notes"]`` is a dict with method, null, what a small p-value claims, the graph and counts.

    Raises
    ------
    ValueError
        There is no such table or result; the message says what there is.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=300, n_genes=8).tables["measured"]
    >>> gp.tl.svg(table, method="sparkx")
    >>> frame = gp.get.svg(table)
    >>> list(frame), int(frame["rank"].iloc[0])
    (['gene', 'score', 'pval', 'pval_adj', 'rank'], 1)
    """
    table, where = adata_or_sdata, "the table"
    if hasattr(adata_or_sdata, "tables"):
        tables = adata_or_sdata.tables
        name = next(iter(tables)) if table_key is None and len(tables) == 1 else table_key
        if name not in tables:
            raise ValueError(f"table_key={table_key!r} is not among the tables {list(tables)}")
        table, where = tables[name], f"table {name!r}"
    if f"{key}_rank" not in table.var or key not in table.uns:
        found = [c.removesuffix("_rank") for c in table.var if c.endswith("_rank")]
        raise ValueError(f"key={key!r}: {where} holds no such result (there are {found}); run tl.svg first")
    frame = table.var[[f"{key}_{c}" for c in _COLUMNS]].copy()
    frame.columns = list(_COLUMNS)
    frame.insert(0, "gene", table.var_names.astype(str))
    frame = frame[frame["rank"].notna()].sort_values("rank").reset_index(drop=True)
    frame.attrs["notes"] = dict(table.uns[key])
    return frame
