"""How well models of patients do, beside their baselines."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ghistpy import _keys
from ghistpy.pl._style import DESCRIPTIVE, INK, METHOD_COLOURS, MUTED, darker, despine, get_axes, outside_legend, p_text

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_COLOURS = {
    "model": METHOD_COLOURS["model"],
    "clinical": "#E69F00",
    "clinical+model": "#D55E00",
    "image": "#009E73",
    "coxnet": "#56B4E9",
    "random": "#B3B3B3",
}
_NAMES = {"clinical+model": "clinical\n+ model", "image": "image\nonly", "random": "random\nfeatures"}


def c_index(adata: AnnData, *, key: str = _keys.SURVIVAL, ax: Axes | None = None) -> Axes:
    """Draw the cross-validated C-index of the model beside its baselines.

    Boxes are the repeats (mean over folds); they show how much the split matters and are no confidence
    interval. Points with lines are the mean and its 95 % interval over other cohorts of this kind (see
    :func:`ghistpy.tl.survival_cv`). The p-value is that of permuted outcomes, where there is one.

    Parameters
    ----------
    adata
        Patients with a result of :func:`ghistpy.tl.survival_cv`.
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
    See :func:`ghistpy.tl.survival_cv`; then ``gp.pl.c_index(adata)``.
    """
    from ghistpy.get import survival as read

    frame, summary = read(adata, key=key, part="c_index"), read(adata, key=key)
    each = frame.groupby(["model", "repeat"], observed=True)["c_index"].mean()
    values = {name: each[name].to_numpy() for name in summary["model"].astype(str)}
    ax = get_axes(ax, (3.2 + 0.85 * len(values), 3.2))
    _model_boxes(ax, values, summary, 0.5)
    ax.set_ylabel("C-index on test folds", fontsize=9)
    notes = summary.attrs["notes"]
    title = f"{notes['n_events']} events of {notes['n_analysed']} patients"
    p = _permutation_p(adata, key)
    title += f"\npermutation p of the model {p_text(p)}" if np.isfinite(p) else ""
    ax.set_title(title, fontsize=8, color=INK, loc="left")
    return ax


def _permutation_p(adata: AnnData, key: str) -> float:
    if "permutation" not in adata.uns[_keys.UNS][key]:
        return float("nan")
    from ghistpy.get import survival as read

    table = read(adata, key=key, part="permutation").set_index("statistic")
    return float(table["pval"].get("c_index", np.nan))


def outcome_accuracy(adata: AnnData, *, key: str = _keys.OUTCOME, ax: Axes | None = None) -> Axes:
    """Draw the cross-validated balanced accuracy of the model beside its baselines.

    Boxes are repeats, points with lines the mean and its 95 % interval over other cohorts of this kind (see
    :func:`ghistpy.tl.predict_outcome`); the dashed line is chance.

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
    ax = get_axes(ax, (3.2 + 0.85 * len(values), 3.2))
    classes = summary.attrs["notes"]["n_per_class"]
    _model_boxes(ax, values, summary, 1 / len(classes))
    ax.set_ylabel("balanced accuracy", fontsize=9)
    title = "\n".join(wrap(", ".join(f"{name}: {n}" for name, n in classes.items()), 62))
    p = summary["pval"].iloc[0]
    title += f"\npermutation p of the model {p_text(p)}" if np.isfinite(p) else ""
    title += f"\n{DESCRIPTIVE}" if summary.attrs["notes"].get("descriptive") else ""
    ax.set_title(title, fontsize=8, color=INK, loc="left")
    return ax


def _model_boxes(ax: Axes, values: dict[str, np.ndarray], summary: pd.DataFrame, chance: float) -> None:
    """One box of repeats per model, and the estimate with its interval beside it."""
    at = summary.set_index("model")
    for i, (name, each) in enumerate(values.items()):
        colour = _COLOURS.get(name, "#7F7F7F")
        ax.boxplot(
            each, positions=[i - 0.12], widths=0.36, showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour},
            medianprops={"color": darker(colour), "lw": 1.2}, whiskerprops={"color": colour},
            capprops={"color": colour},
        )  # fmt: skip
        mean = float(at.loc[name].iloc[0])
        low, high = at.loc[name, "ci_low"], at.loc[name, "ci_high"]
        ax.plot([i + 0.24] * 2, [low, high], color=INK, lw=1.2, gid=f"interval:{name}")
        ax.plot(i + 0.24, mean, "o", color=darker(colour), ms=4, gid=f"mean:{name}")
    ax.axhline(chance, color=MUTED, lw=0.8, ls=(0, (3, 2)), zorder=0, gid="chance")
    ax.set_xticks(range(len(values)), [_NAMES.get(name, name) for name in values])
    ax.set_xlim(-0.6, len(values) - 0.4)
    despine(ax)
    handles = [
        Patch(fc=MUTED, ec=MUTED, alpha=0.35, label="repeats of the split"),
        Line2D([], [], color=INK, lw=1.2, marker="o", ms=4, label="mean, 95 % interval\nover cohorts"),
        Line2D([], [], color=MUTED, lw=0.8, ls=(0, (3, 2)), label="chance"),
    ]
    outside_legend(ax, handles)
