"""Tables linked to nuclei or spots: assembling, checking and writing them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

_LARGEST_ID = np.iinfo(np.int64).max


def make_table(
    X: Any,
    genes: Any,
    *,
    region: str,
    instance_key: str,
    ids: Any,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, np.ndarray] | None = None,
    var: Mapping[str, Any] | pd.DataFrame | None = None,
    uns: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> AnnData:
    """Assemble a table that annotates the nuclei of a label image or the spots of a shapes element.

    Parameters
    ----------
    X
        (n, G) array, sparse matrix or dask array: one row per nucleus or spot.
    genes
        (G,) gene names; become ``var_names``.
    region
        Name of the element that the rows annotate, such as ``"nuclei"``.
    instance_key
        Column of ``obs`` that holds the ids: ``"cell_id"`` or ``"spot_id"``.
    ids
        (n,) integer ids up to 2**63 - 1, or strings (spots only). Kept as they are.
    obs
        Further columns of ``obs``, name -> (n,) array.
    obsm
        Name -> (n, k) array.
    var
        Columns of ``var``, name -> (G,) array.
    uns
        Unstructured annotation. Lists and nested parameters are best stored as one JSON string.
    layers
        Name -> (n, G) array.

    Returns
    -------
    AnnData
        A table that passes ``spatialdata.models.TableModel.validate``, with zero rows as well.

    Raises
    ------
    ValueError
        Lengths that disagree, ids that repeat, are not integers or strings or exceed 2**63 - 1, gene
        names that repeat, keys that a store cannot hold.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.io import make_table
    >>> table = make_table(np.zeros((2, 1)), ["ERBB2"], region="nuclei", instance_key="cell_id", ids=[7, 9])
    >>> table.obs["cell_id"].tolist()
    [7, 9]
    """
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    ids = check_ids(ids, instance_key)
    names = pd.Index(np.asarray(genes, dtype=str).astype(object))
    if X.shape != (len(ids), len(names)):
        raise ValueError(f"X has shape {X.shape}, expected {(len(ids), len(names))} from ids and genes")
    if names.has_duplicates:
        raise ValueError(f"genes: names repeat: {names[names.duplicated()].unique()[:5].tolist()}; make them unique")
    index = pd.Index([str(i) for i in ids.tolist()], dtype=object)
    frame = pd.DataFrame({instance_key: ids}, index=index)
    # a categorical of zero rows must have no categories: TableModel compares them with the regions
    frame[_keys.REGION] = pd.Categorical([region] * len(ids), categories=[region] if len(ids) else [])
    for column, values in (obs or {}).items():
        if len(values) != len(ids):
            raise ValueError(f"obs[{column!r}] has length {len(values)}, expected {len(ids)}")
        frame[column] = values.to_numpy() if isinstance(values, pd.Series) else values
    columns = {key: np.asarray(value) for key, value in (var if var is not None else {}).items()}
    table = AnnData(X=X, obs=frame, var=pd.DataFrame(columns, index=names))
    for key, value in (obsm or {}).items():
        table.obsm[key] = np.asarray(value)
    for key, value in (layers or {}).items():
        table.layers[key] = value
    table.uns.update(uns or {})
    table.uns[TableModel.ATTRS_KEY] = {
        "region": region if len(ids) else [],
        "region_key": _keys.REGION,
        "instance_key": instance_key,
    }
    check_storable(table)
    TableModel.validate(table)
    return table


def check_ids(ids: Any, argument: str) -> np.ndarray:
    """Ids as an int64 array, or as an object array of strings; each occurs once.

    Raises
    ------
    ValueError
        Floats, mixed types, repeated ids, or ids outside 0 .. 2**63 - 1.
    """
    values = np.asarray(ids)
    if values.ndim != 1:
        raise ValueError(f"{argument}: expected one id per row, got shape {values.shape}")
    if len(values) == 0:
        return values.astype(object) if values.dtype.kind in "OUS" else values.astype(np.int64)
    if values.dtype.kind in "iu":
        if int(values.max()) > _LARGEST_ID or int(values.min()) < 0:
            raise ValueError(f"{argument}: ids must lie in 0 .. 2**63 - 1, got {values.min()} .. {values.max()}")
        values = values.astype(np.int64)
    elif values.dtype.kind in "OUT" and all(isinstance(v, str) for v in values.tolist()):
        values = np.array([str(v) for v in values.tolist()], dtype=object)
    else:
        raise ValueError(
            f"{argument}: ids must be integers or strings, got dtype {values.dtype}; floats lose ids above 2**53"
        )
    unique, count = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        raise ValueError(f"{argument}: ids repeat: {unique[count > 1][:5].tolist()}; every row needs its own id")
    return values


def check_storable(table: AnnData) -> None:
    """Check that a zarr store can hold every column and key of a table.

    Raises
    ------
    ValueError
        A column or key is not a string or contains ``/``: names that come from data (genes, cell types)
        belong into values, not keys.
    """
    import pandas as pd

    def check(key: Any, where: str) -> None:
        if not isinstance(key, str) or "/" in key or key == "":
            raise ValueError(
                f"{where}: the key {key!r} cannot be stored (keys are non-empty strings without '/'); put names "
                "that come from data into values, for example the columns of a long table"
            )

    def walk(value: Any, where: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                check(key, where)
                walk(item, f"{where}[{key!r}]")
        elif isinstance(value, pd.DataFrame):
            for column in value.columns:
                check(column, f"columns of {where}")

    for frame, where in ((table.obs, "obs"), (table.var, "var")):
        walk(frame, where)
    for slot in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        walk(dict(getattr(table, slot)), slot)


def linked_to(table: AnnData) -> tuple[list[str], str, str] | None:
    """Regions, region key and instance key of a table, or None when it is not linked to an element."""
    attrs = table.uns.get("spatialdata_attrs")
    if not attrs or not attrs.get("instance_key"):
        return None
    region = attrs.get("region")
    regions = [] if region is None else [region] if isinstance(region, str) else [str(r) for r in region]
    return regions, attrs["region_key"], attrs["instance_key"]


def _check_link(sdata: SpatialData, name: str, table: AnnData) -> None:
    """Ids of a table must be able to meet the element that it names."""
    link = linked_to(table)
    if link is None:
        return
    regions, region_key, instance_key = link
    known = [*sdata.labels, *sdata.shapes, *sdata.points]
    for region in regions:
        if region not in known:
            raise ValueError(
                f"table {name!r} annotates region {region!r}, which this SpatialData lacks (labels, shapes and "
                f"points: {known}); add the element first"
            )
        ids = table.obs.loc[table.obs[region_key] == region, instance_key]
        ids = check_ids(ids.to_numpy(), f"obs[{instance_key!r}] of table {name!r}")
        if region in sdata.labels and ids.dtype == object and len(ids):
            raise ValueError(
                f"table {name!r}: obs[{instance_key!r}] holds strings such as {ids[0]!r} but annotates the labels "
                f"{region!r}, whose ids are integers: no row would ever match. Store the label values there and "
                f"the strings in obs[{_keys.ORIGINAL_ID!r}]"
            )


def store_path(sdata: SpatialData) -> Path | None:
    """Folder of the store that backs a SpatialData, or None when it lives in memory."""
    if not sdata.is_backed():
        return None
    path = Path(str(sdata.path))
    if not path.is_dir():
        raise ValueError(
            f"sdata.path={sdata.path!s} is not a folder on this machine; tables are replaced atomically in local "
            "stores only. Copy the store to a local disk, or set sdata.path = None to work in memory"
        )
    return path


def ensure_can_save(sdata: SpatialData, table_key: str) -> None:
    """Raise before a long computation when its table could not be written into the backing store.

    Parameters
    ----------
    sdata
        The slide; one in memory always passes.
    table_key
        Name of the table that is going to be written.

    Raises
    ------
    PermissionError
        The store or its folder is read-only.
    ValueError
        The name cannot be used for a table.
    """
    from ghistpy.io._store import ensure_writable

    _check_name(sdata, table_key)
    path = store_path(sdata)
    if path is not None:
        ensure_writable(path, f"table {table_key!r}")


def _check_name(sdata: SpatialData, name: str) -> None:
    from spatialdata._core.validation import check_valid_name

    try:
        check_valid_name(name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"table name {name!r} cannot be used: {error}") from error
    for kind in ("images", "labels", "shapes", "points"):
        if name in getattr(sdata, kind):
            raise ValueError(f"table name {name!r} is taken: there is an element of that name among the {kind}")


def write_table(sdata: SpatialData, name: str, adata: AnnData) -> None:
    """Set a table of a SpatialData, and replace it in the backing store when there is one.

    Parameters
    ----------
    sdata
        The slide, changed in place.
    name
        Name of the table; an existing one is replaced.
    adata
        The table, linked to an element of ``sdata`` or to none.

    Raises
    ------
    ValueError
        Keys that a store cannot hold, a region that is not there, string ids linked to labels.
    OSError
        The store cannot be written. It is then unchanged byte for byte; the table is set in memory
        nevertheless, so that the computation is not lost.

    Notes
    -----
    In a store the table is replaced in one step: a reader finds the old table or the new one. A reader
    that is inside the old table at that moment may fail and has to read again.
    """
    from spatialdata.models import TableModel

    _check_name(sdata, name)
    check_storable(adata)
    TableModel.validate(adata)
    _check_link(sdata, name, adata)
    path = store_path(sdata)
    sdata.tables[name] = adata
    if path is not None:
        from ghistpy.io._store import replace_table

        replace_table(path, name, adata)


def lazy_matrix(sdata: SpatialData, table_key: str) -> Any:
    """``X`` of a dense table in the backing store as a dask array; None when there is no store."""
    path = store_path(sdata)
    if path is None:
        return None
    import dask.array as da
    import zarr

    return da.from_zarr(zarr.open_array(path / "tables" / table_key / "X", mode="r"))


def save(sdata: SpatialData, table_key: str) -> None:
    """Write one table into the store that backs a SpatialData, atomically.

    The table in the store is complete at every moment: the old one until the swap, the new one after it.
    Nothing else in the store is touched but the consolidated metadata.

    Parameters
    ----------
    sdata
        A SpatialData that was read from or written to a zarr store.
    table_key
        Name of the table in memory.

    Raises
    ------
    ValueError
        No such table, the SpatialData is not backed, or the table cannot be stored as it is.
    OSError
        Read-only store, no space left, ...; the store is unchanged.

    Examples
    --------
    >>> import tempfile, pathlib, spatialdata
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=10)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "slide.zarr"
    >>> sdata.write(path)
    >>> sdata.tables["measured"].obs["checked"] = True
    >>> gp.io.save(sdata, "measured")
    >>> bool(spatialdata.read_zarr(path).tables["measured"].obs["checked"].all())
    True
    """
    from ghistpy.io.resolution import get_element

    table = get_element(sdata, "tables", table_key, "table_key")
    if store_path(sdata) is None:
        raise ValueError(
            f"table_key={table_key!r}: this SpatialData has no store; write it first with sdata.write(path)"
        )
    write_table(sdata, table_key, table)
