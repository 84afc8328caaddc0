"""Circles of a shapes element in µm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys
from ghistpy.io.resolution import get_element

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Circles:
    """``ids`` (S,) index of the shapes, ``xy_um`` (S, 2) centres x, y and ``radius_um`` (S,) in µm."""

    ids: np.ndarray
    xy_um: np.ndarray
    radius_um: np.ndarray


def circles_um(sdata: SpatialData, shapes_key: str = _keys.SPOTS) -> Circles:
    """Read circles in µm, in the order of the element.

    Parameters
    ----------
    sdata
        The slide.
    shapes_key
        Points with a radius and a transformation to the coordinate system ``"microns"``.

    Raises
    ------
    ValueError
        The element is missing, holds no circles, has no way to µm, or would become ellipses there.
    """
    from spatialdata.transformations import Identity, get_transformation

    shapes = get_element(sdata, "shapes", shapes_key, "shapes_key")
    kinds = set(shapes.geometry.geom_type)
    if "radius" not in shapes or not kinds <= {"Point"}:
        raise ValueError(f"shapes_key={shapes_key!r} holds {sorted(kinds)}; expected circles: points with a 'radius'")
    known = get_transformation(shapes, get_all=True)
    if _keys.MICRONS not in known:
        raise ValueError(
            f"shapes_key={shapes_key!r} has no transformation to {_keys.MICRONS!r} (there are {sorted(known)}); "
            "set one with spatialdata.transformations.set_transformation, as io.read_spots does"
        )
    xy = np.column_stack([shapes.geometry.x.to_numpy(), shapes.geometry.y.to_numpy()]).astype(np.float64)
    radius = shapes["radius"].to_numpy(dtype=np.float64)
    transformation = known[_keys.MICRONS]
    if not isinstance(transformation, Identity):
        matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
        stretch = np.linalg.svd(matrix[:2, :2], compute_uv=False)
        if stretch[0] > stretch[1] * 1.001:
            raise ValueError(
                f"shapes_key={shapes_key!r}: the transformation to {_keys.MICRONS!r} turns circles into ellipses "
                f"(scales {stretch[0]:.4g} and {stretch[1]:.4g}); give one scale for both axes"
            )
        xy, radius = xy @ matrix[:2, :2].T + matrix[:2, 2], radius * stretch.mean()
    return Circles(shapes.index.to_numpy(), xy, radius)
