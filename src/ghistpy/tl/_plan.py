"""The plan of patient features: types, genes, gene sets, pairs and cut-offs, from the training samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.tl import _features
from ghistpy.tl._features import BULK, BY_TYPE, PATHWAYS, PER_GENE, WITHOUT_TYPES

if TYPE_CHECKING:
    from ghistpy.io import Cohort

logger = logging.getLogger("ghistpy")


def make_plan(
    cohort: Cohort, kinds: list[str], given: dict[str, Any], n_top: dict[str, int], options: dict, run: dict
) -> dict[str, Any]:
    """Types, genes, sets, pairs and cut-offs, from a first pass over the training samples."""
    chosen = given["genes"]
    selected = [k for k in kinds if k in (*BY_TYPE, *BULK, *PER_GENE)]
    free = [
        k
        for k in selected
        if k not in PER_GENE and (chosen is None or (isinstance(chosen, Mapping) and k not in chosen))
    ]
    sets = {str(k): sorted({str(g) for g in v}) for k, v in (given["gene_sets"] or {}).items()}
    types = None if given["cell_types"] is None else [str(t) for t in given["cell_types"]]
    options = options | {"need_types": bool(set(kinds) - set(WITHOUT_TYPES))}
    first = options | {
        "need_variance": bool(free), "need_cutoffs": "pathway_prop" in kinds, "gene_sets": sets, "cell_types": types,
    }  # fmt: skip
    found = cohort.map(_features.summarise_sample, params={"plan": first}, name="feature_plan", **run)
    types = types or sorted({t for one in found.values() for t in one["types"]})
    panel = sorted({g for one in found.values() for g in one["genes"]})
    notes: dict[str, Any] = {"n_training_samples": len(found), "plan_failures": cohort.failures}
    common = set.intersection(*(set(one["genes"]) for one in found.values()))
    kept = {k: v for k, v in sets.items() if len(common & set(v)) >= _features.MIN_SET and common - set(v)}
    notes["gene_sets_left_out"] = sorted(set(sets) - set(kept))
    if set(kinds) & set(PATHWAYS) and not kept:
        raise ValueError(
            f"gene_sets: none of {len(sets)} sets has {_features.MIN_SET} genes of the panel and leaves one"
        )
    pairs = [[str(a), str(b)] for a, b in given["lr_pairs"] or []]
    present = [p for p in pairs if set(p) <= set(panel)]
    notes["lr_pairs_left_out"] = ["--".join(p) for p in pairs if p not in present]
    if "CCI" in kinds and not present:
        raise ValueError(f"lr_pairs: none of {len(pairs)} pairs has both genes in the panel")
    for what in ("gene_sets_left_out", "lr_pairs_left_out"):
        if notes[what]:
            logger.warning("cohort_features: %d %s", len(notes[what]), what.replace("_", " "))
    plan = options | {"kinds": kinds, "cell_types": types, "gene_sets": kept, "lr_pairs": present, "notes": notes}
    plan["morphology"] = list(dict.fromkeys(name for one in found.values() for name in one["morphology"]))
    if "image_morphology" in kinds and not plan["morphology"]:
        raise ValueError(
            "kinds: 'image_morphology' needs obs['area_um2'] or obsm['morphology'] in the tables; no training sample "
            "has either"
        )
    plan["genes"] = {k: _genes_of(k, chosen, found, types, panel, n_top) for k in selected}
    if "pathway_prop" in kinds:
        names = list(sets)
        levels = _pooled_quantile(
            [one["scores"] for one in found.values()], [int(one["n"].sum()) for one in found.values()]
        )
        plan["cutoffs"] = {name: float(levels[names.index(name)]) for name in kept}
    return plan


def _pooled_quantile(scores: list[np.ndarray], n_cells: list[int]) -> np.ndarray:
    """The 75th percentile over all cells from samples in outline, each weighing as many cells as it has."""
    values = np.concatenate(scores)
    weight = np.concatenate([np.full(len(s), max(n, 1) / len(s)) for s, n in zip(scores, n_cells, strict=True)])
    out = np.empty(values.shape[1])
    for j in range(values.shape[1]):
        order = np.argsort(values[:, j], kind="stable")
        share = (np.cumsum(weight[order]) - 0.5 * weight[order]) / weight.sum()
        out[j] = np.interp(_features.CUTOFF, share, values[order, j])
    return out


def _genes_of(
    kind: str, chosen: Any, found: Mapping[str, dict], types: list[str], panel: list[str], n_top: dict[str, int]
) -> Any:
    """Genes of a kind: a list, or type -> list."""
    by_type = kind in BY_TYPE
    if isinstance(chosen, Mapping) and kind in chosen:
        chosen = chosen[kind]
    elif isinstance(chosen, Mapping):
        chosen = None
    if isinstance(chosen, Mapping):
        unknown = sorted(set(map(str, chosen)) - set(types))
        if unknown:
            raise ValueError(f"genes[{kind!r}]: there are no cells of types {unknown[:5]}; types are {types}")
        return {t: _known(chosen.get(t, []), panel) for t in types}
    if chosen is not None:
        genes = _known(chosen, panel)
        return dict.fromkeys(types, genes) if by_type else genes
    if kind in PER_GENE:
        return panel
    if by_type:
        return {t: _variable(found, n_top[kind], t) for t in types}
    return _variable(found, n_top[kind], None)


def _known(genes: Sequence[str], panel: list[str]) -> list[str]:
    genes = [str(g) for g in genes]
    unknown = sorted(set(genes) - set(panel))
    if unknown:
        raise ValueError(f"genes: {len(unknown)} are in no sample: {unknown[:5]} (there are {panel[:3]} …)")
    return list(dict.fromkeys(genes))


def _variable(found: Mapping[str, dict], n_top: int, cell_type: str | None) -> list[str]:
    """Union over samples of the most variable genes, of one type (with more than 10 cells) or of all cells."""
    out: set[str] = set()
    for one in found.values():
        row = len(one["types"])
        if cell_type is not None:
            if cell_type not in one["types"]:
                continue
            row = one["types"].index(cell_type)
            if one["n"][row] <= _features.MIN_CELLS:
                continue
        variance = one["variance"][row]
        order = np.argsort(-variance, kind="stable")[:n_top]
        out |= set(one["genes"][order[variance[order] > 0]])
    return sorted(out)
