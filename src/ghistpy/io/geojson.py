"""Nuclei as GeoJSON, which QuPath reads."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.geometry import Window, find_nuclei

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource
    from ghistpy.geometry.nuclei import Nuclei
    from ghistpy.imaging.polygons import Polygons

logger = logging.getLogger("ghistpy")

_BLOCK = 2048  # nuclei whose box starts in such a square are traced together
_MEASURED = (_keys.AREA_UM2, _keys.CELL_TYPE_CONFIDENCE)


def write_geojson(
    sdata: SpatialData,
    path: str | Path,
    *,
    labels_key: str = _keys.LABELS,
    table_key: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    progress: bool = True,
) -> None:
    """Write the nuclei of a slide as polygons with their types, for QuPath.

    Parameters
    ----------
    sdata
        The slide.
    path
        File to write, ``.geojson``; it is complete under its name or absent. An existing one is replaced.
    labels_key
        Labels of the nuclei.
    table_key
        Table with their types. Default: ``"insilico"`` when it belongs to these labels, else the one table
        that does and has types, else none.
    cell_type_key
        Column of the types.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        No such labels, table or column, or a table of other labels.

    Notes
    -----
    Coordinates are px of the full resolution of the labels, as QuPath expects for the same image. Outlines
    follow the sides of pixels, so that :func:`read_labels` gives the labels back exactly. Each feature is a
    detection with ``classification``, measurements (``area_um2``, ``cell_type_confidence`` when there) and its
    ``cell_id``. Nuclei without a row in the table are written without a type, and counted in the log.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=50, n_genes=5, size_um=100.0, seed=0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "nuclei.geojson"
    >>> gp.io.write_geojson(sdata, path)
    >>> len(json.loads(path.read_text())["features"])
    50
    """
    from tqdm.auto import tqdm

    from ghistpy.io.sources import open_labels

    path = Path(path)
    if path.suffix.lower() not in (".geojson", ".json"):
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .geojson or .json")
    labels = open_labels(sdata, labels_key)
    frame = _types(sdata, labels_key, table_key, cell_type_key)
    nuclei = find_nuclei(labels)
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"{sdata.attrs.get(_keys.ATTRS, {}).get('sample', '')}/{labels_key}")
    rows = np.full(len(nuclei), -1) if frame is None else frame.index.get_indexer(nuclei.ids)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("w", encoding="utf-8") as file, tqdm(total=len(nuclei), disable=not progress) as bar:
            file.write('{"type": "FeatureCollection", "features": [')
            first = True
            for index, polygons, holes in _traced(labels, nuclei):
                for text in _features(index, polygons, holes, nuclei.ids, rows, frame, space, cell_type_key):
                    file.write(("\n" if first else ",\n") + text)
                    first = False
                bar.update(len(index))
            file.write("\n]}\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if frame is not None and (rows < 0).any():
        logger.warning("%s: %d of %d nuclei have no row in the table and no type", path, (rows < 0).sum(), len(rows))


def _types(sdata: SpatialData, labels_key: str, table_key: str | None, column: str) -> pd.DataFrame | None:
    """Types and measurements by id, or None when no table has them."""
    from ghistpy.io.tables import linked_to

    linked = {}
    for key, table in sdata.tables.items():
        link = linked_to(table)
        if link is not None and labels_key in link[0]:
            linked[key] = table.obs[table.obs[link[1]] == labels_key].set_index(link[2])
    if table_key is not None:
        if table_key not in linked:
            raise ValueError(
                f"table_key={table_key!r} is no table of labels_key={labels_key!r} (those are: "
                f"{sorted(linked) or 'none'})"
            )
        if column not in linked[table_key]:
            raise ValueError(
                f"cell_type_key={column!r} is not among the columns of table {table_key!r}: {list(linked[table_key])}"
            )
        return linked[table_key]
    typed = [key for key, obs in linked.items() if column in obs]
    if _keys.INSILICO in typed:
        return linked[_keys.INSILICO]
    if len(typed) > 1:
        raise ValueError(f"table_key: the tables {sorted(typed)} all have types of these nuclei; choose one")
    return linked[typed[0]] if typed else None


def _traced(labels: ArraySource, nuclei: Nuclei) -> Iterator[tuple[np.ndarray, Polygons, np.ndarray]]:
    """Indices of nuclei, their outlines in px of the slide, and which rings are holes; block by block."""
    from ghistpy.geometry.nuclei import as_int64
    from ghistpy.imaging.polygons import Polygons, trace

    block = nuclei.bbox[:, :2] // _BLOCK
    order = np.lexsort((block[:, 1], block[:, 0]))
    cuts = np.flatnonzero((np.diff(block[order], axis=0) != 0).any(axis=1)) + 1
    for index in np.split(order, cuts) if len(order) else []:
        index = np.sort(index)
        box = nuclei.bbox[index]
        window = Window(*(int(v) for v in (*box[:, :2].min(axis=0), *box[:, 2:].max(axis=0))))
        pixels = as_int64(labels.read(window))
        at = np.searchsorted(nuclei.ids[index], pixels).clip(max=len(index) - 1)
        own = nuclei.ids[index][at] == pixels
        polygons, holes = trace(np.where(own, at + 1, 0))
        points = polygons.points + np.array([window.x0, window.y0])
        yield index, Polygons(points, polygons.offsets, polygons.owner, polygons.n), holes


def _features(
    index: np.ndarray,
    polygons: Polygons,
    holes: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    frame: pd.DataFrame | None,
    space: uuid.UUID,
    column: str,
) -> Iterator[str]:
    """Each nucleus as a line of GeoJSON."""
    start = np.searchsorted(polygons.owner, np.arange(polygons.n + 1))
    rings = [
        polygons.points[a:b].astype(int).tolist() + [polygons.points[a].astype(int).tolist()]
        for a, b in pairwise(polygons.offsets)
    ]
    types = None if frame is None else frame[column].astype(object).to_numpy()
    measured = {} if frame is None else {m: frame[m].to_numpy(float) for m in _MEASURED if m in frame}
    for i, (a, b) in enumerate(pairwise(start)):
        number, row = int(ids[index[i]]), int(rows[index[i]])
        said: dict[str, Any] = {"objectType": "detection", "cell_id": number}
        if row >= 0:
            if isinstance(types[row], str):
                said["classification"] = {"name": types[row]}
            values = {name: float(column_[row]) for name, column_ in measured.items() if np.isfinite(column_[row])}
            if values:
                said["measurements"] = values
        yield json.dumps(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(space, str(number))),
                "geometry": _geometry(rings[a:b], holes[a:b]),
                "properties": said,
            }
        )


def _geometry(rings: list[list], is_hole: np.ndarray) -> dict[str, Any]:
    outer = [ring for ring, hole in zip(rings, is_hole, strict=True) if not hole]
    inner = [ring for ring, hole in zip(rings, is_hole, strict=True) if hole]
    if len(outer) == 1:
        return {"type": "Polygon", "coordinates": [outer[0], *inner]}
    parts = [[ring] for ring in outer]
    if inner:
        from shapely import Polygon

        shapes = [Polygon(ring) for ring in outer]
        for ring in inner:
            # a point just inside the hole lies inside the one piece around it
            inside = Polygon(ring).representative_point()
            around = min((s.area, i) for i, s in enumerate(shapes) if s.contains(inside))[1]
            parts[around].append(ring)
    return {"type": "MultiPolygon", "coordinates": parts}
