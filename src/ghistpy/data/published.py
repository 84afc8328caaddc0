"""Training patches of the published network: which nuclei count, and how a patch is augmented.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ghistpy.data.patches import PatchReader, plan_patches
from ghistpy.data.slide import CellTargets, Slide
from ghistpy.data.windows import prepare

logger = logging.getLogger("ghistpy")


@dataclass(frozen=True)
class TrainingBatch:
    """B patches and their N nuclei in order of patch, then id.

    image (B, 3, s, s) float32; rows (B, s, s) int64, 0 = background; expression (N, G) float32 on the
    training scale; cell_type (N,) int64; type_map (B, s, s) int64, 0 = background, else 1 + type.
    """

    image: Tensor
    rows: Tensor
    expression: Tensor
    cell_type: Tensor
    type_map: Tensor


@dataclass(frozen=True)
class TrainingSlide:
    """A slide of which only nuclei with usable targets are left.

    ``expression`` (n, G) float32 on the training scale and ``cell_type`` (n,) int64, rows as
    ``slide.nuclei``.
    """

    slide: Slide
    expression: np.ndarray
    cell_type: np.ndarray


def training_slide(
    slide: Slide, *, n_genes: int, n_types: int, mpp: float, expression_scale: float, min_nucleus_px: int
) -> TrainingSlide:
    """Blank what is held out, keep the nuclei that can be trained on, and say how many were left out.

    Left out: nuclei that touch a held-out rectangle, without measured counts or without a known type,
    or smaller than ``min_nucleus_px`` at ``mpp`` µm/px. In training patches their pixels are background.

    Raises
    ------
    ValueError
        When the targets are not single cells, lack genes, are not counts, or leave no nucleus.
    """
    targets = slide.targets
    if not isinstance(targets, CellTargets):
        raise ValueError(
            f"slide {slide.name!r}: the published network learns from measured cells, got "
            f"{type(targets).__name__}; use supervision='cells', or the default network for spots"
        )
    counts, cell_type = np.asarray(targets.counts), np.asarray(targets.cell_type)
    if counts.shape != (len(targets.ids), n_genes) or not targets.gene_mask.all():
        missing = int((~targets.gene_mask).sum())
        raise ValueError(
            f"slide {slide.name!r}: counts have shape {counts.shape} with {missing} of {n_genes} genes not "
            "measured; the published network needs every gene on every slide: keep the shared genes, or use "
            "the default network, which masks what is missing"
        )
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"slide {slide.name!r}: counts hold NaN, infinite or negative values; give raw counts")
    if len(cell_type) and cell_type.max() >= n_types:
        raise ValueError(f"slide {slide.name!r}: cell_type {cell_type.max()} is not below the {n_types} cell types")
    n_all = len(slide.nuclei)
    slide = prepare(slide)
    nuclei = slide.nuclei
    # position in the targets of every nucleus, -1 without
    at = np.full(len(nuclei), -1, dtype=np.int64)
    row = nuclei.index_of(np.asarray(targets.ids))
    at[row[row >= 0]] = np.flatnonzero(row >= 0)
    measured = at >= 0
    typed = measured & (cell_type[at] >= 0) if len(cell_type) else measured
    keep = typed & (nuclei.area_px * (slide.mpp / mpp) ** 2 >= min_nucleus_px)
    logger.info(
        "slide %s: training on %d of %d nuclei; left out: %d touch a held-out region, %d without counts, "
        "%d without a known type, %d smaller than %d px",
        slide.name,
        keep.sum(),
        n_all,
        n_all - len(nuclei),
        (~measured).sum(),
        (measured & ~typed).sum(),
        (typed & ~keep).sum(),
        min_nucleus_px,
    )
    if not keep.any():
        raise ValueError(
            f"slide {slide.name!r}: none of {n_all} nuclei can be trained on ({measured.sum()} outside held-out "
            f"regions have counts, {typed.sum()} of them a known type, at least {min_nucleus_px} px are "
            "needed); check that ids of labels and table agree, and cell_type_key"
        )
    expression = expression_scale * np.log1p(counts[at[keep]].astype(np.float64))
    return TrainingSlide(
        replace(slide, nuclei=nuclei.take(keep)), expression.astype(np.float32), cell_type[at[keep]].astype(np.int64)
    )


class TrainingPatches(Dataset):
    """Patches of all slides that hold a nucleus, without overlap, flipped and turned at random.

    The augmentation of a patch depends on ``seed``, epoch and patch only, so neither the number of
    workers nor a resumed run changes it.
    """

    def __init__(
        self,
        slides: Sequence[TrainingSlide],
        *,
        mpp: float,
        patch_px: int,
        seed: int,
        progress: bool = False,
    ) -> None:
        self.slides, self.seed, self.epoch = list(slides), seed, 0
        grids = [plan_patches(s.slide, mpp=mpp, side=patch_px, overlap=0) for s in self.slides]
        raw = [PatchReader(s.slide, grid, np.zeros(3), np.ones(3)) for s, grid in zip(self.slides, grids, strict=True)]
        every = [(s, p) for s, reader in enumerate(raw) for p in range(len(reader))]
        if progress:
            from tqdm.auto import tqdm

            every = tqdm(every, desc="training patches", unit="patch")
        means, stds, self.items = [], [], []
        for s, p in every:
            patch = raw[s][p]
            if patch.rows.any():
                self.items.append((s, p))
                means.append(patch.image.mean((1, 2), dtype=np.float64))
                stds.append(patch.image.std((1, 2), dtype=np.float64))
        if not self.items:
            raise ValueError("slides: no patch holds a nucleus to train on; check mpp and the labels")
        self.image_mean = np.mean(means, axis=0)
        # an image of one colour has no spread to divide by
        self.image_std = np.maximum(np.mean(stds, axis=0), 1.0)
        self.readers = [
            PatchReader(s.slide, grid, self.image_mean, self.image_std)
            for s, grid in zip(self.slides, grids, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> TrainingBatch:
        s, p = self.items[index]
        patch = self.readers[s][p]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        flip_y, flip_x = rng.random(2) < 0.5
        turns = int(rng.integers(4))
        image, rows = (_augment(a, flip_y, flip_x, turns) for a in (patch.image, patch.rows))
        inside = np.unique(rows)
        inside = inside[inside > 0] - 1
        source = self.slides[s]
        type_map = np.concatenate([[0], source.cell_type + 1])[rows]
        arrays = (image, rows, source.expression[inside], source.cell_type[inside], type_map)
        return TrainingBatch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


class EpochOrder(Sampler[int]):
    """All patches in an order that depends on the data set's ``seed`` and ``epoch`` only."""

    def __init__(self, patches: TrainingPatches) -> None:
        self._patches = patches

    def __len__(self) -> int:
        return len(self._patches)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._patches.seed, self._patches.epoch])
        return iter(rng.permutation(len(self._patches)).tolist())


def _augment(array: np.ndarray, flip_y: bool, flip_x: bool, turns: int) -> np.ndarray:
    if flip_y:
        array = array[..., ::-1, :]
    if flip_x:
        array = array[..., ::-1]
    return np.rot90(array, turns, axes=(-2, -1))


def collate(items: Sequence[TrainingBatch]) -> TrainingBatch:
    """Patches to a batch: nuclei in order of patch, then id, as the network numbers them."""
    return TrainingBatch(
        image=torch.stack([i.image for i in items]).contiguous(memory_format=torch.channels_last),
        rows=torch.stack([i.rows for i in items]),
        expression=torch.cat([i.expression for i in items]),
        cell_type=torch.cat([i.cell_type for i in items]),
        type_map=torch.stack([i.type_map for i in items]),
    )
