"""Colours and small pieces that all figures share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

# Okabe & Ito, distinguishable with every common colour vision; no black, which nuclei are already
OKABE_ITO = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#7F7F7F")
# Each of these is the colour of CIELAB that lies furthest from all before it (and from white, black and the
# grey of missing values), the smallest of its distances with normal vision (times 0.6), without red and
# without green cones (Machado 2009) being what counts; the last one still keeps 10 from every other
PALETTE = (
    *OKABE_ITO,
    "#0010B1", "#28FC8D", "#6D220A", "#600465", "#787EFC", "#E31B43", "#033B9A", "#9711EE",
    "#C5A952", "#6F425D", "#9FCFA5", "#4DE7FF", "#517743", "#9FF26C", "#AC1B87", "#6A43C9",
    "#B6240F", "#6F87E0", "#583124", "#CCB3D9", "#9BAA68", "#CF39C2", "#78043D", "#ACD142",
    "#1E5D7D", "#D59BAC", "#586416", "#914853", "#98F0AE", "#E671C7", "#5C4F29", "#60134D",
)  # fmt: skip
EXPRESSION_CMAP = "viridis"
INK = "#222222"
MUTED = "#8A8A8A"
MISSING = "#DDDDDD"
DESCRIPTIVE = "p-values are descriptive: the groups were made of these features"
_LEGEND_ROWS = 16
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

METHOD_NAMES = {
    "model": "model",
    "type_mean": "type mean",
    "oracle_type_mean": "measured-type mean",
    "morphology": "morphology ridge",
    "position": "position",
    "global_mean": "global mean",
}
METHOD_COLOURS = {
    "model": "#0072B2",
    "type_mean": "#E69F00",
    "oracle_type_mean": "#D55E00",
    "morphology": "#009E73",
    "position": "#CC79A7",
    "global_mean": "#B3B3B3",
}


def colours_of(names: Iterable[Any]) -> dict[str, Any]:
    """Colours in the order given: 40 that differ, then the same again half way to white, and so on."""
    out = {}
    for i, name in enumerate(names):
        lap, place = divmod(i, len(PALETTE))
        out[str(name)] = tuple(1 - (1 - np.array(to_rgb(PALETTE[place]))) * 0.5**lap)
    return out


def type_colours(names: Iterable[Any], known: Iterable[Any] = ()) -> dict[str, Any]:
    """Colour of every type, in the order given.

    The colour follows the alphabet and not that order, so that a type has one colour in measured and
    predicted tables, whose categories have different orders; ``known`` are types that other tables and
    figures of the slide have, so that one that is missing here moves no colour.
    """
    names = [str(name) for name in names]
    colours = colours_of(sorted({*names, *(str(name) for name in known)}))
    return {name: colours[name] for name in names}


def known_types(adata_or_sdata: Any, column: str) -> set[str]:
    """Values of a column of ``obs`` in all tables of a slide, or in this table."""
    tables = getattr(adata_or_sdata, "tables", {"": adata_or_sdata}).values()
    typed = [t for t in tables if column in t.obs and not is_number(t, column)]
    return {str(value) for t in typed for value in t.obs[column].dropna().unique()}


def is_number(table: AnnData, column: str) -> bool:
    """Whether a column of ``obs`` is drawn by a colour scale."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(table.obs[column]) and not is_bool_dtype(table.obs[column])


def levels(values: pd.Series) -> list[str]:
    """Values in the order of legends: that of an ordered category, else the alphabet."""
    there = values.dropna()
    if getattr(values.dtype, "ordered", False):
        return [str(v) for v in values.cat.categories if (there == v).any()]
    return sorted({str(v) for v in there.unique()}, key=_natural)


def groups(values: pd.Series) -> list[str]:
    """Groups of patients in the order of their category, else of the alphabet."""
    there = values.dropna()
    if hasattr(values, "cat"):
        return [str(v) for v in values.cat.categories if (there == v).any()]
    return sorted({str(v) for v in there.unique()}, key=_natural)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def number(value: float, spec: str = "g") -> str:
    """A number with a real minus sign."""
    return format(value, spec).replace("-", "−")


