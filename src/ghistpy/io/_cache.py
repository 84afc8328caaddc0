"""Results on disk, one file per sample and parameter set."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import pickle
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("ghistpy")

_MARKERS = ("zarr.json", ".zmetadata", ".zgroup")  # replaced with every table of a store


def key_of(function: Callable, params: Mapping[str, Any], name: str) -> str | None:
    """Name of a computation: the function with its source and parameters; None when it has no stable one."""
    from dask.base import tokenize
    from dask.tokenize import TokenizationError

    from ghistpy import __version__

    try:
        token = tokenize(_identity(function), dict(params), __version__, ensure_deterministic=True)
    except (TokenizationError, TypeError, ValueError, pickle.PicklingError, AttributeError) as error:
        logger.warning("cohort.map: %s has no stable identity (%s), so its results are not kept", name, error)
        return None
    return f"{name}-{token[:16]}"


def _identity(function: Any) -> Any:
    """Plain values that tell functions apart: name, source, defaults, what they close over, bound arguments.

    A function of a notebook pickles together with the modules that it uses, which have no stable form; its
    source has one.
    """
    if isinstance(function, functools.partial):
        return [_identity(function.func), list(map(_identity, function.args)), function.keywords]
    if not isinstance(function, types.FunctionType):
        return function
    try:
        source: Any = inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt
        source = [function.__code__.co_code, repr(function.__code__.co_consts), function.__code__.co_names]
    cells = [_identity(cell.cell_contents) for cell in function.__closure__ or ()]
    return [function.__module__, function.__qualname__, source, cells, function.__defaults__, function.__kwdefaults__]


def stamp(path: Path | None) -> str:
    """What changes when a slide changes: path, size and time of its file or of the metadata of its store."""
    if path is None:
        return ""
    marker = next((path / m for m in _MARKERS if (path / m).is_file()), path)
    found = marker.stat()
    return f"{path}|{found.st_size}|{found.st_mtime_ns}"


class Cache:
    """A folder of pickled results; what cannot be read again is computed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, computation: str, sample: str, stamped: str) -> Path:
        """File of one result."""
        digest = hashlib.sha256(f"{sample}\n{stamped}".encode()).hexdigest()[:16]
        readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in sample)[:60]
        return self.folder / computation / f"{readable}-{digest}.pickle"

    def load(self, path: Path) -> tuple[bool, Any]:
        """Whether there is such a result, and the result."""
        if not path.is_file():
            return False, None
        try:
            with path.open("rb") as file:
                return True, pickle.load(file)
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, ValueError) as error:
            logger.warning("%s cannot be read (%s) and is computed again", path, error)
            return False, None

    def store(self, path: Path, value: Any) -> None:
        """Write a result in one step; a result that cannot be pickled is not kept, and said so."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
            os.replace(temporary, path)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            logger.warning("result of %s cannot be kept: %s", path.name, error)
        finally:
            Path(temporary).unlink(missing_ok=True)
