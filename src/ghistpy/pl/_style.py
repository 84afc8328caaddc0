"""Colours and small pieces that all figures share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

# Okabe & Ito, distinguishable with every common colour vision; no black, which nuclei are already
OKABE_ITO = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#7F7F7F")
EXPRESSION_CMAP = "viridis"
INK = "#222222"
MUTED = "#8A8A8A"

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


def type_colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of every type, in the order given; beyond eight the palette returns lighter.

    The colour follows the alphabet and not that order, so that a type has one colour in measured and
    predicted tables, whose categories have different orders.
    """
    names = [str(name) for name in names]
    out = {}
    for i, name in enumerate(sorted(names)):
        lighter = 0.45 * (i // len(OKABE_ITO))
        base = np.array(to_rgb(OKABE_ITO[i % len(OKABE_ITO)]))
        out[name] = tuple(base + (1 - base) * min(lighter, 0.8))
    return {name: out[name] for name in names}


def darker(colour: str, share: float = 0.35) -> tuple[float, float, float]:
    """The colour mixed with black."""
    return tuple((1 - share) * v for v in to_rgb(colour))


def get_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axes that came in, or those of a new figure."""
    return ax if ax is not None else plt.subplots(figsize=figsize, layout="constrained")[1]


def despine(ax: Axes) -> None:
    """Leave the two axes that carry numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(color=MUTED, labelcolor=INK, labelsize=8)


def outside_legend(ax: Axes, handles: list, *, title: str | None = None) -> Legend:
    """A legend to the right of the axes."""
    return ax.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        handletextpad=0.4,
        borderaxespad=0,
        alignment="left",
    )


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
