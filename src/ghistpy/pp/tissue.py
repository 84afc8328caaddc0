"""Tissue of a slide."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ghistpy import _keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

_log = logging.getLogger("ghistpy")

RESOLUTION_UM = 8.0


def find_tissue(
    sdata: SpatialData,
    *,
    image_key: str = _keys.IMAGE,
    key_added: str = _keys.TISSUE,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 10_000.0,
) -> None:
    """Outline the tissue of a slide.

    Optical density at about 8 µm/px is separated from the glass by Otsu's threshold, held in a range in which
    it is neither haze nor a border between stroma and nuclei; gaps of a few cells are closed. Pen and margin ink of
    any colour, which absorbs light that haematoxylin and eosin let through, is left out.

    Parameters
    ----------
    sdata
        The slide.
    image_key
        Image with known µm/px; grey, RGBA, 16-bit and float images are converted.
    key_added
        Shapes element to write.
    min_area_um2
        Smaller pieces are dust and left out.
    min_hole_um2
        Smaller holes are filled.

    Writes
    ------
    ============= ====== ======= =================================================================
    key           slot   dtype   meaning
    ============= ====== ======= =================================================================
    ``key_added`` shapes Polygon outlines with holes, in µm (coordinate system "microns"), the
                                 largest first; column ``area_um2``
    ============= ====== ======= =================================================================

    The shapes are written in memory.

    Raises
    ------
    ValueError
        No such image, µm/px unknown, or no tissue on the slide (an element without polygons cannot be
        written).

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5, size_um=200.0, seed=0)
    >>> gp.pp.find_tissue(sdata)
    >>> len(sdata["tissue"]) >= 1
    True
    """
    import geopandas as gpd
    from shapely import Polygon, make_valid
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    from ghistpy.imaging.tissue import outlines, read_coarse, tissue_mask
    from ghistpy.io.sources import coarse_source

    source, mpp = coarse_source(sdata, image_key, RESOLUTION_UM)
    factor = max(1, round(RESOLUTION_UM / mpp))
    coarse_mpp = factor * mpp
    mask = tissue_mask(read_coarse(source, factor), coarse_mpp, min_area_um2=min_area_um2, min_hole_um2=min_hole_um2)
    polygons = [
        make_valid(Polygon(outer, holes)).simplify(coarse_mpp / 2) for outer, holes in outlines(mask, coarse_mpp)
    ]
    if not polygons:
        raise ValueError(
            f"image_key={image_key!r}: no tissue of {min_area_um2:g} µm² or more; the slide is blank, or "
            "min_area_um2= is too large for it"
        )
    polygons.sort(key=lambda polygon: -polygon.area)
    frame = gpd.GeoDataFrame({"geometry": polygons, "area_um2": [p.area for p in polygons]})
    if key_added in sdata.shapes:
        _log.info("shapes %r replaced in memory", key_added)
        del sdata.shapes[key_added]
    sdata.shapes[key_added] = ShapesModel.parse(frame, transformations={_keys.MICRONS: Identity()})
    _log.info("shapes %r: %d pieces of tissue, %.2f mm²", key_added, len(frame), frame["area_um2"].sum() / 1e6)
