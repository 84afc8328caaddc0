"""Outcome and state of patients, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from ghistpy import _keys
from ghistpy.pl._labels import place_labels
from ghistpy.pl._style import INK, MUTED, OKABE_ITO, despine, get_axes, outside_legend
from ghistpy.pl.survival import model_boxes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_UP, _DOWN, _NONE = "#D55E00", "#0072B2", "#BDBDBD"
_SMALLEST_P = 1e-300


def outcome_accuracy(adata: AnnData, *, key: str = _keys.OUTCOME, ax: Axes | None = None) -> Axes:
    """Draw the cross-validated balanced accuracy of the model beside its baselines.

    Boxes are repeats, points with lines the mean and the 95 % interval of a bootstrap of patients; the dashed
    line is chance.

    Parameters
    ----------
    adata
        Patients with a result of :func:`ghistpy.tl.predict_outcome`.
    key
        Its ``key_added``.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no such result.

    Examples
    --------
    See :func:`ghistpy.tl.predict_outcome`; then ``gp.pl.outcome_accuracy(adata)``.
    """
    from ghistpy.get import outcome as read

    frame, summary = read(adata, key=key, part="accuracy"), read(adata, key=key)
    values = {
        name: frame.loc[frame["model"] == name, "balanced_accuracy"].to_numpy() for name in summary["model"].astype(str)
    }
    ax = get_axes(ax, (1.2 + 0.75 * len(values), 3.2))
    classes = summary.attrs["notes"]["n_per_class"]
    model_boxes(ax, values, summary, 1 / len(classes))
    ax.set_ylabel("balanced accuracy", fontsize=9)
    title = ", ".join(f"{name}: {n}" for name, n in classes.items())
    p = summary["pval"].iloc[0]
    title += f"\npermutation p of the model = {p:.3f}" if np.isfinite(p) else ""
    if any("circular" in text for text in summary.attrs["notes"].get("warnings", [])):
        title += "\ncircular: the outcome was made of these features"
    ax.set_title(title, fontsize=8, color=INK, loc="left")
    return ax


def state_heatmap(
    adata: AnnData,
    *,
    groupby: str,
    key: str = _keys.DIFFERENTIAL_STATE,
    n: int = 20,
    max_pval_adj: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the strongest differences in state: genes of cell types in rows, patients in columns by group.

    Parameters
    ----------
    adata
        Table of patients with a result of :func:`ghistpy.tl.differential_state`.
    groupby
        Column of ``obs`` by which patients are ordered, such as the groups compared or
        ``"patient_cluster"``.
    key
        ``key_added`` of the tool.
    n
        Rows at most (50 are stored).
    max_pval_adj
        Only rows whose p-value, adjusted over all tests, is at most this.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        Standardised values, clipped at ±2.5; grey where a patient has too few cells.

    Raises
    ------
    ValueError
        There is no such result or column, or no row is left.

    Examples
    --------
    See :func:`ghistpy.tl.differential_state`; then ``gp.pl.state_heatmap(adata, groupby="arm")``.
    """
    from ghistpy.get import differential_state as read

    states, results = read(adata, key=key, part="states"), read(adata, key=key)
    if groupby not in adata.obs:
        raise ValueError(f"groupby={groupby!r} is not a column of obs; there are {list(adata.obs.columns)}")
    results = results.sort_values("pval").drop_duplicates(["gene", "cell_type"])
    if max_pval_adj is not None:
        results = results[results["pval_adj_global"] <= max_pval_adj]
    kept = (results["gene"].astype(str) + "  " + results["cell_type"].astype(str)).head(n)
    wide = states.assign(row=states["gene"].astype(str) + "  " + states["cell_type"].astype(str)).pivot(
        index="row", columns="patient", values="z"
    )
    kept = [row for row in kept if row in wide.index]
    if not kept:
        raise ValueError(f"max_pval_adj={max_pval_adj}: no row of {key!r} is left")
    group = adata.obs[groupby].astype(str).groupby(adata.obs_names.astype(str)).first().reindex(wide.columns)
    names = sorted(group.dropna().unique())
    order = np.lexsort([np.nan_to_num(wide.loc[kept].to_numpy()).mean(0), group.fillna("~").to_numpy().astype(str)])
    values = wide.loc[kept].to_numpy()[:, order]
    ax = get_axes(ax, (5.2, 1.0 + 0.17 * len(kept)))
    ax.set_facecolor("#D9D9D9")
    image = ax.imshow(
        np.ma.masked_invalid(values), aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest"
    )
    ax.set_yticks(range(len(kept)), kept, fontsize=7)
    ax.set_xticks([])
    ax.set_xlabel(f"{values.shape[1]} patients", fontsize=9)
    ax.tick_params(length=0)
    colours = dict(zip(names, OKABE_ITO, strict=False))
    strip = ax.inset_axes([0, 1.01, 1, 0.03 + 0.15 / max(len(kept), 5)])
    ordered = group.to_numpy()[order]
    for name in names:
        at = np.flatnonzero(ordered == name)
        strip.bar(at, 1, width=1, color=colours[name], label=name)
    strip.set_xlim(-0.5, values.shape[1] - 0.5)
    strip.axis("off")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.5, aspect=14, pad=0.02, anchor=(0, 0))
    bar.set_label("z", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    outside_legend(ax, [Patch(color=colours[name], label=name) for name in names], title=groupby)
    return ax


def volcano(
    adata_or_frame: AnnData | pd.DataFrame,
    *,
    key: str = _keys.DIFFERENTIAL_STATE,
    effect: str = "log_fc",
    pval: str = "pval",
    pval_adj: str = "pval_adj_global",
    name: str | Sequence[str] = ("gene", "cell_type"),
    max_pval_adj: float = 0.05,
    min_effect: float = 0.0,
    n_labels: int = 15,
    ax: Axes | None = None,
) -> Axes:
    """Draw effects against −log10 p, the strongest named.

    Parameters
    ----------
    adata_or_frame
        Patients with a result of :func:`ghistpy.tl.differential_state`, or any frame with the columns below.
    key
        ``key_added`` of the tool.
    effect, pval, pval_adj
        Columns. Where there is a column ``log_`` + ``pval`` (natural log of p), it is used: p itself may be 0.
    name
        Column or columns with the names.
    max_pval_adj, min_effect
        Points with at most this adjusted p and at least this absolute effect are coloured and counted.
    n_labels
        Names at most, the smallest p first; names without room are left out, none overlaps another.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no such result or column.

    Examples
    --------
    >>> import pandas
    >>> import ghistpy as gp
    >>> frame = pandas.DataFrame({"gene": ["A", "B"], "log_fc": [2, 0.1], "pval": [1e-6, 0.4], "fdr": [2e-6, 0.4]})
    >>> ax = gp.pl.volcano(frame, pval_adj="fdr", name="gene")
    >>> [text.get_text() for text in ax.texts if text.get_gid() == "label"]
    ['A']
    """
    if isinstance(adata_or_frame, pd.DataFrame):
        frame = adata_or_frame
    else:
        from ghistpy.get import differential_state as read

        frame = read(adata_or_frame, key=key)
    names = [name] if isinstance(name, str) else list(name)
    absent = [c for c in (effect, pval, pval_adj, *names) if c not in frame.columns]
    if absent:
        raise ValueError(f"columns {absent} are not in the result; there are {list(frame.columns)}")
    frame = frame[np.isfinite(frame[effect]) & np.isfinite(frame[pval])]
    height = _minus_log10(frame, pval)
    x = frame[effect].to_numpy(dtype=np.float64)
    passes = ((frame[pval_adj] <= max_pval_adj) & (np.abs(x) >= min_effect)).to_numpy()
    ax = get_axes(ax, (5.0, 4.0))
    for mask, colour, gid in (
        (~passes, _NONE, "none"),
        (passes & (x > 0), _UP, "up"),
        (passes & (x <= 0), _DOWN, "down"),
    ):
        ax.scatter(
            x[mask],
            height[mask],
            s=9 if gid != "none" else 5,
            c=colour,
            lw=0,
            rasterized=len(x) > 5000,
            gid=gid,
            zorder=3 if gid != "none" else 2,
        )
    reach = max(np.abs(x).max(initial=0.1), min_effect) * 1.12
    ax.set_xlim(-reach, reach)
    ax.set_ylim(0, max(height.max(initial=1.0), 1.0) * 1.1)
    ax.axvline(0, color=MUTED, lw=0.6, zorder=0)
    ax.set_xlabel(effect.replace("_", " "), fontsize=9)
    ax.set_ylabel("−log10 p", fontsize=9)
    ax.set_title(
        f"{int((passes & (x > 0)).sum())} up, {int((passes & (x <= 0)).sum())} down of {len(x)} "
        f"(adjusted p ≤ {max_pval_adj:g})",
        fontsize=8,
        color=INK,
        loc="left",
    )
    despine(ax)
    top = np.flatnonzero(passes)[np.argsort(-height[passes], kind="stable")][:n_labels]
    texts = [" ".join(str(frame[c].iloc[i]) for c in names) for i in top]
    place_labels(ax, x[top], height[top], texts)
    return ax


def _minus_log10(frame: pd.DataFrame, pval: str) -> np.ndarray:
    if f"log_{pval}" in frame:
        return -frame[f"log_{pval}"].to_numpy(dtype=np.float64) / np.log(10)
    return -np.log10(np.maximum(frame[pval].to_numpy(dtype=np.float64), _SMALLEST_P))
