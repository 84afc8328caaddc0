"""From the tables of several slides to what the engine trains on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.data.slide import Slide
    from ghistpy.tl.split import Fold

logger = logging.getLogger("ghistpy")


@dataclass(frozen=True)
class TrainingSet:
    """Slides of the parts of a fold, with what their numbers mean.

    ``fit`` are the slides that the head is finally fitted on (training and validation instances, test
    pixels blanked); ``held`` says which of their instances are validation, by slide name.
    """

    genes: list[str]
    cell_types: list[str]
    train: list[Slide]
    validation: list[Slide]
    fit: list[Slide]
    held: dict[str, np.ndarray]
    spot_diameter_um: float | None


def raw_counts(table: AnnData, where: str) -> sparse.csr_array:
    """X as CSR after checking that it holds counts; tells what is wrong otherwise."""
    units = table.uns.get(_keys.UNS, {}).get("units", _keys.UNITS_COUNTS)
    if units != _keys.UNITS_COUNTS:
        raise ValueError(f"{where} holds {units!r}; training needs raw counts, pass the measured table")
    X = table.X.compute() if hasattr(table.X, "compute") else table.X
    X = sparse.csr_array(X)
    bad = int((~np.isfinite(X.data)).sum())
    if bad:
        raise ValueError(f"{where}: X holds {bad} NaN or infinite values; remove those cells or genes first")
    if len(X.data) and X.data.min() < 0:
        raise ValueError(f"{where}: X holds {int((X.data < 0).sum())} negative values; training needs raw counts")
    fractions = X.data[X.data % 1 > 0]
    if len(fractions):
        raise ValueError(
            f"{where}: X holds fractions (e.g. {fractions[0]:.4g}), so it looks normalised or "
            "log-transformed; training needs raw counts, e.g. adata.X = adata.layers['counts']"
        )
    return X


def gather(
    slides: Mapping[str, SpatialData],
    fold: Fold,
    *,
    supervision: str,
    image_key: str,
    labels_key: str,
    table_key: str,
    cell_type_key: str,
    genes: Sequence[str] | None,
    proportions_key: str | None,
) -> TrainingSet:
    """Open the slides of the fold's training and validation parts and match tables to nuclei.

    Raises
    ------
    ValueError
        What :func:`ghistpy.tl.fit` lists: each names sample, table and remedy.
    """
    from ghistpy.io import get_element

    names = [n for n in slides if n in fold.train or n in fold.val]
    missing = sorted((set(fold.train) | set(fold.val)) - set(slides))
    if missing:
        raise ValueError(f"fold names samples {missing} that are not among sdatas {list(slides)}")
    if not any(len(region.ids) for region in fold.train.values()):
        raise ValueError("fold: it has no training ids; make it with tl.split")
    tables = {n: get_element(slides[n], "tables", table_key, "table_key") for n in names}
    panel = _panel(tables, genes, table_key)
    types = _types(tables, supervision, cell_type_key, proportions_key)
    out = TrainingSet(panel, types, [], [], [], {}, _diameter(slides, names) if supervision == "spots" else None)
    for name in names:
        base = _open(slides[name], name, image_key, labels_key)
        where = f"table_key={table_key!r} of sample {name!r}"
        ids, targets = (
            _cells(base, tables[name], where, panel, types, labels_key, cell_type_key)
            if supervision == "cells"
            else _spots(slides[name], base, tables[name], where, panel, types, proportions_key)
        )
        _add(out, fold, base, ids, targets)
    if not out.train:
        raise ValueError(
            f"fold: none of its training ids is in table_key={table_key!r} of {names}; "
            "make it with tl.split on these slides and this table"
        )
    return out


def _open(sdata: SpatialData, name: str, image_key: str, labels_key: str) -> Slide:
    from ghistpy.data.slide import Slide
    from ghistpy.geometry import find_nuclei
    from ghistpy.io import open_slide

    image, labels, mpp = open_slide(sdata, image_key, labels_key)
    nuclei = find_nuclei(labels)
    if len(nuclei) == 0:
        raise ValueError(
            f"labels_key={labels_key!r} of sample {name!r} holds no nucleus, so nothing can be learned from it; "
            "segment it with pp.segment_nuclei, or leave the slide out"
        )
    return Slide(name, image, labels, mpp, nuclei)


def _panel(tables: Mapping[str, AnnData], genes: Sequence[str] | None, table_key: str) -> list[str]:
    for name, table in tables.items():
        if not table.var_names.is_unique:
            repeated = table.var_names[table.var_names.duplicated()].unique()[:5].tolist()
            raise ValueError(
                f"table_key={table_key!r} of sample {name!r}: gene names repeat: {repeated}; "
                "call adata.var_names_make_unique()"
            )
    found = list(dict.fromkeys(g for t in tables.values() for g in t.var_names.astype(str)))
    if genes is None:
        return found
    wanted = list(dict.fromkeys([genes] if isinstance(genes, str) else [str(g) for g in genes]))
    if not wanted:
        raise ValueError(f"genes: expected at least one of {found[:5]}…, or None for all")
    absent = sorted(set(wanted) - set(found))
    if len(absent) == len(wanted):
        raise ValueError(f"genes: none of {wanted[:5]}… is in table_key={table_key!r}, which has {found[:5]}…")
    if absent:
        raise ValueError(
            f"genes: {len(absent)} of {len(wanted)} are in no slide's panel: {absent[:10]}; leave them out"
        )
    return wanted


def _types(
    tables: Mapping[str, AnnData], supervision: str, cell_type_key: str, proportions_key: str | None
) -> list[str]:
    if supervision == "spots":
        if proportions_key is None:
            return []
        known = [_proportion_names(t, n, proportions_key) for n, t in tables.items()]
        if any(k != known[0] for k in known):
            raise ValueError(f"proportions_key={proportions_key!r}: the slides have different cell types {known}")
        return known[0]
    found: set[str] = set()
    for name, table in tables.items():
        if cell_type_key not in table.obs:
            raise ValueError(
                f"cell_type_key={cell_type_key!r} is not in obs of sample {name!r}, which has "
                f"{list(table.obs.columns)}; annotate the cells, or name the column that holds their types"
            )
        found |= set(table.obs[cell_type_key].dropna().astype(str)) - {_keys.UNASSIGNED}
    if not found:
        raise ValueError(f"cell_type_key={cell_type_key!r}: no cell of any slide has a type")
    return sorted(found)


def _proportion_names(table: AnnData, name: str, key: str) -> list[str]:
    if key not in table.obsm:
        raise ValueError(f"proportions_key={key!r} is not in obsm of sample {name!r}; there are {list(table.obsm)}")
    frame = table.obsm[key]
    if hasattr(frame, "columns"):
        return [str(c) for c in frame.columns]
    names = table.uns.get(_keys.UNS, {}).get("cell_types", table.uns.get(f"{key}_cell_types"))
    if names is None:
        raise ValueError(
            f"proportions_key={key!r} of sample {name!r} has no names: store them in uns[{key + '_cell_types'!r}]"
        )
    return [str(c) for c in names]


def _diameter(slides: Mapping[str, SpatialData], names: Sequence[str]) -> float:
    found = {float(slides[n].attrs.get(_keys.ATTRS, {}).get("spot_diameter_um", np.nan)) for n in names}
    if any(np.isnan(d) for d in found):
        raise ValueError("sdata.attrs['ghistpy']['spot_diameter_um'] is missing; read the slide with io.read_spots")
    return max(found)


def _columns(table: AnnData, X: sparse.csr_array, panel: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n, G) in the order of the panel, and which genes this table holds."""
    position = table.var_names.astype(str)
    at = position.get_indexer(panel)
    out = np.zeros((X.shape[0], len(panel)), dtype=np.float32)
    out[:, at >= 0] = X[:, at[at >= 0]].toarray()
    return out, at >= 0


