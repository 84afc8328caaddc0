"""Images and labels of a SpatialData as array sources, and the µm/px that belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.geometry.source import ArraySource, MemorySource, Window

if TYPE_CHECKING:
    from spatialdata import SpatialData

# how far the scales of x and y may differ, relative, before the pixels no longer count as square
ISOTROPY_TOLERANCE = 1e-3


class ZarrSource:
    """A zarr array as an :class:`~ghistpy.geometry.ArraySource`; reads are safe from several threads.

    Reading the array directly is two to six times faster than through a dask graph over it.
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


class RGBSource:
    """An image source of another kind, converted window by window to (3, y, x) uint8 RGB."""

    def __init__(self, source: ArraySource, convert: Any) -> None:
        self._source = source
        self._convert = convert
        self.shape = (3, *source.shape[-2:])
        self.dtype = np.dtype(np.uint8)
        self.chunks = (3, *source.chunks[-2:])

    def read(self, window: Window) -> np.ndarray:
        """Pixels inside ``window`` as uint8 RGB."""
        return self._convert(self._source.read(window))


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
        if isinstance(wrapped, zarr.Array) and wrapped.shape == array.shape:
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


def get_element(sdata: SpatialData, kind: str, key: str, argument: str) -> Any:
    """Element ``key`` among ``sdata.<kind>``, or an error that lists the elements there are.

    Parameters
    ----------
    sdata
        The slide.
    kind
        ``"images"``, ``"labels"``, ``"shapes"``, ``"points"`` or ``"tables"``.
    key
        Name of the element.
    argument
        Name of the caller's argument that ``key`` came from; the error names it.

    Raises
    ------
    ValueError
        When there is no such element.
    """
    elements = getattr(sdata, kind)
    if key not in elements:
        listed = ", ".join(repr(k) for k in elements) or "none"
        raise ValueError(f"{argument}={key!r} is not among the {kind} of this SpatialData (available: {listed})")
    return elements[key]


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


def rgb_source(source: ArraySource) -> ArraySource:
    """The image as uint8 RGB, whatever it was stored as.

    A source that is (3, y, x) uint8 is returned as it is. Others are converted window by window by
    :func:`ghistpy.imaging.stain.as_rgb_uint8`, whose rules look at the dtype and the number of channels
    only, never at the values of the window, so that a result does not depend on tiling.

    Parameters
    ----------
    source
        An image source, axes (c, y, x).

    Returns
    -------
    ArraySource
        Axes (3, y, x), uint8.

    Raises
    ------
    ValueError
        The image is neither grey, RGB nor RGBA, or its dtype has no stated conversion.
    """
    if len(source.shape) != 3:
        raise ValueError(f"image: expected axes (c, y, x), got shape {source.shape}")
    if source.shape[0] == 3 and source.dtype == np.uint8:
        return source
    from ghistpy.imaging.stain import as_rgb_uint8

    # a window of one pixel: a kind that cannot be converted is refused here, not in the middle of a run
    as_rgb_uint8(source.read(Window(0, 0, min(1, source.shape[1]), min(1, source.shape[2]))))
    return RGBSource(source, as_rgb_uint8)


def element_mpp(sdata: SpatialData, kind: str, key: str, argument: str) -> float:
    """µm/px of an image or labels element: its ``Scale`` to the coordinate system ``"microns"``.

    Parameters
    ----------
    sdata
        The slide.
    kind
        ``"images"`` or ``"labels"``.
    key
        Name of the element.
    argument
        Name of the caller's argument that ``key`` came from.

    Returns
    -------
    float
        µm per pixel of the full resolution.

    Raises
    ------
    ValueError
        There is no such transformation, it is an Identity (the default of an element without scale),
        anisotropic by more than 1e-3, rotated, mirrored or shifted. The message names ``mpp=``.
    """
    from spatialdata.transformations import Identity, get_transformation

    element = get_element(sdata, kind, key, argument)
    known = get_transformation(element, get_all=True)
    remedy = "read the slide with io.read_slide(path, mpp=...) or set a Scale to 'microns'"
    if _keys.MICRONS not in known:
        raise ValueError(
            f"µm/px of {argument}={key!r} is unknown: it has no transformation to {_keys.MICRONS!r} "
            f"(coordinate systems: {sorted(known)}); {remedy}"
        )
    transformation = known[_keys.MICRONS]
    if isinstance(transformation, Identity):
        raise ValueError(
            f"µm/px of {argument}={key!r} is unknown: its transformation to {_keys.MICRONS!r} is an Identity, "
            f"which does not say 1 µm/px but that nobody set it; {remedy} (mpp=1.0 is allowed)"
        )
    matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)
    return _scale_of_matrix(matrix, f"{argument}={key!r}", remedy)


def _scale_of_matrix(matrix: np.ndarray, what: str, remedy: str) -> float:
    """µm/px of a 3 x 3 affine matrix (x, y), when it is an isotropic scale about the origin."""
    x, y = float(matrix[0, 0]), float(matrix[1, 1])
    largest = max(abs(x), abs(y))
    problem = None
    if not np.isfinite(matrix).all() or largest == 0:
        problem = f"not a usable scale ({x} x {y})"
    elif max(abs(matrix[0, 1]), abs(matrix[1, 0])) > ISOTROPY_TOLERANCE * largest:
        problem = "rotated or sheared"
    elif min(x, y) <= 0:
        problem = f"mirrored ({x:g} µm/px along x, {y:g} along y)"
    elif abs(x - y) > ISOTROPY_TOLERANCE * largest:
        problem = f"anisotropic ({x:g} µm/px along x, {y:g} along y)"
    elif max(abs(matrix[0, 2]), abs(matrix[1, 2])) > 1e-6 * largest:
        problem = f"shifted by ({matrix[0, 2]:g}, {matrix[1, 2]:g}) µm"
    if problem is None:
        return float(np.sqrt(x * y)) if x != y else x
    raise ValueError(
        f"the transformation of {what} to {_keys.MICRONS!r} is {problem}; ghistpy needs square, unrotated "
        f"pixels with x_um = (column + 0.5) * mpp: resample the element, then {remedy}"
    )


def get_mpp(sdata: SpatialData, image_key: str = _keys.IMAGE) -> float:
    """µm/px of an image: its ``Scale`` to the coordinate system ``"microns"``, the one source of truth.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Name of the image.

    Returns
    -------
    float
        µm per pixel of the full resolution. The centre of column ``c`` lies at ``(c + 0.5) * mpp`` µm.

    Raises
    ------
    ValueError
        µm/px is absent, an Identity, anisotropic by more than 1e-3, rotated, mirrored or shifted. The
        message names ``mpp=``.

    Examples
    --------
    >>> import ghistpy as gp
    >>> gp.io.get_mpp(gp.datasets.simulate_slide(n_cells=50, n_genes=10, mpp=0.5))
    0.5
    """
    return element_mpp(sdata, "images", image_key, "image_key")


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
    return rgb_source(image), labels, mpp
