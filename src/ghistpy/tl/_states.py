"""Expression of each cell type in each patient, from cells or from a table of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._patients import columns_of_kind, listed, matrix, need_columns, note

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LOG, COUNTS = "log", "counts"
FEATURE_KIND = "gene_mean_celltype"


@dataclass
class States:
    """Pseudobulk of patients.

    obs clinical columns, one row per patient; by_type: cell type → (values (n, genes) with NaN, genes
    (G,), cells (n,) number of cells or NaN when unknown); scale ``"log"`` or ``"counts"`` (sums).
    """

    obs: pd.DataFrame
    by_type: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    scale: str
    notes: dict[str, Any] = field(default_factory=dict)


def from_features(adata: AnnData, *, kind: str | None, layer: str | None) -> States:
    """States of a table of patients × features (``var``: kind, gene, cell_type)."""
    columns = columns_of_kind(adata, kind)
    gene, cell_type = (adata.var[c].astype(object).iloc[columns].to_numpy() for c in ("gene", "cell_type"))
    usable = np.array([_is_name(g) and _is_name(c) for g, c in zip(gene, cell_type, strict=True)], dtype=bool)
    if not usable.any():
        raise ValueError(f"kind={kind!r}: no feature has both var['gene'] and var['cell_type']")
    columns, gene, cell_type = columns[usable], gene[usable].astype(str), cell_type[usable].astype(str)
    X = matrix(adata, columns, layer)
    by_type = {}
    for name in sorted(set(cell_type)):
        at = cell_type == name
        if len(set(gene[at])) < at.sum():
            raise ValueError(f"kind={kind!r}: genes occur more than once for {name!r}; choose one kind of features")
        by_type[name] = (X[:, at], gene[at], np.full(len(X), np.nan))
    n_missing = int(np.isnan(X).sum())
    notes = {"n_patients": adata.n_obs, "n_missing_values": n_missing, "source": "features", "n_vars": adata.n_vars}
    return States(adata.obs.copy(), by_type, LOG, notes)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", "nan")


@dataclass(frozen=True)
class _Sums:
    """Sums over the cells of each (patient, type): keys (m,), sums (m, G), cells (m,)."""

    patient: np.ndarray
    cell_type: np.ndarray
    total: np.ndarray
    cells: np.ndarray
    genes: np.ndarray


def _sum_cells(table: AnnData, patient: np.ndarray, cell_type_key: str, layer: str | None) -> _Sums:
    import pandas as pd
    from scipy import sparse

    need_columns(table.obs, {"cell_type_key": cell_type_key})
    if layer is not None and layer not in table.layers:
        raise ValueError(f"layer={layer!r} is not among the layers {list(table.layers)}")
    X = table.X if layer is None else table.layers[layer]
    known = table.obs[cell_type_key].notna().to_numpy()
    pairs = pd.MultiIndex.from_arrays([patient[known], table.obs[cell_type_key].astype(str).to_numpy()[known]])
    code, unique = pd.factorize(pairs)
    member = sparse.csr_array((np.ones(len(code)), (code, np.flatnonzero(known))), shape=(len(unique), table.n_obs))
    total = member @ (X if sparse.issparse(X) else np.asarray(X, dtype=np.float64))
    total = total.toarray() if sparse.issparse(total) else np.asarray(total)
    if not np.isfinite(total).all():
        raise ValueError("X holds NaN or infinite values: remove those cells")
    names = unique.to_frame(index=False).to_numpy()
    genes = table.var_names.astype(str).to_numpy()
    return _Sums(names[:, 0].astype(str), names[:, 1].astype(str), total, np.bincount(code), genes)


def scale_of(table: AnnData, layer: str | None) -> str:
    """Whether a table holds counts or logarithms: from its provenance, else from its values."""
    from scipy import sparse

    units = table.uns.get(_keys.UNS, {}).get("units")
    if units is not None and layer is None:
        return COUNTS if units == _keys.UNITS_COUNTS else LOG
    X = table.X if layer is None else table.layers[layer]
    sample = X[: min(200, table.n_obs)]
    sample = sample.toarray() if sparse.issparse(sample) else np.asarray(sample)
    return COUNTS if (sample >= 0).all() and (sample == np.round(sample)).all() else LOG


def from_cells(
    adata: AnnData, *, patient_key: str, cell_type_key: str, min_cells: int, layer: str | None, scale: str | None = None
) -> States:
    """States of a table of cells: means of log expression, or sums of counts."""
    need_columns(adata.obs, {"patient_key": patient_key})
    if adata.obs[patient_key].isna().any():
        raise ValueError(f"patient_key={patient_key!r} is missing for {int(adata.obs[patient_key].isna().sum())} cells")
    patient = adata.obs[patient_key].astype(str).to_numpy()
    sums = _sum_cells(adata, patient, cell_type_key, layer)
    obs = adata.obs.groupby(patient, observed=True).first()
    constant = [c for c in obs.columns if not (adata.obs.groupby(patient)[c].nunique(dropna=True) > 1).any()]
    return _assemble([sums], obs[constant], min_cells, scale or scale_of(adata, layer))


def from_slides(
    slides: Iterable[Any], *, table_key: str, cell_type_key: str, min_cells: int, clinical: pd.DataFrame | None
) -> States:
    """States of many slides, read one after the other; slides of one patient are pooled."""
    import pandas as pd

    sums, scales, failed, seen = [], set(), {}, []
    for sample, sdata in _named(slides):
        if table_key not in sdata.tables:
            failed[sample] = f"no table {table_key!r}"
            continue
        table = sdata.tables[table_key]
        patient = str(sdata.attrs.get(_keys.ATTRS, {}).get("patient") or sample)
        sums.append(_sum_cells(table, np.full(table.n_obs, patient), cell_type_key, None))
        scales.add(scale_of(table, None))
        seen.append(patient)
    if not sums:
        raise ValueError(f"table_key={table_key!r}: no slide has such a table ({listed(list(failed))})")
    if len(scales) > 1:
        raise ValueError(f"table_key={table_key!r}: some slides hold counts and others logarithms")
    frame = clinical if clinical is not None else pd.DataFrame(index=pd.Index(sorted(set(seen))))
    states = _assemble(sums, frame, min_cells, scales.pop())
    if failed:
        note(states.notes, f"{len(failed)} slides are left out: {listed([f'{k} ({v})' for k, v in failed.items()])}")
    return states


def _named(slides: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(slides, Mapping):
        yield from slides.items()
        return
    for i, item in enumerate(slides):
        if isinstance(item, tuple):
            yield item
        else:
            yield str(item.attrs.get(_keys.ATTRS, {}).get("sample", i)), item


def _assemble(parts: list[_Sums], obs: pd.DataFrame, min_cells: int, scale: str) -> States:
    """Pool the sums of each patient and type, and leave out the pairs with too few cells."""
    genes = parts[0].genes
    shared = set(genes).intersection(*(set(part.genes) for part in parts[1:]))
    genes = np.array([gene for gene in genes if gene in shared])
    patients = sorted({name for part in parts for name in part.patient})
    known = obs.copy()
    known.index = known.index.astype(str)
    notes: dict[str, Any] = {
        "source": "cells",
        "min_cells": min_cells,
        "n_genes_not_shared": len(parts[0].genes) - len(genes),
    }
    absent = [name for name in patients if name not in known.index]
    if absent and len(known.columns):
        note(notes, f"{len(absent)} patients have cells but no clinical row and are left out: {listed(absent)}")
    unseen = [name for name in known.index if name not in set(patients)]
    if unseen:
        note(notes, f"{len(unseen)} patients have a clinical row but no cells: {listed(unseen)}")
    patients = [name for name in patients if name in known.index]
    if not patients:
        raise ValueError("no patient has both cells and a clinical row: are the names the same?")
    row = {name: i for i, name in enumerate(patients)}
    by_type, dropped = {}, []
    for name in sorted({t for part in parts for t in part.cell_type}):
        total, cells = np.zeros((len(patients), len(genes))), np.zeros(len(patients))
        for part in parts:
            at = np.flatnonzero((part.cell_type == name) & np.isin(part.patient, patients))
            rows = np.array([row[p] for p in part.patient[at]], dtype=np.int64)
            order = [part.genes.tolist().index(g) for g in genes] if len(part.genes) != len(genes) else slice(None)
            np.add.at(total, rows, part.total[at][:, order])
            np.add.at(cells, rows, part.cells[at])
        few = cells < min_cells
        dropped += [f"{patients[i]}/{name}" for i in np.flatnonzero(few & (cells > 0))]
        values = total if scale == COUNTS else total / np.maximum(cells, 1)[:, None]
        values[few] = np.nan
        by_type[name] = (values, genes, cells)
    notes |= {"n_patients": len(patients), "pairs_dropped": dropped, "n_pairs_dropped": len(dropped)}
    return States(known.loc[patients], by_type, scale, notes)


def log_cpm(sums: np.ndarray) -> np.ndarray:
    """log2 counts per million of pseudobulk sums (n, G), half a count added; NaN rows stay NaN."""
    library = sums.sum(1, keepdims=True)
    return np.log2((sums + 0.5) / (library + 1) * 1e6)
