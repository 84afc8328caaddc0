"""Features of one sample by a plan, and the plan: which types, genes and cut-offs, chosen once for a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _image_features
from ghistpy.tl._image_features import IMAGE_KINDS

if TYPE_CHECKING:
    import pandas as pd

KINDS = (
    "proportion_raw", "proportion_logit", "proportion_ratio",
    "gene_mean_celltype", "gene_prop_celltype", "gene_cor_celltype",
    "gene_mean_bulk", "gene_prop_bulk", "gene_cor_bulk",
    "pathway_gsva", "pathway_mean", "pathway_prop", "CCI",
    "L_stats", "celltype_interaction", "morans_I", "nn_correlation",
)  # fmt: skip
EXTRA_KINDS = ("proportion_clr", *IMAGE_KINDS)
PRESENCE = "presence"
PATHWAYS = ("pathway_gsva", "pathway_mean", "pathway_prop")
BY_TYPE = ("gene_mean_celltype", "gene_prop_celltype", "gene_cor_celltype")
BULK = ("gene_mean_bulk", "gene_prop_bulk", "gene_cor_bulk")
PER_GENE = ("morans_I", "nn_correlation")
WITHOUT_TYPES = (*BULK, *PER_GENE, *IMAGE_KINDS)
SPATIAL = ("L_stats", "celltype_interaction", "morans_I", "nn_correlation")
N_TOP = {
    "gene_mean_celltype": 100, "gene_prop_celltype": 100, "gene_cor_celltype": 5,
    "gene_mean_bulk": 1500, "gene_prop_bulk": 1500, "gene_cor_bulk": 50,
}  # fmt: skip
MIN_CELLS = 10  # types with more cells have variable genes
MIN_SET = 10
CUTOFF = 0.75
_SKETCH = 4096  # values that stand for the cells of a sample in a quantile over the cohort


class _Sample:
    """The table of a slide as arrays; what several kinds need is computed once."""

    def __init__(self, slide: Any, plan: Mapping[str, Any]) -> None:
        from ghistpy.tl import _table

        table = _table.resolve_table(slide, plan["table_key"] if hasattr(slide, "tables") else None, min_cells=2)
        self.slide, self.table, self.plan = slide, table, plan
        X = _table.expression(table, layer=plan["layer"])
        if table.units == _keys.UNITS_COUNTS and plan["layer"] is None:
            X = X.log1p() if hasattr(X, "log1p") else np.log1p(X)
        self.X = X
        self.genes = np.asarray(table.adata.var_names, dtype=str)
        if plan.get("need_types", True) or plan["cell_type_key"] in table.adata.obs:
            own, names = _table.cell_types(table, plan["cell_type_key"])
        else:
            own, names = np.full(table.n, -1), []
        self.own_types = names
        types = plan.get("cell_types")
        self.types = names if types is None else list(types)
        at = {name: i for i, name in enumerate(self.types)}
        recode = np.array([at.get(name, -1) for name in names] + [-1])
        self.codes = recode[own]  # the last one for cells without type
        self.n = np.bincount(self.codes[self.codes >= 0], minlength=len(self.types))
        self._moments: Any = None
        self._xy: Any = None

    @property
    def xy(self) -> np.ndarray:
        from ghistpy.tl import _table

        if self._xy is None:
            self._xy = _table.coordinates(self.table)
        return self._xy

    @property
    def moments(self) -> Any:
        from ghistpy.stats.patient_features import type_moments

        if self._moments is None:
            self._moments = type_moments(self.X, self.codes, len(self.types), threshold=self.plan["threshold"])
        return self._moments

    def position(self, genes: list[str]) -> np.ndarray:
        """Columns of genes, -1 for those that the panel lacks."""
        import pandas as pd

        return pd.Index(self.genes).get_indexer(genes)

    def columns(self, genes: list[str]) -> np.ndarray:
        """Values (n, m) float64, NaN for genes that the panel lacks."""
        from ghistpy.stats.metrics import dense_columns

        at = self.position(genes)
        out = np.full((len(self.codes), len(genes)), np.nan)
        out[:, at >= 0] = dense_columns(self.X, at[at >= 0])
        return out

    def member(self) -> np.ndarray:
        """(S, G) bool: which genes of the panel are in each set."""
        return np.stack([np.isin(self.genes, genes) for genes in self.plan["gene_sets"].values()])


def summarise_sample(slide: Any, *, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan is made from: types, genes, their variances by type, and scores of gene sets in outline."""
    sample = _Sample(slide, plan)
    out: dict[str, Any] = {"genes": sample.genes, "types": sample.types, "n": sample.n}
    out["morphology"] = list(_image_features.morphology(sample.table.adata))
    if plan["need_variance"]:
        out["variance"] = sample.moments.variance
    if plan["need_cutoffs"]:
        from ghistpy.stats.patient_features import set_scores

        scores = set_scores(sample.X, sample.member())
        levels = (np.arange(_SKETCH) + 0.5) / _SKETCH
        out["scores"] = np.sort(scores, axis=0) if len(scores) <= _SKETCH else np.quantile(scores, levels, axis=0)
    return out


