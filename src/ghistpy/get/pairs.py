"""Measured and predicted rows of one slide, paired and brought to one scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

CELLS, SPOTS = "cells", "spots"
_PER = 1e4  # spots are compared as log1p(_PER * count / total)


@dataclass
class Pairs:
    """What evaluation needs, one row per observation that both tables hold.

    ``counts`` (n, G) csc raw counts, ``truth`` (n, G) csc on the evaluation scale, ``total`` (n,) measured
    counts over all genes of the assay (spots) or None, ``xy`` (n, 2) µm or None, labels (n,) object
    arrays with None where unknown, ``composition`` (n, C) of spots, ``morphology`` (n, F) or None.
    """

    kind: str
    genes: np.ndarray
    counts: Any
    truth: Any
    total: np.ndarray | None
    xy: np.ndarray | None
    measured_type: np.ndarray | None
    predicted_type: np.ndarray | None
    composition: np.ndarray | None
    morphology: np.ndarray | None
    notes: dict[str, Any] = field(default_factory=dict)
    _X: Any = None
    _rows: np.ndarray | None = None
    _columns: np.ndarray | None = None
    _predicted_total: np.ndarray | None = None

    def __len__(self) -> int:
        return self.truth.shape[0]

    @property
    def predicted_rows(self) -> np.ndarray:
        """Row of every pair in the predicted table."""
        return self._rows

    def predicted(self, columns: np.ndarray) -> np.ndarray:
        """Prediction of those genes on the evaluation scale, (n, len(columns)) float64."""
        values = _dense(self._X, self._rows, self._columns[columns])
        if self._predicted_total is None:
            return values
        return np.log1p(_PER * np.expm1(values) / self._predicted_total[:, None])


def _dense(X: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    block = X[rows][:, columns] if hasattr(X, "tocsr") else X[np.ix_(rows, columns)]
    return np.asarray(block.toarray() if hasattr(block, "toarray") else block, dtype=np.float64)


def pair_tables(
    sdata: SpatialData,
    measured: str,
    predicted: str,
    *,
    layer: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    keep_ids: np.ndarray | None = None,
    min_total: float = 0.0,
) -> Pairs:
    """Pair two tables of a slide by region and instance id, check both and scale them."""
    from ghistpy.io import get_element

    truth_table = get_element(sdata, "tables", measured, "measured")
    table = get_element(sdata, "tables", predicted, "predicted")
    kind = _kind(truth_table, table, measured, predicted)
    _check_units(truth_table, table, measured, predicted, layer)
    X, genes, gene_rows, columns, notes = _genes(truth_table, table, measured, predicted, layer)
    rows_t, rows_p, row_notes = _rows(truth_table, table, measured, predicted, keep_ids)
    notes |= row_notes
    counts = _counts(X, rows_t, gene_rows, measured if layer is None else f"{measured}, layer={layer!r}")
    total = predicted_total = None
    if kind == SPOTS:
        total = _measured_total(truth_table, X, rows_t, notes)
        predicted_total = _predicted_total(table, rows_p, predicted)
        keep = _usable_spots(total, predicted_total, min_total, notes)
        counts, rows_t, rows_p = counts[keep], rows_t[keep], rows_p[keep]
        total, predicted_total = total[keep], predicted_total[keep]
    if len(rows_p) == 0:
        raise ValueError(
            f"measured={measured!r}, predicted={predicted!r}: no pair is left to evaluate; counts: {notes}"
        )
    values = table.X.compute() if hasattr(table.X, "compute") else table.X
    _check_predicted(values, rows_p, columns, predicted)
    notes["n"] = len(rows_p)
    notes["kind"] = kind
    used = (_keys.SPATIAL, _keys.COMPOSITION, _keys.MORPHOLOGY)
    obsm = {k: np.asarray(table.obsm[k])[rows_p] for k in used if k in table.obsm}
    return Pairs(
        kind=kind,
        genes=genes,
        counts=counts.tocsc(),
        truth=_scale(counts, total).tocsc(),
        total=total,
        xy=_coordinates(obsm, notes),
        measured_type=_labels(truth_table, cell_type_key, rows_t),
        predicted_type=_labels(table, _keys.CELL_TYPE, rows_p),
        composition=obsm.get(_keys.COMPOSITION),
        morphology=_morphology(obsm, table, rows_p, kind),
        notes=notes,
        _X=values,
        _rows=rows_p,
        _columns=columns,
        _predicted_total=predicted_total,
    )


def _link(table: AnnData, argument: str) -> tuple[str, str]:
    from ghistpy.io.tables import linked_to

    link = linked_to(table)
    if link is None:
        raise ValueError(f"{argument} annotates no element; link it with io.make_table(region=..., instance_key=...)")
    return link[1], link[2]


def _kind(truth: AnnData, table: AnnData, measured: str, predicted: str) -> str:
    spot = [_link(t, a)[1] == _keys.SPOT_ID for t, a in ((truth, f"{measured=}"), (table, f"{predicted=}"))]
    if spot == [True, False]:
        raise ValueError(
            f"measured={measured!r} holds spots and predicted={predicted!r} holds nuclei; run "
            f"tl.aggregate_spots(sdata, table_key={predicted!r}) and evaluate predicted={_keys.INSILICO_SPOTS!r}"
        )
    if spot == [False, True]:
        raise ValueError(
            f"measured={measured!r} holds cells and predicted={predicted!r} holds spots (tl.aggregate_spots made "
            f"them); evaluate the table of nuclei, usually predicted={_keys.INSILICO!r}"
        )
    return SPOTS if spot[0] else CELLS


def _check_units(truth: AnnData, table: AnnData, measured: str, predicted: str, layer: str | None) -> None:
    units = truth.uns.get(_keys.UNS, {}).get("units")
    found = None
    if units not in (None, _keys.UNITS_COUNTS):
        found = f"uns['ghistpy']['units'] is {units!r}"
    elif "log1p" in truth.uns:
        found = "uns['log1p'] is set, as scanpy.pp.log1p does"
    if found is not None and layer is None:  # a layer's own values are checked later
        raise ValueError(
            f"measured={measured!r} does not hold raw counts ({found}); name the layer that holds them with layer="
        )
    units = table.uns.get(_keys.UNS, {}).get("units")
    if units != _keys.UNITS_LOG1P:
        raise ValueError(
            f"predicted={predicted!r}: uns['ghistpy']['units'] is {units!r}, expected {_keys.UNITS_LOG1P!r}; "
            "evaluate a table written by tl.predict_expression or tl.aggregate_spots, or set the units when X is "
            "log1p(expected count)"
        )


def _genes(
    truth: AnnData, table: AnnData, measured: str, predicted: str, layer: str | None
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    if layer is not None and layer not in truth.layers:
        raise ValueError(f"layer={layer!r} is not in measured={measured!r}, which has {list(truth.layers)}")
    for name, t in ((f"{measured=}", truth), (f"{predicted=}", table)):
        if not t.var_names.is_unique:
            raise ValueError(f"{name}: gene names repeat ({t.var_names[t.var_names.duplicated()][:5].tolist()})")
    X = truth.X if layer is None else truth.layers[layer]
    X = X.compute() if hasattr(X, "compute") else X
    shared = table.var_names.isin(truth.var_names)
    if not shared.any():
        raise ValueError(
            f"measured={measured!r} and predicted={predicted!r} share no gene: {truth.n_vars} measured "
            f"({truth.var_names[:3].tolist()} ...), {table.n_vars} predicted ({table.var_names[:3].tolist()} ...); "
            "do both use gene symbols?"
        )
    columns = np.flatnonzero(shared)
    genes = table.var_names[columns]
    notes = {
        "n_genes": len(genes),
        "n_genes_only_measured": int(truth.n_vars - len(genes)),
        "n_genes_only_predicted": int(table.n_vars - len(genes)),
    }
    return X, genes.to_numpy(dtype=object), truth.var_names.get_indexer(genes), columns, notes


def _keys_of_rows(table: AnnData, argument: str) -> pd.MultiIndex:
    import pandas as pd

    region_key, instance_key = _link(table, argument)
    ids = table.obs[instance_key].to_numpy()
    index = pd.MultiIndex.from_arrays([table.obs[region_key].astype(str).to_numpy(), ids])
    if index.has_duplicates:
        raise ValueError(f"{argument}: {int(index.duplicated().sum())} rows repeat a region and {instance_key}")
    return index


def _rows(
    truth: AnnData, table: AnnData, measured: str, predicted: str, keep_ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    index_t, index_p = _keys_of_rows(truth, f"{measured=}"), _keys_of_rows(table, f"{predicted=}")
    regions = [sorted(set(i.get_level_values(0))) for i in (index_t, index_p)]
    if len(index_t) and len(index_p) and not set(regions[0]) & set(regions[1]):
        raise ValueError(
            f"measured={measured!r} annotates {regions[0]} and predicted={predicted!r} annotates {regions[1]}: "
            "no common region, so no row can be paired"
        )
    position = index_t.get_indexer(index_p)
    rows_p = np.flatnonzero(position >= 0)
    rows_t = position[rows_p]
    notes = {
        "n_measured": truth.n_obs,
        "n_predicted": table.n_obs,
        "n_measured_unmatched": int(truth.n_obs - len(rows_p)),
        "n_predicted_unmatched": int(table.n_obs - len(rows_p)),
    }
    if len(rows_p) == 0:
        raise ValueError(
            f"measured={measured!r} ({truth.n_obs} rows) and predicted={predicted!r} ({table.n_obs} rows) share no "
            f"id in region {regions[1]}; ids must be those of the element (e.g. {index_t[:2].tolist()} against "
            f"{index_p[:2].tolist()})"
        )
    if keep_ids is not None:
        import pandas as pd

        kept = pd.Index(index_p.get_level_values(1)[rows_p]).isin(keep_ids)
        notes["n_outside_fold"] = int((~kept).sum())
        rows_t, rows_p = rows_t[kept], rows_p[kept]
    return rows_t, rows_p, notes


def _counts(X: Any, rows: np.ndarray, columns: np.ndarray, where: str) -> Any:
    """Raw counts of the pairs as csr, or an error that says why they are none."""
    from scipy import sparse

    block = X[rows][:, columns] if hasattr(X, "tocsr") else np.asarray(X)[np.ix_(rows, columns)]
    counts = sparse.csr_array(block).astype(np.float64)
    values = counts.data
    missing = int((~np.isfinite(values)).sum())
    if missing:
        raise ValueError(
            f"measured={where}: {missing} values are NaN or infinite; remove those cells or genes, or set 0 where "
            "nothing was counted"
        )
    negative = values < 0
    if negative.any():
        raise ValueError(f"measured={where}: {int(negative.sum())} counts are negative (lowest {values.min():g})")
    part = values != np.floor(values)
    if part.any():
        raise ValueError(
            f"measured={where}: {int(part.sum())} of {values.size} values are no whole numbers (e.g. "
            f"{values[part][0]:g}), so they are no raw counts; name the layer that holds the counts with layer="
        )
    return counts


def _measured_total(truth: AnnData, X: Any, rows: np.ndarray, notes: dict[str, Any]) -> np.ndarray:
    if _keys.TOTAL in truth.obs:
        notes["total"] = "obs['total'] of the measured table"
        return truth.obs[_keys.TOTAL].to_numpy(dtype=np.float64)[rows]
    notes["total"] = f"sum over the {truth.n_vars} measured genes (the table has no obs['total'])"
    return np.asarray(X[rows].sum(1), dtype=np.float64).ravel()


def _predicted_total(table: AnnData, rows: np.ndarray, predicted: str) -> np.ndarray:
    if _keys.TOTAL not in table.obs:
        raise ValueError(
            f"predicted={predicted!r} has no obs['total'] (expected counts over all genes), without which spots have "
            f"no depth; columns there are {list(table.obs.columns)}"
        )
    return table.obs[_keys.TOTAL].to_numpy(dtype=np.float64)[rows]


def _usable_spots(
    total: np.ndarray, predicted_total: np.ndarray, min_total: float, notes: dict[str, Any]
) -> np.ndarray:
    """Spots with enough measured depth and with a prediction; the others are counted."""
    deep = np.isfinite(total) & (total > 0) & (total >= min_total)
    filled = np.isfinite(predicted_total) & (predicted_total > 0)
    notes["min_total"] = float(min_total)
    notes["n_spots_below_min_total"] = int((~deep).sum())
    notes["n_spots_without_prediction"] = int((deep & ~filled).sum())
    return deep & filled


def _scale(counts: Any, total: np.ndarray | None) -> Any:
    from scipy import sparse

    if total is not None:
        counts = sparse.diags_array(_PER / total).tocsr() @ counts
    return counts.log1p()


def _check_predicted(X: Any, rows: np.ndarray, columns: np.ndarray, predicted: str) -> None:
    bad_values = bad_rows = 0
    for start in range(0, len(rows), 10_000):
        finite = np.isfinite(_dense(X, rows[start : start + 10_000], columns))
        bad_values += int((~finite).sum())
        bad_rows += int((~finite).any(1).sum())
    if bad_values:
        raise ValueError(
            f"predicted={predicted!r}: {bad_values} values are NaN or infinite, in {bad_rows} of {len(rows)} rows; "
            "predict again, or remove those rows"
        )


def _coordinates(obsm: dict[str, np.ndarray], notes: dict[str, Any]) -> np.ndarray | None:
    xy = obsm.get(_keys.SPATIAL)
    if xy is None:
        notes["coordinates"] = "absent: the predicted table has no obsm['spatial']"
        return None
    if not np.isfinite(xy).all():
        notes["coordinates"] = (
            f"unusable: {int((~np.isfinite(xy)).any(1).sum())} rows of obsm['spatial'] are not finite"
        )
        return None
    return np.asarray(xy, dtype=np.float64)


def _labels(table: AnnData, key: str, rows: np.ndarray) -> np.ndarray | None:
    if key not in table.obs:
        return None
    import pandas as pd

    column = pd.Categorical(table.obs[key].iloc[rows])
    names = np.append(column.categories.astype(str).to_numpy(dtype=object), None)
    return names[column.codes]  # code -1, a missing type, reads the None at the end


def _morphology(obsm: dict[str, np.ndarray], table: AnnData, rows: np.ndarray, kind: str) -> np.ndarray | None:
    """Morphology of the nuclei, or mean morphology and log1p(number of nuclei) of the spots."""
    if _keys.MORPHOLOGY not in obsm:
        return None
    features = np.asarray(obsm[_keys.MORPHOLOGY], dtype=np.float64)
    if kind == CELLS:
        return features
    if _keys.N_NUCLEI not in table.obs:
        return None
    return np.column_stack([features, np.log1p(table.obs[_keys.N_NUCLEI].to_numpy(dtype=np.float64)[rows])])
