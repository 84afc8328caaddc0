"""Plain values in one HDF5 file: what a function returned, read back as it was, with nothing in it that could run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_TREE = "tree"


def write_plain(path: Path, value: Any) -> None:
    """Write a value that is made of plain parts.

    Parts are None, bool, int, float, str, numpy scalars and arrays, scipy sparse matrices, pandas Series and
    DataFrames (with ``attrs``; no MultiIndex), AnnData, and lists, tuples and dicts (of text to parts) of them.

    Raises
    ------
    TypeError
        A part of another type, named by its place.
    """
    import h5py

    with h5py.File(path, "w") as file:
        tree = _take_apart(value, file, "result")
        file.create_dataset(_TREE, data=json.dumps(tree))


def read_plain(path: Path) -> Any:
    """The value that :func:`write_plain` wrote.

    Raises
    ------
    OSError, KeyError, ValueError
        No such file, or one that was not written whole.
    """
    import h5py

    with h5py.File(path, "r") as file:
        return _put_together(json.loads(file[_TREE].asstr()[()]), file)


def _take_apart(value: Any, file: Any, place: str) -> Any:
    """The value as JSON; arrays and tables go into the file and leave their number."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        items = [_take_apart(item, file, f"{place}[{i}]") for i, item in enumerate(value)]
        return {"kind": type(value).__name__, "items": items}
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise TypeError(f"{place}: keys of a dict have to be text, got {list(value)[:3]}")
        return {"kind": "dict", "items": {k: _take_apart(v, file, f"{place}[{k!r}]") for k, v in value.items()}}
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, np.ma.MaskedArray):
        return _array(np.asarray(value), file, place) | {"scalar": isinstance(value, np.generic)}
    if isinstance(value, pd.Series):
        name = _take_apart(value.name, file, f"{place}.name")
        return {"kind": "series", "name": name, "frame": _frame(value.to_frame("values"), file, place)}
    if isinstance(value, pd.DataFrame):
        return _frame(value, file, place)
    if isinstance(value, AnnData) or sparse.issparse(value):
        return {"kind": "element", "class": type(value).__name__, "element": _element(value, file, place)}
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}; a result can be kept when it is made of "
        "None, numbers, text, lists, tuples, dicts, arrays, frames and AnnData"
    )


def _frame(frame: pd.DataFrame, file: Any, place: str) -> dict[str, Any]:
    """Column by column, since a container of files takes fewer kinds of columns than pandas has."""
    parts = [_column(frame.iloc[:, i], file, f"{place}[{name!r}]") for i, name in enumerate(frame.columns)]
    return {
        "kind": "frame",
        "columns": _column(frame.columns.to_series(), file, f"{place}.columns"),
        "names": _take_apart([frame.columns.name, frame.index.name], file, f"{place}.index.name"),
        "index": _column(frame.index.to_series(), file, f"{place}.index"),
        "parts": parts,
        "attrs": _take_apart(dict(frame.attrs), file, f"{place}.attrs"),
    }


def _column(column: pd.Series, file: Any, place: str) -> dict[str, Any]:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = _column(column.cat.categories.to_series(), file, f"{place}.categories")
        codes = _array(column.cat.codes.to_numpy(), file, place)
        return {"kind": "categorical", "codes": codes, "categories": categories, "ordered": bool(column.cat.ordered)}
    if isinstance(column.dtype, np.dtype) and column.dtype != object:
        return _array(column.to_numpy(), file, place)
    missing = column.isna().to_numpy()
    keeps_none = column.dtype == object
    items = [None if gone and not keeps_none else v for v, gone in zip(column.tolist(), missing, strict=True)]
    bad = next((v for v in items if v is not None and type(v) not in (bool, int, float, str)), None)
    if bad is not None:
        raise TypeError(f"{place} is a column of {type(bad).__qualname__}, which cannot be kept")
    return {"kind": "items", "items": items, "dtype": str(column.dtype)}


def _array(value: np.ndarray, file: Any, place: str) -> dict[str, Any]:
    key = str(len(file))
    if value.dtype.kind in "biufc":
        file.create_dataset(key, data=value)
        return {"kind": "array", "element": key}
    if value.dtype.kind in "mM":
        file.create_dataset(key, data=value.view(np.int64))
        return {"kind": "array", "element": key, "dtype": value.dtype.str}
    if value.dtype.kind == "U" or (value.dtype == object and all(type(v) is str for v in value.ravel())):
        text = [str(v) for v in value.ravel()]
        return {"kind": "text", "items": text, "shape": list(value.shape), "dtype": value.dtype.str}
    raise TypeError(f"{place} is an array of {value.dtype}, of which only text can be kept")


def _element(value: Any, file: Any, place: str) -> str:
    from anndata.io import write_elem

    key = str(len(file))
    try:
        write_elem(file, key, value)
    except Exception as error:  # what the registry of anndata raises has no public class
        raise TypeError(f"{place} is a {type(value).__name__} that no file takes: {error}") from error
    return key


def _put_together(tree: Any, file: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    kind = tree["kind"]
    if kind == "dict":
        return {key: _put_together(item, file) for key, item in tree["items"].items()}
    if kind in ("list", "tuple"):
        items = [_put_together(item, file) for item in tree["items"]]
        return tuple(items) if kind == "tuple" else items
    if kind in ("array", "text"):
        value = _array_back(tree, file)
        return value[()] if tree["scalar"] else value
    if kind == "frame":
        return _frame_back(tree, file)
    if kind == "series":
        return _frame_back(tree["frame"], file)["values"].rename(_put_together(tree["name"], file))
    return _element_back(tree, file)


def _frame_back(tree: dict[str, Any], file: Any) -> pd.DataFrame:
    import pandas as pd

    index = pd.Index(_column_back(tree["index"], file))
    columns = [pd.Series(_column_back(part, file), index=index) for part in tree["parts"]]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    frame.columns = pd.Index(_column_back(tree["columns"], file))
    frame.columns.name, frame.index.name = _put_together(tree["names"], file)
    frame.attrs = _put_together(tree["attrs"], file)
    return frame


def _column_back(tree: dict[str, Any], file: Any) -> Any:
    import pandas as pd

    if tree["kind"] == "categorical":
        categories = pd.Index(_column_back(tree["categories"], file))
        return pd.Categorical.from_codes(_array_back(tree["codes"], file), categories, ordered=tree["ordered"])
    if tree["kind"] == "items":
        return pd.array(tree["items"], dtype=tree["dtype"]) if tree["dtype"] != "object" else _objects(tree["items"])
    return _array_back(tree, file)


def _objects(items: list[Any]) -> np.ndarray:
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def _array_back(tree: dict[str, Any], file: Any) -> np.ndarray:
    if tree["kind"] == "text":
        return np.array(tree["items"], dtype=tree["dtype"]).reshape(tree["shape"])
    value = np.asarray(file[tree["element"]][()])
    return value.view(tree["dtype"]) if "dtype" in tree else value


def _element_back(tree: dict[str, Any], file: Any) -> Any:
    from anndata.io import read_elem
    from scipy import sparse

    value = read_elem(file[tree["element"]])
    made = tree["class"]
    return getattr(sparse, made)(value) if sparse.issparse(value) and type(value).__name__ != made else value
