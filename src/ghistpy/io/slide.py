"""Slide files into a SpatialData at a known µm/px."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.io.elements import CHUNK, check_mpp, image_element, to_microns

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

# TIFF inside, also those that a scanner wrote: read by tifffile, with or without the wsi extra
_TIFF = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".qptiff")
_PICTURE = (".png", ".jpg", ".jpeg")
_OPENSLIDE = (".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".dcm", ".dicom", ".svslide")
MAX_PIXELS = 1_000_000_000

# the limit of pillow is a global of its module
_PILLOW_LIMIT = threading.Lock()


def read_slide(
    path: str | Path,
    *,
    mpp: float | None = None,
    image_key: str = _keys.IMAGE,
    series: int | str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> SpatialData:
    """Read an H&E image into a SpatialData.

    Parameters
    ----------
    path
        TIFF, OME-TIFF, SVS or QPTIFF; NDPI, MRXS, SCN, BIF, VMS, CZI or DICOM (with the ``wsi`` extra); PNG,
        JPEG; a folder with an OME-Zarr image, or a SpatialData store (which is opened as it is, all its
        elements included).
    mpp
        µm per pixel. Wins over what the file says; a disagreement of more than 1 % is logged. Needed when
        the file does not say.
    image_key
        Name of the image in the result; in a SpatialData store the image to look at.
    series
        Which image of a TIFF or OME-Zarr that holds several, by number (from 0) or name. Default: the largest.
        Which ones there are is logged, as a warning where another is nearly as large, and is told by the error
        when there is none such.
    max_pixels
        PNG and JPEG are decoded into memory (3 bytes a pixel); larger ones are refused.

    Returns
    -------
    SpatialData
        Image ``image_key``: (3, y, x) uint8, channels r, g, b, chunks of 512 px, lazy but for PNG and JPEG. With
        the pyramid of the file, or a lazily computed one when it has none and a side exceeds 2048 px. Its Scale
        to ``"microns"`` is the µm/px. ``attrs["ghistpy"]["sample"]`` is the name of the file.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        µm/px is neither given nor in the file (the message names ``mpp=``); the file is truncated, foreign,
        too large for one piece, in print colours (CMYK), or not grey, RGB or RGBA; no such series.
    ImportError
        A vendor format that needs the ``wsi`` extra.

    See Also
    --------
    thumbnail : a small picture of what was read.

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
        _no_series(series, path, f"a SpatialData store, in which image_key={image_key!r} chooses")
        return _open_store(path, mpp, image_key)
    levels, found = _read_levels(path, max_pixels, series)
    if mpp is None and found is None:
        raise ValueError(
            f"{path}: the file does not say how many µm a pixel has; pass mpp=, for example mpp=0.5 for a 20x scan "
            "and mpp=0.25 for 40x"
        )
    if mpp is not None and found is not None and abs(mpp - found) > 0.01 * found:
        logger.warning("%s says %g µm/px; mpp=%g wins", path, found, mpp)
    element = image_element(levels, mpp if mpp is not None else found)
    stem = path.name.removesuffix(path.suffix).removesuffix(".ome")
    return sd.SpatialData(images={image_key: element}, attrs={_keys.ATTRS: {"sample": stem}})


def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[Any, float | None]:
    """A picture of any supported format as a (3, y, x) uint8 numpy or dask array, and its µm/px or None."""
    levels, mpp = _read_levels(path, max_pixels)
    return levels[0], mpp


