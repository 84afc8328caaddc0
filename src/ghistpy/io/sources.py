"""Images and labels of a SpatialData as array sources, and the µm/px that belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.geometry.source import ArraySource, MemorySource, Window
from ghistpy.io._rgb import LazyArray, LazyRGB, find_white
from ghistpy.io.resolution import ISOTROPY_TOLERANCE, element_mpp, get_element, get_mpp

if TYPE_CHECKING:
    from spatialdata import SpatialData


class ZarrSource:
    """A zarr array, or what is sliced like one, as an :class:`~ghistpy.geometry.ArraySource`.

    Reads are safe from several threads, and two to six times faster than through a dask graph.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = tuple(int(n) for n in array.shape)
        self.dtype = np.dtype(array.dtype)
        self.chunks = tuple(int(c) for c in array.chunks)

    def read(self, window: Window) -> np.ndarray:
        """Pixels inside ``window``."""
        lead = (slice(None),) * (len(self.shape) - 2)
        return np.asarray(self._array[(*lead, slice(window.y0, window.y1), slice(window.x0, window.x1))])


class BlockSource:
    """Numpy blocks of a dask array in memory, read without going through its graph."""

    def __init__(self, blocks: dict[tuple[int, ...], np.ndarray]) -> None:
        lead = (0,) * (next(iter(blocks.values())).ndim - 2)
        rows = [blocks[(*lead, i, 0)].shape[-2] for i in range(1 + max(key[-2] for key in blocks))]
        columns = [blocks[(*lead, 0, j)].shape[-1] for j in range(1 + max(key[-1] for key in blocks))]
        self._blocks = {key[-2:]: block for key, block in blocks.items()}
        self._y, self._x = np.cumsum([0, *rows]), np.cumsum([0, *columns])
        first = blocks[(*lead, 0, 0)]
        self.shape = (*first.shape[:-2], int(self._y[-1]), int(self._x[-1]))
        self.dtype = first.dtype
        self.chunks = (*first.shape[:-2], min(512, max(rows)), min(512, max(columns)))

    def read(self, window: Window) -> np.ndarray:
        """Copy of the pixels inside ``window``."""
        out = np.empty((*self.shape[:-2], *window.shape), dtype=self.dtype)
        for i in range(*_touched(self._y, window.y0, window.y1)):
            y0, y1 = max(window.y0, self._y[i]), min(window.y1, self._y[i + 1])
            for j in range(*_touched(self._x, window.x0, window.x1)):
                x0, x1 = max(window.x0, self._x[j]), min(window.x1, self._x[j + 1])
                out[..., y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0] = self._blocks[i, j][
                    ..., y0 - self._y[i] : y1 - self._y[i], x0 - self._x[j] : x1 - self._x[j]
                ]
        return out


class DaskSource:
    """Any dask array as an :class:`~ghistpy.geometry.ArraySource`."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = tuple(int(n) for n in array.shape)
        self.dtype = np.dtype(array.dtype)
        self.chunks = tuple(int(max(c)) for c in array.chunks)

    def read(self, window: Window) -> np.ndarray:
        """Pixels inside ``window``, computed in the calling thread (callers bring their own threads)."""
        part = self._array[..., window.y0 : window.y1, window.x0 : window.x1]
        return np.array(part.compute(scheduler="synchronous"))


class _Slices:
    """An array source that is indexed by slices."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source
        self.shape, self.dtype, self.chunks = source.shape, source.dtype, source.chunks

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (k.indices(n) for k, n in zip(key[1:], self.shape[1:], strict=True))
        return self._source.read(Window(y0, x0, y1, x1))


