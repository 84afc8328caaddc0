"""Optical density that carries between slides: white balance, density scale, haematoxylin.

All of it works on pixels of one slide, sampled once, so that every window of the slide is turned into
optical density (OD) by the same two numbers per channel and no tile depends on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghistpy.geometry.source import ArraySource, Window

# Pixels whose mean OD over the channels is above this are tissue (for the statistics only).
TISSUE_OD = 0.15
# OD of the 95th percentile of tissue in R, G, B on an ordinary H&E slide (median over the public
# slides that ghistpy is tested on). It stands in for slides without tissue, and it undoes the scaling
# before colour deconvolution, whose published vectors hold for unscaled OD.
NOMINAL_OD = (1.3, 1.8, 0.95)
OD_RANGE = (-0.5, 4.0)

# Columns of the stain matrix of Ruifrok & Johnston 2001: haematoxylin, eosin, and their normal.
_HAEMATOXYLIN = np.array([0.650, 0.704, 0.286])
_EOSIN = np.array([0.072, 0.990, 0.105])

_MIN_TISSUE_PIXELS = 50
_BACKGROUND_RANGE = (200.0, 255.0)
_SCALE_RANGE = (0.2, 4.0)


@dataclass(frozen=True)
class StainStats:
    """What turns the pixels of one slide into comparable optical density.

    Parameters
    ----------
    background
        Value of empty glass in R, G, B, 0-255 scale.
    od_scale
        95th percentile of the unscaled OD of tissue in R, G, B; OD is divided by it.
    """

    background: tuple[float, float, float]
    od_scale: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, lowest, highest in (("background", 1.0, 255.0), ("od_scale", 1e-3, np.inf)):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (3,) or not (np.isfinite(value) & (value >= lowest) & (value <= highest)).all():
                raise ValueError(
                    f"{name}: expected three finite numbers (R, G, B) in [{lowest}, {highest}], "
                    f"got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, tuple(float(v) for v in value))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON."""
        return {"background": list(self.background), "od_scale": list(self.od_scale)}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> StainStats:
        """The inverse of :meth:`to_dict`."""
        missing = {"background", "od_scale"} - set(values)
        if missing:
            raise ValueError(f"values: missing {sorted(missing)}, got keys {sorted(values)}")
        return cls(tuple(values["background"]), tuple(values["od_scale"]))


def _background(sample: np.ndarray) -> np.ndarray:
    """Value of glass per channel: the bright end of the sample, which need not be 255.

    Scanners pad with pure white beside a greyer glass. Pure white therefore counts only where nothing
    else on the slide is bright and grey.
    """
    pure = (sample == 255).all(axis=1)
    rest = sample[~pure]
    grey = (rest.min(axis=1) >= 200) & (np.ptp(rest, axis=1) <= 30) if len(rest) else np.zeros(0, bool)
    if pure.mean() > 0.005 and grey.sum() < 0.02 * max(len(rest), 1):
        return np.full(3, 255.0)
    pixels = rest if len(rest) else sample
    luminance = pixels.mean(axis=1)
    # the 99.5th percentile leaves specular specks out, 12 grey levels hold the noise of JPEG and glass
    bright = pixels[luminance >= np.percentile(luminance, 99.5) - 12]
    return np.clip(np.median(bright, axis=0), *_BACKGROUND_RANGE)


def white_balance(sample_rgb: np.ndarray) -> StainStats:
    """Background and density scale of a slide from a sample of its pixels.

    Parameters
    ----------
    sample_rgb
        (n, 3) uint8 pixels, see :func:`sample_pixels`.

    Returns
    -------
    StainStats
        ``background`` is the median of the brightest pixels, held in [200, 255] so that a crop without
        any glass stays sane. ``od_scale`` is the 95th percentile of OD over tissue, held in [0.2, 4];
        a slide with fewer than 50 tissue pixels in the sample gets an ordinary slide's scale.

    Raises
    ------
    ValueError
        ``sample_rgb`` is empty or not (n, 3) uint8.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.imaging.stain import white_balance
    >>> white_balance(np.full((100, 3), 235, np.uint8)).background
    (235.0, 235.0, 235.0)
    """
    sample = np.asarray(sample_rgb)
    if sample.ndim != 2 or sample.shape[1] != 3 or len(sample) == 0 or sample.dtype != np.uint8:
        raise ValueError(
            f"sample_rgb: expected at least one (n, 3) uint8 pixel, got shape {sample.shape}, dtype {sample.dtype}"
        )
    background = _background(sample)
    density = -np.log((sample + 1.0) / (background + 1.0))
    tissue = density[density.mean(axis=1) > TISSUE_OD]
    if len(tissue) < _MIN_TISSUE_PIXELS:
        return StainStats(tuple(background), NOMINAL_OD)
    scale = np.clip(np.percentile(tissue, 95, axis=0), *_SCALE_RANGE)
    return StainStats(tuple(background), tuple(scale))


