"""Names beside points that do not collide with each other, with the points, or with the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ghistpy.pl._style import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_RADII = (5.0, 10.0, 16.0, 24.0, 34.0, 46.0)  # points
_ANGLES = np.deg2rad([20, 160, -20, -160, 55, 125, -55, -125, 90, -90, 0, 180])
_PAD = 1.0  # points between two labels


def place_labels(
    ax: Axes, x: np.ndarray, y: np.ndarray, texts: Sequence[str], *, fontsize: float = 7, italic: bool = False
) -> list[Text]:
    """Write each text near its point, in the order given, where there is room; the others are left out.

    Limits and size of the axes must be final. x, y in data units. Labels away from their point get a line.

    Returns
    -------
    list of Text
        Those that were drawn.
    """
    figure = ax.figure
    figure.draw_without_rendering()  # the layout moves axes when it is first drawn
    renderer = figure.canvas.get_renderer()
    unit = figure.dpi / 72
    frame = ax.get_window_extent(renderer)
    points = ax.transData.transform(np.column_stack([x, y]))
    taken = np.empty((0, 4))
    drawn = []
    for i, text in enumerate(texts):
        label = ax.annotate(
            text, (x[i], y[i]), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=fontsize, color=INK, fontstyle="italic" if italic else "normal", gid="label", zorder=6,
        )  # fmt: skip
        size = label.get_window_extent(renderer)
        half = np.array([size.width, size.height]) / 2 + _PAD * unit
        found = _free_place(points[i], half, taken, points, (frame.x0, frame.y0, frame.x1, frame.y1), unit)
        if found is None:
            label.remove()
            continue
        centre, radius = found
        label.set_position(tuple((centre - points[i]) / unit))
        taken = np.vstack([taken, [*(centre - half), *(centre + half)]])
        if radius > _RADII[1]:
            _leader(ax, points[i], centre, half)
        drawn.append(label)
    return drawn


def _free_place(
    point: np.ndarray,
    half: np.ndarray,
    taken: np.ndarray,
    points: np.ndarray,
    frame: tuple[float, float, float, float],
    unit: float,
) -> tuple[np.ndarray, float] | None:
    """Centre of the nearest free box in pixels, and its distance in points."""
    for radius in _RADII:
        for angle in _ANGLES:
            direction = np.array([np.cos(angle), np.sin(angle)])
            # the box touches the circle around the point from outside
            centre = point + direction * (radius * unit) + np.sign(np.round(direction, 3)) * half
            low, high = centre - half, centre + half
            if low[0] < frame[0] or low[1] < frame[1] or high[0] > frame[2] or high[1] > frame[3]:
                continue
            over = (taken[:, 0] < high[0]) & (taken[:, 2] > low[0]) & (taken[:, 1] < high[1]) & (taken[:, 3] > low[1])
            hit = ((points > low) & (points < high)).all(1)
            if not over.any() and not hit.any():
                return centre, radius
    return None


def _leader(ax: Axes, point: np.ndarray, centre: np.ndarray, half: np.ndarray) -> None:
    end = np.clip(point, centre - half, centre + half)
    (x0, y0), (x1, y1) = ax.transData.inverted().transform([point, end])
    ax.plot([x0, x1], [y0, y1], color=MUTED, lw=0.5, zorder=5, gid="leader", scalex=False, scaley=False)
