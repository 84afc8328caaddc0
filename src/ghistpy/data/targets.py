"""What training explains: instances (single cells, or spots of several nuclei) with their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ghistpy.data.slide import CellTargets, Slide

SPOT_SCALE = 1e4  # spots are compared as log1p(1e4 * count / total)


@dataclass(frozen=True)
class Instances:
    """S instances of one slide; n nuclei, G genes, C types.

    member
        (n,) int64: instance of each nucleus of the slide, -1 = none.
    values
        (S, G) float32: log1p(count) of cells, log1p(1e4 count / total) of spots.
    gene_mask
        (G,) bool: genes that this slide's panel holds.
    types
        (S, C) float32: distribution over types, a row of zeros where unknown.
    yx_um
        (S, 2) float64: mean position of its nuclei.
    kept
        (S,) int64: rows of the targets, see :func:`instances_of` for those that are left out.
    """

    member: np.ndarray
    values: np.ndarray
    gene_mask: np.ndarray
    types: np.ndarray
    yx_um: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def average(self) -> sparse.csr_array:
        """(S, n) matrix that averages nuclei into instances."""
        rows = np.flatnonzero(self.member >= 0)
        member = self.member[rows]
        size = np.bincount(member, minlength=len(self))
        shape = (len(self), len(self.member))
        return sparse.csr_array((1.0 / size[member], (member, rows)), shape=shape)


def instances_of(slide: Slide, n_types: int) -> Instances:
    """The instances of a slide that its nuclei explain.

    These are cells that are nuclei of the slide, and spots that have nuclei and lost none of them to a
    held-out region: the counts of the others come in part from tissue that may not be seen.

    Parameters
    ----------
    slide
        With targets; prepared, when something is held out.
    n_types
        Columns of ``types``.
    """
    targets = slide.targets
    n = len(slide.nuclei)
    if isinstance(targets, CellTargets):
        nucleus, instance = slide.nuclei.index_of(targets.ids), np.arange(len(targets.ids))
        values = np.log1p(targets.counts)
        types = _one_hot(targets.cell_type, n_types)
    else:
        nucleus, instance = slide.nuclei.index_of(targets.nucleus_id), targets.spot
        values = np.log1p(SPOT_SCALE * targets.counts / np.maximum(targets.total, 1)[:, None])
        types = np.zeros((len(values), n_types), np.float32) if targets.proportions is None else targets.proportions
    found = nucleus >= 0
    cut = np.unique(instance[~found])
    found &= ~np.isin(instance, cut)
    kept, position = np.unique(instance[found], return_inverse=True)
    member = np.full(n, -1, dtype=np.int64)
    member[nucleus[found]] = position
    size = np.maximum(np.bincount(position, minlength=len(kept)), 1)
    yx = slide.nuclei.centroid_px[nucleus[found]] * slide.mpp
    centre = np.stack([np.bincount(position, yx[:, k], len(kept)) for k in (0, 1)], axis=1) / size[:, None]
    return Instances(
        member,
        values[kept].astype(np.float32),
        targets.gene_mask,
        types[kept].astype(np.float32),
        centre,
        kept,
    )


def _one_hot(code: np.ndarray, n_types: int) -> np.ndarray:
    out = np.zeros((len(code), n_types), dtype=np.float32)
    known = np.flatnonzero(code >= 0)
    out[known, code[known]] = 1.0
    return out
