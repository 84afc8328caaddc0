"""Which genes differ between groups of patients within a cell type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _states
from ghistpy.tl._patients import check_table, encode_covariates, listed, need_columns, note, store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.tl._states import States

_HEATMAP = 50
_CLIP = 2.5
PREDICTED = (
    "the values are predictions: p-values say that predicted expression differs, not that measured expression does"
)


def differential_state(
    cohort_or_adata: Any,
    *,
    groupby: str,
    reference: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    patient_key: str | None = None,
    table_key: str = _keys.INSILICO,
    kind: str | None = None,
    layer: str | None = None,
    covariates: Sequence[str] = (),
    pair_key: str | None = None,
    weighted: bool = False,
    min_cells: int = 10,
    min_patients: int = 3,
    method: Literal["moderated_t", "deseq2"] = "moderated_t",
    clinical: pd.DataFrame | None = None,
    key_added: str = _keys.DIFFERENTIAL_STATE,
) -> AnnData | None:
    """Test every gene in every cell type for a difference between groups of patients.

    The unit is the patient: cells of one patient and type are pooled first (pseudobulk).

    Parameters
    ----------
    cohort_or_adata
        Patients × features (``var`` with ``kind``, ``gene``, ``cell_type``, such as
        :func:`ghistpy.tl.cohort_features` makes), or cells × genes with ``patient_key``, or slides.
    groupby
        Column of ``obs`` with the group of each patient; patients without are left out and counted.
    reference
        Group that the others are compared with; None = the first category, or first in the alphabet.
    cell_type_key, patient_key
        Columns of a table of cells.
    table_key
        Table of slides.
    kind
        Kind of features; None = ``"gene_mean_celltype"`` where there are kinds.
    layer
        Layer; None = ``X``.
    covariates
        Columns of ``obs`` that are adjusted for.
    pair_key
        Column whose values mark patients (or samples) that belong together: each gets its own level.
    weighted
        Weight patients by their number of cells (tables of cells only).
    min_cells
        Patients with fewer cells of a type are left out for that type; pairs are counted.
    min_patients
        Patients that a group must have for a type to be tested.
    method
        ``"moderated_t"``: on means of log expression; of counts, on log2 counts per million of the sums.
        ``"deseq2"``: on sums of counts (extra ``state``).
    clinical
        For slides: one row per patient, names as index.
    key_added
        Name of the result in ``uns["ghistpy"]``.

    Returns
    -------
    None, or for slides an AnnData of patients whose ``uns`` holds the result.

    Raises
    ------
    ValueError
        Columns are missing, one group only, no type with enough patients, or log values for ``"deseq2"``.

    Notes
    -----
    Written: ``uns["ghistpy"]["differential_state"]`` with frames

    - ``results``: gene, cell_type, contrast, log_fc, stat, pval, pval_adj_local (Benjamini-Hochberg within
      cell type and contrast), pval_adj_global (over all tests), pval_bonferroni (over all), df, n_test,
      n_reference, mean. Genes that cannot be tested have NaN and count in no family.
    - ``states``: standardised values (clipped at 2.5) of the 50 strongest, for
      :func:`ghistpy.pl.state_heatmap`.

    Null hypothesis: given the covariates the mean over patients is the same in both groups. log_fc is on
    the scale of the values: natural log for in-silico tables, log2 for counts.

    References
    ----------
    Smyth, Stat Appl Genet Mol Biol 3:3 (2004), doi 10.2202/1544-6115.1027;
    Crowell et al., Nat Commun 11:6077 (2020), doi 10.1038/s41467-020-19894-4.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> rng = numpy.random.default_rng(0)
    >>> var = pandas.DataFrame({"gene": [f"G{i}" for i in range(50)], "cell_type": "B"})
    >>> var.index = "B--" + var["gene"]
    >>> arm = numpy.repeat(["control", "treated"], 10)
    >>> X = rng.normal(size=(20, 50)) + numpy.outer(arm == "treated", numpy.arange(50) == 7) * 3
    >>> obs = pandas.DataFrame({"arm": arm}, index=[f"P{i}" for i in range(20)])
    >>> adata = anndata.AnnData(X, obs=obs, var=var)
    >>> gp.tl.differential_state(adata, groupby="arm", reference="control")
    >>> gp.get.differential_state(adata).sort_values("pval")["gene"].iloc[0]
    'G7'
    """
    states = _resolve(
        cohort_or_adata,
        cell_type_key=cell_type_key,
        patient_key=patient_key,
        table_key=table_key,
        kind=kind,
        layer=layer,
        min_cells=min_cells,
        clinical=clinical,
    )
    if method not in ("moderated_t", "deseq2"):
        raise ValueError(f"method={method!r}: expected 'moderated_t' or 'deseq2'")
    if method == "deseq2" and states.scale != _states.COUNTS:
        raise ValueError("method='deseq2' needs counts, and the table holds logarithms; use method='moderated_t'")
    if weighted and states.notes["source"] == "features":
        raise ValueError("weighted=True: a table of features does not know numbers of cells; give a table of cells")
    need_columns(states.obs, {"groupby": groupby, "pair_key": pair_key})
    groups = _groups(states, groupby, reference)
    notes = states.notes | {
        "outcome": [groupby],
        "reference": groups[0],
        "method": method,
        "covariates": [covariates] if isinstance(covariates, str) else list(covariates),
        "scale": states.scale,
        "meaning": PREDICTED if states.scale == _states.LOG else "",
    }
    if method == "deseq2":
        from ghistpy.tl._deseq2 import wald_of_counts

        frame = wald_of_counts(states, groupby, groups, notes["covariates"], min_patients, notes)
    else:
        frame = _moderated(states, groupby, groups, covariates, pair_key, weighted, min_patients, notes)
    _adjust(frame)
    frames = {"results": frame, "states": _heatmap_values(states, frame)}
    target = cohort_or_adata if hasattr(cohort_or_adata, "obs_names") else _new_table(states)
    store(target, key_added, frames, notes)
    return None if target is cohort_or_adata else target


def _resolve(
    data: Any,
    *,
    cell_type_key: str,
    patient_key: str | None,
    table_key: str,
    kind: str | None,
    layer: str | None,
    min_cells: int,
    clinical: pd.DataFrame | None,
) -> States:
    if not hasattr(data, "obs_names"):
        slides = {"slide": data} if hasattr(data, "tables") else data
        if clinical is None:
            clinical = _clinical_of(data)
        return _states.from_slides(
            slides, table_key=table_key, cell_type_key=cell_type_key, min_cells=min_cells, clinical=clinical
        )
    if {"gene", "cell_type"} <= set(data.var.columns):
        check_table(data)
        if kind is None and "kind" in data.var and (data.var["kind"].astype(str) == _states.FEATURE_KIND).any():
            kind = _states.FEATURE_KIND
        return _states.from_features(data, kind=kind, layer=layer)
    if patient_key is None:
        raise ValueError(
            "adata is neither a table of features (var['gene'] and var['cell_type']) nor, without patient_key=, "
            f"a table of cells; columns of var are {list(data.var.columns)}"
        )
    return _states.from_cells(
        data, patient_key=patient_key, cell_type_key=cell_type_key, min_cells=min_cells, layer=layer
    )


def _clinical_of(cohort: Any) -> pd.DataFrame | None:
    """The manifest of a cohort, one row per patient."""
    frame = getattr(cohort, "samples", None)
    if not hasattr(frame, "columns"):
        return None
    frame = frame.reset_index()
    key = "patient" if "patient" in frame else "sample"
    return frame.groupby(key).first() if key in frame else None


def _groups(states: States, groupby: str, reference: str | None) -> list[str]:
    """Names of the groups, the reference first; patients without group leave the states."""
    import pandas as pd

    column = states.obs[groupby]
    known = column.notna().to_numpy()
    if not known.all():
        note(
            states.notes,
            f"{int((~known).sum())} patients have no {groupby!r} and are left out: {listed(states.obs.index[~known])}",
        )
        states.obs = states.obs.loc[known]
        states.by_type = {name: (v[known], g, c[known]) for name, (v, g, c) in states.by_type.items()}
        column = column[known]
    ordered = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else sorted(column.unique())
    names = [str(level) for level in ordered if (column.astype(str) == str(level)).any()]
    if len(names) < 2:
        raise ValueError(f"groupby={groupby!r} has one group only: {names}")
    if reference is not None:
        if str(reference) not in names:
            raise ValueError(f"reference={reference!r} is not among the groups {names} of {groupby!r}")
        names = [str(reference), *(name for name in names if name != str(reference))]
    return names


def _moderated(
    states: States,
    groupby: str,
    groups: list[str],
    covariates: Sequence[str],
    pair_key: str | None,
    weighted: bool,
    min_patients: int,
    notes: dict[str, Any],
) -> pd.DataFrame:
    import pandas as pd

    from ghistpy.cohort_stats.moderated import moderated_t

    group = states.obs[groupby].astype(str).to_numpy()
    indicator = np.stack([group == name for name in groups[1:]], axis=1).astype(np.float64)
    other, _ = encode_covariates(states.obs, notes["covariates"])
    if pair_key:
        codes = pd.factorize(states.obs[pair_key].astype(str))[0]
        other = np.hstack([other, np.eye(codes.max() + 1)[codes][:, 1:]])
    complete = ~np.isnan(other).any(1)
    if not complete.all():
        note(
            notes,
            f"{int((~complete).sum())} patients lack a covariate and are left out: "
            f"{listed(states.obs.index[~complete])}",
        )
    design = np.hstack([np.ones((len(group), 1)), indicator, other])
    parts, too_few, priors = [], [], {}
    for name, (values, genes, cells) in states.by_type.items():
        y = _states.log_cpm(values) if states.scale == _states.COUNTS else values.copy()
        y[~complete] = np.nan
        for k, test in enumerate(groups[1:]):
            present = ~np.isnan(y).all(1)
            counts = [int((present & (group == g)).sum()) for g in (test, groups[0])]
            if min(counts) < min_patients:
                too_few.append(f"{name} ({test}: {counts[0]}, {groups[0]}: {counts[1]})")
                continue
            contrast = np.zeros(design.shape[1])
            contrast[1 + k] = 1
            found = moderated_t(y, design, contrast, weights=np.maximum(cells, 1) if weighted else None)
            priors[f"{name}: {test}"] = [found.prior.df, found.prior.variance]
            known = ~np.isnan(y)
            parts.append(
                pd.DataFrame(
                    {
                        "gene": genes,
                        "cell_type": name,
                        "contrast": f"{test} - {groups[0]}",
                        "log_fc": found.effect,
                        "stat": found.t,
                        "pval": found.pval,
                        "df": found.df,
                        "n_test": known[group == test].sum(0),
                        "n_reference": known[group == groups[0]].sum(0),
                        "mean": [
                            float(np.mean(c[k])) if k.any() else np.nan for c, k in zip(y.T, known.T, strict=True)
                        ],
                    }
                )
            )
    notes |= {"types_not_tested": too_few, "prior_df_and_variance": priors}
    if too_few:
        note(notes, f"cell types with fewer than {min_patients} patients in a group are not tested: {listed(too_few)}")
    if not parts:
        raise ValueError(f"no cell type has {min_patients} patients in two groups: {listed(too_few)}")
    return pd.concat(parts, ignore_index=True)


def _adjust(frame: pd.DataFrame) -> None:
    from ghistpy.stats.multiple import adjust_pvalues

    p = frame["pval"].to_numpy()
    family = frame["cell_type"].astype(str) + "\x1f" + frame["contrast"].astype(str)
    frame["pval_adj_local"] = adjust_pvalues(p, family=family.to_numpy())
    frame["pval_adj_global"] = adjust_pvalues(p)
    frame["pval_bonferroni"] = adjust_pvalues(p, method="bonferroni")


def _heatmap_values(states: States, frame: pd.DataFrame) -> pd.DataFrame:
    """Standardised values of the strongest results, long."""
    import pandas as pd

    top = frame.sort_values("pval").drop_duplicates(["gene", "cell_type"]).head(_HEATMAP)
    parts = []
    for gene, cell_type in zip(top["gene"], top["cell_type"], strict=True):
        values, genes, _ = states.by_type[cell_type]
        y = (_states.log_cpm(values) if states.scale == _states.COUNTS else values)[:, genes.tolist().index(gene)]
        sd = np.nanstd(y)
        z = np.clip((y - np.nanmean(y)) / sd, -_CLIP, _CLIP) if sd > 0 else np.zeros(len(y))
        parts.append(
            pd.DataFrame({"patient": states.obs.index.astype(str), "gene": gene, "cell_type": cell_type, "z": z})
        )
    return pd.concat(parts, ignore_index=True)


def _new_table(states: States) -> AnnData:
    """Patients × genes of cell types, for results that came from slides."""
    import anndata
    import pandas as pd

    X = np.hstack([values for values, _, _ in states.by_type.values()])
    var = pd.DataFrame(
        {
            "kind": _states.FEATURE_KIND,
            "gene": np.concatenate([genes for _, genes, _ in states.by_type.values()]),
            "cell_type": np.repeat(list(states.by_type), [len(g) for _, g, _ in states.by_type.values()]),
        }
    )
    var.index = var["cell_type"] + "--" + var["gene"]
    return anndata.AnnData(X, obs=states.obs.copy(), var=var)
