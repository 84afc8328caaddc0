"""Expression of each cell type in each patient, from cells or from a table of features."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.cohort_stats.moderated import varying
from ghistpy.tl._cohort_design import warn_of_repeats
from ghistpy.tl._patients import columns_of_kind, listed, need_columns, note, resolve_patients

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.io import Cohort

LOG, COUNTS = "log", "counts"
_NAMES = ("gene", "cell_type", "partner")
FEATURE_KIND = "gene_mean_celltype"
UNEQUAL = 3  # times the median number of cells
WHOLE = "all cells"  # stands for the cell type of features that have none


@dataclass
class States:
    """Pseudobulk of patients.

    obs clinical columns, one row per patient; by_type: cell type → (values (n, genes) with NaN, genes
    (G,), cells (n,) number of cells or NaN when unknown); scale ``"log"`` or ``"counts"`` (sums); in_silico:
    whether the values are predictions; features: names of the columns when they come from a table of features.
    Genes without any value or variation within a type are not in it, and counted in the notes.
    """

    obs: pd.DataFrame
    by_type: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    scale: str
    in_silico: bool
    notes: dict[str, Any] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=object))


def from_features(
    adata: AnnData, *, kind: str | None, layer: str | None, patient_key: str | None, agree_on: Sequence[str]
) -> States:
    """States of a table of patients × features (``var``: kind, gene, cell_type); rows of a patient are averaged."""
    if not adata.var_names.is_unique:
        raise ValueError("names of features occur more than once: adata.var_names_make_unique()")
    names = _names_of_features(adata.var.iloc[columns_of_kind(adata, kind)], kind)
    patients = resolve_patients(adata[:, names.index], layer=layer, patient_key=patient_key, agree_on=agree_on)
    names = names.loc[patients.features]
    by_type = {}
    for name in sorted(set(names["cell_type"])):
        at = (names["cell_type"] == name).to_numpy()
        gene = names["gene"].to_numpy(dtype=str)[at]
        if len(set(gene)) < len(gene):
            raise ValueError(f"kind={kind!r}: genes occur more than once for {name!r}; choose one kind of features")
        by_type[name] = (patients.X[:, at], gene, np.full(len(patients.X), np.nan))
    notes = patients.notes | {
        "n_missing_values": int(np.isnan(patients.X).sum()),
        "source": "features",
        "kind": kind,
        "n_vars": adata.n_vars,
    }
    warn_of_repeats(adata.obs.drop(columns=list(agree_on), errors="ignore"), patient_key, notes)  # pairs may repeat
    for reason in ("constant", "without_any_value"):
        if patients.notes.get(f"features_{reason}"):
            left_out = patients.notes[f"features_{reason}"]
            note(notes, f"{len(left_out)} features {reason.replace('_', ' ')} are left out: {listed(left_out)}")
    made = json.loads(adata.uns.get(_keys.UNS, {}).get("feature_notes", "{}"))
    in_silico = bool(made.get("in_silico")) or is_in_silico(adata)
    return States(patients.obs, by_type, LOG, in_silico, notes, patients.features)


def _names_of_features(var: pd.DataFrame, kind: str | None) -> pd.DataFrame:
    """Gene and cell type of the features that have both; of a kind that has not, what it has, over all cells."""
    import pandas as pd

    text = {
        c: var[c].astype(object).where(var[c].notna(), "").astype(str).replace("nan", "") for c in _NAMES if c in var
    }
    both = (text["gene"] != "") & (text["cell_type"] != "")
    if both.any():
        return pd.DataFrame({key: text[key][both] for key in ("gene", "cell_type")})
    if kind is None:
        raise ValueError("kind=None: no feature has both var['gene'] and var['cell_type']; name a kind of features")
    parts = pd.DataFrame(text)
    label = parts.apply(lambda row: "--".join(filter(None, row)), axis=1)
    return pd.DataFrame({"gene": label.where(label != "", var.index), "cell_type": WHOLE})


def is_in_silico(table: AnnData) -> bool:
    """Whether a table says that its values are predictions."""
    made = table.uns.get(_keys.UNS, {})
    return "model_hash" in made or made.get("units") == _keys.UNITS_LOG1P


@dataclass(frozen=True)
class _Sums:
    """Sums over the cells of each (patient, type): keys (m,), sums (m, G), cells (m,); and what the table is."""

    patient: np.ndarray
    cell_type: np.ndarray
    total: np.ndarray
    cells: np.ndarray
    genes: np.ndarray
    scale: str
    in_silico: bool
    n_without_type: int


def _sum_cells(table: AnnData, patient: np.ndarray, cell_type_key: str, layer: str | None) -> _Sums:
    import pandas as pd
    from scipy import sparse

    need_columns(table.obs, {"cell_type_key": cell_type_key})
    if layer is not None and layer not in table.layers:
        raise ValueError(f"layer={layer!r} is not among the layers {list(table.layers)}")
    if not table.var_names.is_unique:
        raise ValueError("names of genes occur more than once: adata.var_names_make_unique()")
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
    return _Sums(
        names[:, 0].astype(str),
        names[:, 1].astype(str),
        total,
        np.bincount(code),
        genes,
        scale_of(table, layer),
        is_in_silico(table),
        int((~known).sum()),
    )


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
    adata: AnnData,
    *,
    patient_key: str,
    cell_type_key: str,
    min_cells: int,
    layer: str | None,
    agree_on: Sequence[str],
) -> States:
    """States of a table of cells: means of log expression, or sums of counts."""
    need_columns(adata.obs, {"patient_key": patient_key})
    if adata.obs[patient_key].isna().any():
        raise ValueError(f"patient_key={patient_key!r} is missing for {int(adata.obs[patient_key].isna().sum())} cells")
    patient = adata.obs[patient_key].astype(str).to_numpy()
    sums = _sum_cells(adata, patient, cell_type_key, layer)
    notes: dict[str, Any] = {}
    return _assemble([sums], _by_patient(adata.obs, patient, agree_on, notes), min_cells, notes)


def _by_patient(obs: pd.DataFrame, patient: np.ndarray, agree_on: Sequence[str], notes: dict[str, Any]) -> pd.DataFrame:
    """One row per patient: numbers are averaged, other columns that vary within patients are left out and named."""
    grouped = obs.groupby(patient, observed=True)
    several = grouped.nunique(dropna=True) > 1
    for key in agree_on:
        if key in several and several[key].any():
            raise ValueError(f"{key!r} has different values within the patients {listed(several.index[several[key]])}")
    numbers = [c for c in obs.select_dtypes("number").columns if several[c].any()]
    varying = [c for c in several.columns[several.any()] if c not in numbers]
    notes["columns_that_vary_within_patients"] = [str(c) for c in varying]
    out = grouped.first().drop(columns=varying)
    out[numbers] = grouped[numbers].mean()
    return out


def from_slides(
    slides: Any,
    *,
    table_key: str,
    cell_type_key: str,
    min_cells: int,
    layer: str | None,
    clinical: pd.DataFrame | None,
    agree_on: Sequence[str],
) -> States:
    """States of many slides, read one after the other; slides of one patient are pooled.

    A cohort brings its patients and clinical columns; other slides say their patient in ``attrs``. Slides
    that fail are left out and reported.
    """
    from ghistpy.io import Cohort

    cohort = slides if isinstance(slides, Cohort) else _as_cohort(slides)
    options = {"table_key": table_key, "cell_type_key": cell_type_key, "layer": layer}
    results = cohort.map(sum_slide, params=options, name="differential_state", progress=False)
    patient = cohort.obs["patient"].astype(str)
    parts = [_Sums(**r | {"patient": np.full(len(r["cells"]), patient[sample])}) for sample, r in results.items()]
    if len({part.scale for part in parts}) > 1:
        raise ValueError(f"table_key={table_key!r}: some slides hold counts and others logarithms")
    notes: dict[str, Any] = {}
    if clinical is None:
        clinical = _by_patient(cohort.obs, patient.to_numpy(), agree_on, notes)
    elif "patient" in clinical:
        clinical = _by_patient(clinical, clinical["patient"].astype(str).to_numpy(), agree_on, notes)
    if results.failures:
        failed = {sample: text.strip().splitlines()[-1] for sample, text in results.failures.items()}
        notes["failures"] = failed
        note(notes, f"{len(failed)} slides are left out: {listed([f'{k} ({v})' for k, v in failed.items()])}")
    return _assemble(parts, clinical, min_cells, notes)


def sum_slide(slide: Any, *, table_key: str, cell_type_key: str, layer: str | None) -> dict[str, Any]:
    """Sums over the cells of one slide, or of a table of its cells; the patient is not known yet.

    Fields of ``_Sums`` as plain values, which a cohort can keep on disk.
    """
    table = slide
    if hasattr(slide, "tables"):
        if table_key not in slide.tables:
            raise ValueError(f"table_key={table_key!r}: no such table (there are {list(slide.tables)})")
        table = slide.tables[table_key]
    return dict(vars(_sum_cells(table, np.full(table.n_obs, ""), cell_type_key, layer)))


def _as_cohort(slides: Any) -> Cohort:
    import pandas as pd

    from ghistpy.io import Cohort

    named = dict(_named(slides))
    if not named:
        raise ValueError("cohort_or_adata: there is no slide")
    patient = [str(getattr(s, "attrs", {}).get(_keys.ATTRS, {}).get("patient") or name) for name, s in named.items()]
    return Cohort(pd.DataFrame({"sample": list(named), "patient": patient}), slides=named)


def _named(slides: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(slides, "tables"):
        slides = [slides]
    if isinstance(slides, Mapping):
        yield from slides.items()
        return
    for i, item in enumerate(slides):
        if isinstance(item, tuple):
            yield item
        else:
            yield str(item.attrs.get(_keys.ATTRS, {}).get("sample", i)), item


def _assemble(parts: list[_Sums], obs: pd.DataFrame, min_cells: int, notes: dict[str, Any]) -> States:
    """Pool the sums of each patient and type, and leave out the pairs with too few cells."""
    patients, known = _known_patients(parts, obs, notes)
    shared = set(parts[0].genes).intersection(*(set(part.genes) for part in parts[1:]))
    genes = np.array([gene for gene in parts[0].genes if gene in shared])
    scale = parts[0].scale
    notes |= {
        "source": "cells",
        "min_cells": min_cells,
        "n_genes_not_shared": len({gene for part in parts for gene in part.genes}) - len(genes),
        "n_cells_without_type": sum(part.n_without_type for part in parts),
    }
    if notes["n_genes_not_shared"]:
        note(notes, f"{notes['n_genes_not_shared']} genes are not in every slide and are left out")
    if notes["n_cells_without_type"]:
        note(notes, f"{notes['n_cells_without_type']} cells have no type and are left out")
    by_type, dropped, constant = {}, [], {}
    for name in sorted({t for part in parts for t in part.cell_type}):
        values, cells = _pool(parts, name, patients, genes)
        few = cells < min_cells
        dropped += [f"{patients[i]}/{name}" for i in np.flatnonzero(few & (cells > 0))]
        values = values if scale == COUNTS else values / np.maximum(cells, 1)[:, None]
        values[few] = np.nan
        # of counts also a gene with one value takes part in the library; one without any does not
        varies = varying(values) if scale == LOG else (np.nan_to_num(values) > 0).any(0)
        if not varies.all() and not few.all():
            constant[name] = genes[~varies].tolist()
        by_type[name] = (values[:, varies], genes[varies], cells)
    notes |= {"n_patients": len(patients), "pairs_dropped": dropped, "n_pairs_dropped": len(dropped)}
    notes["genes_constant"] = constant
    if constant:
        note(notes, f"genes that do not vary are left out: {listed([f'{len(g)} of {t}' for t, g in constant.items()])}")
    return States(known.loc[patients], by_type, scale, any(part.in_silico for part in parts), notes)


def _known_patients(parts: list[_Sums], obs: pd.DataFrame, notes: dict[str, Any]) -> tuple[list[str], pd.DataFrame]:
    """Patients that have both cells and a clinical row, and the clinical table by name."""
    patients = sorted({name for part in parts for name in part.patient})
    known = obs.copy()
    known.index = known.index.astype(str)
    if not known.index.is_unique:
        raise ValueError(f"clinical: patients occur more than once: {listed(known.index[known.index.duplicated()])}")
    absent = [name for name in patients if name not in known.index]
    if absent and len(known.columns):
        note(notes, f"{len(absent)} patients have cells but no clinical row and are left out: {listed(absent)}")
    unseen = [name for name in known.index if name not in set(patients)]
    if unseen:
        note(notes, f"{len(unseen)} patients have a clinical row but no cells: {listed(unseen)}")
    patients = [name for name in patients if name in known.index]
    if not patients:
        raise ValueError("no patient has both cells and a clinical row: are the names the same?")
    return patients, known


def _pool(parts: list[_Sums], cell_type: str, patients: list[str], genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums (n, G) and numbers of cells (n,) of one type."""
    import pandas as pd

    row = pd.Index(patients)
    total, cells = np.zeros((len(patients), len(genes))), np.zeros(len(patients))
    for part in parts:
        at = np.flatnonzero((part.cell_type == cell_type) & np.isin(part.patient, patients))
        rows, order = row.get_indexer(part.patient[at]), pd.Index(part.genes).get_indexer(genes)
        np.add.at(total, rows, part.total[at][:, order])
        np.add.at(cells, rows, part.cells[at])
    return total, cells


