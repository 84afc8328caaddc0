"""Slide files into a SpatialData at a known µm/px."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.io.elements import CHUNK, check_mpp, image_element, to_microns

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

_TIFF = (".tif", ".tiff", ".btf", ".tf8")
_PICTURE = (".png", ".jpg", ".jpeg")
_VENDOR = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".qptiff", ".czi", ".dcm", ".svslide")
MAX_PIXELS = 1_000_000_000

# the limit of pillow is a global of its module
_PILLOW_LIMIT = threading.Lock()


def read_slide(
    path: str | Path, *, mpp: float | None = None, image_key: str = _keys.IMAGE, max_pixels: int = MAX_PIXELS
) -> SpatialData:
    """Read an H&E image into a SpatialData.

    Parameters
    ----------
    path
        TIFF or OME-TIFF, PNG, JPEG, a folder with an OME-Zarr image, or a SpatialData store (which is opened
        as it is, all its elements included).
    mpp
        µm per pixel. Wins over what the file says; a disagreement of more than 1 % is logged. Needed when
        the file does not say.
    image_key
        Name of the image in the result; in a SpatialData store the image to look at.
    max_pixels
        PNG and JPEG are decoded into memory (3 bytes a pixel); larger ones are refused.

    Returns
    -------
    SpatialData
        Image ``image_key``: (3, y, x) uint8, channels r, g, b, chunks of 512 px, lazy for TIFF and zarr, with
        a lazy pyramid when a side exceeds 2048 px. Its Scale to ``"microns"`` is the µm/px.
        ``attrs["ghistpy"]["sample"]`` is the name of the file.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        µm/px is neither given nor in the file (the message names ``mpp=``); the file is truncated, foreign,
        too large for one piece, or not grey, RGB or RGBA.
    ImportError
        A vendor format such as SVS: these come with the ``wsi`` extra.

    Notes
    -----
    Alpha is composited over white, grey is repeated, palettes are looked up. Integers and floats beyond 8
    bits are scaled by one factor for the whole slide: from its maximum, white is 1.0 (floats), 255, 4095 or
    65535, the smallest that holds it; finding it costs one pass over such a file.

    µm/px is taken from OME metadata, else from ``MPP =`` in the description, else from resolution tags
    between 0.02 and 20 µm/px (72 or 300 dots per inch are about paper, and ignored).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np, tifffile
    >>> import ghistpy as gp
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "slide.tif"
    >>> tifffile.imwrite(path, np.full((64, 48, 3), 200, np.uint8), photometric="rgb")
    >>> sdata = gp.io.read_slide(path, mpp=0.5)
    >>> gp.io.get_mpp(sdata), sdata.images["he"].shape
    (0.5, (3, 64, 48))
    """
    import spatialdata as sd

    path = Path(path)
    if mpp is not None:
        mpp = check_mpp(mpp)
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file or folder")
    if path.is_dir() and is_spatialdata(path):
        return _open_store(path, mpp, image_key)
    pixels, found = read_pixels(path, max_pixels)
    if mpp is None and found is None:
        raise ValueError(
            f"{path}: the file does not say how many µm a pixel has; pass mpp=, for example mpp=0.5 for a 20x scan "
            "and mpp=0.25 for 40x"
        )
    if mpp is not None and found is not None and abs(mpp - found) > 0.01 * found:
        logger.warning("%s says %g µm/px; mpp=%g wins", path, found, mpp)
    element = image_element(pixels, mpp if mpp is not None else found)
    stem = path.name.removesuffix(path.suffix).removesuffix(".ome")
    return sd.SpatialData(images={image_key: element}, attrs={_keys.ATTRS: {"sample": stem}})


def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[Any, float | None]:
    """A picture of any supported format as a (3, y, x) uint8 numpy or dask array, and its µm/px or None."""
    suffix = path.suffix.lower()
    if suffix in _VENDOR:
        raise ImportError(
            f"{path}: {suffix} files are read by the wsi extra, which comes with pip install 'ghistpy[wsi]'; until "
            "then export the slide as OME-TIFF"
        )
    if path.is_dir():
        return _lazy_rgb(*_open_ome_zarr(path), path)
    if suffix in _TIFF:
        from ghistpy.io._tiff import open_tiff

        return _lazy_rgb(*open_tiff(path), path)
    if suffix in _PICTURE:
        return _read_picture(path, max_pixels)
    raise ValueError(f"{path}: unknown format {suffix!r}; expected one of {', '.join((*_TIFF, *_PICTURE, '.zarr'))}")


def _lazy_rgb(pixels: Any, mpp: float | None, path: Path) -> tuple[Any, float | None]:
    """A lazily read (c, y, x) array of any kind as a dask array of uint8 RGB."""
    import dask.array as da
    from dask.base import tokenize

    from ghistpy.io._rgb import LazyRGB, find_white

    stamp = path.stat()
    lazy = LazyRGB(pixels, find_white(pixels), str(path))
    side = [max(1, CHUNK // c) * c if c < CHUNK else c for c in lazy.chunks[1:]]
    return (
        da.from_array(
            lazy,
            chunks=(3, *side),
            name=f"array-{tokenize(str(path.resolve()), stamp.st_mtime_ns, stamp.st_size)}",
            asarray=False,
            inline_array=False,
            meta=np.empty((0, 0, 0), np.uint8),
        ),
        mpp,
    )


def _read_picture(path: Path, max_pixels: int) -> tuple[np.ndarray, float | None]:
    """Decode a PNG or JPEG."""
    from PIL import Image, UnidentifiedImageError

    from ghistpy.imaging.stain import as_rgb_uint8
    from ghistpy.io._tiff import plausible

    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            # the size is known before anything is decoded, and is checked against our limit instead
            image = Image.open(path)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path}: not a PNG or JPEG, or damaged beyond recognition") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{path}: {width} x {height} px exceed max_pixels={max_pixels}; a PNG or JPEG is decoded into memory "
                f"({3 * width * height / 1e9:.1f} GB): raise max_pixels=, or convert it to a tiled TIFF"
            )
        try:
            array = _decode(image)
            turned = image.getexif().get(0x0112, 1) != 1
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: truncated or damaged ({error}); copy it again") from error
        if turned:
            logger.warning("%s: its EXIF orientation is not applied; rows and columns are those of the file", path)
        dots = image.info.get("dpi")
    mpp = None
    if dots and all(d > 0 for d in dots):
        mpp = plausible(25400 / float(dots[0]), 25400 / float(dots[1]), path)
    white = None
    if array.dtype != np.uint8:
        from ghistpy.io._rgb import white_of_maximum

        white = white_of_maximum(array.dtype, float(array.max()), float(array.min()), str(path))
    return as_rgb_uint8(array, channel_axis=-1, white=white, name=str(path)), mpp


def _decode(image: Any) -> np.ndarray:
    """Pixels (y, x) or (y, x, c) of a pillow image, palettes and other colour spaces as RGB(A)."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return np.asarray(image)


