"""What the verbs on one slide's table wrote, as frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def composition(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    key: str = _keys.COMPOSITION,
    part: str = "shares",
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.composition` wrote.

    Parameters
    ----------
    adata_or_sdata
        The table, or the slide that holds it.
    table_key
        Table of the slide; None = its only one.
    key
        Key that ``composition`` wrote (its ``key_added``).
    part
        ``"shares"``: region, cell_type, n, proportion. ``"agreement"``: level, name, pearson, spearman,
        rmse, n.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]`` is a dict of parameters and of what was left out.

    Raises
    ------
    ValueError
        There is no such table, result or part; the message says what to run.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.composition(sdata)
    >>> frame = gp.get.composition(sdata)
    >>> list(frame), int(frame["n"].sum())
    (['region', 'cell_type', 'n', 'proportion'], 200)
    """
    return _read(adata_or_sdata, table_key, key, part, {"shares": "", "agreement": "_agreement"}, "tl.composition")


def interaction(
    adata_or_sdata: AnnData | SpatialData, *, table_key: str | None = None, key: str = _keys.INTERACTION
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.cell_type_interaction` wrote.

    Parameters
    ----------
    adata_or_sdata, table_key, key
        As in :func:`composition`.

    Returns
    -------
    pandas.DataFrame
        cell_type, neighbor_type, n_pairs, fraction, expected, log2_ratio, zscore, pval, pval_adj; a copy
        with ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such table or result.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.cell_type_interaction(sdata, radius=30)
    >>> gp.get.interaction(sdata).attrs["notes"]["radius_um"]
    30
    """
    return _read(adata_or_sdata, table_key, key, "pairs", {"pairs": ""}, "tl.cell_type_interaction")


def ripley(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    key: str = _keys.RIPLEY_L,
    part: str = "scores",
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.ripley_l` wrote.

    Parameters
    ----------
    adata_or_sdata, table_key, key
        As in :func:`composition`.
    part
        ``"scores"``: one row per ordered pair of types. ``"curves"``: one per pair and radius.

    Returns
    -------
    pandas.DataFrame
        A copy with ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such table, result or part.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=600, n_genes=5)
    >>> gp.tl.ripley_l(sdata, max_radius=40, step=5)
    >>> int(gp.get.ripley(sdata, part="curves")["radius"].max())
    40
    """
    return _read(adata_or_sdata, table_key, key, part, {"scores": "_scores", "curves": ""}, "tl.ripley_l")


def comparison(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str = _keys.COMPARISON,
    part: str = "summary",
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.compare_tables` wrote.

    Parameters
    ----------
    adata_or_sdata
        The slide, or its predicted table.
    table_key, key
        Predicted table of the slide, and the key that was written.
    part
        ``"summary"``: one row per statistic. ``"values"``: one per gene, type or pair of types.

    Returns
    -------
    pandas.DataFrame
        A copy with ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such table, result or part.

    Examples
    --------
    See :func:`ghistpy.tl.compare_tables`.
    """
    parts = {"summary": "_summary", "values": ""}
    return _read(adata_or_sdata, table_key, key, part, parts, "tl.compare_tables")


