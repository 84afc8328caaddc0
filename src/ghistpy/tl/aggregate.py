"""Nuclei summed to the spots that hold them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.io.circles import circles_um as _circles_um

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

    from ghistpy.io.circles import Circles

logger = logging.getLogger("ghistpy")

_ROWS = 50_000  # nuclei whose counts are in linear scale at once


def aggregate_spots(
    sdata: SpatialData,
    *,
    table_key: str = _keys.INSILICO,
    shapes_key: str = _keys.SPOTS,
    labels_key: str | None = None,
    key_added: str = _keys.INSILICO_SPOTS,
) -> None:
    """Sum the expected counts of the nuclei in each spot.

    A nucleus belongs to a spot when its centroid lies in the circle; in several, to the nearest centre.

    Parameters
    ----------
    sdata
        A slide with predicted nuclei and spots.
    table_key
        In-silico table of nuclei, ``X`` = log1p(expected count), centroids in ``obsm["spatial"]`` (x, y µm).
    shapes_key
        Circles with a transformation to the coordinate system ``"microns"``.
    labels_key
        Use the rows of the table that annotate these labels only. None = all rows, which must then
        annotate one element.
    key_added
        Name of the new table; an existing one is replaced, in the store too when there is one.

    Notes
    -----
    Written table ``key_added``, one row per circle in the order of the shapes, linked by ``spot_id``:

    ======================= ============== =========================================================
    slot                    dtype          meaning
    ======================= ============== =========================================================
    ``X``                   float32 (S, G) log1p(sum over nuclei of expm1); 0 without nuclei
    ``obs["n_nuclei"]``     int64          nuclei in the spot
    ``obs["total"]``        float64        expected counts over all genes, summed
    ``obsm["spatial"]``     float64 (S, 2) centre, x and y in µm
    ``obsm["composition"]`` float32 (S, C) mean type probabilities of the nuclei; NaN without nuclei
    ``obsm["morphology"]``  float32 (S, F) mean morphology of the nuclei; NaN without nuclei
    ``uns["ghistpy"]``      dict           provenance of the source, and what was left out
    ======================= ============== =========================================================

    Cost O(n log n + n G): one k-d tree and sparse products.

    Raises
    ------
    ValueError
        An element or table is missing, the table does not hold in-silico log values, annotates
        several elements, has no total or no coordinates, or the shapes are no circles in µm.

    Examples
    --------
    One spot of 100 µm over the best prediction that the pixels of a simulated slide allow:

    >>> import geopandas
    >>> import ghistpy as gp
    >>> from spatialdata.models import ShapesModel
    >>> from spatialdata.transformations import Identity
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=12)
    >>> measured = sdata["measured"]
    >>> sdata["insilico"] = gp.io.make_table(
    ...     measured.layers["attainable"],
    ...     measured.var_names,
    ...     region="nuclei",
    ...     instance_key="cell_id",
    ...     ids=measured.obs["cell_id"],
    ...     obs={"cell_type": measured.obs["cell_type"], "total": measured.obs["total"]},
    ...     obsm={"spatial": measured.obsm["spatial"]},
    ...     uns={"ghistpy": {"units": "log1p(expected count)"}},
    ... )
    >>> circle = geopandas.GeoDataFrame({"radius": [50.0]}, geometry=geopandas.points_from_xy([120], [120]))
    >>> sdata["spots"] = ShapesModel.parse(circle, transformations={"microns": Identity()})
    >>> gp.tl.aggregate_spots(sdata)
    >>> spots = sdata["insilico_spots"]
    >>> spots.shape, bool(spots.obs["n_nuclei"].item() > 20)
    ((1, 12), True)
    """
    from ghistpy.io import ensure_can_save, get_element, write_table

    ensure_can_save(sdata, key_added)
    table = get_element(sdata, "tables", table_key, "table_key")
    rows = _rows_of_region(table, table_key, labels_key)
    spots = _circles_um(sdata, shapes_key)
    xy = _centroids(table, table_key)[rows]
    member, n_overlap = _membership(xy, spots)
    aggregated = _sum_nuclei(table, rows, member, spots, table_key, shapes_key)
    notes = {
        "aggregated_from": table_key,
        "n_nuclei": len(rows),
        "n_nuclei_outside_spots": len(rows) - int(member.sum()),
        "n_nuclei_in_several_spots": n_overlap,
        "n_spots": len(spots.ids),
        "n_spots_without_nuclei": int((aggregated.obs[_keys.N_NUCLEI] == 0).sum()),
    }
    aggregated.uns[_keys.UNS] = _provenance(table) | {"aggregation": json.dumps(notes)}
    logger.info(
        "aggregate_spots: %d of %d nuclei lie in %d spots; %d spots hold no nucleus",
        notes["n_nuclei"] - notes["n_nuclei_outside_spots"],
        notes["n_nuclei"],
        notes["n_spots"],
        notes["n_spots_without_nuclei"],
    )
    write_table(sdata, key_added, aggregated)


def _provenance(table: AnnData) -> dict[str, Any]:
    """Provenance of the source without the results that were stored beside it."""
    kept = dict(table.uns.get(_keys.UNS, {}))
    return {key: value for key, value in kept.items() if not isinstance(value, dict)}


def _rows_of_region(table: AnnData, table_key: str, labels_key: str | None) -> np.ndarray:
    from ghistpy.io.tables import linked_to

    units = table.uns.get(_keys.UNS, {}).get("units")
    if units != _keys.UNITS_LOG1P:
        raise ValueError(
            f"table_key={table_key!r}: uns['ghistpy']['units'] is {units!r}, expected {_keys.UNITS_LOG1P!r}; "
            "aggregate_spots sums the expected counts of a table written by tl.predict_expression"
        )
    link = linked_to(table)
    if link is None or link[2] == _keys.SPOT_ID:
        raise ValueError(f"table_key={table_key!r} does not annotate nuclei, so there is nothing to sum to spots")
    region = table.obs[link[1]].astype(str).to_numpy()
    found = sorted(set(region))
    if labels_key is None:
        if len(found) > 1:
            raise ValueError(f"table_key={table_key!r} annotates {found}; choose one of them with labels_key=")
        return np.arange(table.n_obs)
    if labels_key not in found and table.n_obs:
        raise ValueError(f"labels_key={labels_key!r} is not annotated by table_key={table_key!r}, which has {found}")
    return np.flatnonzero(region == labels_key)


def _centroids(table: AnnData, table_key: str) -> np.ndarray:
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(
            f"table_key={table_key!r} has no obsm['spatial'] (x, y in µm); predict again with tl.predict_expression"
        )
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)
    bad = int((~np.isfinite(xy)).any(1).sum())
    if bad:
        raise ValueError(f"table_key={table_key!r}: obsm['spatial'] is not finite in {bad} of {len(xy)} rows")
    return xy


def _membership(xy: np.ndarray, spots: Circles) -> tuple[sparse.csr_array, int]:
    """(S, n) matrix with a 1 where a nucleus belongs to a spot; how many nuclei lie in several."""
    from scipy import sparse
    from scipy.spatial import KDTree

    shape = (len(spots.ids), len(xy))
    if 0 in shape:
        return sparse.csr_array(shape), 0
    # a hair of slack, so that a centroid on the circle counts whatever the rounding
    found = KDTree(xy).query_ball_point(spots.xy_um, spots.radius_um * (1 + 1e-9), return_sorted=False)
    spot = np.repeat(np.arange(len(found)), [len(f) for f in found])
    nucleus = np.concatenate([np.asarray(f, dtype=np.int64) for f in found])
    distance = np.linalg.norm(xy[nucleus] - spots.xy_um[spot], axis=1)
    order = np.lexsort((spot, distance, nucleus))  # per nucleus: nearest first, then the earlier spot
    spot, nucleus = spot[order], nucleus[order]
    first = np.r_[True, nucleus[1:] != nucleus[:-1]] if len(nucleus) else np.zeros(0, dtype=bool)
    n_overlap = len(np.unique(nucleus[~first]))
    return sparse.csr_array((np.ones(int(first.sum())), (spot[first], nucleus[first])), shape=shape), n_overlap


def _linear_sum(X: Any, rows: np.ndarray, member: sparse.csr_array) -> np.ndarray:
    """Expected counts (S, G) of the spots; only nuclei that lie in one leave the log scale."""
    from scipy import sparse

    total = np.zeros((member.shape[0], X.shape[1]))
    inside = np.flatnonzero(member.sum(0))
    columns = member.tocsc()
    for start in range(0, len(inside), _ROWS):
        part = inside[start : start + _ROWS]
        values = X[rows[part]]
        if hasattr(values, "compute"):
            values = values.compute()
        values = values.toarray() if sparse.issparse(values) else np.asarray(values)
        total += columns[:, part] @ np.expm1(values.astype(np.float64))
    return total


def _sum_nuclei(
    table: AnnData, rows: np.ndarray, member: sparse.csr_array, spots: Circles, table_key: str, shapes_key: str
) -> AnnData:
    from ghistpy.io import make_table

    if _keys.TOTAL not in table.obs:
        raise ValueError(
            f"table_key={table_key!r} has no obs['total'] (expected counts over all genes), which spots need for "
            f"their depth; columns there are {list(table.obs.columns)}"
        )
    counts = _linear_sum(table.X, rows, member)
    bad = int((~np.isfinite(counts)).any(1).sum())
    if bad:
        raise ValueError(f"table_key={table_key!r}: X holds NaN or infinite values in the nuclei of {bad} spots")
    n_nuclei = np.asarray(member.sum(1)).ravel().astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1.0 / n_nuclei[:, None]
        sources = ((_keys.COMPOSITION, _keys.CELL_TYPE_PROBA), (_keys.MORPHOLOGY, _keys.MORPHOLOGY))
        # 0 · inf = NaN: a spot without nuclei has no mean
        means = {
            name: (member @ np.asarray(table.obsm[source], dtype=np.float64)[rows] * share).astype(np.float32)
            for name, source in sources
            if source in table.obsm
        }
    total = member @ table.obs[_keys.TOTAL].to_numpy(dtype=np.float64)[rows]
    return make_table(
        np.log1p(np.maximum(counts, 0.0)).astype(np.float32),
        table.var_names,
        region=shapes_key,
        instance_key=_keys.SPOT_ID,
        ids=spots.ids,
        obs={_keys.N_NUCLEI: n_nuclei, _keys.TOTAL: total},
        obsm={_keys.SPATIAL: spots.xy_um, **means},
        var=table.var,
    )