def is_spatialdata(path: Path) -> bool:
    """Whether a folder is a SpatialData store."""
    import zarr

    from ghistpy.io._store import is_store

    if not is_store(path):
        return False
    group = _open_group(path)
    return isinstance(group, zarr.Group) and "spatialdata_attrs" in group.attrs


def _open_group(path: Path) -> Any:
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        return zarr.open(path, mode="r")


def _open_store(path: Path, mpp: float | None, image_key: str) -> SpatialData:
    """Open a SpatialData store, after what a killed process may have left half done in it."""
    import spatialdata as sd
    from spatialdata.transformations import set_transformation

    from ghistpy.io._store import recover
    from ghistpy.io.resolution import get_element, get_mpp

    recover(path)
    sdata = sd.read_zarr(path)
    element = get_element(sdata, "images", image_key, "image_key")
    if mpp is None:
        get_mpp(sdata, image_key)
        return sdata
    try:
        found = get_mpp(sdata, image_key)
    except ValueError as error:
        logger.info("%s; mpp=%g is used", error, mpp)
    else:
        if abs(found - mpp) > 0.01 * found:
            logger.warning("%s says %g µm/px for %r; mpp=%g wins", path, found, image_key, mpp)
    set_transformation(element, to_microns(mpp)[_keys.MICRONS], _keys.MICRONS)
    return sdata


def _open_ome_zarr(path: Path) -> tuple[Any, float | None]:
    """The full resolution of an OME-Zarr image (NGFF 0.4 or 0.5) as (c, y, x), and its µm/px."""
    import zarr

    from ghistpy.io._store import is_store

    if not is_store(path):
        raise ValueError(f"{path}: a folder that is no zarr group; expected an OME-Zarr image or a SpatialData store")
    group = _open_group(path)
    attrs = dict(group.attrs) if isinstance(group, zarr.Group) else {}
    multiscales = attrs.get("ome", attrs).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path}: a zarr group without OME 'multiscales' metadata; expected an OME-Zarr image or a SpatialData "
            f"store (keys found: {sorted(attrs)})"
        )
    image = multiscales[0]
    level = image["datasets"][0]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in image["axes"]]
    units = ["" if isinstance(axis, str) else axis.get("unit", "") for axis in image["axes"]]
    array = group[level["path"]]
    single = [a for a, n in zip(axes, array.shape, strict=True) if a not in "cyx" and n == 1]
    if not {"y", "x"} <= set(axes) or any(a not in "cyx" and a not in single for a in axes):
        raise ValueError(f"{path}: axes {axes} with shape {array.shape}; expected one plane with channels c, y, x")
    scale = np.ones(len(axes))
    for transform in [*level.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]:
        if transform["type"] == "scale":
            scale = scale * np.asarray(transform["scale"], float)
    return ZarrPixels(array, axes), _mpp_of_scale(scale, axes, units, path)


def _mpp_of_scale(scale: np.ndarray, axes: list[str], units: list[str], path: Path) -> float | None:
    from ghistpy.io._tiff import square

    x, y = axes.index("x"), axes.index("y")
    factor = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4}
    if units[x] not in factor or units[y] not in factor:
        return None  # a scale without a unit of length
    return square(scale[x] * factor[units[x]], scale[y] * factor[units[y]], path)


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
