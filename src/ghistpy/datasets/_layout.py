"""Where the nuclei of a simulated slide lie: niches, positions without overlap, orientation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ghistpy.datasets import _biology as biology

STEP = 4.0  # µm per pixel of the maps below


@dataclass(frozen=True)
class Tissue:
    """Maps at STEP µm: niche (index), angle of the fibres (radians) and lumen (larger = emptier)."""

    niche: np.ndarray
    angle: np.ndarray
    lumen: np.ndarray


@dataclass(frozen=True)
class Cells:
    """xy (n, 2) µm; log_features (n, 4); cell_type, niche (n,) indices; angle (n,) radians; axes (n, 2) µm."""

    xy: np.ndarray
    log_features: np.ndarray
    cell_type: np.ndarray
    niche: np.ndarray
    angle: np.ndarray
    axes: np.ndarray


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Gaussian random field of unit variance with correlation length ``sigma`` px."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="reflect")
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def grow_tissue(rng: np.random.Generator, size_um: float, proportions: np.ndarray) -> Tissue:
    """Tumour nests, lymphoid aggregates and stroma, with areas that fit the type proportions."""
    shape = (max(2, int(np.ceil(size_um / STEP))),) * 2
    _, share = biology.type_given_niche(proportions)
    area = share * biology.SPACE_PER_CELL
    area = area / area.sum()
    nest, aggregate = smooth_noise(rng, shape, 42 / STEP), smooth_noise(rng, shape, 34 / STEP)
    nest += 0.25 * smooth_noise(rng, shape, 12 / STEP)
    niche = np.full(shape, 1)
    in_aggregate = aggregate >= np.quantile(aggregate, 1 - area[2])
    rest = nest[~in_aggregate]
    in_nest = nest >= np.quantile(rest, max(0.0, 1 - area[0] / max(1 - area[2], 1e-6)))
    niche[in_nest], niche[in_aggregate] = 0, 2
    angle = 0.5 * np.arctan2(smooth_noise(rng, shape, 60 / STEP), smooth_noise(rng, shape, 60 / STEP))
    lumen = smooth_noise(rng, shape, 11 / STEP) - 1.5 * (niche == 2)
    return Tissue(niche, angle, lumen)


def _at(field: np.ndarray, xy: np.ndarray) -> np.ndarray:
    row = np.clip((xy[:, 1] / STEP).astype(int), 0, field.shape[0] - 1)
    column = np.clip((xy[:, 0] / STEP).astype(int), 0, field.shape[1] - 1)
    return field[row, column]


def _relax(xy: np.ndarray, reach: float, needed, size_um: float, margin: np.ndarray, n_steps: int) -> np.ndarray:
    """Push pairs apart until every pair has the distance that ``needed(i, j, unit)`` asks for."""
    low, high = margin[:, None], size_um - margin[:, None]
    for step in range(n_steps):
        if step % 4 == 0:
            pairs = cKDTree(xy).query_pairs(reach, output_type="ndarray")
        i, j = pairs[:, 0], pairs[:, 1]
        delta = xy[j] - xy[i]
        distance = np.maximum(np.hypot(delta[:, 0], delta[:, 1]), 1e-6)
        unit = delta / distance[:, None]
        lack = needed(i, j, unit) - distance
        close = lack > 0
        if not (lack > 0.05).any() and step % 4 == 0:
            break
        push = 0.5 * lack[close, None] * unit[close]
        move = np.zeros_like(xy)
        for axis in range(2):
            move[:, axis] = np.bincount(j[close], push[:, axis], len(xy)) - np.bincount(
                i[close], push[:, axis], len(xy)
            )
        # neighbours push from all sides at once: damping keeps the dense parts from ringing
        length = np.maximum(np.hypot(move[:, 0], move[:, 1]), 1e-6)[:, None]
        xy = np.clip(xy + 0.6 * move * np.minimum(1.0, 2.5 / length), low, high)
    return xy


def _interleave(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Morton code: the position on the Z-order curve."""
    code = np.zeros(row.shape, np.int64)
    for bit in range(16):
        code |= ((row >> bit) & 1) << (2 * bit + 1) | ((column >> bit) & 1) << (2 * bit)
    return code


