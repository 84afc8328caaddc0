"""Survival of patients, drawn."""

from __future__ import annotations

from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ghistpy import _keys
from ghistpy.pl._style import INK, MUTED, colours_of, darker, despine, get_axes, outside_legend, p_text

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_TABLE, _ROW = -42.0, 11.0  # points: top of the risk table below the axis, height of a row
_BANDS = 4  # groups up to which their bands can be told apart
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # of groups 1-8, 9-16, ...


def kaplan_meier(
    adata: AnnData,
    *,
    key: str = _keys.KAPLAN_MEIER,
    endpoint: str | None = None,
    band: bool | None = None,
    risk_table: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw survival curves with 95 % bands, censored patients, numbers at risk, χ² and p.

    Parameters
    ----------
    adata
        Patients with a result of :func:`ghistpy.tl.kaplan_meier`.
    key
        Its ``key_added``.
    endpoint
        What survival is of, such as ``"overall survival"``; None = the column with the events.
    band
        Draw the 95 % bands; None = of up to four groups, more would hide each other.
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
    labels = [
        f"{fill(name, 26)}  ({row.n_events} of {row.n})" for name, row in zip(names, groups.itertuples(), strict=True)
    ]
    ax = get_axes(ax, (4.4, 3.7 + (0.17 * len(names) if risk_table else 0)), ["events of patients", *labels])
    colours = colours_of(names) if len(names) > 1 else {names[0]: INK}
    band = len(names) <= _BANDS if band is None else band
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        part = curves[curves["group"] == name]
        _draw_curve(ax, part, name, colours[name], label, band=band, dashes=_DASHES[i // 8 % 4])
    notes = curves.attrs["notes"]
    unit = notes["time_unit"]
    ax.set_xlabel("time (unit not stated)" if unit == "not stated" else unit, fontsize=9)
    ax.set_ylabel(endpoint or f"survival (event: {notes['outcome'][1]})", fontsize=9)
    ax.set_ylim(0, 1.02)
    ax.set_xlim(left=0)
    despine(ax)
    lines = [line for line in ax.lines if str(line.get_gid()).startswith("curve:")]
    title = "events of patients" + ("\n(band: 95 %)" if band else "")
    outside_legend(ax, [*lines, Line2D([], [], color=MUTED, marker="|", ls="", ms=6, label="censored")], title=title)
    if len(names) > 1:
        ax.set_title(_test_text(read(adata, key=key)), fontsize=8, color=INK, loc="left")
    if risk_table:
        _risk_table(ax, read(adata, key=key, part="at_risk"), names, colours)
    return ax


def _draw_curve(ax: Axes, curve: pd.DataFrame, name: str, colour: Any, label: str, *, band: bool, dashes: Any) -> None:
    t, s = curve["time"].to_numpy(), curve["survival"].to_numpy()
    ax.step(t, s, where="post", color=colour, lw=1.6, ls=dashes, label=label, gid=f"curve:{name}")
    if band:
        low, high = curve["ci_low"].to_numpy(), curve["ci_high"].to_numpy()
        ax.fill_between(t, low, high, step="post", color=colour, alpha=0.15, lw=0, gid=f"band:{name}")
    censored = curve["censored"].to_numpy() > 0
    ax.plot(t[censored], s[censored], "|", color=darker(colour), ms=5, mew=0.8, ls="", gid=f"censored:{name}")


def _test_text(test: pd.DataFrame) -> str:
    row = test.iloc[0]
    if row["descriptive"]:
        text = f"log-rank χ² = {row['chi2']:.2f}, df {row['df']:.0f}; descriptive p {p_text(row['pval'])}:\n"
        text += "the groups were made from the follow-up, so this p is no test"
    else:
        text = f"log-rank χ² = {row['chi2']:.2f}, df {row['df']:.0f}, p {p_text(row['pval'])}"
    if np.isfinite(row["hazard_ratio"]):
        of = str(test.attrs["notes"].get("hazard_ratio_of", "")).replace(" against ", " vs ")
        text += f"\nHR {row['hazard_ratio']:.2f} ({row['hr_ci_low']:.2f}–{row['hr_ci_high']:.2f}) {of}".rstrip()
    if np.isfinite(row["pval_permutation"]):
        text += f"\npermutation p {p_text(row['pval_permutation'])} (whole procedure)"
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
        ax.annotate(
            shorten(name, 26, placeholder=" …"), (0, 0), xycoords=below, xytext=(-14, down), ha="right", color=dark,
            **style,
        )  # fmt: skip
        for row in table[table["group"] == name].itertuples():
            text = ax.annotate(
                f"{row.at_risk}", (row.time, 0), xycoords=below, xytext=(0, down), ha="center", color=INK, **style
            )
            text.set_gid(f"at_risk:{name}")


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
