"""Stain normalisation: what two stains look like on a slide, and the way from one look to another.

A slide is described once, by pixels of its tissue; the way to the look of a reference is then a fixed
function of a pixel's colour, so that windows, tiles and levels of a slide agree.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

METHODS = ("macenko", "reinhard")

# Mean OD of tissue worth fitting, and the percentile of the angles that stands for a pure stain (Macenko 2009).
_MIN_OD = 0.15
_ANGLE_PERCENTILE = 1.0
_MIN_PIXELS = 500
# Red over green of ink; of haematoxylin on a bluish scan 1.4 at most.
_INK = 1.5
# Stain vectors of Ruifrok & Johnston 2001; fitted ones further off than this are no haematoxylin and eosin.
_HAEMATOXYLIN, _EOSIN = np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105])
_MAX_ANGLE, _MIN_BETWEEN = 45.0, 5.0

# Ruderman, Cronin & Chiao 1998: RGB -> LMS -> log -> l, alpha, beta.
_RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LOG_TO_LAB = np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3.0], [6], [2]])

# Mean OD between which Reinhard's transfer fades in: glass stays glass, without a seam.
_FADE = (0.02, 0.15)


@dataclass(frozen=True)
class StainReference:
    """The look of the H&E of one slide.

    Parameters
    ----------
    background
        Value of empty glass in R, G, B, 0-255 scale.
    hematoxylin, eosin
        Unit vectors of optical density in R, G, B (Macenko).
    max_concentration
        99th percentile of the amounts of haematoxylin and eosin on tissue (Macenko).
    lab_mean, lab_std
        Mean and standard deviation of l, alpha, beta on tissue (Reinhard), after the background was divided out.

    Examples
    --------
    >>> from ghistpy.imaging.normalize import DEFAULT_REFERENCE, StainReference
    >>> StainReference.from_dict(DEFAULT_REFERENCE.to_dict()) == DEFAULT_REFERENCE
    True
    """

    background: tuple[float, float, float]
    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    max_concentration: tuple[float, float]
    lab_mean: tuple[float, float, float]
    lab_std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = np.asarray(getattr(self, field.name), dtype=np.float64)
            size = 2 if field.name == "max_concentration" else 3
            positive = field.name in ("background", "max_concentration", "lab_std")
            if value.shape != (size,) or not np.isfinite(value).all() or (positive and (value <= 0).any()):
                raise ValueError(
                    f"{field.name}: expected {size} finite numbers{' above 0' if positive else ''}, "
                    f"got {getattr(self, field.name)!r}"
                )
            object.__setattr__(self, field.name, tuple(float(v) for v in value))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON."""
        return {field.name: list(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> StainReference:
        """The inverse of :meth:`to_dict`."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"values: expected the keys {sorted(names)}, got {sorted(values)}")
        return cls(**{name: tuple(values[name]) for name in names})


# Medians over the 15 public H&E images that ghistpy is tested on, rounded; glass made grey.
DEFAULT_REFERENCE = StainReference(
    background=(241.0, 241.0, 241.0),
    hematoxylin=(0.619, 0.708, 0.340),
    eosin=(0.152, 0.830, 0.537),
    max_concentration=(2.75, 1.10),
    lab_mean=(8.52, -0.15, 0.04),
    lab_std=(0.67, 0.14, 0.02),
)


def density(rgb: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Optical density of (n, 3) uint8 pixels, (n, 3) float64; glass is 0."""
    return -np.log((np.asarray(rgb, dtype=np.float64) + 1.0) / (np.asarray(background) + 1.0))


def macenko_vectors(od: np.ndarray, *, percentile: float = _ANGLE_PERCENTILE) -> np.ndarray:
    """Haematoxylin and eosin from the optical density of tissue.

    Parameters
    ----------
    od
        (n, 3) optical density of stained pixels in R, G, B.
    percentile
        Of the angles in the plane of the two largest singular vectors; both ends are the stains.

    Returns
    -------
    numpy.ndarray
        (2, 3) unit vectors; the first, haematoxylin, is the one that absorbs more red.

    References
    ----------
    Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
    doi:10.1109/ISBI.2009.5193250.
    """
    # the plane through no light absorbed: right singular vectors, by the 3 x 3 matrix of products
    _, vectors = np.linalg.eigh(od.T @ od)
    plane = vectors[:, :0:-1]
    # the sign of a singular vector is arbitrary: into the data, so that angles do not wrap around
    plane = plane * np.where(od.mean(axis=0) @ plane < 0, -1.0, 1.0)
    along = od @ plane
    low, high = np.percentile(np.arctan2(along[:, 1], along[:, 0]), [percentile, 100 - percentile])
    stains = np.array([[np.cos(low), np.sin(low)], [np.cos(high), np.sin(high)]]) @ plane.T
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return stains[np.argsort(-stains[:, 0])]


def _degrees(first: np.ndarray, second: np.ndarray) -> float:
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _check_stains(stains: np.ndarray, name: str) -> None:
    off = _degrees(stains[0], _HAEMATOXYLIN), _degrees(stains[1], _EOSIN)
    between = _degrees(*stains)
    if max(off) > _MAX_ANGLE or between < _MIN_BETWEEN:
        raise ValueError(
            f"{name}: the two stains found, {np.round(stains, 2).tolist()} in R, G, B, are no haematoxylin and eosin "
            f"({off[0]:.0f} and {off[1]:.0f} degrees off, {between:.0f} degrees apart); is this an H&E slide, and free "
            "of pen marks?"
        )


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """l, alpha, beta of Ruderman et al. of (n, 3) values of 0 to 255, float64."""
    return np.log(np.maximum(np.asarray(rgb, dtype=np.float64) @ _RGB_TO_LMS.T, 0) + 1.0) @ _LOG_TO_LAB.T


def fit_reference(pixels: np.ndarray, background: np.ndarray, name: str = "pixels") -> StainReference | None:
    """The look of a slide from pixels of its tissue.

    Parameters
    ----------
    pixels
        (n, 3) uint8 pixels of tissue; those as pale as glass are left out.
    background
        (3,) value of glass.
    name
        How errors call the slide.

    Returns
    -------
    StainReference or None
        None when fewer than 500 pixels are stained: there is no tissue.

    Raises
    ------
    ValueError
        The pixels do not show haematoxylin and eosin.
    """
    background = np.asarray(background, dtype=np.float64)
    od = density(pixels, background)
    # flecks of blue and green ink at the margin of a section would be its haematoxylin
    stained = (od.mean(axis=1) > _MIN_OD) & (od[:, 0] < _INK * np.maximum(od[:, 1], 0.02))
    if stained.sum() < _MIN_PIXELS:
        return None
    od, pixels = od[stained], np.asarray(pixels)[stained]
    stains = macenko_vectors(od)
    _check_stains(stains, name)
    amounts = od @ np.linalg.pinv(stains)
    lab = to_lab(np.clip((pixels + 1.0) / (background + 1.0) * 256.0 - 1.0, 0, 255))
    return StainReference(
        background=tuple(background),
        hematoxylin=tuple(stains[0]),
        eosin=tuple(stains[1]),
        max_concentration=tuple(np.maximum(np.percentile(amounts, 99, axis=0), 1e-2)),
        lab_mean=tuple(lab.mean(axis=0)),
        lab_std=tuple(np.maximum(lab.std(axis=0), 1e-3)),
    )


def _times(matrix: np.ndarray, channels: list[np.ndarray]) -> list[np.ndarray]:
    """Product of a (3, 3) matrix with three images, summed in one order whatever the shape."""
    weights = matrix.astype(np.float32)
    return [w[0] * channels[0] + w[1] * channels[1] + w[2] * channels[2] for w in weights]


@dataclass(frozen=True)
class StainTransform:
    """The colours of one slide as those of a reference: a function of single pixels.

    ``source`` None (a slide without tissue) changes the value of glass only.
    """

    source: StainReference | None
    target: StainReference
    background: tuple[float, float, float]
    method: str = "macenko"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: expected one of {METHODS}")

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(3, h, w) uint8 to (3, h, w) uint8."""
        rgb = np.asarray(rgb)
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"rgb: expected (3, h, w) uint8, got shape {rgb.shape}, dtype {rgb.dtype}")
        value = np.arange(256)
        tables = density(np.repeat(value[:, None], 3, axis=1), np.asarray(self.background)).astype(np.float32)
        od = [tables[:, c][rgb[c]] for c in range(3)]
        if self.source is None:
            return self._from_density(od)
        return self._from_density(self._macenko(od)) if self.method == "macenko" else self._reinhard(od)

    def _macenko(self, od: list[np.ndarray]) -> list[np.ndarray]:
        """Amounts of the two stains, scaled, in the colours of the reference."""
        stains = np.array([self.source.hematoxylin, self.source.eosin])
        scale = np.array(self.target.max_concentration) / np.array(self.source.max_concentration)
        wanted = np.array([self.target.hematoxylin, self.target.eosin])
        return _times((np.linalg.pinv(stains) * scale @ wanted).T, od)

    def _reinhard(self, od: list[np.ndarray]) -> np.ndarray:
        """Mean and spread of l, alpha, beta of the reference; glass keeps its own colour."""
        scale = np.array(self.target.lab_std) / np.array(self.source.lab_std)
        to_log = np.linalg.inv(_LOG_TO_LAB)
        matrix = to_log @ np.diag(scale) @ _LOG_TO_LAB
        shift = to_log @ (np.array(self.target.lab_mean) - scale * np.array(self.source.lab_mean))
        balanced = [np.clip(256.0 * np.exp(-channel) - 1.0, 0, 255) for channel in od]
        log_lms = [np.log(np.maximum(channel, 0) + np.float32(1)) for channel in _times(_RGB_TO_LMS, balanced)]
        moved = [channel + np.float32(s) for channel, s in zip(_times(matrix, log_lms), shift, strict=True)]
        # 20 is far above the logarithm of any colour: it keeps the exponential finite
        colours = _times(np.linalg.inv(_RGB_TO_LMS), [np.exp(np.minimum(c, 20)) - 1 for c in moved])
        mean = (od[0] + od[1] + od[2]) / np.float32(3)
        weight = np.clip((mean - np.float32(_FADE[0])) / np.float32(_FADE[1] - _FADE[0]), 0, 1)
        out = []
        for colour, before, glass in zip(colours, balanced, self.target.background, strict=True):
            mixed = weight * np.clip(colour, 0, 255) + (1 - weight) * before
            out.append((mixed + 1) * np.float32((glass + 1) / 256) - 1)
        return _to_uint8(out)

    def _from_density(self, od: list[np.ndarray]) -> np.ndarray:
        glass = np.asarray(self.target.background, dtype=np.float32)
        # beyond 20 all is black
        return _to_uint8([(g + 1) * np.exp(-np.clip(c, -20, 20)) - 1 for c, g in zip(od, glass, strict=True)])


def _to_uint8(channels: list[np.ndarray]) -> np.ndarray:
    return np.rint(np.clip(np.stack(channels), 0, 255)).astype(np.uint8)
