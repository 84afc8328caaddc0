"""Cell types of measured cells from a reference."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.pp.reference import check_genes, counts_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_log = logging.getLogger("ghistpy")

METHODS = ("logistic", "correlation", "celltypist")
# pseudo-cells per profile that the logistic model learns from, and the most cells per type of a reference of cells
_DRAWS = 200
_MAX_CELLS = 2000
# inverse strength of the penalty, for what is drawn from profiles and for cells
_PENALTIES = {False: 0.01, True: 0.1}
_LARGEST_FACTOR = 10.0


def annotate_cell_types(
    sdata: SpatialData | AnnData,
    reference: AnnData | str | Path,
    *,
    table_key: str = _keys.MEASURED,
    key_added: str = _keys.CELL_TYPE,
    method: str = "logistic",
    groupby: str = _keys.CELL_TYPE,
    min_confidence: float = 0.5,
    min_counts: int = 10,
    seed: int = 0,
) -> None:
    """Give each cell the type of the reference that its counts speak for.

    Parameters
    ----------
    sdata
        The slide, or a table of raw counts.
    reference
        Profiles (:func:`build_reference`: log1p values, one row each), or reference cells x genes with raw
        counts. ``method="celltypist"``: name or path of a celltypist model.
    table_key
        Table of raw counts.
    key_added
        Column to write.
    method
        ``"logistic"``: multinomial logistic regression on the shared genes; of profiles it learns from cells
        that are drawn from them at the depths of the measured ones. First the yield of every gene is set to
        that of this assay, given the types that the correlation suggests. ``"correlation"``: the profile with the
        highest Pearson correlation of log values, the baseline that needs no training. ``"celltypist"``: a
        pretrained model, by the extra ``celltypist``.
    groupby
        Column of ``reference.obs`` with the types. Profiles without it are types by their own names.
    min_confidence
        Cells whose best type has a smaller probability are ``"unassigned"``.
    min_counts
        Cells with fewer counts on the shared genes are ``"unassigned"``.
    seed
        Of the draws.

    Writes
    ------
    Into the table, in memory:

    =========================== ===== ======== =====================================================
    key                         slot  dtype    meaning
    =========================== ===== ======== =====================================================
    ``key_added``               obs   category type, or ``"unassigned"``
    ``key_added + _raw``        obs   category the best type, whatever its probability
    ``key_added + _confidence`` obs   float32  its probability
    ``key_added + _proba``      obsm  float32  probability of every type, in the order of the JSON below
    ``ghistpy``                 uns   dict     ``annotation``: JSON with ``cell_types``, method, shared genes,
                                               and how many cells are unassigned for which reason
    =========================== ===== ======== =====================================================

    Raises
    ------
    ValueError
        No shared gene (or fewer than 5), gene names that are empty or repeat, values that are no counts, an
        unknown method, or a single type.
    ImportError
        ``method="celltypist"`` without celltypist.

    Notes
    -----
    The probability of ``"correlation"`` is a softmax of the correlations, whose width is set so that a lead of
    0.1 over the others counts e-fold: it ranks cells, and is not calibrated. That of ``"logistic"`` is calibrated as
    far as the reference is like the slide, which it never quite is: compare both methods.

    ``"unassigned"`` is no type: :func:`ghistpy.tl.fit` learns the expression of such cells and not their type.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=400, n_genes=40, seed=0)
    >>> reference = gp.pp.build_reference(sdata["measured"], groupby="cell_type")
    >>> gp.pp.annotate_cell_types(sdata, reference, key_added="found")
    >>> bool((sdata["measured"].obs["found_raw"] == sdata["measured"].obs["cell_type"]).mean() > 0.7)
    True
    """
    from ghistpy.io import get_element

    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {METHODS}")
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence={min_confidence!r}: expected a probability, 0 to 1")
    table = sdata if hasattr(sdata, "obs") else get_element(sdata, "tables", table_key, "table_key")
    counts = counts_of(table, None, f"table_key={table_key!r}")
    if method == "celltypist":
        found = _celltypist(table, counts, reference)
        depth = np.asarray(counts.sum(axis=1)).ravel()
    else:
        shared, rows = _shared(table, reference)
        query = counts[:, shared]
        depth = np.asarray(query.sum(axis=1)).ravel()
        source = _read_reference(reference, rows, groupby)
        found = _METHODS[method](query, depth, source, seed)
    _write(table, found, depth, key_added, method, min_confidence, min_counts)


@dataclass(frozen=True)
class _Found:
    """Probability (n, C) of each type, their names, and how many genes it rests on."""

    proba: np.ndarray
    types: list[str]
    n_genes: int


@dataclass(frozen=True)
class _Source:
    """What there is to learn from: log1p profiles or counts (m, G), and the type of each row."""

    values: np.ndarray
    types: np.ndarray
    counts: bool


def _shared(table: AnnData, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the table and of the reference that are the same gene."""
    if not hasattr(reference, "var_names"):
        raise TypeError(f"reference: expected an AnnData of profiles or cells, got {type(reference).__name__}")
    check_genes(reference.var_names, "reference")
    ours, theirs = table.var_names.astype(str), reference.var_names.astype(str)
    index = theirs.get_indexer(ours)
    shared = np.flatnonzero(index >= 0)
    if len(shared) < 5:
        hint = ""
        lower = set(theirs.str.upper())
        if len(shared) < sum(g.upper() in lower for g in ours):
            hint = "; they differ in upper and lower case (human and mouse?)"
        elif theirs.str.startswith("ENS").mean() > 0.5 or ours.str.startswith("ENS").mean() > 0.5:
            hint = "; one side has Ensembl ids, the other symbols"
        raise ValueError(
            f"reference: it shares {len(shared)} genes with the table, 5 or more are needed: the table has such as "
            f"{ours[:3].tolist()}, the reference {theirs[:3].tolist()}{hint}"
        )
    if len(shared) < len(ours):
        _log.info("annotate_cell_types: %d of %d genes are in the reference", len(shared), len(ours))
    return shared, index[shared]


