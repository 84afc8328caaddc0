"""Labels and H&E pixels of a simulated slide, computed for all nuclei at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ghistpy.datasets._layout import STEP, Cells, Tissue, smooth_noise

_BATCH = 1024  # nuclei rasterised at once


@dataclass(frozen=True)
class Stain:
    """Optical density of haematoxylin and eosin at unit concentration, (3,) each, and the colour of glass."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    background: np.ndarray


_STAINS = {
    None: Stain(np.array([0.88, 1.02, 0.50]), np.array([0.16, 0.86, 0.36]), np.array([246.0, 243.0, 247.0])),
    "pale": Stain(np.array([0.58, 0.62, 0.28]), np.array([0.07, 0.52, 0.20]), np.array([243.0, 241.0, 238.0])),
    "purple": Stain(np.array([0.86, 1.16, 0.42]), np.array([0.32, 0.98, 0.30]), np.array([248.0, 244.0, 250.0])),
}


def resolve_stain(stain: object) -> Stain:
    """The stain of that name, or of a mapping or array of optical densities.

    Raises
    ------
    ValueError
        An unknown name, or something that is not optical densities.
    """
    if stain is None or isinstance(stain, str):
        if stain not in _STAINS:
            raise ValueError(f"stain={stain!r}: expected None, 'pale', 'purple', a mapping or a (2, 3) array")
        return _STAINS[stain]
    default = _STAINS[None]
    if isinstance(stain, dict):
        unknown = set(stain) - {"haematoxylin", "eosin", "background"}
        if unknown:
            raise ValueError(f"stain: unknown keys {sorted(unknown)}; expected haematoxylin, eosin, background")
        parts = [np.asarray(stain.get(k, getattr(default, k)), float) for k in ("haematoxylin", "eosin", "background")]
    else:
        vectors = np.asarray(stain, dtype=float)
        if vectors.shape != (2, 3):
            raise ValueError(f"stain: expected a (2, 3) array of optical densities (H, E by RGB), got {vectors.shape}")
        parts = [vectors[0], vectors[1], default.background]
    if any(p.shape != (3,) or not np.isfinite(p).all() or (p < 0).any() for p in parts):
        raise ValueError("stain: haematoxylin, eosin and background need three finite values of 0 and above each")
    return Stain(*parts)


@dataclass(frozen=True)
class Nuclei:
    """labels (y, x) int32; radius (y, x) float32: 0 at the centre of a nucleus, 1 at its rim, 2 outside.

    centroid_px (n, 2) x, y of the pixels, and their number (n,).
    """

    labels: np.ndarray
    radius: np.ndarray
    centroid_px: np.ndarray
    area_px: np.ndarray