def nn_correlation(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    key: str = _keys.NN_CORRELATION,
    part: str = "genes",
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.neighborhood_correlation` wrote.

    Parameters
    ----------
    adata_or_sdata, table_key, key
        As in :func:`composition`.
    part
        ``"genes"``: gene, value; the largest first, genes without a value last. ``"by_type"``: gene, cell_type,
        value, n_cells, after ``within_type=True``.

    Returns
    -------
    pandas.DataFrame
        A copy with ``frame.attrs["notes"]``.

    Raises
    ------
    ValueError
        There is no such table, result or part.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.neighborhood_correlation(sdata)
    >>> list(gp.get.nn_correlation(sdata)), gp.get.nn_correlation(sdata).attrs["notes"]["graph"]
    (['gene', 'value'], '1 nearest neighbours')
    """
    import pandas as pd

    if part != "genes":
        parts = {"genes": "", "by_type": "_by_type"}
        return _read(adata_or_sdata, table_key, key, part, parts, "tl.neighborhood_correlation(within_type=True)")
    table, where = _table(adata_or_sdata, table_key)
    if key not in table.var or key + _keys.NOTES not in table.uns:
        raise ValueError(f"key={key!r}: {where} holds no such result; run tl.neighborhood_correlation first")
    frame = pd.DataFrame({"gene": table.var_names.astype(str), "value": table.var[key].to_numpy()})
    frame = frame.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)
    frame.attrs["notes"] = json.loads(table.uns[key + _keys.NOTES])
    return frame


def local_moran(
    adata_or_sdata: AnnData | SpatialData, *, table_key: str | None = None, key: str = _keys.LOCAL_MORAN
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.local_moran` wrote.

    Parameters
    ----------
    adata_or_sdata, table_key, key
        As in :func:`composition`.

    Returns
    -------
    pandas.DataFrame
        gene, cell (name of the row), score, pval, quadrant (``"high-high"``, the cell first, …, ``"none"`` without
        neighbours): one row per gene and cell, in the order of the table; ``frame.attrs["notes"]`` is a dict.

    Raises
    ------
    ValueError
        There is no such table or result.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.tl.local_moran(sdata, "GENE001")
    >>> frame = gp.get.local_moran(sdata)
    >>> list(frame), len(frame), frame["quadrant"].cat.categories[1]
    (['gene', 'cell', 'score', 'pval', 'quadrant'], 200, 'high-high')
    """
    import numpy as np
    import pandas as pd

    from ghistpy.stats.local_autocorrelation import QUADRANTS

    table, where = _table(adata_or_sdata, table_key)
    if key not in table.uns or f"{key}_quadrant" not in table.obsm:
        raise ValueError(f"key={key!r}: {where} holds no such result; run tl.local_moran first")
    genes = [str(g) for g in table.uns[key]["genes"]]
    score, pval, quadrant = (np.asarray(table.obsm[key + part]).T.ravel() for part in ("", "_pval", "_quadrant"))
    frame = pd.DataFrame(
        {
            "gene": np.repeat(np.array(genes, dtype=object), table.n_obs),
            "cell": np.tile(table.obs_names.to_numpy(dtype=object), len(genes)),
            "score": score,
            "pval": pval,
            "quadrant": pd.Categorical.from_codes(quadrant, list(QUADRANTS)),
        }
    )
    frame.attrs["notes"] = dict(table.uns[key])
    return frame


def markers(
    adata_or_sdata: AnnData | SpatialData, *, table_key: str | None = None, key: str = _keys.MARKERS
) -> pd.DataFrame:
    """Read the markers of the cell types that :func:`ghistpy.tl.embed` wrote.

    Parameters
    ----------
    adata_or_sdata, table_key
        As in :func:`composition`.
    key
        ``"markers"``, or ``key_added + "_markers"``.

    Returns
    -------
    pandas.DataFrame
        cell_type, rank (1 = the best), gene, score (Welch's t against the other types), log2_fold_change; a copy.
        Descriptive: types of an in-silico table come from the model that predicted the genes.

    Raises
    ------
    ValueError
        There is no such table or result: ``embed`` was not run, or found no types.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=200, n_genes=5)["measured"]
    >>> gp.tl.embed(table)  # doctest: +SKIP
    >>> list(gp.get.markers(table))  # doctest: +SKIP
    ['cell_type', 'rank', 'gene', 'score', 'log2_fold_change']
    """
    table, where = _table(adata_or_sdata, table_key)
    if key not in table.uns:
        raise ValueError(f"key={key!r}: {where} holds no markers; run tl.embed on a table with cell types first")
    return table.uns[key].reset_index(drop=True).copy()


def _table(adata_or_sdata: AnnData | SpatialData, table_key: str | None) -> tuple[AnnData, str]:
    """The table to read and what errors call it."""
    if not hasattr(adata_or_sdata, "tables"):
        return adata_or_sdata, "the table"
    tables = adata_or_sdata.tables
    table_key = next(iter(tables)) if table_key is None and len(tables) == 1 else table_key
    if table_key is None or table_key not in tables:
        raise ValueError(f"table_key={table_key!r} is not among the tables {list(tables)}")
    return tables[table_key], f"table_key={table_key!r}"


def _read(
    adata_or_sdata: AnnData | SpatialData, table_key: str | None, key: str, part: str, parts: dict[str, str], verb: str
) -> pd.DataFrame:
    table, where = _table(adata_or_sdata, table_key)
    if part not in parts:
        raise ValueError(f"part={part!r} is unknown; there are {list(parts)}")
    if key + _keys.NOTES not in table.uns or key + parts[part] not in table.uns:
        raise ValueError(f"key={key!r}, part={part!r}: {where} holds no such result; run {verb} first")
    frame = table.uns[key + parts[part]].reset_index(drop=True).copy()
    frame.attrs["notes"] = json.loads(table.uns[key + _keys.NOTES])
    return frame
