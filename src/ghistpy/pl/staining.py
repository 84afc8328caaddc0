"""A slide before and after its stain was normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghistpy import _keys
from ghistpy.pl._draw import finish_map
from ghistpy.pl._image import read_picture
from ghistpy.pl._style import INK, get_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from ghistpy.pl._image import Extent

_GAP = 0.03  # between the two pictures, of the width of one


def stain(
    sdata: SpatialData,
    *,
    normalized_key: str = "he_normalized",
    image_key: str | None = None,
    window_um: Extent | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the same window of a slide before and after :func:`ghistpy.pp.normalize_stain`, side by side.

    Parameters
    ----------
    sdata
        The slide.
    normalized_key
        Image with the normalised stain.
    image_key
        Image before; default: the one that was normalised.
    window_um
        (x0, y0, x1, y1) in µm; None = the whole slide.
    ax
        Axes to draw into.

    Returns
    -------
    matplotlib.axes.Axes
        x and y in µm, y downwards; the right picture is moved by the width of the left one and a gap.

    Raises
    ------
    ValueError
        No such images, or a window beside the image.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=100, n_genes=5, size_um=200.0, seed=0)
    >>> gp.pp.normalize_stain(sdata)
    >>> ax = gp.pl.stain(sdata)
    >>> [image.get_gid() for image in ax.images]
    ['he', 'he_normalized']
    """
    done = sdata.attrs.get(_keys.ATTRS, {}).get("normalized", {}).get(normalized_key) or {}
    pictures = {
        key: read_picture(sdata, key, window_um)
        for key in (image_key or done.get("image_key", _keys.IMAGE), normalized_key)
    }
    x0, y0, x1, y1 = next(iter(pictures.values())).extent_um
    step = (1 + _GAP) * (x1 - x0)
    ax = get_axes(ax, (9.6, 4.8))
    for i, (key, picture) in enumerate(pictures.items()):
        left, top, right, bottom = picture.extent_um
        shown = (left + i * step, right + i * step, bottom, top)
        ax.imshow(picture.rgb, extent=shown, interpolation="antialiased", gid=key)
        title = f"{key} ({done['method']})" if i and "method" in done else key
        ax.annotate(
            title,
            ((x0 + x1) / 2 + i * step, y0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )
    ax.set_xlim(x0, x1 + step)
    ax.set_ylim(y1, y0)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    finish_map(ax, (x0, y0, x1, y1))
    return ax
