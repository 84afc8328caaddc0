"""What happened in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.pl._style import INK, METHOD_COLOURS, MUTED, despine, get_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ghistpy.models import GHIST


def history(model_or_frame: GHIST | pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw training and validation loss by epoch; the epoch with the lowest validation loss is marked.

    Parameters
    ----------
    model_or_frame
        A trained model (its ``.history``), or a frame with columns ``epoch``, ``train_loss`` and, when
        there was a validation split, ``val_loss``.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The model has no history, or columns are missing.

    Examples
    --------
    >>> import pandas as pd
    >>> import ghistpy as gp
    >>> frame = pd.DataFrame({"epoch": [0, 1], "train_loss": [2.0, 1.0], "val_loss": [2.1, 1.4]})
    >>> gp.pl.history(frame).get_xlabel()
    'epoch'
    """
    import pandas as pd

    found: Any = getattr(model_or_frame, "history", model_or_frame)
    if found is None or len(found) == 0:
        raise ValueError("model_or_frame: this model has no history; it was not trained here (a converted checkpoint)")
    frame = pd.DataFrame(found)
    missing = {"epoch", "train_loss"} - set(frame.columns)
    if missing:
        raise ValueError(f"model_or_frame: columns {sorted(missing)} are missing; it has {list(frame.columns)}")
    ax = get_axes(ax, (4.2, 2.9))
    curves = (("train_loss", "training", MUTED), ("val_loss", "validation", METHOD_COLOURS["model"]))
    for column, label, colour in curves:
        if column not in frame:
            continue
        seen = frame[["epoch", column]].dropna()
        ax.plot(seen["epoch"], seen[column], color=colour, lw=1.6, label=label, marker="." if len(seen) == 1 else None)
    if "val_loss" in frame and frame["val_loss"].notna().any():
        best = frame.loc[frame["val_loss"].idxmin()]
        ax.plot(best["epoch"], best["val_loss"], "o", ms=6, mfc="white", mec=INK, mew=1.3, label="lowest", zorder=4)
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("loss", fontsize=9)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(left=float(np.min(frame["epoch"])))
    despine(ax)
    ax.legend(frameon=False, fontsize=8)
    return ax