def _linked_rows(table: AnnData, where: str, region: str | None) -> tuple[AnnData, np.ndarray, str]:
    """The rows that annotate ``region`` (None: the only one there is), their ids, and the region."""
    from ghistpy.io.tables import check_ids, linked_to

    link = linked_to(table)
    regions = [] if link is None else link[0]
    if not regions or (region is not None and region not in regions):
        raise ValueError(
            f"{where} annotates {regions or None}, not {'spots' if region is None else f'labels {region!r}'}; "
            "name the element it belongs to, or the table that belongs to it"
        )
    if region is None and len(regions) > 1:
        raise ValueError(f"{where} annotates {regions}; training on spots needs a table of one shapes element")
    region = region or regions[0]
    if len(regions) > 1:
        table = table[(table.obs[link[1]] == region).to_numpy()]
    return table, check_ids(table.obs[link[2]].to_numpy(), f"obs[{link[2]!r}] of {where}"), region


def _cells(
    base: Slide,
    table: AnnData,
    where: str,
    panel: list[str],
    types: list[str],
    labels_key: str,
    cell_type_key: str,
) -> tuple[np.ndarray, Any]:
    from ghistpy.data.slide import CellTargets

    table, ids, _ = _linked_rows(table, where, labels_key)
    if ids.dtype == object or not (base.nuclei.index_of(ids) >= 0).any():
        raise ValueError(
            f"{where}: none of its {len(ids)} ids ({ids[:3].tolist()}…) is in labels_key={labels_key!r} "
            f"({base.nuclei.ids[:3].tolist()}…); the ids of a cell are the values of the labels"
        )
    counts, mask = _columns(table, raw_counts(table, where), panel)
    code = {name: i for i, name in enumerate(types)}
    cell_type = table.obs[cell_type_key].astype(object).map(lambda t: code.get(str(t), -1)).to_numpy(dtype=np.int64)
    return ids, CellTargets(ids, counts, mask, cell_type)


