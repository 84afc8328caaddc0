"""TIFF and OME-TIFF files, read window by window."""

from __future__ import annotations

import logging
import re
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

logger = logging.getLogger("ghistpy")

# Resolution tags outside this range are about paper (72 or 300 dots per inch), not about tissue.
PLAUSIBLE_MPP = (0.02, 20.0)
_UM_PER_UNIT = {
    "nm": 1e-3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "mm": 1e3,
    "cm": 1e4, "m": 1e6, "inch": 25400.0,
}  # fmt: skip


class TiffPixels:
    """One level of a TIFF as a lazily read (c, y, x) array in the colours of the file.

    Numpy-like: ``shape``, ``dtype``, ``ndim``, ``chunks`` and ``[...]`` with slices. It opens the file on
    first use, closes it when it is collected and can be pickled; reads are safe from several threads.
    """

    ndim = 3

    def __init__(self, path: Path, series: int, level: int = 0) -> None:
        self._path, self._series, self._level = path, series, level
        self._array: Any = None
        # whoever is not fit for reading fails here, with the file at hand
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_series": self._series, "_level": self._level, "_array": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        import tifffile
        import zarr

        with tifffile.TiffFile(self._path) as tiff:
            series = tiff.series[self._series].levels[self._level]
            page = series.keyframe
            self._axes = _check_axes(series.axes, series.shape, self._path)
            _check_complete(series, self._path)
            photometric = page.photometric.name
            if photometric in ("SEPARATED", "CIELAB", "LOGLUV"):
                raise ValueError(f"{self._path}: colours are stored as {photometric}; convert the file to RGB")
            self._invert = photometric == "MINISWHITE"
            self._palette = np.asarray(page.colormap) if photometric == "PALETTE" else None
            self._alpha = _alpha_kind(page, photometric, self._path)
        store = tifffile.imread(self._path, aszarr=True, series=self._series, level=self._level)
        weakref.finalize(self, store.close)
        self._array = zarr.open_array(store, mode="r")
        size = dict(zip(self._axes, self._array.shape, strict=True))
        chunk = dict(zip(self._axes, self._array.chunks, strict=True))
        channels = 3 if self._palette is not None else size.get("C", 1) - (self._alpha == "drop")
        self.shape = (channels, size["Y"], size["X"])
        self.dtype = np.dtype(np.uint8) if self._palette is not None else np.dtype(self._array.dtype)
        # strips of one row are read in groups
        self.chunks = (channels, max(chunk["Y"], min(256, size["Y"])), max(chunk["X"], min(256, size["X"])))

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        full = key if isinstance(key, tuple) else (key,)
        full = (*full, *(slice(None),) * (3 - len(full)))
        where = {"Y": full[1], "X": full[2]}
        pixels = np.asarray(self._array[tuple(where.get(axis, slice(None)) for axis in self._axes)])
        order = [self._axes.index(axis) for axis in "CYX" if axis in self._axes]
        pixels = pixels.transpose(order)
        if pixels.ndim == 2:
            pixels = pixels[None]
        return np.ascontiguousarray(self._colours(pixels)[full[0]])

    def _colours(self, pixels: np.ndarray) -> np.ndarray:
        if self._palette is not None:
            return (self._palette[:, pixels[0]] >> 8).astype(np.uint8)
        if self._invert and np.issubdtype(pixels.dtype, np.unsignedinteger):
            pixels = np.iinfo(pixels.dtype).max - pixels
        if self._alpha == "drop":
            return pixels[:-1]
        if self._alpha == "premultiplied":
            # undo the multiplication: what follows composites straight alpha over white
            largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1.0
            weight = np.maximum(pixels[-1:] / largest, 1e-6)
            colour = np.minimum(pixels[:-1] / weight, largest).astype(pixels.dtype)
            return np.concatenate([colour, pixels[-1:]])
        return pixels


def _size(series: Any) -> tuple[int, int]:
    """Height and width of a series or level, (0, 0) for what is no image."""
    size = dict(zip(series.axes, series.shape, strict=True))
    return size.get("Y", 0), size.get("X", 0)


def _check_axes(axes: str, shape: tuple[int, ...], path: Path) -> str:
    """Axes with the one channel axis called C."""
    extra = [axis for axis in axes if axis not in "YX"]
    if len(extra) > 1 or (extra and extra[0] not in "SCQI"):
        raise ValueError(
            f"{path}: axes {axes} with shape {shape}; expected one plane of grey, RGB or RGBA pixels. Export the "
            "plane that shows the H&E"
        )
    return "".join("C" if axis in extra else axis for axis in axes)


