"""Which genes differ between groups of patients within a cell type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _states
from ghistpy.tl._origin import group_names, warn_of_circularity
from ghistpy.tl._patients import check_table, encode_covariates, listed, need_columns, note, store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.tl._states import States

_HEATMAP = 50
_CLIP = 2.5
PREDICTED = (
    "the values are predictions: p-values say that predicted expression differs, not that measured expression does; "
    "shares of types that differ between groups reach predicted expression within types"
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

    The unit is the patient: cells of one patient and type are pooled first (pseudobulk), rows of features averaged.

    Parameters
    ----------
    cohort_or_adata
        Patients × features (``var`` with ``kind``, ``gene``, ``cell_type``, such as
        :func:`ghistpy.tl.cohort_features` makes), or cells × genes with ``patient_key``, or slides: a
        :class:`ghistpy.Cohort`, whose manifest has the patients and clinical columns, sample → slide, or a list.
    groupby
        Column of ``obs`` with the group of each patient; patients without are left out and counted.
    reference
        Group that the others are compared with; None = the first category, or first in the alphabet.
    cell_type_key
        Column of a table of cells, or of those of slides.
    patient_key
        Column with the patient of each row, for a table of cells, or of features of several samples. None = every
        row of a table of features is a patient.
    table_key
        Table of slides.
    kind
        Kind of features, for a table of them only; None = ``"gene_mean_celltype"`` where there are kinds. Features of
        a kind without genes or types, such as ``"proportion_clr"``, are tested under their name, for ``"all cells"``.
    layer
        Layer; None = ``X``.
    covariates
        Columns of ``obs`` that are adjusted for. Patients without a number are left out and counted; a missing
        category is a level of its own.
    pair_key
        Column whose values mark patients (or samples) that belong together: each gets its own level. Who has none
        is left out and counted.
    weighted
        Weight patients by 1 / (τ² + σ² / cells), both parts estimated from all genes of a type (tables of cells and
        slides only). Gains power where patients with few cells are noisy.
    min_cells
        Patients with fewer cells of a type are left out for that type; pairs are counted.
    min_patients
        Patients that a group must have for a type to be tested.
    method
        ``"moderated_t"``: on means of log expression; of counts, on log2 counts per million of the sums.
        ``"deseq2"``: on sums of counts (extra ``state``).
    clinical
        For slides: one row per patient, names as index (or in a column ``patient``); None = the manifest.
    key_added
        Name of the result in ``uns["ghistpy"]``.

    Returns
    -------
    None, or for slides an AnnData of patients whose ``uns`` holds the result.

    Raises
    ------
    ValueError
        Columns are missing or vary within patients, one group only, covariates or pairs that determine the group,
        no type with enough patients, unknown options, ``kind`` for cells or slides, options that ``"deseq2"`` has not.
    RuntimeError
        No slide can be read.

    Notes
    -----
    Written: ``uns["ghistpy"]["differential_state"]`` with frames

    - ``results``: gene, cell_type, contrast, log_fc, stat, pval, pval_adj_local (Benjamini-Hochberg within
      cell type and contrast), pval_adj_global (over all tests), pval_bonferroni (over all), df, n_test,
      n_reference, mean. Genes that do not vary are left out and counted; those that cannot be tested have NaN
      and count in no family.
    - ``states``: standardised values (clipped at 2.5) of the 50 strongest, for
      :func:`ghistpy.pl.state_heatmap`.

    Null hypothesis: given the covariates the mean over patients is the same in both groups. log_fc is on
    the scale of the values: natural log for in-silico tables, log2 for counts. ``notes["meaning"]`` says when the
    values are predictions, by what their table says of itself: then shares of types that differ between groups also
    move genes within types, as cells are miscalled and networks look at the neighbourhood.

    Groups that were made of these features (:func:`ghistpy.tl.cluster_patients`, :func:`ghistpy.tl.stratify_risk`)
    differ in them by construction: of pure noise a fifth of the p-values is below 0.05. This is detected, warned
    of, and ``notes["descriptive"]`` is true.

    Calibrated in tests at 1, 5 and 10 %: unpaired, paired, with a covariate; weighted with 12 patients whose numbers of
    cells differ at random. Where cells (10 to 20 against 300 to 600) are all that differs, it rejects 7.2 % at 5 % with
    8 + 8 patients (unweighted 5.7 %), 6.5 % with 12 + 12 (5.3 %), 11 % with 4 of few cells + 12 of many (30 %). Such
    types are warned of, and ``notes["median_cells_where_unequal"]`` names them.

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
    from ghistpy.cohort_stats.options import one_of, whole_number

    one_of("method", method, ("moderated_t", "deseq2"))
    whole_number(min_cells, "min_cells", 1)
    whole_number(min_patients, "min_patients", 1)
    if method == "deseq2" and (weighted or pair_key):
        raise ValueError("method='deseq2' takes neither weighted= nor pair_key=; use method='moderated_t'")
    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    once = [groupby, *([pair_key] if pair_key else [])]  # what has one value in each patient
    states = _resolve(
        cohort_or_adata,
        cell_type_key=cell_type_key,
        patient_key=patient_key,
        table_key=table_key,
        kind=kind,
        layer=layer,
        min_cells=min_cells,
        clinical=clinical,
        agree_on=once,
    )
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
        "covariates": covariates,
        "weighted": weighted,
        "scale": states.scale,
        "in_silico": states.in_silico,
        "meaning": PREDICTED if states.in_silico else "",
    }
    if len(states.features):
        consequence = "differences between them are there by construction, and p-values say nothing"
        warn_of_circularity(cohort_or_adata, "groupby", groupby, states.features, notes, consequence)
    if method == "deseq2":
        from ghistpy.tl._deseq2 import wald_of_counts

        frame = wald_of_counts(states, groupby, groups, covariates, min_patients, notes)
    else:
        _states.compare_cells(states, groupby, groups, weighted, notes)
        frame = _moderated(states, groupby, groups, pair_key, weighted, min_patients, notes)
    _adjust(frame)
    frames = {"results": frame, "states": _heatmap_values(states, frame)}
    target = cohort_or_adata if hasattr(cohort_or_adata, "obs_names") else _states.as_table(states)
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
    agree_on: list[str],
) -> States:
    of_features = hasattr(data, "obs_names") and {"gene", "cell_type"} <= set(data.var.columns)
    if kind is not None and not of_features:
        raise ValueError(
            f"kind={kind!r}: expected None; only tables of features have kinds, cells and slides have genes. "
            "Shares of types are features: features = gp.tl.cohort_features(cohort, kinds='proportion_clr'), then "
            "gp.tl.differential_state(features, kind='proportion_clr', ...)"
        )
    if not hasattr(data, "obs_names"):
        if clinical is None and not hasattr(data, "samples"):
            raise ValueError("clinical=None: slides have no clinical columns; give one row per patient, or a gp.Cohort")
        return _states.from_slides(
            data,
            table_key=table_key,
            cell_type_key=cell_type_key,
            min_cells=min_cells,
            layer=layer,
            clinical=clinical,
            agree_on=agree_on,
        )
    if clinical is not None:
        raise ValueError("clinical: only for slides; a table has its clinical columns in obs")
    if of_features:
        check_table(data)
        if kind is None and "kind" in data.var and (data.var["kind"].astype(str) == _states.FEATURE_KIND).any():
            kind = _states.FEATURE_KIND
        return _states.from_features(data, kind=kind, layer=layer, patient_key=patient_key, agree_on=agree_on)
    if patient_key is None:
        raise ValueError(
            "adata is neither a table of features (var['gene'] and var['cell_type']) nor, without patient_key=, "
            f"a table of cells; columns of var are {list(data.var.columns)}"
        )
    return _states.from_cells(
        data,
        patient_key=patient_key,
        cell_type_key=cell_type_key,
        min_cells=min_cells,
        layer=layer,
        agree_on=agree_on,
    )


def _groups(states: States, groupby: str, reference: str | None) -> list[str]:
    """Names of the groups, the reference first; patients without group leave the states."""
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
    names = group_names(column, "groupby")
    if reference is not None:
        if str(reference) not in names:
            raise ValueError(f"reference={reference!r} is not among the groups {names} of {groupby!r}")
        names = [str(reference), *(name for name in names if name != str(reference))]
    return names


def _design(
    states: States, groupby: str, groups: list[str], pair_key: str | None, notes: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Design matrix (n, 1 + groups - 1 + …), and who is left out of it (n,) for want of a covariate or pair."""
    import pandas as pd

    group = states.obs[groupby].astype(str).to_numpy()
    indicator = np.stack([group == name for name in groups[1:]], axis=1).astype(np.float64)
    other, _ = encode_covariates(states.obs, notes["covariates"])
    left_out = np.isnan(other).any(1)
    if pair_key and not left_out.all():
        codes = pd.factorize(states.obs[pair_key])[0]  # -1 = no pair
        left_out |= codes < 0
        other = np.hstack([other, np.eye(max(codes.max(), 0) + 1)[codes][:, 1:]])
    if left_out.all():
        raise ValueError(f"none of the {len(group)} patients has a value in all of covariates= and pair_key=")
    notes["n_without_covariates"] = int(left_out.sum())
    if left_out.any():
        names = listed(states.obs.index[left_out])
        what = "a covariate or their pair" if pair_key else "a covariate"
        note(notes, f"{int(left_out.sum())} patients lack {what} and are left out: {names}")
    design = np.hstack([np.ones((len(group), 1)), indicator, np.nan_to_num(other)])
    used = design[~left_out]
    row_space = np.linalg.pinv(used) @ used
    told_apart = np.isclose(np.diag(row_space)[1 : len(groups)], 1.0, atol=1e-8)
    told_apart |= ~used[:, 1 : len(groups)].any(0) | used[:, 1 : len(groups)].any(1).all()  # an empty group: too few
    if not told_apart.all():
        one = groups[1:][int(np.argmin(told_apart))]
        given = [*notes["covariates"], *([pair_key] if pair_key else [])]
        raise ValueError(
            f"groupby={groupby!r}: {given} determine who is in {one!r}, so that no difference between groups can be "
            "told from theirs; leave them out"
        )
    return design, left_out


