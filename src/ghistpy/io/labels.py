"""Labels of other tools: label images, GeoJSON, HoVer-Net, CellViT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.io._rgb import LazyArray
from ghistpy.io.elements import CHUNK, check_mpp, labels_element

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData
    from xarray import DataArray

    from ghistpy.io._objects import Objects

logger = logging.getLogger("ghistpy")

_TIFF = (".tif", ".tiff", ".btf", ".tf8")
_JSON = (".json", ".geojson")


def read_labels(
    path: str | Path,
    *,
    like: SpatialData | None = None,
    image_key: str = _keys.IMAGE,
    mpp: float | None = None,
    file_mpp: float | None = None,
    shape: tuple[int, int] | None = None,
    series: int | str | None = None,
) -> DataArray:
    """Read the nuclei that another tool segmented as a labels element.

    Parameters
    ----------
    path
        Label image (TIFF, OME-TIFF, PNG, NPY; integers, 0 = background), GeoJSON as QuPath exports it, or JSON
        of HoVer-Net or CellViT.
    like
        The slide that the labels belong to: its image gives size and µm/px, and labels that do not fit are
        refused.
    image_key
        Image of ``like``.
    mpp
        µm per px of the labels, without ``like``. Unknown when neither says it: the labels then carry no Scale.
    file_mpp
        µm per px of the coordinates in a JSON file, when they are not pixels of the image (HoVer-Net: those of
        the magnification at which it ran).
    shape
        (y, x) of the labels of a JSON file, without ``like``; default: as far as the outlines reach.
    series
        Which image of a TIFF that holds several.

    Returns
    -------
    DataArray
        (y, x) integers, lazy. Ids are those of the file where it has whole numbers (label images, HoVer-Net,
        ``cell_id`` of :func:`write_geojson`), else 1 .. n in its order. Put it into a slide with
        ``sdata["nuclei"] = labels``.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not labels (floats, colours), another size or µm/px than the image, a damaged file, duplicate ids,
        outlines that are none, or nothing inside the image.

    See Also
    --------
    read_label_table : types and names of the same objects.

    Notes
    -----
    A pixel belongs to a polygon when its centre lies inside; contours of HoVer-Net and CellViT are pixels of
    the nucleus themselves. Of a QuPath cell the outline of the nucleus is read. Where outlines overlap, the one
    that comes first in the file keeps the pixel. What reaches beyond the image is cut, what lies outside of it
    or has no outline is left out; all of it is counted in the log.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5, size_um=100.0, seed=0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "nuclei.geojson"
    >>> gp.io.write_geojson(sdata, path)
    >>> labels = gp.io.read_labels(path, like=sdata)
    >>> bool((labels.values == sdata["nuclei"].values).all())
    True
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    wanted = None if mpp is None else check_mpp(mpp)
    if like is not None:
        from ghistpy.io.resolution import get_mpp
        from ghistpy.io.sources import open_image

        image_mpp, image_shape = get_mpp(like, image_key), open_image(like, image_key).shape[-2:]
        for name, value, expected in (("mpp", wanted, image_mpp), ("shape", shape, image_shape)):
            if value is not None and not np.allclose(value, expected, rtol=1e-3):
                raise ValueError(f"{name}={value}: image_key={image_key!r} says {expected}; leave {name} out")
        wanted, shape = image_mpp, image_shape
    if path.suffix.lower() in _JSON:
        lazy, found = _from_objects(path, shape, wanted, file_mpp), None
    else:
        lazy, found = _label_image(path, series)
        if shape is not None and lazy.shape != tuple(shape):
            raise ValueError(_size_message(path, lazy.shape, tuple(shape)))
        if wanted is not None and found is not None and abs(found - wanted) > 0.01 * wanted:
            raise ValueError(f"{path}: labels at {found:g} µm/px, the image at {wanted:g}; one of the two is wrong")
    return labels_element(_dask(lazy), wanted if wanted is not None else found)


def read_label_table(path: str | Path) -> pd.DataFrame:
    """What a JSON file of segmented nuclei says of each of them.

    Parameters
    ----------
    path
        GeoJSON of QuPath, or JSON of HoVer-Net or CellViT.

    Returns
    -------
    DataFrame
        One row per object, in the order of the file: ``cell_id`` (the label that :func:`read_labels` gives it),
        ``original_id``, ``cell_type`` (categorical; missing where the file has none) and ``probability``.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import ghistpy as gp
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "nuclei.json"
    >>> contour = "[[3, 3], [3, 8], [8, 8], [8, 3]]"
    >>> _ = path.write_text('{"nuc": {"7": {"contour": %s, "type": 2, "type_prob": 0.5}}}' % contour)
    >>> gp.io.read_label_table(path)["cell_id"].tolist()
    [7]
    """
    import pandas as pd

    from ghistpy.io._objects import read_objects

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    objects = read_objects(path)
    return pd.DataFrame(
        {
            _keys.CELL_ID: objects.ids,
            _keys.ORIGINAL_ID: objects.names,
            _keys.CELL_TYPE: pd.Categorical(objects.types),
            "probability": objects.probability,
        }
    )


