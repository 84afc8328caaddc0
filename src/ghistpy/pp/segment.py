"""Nuclei of a slide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.pp.networks import NETWORKS

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource
    from ghistpy.imaging.stitch import Segment
    from ghistpy.imaging.watershed import WatershedParams

_log = logging.getLogger("ghistpy")

METHODS = ("watershed", *NETWORKS)


def segment_nuclei(
    sdata: SpatialData,
    *,
    method: str | Callable[[np.ndarray], np.ndarray] = "watershed",
    mpp: float | None = None,
    image_key: str = _keys.IMAGE,
    key_added: str = _keys.LABELS,
    params: WatershedParams | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    tile_px: int = 1024,
    n_jobs: int = 1,
    scratch_dir: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Segment the nuclei of a slide, tile by tile.

    Parameters
    ----------
    sdata
        The slide.
    method
        ``"watershed"`` needs no trained model: it chooses nucleus-like regions among the components of
        many thresholds and divides clumps. ``"instanseg"`` and ``"cellpose"`` are pretrained networks of
        other packages, which come with the extras of that name. Or a function of a (h, w, 3) uint8 RGB image
        that returns (h, w) integer labels with 0 = background, called once per tile from ``n_jobs`` threads.
    mpp
        µm per px, for an image that does not say it; it is then stored with the image.
    image_key
        Image, (c, y, x); grey, RGBA, 16-bit and float images are converted.
    key_added
        Labels element to write.
    params
        Settings of ``"watershed"``, :class:`ghistpy.imaging.watershed.WatershedParams`; their smallest and
        largest area hold for a function or network too when given.
    weights
        File with the weights of a network: ``instanseg.pt`` of a model of InstanSeg, or a model of Cellpose
        4. Default: the package's own, which it downloads once.
    device
        Of torch, for a network; default: a GPU when there is one.
    tile_px
        Side of the tiles in px; does not change the result but for objects wider than 30 µm.
    n_jobs
        Threads.
    scratch_dir
        Folder in which to keep the labels while they are not saved (a zarr array that the element reads
        from), for slides whose labels do not fit into memory (4 bytes per px).
    progress
        Show a progress bar.

    Writes
    ------
    ========================= ====== ===== ==============================================
    key                       slot   dtype meaning
    ========================= ====== ===== ==============================================
    ``key_added``             labels int32 (y, x) ids 1..n, 0 = background; same size and
                                           Scale to "microns" as the image
    ========================= ====== ===== ==============================================

    The labels are written in memory. How many objects were left out, and why, is logged; a slide without a
    nucleus gets empty labels and a warning in the log.

    Raises
    ------
    ValueError
        Unknown method or image, µm/px unknown or in conflict with ``mpp``, pixels that are no image, or a
        function that returns no labels; ``weights`` that are no model, or given for another method.
    ImportError
        The package of a network is not installed; the message has the pip line.
    FileNotFoundError
        No such ``weights``, or none given and none to be had; the message says where they are.

    Notes
    -----
    Every nucleus belongs to the tile that contains its centroid, so none is cut or counted twice at the
    border of tiles. Cost: about 2 s per 10⁶ px of tissue on one core.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=40, n_genes=5, size_um=150.0, mpp=0.5, seed=0)
    >>> gp.pp.segment_nuclei(sdata, key_added="found", progress=False)
    >>> sdata["found"].shape == sdata["nuclei"].shape
    True
    """
    from ghistpy.imaging.stitch import segment_tiles
    from ghistpy.io import open_image, rgb_source
    from ghistpy.io.elements import labels_element

    if not callable(method) and method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {METHODS} or a function of an RGB image")
    if weights is not None and method not in NETWORKS:
        raise ValueError(f"weights={str(weights)!r}: only for method={' or '.join(map(repr, NETWORKS))}")
    scale = _resolve_mpp(sdata, image_key, mpp)
    source = rgb_source(open_image(sdata, image_key), f"image_key={image_key!r}")
    if method in NETWORKS:
        method, params = _network(method, source, scale, params, weights, device)
    segment, area = _segment_function(method, source, scale, params)
    out = _allocate(source.shape[-2:], scratch_dir, key_added)
    report = segment_tiles(
        source, segment, out, mpp=scale, area_um2=area, tile_px=tile_px, n_jobs=n_jobs, progress=progress
    )
    if key_added in sdata.labels:
        _log.info("labels %r replaced in memory", key_added)
        del sdata.labels[key_added]
    sdata.labels[key_added] = labels_element(_lazy(out), scale)
    _log.info(
        "labels %r: %d nuclei in %d tiles; left out: %d smaller than %g µm², %d larger than %g µm², "
        "%d outlined differently by two tiles",
        key_added,
        report.n_nuclei,
        report.n_tiles,
        report.n_small,
        area[0],
        report.n_large,
        area[1],
        report.n_conflicts,
    )
    if report.n_nuclei == 0:
        _log.warning("labels %r: no nucleus found in image %r at %g µm/px", key_added, image_key, scale)