def _ellipses(
    cells: Cells, part: np.ndarray, centre: np.ndarray, half: int, mpp: float, wobble: np.ndarray, phase: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Owner, row, column and radius of the pixels in and just around the nuclei ``part``."""
    offset = np.arange(-half, half + 1, dtype=np.int32)
    dy, dx = (a.ravel() for a in np.meshgrid(offset, offset, indexing="ij"))
    column, row = centre[part, 0, None] + dx, centre[part, 1, None] + dy
    x = (column + np.float32(0.5)) * np.float32(mpp) - cells.xy[part, 0, None].astype(np.float32)
    y = (row + np.float32(0.5)) * np.float32(mpp) - cells.xy[part, 1, None].astype(np.float32)
    cos, sin = (f(cells.angle[part, None]).astype(np.float32) for f in (np.cos, np.sin))
    u = (x * cos + y * sin) / cells.axes[part, 0, None].astype(np.float32)
    v = (y * cos - x * sin) / cells.axes[part, 1, None].astype(np.float32)
    r = np.sqrt(u * u + v * v)
    k, p = np.nonzero(r < 1.2)
    at = part[k]
    around = np.arctan2(v[k, p], u[k, p])
    bump = wobble[at, 0] * np.cos(2 * around + phase[at, 0]) + wobble[at, 1] * np.cos(3 * around + phase[at, 1])
    return at, row[k, p], column[k, p], (r[k, p] / (1 + bump)).astype(np.float32)


def draw_nuclei(rng: np.random.Generator, cells: Cells, size_px: int, mpp: float) -> Nuclei:
    """Rasterise all nuclei: slightly irregular ellipses; a contested pixel goes to the nearer one."""
    n = len(cells.xy)
    wobble, phase = rng.uniform(0.02, 0.07, (n, 2)), rng.uniform(0, 2 * np.pi, (n, 2))
    centre = np.floor(cells.xy / mpp).astype(np.int32)
    # nuclei of like length share the size of their windows
    by_length = np.argsort(cells.axes[:, 0])
    where, radius, owner = [], [], []
    start = 0
    while start < n:
        longest = cells.axes[by_length[min(start + _BATCH, n) - 1], 0]
        part = by_length[start : start + _BATCH]
        start += len(part)
        at, row, column, r = _ellipses(cells, part, centre, int(np.ceil(1.15 * longest / mpp)) + 1, mpp, wobble, phase)
        inside = (r < 1) & (row >= 0) & (row < size_px) & (column >= 0) & (column < size_px)
        where.append((row * np.int64(size_px) + column)[inside])
        radius.append(r[inside])
        owner.append(at[inside])
    where, radius, owner = np.concatenate(where), np.concatenate(radius), np.concatenate(owner)
    order = np.argsort(-radius, kind="stable")  # the smallest radius is written last
    labels, field = np.zeros(size_px**2, np.int32), np.full(size_px**2, 2.0, np.float32)
    labels[where[order]] = owner[order] + 1
    field[where[order]] = radius[order]
    taken = np.flatnonzero(labels)
    index = labels[taken] - 1
    area = np.bincount(index, minlength=n)
    total = np.stack([np.bincount(index, taken % size_px, n), np.bincount(index, taken // size_px, n)], axis=1)
    centroid = total / np.maximum(area, 1)[:, None] + 0.5
    shape = (size_px, size_px)
    return Nuclei(labels.reshape(shape), field.reshape(shape), centroid, area)


def _upsample(field: np.ndarray, size_px: int, px_per_sample: float) -> np.ndarray:
    """Linear interpolation of a coarse map to (size_px, size_px)."""
    at = (np.arange(size_px) + 0.5) / px_per_sample - 0.5
    for axis in range(2):
        limit = field.shape[axis] - 1
        low = np.clip(np.floor(at).astype(int), 0, limit)
        weight = np.clip(at - low, 0, 1).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        below = np.take(field, low, axis=axis)
        field = below + weight * (np.take(field, np.minimum(low + 1, limit), axis=axis) - below)
    return field


def _fibres(rng: np.random.Generator, angle: np.ndarray) -> np.ndarray:
    """Texture of unit variance, drawn out along ``angle`` (same shape): a blend of oriented noises."""
    n_angles, shape = 8, angle.shape
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    out = np.zeros(shape, np.float32)
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    for k in range(n_angles):
        theta = np.pi * k / n_angles
        along, across = fx * np.cos(theta) + fy * np.sin(theta), fy * np.cos(theta) - fx * np.sin(theta)
        # 10 samples long, 1.1 thick
        kernel = np.exp(-2 * np.pi**2 * ((10 * along) ** 2 + (1.1 * across) ** 2))
        layer = np.fft.irfft2(spectrum * kernel, shape)
        weight = np.maximum(0, np.cos(2 * (angle - theta))) ** 6
        out += (weight * layer / layer.std()).astype(np.float32)
    return out / max(float(out.std()), 1e-6)


def _ground(
    rng: np.random.Generator, tissue: Tissue, nuclei: Nuclei, size_px: int, mpp: float
) -> tuple[np.ndarray, np.ndarray]:
    """Concentration of haematoxylin and eosin outside the nuclei: collagen, cytoplasm, lumen, clefts."""
    factor = max(1, round(1.0 / mpp))
    coarse_um = factor * mpp
    n = -(-size_px // factor)
    scale = STEP / coarse_um
    member = [
        _upsample(ndimage.gaussian_filter((tissue.niche == k).astype(np.float32), 0.8), n, scale) for k in range(3)
    ]
    twice = [_upsample(f(2 * tissue.angle).astype(np.float32), n, scale) for f in (np.cos, np.sin)]
    fibre = _fibres(rng, 0.5 * np.arctan2(twice[1], twice[0]))
    grain = smooth_noise(rng, (n, n), 1.2 / coarse_um)
    cloud = smooth_noise(rng, (n, n), 5 / coarse_um)
    distance = ndimage.distance_transform_edt(nuclei.labels[::factor, ::factor] == 0).astype(np.float32) * coarse_um
    distance = distance[:n, :n]
    eosin = (
        member[0] * (0.54 + 0.10 * cloud - 0.14 * np.clip((distance - 3.0) / 5, 0, 1))
        + member[1] * (0.58 + 0.24 * fibre + 0.12 * cloud)
        + member[2] * (0.40 + 0.10 * cloud - 0.45 * np.clip((distance - 1.0) / 2.0, 0, 1))
    )
    haematoxylin = (
        member[0] * (0.16 + 0.03 * cloud)
        + member[1] * (0.07 + 0.02 * fibre)
        + member[2] * (0.26 - 0.28 * np.clip((distance - 1.0) / 2.0, 0, 1))
    )
    eosin, haematoxylin = eosin + 0.07 * grain, haematoxylin + 0.03 * grain
    # lumina and clefts keep away from nuclei, so that no nucleus floats in glass
    lumen = _upsample(tissue.lumen, n, scale) + 0.25 * cloud
    cleft = 0.9 - 9 * np.abs(member[0] - 0.45) + 0.9 * cloud
    fissure = member[1] * (1.3 * -fibre - 2.6 + 0.6 * cloud)
    empty = np.maximum.reduce([3.0 * (lumen - 1.75), 2.0 * cleft - 1.3, 1.5 * fissure])
    empty = np.minimum(empty, (distance - 2.0) * 0.8)
    keep = 1 / (1 + np.exp(np.clip(5 * empty, -30, 30)))
    keep = 0.02 + 0.98 * keep
    return tuple(
        _upsample((np.maximum(field, 0.02) * keep).astype(np.float32), size_px, factor)
        for field in (haematoxylin, eosin)
    )


def _standardise(values: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """Mean 0 and variance 1 within each nucleus: its chromatin and contrast are then exactly what is seen."""
    count = np.maximum(np.bincount(index, minlength=n), 1)
    centred = values - (np.bincount(index, values, n) / count)[index]
    sd = np.sqrt(np.bincount(index, centred**2, n) / count)
    return centred / np.maximum(sd, 1e-6)[index]


def paint(
    rng: np.random.Generator, tissue: Tissue, cells: Cells, nuclei: Nuclei, stain: Stain, mpp: float
) -> np.ndarray:
    """The H&E image, (3, y, x) uint8."""
    size_px = nuclei.labels.shape[0]
    haematoxylin, eosin = _ground(rng, tissue, nuclei, size_px, mpp)
    at = np.flatnonzero(nuclei.labels)
    index = nuclei.labels.ravel()[at] - 1
    chromatin, contrast = np.exp(cells.log_features[:, 2])[index], np.exp(cells.log_features[:, 3])[index]
    shape = (size_px, size_px)
    white = rng.standard_normal(shape, dtype=np.float32)
    # granules between 0.4 and 1.1 µm and a dark rim
    granule = ndimage.gaussian_filter(white, 0.4 / mpp) - ndimage.gaussian_filter(white, 1.1 / mpp)
    pattern = 0.8 * granule.ravel()[at] / max(float(granule.std()), 1e-6) + 0.9 * nuclei.radius.ravel()[at] ** 4
    pattern = _standardise(pattern, index, len(cells.xy))
    haematoxylin.ravel()[at] = chromatin * np.maximum(0.1, 1 + contrast * pattern)
    eosin.ravel()[at] = 0.12 + 0.35 * eosin.ravel()[at]
    thickness = np.exp(0.03 * _upsample(smooth_noise(rng, tissue.niche.shape, 30 / STEP), size_px, STEP / mpp))
    out = np.empty((3, *shape), np.uint8)
    for channel in range(3):
        # plain floats keep the arrays in single precision
        h, e, glass = (float(v[channel]) for v in (stain.haematoxylin, stain.eosin, stain.background))
        colour = ndimage.gaussian_filter(glass * np.exp(-thickness * (h * haematoxylin + e * eosin)), 0.33 / mpp)
        colour += 2.0 * rng.standard_normal(shape, dtype=np.float32)
        out[channel] = np.clip(np.rint(colour), 0, 255)
    return out
