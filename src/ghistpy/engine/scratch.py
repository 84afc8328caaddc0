"""Results in numbered blocks: in memory, or in a folder from which a stopped run goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger("ghistpy")

_IDENTITY = "run.json"
_FORMAT = 1


class Blocks:
    """Numbered groups of arrays, in memory."""

    def __init__(self) -> None:
        self._arrays: dict[int, dict[str, np.ndarray]] = {}

    def save(self, number: int, **arrays: np.ndarray) -> None:
        """Keep one block."""
        self._arrays[number] = arrays

    def load(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of a block, None when it was not finished."""
        return self._arrays.get(number)

    def drop(self, number: int) -> None:
        """Forget a block that is no longer needed."""
        self._arrays.pop(number, None)


class StoredBlocks(Blocks):
    """The same in files; a block is complete in the folder or absent, whenever the process dies."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"

    def save(self, number: int, **arrays: np.ndarray) -> None:
        """Write one block.

        Raises
        ------
        OSError
            There is no space, or the folder cannot be written; finished blocks are untouched.
        """
        path = self._path(number)
        partial = path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise _cannot_write(error, self._folder.parent) from error

    def load(self, number: int) -> dict[str, np.ndarray] | None:
        """Read one block; None when it is absent or damaged (a file carries checksums)."""
        path = self._path(number)
        try:
            # opened here: of a damaged file numpy would leave it open
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s is damaged (%s) and is computed again", path, error)
            return None

    def drop(self, number: int) -> None:
        """Remove the file of a block."""
        self._path(number).unlink(missing_ok=True)


class StoredRows:
    """A (n, k) float32 matrix in a file, written and read by rows; never mapped longer than one call.

    Its whole size is reserved at once, so a disk that is too small is found before the work.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.shape, self._path = shape, path
        size = shape[0] * shape[1] * self.dtype.itemsize
        try:
            with open(path, "wb") as file:
                # without such a call (macOS) the file is sparse, and a full disk shows when it is filled
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise _cannot_write(error, path.parent, f" {size / 1e9:.1f} GB for the predicted values") from error

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _map(self, mode: str) -> np.ndarray:
        if self.nbytes == 0:  # an empty file cannot be mapped
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self._path, dtype=self.dtype, mode=mode, shape=self.shape)

    def __setitem__(self, rows: np.ndarray | slice, values: np.ndarray) -> None:
        self._map("r+")[rows] = values

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self._map("r")[key])


class Scratch:
    """The folder of one run: what it is computed from, its finished blocks, its large results.

    Parameters
    ----------
    folder
        Created when absent.
    identity
        What the blocks depend on, name -> value; an unfinished run in the folder must have the same.
    resume
        Go on with an unfinished run; otherwise it is removed.

    Raises
    ------
    ValueError
        The folder holds an unfinished run of something else; what differs is named.
    OSError
        Another process works there, or the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, resume: bool = True) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(error, folder) from error
        self._lock = _lock(folder)
        try:
            self._take_up(dict(identity), resume)
        except BaseException:
            self.close()
            raise

    def _take_up(self, identity: dict[str, str], resume: bool) -> None:
        marker = self.folder / _IDENTITY
        known = _read_identity(marker) if resume else None
        if known is not None:
            changed = sorted(name for name in {*known, *identity} if known.get(name) != identity.get(name))
            if changed:
                what = "; ".join(f"{name} was {known.get(name)}, is {identity.get(name)}" for name in changed)
                raise ValueError(
                    f"resume=True: {self.folder} holds an unfinished prediction with another {', '.join(changed)} "
                    f"({what}). Give the same again to go on with it, or resume=False to discard it and start over"
                )
            logger.info("resuming the unfinished prediction in %s", self.folder)
            return
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        partial = marker.with_suffix(".partial")
        try:
            partial.write_text(json.dumps({"format": _FORMAT, "identity": identity}))
            os.replace(partial, marker)
        except OSError as error:
            raise _cannot_write(error, self.folder) from error

    def blocks(self, name: str) -> StoredBlocks:
        """Blocks under that name."""
        return StoredBlocks(self.folder / name)

    def rows(self, name: str, shape: tuple[int, int]) -> StoredRows:
        """A matrix under that name, zeros."""
        return StoredRows(self.folder / f"{name}.f32", shape)

    def close(self) -> None:
        """Let another process work here; the blocks stay."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """The run is finished: remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            logger.warning("could not remove %s: delete it, it holds nothing that is needed", self.folder)
        self.close()


def _read_identity(marker: Path) -> dict[str, str] | None:
    """What an unfinished run was computed from; None where there is none, or it never began."""
    try:
        known = json.loads(marker.read_text())
        return known["identity"] if known["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(folder: Path) -> int | None:
    """Hold the folder; a killed process lets go of it. None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OSError(
            errno.EBUSY,
            f"another process is predicting into {folder}; wait for it, or choose another key_added or scratch_dir",
        ) from error
    except OSError:  # a network file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _cannot_write(error: OSError, folder: Path, what: str = "") -> OSError:
    return OSError(
        error.errno,
        f"{folder}: cannot write{what} ({error.strerror or error}). Free space or give scratch_dir= on another disk; "
        "finished blocks are kept, and the same call goes on from there",
    )
