"""Survival of patients, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ghistpy import _keys
from ghistpy.pl._style import INK, METHOD_COLOURS, MUTED, OKABE_ITO, darker, despine, get_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

MODEL_COLOURS = {
    "model": METHOD_COLOURS["model"],
    "clinical": "#E69F00",
    "clinical+model": "#D55E00",
    "image": "#009E73",
    "coxnet": "#56B4E9",
    "random": "#B3B3B3",
}
MODEL_NAMES = {"clinical+model": "clinical\n+ model", "image": "image only", "random": "random\nfeatures"}
_TABLE, _ROW = -42.0, 11.0  # points: top of the risk table below the axis, height of a row


def kaplan_meier(
    adata: AnnData, *, key: str = _keys.KAPLAN_MEIER, risk_table: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw survival curves with 95 % bands, censored patients, numbers at risk, χ² and p.

    Parameters
    ----------
    adata
        Patients with a result of :func:`ghistpy.tl.kaplan_meier`.
    key
        Its ``key_added``.
    risk_table
        Write the numbers at risk below the axes.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        A descriptive χ² is written as such, beside the permutation p where there is one.

    Raises
    ------
    ValueError
        There is no such result.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> import ghistpy as gp
    >>> obs = pandas.DataFrame(
    ...     {"days": [5, 8, 12, 20.0, 25, 30, 31], "dead": [1, 1, 1, 1, 0, 0, 0], "arm": list("aaabbbb")},
    ...     index=list("uvwxyzq"),
    ... )
    >>> adata = anndata.AnnData(numpy.zeros((7, 1)), obs=obs)
    >>> gp.tl.kaplan_meier(adata, time_key="days", event_key="dead", groupby="arm")
    >>> gp.pl.kaplan_meier(adata).get_xlabel()
    'days'
    """
    from ghistpy.get import kaplan_meier as read

    curves, groups = read(adata, key=key, part="curves"), read(adata, key=key, part="groups")
    names = groups["group"].astype(str).tolist()
    ax = get_axes(ax, (4.8, 3.6 + (0.22 * len(names) if risk_table else 0)))
    colours = dict(zip(names, OKABE_ITO if len(names) > 1 else [INK], strict=False))
    for name, row in zip(names, groups.itertuples(), strict=True):
        _draw_curve(ax, curves[curves["group"] == name], name, colours[name], f"{name}  ({row.n_events} of {row.n})")
    unit = curves.attrs["notes"]["time_unit"]
    ax.set_xlabel("time" if unit == "not stated" else unit, fontsize=9)
    ax.set_ylabel("survival", fontsize=9)
    ax.set_ylim(0, 1.02)
    ax.set_xlim(left=0)
    despine(ax)
    ax.legend(
        frameon=False, fontsize=8, loc="lower left", title="events of patients", title_fontsize=7, alignment="left"
    )
    if len(names) > 1:
        ax.set_title(_test_text(read(adata, key=key)), fontsize=8, color=INK, loc="left")
    if risk_table:
        _risk_table(ax, read(adata, key=key, part="at_risk"), names, colours)
    return ax


def _draw_curve(ax: Axes, curve: pd.DataFrame, name: str, colour: str, label: str) -> None:
    t, s = curve["time"].to_numpy(), curve["survival"].to_numpy()
    ax.step(t, s, where="post", color=colour, lw=1.6, label=label, gid=f"curve:{name}")
    low, high = curve["ci_low"].to_numpy(), curve["ci_high"].to_numpy()
    ax.fill_between(t, low, high, step="post", color=colour, alpha=0.15, lw=0, gid=f"band:{name}")
    censored = curve["censored"].to_numpy() > 0
    ax.plot(t[censored], s[censored], "|", color=darker(colour), ms=5, mew=0.8, ls="", gid=f"censored:{name}")


