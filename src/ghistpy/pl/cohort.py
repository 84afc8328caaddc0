"""What the patients of a cohort are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ghistpy.pl._style import despine, get_axes, groups, outside_legend, type_colours

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_GAP = 3.0  # share of the axis between two groups, in bars
_NOT_STATED = "not stated"
_NAMES = 40  # patients up to which they are named


def cohort_composition(
    adata: AnnData,
    *,
    kind: str = "proportion_raw",
    groupby: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cell types of every patient as one stacked bar; patients alike stand side by side.

    Parameters
    ----------
    adata
        Patients x features of :func:`ghistpy.tl.cohort_features`.
    kind
        Kind of the features that hold the shares of the types.
    groupby
        Column of ``obs``: patients are ordered within its groups, which follow its categories; those without a
        value stand last.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Patients in the order of a hierarchical clustering (average linkage of Euclidean distances, optimal
        leaf order); types from the most frequent one upwards.

    Raises
    ------
    ValueError
        There are no such features, missing shares, or no such column.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> shares = numpy.random.default_rng(0).dirichlet([2, 1, 1], 8)
    >>> var = pandas.DataFrame({"kind": "proportion_raw", "cell_type": ["B", "T", "NK"]}, index=["B", "T", "NK"])
    >>> obs = pandas.DataFrame(index=[f"P{i}" for i in range(8)])
    >>> ax = gp.pl.cohort_composition(anndata.AnnData(shares, obs=obs, var=var))
    >>> len(ax.get_xticklabels())
    8
    """
    from matplotlib.patches import Patch

    columns = np.flatnonzero(adata.var["kind"].to_numpy(dtype=str) == kind) if "kind" in adata.var else []
    if not len(columns):
        there = sorted(set(adata.var["kind"])) if "kind" in adata.var else []
        raise ValueError(f"kind={kind!r}: adata has no such features (kinds: {there}); run tl.cohort_features")
    shares = adata.X[:, columns]
    shares = np.asarray(shares.toarray() if hasattr(shares, "toarray") else shares, dtype=float)
    if not np.isfinite(shares).all():
        raise ValueError(
            f"kind={kind!r}: shares of {int((~np.isfinite(shares)).any(axis=1).sum())} patients are missing"
        )
    types = adata.var["cell_type"].to_numpy(dtype=str)[columns]
    x, order, middle = _places(shares, _groups(adata, groupby))
    by_size = np.argsort(-shares.mean(axis=0), kind="stable")
    colours = type_colours(types)
    ax = get_axes(ax, (0.8 + min(0.11 * len(x) + 2, 10), 3.2), types)
    bottom = np.zeros(len(order))
    for j in by_size:
        ax.bar(x, shares[order, j], 1.0, bottom=bottom, color=colours[types[j]], linewidth=0, gid=types[j])
        bottom += shares[order, j]
    _finish(ax, adata, order, x, middle)
    outside_legend(ax, [Patch(color=colours[types[j]], label=types[j]) for j in by_size[::-1]])
    return ax


def _groups(adata: AnnData, groupby: str | None) -> dict[str, np.ndarray]:
    """Label -> rows."""
    if groupby is None:
        return {"": np.arange(adata.n_obs)}
    if groupby not in adata.obs:
        raise ValueError(f"groupby={groupby!r} is not in adata.obs; columns there are {list(adata.obs)}")
    column = adata.obs[groupby]
    labels = column.astype(object).where(column.notna(), _NOT_STATED).astype(str).to_numpy()
    names = [*groups(column), *([_NOT_STATED] if column.isna().any() else [])]
    return {name: np.flatnonzero(labels == name) for name in names}


def _places(shares: np.ndarray, members: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Place of every bar, the patient behind it, and the middle of every group."""
    x, order, middle, at = [], [], {}, 0.0
    for label, rows in members.items():
        rows = rows[_leaf_order(shares[rows])]
        here = at + np.arange(len(rows))
        x.append(here), order.append(rows)
        middle[f"{label} ({len(rows)})"] = float(here.mean())
        at = here[-1] + 1 + _GAP
    return np.concatenate(x), np.concatenate(order), middle


def _leaf_order(shares: np.ndarray) -> np.ndarray:
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(shares) < 3:
        return np.arange(len(shares))
    return leaves_list(linkage(shares, method="average", optimal_ordering=True))


def _finish(ax: Axes, adata: AnnData, order: np.ndarray, x: np.ndarray, middle: dict[str, float]) -> None:
    ax.set_xlim(x[0] - 0.5, x[-1] + 0.5)
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of cells", fontsize=8)
    despine(ax)
    ax.tick_params(axis="x", length=0)
    if len(middle) > 1:
        ax.set_xticks(list(middle.values()), list(middle), fontsize=8)
    elif len(order) <= _NAMES:
        ax.set_xticks(x, adata.obs_names[order], rotation=90, fontsize=6)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(order)} patients", fontsize=8)