def _moderated(
    states: States,
    groupby: str,
    groups: list[str],
    pair_key: str | None,
    weighted: bool,
    min_patients: int,
    notes: dict[str, Any],
) -> pd.DataFrame:
    import pandas as pd

    from ghistpy.cohort_stats.moderated import moderated_t, patient_weights

    group = states.obs[groupby].astype(str).to_numpy()
    design, left_out = _design(states, groupby, groups, pair_key, notes)
    parts, too_few, priors = [], [], {}
    for name, (values, genes, cells) in states.by_type.items():
        y = _states.log_cpm(values) if states.scale == _states.COUNTS else values.copy()
        y[left_out] = np.nan
        weights = patient_weights(y, design, cells) if weighted else None
        for k, test in enumerate(groups[1:]):
            present = ~np.isnan(y).all(1)
            counts = [int((present & (group == g)).sum()) for g in (test, groups[0])]
            if min(counts) < min_patients:
                too_few.append(f"{name} ({test}: {counts[0]}, {groups[0]}: {counts[1]})")
                continue
            contrast = np.zeros(design.shape[1])
            contrast[1 + k] = 1
            found = moderated_t(y, design, contrast, weights=weights)
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
                        "mean": _mean_of_known(y, known),
                    }
                )
            )
    untested = sum(int(part["pval"].isna().sum()) for part in parts)
    notes |= {"types_not_tested": too_few, "prior_df_and_variance": priors, "n_tests_without_pval": untested}
    if too_few:
        note(notes, f"cell types with fewer than {min_patients} patients in a group are not tested: {listed(too_few)}")
    if not parts:
        raise ValueError(f"no cell type has {min_patients} patients in two groups: {listed(too_few)}")
    return pd.concat(parts, ignore_index=True)


def _mean_of_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    total, count = np.where(known, values, 0.0).sum(0), known.sum(0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


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