def _spots(
    sdata: SpatialData,
    base: Slide,
    table: AnnData,
    where: str,
    panel: list[str],
    types: list[str],
    proportions_key: str | None,
) -> tuple[np.ndarray, Any]:
    from ghistpy.data.slide import SpotTargets
    from ghistpy.tl.aggregate import _circles_um, _membership

    table, ids, region = _linked_rows(table, where, None)
    X = raw_counts(table, where)
    counts, mask = _columns(table, X, panel)
    circles = _circles_um(sdata, region)
    position = {spot: i for i, spot in enumerate(ids.tolist())}
    member, _ = _membership(base.nuclei.centroid_px[:, ::-1] * base.mpp, circles)
    spot, nucleus = member.tocoo().coords
    row = np.array([position.get(s, -1) for s in circles.ids.tolist()])[spot]
    kept = row >= 0
    if not kept.any():
        raise ValueError(
            f"{where}: no nucleus lies in any of its {len(ids)} spots ({region!r}); "
            "check that shapes and labels have the same µm (coordinate system 'microns')"
        )
    total = table.obs[_keys.TOTAL].to_numpy() if _keys.TOTAL in table.obs else np.asarray(X.sum(axis=1)).ravel()
    proportions = None
    if proportions_key is not None:
        proportions = np.nan_to_num(np.asarray(table.obsm[proportions_key], dtype=np.float32))
        proportions /= np.maximum(proportions.sum(axis=1, keepdims=True), 1e-6)
    return ids, SpotTargets(
        counts,
        total.astype(np.float32),
        mask,
        base.nuclei.ids[nucleus[kept]],
        row[kept],
        proportions,
        np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)[:, :2],
    )


def _add(out: TrainingSet, fold: Fold, base: Slide, ids: np.ndarray, targets: Any) -> None:
    """Put a slide into the parts of the fold that name it."""
    name = base.name
    test = fold.test[name].boxes_um if name in fold.test else np.zeros((0, 4))
    in_train = np.isin(ids, fold.train[name].ids) if name in fold.train else np.zeros(len(ids), bool)
    in_val = np.isin(ids, fold.val[name].ids) if name in fold.val else np.zeros(len(ids), bool)
    if in_train.any():
        part = replace(base, targets=_take(targets, in_train), excluded_um=fold.held_out(name))
        out.train.append(part)
    if in_val.any():
        out.validation.append(replace(base, targets=_take(targets, in_val), excluded_um=test))
    either = in_train | in_val
    if either.any():
        out.fit.append(replace(base, targets=_take(targets, either), excluded_um=test))
        out.held[name] = in_val[either]


def _take(targets: Any, rows: np.ndarray) -> Any:
    from ghistpy.data.slide import CellTargets

    if isinstance(targets, CellTargets):
        return replace(targets, ids=targets.ids[rows], counts=targets.counts[rows], cell_type=targets.cell_type[rows])
    new = np.cumsum(rows) - 1
    kept = rows[targets.spot]
    return replace(
        targets,
        counts=targets.counts[rows],
        total=targets.total[rows],
        nucleus_id=targets.nucleus_id[kept],
        spot=new[targets.spot[kept]],
        proportions=None if targets.proportions is None else targets.proportions[rows],
        xy_um=targets.xy_um[rows],
    )
