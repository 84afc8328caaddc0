"""Where neighbours are alike: local Moran's I of chosen genes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key
from ghistpy.tl._table import neighbours, progress_bar, regions, resolve_table, whole_number
from ghistpy.tl._values import expression, gene_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")


def local_moran(
    adata_or_sdata: AnnData | SpatialData,
    genes: Sequence[str] | str,
    *,
    n_perms: int = 0,
    table_key: str | None = None,
    layer: str | None = None,
    graph: Any = None,
    n_neighbors: int | None = None,
    radius: float | None = None,
    key_added: str = _keys.LOCAL_MORAN,
    seed: int = 0,
    n_jobs: int = -1,
    progress: bool = True,
) -> None:
    """Local Moran's I of every cell for chosen genes, with its quadrant and, by permutations, a p-value.

    Parameters
    ----------
    adata_or_sdata
        A table of cells or spots, or the slide that holds it.
    genes
        One gene or a few.
    n_perms
        Conditional permutations: the value of a cell stays and its neighbours are drawn from all others. 0 =
        no p-values. In-silico tables get none: their values are smooth whatever the gene does.
    table_key, layer, graph, n_neighbors, radius
        As in :func:`ghistpy.tl.svg`.
    key_added
        Prefix of what is written.
    seed, n_jobs
        Of the draws; threads, -1 = all cores.
    progress
        Show a progress bar over the draws.

    Notes
    -----
    Written into the table, columns in the order of ``uns["local_moran"]["genes"]``:

    ======================== ==== ============== =====================================================
    key                      slot dtype          meaning
    ======================== ==== ============== =====================================================
    ``local_moran``          obsm float64 (n, g) I_i = z_i · mean of z over the neighbours / variance
    ``local_moran_pval``     obsm float64 (n, g) two-sided, not adjusted; NaN without permutations
    ``local_moran_quadrant`` obsm int8 (n, g)    1 high among high, 2 low among high, 3 low among low,
                                                 4 high among low, 0 without neighbours
    ``local_moran``          uns  dict           genes, graph, permutations, what was left out
    ======================== ==== ============== =====================================================

    Neighbouring tests share cells: p-values of neighbours go together, and an adjustment over cells
    (:func:`ghistpy.stats.adjust_pvalues`, ``"by"``) is for the reader to choose. The null hypothesis at a cell is
    that its neighbours are a random draw of the others: depth that varies over the tissue and values that were
    blurred are rejected as a pattern of the gene is. Slides or regions of one table are tested each alone, about
    its own mean. O(n · degree · n_perms) per gene.

    Raises
    ------
    ValueError
        As :func:`ghistpy.tl.svg`; no gene.

    References
    ----------
    Anselin, Geogr. Anal. 27:93 (1995), doi:10.1111/j.1538-4632.1995.tb00338.x

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=600, n_genes=10, seed=1).tables["measured"]
    >>> gp.tl.local_moran(table, table.var_names[0], n_perms=99, progress=False)
    >>> table.obsm["local_moran"].shape
    (600, 1)
    """
    from ghistpy.stats.local_autocorrelation import local_moran as compute

    check_key(key_added)
    n_perms = whole_number(n_perms, "n_perms")
    table = resolve_table(adata_or_sdata, table_key)
    columns = gene_columns(table, genes)
    values = expression(table, layer=layer, columns=columns)
    found = neighbours(table, graph=graph, n_neighbors=n_neighbors, radius=radius)
    withheld = table.in_silico and n_perms > 0
    if withheld:
        logger.warning("%s is predicted from H&E: p-values by permutation of values are withheld (NaN)", table.label)
    result = compute(
        values,
        found.weights,
        groups=regions(table),
        n_perms=0 if withheld else n_perms,
        seed=seed,
        n_jobs=n_jobs,
        progress=progress_bar(progress, "local_moran"),
    )
    table.adata.obsm[key_added] = result.score
    table.adata.obsm[f"{key_added}_pval"] = result.pval
    table.adata.obsm[f"{key_added}_quadrant"] = result.quadrant
    table.adata.uns[key_added] = {
        "genes": table.adata.var_names[columns].astype(str).tolist(),
        "n_perms": n_perms,
        "withheld": "in-silico values are smooth by construction" if withheld else "",
        "n_constant_genes": int(np.isnan(result.score).all(axis=0).sum()),
        "layer": layer or "X",
        "seed": int(seed),
        **found.notes,
    }
