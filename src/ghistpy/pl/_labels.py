"""Names beside points that collide neither with each other nor with anything that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ghistpy.pl._style import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_RADII = (5.0, 10.0, 16.0, 24.0, 34.0, 46.0, 60.0)  # points
_ANGLES = np.deg2rad([20, 160, -20, -160, 55, 125, -55, -125, 90, -90, 0, 180])
_PAD = 1.0  # points between two labels
_LEADER_FROM = 7.0  # points from which a line joins name and point
_INK_FROM = 0.15  # difference to the colour of the axes (0 to 1); paler is background


def place_labels(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    *,
    notes: Sequence[str] | None = None,
    fontsize: float = 7,
    italic: bool = False,
    page: Page | None = None,
) -> list[Text]:
    """Write each name near its point, in the order given, where there is room; the others are left out.

    Room is where nothing is drawn yet: no point, bar, line or text. Everything else must be drawn, and limits
    and size of the axes final. x, y in data units. Names away from their point get a line, which crosses no
    other name or line. ``notes`` follow their names, upright. A figure of several axes is drawn once only
    when they share a ``page``.

    Returns
    -------
    list of Text
        Names that were drawn.
    """
    page = Page(ax) if page is None else page.move_to(ax)
    at = ax.transData.transform(np.column_stack([x, y])) if len(names) else np.empty((0, 2))
    drawn = []
    for i, (point, name) in enumerate(zip(at, names, strict=True)):
        note = "" if notes is None else f" {notes[i]}"
        style = {"xytext": (0, 0), "textcoords": "offset points", "va": "center", "ha": "left", "zorder": 6}
        style |= {"fontsize": fontsize, "color": INK, "gid": "label"}
        parts = [ax.annotate(name, (x[i], y[i]), fontstyle="italic" if italic else "normal", **style)]
        if note.strip():
            parts.append(ax.annotate(note, (x[i], y[i]), **style | {"gid": "label_note"}))
        sizes = [page.size(part) for part in parts]
        half = np.array([sum(w for w, _ in sizes), max(h for _, h in sizes)]) / 2 + _PAD * page.unit
        centre = page.free_place(point, half)
        if centre is None:
            for part in parts:
                part.remove()
            continue
        left = centre[0] - half[0] + _PAD * page.unit
        for part, (width, _) in zip(parts, sizes, strict=True):
            part.set_position(tuple((np.array([left, centre[1]]) - point) / page.unit))
            left += width
        page.write(point, centre, half)
        drawn.append(parts[0])
    return drawn


class Page:
    """Pixels of a figure and which of them are taken, rows from the bottom up."""

    def __init__(self, ax: Axes) -> None:
        figure = ax.figure.figure  # of a subfigure: the whole
        previous = figure.canvas
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # the layout moves axes before anything is drawn
        rgb = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
        self.renderer, self.unit = canvas.get_renderer(), figure.dpi / 72
        self.taken = np.abs(rgb - to_rgb(ax.get_facecolor())).max(axis=-1) > _INK_FROM
        self.written = np.zeros(self.taken.shape, dtype=bool)  # names and lines
        figure.set_canvas(previous)
        self.move_to(ax)

    def move_to(self, ax: Axes) -> Page:
        """Write into these axes from now on."""
        box, (tall, wide) = ax.get_window_extent(self.renderer), self.taken.shape
        self.ax, self.frame = ax, (max(box.x0, 0), max(box.y0, 0), min(box.x1, wide), min(box.y1, tall))
        return self

    def size(self, text: Text) -> tuple[float, float]:
        """Width and height in pixels."""
        box = text.get_window_extent(self.renderer)
        return box.width, box.height

    def free_place(self, point: np.ndarray, half: np.ndarray) -> np.ndarray | None:
        """Centre of the nearest free box in pixels; None without one, and for points that are not in view."""
        if (point < self.frame[:2]).any() or (point > self.frame[2:]).any():
            return None
        for radius in _RADII:
            for angle in _ANGLES:
                direction = np.array([np.cos(angle), np.sin(angle)])
                # the box touches the circle around the point from outside
                centre = point + direction * (radius * self.unit) + np.sign(np.round(direction, 3)) * half
                low, high = centre - half, centre + half
                if (low < self.frame[:2]).any() or (high > self.frame[2:]).any() or self.taken[_box(low, high)].any():
                    continue
                rows, columns = _line(point, centre, half)
                if not self.written[rows, columns].any():
                    return centre
        return None

    def write(self, point: np.ndarray, centre: np.ndarray, half: np.ndarray) -> None:
        """Note a name as taken, and draw the line to its point."""
        box = _box(centre - half, centre + half)
        self.taken[box] = self.written[box] = True
        end = np.clip(point, centre - half, centre + half)
        if np.hypot(*(end - point)) < _LEADER_FROM * self.unit:
            return
        rows, columns = _line(point, centre, half)
        for step in (0, 1):  # two pixels wide, so that no other line slips through
            self.taken[rows, columns + step] = self.written[rows, columns + step] = True
        (x0, y0), (x1, y1) = self.ax.transData.inverted().transform([point, end])
        self.ax.plot([x0, x1], [y0, y1], color=MUTED, lw=0.5, zorder=5, gid="leader", scalex=False, scaley=False)


def _box(low: np.ndarray, high: np.ndarray) -> tuple[slice, slice]:
    (x0, y0), (x1, y1) = np.floor(low).astype(int), np.ceil(high).astype(int)
    return slice(y0, y1), slice(x0, x1)


def _line(point: np.ndarray, centre: np.ndarray, half: np.ndarray) -> tuple[Any, Any]:
    """Pixels between a point and the edge of its box; not the point itself, where lines of one point may meet."""
    end = np.clip(point, centre - half, centre + half)
    steps = max(int(np.abs(end - point).max()), 1)
    line = point + np.linspace(0, 1, 2 * steps, endpoint=False)[1:, None] * (end - point)
    columns, rows = line.astype(int).T
    return rows, columns
