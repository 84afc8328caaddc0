"""Effects against p-values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ghistpy import _keys
from ghistpy.pl._labels import place_labels
from ghistpy.pl._style import DESCRIPTIVE, INK, MUTED, despine, get_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_UP, _DOWN, _NONE = "#D55E00", "#0072B2", "#BDBDBD"
_SMALLEST_P, _CLIP = 1e-300, 300.0
# columns of effect, adjusted p and names
_OF_STATES = ("log_fc", "pval_adj_global", ("gene", "cell_type"))
_OF_COPIES = ("mean_difference", "pval_adj", ("gene", "feature"))
_TRANSFORMS = {"proportion_clr": "centred log-ratios of shares", "proportion_logit": "log odds of shares"}


def volcano(
    adata_or_frame: AnnData | pd.DataFrame,
    *,
    key: str = _keys.DIFFERENTIAL_STATE,
    contrast: str | None = None,
    effect: str | None = None,
    pval: str = "pval",
    pval_adj: str | None = None,
    name: str | Sequence[str] | None = None,
    max_pval_adj: float = 0.05,
    min_effect: float = 0.0,
    n_labels: int = 15,
    ax: Axes | None = None,
) -> Axes:
    """Draw effects against −log10 p, the strongest named.

    Parameters
    ----------
    adata_or_frame
        Patients with a result of :func:`ghistpy.tl.differential_state` or :func:`ghistpy.tl.cna_association`, or any
        frame with the columns below, such as that of :func:`ghistpy.get.cna`.
    key
        ``key_added`` of the tool; ``"cna_association"`` for copy number.
    contrast
        Groups compared, as in the column ``contrast``; needed where a result holds several.
    effect, pval, pval_adj
        Columns. ``effect`` None = ``"log_fc"``, of copy number ``"mean_difference"``; ``pval_adj`` None =
        ``"pval_adj_global"``, of copy number ``"pval_adj"``. Where there is a column ``log10_`` + ``pval`` or ``log_``
        + ``pval`` (natural log), it is used: p itself may be 0. Without one, p below 1e-300 is drawn there as a
        triangle.
    name
        Column or columns with the names. None = ``("gene", "cell_type")``, of copy number ``("gene", "feature")``.
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

    Copy number:

    >>> cohort = gp.datasets.simulate_cohort(n_patients=80, seed=1)
    >>> gp.tl.cna_association(cohort, cohort.uns["cna"], positions=cohort.uns["positions"])
    >>> gp.pl.volcano(cohort, key="cna_association").get_xlabel()
    'mean difference, gains − losses (normal scores of ranks)'
    """
    frame, label = _one_contrast(_result(adata_or_frame, key), contrast)
    preset = _OF_COPIES if {"mean_difference", "feature"} <= set(frame.columns) else _OF_STATES
    effect, pval_adj = effect or preset[0], pval_adj or preset[1]
    name = name or preset[2]
    names = [name] if isinstance(name, str) else list(name)
    absent = [c for c in (effect, pval, pval_adj, *names) if c not in frame.columns]
    if absent:
        raise ValueError(
            f"columns {absent} are not in the result; there are {list(frame.columns)}, name them by effect=, pval=, "
            "pval_adj= and name="
        )
    height = _minus_log10(frame, pval)
    known = np.isfinite(frame[effect].to_numpy(dtype=np.float64)) & ~np.isnan(height)
    frame, height = frame[known], height[known]
    x = frame[effect].to_numpy(dtype=np.float64)
    passes = ((frame[pval_adj] <= max_pval_adj) & (np.abs(x) >= min_effect)).to_numpy()
    ax = get_axes(ax, (5.4, 4.2))
    clipped = _draw_points(ax, x, height, passes)
    reach = max(np.abs(x).max(initial=0.1), min_effect) * 1.12
    ax.set_xlim(-reach, reach)
    ax.set_ylim(0, max(height[~clipped].max(initial=1.0), _CLIP if clipped.any() else 1.0) * 1.1)
    ax.axvline(0, color=MUTED, lw=0.6, zorder=0)
    notes = frame.attrs.get("notes", {})
    ax.set_xlabel(_effect_label(effect, notes, label), fontsize=9)
    ax.set_ylabel("−log₁₀ p", fontsize=9)
    title = (
        f"{int((passes & (x > 0)).sum()):,} up, {int((passes & (x <= 0)).sum()):,} down of {len(x):,} "
        f"(adjusted p ≤ {max_pval_adj:g})"
    )
    title += "\nvalues are predictions, not measurements" if notes.get("meaning") else ""
    title += f"\n{DESCRIPTIVE}" if notes.get("descriptive") else ""
    title += f"\n{int(clipped.sum())} ▲: p < 10⁻³⁰⁰" if clipped.any() else ""
    ax.set_title(title, fontsize=8, color=INK, loc="left")
    despine(ax)
    top = np.flatnonzero(passes)[np.argsort(-height[passes], kind="stable")][:n_labels]
    together = len(names) if all("gene" in n for n in names) else 1  # columns of genes are italic
    first, rest = (
        [" ".join(str(frame[c].iloc[i]) for c in part) for i in top] for part in (names[:together], names[together:])
    )
    italic = "gene" in names[0] and not str(notes.get("kind")).startswith("proportion")  # types are no genes
    height = np.minimum(height[top], _CLIP if clipped.any() else np.inf)
    place_labels(ax, x[top], height, first, notes=rest, italic=italic)
    return ax


def _result(adata_or_frame: AnnData | pd.DataFrame, key: str) -> pd.DataFrame:
    if isinstance(adata_or_frame, pd.DataFrame):
        return adata_or_frame
    from ghistpy.get import cna, differential_state

    return cna(adata_or_frame, key=key) if key in adata_or_frame.uns else differential_state(adata_or_frame, key=key)


def _one_contrast(frame: pd.DataFrame, contrast: str | None) -> tuple[pd.DataFrame, str]:
    """Rows of one contrast and its name; "" when the frame has none."""
    if "contrast" not in frame:
        if contrast is not None:
            raise ValueError(f"contrast={contrast!r}: the result has no column 'contrast'; leave it out")
        return frame, ""
    there = frame["contrast"].astype(str)
    found = sorted(there.unique())
    if contrast is None and len(found) > 1:
        raise ValueError(f"contrast=None: the result holds {found}, which one figure must not mix; name one")
    if contrast is not None and contrast not in found:
        raise ValueError(f"contrast={contrast!r} is not in the result; there are {found}")
    kept = frame if contrast is None else frame[there == contrast]
    kept.attrs = frame.attrs
    return kept, contrast or (found[0] if found else "")


def _draw_points(ax: Axes, x: np.ndarray, height: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Points by direction; those whose height is infinite or beyond what a double can hold are triangles."""
    clipped = ~np.isfinite(height)
    for mask, colour, gid in (
        (~passes, _NONE, "none"),
        (passes & (x > 0), _UP, "up"),
        (passes & (x <= 0), _DOWN, "down"),
    ):
        style = {"c": colour, "lw": 0, "rasterized": len(x) > 5000, "zorder": 3 if gid != "none" else 2}
        shown = mask & ~clipped
        ax.scatter(x[shown], height[shown], s=9 if gid != "none" else 5, gid=gid, **style)
        if (mask & clipped).any():
            at = x[mask & clipped]
            ax.scatter(at, np.full(len(at), _CLIP), s=22, marker="^", gid=f"{gid}_clipped", **style)
    return clipped


