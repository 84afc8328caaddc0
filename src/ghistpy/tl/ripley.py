"""Clustering and avoidance of cell types over distance."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import (
    Table,
    cell_types,
    check_radius,
    coordinates,
    progress_bar,
    regions,
    resolve_table,
    whole_number,
)
from ghistpy.tl.interaction import WITHHELD

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.stats import Window
    from ghistpy.stats.ripley import LabelTest

logger = logging.getLogger("ghistpy")

_MANY_OUTSIDE = 0.05  # share of cells outside the window that asks for a warning


def ripley_l(
    adata_or_sdata: AnnData | SpatialData,
    *,
    table_key: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    max_radius: float = 50.0,
    step: float = 1.0,
    window: Any = None,
    grid: str = "fixed",
    min_cells: int = 10,
    n_perms: int = 0,
    seed: int = 0,
    key_added: str = _keys.RIPLEY_L,
    progress: bool = True,
) -> None:
    """Ripley's cross-type L of all ordered pairs of cell types, with isotropic edge correction.

    Parameters
    ----------
    adata_or_sdata
        A table of the cells of one slide, or a slide.
    table_key
        Table of the slide; may be left out when there is one only.
    cell_type_key
        Column of ``obs`` with the types; cells without type are left out and counted.
    max_radius, step
        µm; L at step, 2 step … max_radius.
    window
        Where cells could have been seen. None: the shapes ``tissue`` of the slide when they are there,
        else ``"bounds"``. ``"bounds"``: the rectangle [min, max] of the cells. ``"origin"``: [0, max], in
        which an empty part of the slide counts as tissue without cells. A name of shapes of the slide,
        (x0, y0, x1, y1) in µm, or a shapely (Multi)Polygon.
    grid
        ``"fixed"``, or ``"spatstat"`` for the default radii of spatstat up to ``max_radius``, which depend
        on the window and the density. ``window="origin", grid="spatstat"`` gives the numbers of scFeatures.
    min_cells
        Types with no more cells than this are left out (and named in the notes).
    n_perms
        Permutations of the types among the cells for envelope and p-value; 0 = neither.
    seed
        Of the permutations.
    key_added
        See Writes.
    progress
        Show a progress bar over permutations.

    Writes
    ------
    ======================= ==== ========= =========================================================
    key                     slot dtype     meaning
    ======================= ==== ========= =========================================================
    ``key_added``           uns  DataFrame cell_type, neighbor_type, radius (µm), l, l_minus_r; low and high:
                                           pointwise 95 % of l under shuffled types, with ``n_perms``
    ``key_added`` + _scores uns  DataFrame cell_type, neighbor_type, score (mean of l - r), n_cells,
                                           n_neighbor_cells, pval, pval_adj (BH)
    ``key_added`` + _notes  uns  JSON      parameters, area of the window, cells and types left out
    ======================= ==== ========= =========================================================

    Raises
    ------
    ValueError
        Cells of several slides in one table, an unknown window, no cell inside, no type with enough cells, a
        radius that is no positive number or makes more than 200 million pairs.

    Warns
    -----
    UserWarning
        Coordinates or a radius that are hardly in µm; many cells outside the window.

    Notes
    -----
    L = √(K / π), and L(r) = r for types that ignore each other in homogeneous tissue. Density that varies
    over the window (nests, lumina) raises L of all pairs of types. So the p-value asks another question:
    positions fixed, are the *types* exchangeable? It is two-sided, for the mean of L(r) - r, and of nominal
    level under that null only; niches of types break it. For in-silico tables p-value and band are withheld
    (NaN): types that follow those of their neighbours leave the band of shuffled types everywhere.

    The share of a circle inside the window is exact for any polygon with holes. O(pairs · (1 + n_perms)).

    References
    ----------
    Ripley, J R Stat Soc B 39:172 (1977), doi:10.1111/j.2517-6161.1977.tb01615.x. Besag, ibid. 193.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=600, n_genes=5)
    >>> gp.tl.ripley_l(sdata, max_radius=40, step=5)
    >>> scores = sdata["measured"].uns["ripley_l_scores"].set_index(["cell_type", "neighbor_type"])["score"]
    >>> bool(scores["Malignant", "Malignant"] > 0 > scores["Malignant", "Fibroblast"])
    True
    """
    from ghistpy import stats
    from ghistpy.stats.ripley import fixed_radii, random_labelling, ripley_pairs

    table = resolve_table(adata_or_sdata, table_key)
    check_key(key_added)
    n_perms = whole_number(n_perms, "n_perms")
    _check(table, grid, n_perms)
    radii = fixed_radii(max_radius, step)
    codes, names = cell_types(table, cell_type_key)
    if not names:
        raise ValueError(f"cell_type_key={cell_type_key!r}: no cell of {table.label} has a type")
    xy = coordinates(table)
    area, inside, source = _window(adata_or_sdata, xy, window)
    codes, xy = codes[inside], xy[inside]
    notes: dict[str, Any] = {
        "cell_type_key": cell_type_key,
        "window": source,
        "area_um2": area.area,
        "grid": grid,
        "n_cells": table.n,
        "n_outside": int((~inside).sum()),
        "n_without_type": int((codes < 0).sum()),
    }
    codes, names, rare = _frequent(codes, names, min_cells, table)
    notes |= {"cell_types": names, "rare_types": rare, "min_cells": min_cells, "n_perms": n_perms, "seed": seed}
    check_radius(table.label, xy, max_radius, argument="max_radius")
    pairs = ripley_pairs(xy, area, max_radius)
    if grid == "fixed":
        _write_fixed(table, key_added, stats.cross_l(pairs, codes, len(names), radii), radii, codes, names)
    else:
        _write_spatstat(table, key_added, pairs, area, codes, names, max_radius)
    if n_perms and table.in_silico:
        logger.warning("p-values and envelope of ripley_l on %s are %s", table.label, WITHHELD)
        notes["pval"] = WITHHELD
    elif n_perms:
        test = random_labelling(
            pairs, codes, len(names), radii, n_perms=n_perms, seed=seed, progress=progress_bar(progress, "ripley_l")
        )
        _write_test(table, key_added, test)
        notes["pval"] = "two-sided, of the score; null: types are exchangeable among cells, positions fixed"
    write_notes(table, key_added, notes)


def _check(table: Table, grid: str, n_perms: int) -> None:
    if grid not in ("fixed", "spatstat"):
        raise ValueError(f"grid={grid!r}: expected 'fixed' or 'spatstat'")
    if n_perms and grid == "spatstat":
        raise ValueError("grid='spatstat' is for parity of scores; use grid='fixed' with n_perms")
    if regions(table) is not None:
        raise ValueError(
            f"{table.label} holds cells of several slides or regions, which have no common window; run ripley_l on "
            "each: adata[adata.obs['region'] == name].copy()"
        )


def _window(adata_or_sdata: Any, xy: np.ndarray, window: Any) -> tuple[Window, np.ndarray, str]:
    """Window, which cells lie in it, and what to call it."""
    from ghistpy import stats

    shapes = getattr(adata_or_sdata, "shapes", {})
    if window is None:
        window = _keys.TISSUE if _keys.TISSUE in shapes else "bounds"
    everything = np.ones(len(xy), dtype=bool)
    if isinstance(window, str) and window in ("bounds", "origin"):
        low = xy.min(axis=0) if window == "bounds" else np.zeros(2)
        if (xy.min(axis=0) < low).any():
            raise ValueError(f"window='origin': coordinates are as low as {xy.min():g} µm; use 'bounds'")
        return stats.Window.rectangle(*low.tolist(), *xy.max(axis=0).tolist()), everything, window
    if isinstance(window, str):
        if window not in shapes:
            raise ValueError(
                f"window={window!r} is neither 'bounds' nor 'origin' nor among the shapes {list(shapes)} of the slide"
            )
        return _polygon(_union_um(adata_or_sdata, window), xy, f"shapes {window!r}")
    if hasattr(window, "geom_type"):
        return _polygon(window, xy, "polygon")
    if not hasattr(window, "__len__") or len(window) != 4:
        raise ValueError(f"window={window!r}: expected (x0, y0, x1, y1) in µm")
    x0, y0, x1, y1 = (float(v) for v in window)
    area = stats.Window.rectangle(x0, y0, x1, y1)
    inside = (xy >= [x0, y0]).all(axis=1) & (xy <= [x1, y1]).all(axis=1)
    return area, _some_inside(inside, f"window={window!r}"), f"{(x0, y0, x1, y1)}"


def _union_um(sdata: SpatialData, key: str) -> Any:
    import spatialdata
    from spatialdata.transformations import Identity, get_transformation

    element = sdata.shapes[key]
    known = get_transformation(element, get_all=True)
    if _keys.MICRONS in known and not isinstance(known[_keys.MICRONS], Identity):
        element = spatialdata.transform(element, to_coordinate_system=_keys.MICRONS)
    return element.geometry.union_all()


def _polygon(shape: Any, xy: np.ndarray, label: str) -> tuple[Window, np.ndarray, str]:
    import shapely

    from ghistpy import stats

    pieces = [p for p in getattr(shape, "geoms", [shape]) if p.geom_type == "Polygon" and p.area > 0]
    if not pieces:
        raise ValueError(f"window: {label} encloses no area ({shape.geom_type})")
    merged = shapely.union_all(pieces)  # rings of a valid area do not cross
    pieces = list(getattr(merged, "geoms", [merged]))
    outer = [np.asarray(p.exterior.coords)[:, :2] for p in pieces]
    holes = [np.asarray(ring.coords)[:, :2] for p in pieces for ring in p.interiors]
    shapely.prepare(merged)
    inside = shapely.contains_xy(merged, xy[:, 0], xy[:, 1])
    return stats.Window.polygon(outer, holes), _some_inside(inside, f"window: {label}"), label


def _some_inside(inside: np.ndarray, label: str) -> np.ndarray:
    if not inside.any():
        raise ValueError(f"{label}: none of the {len(inside)} cells lies inside; is it in µm?")
    outside = int((~inside).sum())
    if outside > _MANY_OUTSIDE * len(inside):
        warnings.warn(
            f"{label}: {outside} of {len(inside)} cells lie outside and are left out", UserWarning, stacklevel=4
        )
    return inside


def _frequent(
    codes: np.ndarray, names: list[str], min_cells: int, table: Table
) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """Codes of the types that are frequent enough, -1 for the others, their names; the rare and their numbers."""
    n = np.bincount(codes[codes >= 0], minlength=len(names))
    kept = np.flatnonzero(n > min_cells)
    if not len(kept):
        raise ValueError(
            f"no type of {table.label} has more than min_cells={min_cells} cells in the window "
            f"({dict(zip(names, n.tolist(), strict=True))})"
        )
    new = np.full(len(names) + 1, -1)
    new[kept] = np.arange(len(kept))
    return new[codes], [names[k] for k in kept], {names[k]: int(n[k]) for k in np.flatnonzero(n <= min_cells)}


def _pair_columns(names: list[str], repeats: int = 1) -> dict[str, np.ndarray]:
    labels = np.array(names, dtype=object)
    a, b = (v.ravel() for v in np.meshgrid(labels, labels, indexing="ij"))
    return {"cell_type": np.repeat(a, repeats), "neighbor_type": np.repeat(b, repeats)}


def _write_scores(table: Table, key: str, score: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    import pandas as pd

    n = np.bincount(codes[codes >= 0], minlength=len(names))
    frame = pd.DataFrame(_pair_columns(names) | {"score": score.ravel()})
    frame["n_cells"], frame["n_neighbor_cells"] = np.repeat(n, len(n)), np.tile(n, len(n))
    frame["pval"] = frame["pval_adj"] = np.nan
    write_frame(table, f"{key}_scores", frame)


def _write_fixed(table: Table, key: str, L: np.ndarray, radii: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    import pandas as pd

    frame = pd.DataFrame(_pair_columns(names, len(radii)))
    frame["radius"] = np.tile(radii, len(names) ** 2)
    frame["l"] = L.ravel()
    frame["l_minus_r"] = (L - radii).ravel()
    frame["low"] = frame["high"] = np.nan
    write_frame(table, key, frame)
    _write_scores(table, key, (L - radii).mean(axis=2), codes, names)


def _write_spatstat(
    table: Table, key: str, pairs: Any, area: Window, codes: np.ndarray, names: list[str], max_radius: float
) -> None:
    import pandas as pd

    from ghistpy.stats.ripley import cross_l, spatstat_radii

    n = np.bincount(codes[codes >= 0], minlength=len(names))
    frames, score = [], np.zeros((len(names),) * 2)
    for b, size in enumerate(n):
        radii = spatstat_radii(area, int(size), max_radius)
        L = cross_l(pairs, codes, len(names), radii)[:, b]
        score[:, b] = (L - radii).mean(axis=1)
        labels = np.repeat(np.array(names, dtype=object), len(radii))
        columns = {"cell_type": labels, "neighbor_type": names[b], "radius": np.tile(radii, len(names))}
        frames.append(pd.DataFrame(columns | {"l": L.ravel(), "l_minus_r": (L - radii).ravel()}))
    write_frame(table, key, pd.concat(frames))
    _write_scores(table, key, score, codes, names)


def _write_test(table: Table, key: str, test: LabelTest) -> None:
    from ghistpy import stats

    frame, scores = table.adata.uns[key], table.adata.uns[f"{key}_scores"]
    frame["low"], frame["high"] = test.low.ravel(), test.high.ravel()
    scores["pval"], scores["pval_adj"] = test.pval.ravel(), stats.adjust_pvalues(test.pval.ravel())
