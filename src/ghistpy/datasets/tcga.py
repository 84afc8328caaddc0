"""Breast cancers of TCGA: expression, copy number and follow-up of 956 patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData

_FILE = "tcga_brca/porpoise_tcga_brca_all_clean.csv.zip"
_SUFFIX = {"expression": "_rnaseq", "cna": "_cnv", "mutation": "_mut"}
_KIND = {"expression": "gene_mean_bulk", "cna": "cna", "mutation": "mutation"}
_UNITS = {"expression": "z-score", "cna": "GISTIC call", "mutation": "0 or 1"}
_CLINICAL = ("age", "site", "survival_months", "censorship", "is_female", "oncotree_code", "train")


def tcga_brca(assay: Literal["expression", "cna", "mutation"] = "expression") -> AnnData:
    """TCGA-BRCA as prepared by PORPOISE: 956 patients with overall survival, 130 deaths.

    Read from the folder in the environment variable ``GHISTPY_DATA_DIR`` when it is set, else downloaded once
    from the public repository (4 MB) and checked by SHA-256.

    Parameters
    ----------
    assay
        ``"expression"``: z-scores of bulk RNA-seq, 1,558 genes. ``"cna"``: GISTIC calls −2 … 2 of 1,333 genes.
        ``"mutation"``: 0 or 1. Rows are the same patients in the same order.

    Returns
    -------
    AnnData
        Patients × genes, ``X`` float32, names are TCGA barcodes and gene symbols.

        =================== ==== ======== ==================================================================
        key                 slot dtype    meaning
        =================== ==== ======== ==================================================================
        ``age``             obs  float64  years
        ``site``            obs  category tissue source site (37): folds by it, as stain and follow-up differ
        ``survival_months`` obs  float64  follow-up in months
        ``censorship``      obs  int64    **1 = censored, 0 = died**: give ``event_value=0``
        ``is_female``       obs  int64
        ``oncotree_code``   obs  category histological type
        ``n_slides``        obs  int64    diagnostic slides of the patient
        ``kind``, ``gene``  var  str      ``gene_mean_bulk``, ``cna`` or ``mutation``; symbol
        =================== ==== ======== ==================================================================

    Raises
    ------
    ValueError
        Another assay, or a download that is not the expected file.
    FileNotFoundError
        ``GHISTPY_DATA_DIR`` is set but lacks the file.

    Notes
    -----
    The file has one row per slide (1,022); all columns but the slide are the same in the slides of a patient.
    PORPOISE is under the GPL-3. Genes were chosen by its authors by function, not by survival.

    References
    ----------
    Chen et al., Cancer Cell 40:865 (2022), doi 10.1016/j.ccell.2022.07.004;
    Liu et al., Cell 173:400 (2018), doi 10.1016/j.cell.2018.02.052.

    Examples
    --------
    >>> import ghistpy as gp
    >>> adata = gp.datasets.tcga_brca()  # doctest: +SKIP
    >>> adata.shape, int((adata.obs["censorship"] == 0).sum())  # doctest: +SKIP
    ((956, 1558), 130)
    """
    import anndata
    import pandas as pd

    from ghistpy.datasets.registry import fetch

    if assay not in _SUFFIX:
        raise ValueError(f"assay={assay!r}: expected one of {list(_SUFFIX)}")
    frame = pd.read_csv(fetch(_FILE), low_memory=False)
    n_slides = frame["case_id"].value_counts()
    frame = frame.drop_duplicates("case_id").set_index("case_id")
    columns = [c for c in frame.columns if c.endswith(_SUFFIX[assay])]
    genes = [c.removesuffix(_SUFFIX[assay]) for c in columns]
    obs = frame[[c for c in _CLINICAL if c in frame]].copy()
    obs["n_slides"] = n_slides.reindex(obs.index).to_numpy()
    for name in ("site", "oncotree_code"):
        obs[name] = pd.Categorical(obs[name].astype(str))
    for name in ("censorship", "is_female", "train"):
        obs[name] = obs[name].astype(np.int64)
    obs.index = obs.index.astype(str).rename(None)
    var = pd.DataFrame({"kind": _KIND[assay], "gene": genes}, index=pd.Index(genes))
    uns = {_keys.UNS: {"units": _UNITS[assay], "source": "PORPOISE, TCGA-BRCA"}}
    return anndata.AnnData(frame[columns].to_numpy(dtype=np.float32), obs=obs, var=var, uns=uns)