def _p_text(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _test_text(test: pd.DataFrame) -> str:
    row = test.iloc[0]
    text = f"log-rank χ² = {row['chi2']:.2f}, df {row['df']:.0f}, p = {_p_text(row['pval'])}"
    if row["descriptive"]:
        text += " (descriptive)"
    if np.isfinite(row["hazard_ratio"]):
        text += f"\nHR {row['hazard_ratio']:.2f} ({row['hr_ci_low']:.2f}–{row['hr_ci_high']:.2f})"
    if np.isfinite(row["pval_permutation"]):
        text += f", permutation p = {_p_text(row['pval_permutation'])}"
    return text


def _risk_table(ax: Axes, table: pd.DataFrame, names: list[str], colours: dict[str, str]) -> None:
    """Rows below the axis, placed in points, so that the layout makes room for them at any size."""
    times = table["time"].unique()
    ax.set_xticks(times)
    ax.set_xlim(0, max(ax.get_xlim()[1], times.max()))
    style = {"textcoords": "offset points", "va": "center", "fontsize": 7, "annotation_clip": False}
    below = ax.get_xaxis_transform()
    ax.annotate("at risk", (0, 0), xycoords=below, xytext=(0, _TABLE), ha="left", color=MUTED, **style)
    for i, name in enumerate(names):
        down, dark = _TABLE - _ROW * (i + 1), darker(colours[name], 0.15)
        ax.annotate(name, (0, 0), xycoords=below, xytext=(-14, down), ha="right", color=dark, **style)
        for row in table[table["group"] == name].itertuples():
            text = ax.annotate(
                f"{row.at_risk}", (row.time, 0), xycoords=below, xytext=(0, down), ha="center", color=INK, **style
            )
            text.set_gid(f"at_risk:{name}")


def model_boxes(ax: Axes, values: dict[str, np.ndarray], summary: pd.DataFrame, chance: float) -> None:
    """One box of repeats per model, and the estimate with its interval beside it."""
    at = summary.set_index("model")
    for i, (name, each) in enumerate(values.items()):
        colour = MODEL_COLOURS.get(name, "#7F7F7F")
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
    ax.set_xticks(range(len(values)), [MODEL_NAMES.get(name, name) for name in values])
    ax.set_xlim(-0.6, len(values) - 0.4)
    despine(ax)


def c_index(adata: AnnData, *, key: str = _keys.SURVIVAL, ax: Axes | None = None) -> Axes:
    """Draw the cross-validated C-index of the model beside its baselines.

    Boxes are the repeats (mean over folds); they show how much the split matters and are no confidence
    interval. Points with lines are the mean and the 95 % interval of a bootstrap of patients.

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
    ax = get_axes(ax, (1.2 + 0.75 * len(values), 3.2))
    model_boxes(ax, values, summary, 0.5)
    ax.set_ylabel("C-index on test folds", fontsize=9)
    notes = summary.attrs["notes"]
    ax.set_title(f"{notes['n_events']} events of {notes['n_analysed']} patients", fontsize=8, color=INK, loc="left")
    return ax


def risk_features(adata: AnnData, *, key: str = _keys.SURVIVAL, n: int = 20, ax: Axes | None = None) -> Axes:
    """Draw how often features were selected in training folds, coloured by the sign of their effect.

    Parameters
    ----------
    adata
        Patients with a result of :func:`ghistpy.tl.survival_cv`.
    key
        Its ``key_added``.
    n
        Number of features, the most frequent on top.
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
    See :func:`ghistpy.tl.survival_cv`; then ``gp.pl.risk_features(adata)``.
    """
    from ghistpy.get import survival as read

    frame = read(adata, key=key, part="selected").head(n).iloc[::-1]
    ax = get_axes(ax, (4.0, 0.8 + 0.2 * len(frame)))
    norm = plt.Normalize(-1, 1)
    sign = 2 * frame["share_positive"].to_numpy() - 1
    bars = ax.barh(np.arange(len(frame)), frame["frequency"], color=plt.get_cmap("coolwarm")(norm(sign)), height=0.75)
    for bar in bars:
        bar.set_gid("frequency")
    ax.set_yticks(range(len(frame)), frame["feature"].astype(str))
    ax.set_xlabel("share of training folds that select it", fontsize=9)
    ax.set_xlim(0, 1)
    despine(ax)
    bar = ax.figure.colorbar(plt.cm.ScalarMappable(norm, "coolwarm"), ax=ax, shrink=0.6, aspect=14, pad=0.02)
    bar.set_ticks([-1, 0, 1], labels=["always\nprotective", "either", "always\nadverse"])
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)
    return ax