def _scatter(rng: np.random.Generator, tissue: Tissue, n_cells: int, size_um: float) -> np.ndarray:
    """Positions (n, 2) whose density follows the niches and which keep their distance, as cells do."""
    weight = 1.0 / biology.SPACE_PER_CELL[tissue.niche] * (tissue.lumen < 1.9)
    # systematic sampling along a curve that fills the plane: far more even than independent draws
    row, column = (a.ravel() for a in np.indices(weight.shape))
    curve = np.argsort(_interleave(row, column))
    share = np.cumsum(weight.ravel()[curve])
    draw = (np.arange(n_cells) + rng.random(n_cells)) / n_cells * share[-1]
    cells = curve[np.minimum(np.searchsorted(share, draw, side="right"), len(curve) - 1)]
    row, column = row[cells], column[cells]
    xy = (np.stack([column, row], axis=1) + rng.random((n_cells, 2))) * STEP
    xy = np.clip(xy, 0, size_um)
    crowd = size_um**2 / n_cells / (1 / weight.mean())
    spacing = 0.82 * np.sqrt(biology.SPACE_PER_CELL[_at(tissue.niche, xy)] * crowd)
    margin = np.full(n_cells, min(4.0, size_um / 4))

    def needed(i: np.ndarray, j: np.ndarray, unit: np.ndarray) -> np.ndarray:
        return 0.5 * (spacing[i] + spacing[j])

    return _relax(xy, float(spacing.max()), needed, size_um, margin, 40)


def place_cells(
    rng: np.random.Generator, tissue: Tissue, n_cells: int, size_um: float, proportions: np.ndarray
) -> Cells:
    """Cells with a type drawn from their niche, an appearance drawn from their type, and no overlap."""
    xy = _scatter(rng, tissue, n_cells, size_um)
    niche = _at(tissue.niche, xy)
    prior, _ = biology.type_given_niche(proportions)
    cumulative = np.cumsum(prior, axis=1)[niche]
    # the last positive type takes what rounding leaves, so that a type of proportion 0 never occurs
    last = int(np.flatnonzero(proportions)[-1])
    cell_type = np.minimum((rng.random(n_cells)[:, None] > cumulative).sum(axis=1), last)
    log_features = biology.FEATURE_MEAN[cell_type] + biology.FEATURE_SD[cell_type] * rng.standard_normal(
        (n_cells, len(biology.FEATURES))
    )
    area, elongation = np.exp(log_features[:, 0]), np.exp(log_features[:, 1])
    minor = np.sqrt(area / np.pi * np.exp(-elongation))
    axes = np.stack([minor * np.exp(elongation), minor], axis=1)
    # fibres align what is long, in every niche alike: alignment says nothing beyond elongation and niche
    angle = _at(tissue.angle, xy) + rng.normal(0, 0.2 + 0.9 * np.exp(-1.5 * elongation), n_cells)

    def reach(index: np.ndarray, unit: np.ndarray) -> np.ndarray:
        along = np.cos(angle[index]) * unit[:, 0] + np.sin(angle[index]) * unit[:, 1]
        return np.sqrt((axes[index, 0] * along) ** 2 + axes[index, 1] ** 2 * np.maximum(0, 1 - along**2))

    def needed(i: np.ndarray, j: np.ndarray, unit: np.ndarray) -> np.ndarray:
        return reach(i, unit) + reach(j, unit) + 0.5

    margin = np.minimum(axes[:, 0] * 1.1 + 0.5, size_um / 2)
    far = 2 * float(np.quantile(axes[:, 0], 0.99)) + 0.5
    xy = _relax(np.clip(xy, margin[:, None], size_um - margin[:, None]), far, needed, size_um, margin, 60)
    return Cells(xy, log_features, cell_type, niche, angle, axes)


def count_neighbours(xy: np.ndarray) -> np.ndarray:
    """Nuclei within CROWDING_RADIUS of each nucleus, itself left out."""
    tree = cKDTree(xy)
    return tree.query_ball_point(xy, biology.CROWDING_RADIUS, return_length=True) - 1
