"""Values that colour a figure, their scales and colour bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar

_TOP = 99.0  # percentile of the shown values at which a colour scale ends
COUNT_LABEL = "log1p(count)"


def column(table: AnnData, gene: str, layer: str | None = None) -> np.ndarray:
    """One gene as float64 (n,), as it is stored."""
    if layer is not None and layer not in table.layers:
        raise ValueError(f"layer={layer!r} is not in the table (available: {list(table.layers)})")
    found = (table.X if layer is None else table.layers[layer])[:, table.var_names.get_loc(gene)]
    found = found.compute() if hasattr(found, "compute") else found
    found = found.toarray() if hasattr(found, "toarray") else found
    return np.asarray(found, dtype=np.float64).ravel()


def expression(table: AnnData, gene: str, layer: str | None = None) -> tuple[np.ndarray, str]:
    """A gene (n,) as log1p(count) and what to write beside its colour bar.

    Counts are logged, logarithms and values that are no counts (scores, a layer of fractions) stay as they are.
    """
    values = column(table, gene, layer)
    units = table.uns.get(_keys.UNS, {}).get("units")
    if layer is None and units == _keys.UNITS_LOG1P:
        return values, units
    if layer is None and "log1p" in table.uns:
        return values, "log1p, as stored"
    counts = bool((values >= 0).all() and (values == np.rint(values)).all())
    if counts or (layer is None and units == _keys.UNITS_COUNTS):
        return np.log1p(np.maximum(values, 0)), COUNT_LABEL if layer is None else f"log1p({layer})"
    return values, layer or "X, as stored"


def upper_limit(values: np.ndarray, vmax: float | None = None) -> float:
    """Upper end of a colour scale: a few extreme nuclei would leave the others in one colour."""
    if vmax is not None:
        return vmax
    shown = values[np.isfinite(values)]
    top = float(np.percentile(shown, _TOP)) if shown.size else 1.0
    top = top if top > 0 else float(shown.max(initial=0.0))
    return top if top > 0 else 1.0


def scale_of(values: np.ndarray) -> Normalize:
    """From the 1st to the 99th percentile, so that a gene that is high everywhere shows its pattern."""
    top = upper_limit(values)
    shown = values[np.isfinite(values)]
    low = float(np.percentile(shown, 100 - _TOP)) if shown.size else 0.0
    return Normalize(low if low < top else 0.0, top)


def common_scale(norms: Sequence[Normalize]) -> Normalize:
    """One scale that holds all of them."""
    return Normalize(min(n.vmin for n in norms), max(n.vmax for n in norms))


def colour_bar(axes: Sequence[Axes], norm: Normalize, cmap: str, label: str, *, below: bool = False) -> Colorbar:
    """One bar for these axes, to their right or below them; its pointed ends say that values go on."""
    extend = "both" if norm.vmin > 0 else "max"
    columns = len({round(ax.get_position().x0, 3) for ax in axes})
    place = (
        {"location": "bottom", "fraction": 0.05, "pad": 0.02, "shrink": 0.8, "aspect": 22 * columns}
        if below
        else {"fraction": 0.045 / columns, "pad": 0.01, "shrink": 0.8}
    )
    bar = axes[0].figure.colorbar(plt.cm.ScalarMappable(norm, cmap), ax=list(axes), extend=extend, **place)
    bar.set_label(label, fontsize=7)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6.5, length=2)
    return bar
