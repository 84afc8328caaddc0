"""The file layout of the published program into a SpatialData."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

    from ghistpy.geometry.nuclei import Nuclei

logger = logging.getLogger("ghistpy")

# the published program trains on nuclei of 10 px and more
MIN_SIZE_PX = 10


def read_ghist(
    histology: str | Path,
    nuclei: str | Path | np.ndarray,
    expression: str | Path | pd.DataFrame,
    cell_types: str | Path | pd.DataFrame | None = None,
    sizes: str | Path | pd.DataFrame | None = None,
    *,
    mpp: float | None,
    cell_type_names: Sequence[str] | None = None,
    min_size_px: int = MIN_SIZE_PX,
) -> SpatialData:
    """Read the files that the published GHIST program trains on.

    Parameters
    ----------
    histology
        H&E image, any format of :func:`read_slide`.
    nuclei
        Label TIFF (or array) of the same size: the value of a pixel is the id of its nucleus, 0 = background.
    expression
        CSV of raw counts, cells x genes: the ids as index or in a column ``cell_id``.
    cell_types
        CSV with ``c_ids`` and ``ct_idx`` (index of the type from 0), or the HDF5 file with ``ids`` and ``data``.
    sizes
        CSV with the id first and a column ``sizes`` or ``orig_size``, px.
    mpp
        µm per pixel; None takes it from the histology file.
    cell_type_names
        Names in the order of ``ct_idx``; default ``"type_0"``, ``"type_1"`` ...
    min_size_px
        Cells with a smaller size in ``sizes`` are left out, as the published program does. 0 keeps all.

    Returns
    -------
    SpatialData
        Image ``he``, labels ``nuclei`` and table ``measured``, linked to them:

        ================ ===== =========== ==================================================
        key              slot  dtype       meaning
        ================ ===== =========== ==================================================
        X                X     float32 CSR raw counts
        cell_id          obs   int64       id in the labels
        cell_type        obs   category    its type, missing where the file has none
        nucleus_size_px  obs   float64     as in ``sizes``
        area_um2         obs   float64     area in the labels
        total            obs   float64     counts over all genes
        spatial          obsm  float64     centroid x, y in µm
        ================ ===== =========== ==================================================

        ``attrs["ghistpy"]["join"]``: how many cells were used, and how many were left out for which reason.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        Labels of another size than the image, or no integers; values that are no counts; ids or genes that
        repeat; types without a name; most cells without a nucleus.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pandas as pd, tifffile
    >>> import ghistpy as gp
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "he.tif"
    >>> tifffile.imwrite(path, np.full((32, 32, 3), 220, np.uint8), photometric="rgb")
    >>> labels = np.zeros((32, 32), np.int32)
    >>> labels[4:9, 4:9] = 7
    >>> counts = pd.DataFrame({"ERBB2": [3]}, index=[7])
    >>> gp.io.read_ghist(path, labels, counts, mpp=0.5)["measured"].obs["cell_id"].tolist()
    [7]
    """
    from ghistpy.geometry import MemorySource, find_nuclei
    from ghistpy.io.elements import labels_element
    from ghistpy.io.resolution import get_mpp
    from ghistpy.io.slide import read_slide
    from ghistpy.io.tables import make_table

    sdata = read_slide(histology, mpp=mpp)
    scale = get_mpp(sdata)
    labels = _labels(nuclei, _image_shape(sdata))
    ids, genes, counts = _expression(expression)
    found = find_nuclei(MemorySource(labels))
    keep, report = _join(ids, found, size := _sizes(sizes, ids), min_size_px)
    ids, counts = ids[keep], counts[keep]
    row = found.index_of(ids)
    obs: dict[str, Any] = {
        _keys.AREA_UM2: found.area_px[row] * scale**2,
        _keys.TOTAL: np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(),
    }
    if cell_types is not None:
        obs[_keys.CELL_TYPE], report["without_type"] = _types(cell_types, ids, cell_type_names)
    if size is not None:
        obs["nucleus_size_px"] = size[keep]
    sdata.labels[_keys.LABELS] = labels_element(labels, scale)
    sdata.tables[_keys.MEASURED] = make_table(
        counts,
        genes,
        region=_keys.LABELS,
        instance_key=_keys.CELL_ID,
        ids=ids,
        obs=obs,
        obsm={_keys.SPATIAL: found.centroid_px[row][:, ::-1] * scale},
        uns={_keys.UNS: {"units": _keys.UNITS_COUNTS}},
    )
    sdata.attrs[_keys.ATTRS]["join"] = report
    left_out = {k: n for k, n in report.items() if n and k != "cells"}
    if left_out:
        logger.warning("read_ghist: %d cells; of the others or without: %s", report["cells"], left_out)
    return sdata


def _image_shape(sdata: SpatialData) -> tuple[int, int]:
    from ghistpy.io.sources import open_image

    return tuple(open_image(sdata).shape[-2:])


def _labels(nuclei: Any, shape: tuple[int, int]) -> np.ndarray:
    import tifffile

    name = "nuclei"
    if isinstance(nuclei, (str, Path)):
        path = Path(nuclei)
        name = f"nuclei={str(path)!r}"
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no such file")
        try:
            nuclei = tifffile.imread(path)
        except (tifffile.TiffFileError, ValueError, OSError) as error:
            raise ValueError(f"{name}: truncated, or not a TIFF ({error})") from error
    labels = np.squeeze(np.asarray(nuclei))
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected one plane of integer labels, got shape {labels.shape}, dtype {labels.dtype}; floats "
            "merge "
            "ids above 2**24"
        )
    if labels.shape != tuple(shape):
        hint = "; they are transposed" if labels.shape == tuple(shape)[::-1] else ""
        raise ValueError(f"{name}: labels of {labels.shape} (y, x) do not fit the image of {tuple(shape)}{hint}")
    return labels


def _frame(source: Any, argument: str) -> pd.DataFrame:
    import pandas as pd

    from ghistpy.io.spots import _read_frame

    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, (str, Path)):
        return _read_frame(Path(source), argument, index_col=0)
    raise TypeError(f"{argument}: expected a path or a DataFrame, got {type(source).__name__}")


def _integer_ids(values: Any, argument: str) -> np.ndarray:
    """Ids (n,) int64, each once."""
    from ghistpy.io.tables import check_ids

    array = np.asarray(values)
    if array.dtype.kind == "f" and len(array) and (array == np.rint(array)).all() and np.abs(array).max() < 2**53:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{argument}: ids must be the integers of the label image, got such as {array[:3].tolist()}")
    return check_ids(array, argument)


def _expression(expression: Any) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    from ghistpy.io.spots import _read_counts

    frame = _frame(expression, "expression")
    ids = _integer_ids(frame["cell_id"] if "cell_id" in frame else frame.index, "expression")
    values = frame.drop(columns="cell_id", errors="ignore")
    try:
        _, genes, counts = _read_counts(values.set_axis(range(len(values)), axis=0))
    except ValueError as error:
        raise ValueError(f"expression: {error}") from error
    return ids, genes, counts


def _sizes(sizes: Any, ids: np.ndarray) -> np.ndarray | None:
    if sizes is None:
        return None
    frame = _frame(sizes, "sizes")
    column = next((c for c in ("sizes", "orig_size") if c in frame), None)
    if column is None:
        raise ValueError(f"sizes: no column 'sizes' or 'orig_size'; there are {[str(c) for c in frame.columns]}")
    frame = frame.set_axis(_integer_ids(frame.index, "sizes"), axis=0)
    return frame[column].reindex(ids).to_numpy(dtype=np.float64)


def _join(
    ids: np.ndarray, nuclei: Nuclei, size: np.ndarray | None, min_size_px: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Rows that are used, and what was left out."""
    labelled = nuclei.index_of(ids) >= 0
    if labelled.mean() < 0.5:
        raise ValueError(
            f"nuclei: {int((~labelled).sum())} of {len(ids)} cells of expression have no label; ids of the table are "
            "such "
            f"as {ids[:3].tolist()}, of the labels {nuclei.ids[:3].tolist()}: do the two belong together?"
        )
    small = np.zeros(len(ids), dtype=bool) if size is None else ~(size >= min_size_px) & (min_size_px > 0)
    keep = labelled & ~small
    report = {
        "cells": int(keep.sum()),
        "without_nucleus": int((~labelled).sum()),
        "too_small": int((labelled & small).sum()),
        "nuclei_without_expression": int(len(nuclei) - labelled.sum()),
    }
    if not report["cells"]:
        raise ValueError(f"sizes: no cell of min_size_px={min_size_px} px or more is left; lower it")
    return keep, report