def to_od(rgb: np.ndarray, stats: StainStats) -> np.ndarray:
    """Scaled optical density ``-log((rgb + 1) / (background + 1)) / od_scale``.

    Parameters
    ----------
    rgb
        (3, h, w) uint8.
    stats
        Of the slide, from :func:`white_balance`.

    Returns
    -------
    numpy.ndarray
        (3, h, w) float32, clipped to [-0.5, 4]; glass is 0, the darkest tissue of the slide about 1.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8:
        raise ValueError(
            f"rgb: expected (3, h, w) uint8, got shape {rgb.shape}, dtype {rgb.dtype}; as_rgb_uint8 converts"
        )
    value = np.arange(256, dtype=np.float64)
    out = np.empty(rgb.shape, dtype=np.float32)
    for channel in range(3):
        table = -np.log((value + 1.0) / (stats.background[channel] + 1.0)) / stats.od_scale[channel]
        np.take(np.clip(table, *OD_RANGE).astype(np.float32), rgb[channel], out=out[channel])
    return out


def _haematoxylin_weights() -> np.ndarray:
    normal = np.cross(_HAEMATOXYLIN, _EOSIN)
    stains = np.stack([v / np.linalg.norm(v) for v in (_HAEMATOXYLIN, _EOSIN, normal)], axis=1)
    return np.linalg.inv(stains)[0] * np.array(NOMINAL_OD)


def hematoxylin(od: np.ndarray) -> np.ndarray:
    """Amount of haematoxylin by colour deconvolution.

    Parameters
    ----------
    od
        (3, ...) float32 scaled optical density from :func:`to_od`.

    Returns
    -------
    numpy.ndarray
        (...) float32, linear in ``od``; glass is 0, pure eosin is about 0, dense nuclei are about 1 to 2.

    References
    ----------
    Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution,
    Anal Quant Cytol Histol 23 (2001) 291-299, PMID 11531144.
    """
    od = np.asarray(od)
    if od.ndim < 1 or od.shape[0] != 3:
        raise ValueError(f"od: expected three channels on axis 0, got shape {od.shape}")
    weights = _haematoxylin_weights().astype(np.float32)
    return od[0] * weights[0] + od[1] * weights[1] + od[2] * weights[2]


def _lattice(height: int, width: int, n: int) -> tuple[int, int]:
    rows = int(np.clip(round(np.sqrt(n * height / width)), 1, n))
    return rows, max(1, n // rows)


def _kept(window: Window, excluded: np.ndarray, step: int) -> np.ndarray:
    """Mask of the sampled pixels of a window that lie in no excluded box."""
    y = np.arange(window.y0, window.y1, step)[:, None]
    x = np.arange(window.x0, window.x1, step)[None, :]
    keep = np.ones((y.size, x.size), dtype=bool)
    for y0, x0, y1, x1 in excluded:
        # a pixel that the box touches at all counts as inside it
        keep &= ~((y + 1 > y0) & (y < y1) & (x + 1 > x0) & (x < x1))
    return keep


def sample_pixels(
    source: ArraySource,
    *,
    max_pixels: int = 200_000,
    windows: int = 256,
    excluded: np.ndarray | None = None,
) -> np.ndarray:
    """Pixels from small windows on a fixed lattice over a slide.

    Parameters
    ----------
    source
        (3, y, x) uint8 image.
    max_pixels
        At most so many pixels come back.
    windows
        About so many windows are read, at most 128 px wide each, so memory does not grow with the slide.
    excluded
        (k, 4) rows (y0, x0, y1, x1) in px of ``source``; pixels that touch them are not used.

    Returns
    -------
    numpy.ndarray
        (n, 3) uint8, the same for the same input.

    Raises
    ------
    ValueError
        ``source`` is not an RGB image, or ``excluded`` leaves no pixel.
    """
    if len(source.shape) != 3 or source.shape[0] != 3 or np.dtype(source.dtype) != np.uint8:
        raise ValueError(f"source: expected a (3, y, x) uint8 image, got shape {source.shape}, dtype {source.dtype}")
    if max_pixels < 1 or windows < 1:
        raise ValueError(f"max_pixels and windows: expected 1 or more, got {max_pixels} and {windows}")
    boxes = np.zeros((0, 4)) if excluded is None else np.asarray(excluded, dtype=np.float64).reshape(-1, 4)
    height, width = source.shape[-2:]
    rows, columns = _lattice(height, width, min(windows, max_pixels))
    edge_y, edge_x = np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1)
    side = int(np.clip(min(height / rows, width / columns), 1, 128))
    step = max(1, int(np.ceil(side / np.sqrt(max_pixels / (rows * columns)))))
    parts = []
    for centre_y in (edge_y[:-1] + edge_y[1:]) / 2:
        for centre_x in (edge_x[:-1] + edge_x[1:]) / 2:
            y0, x0 = int(centre_y - side / 2), int(centre_x - side / 2)
            window = Window(y0, x0, y0 + side, x0 + side).clip(height, width)
            keep = _kept(window, boxes, step)
            if keep.any():
                parts.append(source.read(window)[:, ::step, ::step][:, keep].T)
    if not parts:
        raise ValueError(f"excluded: the {len(boxes)} boxes leave no pixel of an image of {height} x {width} px")
    pixels = np.concatenate(parts)
    # rounding the step up keeps the count below max_pixels but for slivers at the edges
    return np.ascontiguousarray(pixels[:: -(-len(pixels) // max_pixels)])


def _to_uint8(array: np.ndarray, white: float | None, name: str) -> np.ndarray:
    if array.dtype == np.uint8 and white is None:
        return array
    if array.dtype.kind not in "uif":
        raise ValueError(f"{name}: expected numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        n_bad = int(array.size - np.isfinite(array).sum())
        raise ValueError(f"{name}: {n_bad} of {array.size} values are NaN or infinite; fill them before (white = 1.0)")
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if white is None:
        white = {"f": 1.0, "u": 65535.0 if array.dtype == np.uint16 else 255.0, "i": 255.0}[array.dtype.kind]
        if array.dtype == np.uint16 and 0 < highest <= 255:
            raise ValueError(
                f"{name}: uint16 with a maximum of {highest:.0f} looks like 8-bit values; pass white=255, "
                "or white=65535 when it really is that dark"
            )
    if lowest < 0 or highest > white:
        raise ValueError(
            f"{name}: dtype {array.dtype} is read as 0 = black to {white:g} = white, "
            f"got values from {lowest:g} to {highest:g}; pass white="
        )
    return np.rint(array * (255.0 / white)).astype(np.uint8)


def as_rgb_uint8(
    array: np.ndarray, *, channel_axis: int = 0, white: float | None = None, name: str = "image"
) -> np.ndarray:
    """An image of any common kind as RGB uint8.

    Parameters
    ----------
    array
        (y, x) grey, or 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels on ``channel_axis``.
    channel_axis
        0 for (c, y, x), -1 for (y, x, c).
    white
        Value of white. Default: 65535 for uint16, 1.0 for floats, 255 for all other integers. The rule
        never looks at the range of the data, so that windows of one slide agree; values outside
        [0, white] are an error.
    name
        How errors call the array.

    Returns
    -------
    numpy.ndarray
        (3, y, x) uint8. Alpha is composited over white, grey is repeated.

    Raises
    ------
    ValueError
        NaN or infinite values, values outside the range, another number of channels, bool or complex.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.imaging.stain import as_rgb_uint8
    >>> as_rgb_uint8(np.full((4, 4), 65535, np.uint16)).shape
    (3, 4, 4)
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3:
        array = np.moveaxis(array, channel_axis, 0)
    else:
        raise ValueError(f"{name}: expected (y, x) or three axes with channels on {channel_axis}, got {array.shape}")
    channels = array.shape[0]
    if channels not in (1, 2, 3, 4):
        raise ValueError(
            f"{name}: expected 1 to 4 channels (grey, grey + alpha, RGB, RGBA), got {channels} in shape {array.shape}"
        )
    array = _to_uint8(array, white, name)
    if channels in (2, 4):
        alpha = array[-1:].astype(np.float32) / 255.0
        array = np.rint(array[:-1] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    if array.shape[0] == 1:
        array = np.repeat(array, 3, axis=0)
    return np.ascontiguousarray(array)
