"""Synthetic H&E with known nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

GLASS = np.array([240.0, 237.0, 241.0])
HAEMATOXYLIN = np.array([1.2, 1.4, 0.6])  # OD of a nucleus in R, G, B
EOSIN = np.array([0.12, 0.75, 0.3])


@dataclass
class Drawn:
    """rgb (3, h, w) uint8, truth (h, w) int32 and µm/px."""

    rgb: np.ndarray
    truth: np.ndarray
    mpp: float


def draw(centres_um, axes_um, size_um, mpp, *, angles=None, darkness=None, seed=0) -> Drawn:
    """Ellipses of haematoxylin on noisy eosin."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    n_px = round(size_um / mpp)
    y, x = (np.mgrid[:n_px, :n_px] + 0.5) * mpp
    truth = np.zeros((n_px, n_px), dtype=np.int32)
    angles = np.zeros(len(centres_um)) if angles is None else angles
    for i, ((cy, cx), (a, b), angle) in enumerate(zip(centres_um, axes_um, angles, strict=True)):
        u = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
        v = (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
        truth[((u / a) ** 2 + (v / b) ** 2 <= 1) & (truth == 0)] = i + 1
    darkness = np.ones(len(centres_um)) if darkness is None else darkness
    amount = gaussian_filter(np.append(0.0, darkness)[truth], 0.25 / mpp)
    grain = gaussian_filter(rng.normal(size=truth.shape), 1.0 / mpp)
    eosin = 0.8 + 0.15 * grain / grain.std()
    od = HAEMATOXYLIN[:, None, None] * amount + EOSIN[:, None, None] * eosin * (1 - 0.7 * amount)
    rgb = (GLASS[:, None, None] + 1) * np.exp(-od) - 1 + rng.normal(0, 2, od.shape)
    return Drawn(np.clip(np.rint(rgb), 0, 255).astype(np.uint8), truth, mpp)


@pytest.fixture(scope="session")
def make_tissue():
    """Function (size_um, mpp, seed) -> Drawn: nuclei of 2.5 to 5 µm on a jittered lattice of 14 µm."""

    def make(size_um: float, mpp: float, seed: int = 0) -> Drawn:
        rng = np.random.default_rng(seed)
        grid = np.arange(7, size_um - 6, 14.0)
        centres = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
        centres = centres + rng.uniform(-1.5, 1.5, centres.shape)
        axes = rng.uniform(2.5, 5.0, centres.shape)
        return draw(
            centres,
            axes,
            size_um,
            mpp,
            angles=rng.uniform(0, np.pi, len(centres)),
            darkness=rng.uniform(0.5, 1.2, len(centres)),
            seed=seed,
        )

    return make


def match(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best intersection over union of every true and of every found object."""
    pairs, counts = np.unique(np.stack([truth.ravel(), found.ravel()]), axis=1, return_counts=True)
    area_t, area_f = np.bincount(truth.ravel()), np.bincount(found.ravel())
    iou = counts / (area_t[pairs[0]] + area_f[pairs[1]] - counts)
    iou[(pairs == 0).any(axis=0)] = 0
    best_t, best_f = np.zeros(len(area_t)), np.zeros(len(area_f))
    np.maximum.at(best_t, pairs[0], iou)
    np.maximum.at(best_f, pairs[1], iou)
    return best_t[1:][area_t[1:] > 0], best_f[1:][area_f[1:] > 0]


@pytest.fixture(scope="session")
def iou():
    """Function (truth, found) -> best IoU of every true object, of every found object."""
    return match
