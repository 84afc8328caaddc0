"""Results on disk, one file per sample and parameter set."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import time
import types
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ghistpy.io._plain import read_plain, write_plain

logger = logging.getLogger("ghistpy")

_PART = ".part-"
_STALE = 24 * 3600  # seconds after which nobody is writing a part any more
# what is no plain value raises a TypeError; the others come from HDF5 and from disks
_CANNOT_BE_KEPT = (TypeError, ValueError, RuntimeError, LookupError, MemoryError, OSError)


def key_of(function: Callable, params: Mapping[str, Any], name: str) -> str | None:
    """Name of a computation: the function with its code and parameters; None when it has no stable one."""
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
    """Plain values that tell functions apart: name, code, defaults, what they close over, bound arguments.

    A function of a notebook pickles together with the modules that it uses, which have no stable form; its
    code has one.
    """
    if isinstance(function, functools.partial):
        return [_identity(function.func), list(map(_identity, function.args)), function.keywords]
    if not isinstance(function, types.FunctionType):
        return function
    cells = [_identity(cell.cell_contents) for cell in function.__closure__ or ()]
    names, code = [function.__module__, function.__qualname__], _code(function.__code__)
    return [names, code, cells, function.__defaults__, function.__kwdefaults__]


def _code(code: types.CodeType) -> list[Any]:
    """What code does: two functions of one line have the same source, but not the same instructions."""
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, list(map(_constant, code.co_consts))]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    # the order of a set changes from one process to the next
    return ["set", *sorted(map(repr, value))] if isinstance(value, frozenset) else value


def stamp(path: Path) -> str | None:
    """What changes when a slide changes: path, sizes and times of its file, or of all files of its store.

    None when it is not there (any more).
    """
    try:
        if not path.is_dir():
            found = path.stat()
            return f"{path}|{found.st_size}|{found.st_mtime_ns}"
        digest = hashlib.sha256()
        for folder, folders, files in os.walk(path):
            folders.sort()  # the order in which os.walk goes on
            for name in sorted(files):
                found = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name}|{found.st_size}|{found.st_mtime_ns}\n".encode())
    except FileNotFoundError:
        return None
    return f"{path}|{digest.hexdigest()}"


class Cache:
    """A folder of results as plain values; what cannot be read again is computed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, computation: str, sample: str, stamped: str, mpp: float | None = None) -> Path:
        """File of one result, by sample, stamp of the slide and µm/px that the manifest gives it."""
        digest = hashlib.sha256(f"{sample}\n{stamped}\n{mpp}".encode()).hexdigest()[:16]
        readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in sample)[:60]
        return self.folder / computation / f"{readable}-{digest}.h5"

    def load(self, path: Path) -> tuple[bool, Any]:
        """Whether there is such a result, and the result."""
        if not path.is_file():
            return False, None
        try:
            return True, read_plain(path)
        except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
            logger.warning("%s cannot be read (%s) and is computed again", path, error)
            return False, None

    def store(self, path: Path, value: Any) -> None:
        """Write a result in one step; one that is not plain or cannot be written is not kept, and said so."""
        temporary = path.with_name(f"{_PART}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_plain(temporary, value)
            os.replace(temporary, path)
        except _CANNOT_BE_KEPT as error:
            logger.warning("result of %s cannot be kept: %s: %s", path.name, type(error).__name__, error)
            if temporary.exists():
                temporary.unlink()

    def sweep(self, computation: str) -> None:
        """Remove what processes left that were killed while they wrote."""
        for part in (self.folder / computation).glob(f"{_PART}*"):
            try:
                if time.time() - part.stat().st_mtime > _STALE:
                    part.unlink()
            except OSError as error:  # it is gone, or belongs to somebody else
                logger.info("%s is left: %s", part, error)
