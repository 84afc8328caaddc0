"""Spatial gene expression of every nucleus, predicted from H&E slides.

The sub-packages are loaded on first use, so that ``import ghistpy`` costs milliseconds:

>>> import ghistpy as gp
>>> sorted(gp.__all__)
['Cohort', '__version__', 'datasets', 'get', 'io', 'models', 'pl', 'pp', 'tl']
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghistpy import datasets, get, io, models, pl, pp, tl
    from ghistpy.io import Cohort

_SUBPACKAGES = ("io", "pp", "tl", "models", "pl", "get", "datasets")

__all__ = ["Cohort", "__version__", "datasets", "get", "io", "models", "pl", "pp", "tl"]

try:
    __version__ = metadata.version("ghistpy")
except metadata.PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"ghistpy.{name}")
    if name == "Cohort":
        return import_module("ghistpy.io").Cohort
    raise AttributeError(f"module 'ghistpy' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