def _dask(lazy: Any) -> Any:
    from uuid import uuid4

    import dask.array as da

    chunks = tuple(max(1, CHUNK // c) * c if c < CHUNK else c for c in lazy.chunks)
    meta = np.empty((0, 0), lazy.dtype)
    name = f"array-{uuid4().hex}"
    return da.from_array(lazy, chunks=chunks, name=name, asarray=False, inline_array=False, meta=meta)


def _from_objects(path: Path, shape: tuple[int, int] | None, mpp: float | None, file_mpp: float | None) -> Any:
    """Labels painted from the polygons of a file, and what of them was lost, in the log."""
    from ghistpy.imaging.polygons import RunLabels, fill, overlapping
    from ghistpy.io._objects import read_objects

    objects = read_objects(path)
    polygons, pixels = objects.polygons, objects.vertices_are_pixels
    if file_mpp is not None:
        if mpp is None:
            raise ValueError(f"file_mpp={file_mpp}: the labels need a µm/px of their own; pass like= or mpp=")
        # vertices that are pixels lie in their middle once they are scaled
        middle = 0.5 if pixels else 0.0
        points = (polygons.points + middle) * (check_mpp(file_mpp, "file_mpp") / mpp)
        polygons, pixels = type(polygons)(points, polygons.offsets, polygons.owner, polygons.n), False
    runs = fill(polygons, vertices_are_pixels=pixels)
    if shape is None:
        shape = (int(runs.row.max(initial=0)) + 1, int(runs.stop.max(initial=1)))
    _report(path, objects, runs, shape, overlapping(runs))
    return _Plane(RunLabels(runs, objects.ids, shape))


def _report(path: Path, objects: Objects, runs: Any, shape: tuple[int, int], shared: np.ndarray) -> None:
    within = (runs.row >= 0) & (runs.row < shape[0]) & (runs.stop > 0) & (runs.start < shape[1])
    whole = within & (runs.start >= 0) & (runs.stop <= shape[1])
    n = objects.polygons.n
    painted, inside = np.bincount(runs.owner, minlength=n), np.bincount(runs.owner[within], minlength=n)
    kept = np.bincount(runs.owner[whole], minlength=n)
    n_in = int((inside > 0).sum())
    if n and n_in == 0:
        low, high = objects.polygons.points.min(axis=0), objects.polygons.points.max(axis=0)
        raise ValueError(
            f"{path}: none of its {n} objects lies in the image of {shape[1]} x {shape[0]} px; their outlines reach "
            f"from x {low[0]:.0f}, y {low[1]:.0f} to x {high[0]:.0f}, y {high[1]:.0f}: wrong slide, or file_mpp= "
            "is needed"
        )
    logger.log(
        logging.INFO if n_in == n and len(shared) == 0 else logging.WARNING,
        "%s (%s): %d of %d objects; %d outside the image, %d smaller than a pixel, %d cut at its border, %d overlap",
        path, objects.kind, n_in, n, int(((painted > 0) & (inside == 0)).sum()), int((painted == 0).sum()),
        int(((inside > 0) & (kept < painted)).sum()), len(shared),
    )  # fmt: skip


def _label_image(path: Path, series: int | str | None) -> tuple[Any, float | None]:
    """A label image as a lazily read (y, x) array, and its µm/px or None."""
    suffix, mpp = path.suffix.lower(), None
    if suffix in _TIFF:
        from ghistpy.io._tiff import open_tiff

        levels, mpp = open_tiff(path, series)
        array: Any = levels[0]
    elif suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    elif suffix == ".png":
        array = _decode_png(path)
    else:
        known = ", ".join((*_TIFF, ".png", ".npy", *_JSON))
        raise ValueError(f"{path}: unknown format {suffix!r} of labels; expected one of {known}")
    if array.ndim != 2 and array.shape[0] != 1:
        raise ValueError(
            f"{path}: shape {array.shape}; expected one plane of ids. A coloured picture of labels does not hold their "
            "ids: export the label image itself"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: labels of dtype {array.dtype}; expected integers, since floats merge ids above 2**24: export "
            "them as integers where they were made"
        )
    return _Plane(array), mpp


def _decode_png(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a PNG, or damaged ({error})") from error


class _Plane(LazyArray):
    """A (y, x) or (1, y, x) array as a lazily read plane."""

    ndim = 2

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.dtype = tuple(array.shape[-2:]), np.dtype(array.dtype)
        self.chunks = tuple(array.chunks[-2:]) if hasattr(array, "chunks") else tuple(min(CHUNK, n) for n in self.shape)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        return np.asarray(self._array[(slice(None), *key)][0] if self._array.ndim == 3 else self._array[key])


def _size_message(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> str:
    ratio = np.array(expected) / np.array(found)
    if found == expected[::-1]:
        why = "rows and columns are exchanged"
    elif abs(ratio[0] - ratio[1]) < 0.02 * ratio[0] and not 0.67 < ratio[0] < 1.5:
        why = f"they were made at a resolution {ratio[0]:.2f} times coarser: resample them (nearest neighbour)"
    else:
        why = "they were cut off, or belong to another image"
    return f"{path}: labels of (y, x) = {found} for an image of {expected}: {why}"