def _read_reference(reference: AnnData, columns: np.ndarray, groupby: str) -> _Source:
    values = reference.X[:, columns]
    values = np.asarray(values.todense() if hasattr(values, "todense") else values, dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("reference: expected finite values of 0 and above: raw counts of cells, or log1p profiles")
    raw = bool((values == np.rint(values)).all())
    if groupby in reference.obs:
        column = reference.obs[groupby]
        known = column.notna().to_numpy()
        values, types = values[known], column[known].astype(str).to_numpy()
    elif raw:
        raise ValueError(
            f"groupby={groupby!r} is not among the columns of reference.obs (available: {list(reference.obs)})"
        )
    else:
        types = reference.obs_names.astype(str).to_numpy()
    if len(set(types.tolist())) < 2:
        raise ValueError(f"reference: expected two or more types in {groupby!r}, got {sorted(set(types.tolist()))}")
    if values.max() > 50 and not raw:
        raise ValueError(
            f"reference: values up to {values.max():g} are neither raw counts nor log1p values; use build_reference"
        )
    return _Source(values, types, raw)


def _log_normalise(counts: Any, target: float) -> np.ndarray:
    """log1p of the counts (n, G) scaled to ``target`` per row, float32."""
    dense = np.asarray(counts.todense() if hasattr(counts, "todense") else counts, dtype=np.float32)
    total = dense.sum(axis=1, keepdims=True)
    return np.log1p(dense * (target / np.maximum(total, 1)))


def _by_correlation(query: Any, depth: np.ndarray, source: _Source, seed: int) -> _Found:
    """Softmax over the types of the best correlation with one of their profiles."""
    target = max(float(np.median(depth)), 1.0)
    profiles, names = _profiles(source)
    profiles = np.log1p(profiles * (target / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-12)))
    types = sorted(set(names.tolist()))
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    best = np.full((query.shape[0], len(types)), -1.0)
    for start in range(0, query.shape[0], 20_000):
        cells = _log_normalise(query[start : start + 20_000], target)
        cells = cells - cells.mean(axis=1, keepdims=True)
        cells /= np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)
        r = cells @ centred.T
        for i, name in enumerate(types):
            best[start : start + 20_000, i] = r[:, names == name].max(axis=1)
    from scipy.special import softmax

    return _Found(softmax(best / 0.1, axis=1), types, query.shape[1])


def _profiles(source: _Source) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts (k, G) and the type of each profile."""
    if not source.counts:
        return np.expm1(source.values), source.types
    names = np.array(sorted(set(source.types.tolist())))
    total = np.maximum(source.values.sum(axis=1, keepdims=True), 1)
    share = source.values / total
    return np.stack([share[source.types == name].mean(axis=0) for name in names]), names


def _by_logistic(query: Any, depth: np.ndarray, source: _Source, seed: int) -> _Found:
    """Multinomial logistic regression, trained at the depths of the cells that are asked about."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    target = max(float(np.median(depth)), 1.0)
    factor = _gene_factors(query, depth, source)
    train, types = _training_cells(source, depth, factor, rng)
    # types of a reference are as frequent there as somebody sorted them, which says nothing about the slide;
    # the strong penalty keeps the model from trusting single genes, whose yield differs between assays
    model = LogisticRegression(C=_PENALTIES[source.counts], class_weight="balanced", max_iter=300, tol=1e-3)
    model.fit(_log_normalise(train, target), types)
    parts = [
        model.predict_proba(_log_normalise(query[i : i + 20_000], target)) for i in range(0, query.shape[0], 20_000)
    ]
    return _Found(np.concatenate(parts), [str(t) for t in model.classes_], query.shape[1])