def _read_levels(path: Path, max_pixels: int, series: int | str | None = None) -> tuple[list[Any], float | None]:
    """The levels of a picture, the finest first, and its µm/px or None."""
    suffix = path.suffix.lower()
    if path.is_dir():
        from ghistpy.io._ome_zarr import open_ome_zarr

        levels, mpp = open_ome_zarr(path, series)
        return _lazy_rgb(levels, path, series), mpp
    if suffix in _OPENSLIDE:
        from ghistpy.io._openslide import open_openslide

        _no_series(series, path, "a format whose regions OpenSlide shows as one image")
        levels, mpp = open_openslide(path)
        return _lazy_rgb(levels, path), mpp
    if suffix in _TIFF:
        from ghistpy.io._tiff import open_tiff

        levels, mpp = open_tiff(path, series)
        return _lazy_rgb(levels, path, series), mpp
    if suffix in _PICTURE:
        _no_series(series, path, "a single picture")
        array, mpp = _read_picture(path, max_pixels)
        return [array], mpp
    known = ", ".join((*_TIFF, *_OPENSLIDE, *_PICTURE, ".zarr"))
    raise ValueError(f"{path}: unknown format {suffix!r}; expected one of {known}")


def _no_series(series: int | str | None, path: Path, what: str) -> None:
    if series is not None:
        raise ValueError(f"series={series!r}: {path} is {what}; leave series out")


def thumbnail(sdata: SpatialData, *, image_key: str = _keys.IMAGE, max_px: int = 1024) -> np.ndarray:
    """A small picture of a slide, from the coarsest stored level that is large enough.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Name of the image.
    max_px
        Longer side of the picture, at most.

    Returns
    -------
    numpy.ndarray
        (h, w, 3) uint8 RGB; each pixel is the mean of a square of the slide.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5, size_um=200.0, mpp=0.5)
    >>> gp.io.thumbnail(sdata, max_px=100).shape
    (100, 100, 3)
    """
    from ghistpy.imaging.tissue import read_coarse
    from ghistpy.io.sources import rgb_source, stored_levels

    if max_px < 1:
        raise ValueError(f"max_px={max_px}: expected 1 or more")
    sources = [s for s in stored_levels(sdata, image_key) if max(s.shape[-2:]) >= max_px]
    source = sources[-1] if sources else stored_levels(sdata, image_key)[0]
    factor = -(-max(source.shape[-2:]) // max_px)
    return read_coarse(rgb_source(source, f"image_key={image_key!r}"), factor).transpose(1, 2, 0)


def _lazy_rgb(levels: list[Any], path: Path, series: int | str | None = None) -> list[Any]:
    """Lazily read (c, y, x) arrays of any kind as dask arrays of uint8 RGB, one for each level."""
    import dask.array as da
    from dask.base import tokenize

    from ghistpy.io._rgb import LazyRGB, find_white

    stamp = path.stat()
    # one rule for all levels: the maximum of a coarser one is lower
    white = find_white(levels[0], str(path))
    arrays = []
    for number, pixels in enumerate(levels):
        lazy = LazyRGB(pixels, white, str(path))
        side = [max(1, CHUNK // c) * c if c < CHUNK else c for c in lazy.chunks[1:]]
        token = tokenize(str(path.resolve()), stamp.st_mtime_ns, stamp.st_size, series, number)
        array = da.from_array(
            lazy,
            chunks=(3, *side),
            name=f"array-{token}",
            asarray=False,
            inline_array=False,
            meta=np.empty((0, 0, 0), np.uint8),
        )
        arrays.append(array)
    return arrays


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
        if image.mode in ("CMYK", "LAB"):
            # without their colour profile these become other colours, and every stain statistic with them
            raise ValueError(
                f"{path}: colours are stored as {image.mode}, for print; convert the file to RGB with its colour "
                "profile"
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
    elif image.mode in ("YCbCr", "HSV"):
        image = image.convert("RGB")
    return np.asarray(image)


def is_spatialdata(path: Path) -> bool:
    """Whether a folder is a SpatialData store."""
    import zarr

    from ghistpy.io._ome_zarr import open_group
    from ghistpy.io._store import is_store

    if not is_store(path):
        return False
    group = open_group(path)
    return isinstance(group, zarr.Group) and "spatialdata_attrs" in group.attrs


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
