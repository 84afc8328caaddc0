"""Counts of pseudobulk by PyDESeq2 (extra ``state``)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy._optional import require
from ghistpy.tl._patients import listed, note

if TYPE_CHECKING:
    import pandas as pd

    from ghistpy.tl._states import States


def wald_of_counts(
    states: States, groupby: str, groups: list[str], covariates: list[str], min_patients: int, notes: dict[str, Any]
) -> pd.DataFrame:
    """Wald tests of each group against the first in every cell type; log_fc is log2, not shrunken."""
    import pandas as pd

    dds_module, ds_module = require("pydeseq2.dds", extra="state"), require("pydeseq2.ds", extra="state")
    # names of data are no names of formulae
    columns = {"group": states.obs[groupby].astype(str).map({name: f"g{i}" for i, name in enumerate(groups)})}
    columns |= {f"c{i}": states.obs[key] for i, key in enumerate(covariates)}
    metadata = pd.DataFrame(columns)
    complete = metadata.notna().all(axis=1).to_numpy()
    parts, too_few = [], []
    for cell_type, (values, genes, _) in states.by_type.items():
        rows = complete & np.isfinite(values).all(1)
        count = metadata.loc[rows, "group"].value_counts()
        tested = [i for i in range(1, len(groups)) if count.get(f"g{i}", 0) >= min_patients]
        if not tested or count.get("g0", 0) < min_patients:
            too_few.append(cell_type)
            continue
        frame = pd.DataFrame(
            np.round(values[rows]).astype(int), index=states.obs.index[rows].astype(str), columns=genes
        )
        frame = frame.loc[:, frame.sum() > 0]
        design = "~" + " + ".join([*(f"c{i}" for i in range(len(covariates))), "group"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its fallbacks for dispersions
            dds = dds_module.DeseqDataSet(
                counts=frame, metadata=metadata.loc[rows].set_axis(frame.index), design=design, quiet=True
            )
            dds.deseq2()
            for i in tested:
                found = ds_module.DeseqStats(dds, contrast=["group", f"g{i}", "g0"], quiet=True)
                found.summary()
                parts.append(
                    _frame(found.results_df, cell_type, f"{groups[i]} - {groups[0]}", count[f"g{i}"], count["g0"])
                )
    if too_few:
        note(notes, f"cell types with fewer than {min_patients} patients in a group are not tested: {listed(too_few)}")
    notes["types_not_tested"] = too_few
    if not parts:
        raise ValueError(f"no cell type has {min_patients} patients in two groups: {listed(too_few)}")
    return pd.concat(parts, ignore_index=True)


def _frame(result: pd.DataFrame, cell_type: str, contrast: str, n_test: int, n_reference: int) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "gene": result.index.astype(str),
            "cell_type": cell_type,
            "contrast": contrast,
            "log_fc": result["log2FoldChange"].to_numpy(),
            "stat": result["stat"].to_numpy(),
            "pval": result["pvalue"].to_numpy(),
            "df": np.inf,
            "n_test": int(n_test),
            "n_reference": int(n_reference),
            "mean": result["baseMean"].to_numpy(),
        }
    )