def _gene_factors(query: Any, depth: np.ndarray, source: _Source) -> np.ndarray:
    """(G,) how much more of each gene this assay finds than the reference, given the types by correlation."""
    profiles, names = _profiles(source)
    types = sorted(set(names.tolist()))
    share = profiles / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-12)
    mean = np.stack([share[names == name].mean(axis=0) for name in types])
    code = _by_correlation(query, depth, source, 0).proba.argmax(axis=1)
    expected = np.bincount(code, depth, len(types)) @ mean
    observed = np.asarray(query.sum(axis=0), dtype=np.float64).ravel()
    return np.clip((observed + 1) / (expected + 1), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def _training_cells(
    source: _Source, depth: np.ndarray, factor: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (m, G) and types to learn from: reference cells, or draws from profiles at the measured depths."""
    if source.counts:
        rows = np.concatenate(
            [
                rng.permutation(np.flatnonzero(source.types == name))[:_MAX_CELLS]
                for name in sorted(set(source.types.tolist()))
            ]
        )
        rows = rows[source.values[rows].sum(axis=1) > 0]
        return source.values[rows] * factor, source.types[rows]
    profiles, names = _profiles(source)
    usable = profiles.sum(axis=1) > 0
    share = profiles[usable] * factor
    share /= share.sum(axis=1, keepdims=True)
    per_profile = max(1, min(_DRAWS, 20_000 // len(share)))
    which = np.repeat(np.arange(len(share)), per_profile)
    size = rng.choice(np.maximum(depth[depth > 0], 1), len(which)) if (depth > 0).any() else np.full(len(which), 1)
    # gamma noise of the genes: real cells of a type differ by more than Poisson's share
    rate = share[which] * size[:, None] * rng.gamma(2.0, 0.5, (len(which), share.shape[1]))
    return rng.poisson(rate).astype(np.float32), names[usable][which]


_METHODS: dict[str, Callable[[Any, np.ndarray, _Source, int], _Found]] = {
    "logistic": _by_logistic,
    "correlation": _by_correlation,
}


def _celltypist(table: AnnData, counts: Any, reference: Any) -> _Found:
    from anndata import AnnData as Table

    from ghistpy._optional import require

    if not isinstance(reference, (str, Path)):
        raise TypeError(
            f"reference: method='celltypist' takes the name or path of a model, got {type(reference).__name__}"
        )
    celltypist = require("celltypist", extra="celltypist")
    # what its models were trained on: log1p of 10,000 counts per cell
    logs = counts.copy()
    total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    logs.data = np.log1p(logs.data * np.repeat(1e4 / total, np.diff(logs.indptr)))
    cells = Table(logs)
    cells.obs_names, cells.var_names = table.obs_names.astype(str), table.var_names.astype(str)
    model = celltypist.models.Model.load(str(reference))
    result = celltypist.annotate(cells, model=model, majority_voting=False)
    proba = result.probability_matrix
    # one sigmoid per type: normalised, so that they can be read like the others
    values = proba.to_numpy(dtype=np.float64)
    n_genes = int(cells.var_names.isin(model.features).sum())
    return _Found(
        values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12), proba.columns.astype(str).tolist(), n_genes
    )


def _write(
    table: AnnData,
    found: _Found,
    depth: np.ndarray,
    key: str,
    method: str,
    min_confidence: float,
    min_counts: int,
) -> None:
    import pandas as pd

    best = found.proba.argmax(axis=1)
    confidence = found.proba[np.arange(len(best)), best].astype(np.float32)
    few, unsure = depth < min_counts, confidence < min_confidence
    code = np.where(few | unsure, len(found.types), best)
    if key in table.obs:
        _log.warning("obs[%r] replaced in memory", key)
    table.obs[key] = pd.Categorical.from_codes(code, categories=[*found.types, _keys.UNASSIGNED])
    table.obs[f"{key}_raw"] = pd.Categorical.from_codes(best, categories=found.types)
    table.obs[f"{key}_confidence"] = confidence
    table.obsm[f"{key}_proba"] = found.proba.astype(np.float32)
    report = {
        "cell_types": found.types,
        "method": method,
        "shared_genes": found.n_genes,
        "cells": len(best),
        "unassigned_few_counts": int(few.sum()),
        "unassigned_low_confidence": int((unsure & ~few).sum()),
        "min_confidence": min_confidence,
        "min_counts": min_counts,
    }
    table.uns.setdefault(_keys.UNS, {})["annotation"] = json.dumps(report)
    _log.info("obs[%r]: %s", key, {k: v for k, v in report.items() if k != "cell_types"})
