"""Segmented objects as JSON: GeoJSON of QuPath, HoVer-Net, CellViT."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ghistpy.imaging.polygons import Polygons

logger = logging.getLogger("ghistpy")


@dataclass
class Objects:
    """What a file holds: polygons in px of the file, and for every object its id, name, type, probability."""

    polygons: Polygons
    ids: np.ndarray
    names: list[str]
    types: list[str | None]
    probability: np.ndarray
    vertices_are_pixels: bool
    kind: str


@dataclass
class _Gathered:
    """Rings and what is said of them, object by object, while a file is read."""

    rings: list[list] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    types: list[str | None] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)

    def add(self, rings: list[list], number: Any, name: str, cell_type: Any, probability: Any) -> None:
        if not rings or any(len(ring) < 3 for ring in rings):
            self.left_out["without an outline"] += 1
            return
        self.rings += rings
        self.owner += [len(self.names)] * len(rings)
        self.ids.append(number)
        self.names.append(name)
        self.types.append(None if cell_type is None else str(cell_type))
        self.probability.append(np.nan if probability is None else float(probability))

    def objects(self, path: Path, kind: str, *, vertices_are_pixels: bool) -> Objects:
        size = [len(ring) for ring in self.rings]
        try:
            flat = np.array(list(chain.from_iterable(self.rings)), dtype=np.float64).reshape(-1, 2)
        except ValueError as error:
            raise ValueError(f"{path}: outlines that are no lists of x, y ({error})") from error
        if not np.isfinite(flat).all():
            raise ValueError(f"{path}: outlines with NaN or infinite coordinates")
        if self.left_out:
            said = ", ".join(f"{n} {what}" for what, n in self.left_out.items())
            logger.warning("%s: left out: %s", path, said)
        offsets = np.concatenate([[0], np.cumsum(size, dtype=np.int64)]).astype(np.int64)
        polygons = Polygons(flat, offsets, np.array(self.owner, dtype=np.int64), len(self.names))
        ids, probability = _ids(self.ids, path), np.array(self.probability)
        return Objects(polygons, ids, self.names, self.types, probability, vertices_are_pixels, kind)


def _ids(given: list[Any], path: Path) -> np.ndarray:
    """Ids as they are when every object has one that is a whole number above 0, else 1 .. n."""
    numbers = [int(i) if isinstance(i, int) or (isinstance(i, str) and i.isdigit()) else 0 for i in given]
    if not all(number > 0 for number in numbers):
        return np.arange(1, len(given) + 1)
    ids = np.array(numbers, dtype=np.int64)
    unique, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise ValueError(f"{path}: duplicate ids, such as {unique[count > 1][:5].tolist()}; every object needs its own")
    return ids


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: json keeps the last of equal keys without a word."""
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        raise ValueError(f"duplicate ids, such as {twice[:5]}; every object needs its own")
    return out


def read_objects(path: Path) -> Objects:
    """Objects of a JSON file, whichever tool wrote it.

    Raises
    ------
    ValueError
        Not JSON, cut off, of none of the three kinds, duplicate ids, or outlines that are none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_pairs_hook=_no_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON, or cut off ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        if isinstance(content, dict) and isinstance(content.get("nuc"), dict):
            return _hovernet(content, path)
        if isinstance(content, dict) and isinstance(content.get("cells"), list):
            return _cellvit(content, path)
        if isinstance(content, list) or content.get("type") in ("FeatureCollection", "Feature"):
            return _geojson(content, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: an object without what is expected of it ({type(error).__name__}: {error})"
        ) from error
    raise ValueError(
        f"{path}: expected GeoJSON (QuPath), 'nuc' (HoVer-Net) or 'cells' (CellViT) at the top, found "
        f"{sorted(content)[:8]}"
    )


def _hovernet(content: dict[str, Any], path: Path) -> Objects:
    gathered = _Gathered()
    for name, nucleus in content["nuc"].items():
        gathered.add([nucleus["contour"]], name, name, nucleus.get("type"), nucleus.get("type_prob"))
    return gathered.objects(path, "HoVer-Net", vertices_are_pixels=True)


def _cellvit(content: dict[str, Any], path: Path) -> Objects:
    names = {str(key): value for key, value in (content.get("type_map") or {}).items()}
    gathered = _Gathered()
    for i, cell in enumerate(content["cells"]):
        kind = cell.get("type")
        gathered.add([cell["contour"]], None, str(i), names.get(str(kind), kind), cell.get("type_prob"))
    return gathered.objects(path, "CellViT", vertices_are_pixels=True)


def _geojson(content: Any, path: Path) -> Objects:
    features = content if isinstance(content, list) else content.get("features", [content])
    kinds = [(feature.get("properties") or {}).get("objectType") for feature in features]
    detected = any(kind in ("detection", "cell") for kind in kinds)
    names = [str(feature["id"]) for feature in features if feature.get("id") is not None]
    if len(set(names)) < len(names):
        twice = [name for name, n in Counter(names).items() if n > 1]
        raise ValueError(f"{path}: duplicate ids, such as {twice[:5]}; every object needs its own")
    gathered = _Gathered()
    for i, (feature, kind) in enumerate(zip(features, kinds, strict=True)):
        if detected and kind not in ("detection", "cell"):
            gathered.left_out[f"of type {kind!r} beside detections"] += 1
            continue
        said = feature.get("properties") or {}
        # of a cell the outline of the nucleus, when both are there
        geometry = feature.get("nucleusGeometry") or said.get("nucleusGeometry") or feature["geometry"]
        rings = _rings(geometry)
        if rings is None:
            gathered.left_out[f"of geometry {geometry['type']}"] += 1
            continue
        classified = said.get("classification") or {}
        name = classified.get("name") if isinstance(classified, dict) else classified
        if name is None and isinstance(classified, dict) and classified.get("names"):
            name = ": ".join(classified["names"])
        measured = said.get("measurements") or {}
        measured = measured if isinstance(measured, dict) else {m["name"]: m["value"] for m in measured}
        number = said.get("cell_id", measured.get("cell_id"))
        gathered.add(rings, _whole(number), str(feature.get("id", i)), name, measured.get("cell_type_confidence"))
    return gathered.objects(path, "GeoJSON", vertices_are_pixels=False)


def _whole(number: Any) -> int | None:
    """QuPath makes floats of all numbers."""
    return int(number) if isinstance(number, (int, float)) and number == int(number) else None


def _rings(geometry: dict[str, Any]) -> list[list] | None:
    """Rings of a polygon, without the closing point; None for points and lines."""
    parts = {"Polygon": [geometry.get("coordinates")], "MultiPolygon": geometry.get("coordinates")}
    if geometry["type"] not in parts:
        return None
    rings = [ring for part in parts[geometry["type"]] for ring in part]
    return [[p[:2] for p in (ring[:-1] if len(ring) > 1 and ring[0] == ring[-1] else ring)] for ring in rings]
