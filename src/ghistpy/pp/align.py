"""Registration of an assay to the image: by landmarks, or by densities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.geometry.affine import apply_affine, check_affine, take_apart

if TYPE_CHECKING:
    from spatialdata import SpatialData

_log = logging.getLogger("ghistpy")

MODELS = {"similarity": 2, "affine": 3}
_BEFORE = "spatial_unaligned"


def align_landmarks(
    sdata: SpatialData,
    moving: Any,
    fixed: Any,
    *,
    model: str = "similarity",
    elements: Sequence[str] | None = None,
    table_key: str | None = _keys.MEASURED,
    allow_mirrored: bool = False,
    max_residual_um: float | None = None,
) -> None:
    """Move an assay onto the image by pairs of landmarks.

    Parameters
    ----------
    sdata
        The slide.
    moving
        (k, 2) x, y of landmarks where the assay has them now, in µm (coordinate system ``"microns"``).
    fixed
        (k, 2) x, y of the same landmarks on the image, in µm.
    model
        ``"similarity"`` (rotation, shift, one scale; 2 pairs or more) or ``"affine"`` (3 or more).
    elements
        Points, shapes and labels to move. Default: all points, and all shapes but ``tissue``.
    table_key
        Table whose ``obsm["spatial"]`` moves along; None for none.
    allow_mirrored
        Accept a registration that turns the plane over.
    max_residual_um
        Refuse a registration whose root mean square residual is larger.

    Writes
    ------
    In memory; no pixel, label or transcript is resampled:

    ============================= ============== =====================================================
    key                           slot           meaning
    ============================= ============== =====================================================
    ``"microns"``                 transformation of every element: what it was, then the registration
    ``spatial``                   obsm           moved positions
    ``spatial_unaligned``         obsm           the positions before
    ``ghistpy["alignment"]``      attrs          ``matrix``, ``model``, ``rms_um``, ``residuals_um``,
                                                 ``leave_one_out_um``, ``elements``
    ============================= ============== =====================================================

    Raises
    ------
    ValueError
        Landmarks that are too few, not finite, in pairs that do not match in number, on one point or one line,
        mirrored, or with residuals above the limit. Nothing is written.

    Notes
    -----
    Least squares by scikit-image. ``leave_one_out_um`` is the error at each landmark of the registration by the
    others: with few landmarks it is what residuals only pretend to be.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5)
    >>> gp.pp.align_landmarks(sdata, [[0, 0], [100, 0], [0, 100]], [[5, 0], [105, 0], [5, 100]])
    >>> sdata.attrs["ghistpy"]["alignment"]["rms_um"] < 1e-6
    True
    """
    if model not in MODELS:
        raise ValueError(f"model={model!r}: expected one of {tuple(MODELS)}")
    a, b = _landmarks(moving, "moving"), _landmarks(fixed, "fixed")
    if len(a) != len(b):
        raise ValueError(f"moving and fixed: {len(a)} and {len(b)} landmarks; they are pairs, in the same order")
    if len(a) < MODELS[model]:
        raise ValueError(f"moving: {len(a)} landmarks; model={model!r} needs {MODELS[model]} or more")
    _check_spread(a, "moving", model)
    _check_spread(b, "fixed", model)
    matrix = _estimate(a, b, model, allow_mirrored)
    residuals = np.linalg.norm(apply_affine(matrix, a) - b, axis=1)
    rms = float(np.sqrt((residuals**2).mean()))
    if max_residual_um is not None and rms > max_residual_um:
        raise ValueError(
            f"max_residual_um={max_residual_um:g}: the landmarks fit to {rms:.1f} µm only, the worst is number "
            f"{int(residuals.argmax())} with {residuals.max():.1f} µm; correct it, or use model='affine'"
        )
    left_out = _leave_one_out(a, b, model, allow_mirrored)
    report = {"model": model, "rms_um": rms, "residuals_um": residuals.tolist(), "leave_one_out_um": left_out}
    _apply(sdata, matrix, elements, table_key, report)


def align_density(
    sdata: SpatialData,
    *,
    table_key: str = _keys.MEASURED,
    image_key: str = _keys.IMAGE,
    elements: Sequence[str] | None = None,
    flips: bool = True,
    scales: Sequence[float] = (1.0,),
) -> None:
    """Move an assay onto the image by where its cells and the nuclei of the image are dense.

    Rotation over the whole circle, flip and shift are searched; scales only those that are given. The result is a
    start for :func:`align_landmarks`, and often good enough: :func:`match_cells` says so.

    Parameters
    ----------
    sdata
        The slide.
    table_key
        Table of cells with positions in µm.
    image_key
        H&E image.
    elements
        Points, shapes and labels to move along. Default: all points, and all shapes but ``tissue``.
    flips
        Also try the mirror image (in which x and y swapped is a flip and a turn).
    scales
        Scales to try, such as ``(1.0, mpp)`` when positions may be pixels.

    Writes
    ------
    As :func:`align_landmarks`; ``attrs["ghistpy"]["alignment"]`` holds ``matrix``, ``model`` (``"density"``),
    ``z``, ``score`` and ``elements``.

    Raises
    ------
    ValueError
        No placement stands out from chance, fewer than 20 cells, or what :func:`match_cells` refuses as input.
        Nothing is written.

    Examples
    --------
    >>> import numpy as np
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=400, n_genes=5, seed=1)
    >>> truth = sdata["measured"].obsm["spatial"].copy()
    >>> sdata["measured"].obsm["spatial"] = truth[:, ::-1] + [30.0, -10.0]
    >>> gp.pp.align_density(sdata)
    >>> bool(np.abs(sdata["measured"].obsm["spatial"] - truth).max() < 3)
    True
    """
    from ghistpy.imaging.registration import register_density
    from ghistpy.io import get_element, get_mpp, open_image, rgb_source
    from ghistpy.pp.match import cell_positions

    table = get_element(sdata, "tables", table_key, "table_key")
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(f"table_key={table_key!r} has no obsm['spatial'] (x, y in µm) to align")
    xy = cell_positions(sdata, table, table_key)
    if len(xy) < 20:
        raise ValueError(f"table_key={table_key!r} has {len(xy)} cells; 20 or more are needed to align by density")
    if not len(scales) or not all(np.isfinite(s) and s > 0 for s in scales):
        raise ValueError(f"scales={scales!r}: expected one or more numbers above 0")
    source = rgb_source(open_image(sdata, image_key), f"image_key={image_key!r}")
    found = register_density(xy, source, get_mpp(sdata, image_key), flips=flips, scales=tuple(float(s) for s in scales))
    if not found.convincing:
        raise ValueError(
            f"table_key={table_key!r}: no rotation, flip or shift of the cells stands out from chance (best z "
            f"{found.z:.1f}, "
            f"{found.score:+.2f} SD of haematoxylin); set landmarks (pp.align_landmarks), or give other scales="
        )
    report = {"model": "density", "z": found.z, "score": found.score}
    _apply(sdata, found.matrix, elements, table_key, report)


def _landmarks(values: Any, name: str) -> np.ndarray:
    try:
        xy = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected (k, 2) numbers, x and y in µm") from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"{name}: expected (k, 2) numbers, x and y in µm, got shape {xy.shape}")
    if not np.isfinite(xy).all():
        raise ValueError(f"{name}: {int((~np.isfinite(xy)).any(axis=1).sum())} landmarks are NaN or infinite")
    return xy


def _check_spread(xy: np.ndarray, name: str, model: str) -> None:
    spread = np.linalg.svd(xy - xy.mean(axis=0), compute_uv=False)
    if spread[0] < 1e-6:
        raise ValueError(f"{name}: all landmarks are one point; spread them over the slide")
    if model == "affine" and spread[1] < 1e-3 * spread[0]:
        raise ValueError(f"{name}: the landmarks lie on one line, which leaves an affine map open; add one beside it")


def _fit(a: np.ndarray, b: np.ndarray, model: str) -> np.ndarray:
    from skimage import transform

    kind = {"similarity": transform.SimilarityTransform, "affine": transform.AffineTransform}[model]
    if hasattr(kind, "from_estimate"):  # scikit-image 0.26
        found = kind.from_estimate(a, b)
        return check_affine(found.params, "landmarks") if found else np.full((3, 3), np.nan)
    found = kind()
    return check_affine(found.params, "landmarks") if found.estimate(a, b) else np.full((3, 3), np.nan)


def _estimate(a: np.ndarray, b: np.ndarray, model: str, allow_mirrored: bool) -> np.ndarray:
    """(3, 3) that takes a to b."""
    matrix = _fit(a, b, model)
    mirrored = model == "affine" and take_apart(matrix).mirrored
    if model == "similarity" and len(a) > 2:
        # a similarity never mirrors by itself: it would only fit badly
        flip = np.diag([-1.0, 1.0, 1.0])
        other = _fit(apply_affine(flip, a), b, model) @ flip
        error, flipped = (np.linalg.norm(apply_affine(m, a) - b) for m in (matrix, other))
        if flipped < 0.25 * error and error > 1e-6 * np.ptp(b):
            matrix, mirrored = other, True
    if mirrored and not allow_mirrored:
        raise ValueError(
            "moving and fixed: the landmarks are mirrored (the registration turns the plane over); check their order "
            "and "
            "whether x and y are swapped, or pass allow_mirrored=True when one side was scanned face down"
        )
    return matrix


def _leave_one_out(a: np.ndarray, b: np.ndarray, model: str, allow_mirrored: bool) -> list[float]:
    """Error at each landmark when it is not used; empty when too few are left."""
    if len(a) <= MODELS[model]:
        return []
    errors = []
    for i in range(len(a)):
        keep = np.arange(len(a)) != i
        try:
            matrix = _estimate(a[keep], b[keep], model, allow_mirrored)
        except ValueError:  # what is left lies on a line
            return []
        errors.append(float(np.linalg.norm(apply_affine(matrix, a[[i]]) - b[[i]])))
    return errors


def _apply(
    sdata: SpatialData,
    matrix: np.ndarray,
    elements: Sequence[str] | None,
    table_key: str | None,
    report: dict[str, Any],
) -> None:
    """Append a registration to the transformations of the elements, and move the table."""
    from spatialdata.transformations import Affine, get_transformation, set_transformation
    from spatialdata.transformations import Sequence as Chain

    from ghistpy.io import get_element

    names = [*sdata.points, *(s for s in sdata.shapes if s != _keys.TISSUE)] if elements is None else list(elements)
    known = {**dict(sdata.points.items()), **dict(sdata.shapes.items()), **dict(sdata.labels.items())}
    absent = [n for n in names if n not in known]
    if absent:
        raise ValueError(f"elements: {absent} are not among points, shapes and labels (available: {list(known)})")
    current = {name: get_transformation(known[name], get_all=True).get(_keys.MICRONS) for name in names}
    lost = [name for name, transformation in current.items() if transformation is None]
    if lost and elements is not None:
        raise ValueError(f"elements: {lost} have no transformation to {_keys.MICRONS!r} that could be continued")
    table = None
    if table_key is not None and (table_key in sdata.tables or table_key != _keys.MEASURED):
        table = get_element(sdata, "tables", table_key, "table_key")
    move = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    moved = [name for name in names if name not in lost]
    for name in moved:
        set_transformation(known[name], Chain([current[name], move]), _keys.MICRONS)
    if table is not None and _keys.SPATIAL in table.obsm:
        before = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
        table.obsm[_BEFORE] = before
        table.obsm[_keys.SPATIAL] = apply_affine(matrix, before)
    own = dict(sdata.attrs.get(_keys.ATTRS, {}))
    own["alignment"] = {
        **report,
        "matrix": matrix.tolist(),
        "elements": moved,
        "table": table_key if table is not None else "",
    }
    sdata.attrs[_keys.ATTRS] = own
    parts = take_apart(matrix)
    _log.info(
        "moved %s%s: rotation %.2f°, scale %.4f, shift (%.1f, %.1f) µm%s",
        moved,
        f" and table {table_key!r}" if table is not None else "",
        parts.rotation_deg,
        parts.mean_scale,
        *parts.shift,
        ", mirrored" if parts.mirrored else "",
    )
    if lost:
        _log.warning("%s have no transformation to %r and were not moved", lost, _keys.MICRONS)
