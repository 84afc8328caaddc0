"""Results of :func:`ghistpy.tl.evaluate` as frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_PARTS = ("metrics", "confusion", "gene_sets")


def evaluation(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    key: str = _keys.EVALUATION,
    part: str = "metrics",
) -> pd.DataFrame:
    """Read what :func:`ghistpy.tl.evaluate` stored in a predicted table.

    Parameters
    ----------
    adata_or_sdata
        The slide, or the predicted table itself.
    table_key
        Predicted table of the slide (``"insilico_spots"`` for spots).
    key
        Key that ``evaluate`` wrote (its ``key_added``).
    part
        ``"metrics"``: level, name, method, source, metric, value, n. ``"confusion"``: measured,
        predicted, n. ``"gene_sets"``: gene_set, gene.

    Returns
    -------
    pandas.DataFrame
        A copy; ``frame.attrs["notes"]`` is a dict of what was paired, left out and chosen.

    Raises
    ------
    ValueError
        There is no such table, evaluation or part; the message says what there is.

    Examples
    --------
    The best prediction that the pixels of a simulated slide allow:

    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=12)
    >>> measured = sdata["measured"]
    >>> sdata["insilico"] = gp.io.make_table(
    ...     measured.layers["attainable"],
    ...     measured.var_names,
    ...     region="nuclei",
    ...     instance_key="cell_id",
    ...     ids=measured.obs["cell_id"],
    ...     obs={"cell_type": measured.obs["cell_type"]},
    ...     obsm={"spatial": measured.obsm["spatial"]},
    ...     uns={"ghistpy": {"units": "log1p(expected count)"}},
    ... )
    >>> gp.tl.evaluate(sdata, baselines=("type_mean",))
    >>> frame = gp.get.evaluation(sdata).query("level == 'gene' and metric == 'rmse'")
    >>> sorted(frame.pivot(index="name", columns="method", values="value").columns)
    ['model', 'oracle_type_mean', 'type_mean']
    """
    table, where = adata_or_sdata, "the table"
    if hasattr(adata_or_sdata, "tables"):
        if table_key not in adata_or_sdata.tables:
            raise ValueError(f"table_key={table_key!r} is not among the tables {list(adata_or_sdata.tables)}")
        table, where = adata_or_sdata.tables[table_key], f"table_key={table_key!r}"
    stored: Mapping[str, Any] = table.uns.get(_keys.UNS, {})
    found = [k for k, v in stored.items() if isinstance(v, Mapping) and "metrics" in v]
    if key not in found:
        raise ValueError(f"key={key!r}: {where} holds no such evaluation (there are {found}); run tl.evaluate first")
    if part not in _PARTS:
        raise ValueError(f"part={part!r} is unknown; there are {list(_PARTS)}")
    notes = json.loads(stored[key]["notes"])
    if part not in stored[key]:
        raise ValueError(
            f"part={part!r} is absent from {where}: cell types {notes.get('cell_types', 'were not compared')}"
        )
    frame = stored[key][part].reset_index(drop=True).copy()
    frame.attrs["notes"] = notes
    return frame
