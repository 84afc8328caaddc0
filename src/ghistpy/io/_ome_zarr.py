"""OME-Zarr images (NGFF 0.4 and 0.5), read window by window."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

_UM_PER_UNIT = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4}


class ZarrPixels:
    """A zarr array with any order of axes as a lazily read (c, y, x) array."""

    ndim = 3

    def __init__(self, array: Any, axes: list[str]) -> None:
        self._array, self._axes = array, axes
        size, chunk = dict(zip(axes, array.shape, strict=True)), dict(zip(axes, array.chunks, strict=True))
        self.shape = (size.get("c", 1), size["y"], size["x"])
        self.dtype = np.dtype(array.dtype)
        self.chunks = (self.shape[0], chunk["y"], chunk["x"])

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        where = dict(zip("cyx", (*key, *(slice(None),) * (3 - len(key))), strict=True))
        pixels = np.asarray(self._array[tuple(where.get(axis, 0) for axis in self._axes)])
        kept = [axis for axis in self._axes if axis in "cyx"]
        pixels = pixels.transpose([kept.index(axis) for axis in "cyx" if axis in kept])
        return pixels if "c" in kept else pixels[None]


def open_group(path: Path) -> Any:
    """A zarr group or array, for reading."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        return zarr.open(path, mode="r")


def open_ome_zarr(path: Path, series: int | str | None = None) -> tuple[list[ZarrPixels], float | None]:
    """Levels of an OME-Zarr image, the finest first, and its µm/px, None when the file does not say.

    Parameters
    ----------
    path
        The folder.
    series
        Number or name of the image among the ``multiscales``; None = the largest.

    Raises
    ------
    ValueError
        No OME-Zarr image, several planes, or no such series.
    """
    import zarr

    from ghistpy.io._series import pick_series
    from ghistpy.io._store import is_store

    if not is_store(path):
        raise ValueError(f"{path}: a folder that is no zarr group; expected an OME-Zarr image or a SpatialData store")
    group = open_group(path)
    attrs = dict(group.attrs) if isinstance(group, zarr.Group) else {}
    ome = attrs.get("ome", attrs)
    multiscales = ome.get("multiscales")
    if not multiscales:
        hint = "; it is a collection of images: pass the folder of one of them, such as '0'" if "0" in group else ""
        raise ValueError(
            f"{path}: a zarr group without OME 'multiscales' metadata; expected an OME-Zarr image or a SpatialData "
            f"store (keys found: {sorted(attrs)}){hint}"
        )
    names = [str(image.get("name", i)) for i, image in enumerate(multiscales)]
    try:
        sizes = [_size(group, image) for image in multiscales]
        image = multiscales[pick_series(names, sizes, series, path)]
        arrays = [group[level["path"]] for level in image["datasets"]]
    except KeyError as error:
        raise ValueError(f"{path}: damaged; its metadata name {error}, which is not there") from error
    axes, units = _axes(image)
    single = [a for a, n in zip(axes, arrays[0].shape, strict=True) if a not in "cyx" and n == 1]
    if not {"y", "x"} <= set(axes) or any(a not in "cyx" and a not in single for a in axes):
        raise ValueError(f"{path}: axes {axes} with shape {arrays[0].shape}; expected one plane with channels c, y, x")
    scale = np.ones(len(axes))
    for transform in [
        *image["datasets"][0].get("coordinateTransformations", []),
        *image.get("coordinateTransformations", []),
    ]:
        if transform["type"] == "scale":
            scale = scale * np.asarray(transform["scale"], float)
    return [ZarrPixels(array, axes) for array in arrays], _mpp(scale, axes, units, path)


def _axes(image: dict[str, Any]) -> tuple[list[str], list[str]]:
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in image["axes"]]
    return axes, ["" if isinstance(axis, str) else axis.get("unit", "") for axis in image["axes"]]


def _size(group: Any, image: dict[str, Any]) -> tuple[int, int]:
    size = dict(zip(_axes(image)[0], group[image["datasets"][0]["path"]].shape, strict=True))
    return size.get("y", 0), size.get("x", 0)


def _mpp(scale: np.ndarray, axes: list[str], units: list[str], path: Path) -> float | None:
    from ghistpy.io._tiff import square

    x, y = axes.index("x"), axes.index("y")
    if units[x] not in _UM_PER_UNIT or units[y] not in _UM_PER_UNIT:
        return None  # a scale without a unit of length
    return square(scale[x] * _UM_PER_UNIT[units[x]], scale[y] * _UM_PER_UNIT[units[y]], path)