def _check_complete(series: Any, path: Path) -> None:
    """A truncated file would fail in the middle of a run: compare all offsets with its size now."""
    size = path.stat().st_size
    for page in series.pages:
        if page is None:
            continue
        offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
        end = int((offsets + counts).max(initial=0))
        if end > size:
            raise ValueError(
                f"{path}: truncated; pixels are announced up to byte {end} but the file ends at {size}: copy it again"
            )


def _alpha_kind(page: Any, photometric: str, path: Path) -> str | None:
    """What a fourth (or, for grey, a second) sample is: None where there is none."""
    colours = 3 if photometric in ("RGB", "YCBCR") else 1
    if page.samplesperpixel <= colours or page.samplesperpixel > colours + 1:
        return None
    kinds = [getattr(kind, "value", kind) for kind in page.extrasamples]
    if kinds[-1:] == [2]:
        return "straight"
    if kinds[-1:] == [1]:
        return "premultiplied"
    logger.warning("%s: the last of %d samples is not declared as alpha and is left out", path, page.samplesperpixel)
    return "drop"


def open_tiff(path: Path, series: int | str | None = None) -> tuple[list[TiffPixels], float | None]:
    """Levels of one image of a TIFF, the finest first, and its µm/px, None when the file does not say.

    Parameters
    ----------
    path
        The file.
    series
        Number or name of the image; None = the largest.

    Raises
    ------
    ValueError
        Not a TIFF, truncated, several planes, colours other than grey, palette and RGB, or no such series.
    """
    import tifffile

    from ghistpy.io._series import pick_series

    try:
        with tifffile.TiffFile(path) as tiff:
            sizes = [_size(s) for s in tiff.series]
            key = pick_series([s.name for s in tiff.series], sizes, series, path)
            levels = [(i, *_size(level)) for i, level in enumerate(tiff.series[key].levels)]
            mpp = _mpp_of_ome(tiff.ome_metadata, path, key, len(tiff.series)) if tiff.ome_metadata else None
            if mpp is None:
                # the description of a thumbnail repeats the µm/px of the slide
                whole = np.prod(sizes[key]) == max(np.prod(size) for size in sizes)
                mpp = _mpp_of_tags(tiff, tiff.series[key].keyframe, path, described=bool(whole))
        return [TiffPixels(path, key, i) for i, y, x in levels if i == 0 or min(y, x) > 0], mpp
    except (tifffile.TiffFileError, EOFError, IndexError, KeyError, StopIteration) as error:
        raise ValueError(f"{path}: not a readable TIFF, or damaged ({error})") from error


def _mpp_of_ome(xml: str, path: Path, series: int, n_series: int) -> float | None:
    """µm/px of one image by OME metadata, which has one entry per image in the order of the file."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        logger.warning("%s: its OME metadata cannot be parsed and is ignored", path)
        return None
    entries = root.findall(".//{*}Pixels")
    pixels = entries[series if len(entries) == n_series else 0] if entries else None
    if pixels is None or "PhysicalSizeX" not in pixels.attrib:
        return None
    sides = []
    for axis in "XY":
        unit = pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in _UM_PER_UNIT:
            return None  # pixel, reference frame: a size without a length
        sides.append(float(pixels.attrib.get(f"PhysicalSize{axis}", "nan")) * _UM_PER_UNIT[unit])
    return square(sides[0], sides[1], path)


def _mpp_of_tags(tiff: Any, page: Any, path: Path, *, described: bool) -> float | None:
    named = re.search(r"\bMPP\s*=\s*([0-9.]+)", str(page.description or ""))
    if named and described:
        return float(named.group(1))
    tags = {name: page.tags[name].value for name in ("XResolution", "YResolution") if name in page.tags}
    if len(tags) < 2 or any(v[0] == 0 or v[1] == 0 for v in tags.values()):
        return None
    unit = page.tags["ResolutionUnit"].value if "ResolutionUnit" in page.tags else 2
    um = {2: 25400.0, 3: 1e4}.get(int(unit))
    if tiff.is_imagej:
        um = _UM_PER_UNIT.get((tiff.imagej_metadata or {}).get("unit", ""))
    if um is None:
        return None
    return plausible(*(um * v[1] / v[0] for v in tags.values()), path)


def plausible(x: float, y: float, path: Path) -> float | None:
    """µm/px from a resolution tag, or None when the tag is about printing."""
    if not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (x, y)):
        logger.info("%s: its resolution tag says %g µm/px, which is a print resolution; ignored", path, x)
        return None
    return square(x, y, path)


def square(x: float, y: float, path: Path) -> float:
    """µm/px of pixels that have to be square."""
    if not (np.isfinite(x) and np.isfinite(y)) or x <= 0 or abs(x - y) > 1e-3 * max(x, y):
        raise ValueError(
            f"{path}: its metadata say {x:g} x {y:g} µm/px; ghistpy needs square pixels: resample the image, or pass "
            "mpp= when the metadata are wrong"
        )
    return float(x)
