"""Fixtures of the whole suite. Nothing heavy is imported here: a test pays only for what it uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before numpy or torch start their thread pools: small arrays run faster on one thread, and figures need no display.
# Not those of numba, which a plugin of pytest imports before this file: it refuses to change its mind.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")

DATA_VARIABLE = "GHISTPY_DATA_DIR"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        skip_slow = pytest.mark.skip(reason="slow: give --run-slow to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip_slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data"):
        _find_data()
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("gpu: no CUDA device")


def _find_data() -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"real data: set {DATA_VARIABLE} to the absolute path of the folder that holds data/ and golden/")
    path = Path(folder)
    missing = [name for name in ("data", "golden") if not (path / name).is_dir()]
    if missing:
        # set, but wrong: a skip would hide it
        pytest.fail(f"{DATA_VARIABLE}={folder!r} has no folder {' and no '.join(missing)}")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with data/, golden/ and tools/: real data and reference values."""
    return _find_data()
