"""Device, versions and optional parts."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ghistpy.doctor.findings import NOTE, OK, PROBLEM, Finding

_EXTRAS = {
    "wsi": ("openslide", "vendor slide formats"),
    "instanseg": ("instanseg", "segmentation by InstanSeg"),
    "cellpose": ("cellpose", "segmentation by Cellpose"),
    "foundation": ("timm", "foundation models as encoders"),
    "xenium": ("spatialdata_io", "io.read_xenium"),
    "celltypist": ("celltypist", "pretrained models of cell types"),
    "state": ("pydeseq2", "differential state on counts"),
    "tcga": ("openpyxl", "clinical tables of TCGA"),
}
_CORE = ("torch", "lightning", "spatialdata", "anndata", "scanpy", "squidpy", "zarr", "numpy", "scikit-image")


def check_environment() -> list[Finding]:
    """Device, versions and optional parts.

    Returns
    -------
    list of Finding
        Optional parts that are missing are notes, not problems.

    Examples
    --------
    >>> from ghistpy.doctor import check_environment
    >>> check_environment()[0].topic
    'ghistpy'
    """
    from importlib.metadata import version

    from ghistpy import __version__

    system = f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    out = [Finding(OK, "ghistpy", system)]
    out.append(Finding(OK, "versions", ", ".join(f"{name} {version(name)}" for name in _CORE)))
    out.append(_device())
    out += _known_traps()
    for extra, (module, what) in _EXTRAS.items():
        out.append(_extra(extra, module, what))
    return out + _data_folder()


def _device() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{cores} CPU cores"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding(OK, "device", f"{torch.cuda.device_count()} GPU ({', '.join(sorted(names))}), {cpu}")
    if torch.backends.mps.is_available():
        return Finding(OK, "device", f"Apple GPU (mps), {cpu}")
    return Finding(NOTE, "device", f"no GPU, {cpu}", "training and prediction run on the CPU, slower")


def _known_traps() -> list[Finding]:
    from importlib.metadata import version

    from packaging.version import Version

    if Version(version("pynndescent")) >= Version("0.7"):
        text = f"pynndescent {version('pynndescent')} breaks sc.pp.neighbors of scanpy 1.11"
        return [Finding(PROBLEM, "versions", text, "pip install 'pynndescent<0.7'")]
    return []


def _extra(extra: str, module: str, what: str) -> Finding:
    from importlib.util import find_spec

    if find_spec(module) is None:
        return Finding(NOTE, f"extra {extra}", f"absent ({what})", f"pip install 'ghistpy[{extra}]'")
    return Finding(OK, f"extra {extra}", f"installed ({what})")


def _data_folder() -> list[Finding]:
    folder = os.environ.get("GHISTPY_DATA_DIR")
    if not folder:
        return []
    if not (Path(folder) / "data").is_dir():
        text = f"GHISTPY_DATA_DIR={folder} holds no folder data/"
        return [Finding(PROBLEM, "data", text, "unset it, so that public data is downloaded, or correct it")]
    return [Finding(OK, "data", f"GHISTPY_DATA_DIR={folder}")]