def _touched(edges: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """First and one past the last block that overlaps ``[start, stop)``."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    return first, max(first, int(np.searchsorted(edges, stop, side="left")))


def _source_of_dask(array: Any) -> ArraySource:
    """The cheapest reader of a dask array: what it wraps when it is a plain wrapper, else the graph.

    The graph is asked, not the store that the SpatialData came from: an element that was replaced or
    recomputed in memory must be read as it is now, not as it once was on disk.
    """
    import zarr

    layers = getattr(array.__dask_graph__(), "layers", {})
    # rechunking moves values between blocks and changes none, so what was rechunked can be read instead
    names = [name for name in layers if not name.startswith("rechunk-")]
    name = next((n for n in names if f"original-{n}" in names), None)
    if len(names) == 2 and name is not None:
        wrapped = layers[f"original-{name}"].get(f"original-{name}")
        if isinstance(wrapped, (zarr.Array, LazyArray)) and wrapped.shape == array.shape:
            return ZarrSource(wrapped)
    if len(names) == 1 and names[0].startswith("array-"):
        # dask wraps a constant in a DataNode
        nodes = {key[1:]: getattr(node, "value", node) for key, node in dict(layers[names[0]]).items()}
        plain = all(isinstance(node, np.ndarray) for node in nodes.values())
        if plain and all(not any(key[:-2]) for key in nodes):
            source = BlockSource(nodes)
            if source.shape == array.shape:
                return source
    return DaskSource(array)


def _full_resolution(element: Any) -> Any:
    """The DataArray of the highest resolution, of a single-scale or a multiscale element."""
    if not hasattr(element, "children") or not element.children:
        return element
    scale = element["scale0"] if "scale0" in element.children else next(iter(element.children.values()))
    return next(iter(scale.data_vars.values()))


def _open(element: Any, axes: tuple[str, ...], argument: str, key: str) -> ArraySource:
    array = _full_resolution(element)
    if set(array.dims) != set(axes):
        raise ValueError(f"{argument}={key!r} has axes {tuple(array.dims)}, expected {axes}")
    if tuple(array.dims) != axes:
        array = array.transpose(*axes)
    data = array.data
    if isinstance(data, np.ndarray):
        return MemorySource(data)
    if hasattr(data, "__dask_graph__"):
        return _source_of_dask(data)
    raise TypeError(f"{argument}={key!r} holds a {type(data).__name__}, expected a numpy or a dask array")


def open_image(sdata: SpatialData, image_key: str = _keys.IMAGE) -> ArraySource:
    """Open the full resolution of an image for windowed reading.

    The zarr array itself is read when the element lies unchanged in a store, otherwise its blocks in
    memory or its dask graph. Values and channels are as stored: see :func:`rgb_source`.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Name of the image, single-scale or multiscale.

    Returns
    -------
    ArraySource
        Axes (c, y, x), the dtype of the element. ``read`` is safe from several threads.

    Raises
    ------
    ValueError
        No such image (the message lists those there are), or axes other than c, y, x.

    Examples
    --------
    >>> import ghistpy as gp
    >>> from ghistpy.geometry import Window
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=10)
    >>> gp.io.open_image(sdata).read(Window(0, 0, 8, 4)).shape
    (3, 8, 4)
    """
    element = get_element(sdata, "images", image_key, "image_key")
    return _open(element, ("c", "y", "x"), "image_key", image_key)


def stored_levels(sdata: SpatialData, image_key: str = _keys.IMAGE) -> list[ArraySource]:
    """Sources of all levels of an image that can be read directly, the finest first.

    A coarse level that is still to be computed from the full resolution costs more than the full resolution
    itself, at every read, and is left out.
    """
    element = get_element(sdata, "images", image_key, "image_key")
    finest = open_image(sdata, image_key)
    levels = []
    for level in (getattr(element, "children", None) or {}).values():
        data = next(iter(level.data_vars.values())).transpose("c", "y", "x").data
        if data.shape[-1] < finest.shape[-1]:
            levels.append(MemorySource(data) if isinstance(data, np.ndarray) else _source_of_dask(data))
    stored = [source for source in levels if not isinstance(source, DaskSource)]
    return [finest, *sorted(stored, key=lambda source: -source.shape[-1])]


def coarse_source(sdata: SpatialData, image_key: str, resolution_um: float) -> tuple[ArraySource, float]:
    """The coarsest stored resolution that is not coarser than ``resolution_um`` µm/px, as RGB, and its µm/px."""
    mpp, levels = get_mpp(sdata, image_key), stored_levels(sdata, image_key)
    width = levels[0].shape[-1]
    fine = [s for s in levels if mpp * width / s.shape[-1] <= resolution_um]
    source = fine[-1] if fine else levels[0]
    return rgb_source(source, f"image_key={image_key!r}"), mpp * width / source.shape[-1]


def open_labels(sdata: SpatialData, labels_key: str = _keys.LABELS) -> ArraySource:
    """Open the full resolution of a label image for windowed reading.

    Parameters
    ----------
    sdata
        The slide.
    labels_key
        Name of the labels; 0 is background, every other value is the id of a nucleus.

    Returns
    -------
    ArraySource
        Axes (y, x), an integer dtype. ``read`` is safe from several threads.

    Raises
    ------
    ValueError
        No such labels (the message lists those there are), or labels that are not integers.
    """
    element = get_element(sdata, "labels", labels_key, "labels_key")
    source = _open(element, ("y", "x"), "labels_key", labels_key)
    if not np.issubdtype(source.dtype, np.integer):
        raise ValueError(
            f"labels_key={labels_key!r} has dtype {source.dtype}, expected integers: ids above 2**24 merge in "
            "float32, so export the label image as integers where it was made"
        )
    return source


def rgb_source(source: ArraySource, name: str = "image") -> ArraySource:
    """The image as uint8 RGB, whatever it was stored as.

    A source that is (3, y, x) uint8 is returned as it is. Others are converted window by window: grey is
    repeated, alpha composited over white, and more than 8 bits are scaled by one factor for the whole image
    (see Notes), so that a result does not depend on tiling.

    Parameters
    ----------
    source
        An image source, axes (c, y, x).
    name
        How errors call the image.

    Returns
    -------
    ArraySource
        Axes (3, y, x), uint8.

    Raises
    ------
    ValueError
        The image is neither grey, RGB nor RGBA, or holds negative values, NaN or values above 65535.

    Notes
    -----
    White is 1.0 for floats up to 1, otherwise 255, 4095 or 65535, the smallest that holds the maximum of the
    image. Finding it costs one pass over an image that is not uint8.
    """
    if len(source.shape) != 3:
        raise ValueError(f"{name}: expected axes (c, y, x), got shape {source.shape}")
    if source.shape[0] == 3 and source.dtype == np.uint8:
        return source
    pixels = _Slices(source)
    return ZarrSource(LazyRGB(pixels, find_white(pixels, name), name))


def open_slide(
    sdata: SpatialData, image_key: str = _keys.IMAGE, labels_key: str = _keys.LABELS
) -> tuple[ArraySource, ArraySource, float]:
    """Open image (uint8 RGB) and labels of a slide and check that they belong together.

    Parameters
    ----------
    sdata
        The slide.
    image_key, labels_key
        Names of image and labels.

    Returns
    -------
    image, labels, mpp
        Sources with axes (3, y, x) uint8 and (y, x) integer, of the same size, and µm/px.

    Raises
    ------
    ValueError
        An element is missing, µm/px is unknown, or labels and image differ in shape or in µm/px.
    """
    from spatialdata.transformations import Identity, get_transformation

    mpp = get_mpp(sdata, image_key)
    image, labels = open_image(sdata, image_key), open_labels(sdata, labels_key)
    if image.shape[-2:] != labels.shape:
        raise ValueError(
            f"labels_key={labels_key!r} has shape (y, x) = {labels.shape} but image_key={image_key!r} has "
            f"{image.shape[-2:]}: segment this image, or resample the labels to its full resolution "
            "(nearest neighbour)"
        )
    own = get_transformation(sdata.labels[labels_key], get_all=True).get(_keys.MICRONS)
    if own is not None and not isinstance(own, Identity):
        labels_mpp = element_mpp(sdata, "labels", labels_key, "labels_key")
        if abs(labels_mpp - mpp) > ISOTROPY_TOLERANCE * mpp:
            raise ValueError(
                f"labels_key={labels_key!r} is at {labels_mpp:g} µm/px but image_key={image_key!r} at {mpp:g}: "
                "correct the Scale to 'microns' of the one that is wrong"
            )
    return rgb_source(image, f"image_key={image_key!r}"), labels, mpp
