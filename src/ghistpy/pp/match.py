"""Whether measured cells lie where the image has nuclei."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.imaging.verdict import Evidences, Verdict, judge

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource
    from ghistpy.imaging.matching import Fit, TileShifts

_log = logging.getLogger("ghistpy")

# a cell and its nucleus: their centroids differ by this much in ordinary tissue
_LINK_TOLERANCE_UM = 10.0


def match_cells(
    sdata: SpatialData,
    *,
    table_key: str = _keys.MEASURED,
    image_key: str = _keys.IMAGE,
    labels_key: str = _keys.LABELS,
    cell_type_key: str = _keys.CELL_TYPE,
    fold: Any = None,
    max_shift_um: float = 5.0,
    search_um: float = 500.0,
    on_mismatch: str = "raise",
    key_added: str = _keys.MATCHING,
) -> None:
    """Check that the cells of a table lie on the nuclei of the image, and say what would put them there.

    Parameters
    ----------
    sdata
        The slide.
    table_key
        Table with one row per cell and ``obsm["spatial"]``: x, y in µm. Without it, the centroids of the
        labels that the table is linked to.
    image_key
        H&E image with known µm/px.
    labels_key
        Nuclei, to count the cells that lie on one; may be absent.
    cell_type_key
        Column to count by; may be absent.
    fold
        A fold of :func:`ghistpy.tl.split`, to count the cells of each type in each part.
    max_shift_um
        Cells may be this far off as a whole.
    search_um
        Shifts up to this far are tried, at most a quarter of the image.
    on_mismatch
        ``"raise"``, or ``"warn"`` to log the message and go on.
    key_added
        Key of the report.

    Writes
    ------
    Into ``uns["ghistpy"][key_added]`` of the table, in memory, also when it raises:

    ============== ========= ==================================================================
    key            type      meaning
    ============== ========= ==================================================================
    ``summary``    str       JSON: ``verdict``, ``message``, ``matrix`` and all numbers of the report
    ``placements`` DataFrame every swap, flip and scale that was tried, the best first, with its best shift
                             (µm), ``score`` (mean haematoxylin under the cells in SD of the image) and ``z``
    ``tiles``      DataFrame residual shift per tile (µm), read by :func:`ghistpy.pl.matching`
    ``counts``     DataFrame cells by part and cell type
    ============== ========= ==================================================================

    Raises
    ------
    ValueError
        The cells are swapped, flipped, shifted or wrongly scaled: the message names the transformation that
        fits, with its evidence. Or nothing fits although the image could tell. Or a table of spots, without
        positions, with positions that are not finite, or with fewer than 20 cells.

    Notes
    -----
    The evidence is the haematoxylin of the image, which no table and no segmentation has touched. A placement
    is scored by the mean evidence under the cells for all shifts at once; the scores of the many wrong shifts
    are the null distribution, and ``z`` counts in its standard deviations. A match has z of 5 or more within
    ``max_shift_um``; another placement wins with z of 8 or more and a clear lead. Where cells on nuclei would
    not be seen (few cells, a coarse or pale image), the verdict is ``"inconclusive"``, and logged. Rotations
    are not searched: :func:`align_landmarks` and :func:`align_density` set them.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=5, seed=0)
    >>> gp.pp.match_cells(sdata)
    >>> gp.get.matching(sdata)["verdict"]
    'matched'
    >>> sdata["measured"].obsm["spatial"] = sdata["measured"].obsm["spatial"][:, ::-1]
    >>> gp.pp.match_cells(sdata)
    Traceback (most recent call last):
        ...
    ValueError: table_key='measured': ... x and y swapped...
    """
    from ghistpy.io import get_element, get_mpp, open_image, rgb_source

    if on_mismatch not in ("raise", "warn"):
        raise ValueError(f"on_mismatch={on_mismatch!r}: expected 'raise' or 'warn'")
    if not (np.isfinite(max_shift_um) and max_shift_um > 0):
        raise ValueError(f"max_shift_um={max_shift_um!r}: expected µm above 0, such as max_shift_um=5.0")
    table = get_element(sdata, "tables", table_key, "table_key")
    mpp = get_mpp(sdata, image_key)
    source = rgb_source(open_image(sdata, image_key), f"image_key={image_key!r}")
    xy = cell_positions(sdata, table, table_key)
    if len(xy) < 20:
        raise ValueError(f"table_key={table_key!r} has {len(xy)} cells; 20 or more are needed to judge a match")
    linked = _link_report(sdata, table, xy)
    fits, tiles, summary = _look(source, mpp, xy, max_shift_um, search_um)
    summary |= _on_nuclei(sdata, labels_key, xy) | {k: v for k, v in linked.items() if k != "offset_um"}
    size = (source.shape[-1] * mpp, source.shape[-2] * mpp)
    found = Evidences(fits, tiles, mpp, size, max_shift_um, linked.get("offset_um"))
    verdict = judge(found)
    counts = _counts(table, cell_type_key, fold, str(sdata.attrs.get(_keys.ATTRS, {}).get("sample", "slide_0")))
    _write(table, key_added, verdict, summary, fits, tiles, counts)
    text = f"table_key={table_key!r}: {verdict.message}"
    if verdict.mismatch and on_mismatch == "raise":
        raise ValueError(text)
    _log.log(logging.INFO if verdict.kind == "matched" else logging.WARNING, "%s", text)


def cell_positions(sdata: SpatialData, table: AnnData, table_key: str) -> np.ndarray:
    """(n, 2) x, y in µm of the cells of a table: ``obsm["spatial"]``, else the centroids of its labels."""
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if link is not None and any(region in sdata.shapes and "radius" in sdata.shapes[region] for region in link[0]):
        raise ValueError(f"table_key={table_key!r} holds spots; only cells can be matched with nuclei")
    if _keys.SPATIAL not in table.obsm:
        centroids = _centroids_of(sdata, table)
        if centroids is None:
            raise ValueError(
                f"table_key={table_key!r} has no obsm['spatial'] (x, y in µm) and is linked to no labels; add positions"
            )
        return centroids[~np.isnan(centroids).any(axis=1)]
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"table_key={table_key!r}: obsm['spatial'] has shape {xy.shape}; expected (n, 2), x and y")
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy)).any(axis=1).sum())
        raise ValueError(f"table_key={table_key!r}: {bad} of {len(xy)} cells have no finite position; leave them out")
    return xy


def _centroids_of(sdata: SpatialData, table: AnnData) -> np.ndarray | None:
    """(n, 2) x, y in µm of the labels that the rows are linked to, NaN for ids without a label."""
    from ghistpy.geometry import find_nuclei
    from ghistpy.io import open_labels
    from ghistpy.io.resolution import element_mpp
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if link is None or len(link[0]) != 1 or link[0][0] not in sdata.labels:
        return None
    key = link[0][0]
    ids = table.obs[link[2]].to_numpy()
    if ids.dtype.kind not in "iu":
        raise ValueError(f"obs[{link[2]!r}] holds no integers although its table is linked to the labels {key!r}")
    nuclei = find_nuclei(open_labels(sdata, key))
    row = nuclei.index_of(ids)
    out = np.full((len(ids), 2), np.nan)
    out[row >= 0] = nuclei.centroid_px[row[row >= 0]][:, ::-1] * element_mpp(sdata, "labels", key, "labels_key")
    return out


def _link_report(sdata: SpatialData, table: AnnData, xy: np.ndarray) -> dict[str, Any]:
    """How the rows and the labels that they are linked to agree."""
    centroids = _centroids_of(sdata, table)
    if centroids is None:
        return {}
    found = ~np.isnan(centroids).any(axis=1)
    out: dict[str, Any] = {"linked": len(centroids), "linked_without_label": int((~found).sum())}
    if len(xy) != len(centroids) or not found.any():
        return out
    out["link_distance_um"] = float(np.median(np.linalg.norm(xy[found] - centroids[found], axis=1)))
    if out["link_distance_um"] > _LINK_TOLERANCE_UM:
        out["offset_um"] = (xy[found], centroids[found])
    return out


def _look(
    source: ArraySource, mpp: float, xy: np.ndarray, max_shift_um: float, search_um: float
) -> tuple[list[Fit], TileShifts, dict[str, Any]]:
    """What the image says: placements, tiles, and shares of the cells."""
    from ghistpy.imaging.matching import finer_scales, nuclear_evidence, placements, screen, tile_shifts, tissue_at
    from ghistpy.imaging.stain import sample_pixels, white_balance

    size = np.array([source.shape[-1], source.shape[-2]]) * mpp
    stats = white_balance(sample_pixels(source))
    evidence = nuclear_evidence(source, mpp, stats=stats)
    reach = min(search_um, float(size.max()) / 4)
    options = {"search_um": reach, "tolerance_um": max_shift_um}
    fits = screen(xy, evidence, placements(mpp), **options)
    fits += screen(xy, evidence, finer_scales(max(fits, key=lambda fit: fit.z).placement), **options)
    tiles = tile_shifts(xy, source, mpp, stats=stats, search_um=max(30.0, 2 * max_shift_um))
    tissue, share = tissue_at(source, mpp, xy)
    summary = {
        "n_cells": len(xy),
        "mpp": mpp,
        "outside_image": int((~((xy >= 0) & (xy < size)).all(axis=1)).sum()),
        "on_tissue": float(tissue.mean()),
        "tissue_share": share,
    }
    return fits, tiles, summary


def _on_nuclei(sdata: SpatialData, labels_key: str, xy: np.ndarray) -> dict[str, Any]:
    """Share of the cells whose position lies in a nucleus, and share of the image that is nuclei."""
    from ghistpy.io import open_labels
    from ghistpy.io.resolution import element_mpp

    if labels_key not in sdata.labels:
        return {}
    source, mpp = open_labels(sdata, labels_key), element_mpp(sdata, "labels", labels_key, "labels_key")
    values, area = values_at(source, np.floor(xy / mpp).astype(np.int64))
    return {"on_nuclei": float((values > 0).mean()), "nuclei_share": area}


def values_at(source: ArraySource, xy_px: np.ndarray) -> tuple[np.ndarray, float]:
    """Label under each pixel (n, 2) x, y (0 outside), and the share of all pixels that carry a label."""
    from ghistpy.geometry import Window
    from ghistpy.geometry.nuclei import as_int64

    height, width = source.shape
    out = np.zeros(len(xy_px), dtype=np.int64)
    inside = np.flatnonzero(((xy_px >= 0) & (xy_px < [width, height])).all(axis=1))
    inside = inside[np.argsort(xy_px[inside, 1], kind="stable")]
    rows = xy_px[inside, 1]
    step = max(1, min(source.chunks[0], max(1, 64_000_000 // width)))
    covered = 0
    for y in range(0, height, step):
        band = source.read(Window(y, 0, min(y + step, height), width))
        covered += int(np.count_nonzero(band))
        here = inside[np.searchsorted(rows, y) : np.searchsorted(rows, y + step)]
        out[here] = as_int64(band[xy_px[here, 1] - y, xy_px[here, 0]])
    return out, covered / (height * width)


def _counts(table: AnnData, cell_type_key: str, fold: Any, sample: str) -> pd.DataFrame:
    """Cells by part of the fold and type: part, cell_type, n."""
    import pandas as pd

    from ghistpy.io.tables import linked_to

    types = table.obs[cell_type_key].astype(str) if cell_type_key in table.obs else pd.Series("all", table.obs_names)
    part = pd.Series("all", index=table.obs_names)
    if fold is not None:
        link = linked_to(table)
        if link is None:
            raise ValueError("fold: the table is linked to no element, so its rows have no ids to look up")
        ids = table.obs[link[2]]
        part[:] = "none"
        for name in ("train", "val", "test"):
            regions = getattr(fold, name)
            if sample in regions:
                part[ids.isin(regions[sample].ids).to_numpy()] = name
    frame = pd.DataFrame({"part": part.to_numpy(), "cell_type": types.to_numpy()})
    return frame.groupby(["part", "cell_type"], sort=True).size().rename("n").reset_index()


def _write(
    table: AnnData,
    key: str,
    verdict: Verdict,
    summary: dict[str, Any],
    fits: list[Fit],
    tiles: TileShifts,
    counts: pd.DataFrame,
) -> None:
    import pandas as pd

    ranked = sorted(fits, key=lambda fit: -fit.z)
    rows = [
        {
            "placement": fit.placement.describe(),
            **{k: v for k, v in asdict(replace(fit.placement)).items() if k != "shift_um"},
            "dx_um": fit.placement.shift_um[0],
            "dy_um": fit.placement.shift_um[1],
            **{k: getattr(fit, k) for k in ("score", "z", "z_zero", "resolvable", "inside")},
        }
        for fit in ranked
    ]
    frame = pd.DataFrame(
        {
            "x_um": tiles.xy_um[:, 0],
            "y_um": tiles.xy_um[:, 1],
            "n_cells": tiles.n_cells,
            "dx_um": tiles.shift_um[:, 0],
            "dy_um": tiles.shift_um[:, 1],
            "z": tiles.z,
            "score": tiles.score,
            "reliable": tiles.reliable,
        }
    )
    text = json.dumps(
        {
            "verdict": verdict.kind,
            "message": verdict.message,
            "matrix": None if verdict.matrix is None else verdict.matrix.tolist(),
            "shift_um": [round(v, 3) for v in verdict.shift_um],
            "z": verdict.z,
            "tile_um": tiles.tile_um,
            "tiles": len(tiles.z),
            "tiles_reliable": int(tiles.reliable.sum()),
            **summary,
        }
    )
    table.uns.setdefault(_keys.UNS, {})[key] = {
        "summary": text,
        "placements": pd.DataFrame(rows),
        "tiles": frame,
        "counts": counts,
    }
