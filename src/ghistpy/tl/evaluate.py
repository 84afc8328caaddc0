"""A prediction beside what was measured and beside what one could have said without it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ghistpy.get.pairs import Pairs
    from ghistpy.models import GHIST
    from ghistpy.tl.split import Fold

logger = logging.getLogger("ghistpy")


def evaluate(
    sdata: SpatialData,
    *,
    model: GHIST | None = None,
    fold: Fold | None = None,
    measured: str = _keys.MEASURED,
    predicted: str = _keys.INSILICO,
    baselines: Sequence[str] = ("global_mean", "type_mean", "position", "morphology"),
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    layer: str | None = None,
    min_total: float = 0.0,
    key_added: str = _keys.EVALUATION,
) -> None:
    """Compare predicted with measured expression, gene by gene, beside baselines and the noise ceiling.

    Rows are paired by region and instance id, genes by name. Cells are compared as log1p(count), spots as
    log1p(1e4 · count / total), on both sides.

    Parameters
    ----------
    sdata
        A slide with a measured table (raw counts) and a predicted one.
    model
        The model that made the prediction: global mean, type means, morphology ridge and gene sets then
        come from its training data. None = they are cross-fitted on spatial blocks of this slide and
        chosen on it, and labelled so; they then know the slide, which the model does not.
    fold
        Evaluate the test ids of this fold only.
    measured, predicted
        Names of the tables: both of nuclei, or both of spots (see :func:`aggregate_spots`).
    baselines
        Any of ``global_mean``; ``type_mean``, the mean of the predicted type, with ``oracle_type_mean``
        beside it where types were measured; ``position``, smoothed measured values of other spatial
        blocks of this slide beyond a buffer (50 µm, less on small fields; always cross-fitted);
        ``morphology``, a ridge on shape, stain and texture of the nucleus. What cannot be built is
        named in the notes with the reason, and logged.
    gene_sets
        Set name to genes; default: the sets of the model, else the genes with the highest Moran's I here.
    cell_type_key
        Column of ``obs`` of the measured table with cell types, when there are any.
    layer
        Layer of the measured table that holds the raw counts; None = ``X``.
    min_total
        Leave out spots with fewer measured counts over all genes.
    key_added
        Key under ``uns["ghistpy"]`` of the predicted table.

    Notes
    -----
    Written in memory (``io.save(sdata, predicted)`` brings it into a store) into
    ``uns["ghistpy"][key_added]`` of the predicted table:

    ================= ========== ==============================================================
    key               type       meaning
    ================= ========== ==============================================================
    ``"metrics"``     DataFrame  level (gene, gene_set, cell_type, overall), name, method,
                                 source, metric, value, n
    ``"confusion"``   DataFrame  measured, predicted, n (cells with measured types only)
    ``"gene_sets"``   DataFrame  gene_set, gene
    ``"notes"``       str        JSON: what was paired, left out and chosen, with counts
    ================= ========== ==============================================================

    Read them with :func:`ghistpy.get.evaluation`. At the levels ``gene_set`` and ``overall`` a metric is
    its median over genes with NaN left out (``n`` genes); ``<metric>_mean``, ``<metric>_n_nan`` and, for
    correlations, ``<metric>_median_nan0`` stand beside it. At the level ``cell_type``, ``pearson`` is the
    correlation among cells of that type.

    ``skill`` = 1 − MSE / MSE(type_mean), on the scale of the comparison; ``skill_offset_removed`` after
    each gene's mean error on this slide was taken from both. ``pearson_depth_adjusted`` (spots): after
    both sides were residualised on 1, l, l², l³ with l = log total. ``noise_ceiling``: what a perfect
    prediction could reach given the counting noise, from halves of the counts. ``global_mean`` has errors
    only: one number per gene correlates with nothing. ``morans_i_error`` and ``nn_correlation_error`` are
    predicted minus measured (6 nearest neighbours; the nearest one).

    ``position`` uses the neighbourhood size that does best on this slide, in its favour.

    Raises
    ------
    ValueError
        A table is missing; spots against cells (run :func:`aggregate_spots`); no common region, id or
        gene; measured values that are not raw counts (log values, negative, NaN); predictions without
        provenance or with NaN; an unknown baseline; a model that did not make this prediction.

    Examples
    --------
    The best prediction that the pixels of a simulated slide allow:

    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=300, n_genes=12)
    >>> measured = sdata["measured"]
    >>> sdata["insilico"] = gp.io.make_table(
    ...     measured.layers["attainable"],
    ...     measured.var_names,
    ...     region="nuclei",
    ...     instance_key="cell_id",
    ...     ids=measured.obs["cell_id"],
    ...     obs={"cell_type": measured.obs["cell_type"]},
    ...     obsm={"spatial": measured.obsm["spatial"]},
    ...     uns={"ghistpy": {"units": "log1p(expected count)"}},
    ... )
    >>> gp.tl.evaluate(sdata, baselines=("global_mean", "type_mean", "position"))
    >>> frame = gp.get.evaluation(sdata).query("level == 'overall' and metric == 'pearson'")
    >>> r = frame.set_index("method")["value"]
    >>> bool(r["model"] > r["type_mean"] > r["position"])
    True
    """
    from ghistpy.get.pairs import pair_tables
    from ghistpy.tl._baselines import Method, build_baselines
    from ghistpy.tl._scores import MODEL, PREDICTION, Scorer

    _check_key(sdata, predicted, key_added)
    pairs = pair_tables(
        sdata,
        measured,
        predicted,
        layer=layer,
        cell_type_key=cell_type_key,
        keep_ids=None if fold is None else _test_ids(sdata, fold),
        min_total=min_total,
    )
    _check_model(sdata.tables[predicted].uns[_keys.UNS], model, predicted)
    methods = [Method(MODEL, PREDICTION, lambda columns, _: pairs.predicted(columns))]
    methods += build_baselines(pairs, model, baselines)
    sets = _gene_sets(pairs, model, gene_sets)
    scorer = Scorer(pairs)
    values, within = scorer.score(methods)
    result = _frames(pairs, scorer, values, within, {m.name: m.source for m in methods}, sets)
    pairs.notes |= {"measured": measured, "predicted": predicted, "scale": _scale_text(pairs)}
    pairs.notes["fold"] = "all pairs" if fold is None else "test ids of the fold"
    result["notes"] = json.dumps(pairs.notes)
    table = sdata.tables[predicted]
    table.uns[_keys.UNS] = {**table.uns[_keys.UNS], key_added: result}
    logger.info("evaluate: %s", result["notes"])


def _check_key(sdata: SpatialData, predicted: str, key_added: str) -> None:
    from ghistpy.io import get_element

    provenance = get_element(sdata, "tables", predicted, "predicted").uns.get(_keys.UNS, {})
    if not key_added or "/" in key_added:
        raise ValueError(f"key_added={key_added!r}: a store holds non-empty keys without '/' only")
    if key_added in provenance and not isinstance(provenance[key_added], Mapping):
        raise ValueError(
            f"key_added={key_added!r} is an entry of the provenance in uns['ghistpy']; choose another name"
        )


def _check_model(provenance: Mapping[str, Any], model: GHIST | None, predicted: str) -> None:
    """Baselines of another model would be compared under its name."""
    made_by, own = provenance.get("model_hash"), getattr(model, "hash", None)
    if made_by is not None and own is not None and own != made_by:
        raise ValueError(
            f"model: its hash is {own}, but predicted={predicted!r} was made by the model {made_by}; pass that one, "
            "or model=None to cross-fit the baselines on this slide"
        )


def _test_ids(sdata: SpatialData, fold: Fold) -> np.ndarray:
    """Ids of the fold's test part on this slide."""
    sample = sdata.attrs.get(_keys.ATTRS, {}).get("sample")
    if sample is None and len(fold.test) == 1:
        sample = next(iter(fold.test))
    if sample not in fold.test:
        raise ValueError(
            f"fold: sample {sample!r} (sdata.attrs['ghistpy']['sample']) has no test part; it has {list(fold.test)}"
        )
    ids = np.asarray(fold.test[sample].ids)
    if len(ids) == 0:
        raise ValueError(f"fold: the test part of sample {sample!r} holds no id")
    return ids