def compare_cells(states: States, groupby: str, groups: list[str], weighted: bool, notes: dict[str, Any]) -> None:
    """Record and say where the groups differ much in cells per patient: values of theirs are then unequally precise."""
    group, medians = states.obs[groupby].astype(str).to_numpy(), {}
    for name, (values, _, cells) in states.by_type.items():
        tested = ~np.isnan(values).all(1)
        of_group = {g: float(np.median(cells[tested & (group == g)])) for g in groups if (tested & (group == g)).any()}
        if of_group and max(of_group.values()) > UNEQUAL * min(of_group.values()):
            medians[name] = of_group
    notes["median_cells_where_unequal"] = medians
    if medians:
        note(
            notes,
            f"median numbers of cells of a patient differ more than {UNEQUAL} times between groups of {groupby!r} in "
            f"{listed(medians)}: where patients differ by little else, true nulls are rejected too often, "
            + ("7 % at 5 % with 8 patients a group" if weighted else "30 % at 5 % when few patients have the few cells")
            + "; leave out patients of few cells (min_cells=)"
            + ("" if weighted else ", or weigh them (weighted=True)"),
        )


def log_cpm(sums: np.ndarray) -> np.ndarray:
    """log2 counts per million of pseudobulk sums (n, G), half a count added; NaN rows stay NaN."""
    library = sums.sum(1, keepdims=True)
    return np.log2((sums + 0.5) / (library + 1) * 1e6)


def as_table(states: States) -> AnnData:
    """Patients × genes of cell types, for results that came from slides."""
    import anndata
    import pandas as pd

    X = np.hstack([values for values, _, _ in states.by_type.values()])
    var = pd.DataFrame(
        {
            "kind": FEATURE_KIND,
            "gene": np.concatenate([genes for _, genes, _ in states.by_type.values()]),
            "cell_type": np.repeat(list(states.by_type), [len(g) for _, g, _ in states.by_type.values()]),
        }
    )
    var.index = var["cell_type"] + "--" + var["gene"]
    return anndata.AnnData(X, obs=states.obs.copy(), var=var)
