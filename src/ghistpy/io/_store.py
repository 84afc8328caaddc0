"""Atomic replacement of one table in a SpatialData store on disk.

The table is written in full into a staging folder beside the store, swapped in by one rename, and
the consolidated metadata of the store is renewed. A marker in the staging folder, written just
before the swap, lets the next call finish what a killed process left half done; a staging folder
without it is a write that never reached the store, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ghistpy._files import exchange

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("ghistpy")

MARKER = "swap.json"
# files at the root of a store that a renewed consolidation may touch (zarr v3, then zarr v2)
_ROOT_METADATA = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs")


def staging_path(store: Path) -> Path:
    """The staging folder of a store: beside it, hence on the same file system."""
    return store.with_name(store.name + ".staging")


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock: two writers of one store take turns (POSIX; elsewhere a no-op).

    The lock is on the folder itself, so that nothing is left behind and a killed process releases it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    descriptor = os.open(store, os.O_RDONLY)
    try:
        # a network file system may offer no locks; the swap stays atomic for one writer
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ensure_writable(store: Path, what: str) -> None:
    """Raise now rather than after hours when ``store`` or the folder that holds it cannot be written."""
    for folder in (store, store.parent):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(
                errno.EACCES,
                f"{what} cannot be written into {store}: {folder} is read-only; make it writable, or work on a "
                "copy (sdata.write(new_path))",
            )


def is_store(path: Path) -> bool:
    """Whether a folder is the root of a zarr hierarchy."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def _is_consolidated(store: Path) -> bool:
    if (store / ".zmetadata").is_file():
        return True
    root = store / "zarr.json"
    return root.is_file() and bool(json.loads(root.read_text()).get("consolidated_metadata"))


def consolidate(store: Path) -> None:
    """Renew the consolidated metadata, by which spatialdata lists the tables of a store."""
    import zarr

    if not _is_consolidated(store):
        return
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        # parquet files of shapes and points are no zarr nodes, and consolidation is not in zarr v3 yet:
        # both are how spatialdata lays out a store
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group.store)
    group.store.close()


def _write_staging(store: Path, name: str, table: AnnData) -> Path:
    """Write the table alone into a fresh staging store of the same zarr version."""
    import spatialdata as sd
    from spatialdata._io.format import SpatialDataContainerFormatV01

    staging = staging_path(store)
    # a store written by spatialdata < 0.5 is zarr v2 throughout
    formats = None if (store / "zarr.json").is_file() else [SpatialDataContainerFormatV01()]
    with warnings.catch_warnings():
        # in the staging store the table stands alone, without the element that it annotates
        warnings.filterwarnings("ignore", message="The table is annotating")
        warnings.filterwarnings("ignore", message="zarr v3 autosharding will be the default")
        alone = sd.SpatialData(tables={name: table})
        alone.write(staging, sdata_formats=formats, consolidate_metadata=False)
    return staging


def _mark(staging: Path, name: str) -> None:
    with open(staging / MARKER, "w") as file:
        json.dump({"table": name}, file)
        file.flush()
        os.fsync(file.fileno())


def _swap_in(store: Path, name: str) -> None:
    """Bring the staged table into the store; afterwards the staging folder holds the old one, if any."""
    staging = staging_path(store)
    new, current = staging / "tables" / name, store / "tables" / name
    if not (store / "tables").exists():
        os.rename(staging / "tables", store / "tables")
    elif not current.exists():
        os.rename(new, current)
    elif not exchange(new, current):
        # no exchange here: between these two renames the table is absent, and a process killed there
        # leaves the marker, by which the next call moves the staged table in
        os.rename(current, staging / "previous")
        os.rename(new, current)


def _swap_back(store: Path, name: str, had_tables: bool, had_table: bool) -> None:
    staging = staging_path(store)
    new, current, previous = staging / "tables" / name, store / "tables" / name, staging / "previous"
    if not had_tables:
        if (store / "tables").exists():
            os.rename(store / "tables", staging / "tables")
    elif not had_table:
        if current.exists():
            os.rename(current, new)
    elif previous.exists():
        if current.exists():
            os.rename(current, new)
        os.rename(previous, current)
    elif not exchange(new, current):
        raise RuntimeError(f"{current} holds the new table and could not be swapped back")


def replace_table(store: Path, name: str, table: AnnData) -> None:
    """Write ``table`` as ``tables/name`` of the store, in full or not at all.

    Raises
    ------
    OSError
        Read-only store, no space, ...: the store is as it was before, byte for byte.
    """
    ensure_writable(store, f"table {name!r}")
    with locked(store):
        _recover(store)
        staging = staging_path(store)
        root = {file: (store / file).read_bytes() for file in _ROOT_METADATA if (store / file).is_file()}
        had_tables, had_table = (store / "tables").exists(), (store / "tables" / name).exists()
        swapped = False
        try:
            _write_staging(store, name, table)
            _mark(staging, name)
            swapped = True
            _swap_in(store, name)
            consolidate(store)
        except BaseException as error:
            if swapped:
                _swap_back(store, name, had_tables, had_table)
                _restore(store, root)
            _discard(staging)
            if isinstance(error, OSError):
                raise OSError(
                    error.errno,
                    f"table {name!r} could not be written into {store} ({error.strerror or error}); the store is "
                    "unchanged. Free space or make it writable and call io.save again, or write the slide "
                    "elsewhere with sdata.write(new_path)",
                ) from error
            raise
        _discard(staging)


def _restore(store: Path, root: dict[str, bytes]) -> None:
    for file, content in root.items():
        if (store / file).read_bytes() != content:
            (store / file).write_bytes(content)


def _discard(staging: Path) -> None:
    # after a failed write the threads of zarr may still be creating files for a moment
    for attempt in range(6):
        shutil.rmtree(staging, ignore_errors=True)
        if not staging.exists():
            return
        time.sleep(0.02 * 2**attempt)
    logger.warning("could not remove %s: delete it, it holds nothing that is needed", staging)


def _recover(store: Path) -> None:
    staging = staging_path(store)
    if not staging.exists():
        return
    if (staging / MARKER).is_file():
        name = json.loads((staging / MARKER).read_text())["table"]
        if not (store / "tables" / name).exists():
            _swap_in(store, name)
        consolidate(store)
        logger.warning("finished writing table %r into %s, which an earlier process had left half done", name, store)
    else:
        logger.warning("removed %s, left by a process that was stopped while it wrote a table", staging)
    _discard(staging)


def recover(store: Path) -> None:
    """Finish or undo a table write that a killed process left behind in a store.

    Called before a store is opened or written by ghistpy. A store that cannot be written is left alone.
    """
    if not staging_path(store).exists():
        return
    try:
        ensure_writable(store, "an unfinished table")
    except PermissionError as error:
        logger.warning("%s", error.strerror)
        return
    with locked(store):
        _recover(store)