def _gene_sets(pairs: Pairs, model: GHIST | None, given: Mapping[str, Sequence[str]] | None) -> dict[str, np.ndarray]:
    """Set name to positions among the evaluated genes; genes that are not evaluated are counted."""
    from ghistpy.tl._scores import default_gene_sets

    if given is not None:
        source, chosen = "gene_sets=", dict(given)
    elif model is not None and model.gene_sets:
        source, chosen = "training data of the model", dict(model.gene_sets)
    else:
        source, chosen = "highest Moran's I on the evaluated slide", default_gene_sets(pairs)
    position = {g: i for i, g in enumerate(pairs.genes.tolist())}
    sets = {name: np.array([position[g] for g in genes if g in position]) for name, genes in chosen.items()}
    pairs.notes["gene_sets_chosen_on"] = source
    pairs.notes["gene_sets_missing_genes"] = {
        name: len(genes) - len(sets[name]) for name, genes in chosen.items() if len(genes) > len(sets[name])
    }
    return {name: index for name, index in sets.items() if len(index)}


def _frames(
    pairs: Pairs,
    scorer: Any,
    values: dict[str, dict[str, np.ndarray]],
    within: dict[str, np.ndarray],
    sources: dict[str, str],
    sets: dict[str, np.ndarray],
) -> dict[str, Any]:
    import pandas as pd

    from ghistpy.tl import _scores

    pairs.notes["skill_reference"] = _scores.REFERENCE if _scores.REFERENCE in values else "absent: no type_mean"
    _drop_undefined(values, within)
    values[_scores.CEILING] = _scores.ceiling_values(pairs)
    sources = {**sources, _scores.CEILING: "halves of the measured counts"}
    without = {m: int(np.isnan(v["pearson"]).sum()) for m, v in values.items() if "pearson" in v}
    pairs.notes["n_genes_without_pearson"] = without
    frames = _scores.gene_frame(pairs.genes, values, sources, len(pairs))
    for name, index in sets.items():
        frames += _scores.summary_rows("gene_set", name, values, sources, index)
    frames += _scores.summary_rows("overall", "all", values, sources, np.arange(len(pairs.genes)))
    counts = scorer.within.counts if scorer.within is not None else np.zeros(0)
    types, confusion = _scores.type_frames(pairs, scorer.types, within, counts, sources)
    members = [(name, gene) for name, index in sets.items() for gene in pairs.genes[index]]
    result: dict[str, Any] = {
        "metrics": _scores.finish(frames + types),
        "gene_sets": pd.DataFrame(members, columns=["gene_set", "gene"], dtype=object),
    }
    if confusion is not None:
        result["confusion"] = confusion
    return result


def _drop_undefined(values: dict[str, dict[str, np.ndarray]], within: dict[str, np.ndarray]) -> None:
    """A mean has no correlation; that of means cross-fitted on blocks is an artefact of the blocks."""
    from ghistpy.tl._baselines import ORACLE

    errors = ("rmse", "nrmse_range", "nrmse_sd", "js_divergence", "variance_ratio", "skill", "skill_offset_removed")
    if "global_mean" in values:
        values["global_mean"] = {k: v for k, v in values["global_mean"].items() if k in errors}
    if ORACLE in values:
        values[ORACLE].pop("within_type_pearson", None)
    for name in ("global_mean", ORACLE):
        within.pop(name, None)


def _scale_text(pairs: Pairs) -> str:
    return "log1p(count)" if pairs.total is None else "log1p(1e4 * count / total)"
