"""Plain values in one HDF5 file: what a function returned, read back as it was, with nothing in it that could run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_TREE = "tree"


def write_plain(path: Path, value: Any) -> None:
    """Write a value that is made of plain parts.

    Parts are None, bool, int, float, str, numpy scalars and arrays, scipy sparse matrices, pandas Series and
    DataFrames, AnnData, and lists, tuples and dicts (of text to parts) of them.

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
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value), file, place) | {"scalar": isinstance(value, np.generic)}
    if isinstance(value, pd.Series):
        # a frame keeps types and index; its name may be anything or nothing
        name = _take_apart(value.name, file, f"{place}.name")
        return {"kind": "series", "name": name, "element": _element(value.to_frame("values"), file)}
    if isinstance(value, pd.DataFrame | AnnData) or sparse.issparse(value):
        return {"kind": "element", "class": type(value).__name__, "element": _element(value, file)}
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}; a result can be kept when it is made of "
        "None, numbers, text, lists, tuples, dicts, arrays, frames and AnnData"
    )


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


def _element(value: Any, file: Any) -> str:
    from anndata.io import write_elem

    key = str(len(file))
    write_elem(file, key, value)
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
    return _element_back(tree, file)


def _array_back(tree: dict[str, Any], file: Any) -> np.ndarray:
    if tree["kind"] == "text":
        return np.array(tree["items"], dtype=tree["dtype"]).reshape(tree["shape"])
    value = np.asarray(file[tree["element"]][()])
    return value.view(tree["dtype"]) if "dtype" in tree else value


def _element_back(tree: dict[str, Any], file: Any) -> Any:
    from anndata.io import read_elem
    from scipy import sparse

    value = read_elem(file[tree["element"]])
    if tree["kind"] == "series":
        return value["values"].rename(_put_together(tree["name"], file))
    made = tree["class"]
    return getattr(sparse, made)(value) if sparse.issparse(value) and type(value).__name__ != made else value
