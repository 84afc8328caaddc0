"""Elements of a SpatialData by name, and their µm per pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

# how far the scales of x and y may differ, relative, before the pixels no longer count as square
ISOTROPY_TOLERANCE = 1e-3


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
    largest = float(np.abs(matrix[:2, :2]).max())
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
