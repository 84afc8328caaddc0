"""Stain of a slide: its look, and the way to another's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.imaging.normalize import (
    DEFAULT_REFERENCE,
    METHODS,
    StainReference,
    StainTransform,
    fit_reference,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

_log = logging.getLogger("ghistpy")

NORMALIZED = "he_normalized"


def fit_stain(sdata: SpatialData, *, image_key: str = _keys.IMAGE) -> StainReference:
    """The look of the H&E of a slide, from pixels sampled all over its tissue.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Image with known µm/px.

    Returns
    -------
    StainReference
        Value of glass; stain vectors and amounts (Macenko); mean and spread in Ruderman's colour space
        (Reinhard). Frozen; ``to_dict`` and ``from_dict`` for JSON.

    Raises
    ------
    ValueError
        No such image, µm/px unknown, no tissue on the slide, or stains that are no haematoxylin and eosin.

    Notes
    -----
    About 250 windows of 64 px are read in full resolution, where a pixel holds one stain rather than the mean
    of a cell; pen marks and glass are left out as in :func:`find_tissue`. The result is the same for the same
    slide.

    References
    ----------
    Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
    doi:10.1109/ISBI.2009.5193250. Reinhard et al., Color transfer between images, IEEE Computer Graphics and
    Applications 21 (2001), doi:10.1109/38.946629.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5, size_um=200.0, seed=0)
    >>> reference = gp.pp.fit_stain(sdata)
    >>> reference.hematoxylin[0] > reference.eosin[0]
    True
    """
    reference, _ = _measure(sdata, image_key)
    if reference is None:
        raise ValueError(f"image_key={image_key!r}: no tissue on this slide, so it has no stain to fit")
    return reference


def normalize_stain(
    sdata: SpatialData,
    reference: StainReference | str = "default",
    *,
    method: str = "macenko",
    image_key: str = _keys.IMAGE,
    key_added: str = NORMALIZED,
) -> None:
    """Give a slide the stain of a reference, lazily.

    The stain of the slide is measured once, on all of its tissue; every pixel is then changed by the same
    function when it is read.

    Parameters
    ----------
    sdata
        The slide.
    reference
        ``"default"`` (an ordinary H&E slide), or what :func:`fit_stain` returned for another slide.
    method
        ``"macenko"`` changes the colour and the amount of both stains, and keeps their proportions in every
        pixel; ``"reinhard"`` changes mean and spread in Ruderman's colour space, whatever the stains are.
    image_key
        Image with known µm/px.
    key_added
        Image to write.

    Writes
    ------
    ======================================== ====== ===== ======================================================
    key                                      slot   dtype meaning
    ======================================== ====== ===== ======================================================
    ``key_added``                            images uint8 (3, y, x), lazy; size, levels and Scale of the image
    ``["ghistpy"]["normalized"][key_added]`` attrs  dict  image_key, method, reference and source: by this
                                                          ``tl.predict_expression`` knows that the image is
                                                          normalised already
    ======================================== ====== ===== ======================================================

    Raises
    ------
    ValueError
        No such image, unknown method or reference, µm/px unknown, an image that is normalised already, the
        image itself as ``key_added``, or stains that are no haematoxylin and eosin.

    Notes
    -----
    For looking, for export and for other people's models. ghistpy's own models normalise what they are given,
    and refuse an image that was normalised before. On a slide without tissue only the value of glass changes,
    with a warning in the log. Amounts of Macenko are those of two stains: what else a pixel holds (blood,
    pigment, ink) is drawn with these two. With Reinhard glass is left as it is, since it belongs to no stain.

    References
    ----------
    See :func:`fit_stain`.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5, size_um=200.0, seed=0)
    >>> gp.pp.normalize_stain(sdata)
    >>> sdata["he_normalized"].shape == sdata["he"].shape
    True
    """
    from ghistpy import __version__
    from ghistpy.io import get_mpp

    if isinstance(reference, str) and reference == "default":
        reference = DEFAULT_REFERENCE
    if not isinstance(reference, StainReference):
        raise ValueError(f"reference={reference!r}: expected 'default' or what pp.fit_stain returns")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {METHODS}")
    if key_added == image_key:
        raise ValueError(f"key_added={key_added!r} is the image itself, which is read lazily and must stay")
    attrs = sdata.attrs.setdefault(_keys.ATTRS, {})
    if attrs.get("normalized", {}).get(image_key):
        raise ValueError(f"image_key={image_key!r} is stain-normalised already; pass the original image")
    source, background = _measure(sdata, image_key)
    if source is None:
        _log.warning("image_key=%r: no tissue on this slide; only the value of glass is changed", image_key)
    transform = StainTransform(source, reference, tuple(background), method)
    element = _recoloured(sdata, image_key, transform, get_mpp(sdata, image_key))
    if key_added in sdata.images:
        _log.info("image %r replaced in memory", key_added)
        del sdata.images[key_added]
    sdata.images[key_added] = element
    attrs.setdefault("normalized", {})[key_added] = {
        "image_key": image_key,
        "method": method,
        "reference": reference.to_dict(),
        "source": None if source is None else source.to_dict(),
        "version": __version__,
    }


def _measure(sdata: SpatialData, image_key: str) -> tuple[StainReference | None, np.ndarray]:
    """The look of a slide (None without tissue), and the value of its glass."""
    from ghistpy.imaging.stain import sample_pixels, white_balance
    from ghistpy.imaging.tissue import read_coarse, sample_mask, tissue_mask
    from ghistpy.io import open_image, rgb_source
    from ghistpy.io.sources import coarse_source
    from ghistpy.pp.tissue import RESOLUTION_UM

    name = f"image_key={image_key!r}"
    coarse, mpp = coarse_source(sdata, image_key, RESOLUTION_UM)
    factor = max(1, round(RESOLUTION_UM / mpp))
    mask = tissue_mask(read_coarse(coarse, factor), factor * mpp, min_area_um2=0.0, min_hole_um2=0.0)
    source = rgb_source(open_image(sdata, image_key), name)
    background = np.array(white_balance(sample_pixels(source)).background)
    if not mask.any():
        return None, background
    return fit_reference(sample_mask(source, mask), background, name), background


def _recoloured(sdata: SpatialData, image_key: str, transform: StainTransform, mpp: float) -> Any:
    """The image with all its stored levels through the transform, as an image element."""
    from uuid import uuid4

    import dask.array as da

    from ghistpy.io import rgb_source
    from ghistpy.io._rgb import RecolouredRGB
    from ghistpy.io.elements import CHUNK, image_element
    from ghistpy.io.sources import stored_levels

    levels = []
    for level in stored_levels(sdata, image_key):
        lazy = RecolouredRGB(rgb_source(level, f"image_key={image_key!r}"), transform)
        chunks = (3, *(max(1, CHUNK // c) * c if c < CHUNK else c for c in lazy.chunks[1:]))
        meta = np.empty((0, 0, 0), np.uint8)
        name = f"array-{uuid4().hex}"
        levels.append(da.from_array(lazy, chunks=chunks, name=name, asarray=False, inline_array=False, meta=meta))
    return image_element(levels, mpp)
