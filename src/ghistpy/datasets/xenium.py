"""A public H&E section with single cells measured on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

MPP = 2.125


def xenium_lung_tma(*, as_labelled: bool = False) -> SpatialData:
    """A core of a lung tissue microarray: H&E at 2.125 µm/px with 200 Xenium cells of 338 genes.

    Read from the folder in the environment variable ``GHISTPY_DATA_DIR`` when it is set, else downloaded once
    from the public repository (1 MB) and checked by SHA-256.

    Parameters
    ----------
    as_labelled
        In the file the names of the two columns are exchanged: ``x_pixel`` holds rows. False puts that right,
        True takes the names at their word, which :func:`ghistpy.pp.match_cells` finds out.

    Returns
    -------
    SpatialData
        Image ``he`` and table ``measured``, linked to no element (a nucleus is 3 px across here):

        ============ ===== ========= ================================
        key          slot  dtype     meaning
        ============ ===== ========= ================================
        X            X     float32   raw counts, 200 x 338 (CSR)
        original_id  obs   str       name of the cell
        total        obs   float64   counts over all genes
        spatial      obsm  float64   x, y in µm
        ghistpy      uns   dict      ``units``
        ============ ===== ========= ================================

    Raises
    ------
    ValueError
        A download that is not the expected file.
    FileNotFoundError
        ``GHISTPY_DATA_DIR`` is set but lacks the files.

    Notes
    -----
    Good for input, registration and tables; nothing can be said about single nuclei at this resolution.

    References
    ----------
    Vannan et al., Nat Genet 57 (2025), doi 10.1038/s41588-025-02080-x; HEST (NCBI858), doi
    10.48550/arXiv.2406.16192; excerpt from ratschlab/DeepSpot (MIT).

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.xenium_lung_tma()  # doctest: +SKIP
    >>> gp.pp.match_cells(sdata)  # doctest: +SKIP
    """
    import anndata as ad
    from scipy import sparse

    from ghistpy.datasets.registry import fetch
    from ghistpy.io import read_slide

    sdata = read_slide(fetch("xenium_lung_tma/NCBI858.jpg"), mpp=MPP)
    raw = ad.read_h5ad(fetch("xenium_lung_tma/NCBI858.h5ad"))
    xy = raw.obs[["x_pixel", "y_pixel"]].to_numpy(np.float64)
    counts = sparse.csr_matrix(raw.X).astype(np.float32)
    table = ad.AnnData(counts, var=raw.var[[]].copy())
    table.var_names = raw.var_names.astype(str)
    table.obs[_keys.ORIGINAL_ID] = raw.obs_names.astype(str).to_numpy()
    table.obs[_keys.TOTAL] = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    table.obsm[_keys.SPATIAL] = (xy if as_labelled else xy[:, ::-1].copy()) * MPP
    table.uns[_keys.UNS] = {"units": _keys.UNITS_COUNTS}
    sdata.tables[_keys.MEASURED] = table
    sdata.attrs[_keys.ATTRS].update({"sample": "NCBI858"})
    return sdata
