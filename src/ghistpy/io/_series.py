"""Which image of a file that holds several."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger("ghistpy")

# labels, macro pictures and thumbnails are smaller than this share of the slide itself
_RIVAL = 0.25


def describe_series(names: list[str], sizes: list[tuple[int, int]]) -> str:
    """The images of a file, one after the other: number, name, width x height."""
    return ", ".join(
        f"{i} {name!r} ({x} x {y} px)" if y else f"{i} {name!r} (no image)"
        for i, (name, (y, x)) in enumerate(zip(names, sizes, strict=True))
    )


def pick_series(names: list[str], sizes: list[tuple[int, int]], series: int | str | None, path: Path) -> int:
    """Number of the image to read: the one asked for, else the largest; what else there is, is logged.

    Parameters
    ----------
    names
        Of the images, as the file calls them.
    sizes
        Height and width of each, (0, 0) for what is no image.
    series
        Number (from 0), name, or None.
    path
        Of the file, for messages.

    Raises
    ------
    ValueError
        There is no image, or not this one; the message lists those there are.
    """
    listed = describe_series(names, sizes)
    usable = [i for i, size in enumerate(sizes) if min(size) > 0]
    if not usable:
        raise ValueError(f"{path}: holds no image (series: {listed or 'none'})")
    if series is not None:
        if isinstance(series, str):
            found = [i for i in usable if names[i] == series]
        else:
            found = [i for i in usable if i == series and not isinstance(series, bool)]
        if len(found) != 1:
            raise ValueError(f"series={series!r}: {len(found)} images of {path} have it; there are {listed}")
        return found[0]
    area = [y * x for y, x in sizes]
    chosen = max(usable, key=lambda i: area[i])
    rivals = [i for i in usable if i != chosen and area[i] >= _RIVAL * area[chosen]]
    if len(usable) > 1:
        logger.log(
            logging.WARNING if rivals else logging.INFO,
            "%s holds %d images: %s; reading the largest, %d; series= chooses",
            path, len(usable), listed, chosen,
        )  # fmt: skip
    return chosen
