"""Arrays as image and labels elements at a known µm/px."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from xarray import DataArray, DataTree

CHUNK = 512
# images with a longer side than this get a pyramid
PYRAMID_ABOVE = 2048
# the coarsest level still fills a screen
_SMALLEST_LEVEL = 1024


def check_mpp(mpp: Any, argument: str = "mpp") -> float:
    """µm per pixel as a positive float, or an error."""
    if isinstance(mpp, bool) or not isinstance(mpp, (int, float, np.integer, np.floating)):
        raise ValueError(f"{argument}={mpp!r}: expected µm per pixel as a number, such as {argument}=0.5")
    if not np.isfinite(mpp) or mpp <= 0:
        raise ValueError(f"{argument}={mpp!r}: expected a positive number of µm per pixel, such as {argument}=0.5")
    return float(mpp)


def to_microns(mpp: float) -> dict[str, Any]:
    """The transformation that states µm/px: a Scale to the coordinate system ``"microns"``."""
    from spatialdata.transformations import Scale

    return {_keys.MICRONS: Scale([mpp, mpp], axes=("x", "y"))}


def scale_factors(height: int, width: int) -> list[int] | None:
    """Relative steps of the pyramid of an image of that size, None for a small one."""
    longest, steps = max(height, width), []
    if longest <= PYRAMID_ABOVE:
        return None
    while longest > _SMALLEST_LEVEL:
        steps.append(2)
        longest //= 2
    return steps


def image_element(array: Any, mpp: float) -> DataArray | DataTree:
    """A (3, y, x) uint8 image as an image element, with a lazy pyramid when it is large.

    Parameters
    ----------
    array
        (3, y, x) uint8 numpy or dask array, or a list of dask arrays: the levels of a stored pyramid, the
        finest first.
    mpp
        µm per pixel.

    Returns
    -------
    DataArray or DataTree
        Channels r, g, b; a Scale to ``"microns"``; chunks of 512 px.
    """
    import dask.array as da
    from spatialdata.models import Image2DModel

    if isinstance(array, list):
        if len(array) > 1:
            return _stored_pyramid(array, mpp)
        array = array[0]
    if isinstance(array, np.ndarray):
        array = da.from_array(array, chunks=(array.shape[0], CHUNK, CHUNK))
    return Image2DModel.parse(
        array,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations=to_microns(mpp),
        scale_factors=scale_factors(*array.shape[-2:]),
        chunks=(array.shape[0], CHUNK, CHUNK),
    )


def _stored_pyramid(levels: list[Any], mpp: float) -> DataTree:
    """Levels that a file holds as a multiscale image; what is missing at the coarse end is computed lazily."""
    import dask.array as da
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    levels = [a.rechunk((a.shape[0], CHUNK, CHUNK)) for a in levels]
    while max(levels[-1].shape[-2:]) > PYRAMID_ABOVE:
        half = da.coarsen(np.mean, levels[-1], {1: 2, 2: 2}, trim_excess=True)
        levels.append((half + 0.5).astype(np.uint8).rechunk((half.shape[0], CHUNK, CHUNK)))
    height, width = levels[0].shape[-2:]
    scales = {}
    for i, level in enumerate(levels):
        h, w = level.shape[-2:]
        # centres of the pixels, in pixels of the finest level
        coords = {
            "c": ["r", "g", "b"],
            "y": (np.arange(h) + 0.5) * (height / h),
            "x": (np.arange(w) + 0.5) * (width / w),
        }
        scales[f"scale{i}"] = Dataset({"image": DataArray(level, dims=("c", "y", "x"), coords=coords)})
    tree = DataTree.from_dict(scales)
    # the transformations of the coarser levels follow from their size
    set_transformation(tree, to_microns(mpp), set_all=True)
    Image2DModel().validate(tree)
    return tree


def labels_element(array: Any, mpp: float | None) -> DataArray:
    """A (y, x) integer numpy or dask array as a labels element, at one scale; ``mpp`` None = unknown.

    A pyramid by averaging would corrupt ids above 2**53, so there is none.
    """
    import dask.array as da
    from spatialdata.models import Labels2DModel

    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {array.dtype}; floats merge ids above 2**24")
    if isinstance(array, np.ndarray):
        array = da.from_array(array, chunks=(CHUNK, CHUNK))
    scale = None if mpp is None else to_microns(mpp)
    return Labels2DModel.parse(array, dims=("y", "x"), transformations=scale, chunks=(CHUNK, CHUNK))