def sample_features(slide: Any, *, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Features of a slide: kind -> values in the order of :func:`feature_axis`; ``n_cells``, ``presence``."""
    sample = _Sample(slide, plan)
    out = {kind: np.asarray(_OF_KIND[kind](sample), dtype=np.float64) for kind in plan["kinds"]}
    unknown = [t for t in sample.own_types if t not in sample.types]
    return {
        "values": out,
        "n_cells": len(sample.codes),
        "n_by_type": sample.n,
        # a sample in which no cell has a known type says nothing about types
        PRESENCE: np.where(sample.n > 0, 1.0, 0.0 if sample.n.any() else np.nan),
        "unknown_types": unknown,
        "n_without_type": int((sample.codes < 0).sum()),
        "missing_genes": sorted(set(plan_genes(plan)) - set(sample.genes)),
        "in_silico": bool(sample.table.in_silico),
    }


def plan_genes(plan: Mapping[str, Any]) -> list[str]:
    """Every gene that the plan names, gene sets and pairs apart."""
    lists = [g for v in plan["genes"].values() for g in (v.values() if isinstance(v, Mapping) else [v])]
    return sorted({gene for genes in lists for gene in genes})


def _proportions(sample: _Sample) -> np.ndarray:
    return sample.n / (sample.n.sum() or np.nan)


def _logit(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import logit_share

    return logit_share(_proportions(sample))


def _ratio(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import log_ratios

    return _known(sample, log_ratios(sample.n))


def _clr(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import centred_log_ratio

    return _known(sample, centred_log_ratio(sample.n))


def _known(sample: _Sample, values: np.ndarray) -> np.ndarray:
    """NaN in a sample in which no cell has a known type."""
    return values if sample.n.any() else np.full_like(values, np.nan, dtype=np.float64)


def _by_type(slot: str, kind: str) -> Any:
    def compute(sample: _Sample) -> np.ndarray:
        values, parts = getattr(sample.moments, slot), []
        for t, name in enumerate(sample.types):
            at = sample.position(sample.plan["genes"][kind].get(name, []))
            parts.append(np.where(at >= 0, values[t, at], np.nan))
        return np.concatenate(parts) if parts else np.zeros(0)

    return compute


def _bulk(slot: str, kind: str) -> Any:
    def compute(sample: _Sample) -> np.ndarray:
        at = sample.position(sample.plan["genes"][kind])
        return np.where(at >= 0, getattr(sample.moments, slot)[-1, at], np.nan)

    return compute


def _cor_by_type(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import pair_correlations

    chosen = sample.plan["genes"]["gene_cor_celltype"]
    union = sorted({g for genes in chosen.values() for g in genes})
    at, values = {g: i for i, g in enumerate(union)}, sample.columns(union)
    parts = []
    for t, name in enumerate(sample.types):
        columns = [at[g] for g in chosen.get(name, [])]
        parts.append(pair_correlations(values[np.ix_(sample.codes == t, columns)]))
    return np.concatenate(parts) if parts else np.zeros(0)


def _cor_bulk(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import pair_correlations

    return pair_correlations(sample.columns(sample.plan["genes"]["gene_cor_bulk"]))


def _mean_by_type(sample: _Sample, scores: np.ndarray) -> np.ndarray:
    """(T * S,) means of scores (n, S) over the cells of each type."""
    from ghistpy.stats.patient_features import type_moments

    return type_moments(scores, sample.codes, len(sample.types), threshold=np.inf).mean[:-1].ravel()


def _gsva(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import ssgsea

    values = sample.X.tocsr() if hasattr(sample.X, "tocsr") else sample.X
    return _mean_by_type(sample, ssgsea(values, sample.member()))


def _pathway_mean(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import set_scores

    return _mean_by_type(sample, set_scores(sample.X, sample.member()))


def _pathway_prop(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import set_scores

    cutoffs = np.array([sample.plan["cutoffs"][name] for name in sample.plan["gene_sets"]])
    return _mean_by_type(sample, (set_scores(sample.X, sample.member()) >= cutoffs).astype(np.float64))


def _cci(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.patient_features import ligand_receptor_scores

    means, pairs = sample.moments.mean[:-1], sample.plan["lr_pairs"]
    ligand, receptor = (sample.position([pair[i] for pair in pairs]) for i in (0, 1))
    scores = ligand_receptor_scores(means[:, ligand], means[:, receptor], float(sample.moments.mean[-1].mean()))
    scores[:, :, (ligand < 0) | (receptor < 0)] = np.nan
    absent = sample.n == 0
    scores[absent], scores[:, absent] = np.nan, np.nan
    return scores.ravel()


def _l_stats(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.ripley import l_scores
    from ghistpy.tl.ripley import _window

    window, inside, _ = _window(sample.slide, sample.xy, sample.plan["window"])
    codes, n_types = sample.codes[inside], len(sample.types)
    options = {"max_radius": sample.plan["radius_um"], "grid": sample.plan["grid"], "min_cells": MIN_CELLS}
    return l_scores(sample.xy[inside], codes, n_types, window, **options).ravel()


def _interaction(sample: _Sample) -> np.ndarray:
    from ghistpy.stats.interaction import cell_type_interaction, pairs_within

    n_types = len(sample.types)
    found = cell_type_interaction(sample.codes, n_types, pairs_within(sample.xy, sample.plan["radius_um"]))
    absent = (sample.n[found.first] == 0) | (sample.n[found.second] == 0)
    return np.where(absent, np.nan, found.fraction)


def _per_gene(compute: Any, kind: str) -> Any:
    def run(sample: _Sample) -> np.ndarray:
        at = sample.position(sample.plan["genes"][kind])
        out = np.full(len(at), np.nan)
        columns = at[at >= 0]
        values = sample.X if np.array_equal(columns, np.arange(sample.X.shape[1])) else sample.X[:, columns]
        out[at >= 0] = compute(sample, values)
        return out

    return run


def _moran(sample: _Sample, values: Any) -> np.ndarray:
    from ghistpy.geometry.graph import knn_graph
    from ghistpy.stats.autocorrelation import morans_i
    from ghistpy.stats.neighbours import morans_i_all_pairs

    if sample.plan["moran"] == "all_pairs":
        return morans_i_all_pairs(values, sample.xy)
    return morans_i(values, knn_graph(sample.xy, min(6, len(sample.xy) - 1)).weights)


def _nn(sample: _Sample, values: Any) -> np.ndarray:
    from ghistpy.stats.neighbours import nn_correlation

    return nn_correlation(values, sample.xy)


_OF_KIND: dict[str, Any] = {
    "proportion_raw": _proportions,
    "proportion_logit": _logit,
    "proportion_ratio": _ratio,
    "proportion_clr": _clr,
    "gene_mean_celltype": _by_type("mean", "gene_mean_celltype"),
    "gene_prop_celltype": _by_type("share", "gene_prop_celltype"),
    "gene_cor_celltype": _cor_by_type,
    "gene_mean_bulk": _bulk("mean", "gene_mean_bulk"),
    "gene_prop_bulk": _bulk("share", "gene_prop_bulk"),
    "gene_cor_bulk": _cor_bulk,
    "pathway_gsva": _gsva,
    "pathway_mean": _pathway_mean,
    "pathway_prop": _pathway_prop,
    "CCI": _cci,
    "L_stats": _l_stats,
    "celltype_interaction": _interaction,
    "morans_I": _per_gene(_moran, "morans_I"),
    "nn_correlation": _per_gene(_nn, "nn_correlation"),
    "image_density": lambda s: _image_features.density(s.slide, s.xy, s.plan["window"]),
    "image_morphology": lambda s: _image_features.morphology_summary(s.table.adata, s.plan["morphology"]),
    "image_stain": lambda s: _image_features.stain(s.slide),
}


def _rows_of_kind(kind: str, plan: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(gene, cell_type, partner, partner_gene) of every feature of a kind, in the order of its values."""
    types, genes = plan["cell_types"], plan["genes"]
    pairs = [(a, b) for i, a in enumerate(types) for b in types[i + 1 :]]
    if kind in ("proportion_raw", "proportion_logit", "proportion_clr", PRESENCE):
        return [("", t, "", "") for t in types]
    if kind == "proportion_ratio":
        return [("", a, b, "") for a, b in pairs]
    if kind in ("gene_mean_celltype", "gene_prop_celltype"):
        return [(g, t, "", "") for t in types for g in genes[kind].get(t, [])]
    if kind == "gene_cor_celltype":
        chosen = [(t, genes[kind].get(t, [])) for t in types]
        return [(a, t, b, "") for t, names in chosen for i, a in enumerate(names) for b in names[i + 1 :]]
    if kind == "gene_cor_bulk":
        return [(a, "", b, "") for i, a in enumerate(genes[kind]) for b in genes[kind][i + 1 :]]
    if kind in (*BULK, *PER_GENE):
        return [(g, "", "", "") for g in genes[kind]]
    if kind in PATHWAYS:
        return [(s, t, "", "") for t in types for s in plan["gene_sets"]]
    if kind == "CCI":
        return [(lr[0], a, b, lr[1]) for a in types for b in types for lr in plan["lr_pairs"]]
    if kind == "L_stats":
        return [("", a, b, "") for a in types for b in types]
    if kind in IMAGE_KINDS:
        of_morphology = [f"{name}_{what}" for name in plan.get("morphology", []) for what in ("mean", "sd")]
        names = dict(zip(IMAGE_KINDS, (_image_features.DENSITY, of_morphology, _image_features.STAIN), strict=True))
        return [(name, "", "", "") for name in names[kind]]
    return [("", a, b, "") for i, a in enumerate(types) for b in types[i:]]  # celltype_interaction


def feature_axis(kinds: list[str], plan: Mapping[str, Any]) -> pd.DataFrame:
    """Frame of all features: kind, gene, cell_type, partner, partner_gene; index = their names."""
    import pandas as pd

    rows = [(kind, *row) for kind in kinds for row in _rows_of_kind(kind, plan)]
    frame = pd.DataFrame(rows, columns=["kind", "gene", "cell_type", "partner", "partner_gene"])
    order = ["kind", "cell_type", "partner", "gene", "partner_gene"]
    if kinds and not len(frame):
        raise ValueError(f"kinds={kinds}: the cohort has no type or gene that such a feature could be made of")
    names = []
    for kind, cell_type, partner, gene, partner_gene in frame[order].itertuples(index=False):
        # the second gene of a correlation follows the first one
        parts = (
            (kind, cell_type, gene, partner)
            if kind.startswith("gene_cor")
            else (kind, cell_type, partner, gene, partner_gene)
        )
        names.append("--".join(p for p in parts if p))
    frame.index = pd.Index(names, dtype=object)
    return frame
