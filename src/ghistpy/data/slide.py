"""One slide as the engine sees it: sources, nuclei and what was measured on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ghistpy.geometry import ArraySource, Nuclei
from ghistpy.imaging.stain import StainStats


@dataclass(frozen=True)
class CellTargets:
    """Measured counts of single cells, matched to nuclei by id.

    ids (n,) int64; counts (n, G) float32, columns in the order of the model's genes;
    gene_mask (G,) bool, False where this slide's panel lacks the gene;
    cell_type (n,) int64 index into the model's cell types, -1 = unknown.
    """

    ids: np.ndarray
    counts: np.ndarray
    gene_mask: np.ndarray
    cell_type: np.ndarray


@dataclass(frozen=True)
class SpotTargets:
    """Measured counts of spots and the nuclei that lie in each.

    counts (S, G) float32; total (S,) float32 over all genes of the assay; gene_mask (G,) bool;
    nucleus_id (m,) int64 and spot (m,) int64 in [0, S): membership pairs (a nucleus lies in at most
    one spot); proportions (S, C) float32 or None; xy_um (S, 2) float64.
    """

    counts: np.ndarray
    total: np.ndarray
    gene_mask: np.ndarray
    nucleus_id: np.ndarray
    spot: np.ndarray
    proportions: np.ndarray | None
    xy_um: np.ndarray


@dataclass(frozen=True)
class Slide:
    """Image (3, y, x) uint8 and labels (y, x) with the same size, µm/px, nuclei and targets.

    ``excluded_um`` (k, 4) float64, rows (y0, x0, y1, x1) in µm: held-out rectangles. Their pixels
    are blanked before anything is computed from the slide and their nuclei are left out.
    ``stain`` is measured by :func:`ghistpy.data.windows.prepare` unless it is given.
    """

    name: str
    image: ArraySource
    labels: ArraySource
    mpp: float
    nuclei: Nuclei
    targets: CellTargets | SpotTargets | None = None
    excluded_um: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    stain: StainStats | None = None
