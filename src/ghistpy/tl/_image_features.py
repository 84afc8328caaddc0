"""What a slide gives without expression: how many nuclei, of which shape, in which colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData

IMAGE_KINDS = ("image_density", "image_morphology", "image_stain")
DENSITY = ["cells_per_mm2"]
STAIN = [f"od_{what}_{channel}" for what in ("mean", "sd") for channel in "rgb"]
_RESOLUTION_UM = 8.0


def density(slide: Any, xy: np.ndarray, window: Any) -> np.ndarray:
    """(1,) cells per mm² of the window: the tissue when the slide has it, else the box around the cells."""
    from ghistpy.tl.ripley import _window

    area, inside, _ = _window(slide, xy, window)
    return np.array([inside.sum() / area.area * 1e6])


def morphology(table: AnnData) -> dict[str, np.ndarray]:
    """Measures (n,) of the nuclei by name: ``obs["area_um2"]`` and the columns of ``obsm["morphology"]``."""
    out = {}
    if _keys.AREA_UM2 in table.obs:
        out[_keys.AREA_UM2] = table.obs[_keys.AREA_UM2].to_numpy(dtype=np.float64)
    if _keys.MORPHOLOGY in table.obsm:
        values = table.obsm[_keys.MORPHOLOGY]
        names = getattr(values, "columns", table.uns.get(_keys.UNS, {}).get("morphology_features"))
        values = np.asarray(values, dtype=np.float64)
        if names is None or len(names) != values.shape[1]:
            names = [f"morphology_{i}" for i in range(values.shape[1])]
        out |= {str(name): column for name, column in zip(names, values.T, strict=True)}
    return out


def morphology_summary(table: AnnData, names: list[str]) -> np.ndarray:
    """(2 F,) mean and SD over the nuclei of each measure; NaN for those that the table lacks."""
    measured = morphology(table)
    out = np.full((len(names), 2), np.nan)
    for row, name in zip(out, names, strict=True):
        values = measured.get(name, np.zeros(0))
        values = values[np.isfinite(values)]
        if len(values):
            row[:] = values.mean(), values.std()
    return out.ravel()


def stain(slide: Any) -> np.ndarray:
    """(6,) mean and SD of the optical density of the tissue in R, G, B at about 8 µm/px; NaN without an image."""
    from ghistpy.imaging.stain import white_balance
    from ghistpy.imaging.tissue import read_coarse, tissue_mask
    from ghistpy.io.sources import coarse_source

    out = np.full(len(STAIN), np.nan)
    if _keys.IMAGE not in getattr(slide, "images", {}):
        return out
    source, mpp = coarse_source(slide, _keys.IMAGE, _RESOLUTION_UM)
    factor = max(1, round(_RESOLUTION_UM / mpp))
    coarse = read_coarse(source, factor)
    tissue = tissue_mask(coarse, factor * mpp, min_area_um2=0.0, min_hole_um2=0.0)
    if not tissue.any():
        return out
    background = np.asarray(white_balance(coarse.reshape(3, -1).T).background)
    od = -np.log((coarse[:, tissue] + 1.0) / (background[:, None] + 1.0))
    return np.concatenate([od.mean(axis=1), od.std(axis=1)])