def _types(cell_types: Any, ids: np.ndarray, names: Sequence[str] | None) -> tuple[Any, int]:
    """Type of every cell as a categorical, and how many have none."""
    import pandas as pd

    if isinstance(cell_types, (str, Path)) and Path(cell_types).suffix in (".h5", ".hdf5"):
        cell_types = _read_h5_types(Path(cell_types))
    elif isinstance(cell_types, (str, Path)):
        cell_types = _frame(cell_types, "cell_types").reset_index()
    missing = {"c_ids", "ct_idx"} - set(cell_types.columns)
    if missing:
        raise ValueError(f"cell_types: no column {sorted(missing)}; there are {[str(c) for c in cell_types.columns]}")
    index = _integer_ids(cell_types["c_ids"], "cell_types")
    code = pd.Series(cell_types["ct_idx"].to_numpy(dtype=np.int64), index=index)
    # below 0: the program's mark of a cell without a type
    known = code[code >= 0]
    if names is None:
        names = [f"type_{i}" for i in range(int(known.max()) + 1)] if len(known) else []
    elif len(known) and known.max() >= len(names):
        raise ValueError(
            f"cell_type_names: {len(names)} names, but cell_types has indices up to {known.max()}; give all of them"
        )
    own = known.reindex(ids)
    codes = own.fillna(-1).to_numpy(dtype=np.int64)
    return pd.Categorical.from_codes(codes, categories=[str(n) for n in names]), int((codes < 0).sum())


def _read_h5_types(path: Path) -> pd.DataFrame:
    import h5py
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"cell_types={str(path)!r}: there is no such file")
    with h5py.File(path, "r") as file:
        missing = {"data", "ids"} - set(file)
        if missing:
            raise ValueError(f"cell_types={str(path)!r} has no {sorted(missing)}; there are {sorted(file)}")
        return pd.DataFrame({"c_ids": file["ids"][...].astype(np.int64), "ct_idx": file["data"][...].astype(np.int64)})