def _effect_label(effect: str, notes: dict, contrast: str) -> str:
    """The effect with its scale, where the result says it, and the groups compared."""
    label = effect.replace("_", " ")
    if effect == "mean_difference":
        label = "mean difference, gains − losses"
        label += " (normal scores of ranks)" if notes.get("params", {}).get("transform") == "rank_normal" else ""
    if effect == "log_fc":
        label = _difference(notes)
    return f"{label}\n{contrast.replace(' - ', ' − ')}" if contrast else label


def _difference(notes: dict) -> str:
    """What ``log_fc`` is: the tool also compares features that are no logarithms of expression."""
    scale, kind = notes.get("scale"), notes.get("kind") or ""
    if scale == "log" and notes.get("source") == "features" and not kind.startswith("gene_mean"):
        return (
            f"difference of means ({_TRANSFORMS.get(kind, kind.replace('_', ' '))})" if kind else "difference of means"
        )
    return {"log": "difference of log1p values (base e)", "counts": "log₂ fold change"}.get(scale, "log fold change")


def _minus_log10(frame: pd.DataFrame, pval: str) -> np.ndarray:
    """Height of every point; infinite where p is below the smallest double and no logarithm is stored."""
    for column, base in ((f"log10_{pval}", 1.0), (f"log_{pval}", np.log(10))):
        if column in frame:
            return -frame[column].to_numpy(dtype=np.float64) / base
    p = frame[pval].to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore"):
        return -np.log10(np.where(p < _SMALLEST_P, 0.0, p))
