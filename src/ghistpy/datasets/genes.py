"""Where genes lie on the genome."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FILE = "gene_positions/gencode.v22.annotation.gene.probeMap"


def gene_positions() -> pd.DataFrame:
    """Positions of 60,483 genes on hg38 (GENCODE v22, the annotation of the GDC).

    Read from the folder in the environment variable ``GHISTPY_DATA_DIR`` when it is set, else downloaded
    once (4 MB) and checked by SHA-256.

    Returns
    -------
    pandas.DataFrame
        One row per Ensembl gene; index ``gene_id`` with version; columns ``gene`` (symbol), ``chrom``
        (``chr1`` … ``chrY``, ``chrM``), ``start``, ``end`` (bases, 1-based, inclusive), ``strand``.
        2,096 symbols occur again: several genes or several places of one.

    Raises
    ------
    FileNotFoundError
        ``GHISTPY_DATA_DIR`` is set but lacks the file.
    ValueError
        A download that is not the expected file.

    References
    ----------
    Harrow et al., Genome Res 22:1760 (2012), doi:10.1101/gr.135350.111.

    Examples
    --------
    >>> import ghistpy as gp
    >>> genes = gp.datasets.gene_positions()  # doctest: +SKIP
    >>> genes.set_index("gene").loc["ERBB2", ["chrom", "start"]].tolist()  # doctest: +SKIP
    ['chr17', 39687914]
    """
    import pandas as pd

    from ghistpy.datasets.registry import fetch

    names = {"id": "gene_id", "chromStart": "start", "chromEnd": "end"}
    frame = pd.read_csv(fetch(_FILE), sep="\t").rename(columns=names).set_index("gene_id")
    return frame[["gene", "chrom", "start", "end", "strand"]]
