"""Slides of a cohort become one row of features per patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _features
from ghistpy.tl._features import BULK, BY_TYPE, EXTRA_KINDS, KINDS, N_TOP, PATHWAYS, PER_GENE, PRESENCE
from ghistpy.tl._image_features import IMAGE_KINDS
from ghistpy.tl._plan import make_plan

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.io import Cohort, CohortResults

logger = logging.getLogger("ghistpy")

_COMBINE = ("weighted", "mean", "largest")
_OF_PAIRS = ("CCI", "L_stats")
_OF_TYPES = (*BY_TYPE, *PATHWAYS, *_OF_PAIRS)


def cohort_features(
    cohort: Cohort | Mapping[str, Any] | Sequence[Any],
    *,
    kinds: str | Sequence[str] | None = None,
    genes: Sequence[str] | Mapping[str, Any] | None = None,
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    lr_pairs: Sequence[tuple[str, str]] | None = None,
    missing: str = "nan",
    client: Any = None,
    table_key: str = _keys.INSILICO,
    layer: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    cell_types: Sequence[str] | None = None,
    train: str | Sequence[str] | None = None,
    reference: AnnData | None = None,
    combine: str = "weighted",
    n_top: Mapping[str, int] | None = None,
    threshold: float = 1.0,
    radius_um: float = 50.0,
    moran: str = "knn",
    window: str | None = None,
    grid: str = "fixed",
    progress: bool = True,
) -> AnnData:
    """Describe every patient by the composition, expression and spatial order of his cells.

    Parameters
    ----------
    cohort
        A :class:`ghistpy.Cohort`, or sample -> slide or table of cells (a sequence is numbered).
    kinds
        Which features, see Notes. Default: all that can be computed, but ``proportion_clr`` and ``image_*``;
        ``pathway_*`` need ``gene_sets``, ``CCI`` needs ``lr_pairs``.
    genes
        Genes to use: a list for every kind, or kind -> list (kinds by type: or type -> list). Default: the most
        variable ones of the training samples.
    gene_sets
        Name -> genes. Sets with fewer than 10 genes of the panel are left out and counted.
    lr_pairs
        (ligand, receptor) pairs. Pairs with a gene outside the panel are left out and counted.
    missing
        ``"nan"``: a feature of a type that a patient lacks is NaN, and columns of kind ``presence`` say which
        types there are. ``"zero"``: 0, which reads as "no expression" or "no correlation".
    client
        ``dask.distributed.Client``: one task per slide.
    table_key, layer, cell_type_key
        Table of cells, its values (default ``X``; raw counts become log1p) and the column of types, which
        ``*_bulk``, ``morans_I``, ``nn_correlation`` and ``image_*`` can do without.
    cell_types
        Types and their order. Default: those of the training samples, sorted.
    train
        Samples on which genes, types and cut-offs are chosen, or a column of the manifest with true and false
        or 1 and 0. Default: all; a model that is judged on some of them has then seen which of their genes vary.
    reference
        An earlier result: its types, genes, gene sets and cut-offs are used again, for new patients.
    combine
        Several samples of one patient: ``"weighted"``, mean weighted by numbers of cells (of the type, for
        expression in a type; of the rarer type, for ``CCI`` and ``L_stats``); ``"mean"``; ``"largest"``, the
        sample with most cells. Missing values are left out of means. A type is present when it is in one.
    n_top
        Kind -> number of variable genes by sample (and type).
    threshold
        ``gene_prop_*``: share of cells strictly above it. Predictions are shrunken towards their mean, so on
        in-silico tables this measures shrinkage as well.
    radius_um
        Reach of ``celltype_interaction`` and ``L_stats``, µm.
    moran
        ``"knn"``: 6 nearest neighbours. ``"all_pairs"``: weights 1/distance, up to 5,000 cells a sample. One
        form for the whole cohort.
    window, grid
        Of ``L_stats``, as in :func:`ghistpy.tl.ripley_l`; the window also of ``image_density``.
    progress
        Show bars.

    Returns
    -------
    AnnData
        Patients x features, float64.

        ========================= =========================================================================
        slot                      meaning
        ========================= =========================================================================
        ``X``                     features
        ``obs``                   ``n_samples``, ``n_cells``, and columns of the manifest that do not vary
                                  within a patient
        ``var``                   ``kind``, ``gene`` (or set, or measure), ``cell_type``, ``partner`` (second type,
                                  or second gene of a correlation), ``partner_gene`` (receptor)
        ``uns["ghistpy"]``        ``feature_plan`` (JSON: types, genes, cut-offs and options, for
                                  ``reference=``), ``feature_notes`` (JSON: what was left out, failures)
        ========================= =========================================================================

        Names join kind, types and genes with ``"--"``; read ``var`` rather than names.

    Notes
    -----
    ``proportion_raw``, ``_logit`` (0 as 0.001, 1 as 0.999), ``_ratio`` (log2(n1/n2 + 1) of type pairs;
    (n1+1)/(n2+2) if one is 0), ``proportion_clr`` (only when named) · ``gene_mean_celltype``,
    ``gene_prop_celltype``, ``gene_cor_celltype``, and ``_bulk`` over all cells · ``pathway_gsva`` (ssGSEA per
    cell), ``pathway_mean`` (set mean minus mean of all genes), ``pathway_prop`` (share of cells at or above the
    75th percentile of ``pathway_mean`` over the training cells), averaged by type · ``CCI`` (LRscore by ordered
    pair of types; not spatial) · ``L_stats`` (mean of L(r) - r, ordered pairs of types with more than 10
    cells), ``celltype_interaction`` (share of the cell pairs within the radius, unordered type pairs),
    ``morans_I``, ``nn_correlation``.

    What the image gives without expression, only when named, for ``image_keys=`` of
    :func:`ghistpy.tl.survival_cv`: ``image_density`` (cells per mm² of tissue), ``image_morphology`` (mean and
    SD over the nuclei of ``obs["area_um2"]`` and ``obsm["morphology"]``), ``image_stain`` (mean and SD of the
    optical density of the tissue in R, G, B; NaN without an image). Their measure is in ``var["gene"]``.

    Two passes, each one slide at a time: the plan, then features by the plan; both are kept by a cohort with a
    cache folder. Cost per slide O(n G) for n cells, plus pairs within the radius.

    Raises
    ------
    ValueError
        Unknown kinds or options, pathways without sets, no set or pair with genes in the panel.
    RuntimeError
        Every sample failed.

    References
    ----------
    Cao et al. (scFeatures), Bioinformatics 38:4745 (2022), doi:10.1093/bioinformatics/btac590.

    Examples
    --------
    >>> import ghistpy as gp
    >>> slides = {f"S{i}": gp.datasets.simulate_slide(n_cells=200, n_genes=12, seed=i) for i in range(2)}
    >>> kinds = ["proportion_raw", "gene_mean_bulk"]
    >>> features = gp.tl.cohort_features(slides, table_key="measured", kinds=kinds, progress=False)
    >>> features.var_names[0], features.shape
    ('proportion_raw--B', (2, 24))
    """
    from ghistpy.io import Cohort

    kinds, notes = _kinds(kinds, gene_sets, lr_pairs, reference)
    _check(missing, combine, moran, grid)
    _check_numbers(threshold, radius_um, n_top, genes)
    cohort = cohort if isinstance(cohort, Cohort) else Cohort(slides=_named(cohort))
    options = {
        "table_key": table_key, "layer": layer, "cell_type_key": cell_type_key, "threshold": float(threshold),
        "radius_um": float(radius_um), "moran": moran, "window": window, "grid": grid,
    }  # fmt: skip
    run = {"client": client, "progress": progress}
    if reference is not None:
        plan = _stored_plan(reference, kinds) | {k: options[k] for k in ("table_key", "layer", "cell_type_key")}
    else:
        given = {"genes": genes, "gene_sets": gene_sets, "lr_pairs": lr_pairs, "cell_types": cell_types}
        plan = make_plan(cohort.subset(_training(cohort, train)), kinds, given, N_TOP | dict(n_top or {}), options, run)
    notes |= plan.pop("notes", {})
    results = cohort.map(_features.sample_features, params={"plan": plan | {"kinds": kinds}}, name="features", **run)
    return _table(cohort, results, kinds, plan, missing, combine, notes)


def _kinds(
    kinds: str | Sequence[str] | None, gene_sets: Any, lr_pairs: Any, reference: AnnData | None
) -> tuple[list[str], dict[str, Any]]:
    known = (*KINDS, *EXTRA_KINDS)
    if reference is not None and kinds is None:
        return _stored_plan(reference, [])["kinds"], {}
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        unknown = [k for k in kinds if k not in known]
        if unknown:
            raise ValueError(f"kinds={unknown}: expected some of {list(known)}")
        if reference is None and gene_sets is None and set(kinds) & set(PATHWAYS):
            raise ValueError(f"gene_sets: {sorted(set(kinds) & set(PATHWAYS))} need gene sets, name -> genes")
        if reference is None and lr_pairs is None and "CCI" in kinds:
            raise ValueError("lr_pairs: kind 'CCI' needs pairs (ligand, receptor)")
        return kinds, {}
    left = [k for k in KINDS if (k in PATHWAYS and gene_sets is None) or (k == "CCI" and lr_pairs is None)]
    if left:
        logger.info("cohort_features: %s left out: they need gene_sets or lr_pairs", left)
    return [k for k in KINDS if k not in left], {"kinds_left_out": left}


def _check(missing: str, combine: str, moran: str, grid: str) -> None:
    options = {
        "missing": (missing, ("nan", "zero")), "combine": (combine, _COMBINE),
        "moran": (moran, ("knn", "all_pairs")), "grid": (grid, ("fixed", "spatstat")),
    }  # fmt: skip
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {list(allowed)}")


def _check_numbers(threshold: float, radius_um: float, n_top: Any, genes: Any) -> None:
    if not np.isfinite(threshold):
        raise ValueError(f"threshold={threshold!r}: expected a finite value of expression")
    if not (np.isfinite(radius_um) and radius_um > 0):
        raise ValueError(f"radius_um={radius_um!r}: expected a length above 0 in µm")
    options = {"n_top": (n_top, tuple(N_TOP)), "genes": (genes, (*BY_TYPE, *BULK, *PER_GENE))}
    for name, (value, allowed) in options.items():
        unknown = sorted(set(map(str, value)) - set(allowed)) if isinstance(value, Mapping) else []
        if unknown:
            raise ValueError(f"{name}: unknown kinds {unknown}; expected some of {list(allowed)}")
    low = {k: v for k, v in (n_top or {}).items() if v < 1}
    if low:
        raise ValueError(f"n_top={low}: expected 1 gene or more")


def _named(cohort: Any) -> dict[str, Any]:
    if isinstance(cohort, Mapping):
        return {str(k): v for k, v in cohort.items()}
    if hasattr(cohort, "tables") or hasattr(cohort, "obs_names"):
        cohort = [cohort]
    if isinstance(cohort, str) or not isinstance(cohort, Sequence):
        raise ValueError(f"cohort: expected a Cohort or sample -> slide, got {type(cohort).__name__}")
    return {f"sample_{i}": slide for i, slide in enumerate(cohort)}


def _training(cohort: Cohort, train: str | Sequence[str] | None) -> list[str]:
    if train is None:
        return cohort.samples
    if isinstance(train, str):
        if train not in cohort.obs:
            raise ValueError(f"train={train!r} is not a column of the manifest; there are {list(cohort.obs)}")
        chosen = cohort.obs.index[_as_boolean(cohort.obs[train], train)].tolist()
    else:
        chosen = [str(s) for s in train]
        unknown = sorted(set(chosen) - set(cohort.samples))
        if unknown:
            raise ValueError(f"train: samples {unknown[:5]} are not in the cohort")
    if not chosen:
        raise ValueError("train: it names no sample")
    return chosen


def _as_boolean(column: pd.Series, name: str) -> np.ndarray:
    """True and false of a column that holds nothing else, or 1 and 0: "no" would count as true."""
    values = column.astype(object)
    if not values.isin([True, False]).all():
        wrong = sorted({repr(v) for v in values[~values.isin([True, False])]})
        raise ValueError(
            f"train={name!r}: the column holds {wrong[:5]}; expected true and false, or 1 and 0, everywhere"
        )
    return values.to_numpy(dtype=bool)


def _stored_plan(reference: AnnData, kinds: list[str]) -> dict[str, Any]:
    stored = reference.uns.get(_keys.UNS, {}).get("feature_plan")
    if stored is None:
        raise ValueError("reference: it holds no feature plan; pass a result of tl.cohort_features")
    plan = json.loads(stored)
    absent = [k for k in kinds if k not in plan["kinds"]]
    if absent:
        raise ValueError(f"kinds={absent} are not in the reference, which has {plan['kinds']}")
    return plan


def _table(
    cohort: Cohort,
    results: CohortResults,
    kinds: list[str],
    plan: dict[str, Any],
    missing: str,
    combine: str,
    notes: dict[str, Any],
) -> AnnData:
    """Samples combined to patients, with what was left out."""
    from anndata import AnnData

    from ghistpy import __version__

    columns = [*kinds, PRESENCE] if missing == "nan" else kinds
    var = _features.feature_axis(columns, plan)
    X = np.stack([np.concatenate([*(r["values"][k] for k in kinds), r[PRESENCE]]) for r in results.values()])
    X = X[:, : len(var)]
    obs = cohort.obs.loc[list(results)].assign(n_cells=[r["n_cells"] for r in results.values()])
    blank = [s for s, r in results.items() if "image_stain" in kinds and np.isnan(r["values"]["image_stain"]).all()]
    weight = _weights(var, plan["cell_types"], obs["n_cells"], np.stack([r["n_by_type"] for r in results.values()]))
    X, obs, varying = combine_samples(X, obs, combine, weight)
    present = (var["kind"] == PRESENCE).to_numpy()
    X[:, present] = np.where(np.isnan(X[:, present]), np.nan, X[:, present] > 0)
    if missing == "zero":
        # an image that is not there has no density of 0
        X[np.isnan(X) & ~var["kind"].isin(IMAGE_KINDS).to_numpy()] = 0.0
    lost = sorted(set(cohort.obs["patient"]) - set(obs.index))
    notes |= {
        "failures": {s: text.strip().splitlines()[-1] for s, text in results.failures.items()},
        "patients_without_sample": lost,
        "columns_that_vary_within_patients": varying,
        "unknown_types": sorted({t for r in results.values() for t in r["unknown_types"]}),
        "n_cells_without_known_type": sum(r["n_without_type"] for r in results.values()),
        "genes_missing_in_samples": {s: len(r["missing_genes"]) for s, r in results.items() if r["missing_genes"]},
        "samples_without_tissue_image": blank,
        "combine": combine,
        "missing": missing,
        "in_silico": any(r["in_silico"] for r in results.values()),
    }
    _warn(notes, kinds, any(r["in_silico"] for r in results.values()))
    adata = AnnData(X, obs=obs, var=var)
    stored = json.dumps({k: v for k, v in plan.items() if k != "notes"} | {"kinds": kinds})
    adata.uns[_keys.UNS] = {"version": __version__, "feature_plan": stored, "feature_notes": json.dumps(notes)}
    return adata


def _warn(notes: dict[str, Any], kinds: list[str], in_silico: bool) -> None:
    if notes["patients_without_sample"]:
        names = notes["patients_without_sample"]
        logger.warning("cohort_features: %d patients without any sample left: %s", len(names), names[:5])
    if notes["samples_without_tissue_image"]:
        names = notes["samples_without_tissue_image"]
        logger.warning("cohort_features: %d samples without an image of tissue: %s", len(names), names[:5])
    if notes["unknown_types"]:
        logger.warning("cohort_features: cells of types %s are in no feature by type", notes["unknown_types"])
    if in_silico and any(k.startswith("gene_prop") for k in kinds):
        logger.warning("cohort_features: gene_prop_* of in-silico tables measure their shrinkage as well")


def _weights(var: pd.DataFrame, types: list[str], n_cells: pd.Series, n_by_type: np.ndarray) -> np.ndarray:
    """(samples, features) numbers of cells that a feature was measured on."""
    import pandas as pd

    # shares are shares of all cells
    first = np.where(var["kind"].isin(_OF_TYPES), pd.Index(types).get_indexer(var["cell_type"]), -1)
    second = np.where(var["kind"].isin(_OF_PAIRS), pd.Index(types).get_indexer(var["partner"]), -1)
    by_type = np.column_stack([n_by_type, n_cells])  # the last column for -1
    return np.minimum(by_type[:, first], by_type[:, second]).astype(np.float64)


def combine_samples(
    X: np.ndarray, obs: pd.DataFrame, combine: str, weight: np.ndarray
) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """Rows of samples to rows of patients; obs by patient; the columns that vary within patients (left out)."""
    import pandas as pd
    from scipy import sparse

    patients, first = np.unique(obs["patient"].to_numpy(dtype=str), return_index=True)
    patients = patients[np.argsort(first)]  # order of the manifest
    code = pd.Index(patients).get_indexer(obs["patient"].astype(str))
    if combine == "mean":
        weight = np.ones(X.shape)
    elif combine == "largest":
        n_cells = obs["n_cells"].to_numpy()
        order = np.lexsort((-n_cells, code))
        best = order[np.r_[True, np.diff(code[order]) > 0]]
        weight = np.isin(np.arange(len(code)), best)[:, None] * np.ones(X.shape)
    of_patient = sparse.csr_array((np.ones(len(code)), (code, np.arange(len(code)))), shape=(len(patients), len(code)))
    here = np.isfinite(X)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = of_patient @ (np.where(here, X, 0.0) * weight) / (of_patient @ (here * weight))
    groups = obs.groupby(code, sort=True)
    frame = pd.DataFrame({"n_samples": groups.size().to_numpy(), "n_cells": groups["n_cells"].sum().to_numpy()})
    frame.index = pd.Index(patients, dtype=object)
    varying = []
    for name in [c for c in obs.columns if c not in ("patient", "n_cells")]:
        if (groups[name].nunique(dropna=False) > 1).any():
            varying.append(str(name))
        else:
            frame[str(name)] = groups[name].first().to_numpy()
    if varying:
        logger.warning("cohort_features: columns %s vary within patients and are left out", varying)
    return out, frame, varying
