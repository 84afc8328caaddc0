"""HER2-positive breast cancer by Spatial Transcriptomics: four sections of one patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

SECTIONS = ("C2", "C3", "C4", "C5")
# 200 µm between spot centres are 291 px, by regression of pixel on array coordinates
MPP = 0.687
SPOT_DIAMETER_UM = 100.0


def her2st(section: str) -> SpatialData:
    """A section of patient C of HER2ST: H&E at 0.687 µm/px with about 180 spots.

    Read from the folder in the environment variable ``GHISTPY_DATA_DIR`` when it is set, else downloaded
    once from the public repository (5 MB a section) and checked by SHA-256.

    Parameters
    ----------
    section
        ``"C2"``, ``"C3"``, ``"C4"`` or ``"C5"``: consecutive sections of one tumour.

    Returns
    -------
    SpatialData
        As :func:`ghistpy.io.read_spots`: image ``he``, shapes ``spots`` (100 µm across), table ``measured``
        with raw counts, and besides

        =============== ====== ======== ===================================================
        key             slot   dtype    meaning
        =============== ====== ======== ===================================================
        cluster         obs    category expression cluster of the authors
        proportions     obsm   float64  (S, 8) cell-type proportions by stereoscope, NaN for
                                        spots that the authors have none for
        ghistpy         uns    dict     ``cell_types``: the columns of ``proportions``
        =============== ====== ======== ===================================================

        ``attrs["ghistpy"]``: ``sample``, ``patient``, ``spot_diameter_um``, ``join``.

    Raises
    ------
    ValueError
        Another section, or a download that is not the expected file.
    FileNotFoundError
        ``GHISTPY_DATA_DIR`` is set but lacks the files.

    Notes
    -----
    The authors give no licence. One patient: nothing can be said about other patients from these sections.

    References
    ----------
    Andersson et al., Nat Commun 12:6012 (2021), doi 10.1038/s41467-021-26271-2.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.her2st("C2")  # doctest: +SKIP
    >>> sdata.tables["measured"].n_obs  # doctest: +SKIP
    187
    """
    from ghistpy.datasets.registry import fetch
    from ghistpy.io.spots import read_spots

    if section not in SECTIONS:
        raise ValueError(f"section={section!r}: expected one of {list(SECTIONS)}")
    sdata = read_spots(
        fetch(f"her2st/images/{section}.jpg"),
        fetch(f"her2st/counts/{section}.tsv.gz"),
        fetch(f"her2st/spots/{section}_selection.tsv"),
        mpp=MPP,
        spot_diameter_um=SPOT_DIAMETER_UM,
    )
    sdata.attrs[_keys.ATTRS].update({"sample": section, "patient": "C"})
    table = sdata.tables[_keys.MEASURED]
    _add_proportions(table, section)
    _add_clusters(table, section)
    return sdata


def _add_proportions(table: AnnData, section: str) -> None:
    import pandas as pd

    from ghistpy.datasets.registry import fetch

    frame = pd.read_csv(fetch(f"her2st/props/{section}-major.tsv"), sep="\t", index_col=0)
    table.obsm["proportions"] = frame.reindex(table.obs[_keys.SPOT_ID]).to_numpy(np.float64)
    table.uns[_keys.UNS]["cell_types"] = frame.columns.tolist()


def _add_clusters(table: AnnData, section: str) -> None:
    import pandas as pd

    from ghistpy.datasets.registry import fetch

    frame = pd.read_csv(fetch(f"her2st/clusters/{section}-cluster-annotation.tsv.gz"), sep="\t")
    ids = frame["x"].astype(int).astype(str) + "x" + frame["y"].astype(int).astype(str)
    label = pd.Series(frame["label"].astype(str).to_numpy(), index=ids.to_numpy())
    table.obs["cluster"] = pd.Categorical(label.reindex(table.obs[_keys.SPOT_ID]).to_numpy())