def _resolve_mpp(sdata: SpatialData, image_key: str, mpp: float | None) -> float:
    """µm/px of the image; ``mpp`` fills it in where it is unknown."""
    from spatialdata.transformations import Identity, get_transformation, set_transformation

    from ghistpy.io import get_element, get_mpp
    from ghistpy.io.elements import check_mpp, to_microns

    if mpp is None:
        return get_mpp(sdata, image_key)
    mpp = check_mpp(mpp)
    element = get_element(sdata, "images", image_key, "image_key")
    known = get_transformation(element, get_all=True).get(_keys.MICRONS)
    if known is None or isinstance(known, Identity):
        set_transformation(element, to_microns(mpp)[_keys.MICRONS], _keys.MICRONS)
        return mpp
    stored = get_mpp(sdata, image_key)
    if abs(stored - mpp) > 1e-3 * mpp:
        raise ValueError(
            f"mpp={mpp:g} contradicts image_key={image_key!r}, whose Scale to 'microns' says {stored:g}; "
            "leave mpp out, or set the right Scale"
        )
    return stored


def _network(
    method: str,
    source: ArraySource,
    mpp: float,
    params: WatershedParams | None,
    weights: str | Path | None,
    device: str | None,
) -> tuple[Callable[[np.ndarray], np.ndarray], WatershedParams]:
    """A pretrained network as a function of a tile, and the areas that count as nuclei."""
    from ghistpy.imaging.stain import sample_pixels
    from ghistpy.imaging.watershed import WatershedParams
    from ghistpy.pp.networks import load_network

    return load_network(method, weights, device, mpp, sample_pixels(source)), params or WatershedParams()


def _segment_function(
    method: str | Callable[[np.ndarray], np.ndarray], source: ArraySource, mpp: float, params: WatershedParams | None
) -> tuple[Segment, tuple[float, float]]:
    """What segments a window, and the areas that count as nuclei."""
    if callable(method):
        area = (0.0, np.inf) if params is None else (params.min_area_um2, params.max_area_um2)
        return lambda rgb, open_edges: method(np.ascontiguousarray(rgb.transpose(1, 2, 0))), area
    from ghistpy.imaging.stain import sample_pixels, white_balance
    from ghistpy.imaging.watershed import WatershedParams, segment_window

    chosen = params or WatershedParams()
    stats = white_balance(sample_pixels(source))
    _log.info("background %s, OD scale %s", stats.background, stats.od_scale)

    def segment(rgb: np.ndarray, open_edges: tuple[bool, bool, bool, bool]) -> np.ndarray:
        return segment_window(rgb, stats, mpp, chosen, open_edges=open_edges)

    return segment, (chosen.min_area_um2, chosen.max_area_um2)


def _allocate(shape: tuple[int, int], scratch_dir: str | Path | None, key: str) -> Any:
    if scratch_dir is None:
        return np.zeros(shape, dtype=np.int32)
    import tempfile

    import zarr

    folder = Path(scratch_dir)
    if not folder.is_dir():
        raise ValueError(f"scratch_dir={str(scratch_dir)!r} is not a folder")
    # a new folder each time: an element of an earlier call may still read from its own
    place = tempfile.mkdtemp(prefix=f"{key}-", dir=folder)
    return zarr.create_array(f"{place}/labels.zarr", shape=shape, chunks=(512, 512), dtype=np.int32, fill_value=0)


def _lazy(out: Any) -> Any:
    if isinstance(out, np.ndarray):
        return out
    import dask.array as da

    return da.from_zarr(out)
