"""What :func:`ghistpy.pp.match_cells` found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

PARTS = ("summary", "placements", "tiles", "counts")


def matching(
    adata_or_sdata: AnnData | SpatialData,
    part: str = "summary",
    *,
    table_key: str = _keys.MEASURED,
    key: str = _keys.MATCHING,
) -> dict[str, Any] | pd.DataFrame:
    """Read the report of :func:`ghistpy.pp.match_cells`.

    Parameters
    ----------
    adata_or_sdata
        The table, or the slide that holds it.
    part
        ``"summary"`` (a dict), ``"placements"``, ``"tiles"`` or ``"counts"`` (frames).
    table_key
        Table of the slide.
    key
        Key of the report.

    Returns
    -------
    dict or pandas.DataFrame
        A copy.

    Raises
    ------
    ValueError
        There is no such part, or no report.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=200, n_genes=5)
    >>> gp.pp.match_cells(sdata)
    >>> gp.get.matching(sdata, "counts")["n"].sum()
    np.int64(200)
    """
    from ghistpy.io import get_element

    if part not in PARTS:
        raise ValueError(f"part={part!r}: expected one of {PARTS}")
    table = adata_or_sdata
    if not hasattr(table, "obs"):
        table = get_element(adata_or_sdata, "tables", table_key, "table_key")
    report = table.uns.get(_keys.UNS, {}).get(key)
    if report is None:
        raise ValueError(f"no report {key!r} in this table; pp.match_cells writes it")
    return json.loads(report["summary"]) if part == "summary" else report[part].copy()