def p_text(p: float, *, sign: str = "=") -> str:
    """``= 0.012``, ``= 3 × 10⁻⁸``, or below the smallest double ``< 10⁻³⁰⁰``."""
    if p < 1e-300:
        return "< 10⁻³⁰⁰"
    if p >= 0.001:
        return f"{sign} {p:.3f}" if p < 0.995 else f"{sign} 1"
    mantissa, power = f"{p:.1e}".split("e-")
    return f"{sign} {mantissa} × 10⁻{str(int(power)).translate(_SUPERSCRIPT)}"


def darker(colour: str, share: float = 0.35) -> tuple[float, float, float]:
    """The colour mixed with black."""
    return tuple((1 - share) * v for v in to_rgb(colour))


def get_axes(ax: Axes | None, figsize: tuple[float, float], labels: Iterable[str] = ()) -> Axes:
    """The axes that came in, or those of a new figure, with room for an outside legend with these labels."""
    wide, tall = legend_inches(labels)
    size = (figsize[0] + wide, max(figsize[1], tall))
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def get_map_axes(ax: Axes | None, extent: tuple[float, float, float, float], labels: Iterable[str] = ()) -> Axes:
    """As :func:`get_axes`, of the shape of a window (x0, y0, x1, y1), with room beside it.

    The layout engine knows too little of axes of fixed aspect to find that room: it is for a colour bar, or for a
    legend with these labels.
    """
    wide, tall = extent[2] - extent[0], extent[3] - extent[1]
    beside, least = legend_inches(labels)
    height = max(4.6 * tall / max(wide, tall) + 0.4, 1.9, least)  # inches, with a title
    new = get_axes(ax, (height * wide / tall + (beside or 1.2), height))
    if ax is None and beside:
        new.set_anchor("W")
    return new


def legend_inches(labels: Iterable[str]) -> tuple[float, float]:
    """About how wide and tall an outside legend is."""
    labels = list(labels)
    if not labels:
        return 0.0, 0.0
    letters = max(len(line) for label in labels for line in label.split("\n"))
    rows = min(sum(label.count("\n") + 1 for label in labels), _LEGEND_ROWS + 1)
    return _legend_columns(len(labels)) * (0.6 + 0.068 * letters) + 0.1, 0.5 + 0.2 * rows


def _legend_columns(n: int) -> int:
    return max(1, -(-n // _LEGEND_ROWS))


def despine(ax: Axes) -> None:
    """Leave the two axes that carry numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(color=MUTED, labelcolor=INK, labelsize=8)


def outside_legend(ax: Axes, handles: list, *, title: str | None = None, points: float = 0) -> Legend:
    """A legend to the right of the axes, so many points away, in columns of equal length."""
    from matplotlib.transforms import ScaledTranslation

    away = ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)
    return ax.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        bbox_transform=ax.transAxes + away,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        handletextpad=0.4,
        borderaxespad=0,
        alignment="left",
        ncols=_legend_columns(len(handles)),
    )


def dots(colours: dict[str, Any]) -> list[Line2D]:
    """Legend entries of coloured points."""
    return [Line2D([], [], color=c, label=n, marker="o", ls="", ms=6, mec="none") for n, c in colours.items()]


def scale_bar(ax: Axes, width_um: float) -> None:
    """A bar of a round length, about a fifth of the width, in the lower left corner."""
    from matplotlib.patheffects import withStroke

    power = 10.0 ** np.floor(np.log10(width_um / 5))
    length = max(m * power for m in (1, 2, 5) if m * power <= width_um / 5 * 1.0001)
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    x, y = x0 + 0.04 * (x1 - x0), y0 + 0.04 * (y1 - y0)
    halo = [withStroke(linewidth=4, foreground="white")]
    ax.plot([x, x + length], [y, y], color=INK, lw=2.2, solid_capstyle="butt", path_effects=halo, zorder=9, gid="scale")
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    ax.annotate(
        text,
        (x + length / 2, y),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        color=INK,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=9,
    )
