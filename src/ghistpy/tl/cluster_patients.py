"""Patients grouped by their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ghistpy import _keys
from ghistpy.tl._patients import listed, note, resolve_patients, store

if TYPE_CHECKING:
    from anndata import AnnData


def cluster_patients(
    adata: AnnData,
    *,
    n_clusters: int = 2,
    kind: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    layer: str | None = None,
    standardise: bool = True,
    clip: float | None = 2.5,
    n_init: int = 20,
    seed: int = 0,
    key_added: str = _keys.PATIENT_CLUSTER,
) -> None:
    """Cluster patients by k-means on standardised features.

    Parameters
    ----------
    adata
        Patients × features; written to.
    n_clusters
        Number of clusters.
    kind, layer
        Kind or kinds of features, layer; None = all, ``X``.
    features
        These features only, such as the strongest of :func:`ghistpy.tl.differential_state`.
    standardise
        Centre every feature and divide it by its standard deviation first; False = the values are so already.
    clip
        Largest absolute standardised value, so that no outlier makes a cluster; None = none.
    n_init, seed
        Starts of k-means, and their seed.
    key_added
        Column of ``obs``, and name of the record in ``uns["ghistpy"]``.

    Raises
    ------
    ValueError
        Unknown features, or fewer patients than clusters.

    Notes
    -----
    Written: ``obs["patient_cluster"]``, category ``"cluster_1"`` (the largest), ``"cluster_2"``, …, and a record of the
    features in ``uns["ghistpy"]["patient_cluster"]`` with inertia and mean silhouette. Missing values become the
    mean of the feature and are counted. k-means always finds clusters: a silhouette near 0 says that
    there are none.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> X = numpy.array([[0.0, 1], [0.1, 1.2], [5, 7], [5.1, 7.2], [5.2, 7.1]])
    >>> adata = anndata.AnnData(X, obs=pandas.DataFrame(index=list("abcde")))
    >>> gp.tl.cluster_patients(adata)
    >>> adata.obs["patient_cluster"].tolist()
    ['cluster_2', 'cluster_2', 'cluster_1', 'cluster_1', 'cluster_1']
    """
    import pandas as pd
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    patients = resolve_patients(adata, kind=kind, layer=layer)
    X, names = patients.X, patients.features
    if features is not None:
        absent = [f for f in features if f not in set(names)]
        if absent:
            raise ValueError(f"features: {listed(absent)} are not in the table, or do not vary between patients")
        at = pd.Index(names).get_indexer(list(features))
        X, names = X[:, at], names[at]
    if not 2 <= n_clusters < len(X):
        raise ValueError(f"n_clusters={n_clusters}: expected at least 2 and fewer than the {len(X)} patients")
    notes = patients.notes | {"features": names.tolist(), "n_missing_values": int(np.isnan(X).sum())}
    mean = np.nanmean(X, axis=0)
    if notes["n_missing_values"]:
        note(notes, f"{notes['n_missing_values']} of {X.size} values are missing and become the mean of their feature")
    z = np.where(np.isnan(X), mean, X)
    if standardise:
        z = (z - mean) / z.std(0)
    if clip is not None:
        z = np.clip(z, -clip, clip)
    found = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(z)
    rank = np.argsort(np.argsort(-np.bincount(found.labels_, minlength=n_clusters), kind="stable"), kind="stable")
    labels = [f"cluster_{rank[k] + 1}" for k in found.labels_]
    adata.obs[key_added] = pd.Categorical(labels, categories=[f"cluster_{k + 1}" for k in range(n_clusters)])
    notes |= {"inertia": float(found.inertia_), "silhouette": float(silhouette_score(z, found.labels_))}
    sizes = adata.obs[key_added].value_counts(sort=False)
    store(adata, key_added, {"sizes": pd.DataFrame({"cluster": sizes.index.astype(str), "n": sizes.to_numpy()})}, notes)
