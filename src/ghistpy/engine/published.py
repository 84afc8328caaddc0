"""Prediction with the published network: its fixed grid of patches, every nucleus once.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import softmax

from ghistpy.data.patches import PatchGrid, PatchReader, plan_patches
from ghistpy.data.slide import Slide
from ghistpy.data.windows import N_MORPHOLOGY, prepare
from ghistpy.engine.extract import ahead, measure, refuse_changed
from ghistpy.engine.options import RunOptions
from ghistpy.engine.predict import new_expression
from ghistpy.engine.prediction import Prediction
from ghistpy.engine.published_refine import refine_types
from ghistpy.engine.scratch import Blocks, Scratch, StoredRows
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork, PublishedOutput, fused_published
from ghistpy.nn.published_losses import TypeRoles

logger = logging.getLogger("ghistpy")

_BLOCK_PATCHES = 32  # a block is finished as a whole
_ROWS = 16_384  # nuclei whose values are looked at together


class _Rows:
    """Results per nucleus while patches arrive: of several copies the one with the largest area is kept.

    Equal areas: the patch that comes first in raster order, so that the order of arrival never matters.
    """

    def __init__(self, expression: np.ndarray | StoredRows, n_types: int) -> None:
        n = len(expression)
        self.area = np.zeros(n, dtype=np.int64)
        self.rank = np.zeros(n, dtype=np.int64)
        self.expression = expression
        self.logits = np.zeros((n, n_types), dtype=np.float32)
        self.composition = np.zeros((n, n_types), dtype=np.float32)
        self.cell_type = np.zeros(n, dtype=np.int64)

    def update(self, rows: np.ndarray, area: np.ndarray, rank: np.ndarray, **values: np.ndarray) -> None:
        """``rows`` (k,) may repeat; ``values`` have k rows."""
        order = np.lexsort((rank, -area, rows))
        _, first = np.unique(rows[order], return_index=True)
        best = order[first]
        at = rows[best]
        better = (area[best] > self.area[at]) | ((area[best] == self.area[at]) & (rank[best] < self.rank[at]))
        best, at = best[better], at[better]
        self.area[at], self.rank[at] = area[best], rank[best]
        for name, value in values.items():
            getattr(self, name)[at] = value[best]

    def fill_unseen(self, centroid: np.ndarray) -> int:
        """Nuclei without a pixel of their own take the values of the nearest one that has some."""
        unseen, seen = np.flatnonzero(self.area == 0), np.flatnonzero(self.area)
        if len(unseen) and not len(seen):
            raise ValueError(
                f"labels: none of the {len(unseen)} nuclei covers a pixel at the model's µm/px; "
                "check mpp, or segment at the model's µm/px"
            )
        if len(unseen):
            source = seen[cKDTree(centroid[seen]).query(centroid[unseen])[1]]
            for name in ("expression", "logits", "composition", "cell_type"):
                getattr(self, name)[unseen] = getattr(self, name)[source]
        return len(unseen)


def predict_published(
    network: PublishedNetwork,
    slide: Slide,
    *,
    image_mean: np.ndarray,
    image_std: np.ndarray,
    roles: TypeRoles,
    refine: float = 2.0,
    options: RunOptions | None = None,
    scratch: Scratch | None = None,
    grid: PatchGrid | None = None,
) -> Prediction:
    """Predict every nucleus of a slide with the published network.

    Parameters
    ----------
    network
        The network; its config says µm/px, patch and overlap.
    slide
        Image (3, y, x), labels (y, x). Another µm/px than the network's is resampled.
    image_mean, image_std
        (3,) of the training patches, 0-255 scale.
    roles
        Types that the refinement knows.
    refine
        Strength of the refinement of types (the paper's alpha); 0 switches it off.
    options
        Device, batch size, threads, precision. Nothing but the precision changes the result beyond
        rounding.
    scratch
        Folder for finished blocks; without one they are kept in memory.
    grid
        Patches; by default those of :func:`~ghistpy.data.patches.plan_patches`.

    Returns
    -------
    Prediction
        One row per nucleus of the slide, also for nuclei below ``config.min_nucleus_px`` (those are
        only left out of training). ``proba`` is ``proba_raw`` with the old and the new type exchanged
        where refinement changed the type; ``composition`` is the network's estimate for the patch.

    Notes
    -----
    The published program multiplies the refinement by ``|noise|``, unseeded; here by its expectation.
    """
    options = options or RunOptions()
    slide = prepare(slide)
    config = network.config
    if grid is None:
        grid = plan_patches(slide, mpp=config.mpp, side=config.patch_px, overlap=config.overlap_px)
    found = _Rows(new_expression((len(slide.nuclei), network.n_genes), scratch), network.n_types)
    blocks = None if scratch is None else scratch.blocks("patches")
    reader = PatchReader(slide, grid, image_mean, image_std)
    todo = _take_finished(found, reader, blocks, options.workers)
    batches = _batches(len(grid), todo, options.batch_size)
    loaded = ahead([partial(_load, reader, batch.patches) for batch in batches], options.workers)
    if options.progress:
        from tqdm.auto import tqdm

        loaded = tqdm(loaded, total=len(batches), desc=f"patches of {slide.name}", unit="batch")
    network = fused_published(network).to(device=options.device, memory_format=torch.channels_last)
    parts: list[dict[str, np.ndarray]] = []
    for at, (batch, item) in enumerate(zip(batches, loaded, strict=True)):
        with options.context():
            image = item.image.to(options.device, memory_format=torch.channels_last)
            out = network(image, item.labels.to(options.device), segmentation=False)
        values = _values(out, grid.corners[batch.patches], config, roles, refine)
        found.update(**values)
        if blocks is not None:
            parts.append({**values, "checksum": item.checksum})
            if at + 1 == len(batches) or batches[at + 1].block != batch.block:
                blocks.save(batch.block, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
                parts = []
    lost = found.fill_unseen(slide.nuclei.centroid_px)
    if lost:
        logger.warning(
            "slide %s: %d nuclei share a model px with another one and take the values of the nearest nucleus",
            slide.name,
            lost,
        )
    # measured in windows that hold each nucleus whole: patches cut some
    return _prediction(slide, found, measure(slide, config.mpp)[:, :N_MORPHOLOGY])


class _Batch(NamedTuple):
    """Patches of one block that go through the network together."""

    block: int
    patches: range


class _Loaded(NamedTuple):
    image: torch.Tensor  # (B, 3, s, s)
    labels: torch.Tensor  # (B, s, s)
    checksum: np.ndarray  # (B, 2)


def _block_range(block: int, n_patches: int) -> range:
    return range(block * _BLOCK_PATCHES, min((block + 1) * _BLOCK_PATCHES, n_patches))


def _batches(n_patches: int, todo: list[int], batch_size: int) -> list[_Batch]:
    out = []
    for block in todo:
        patches = _block_range(block, n_patches)
        out += [_Batch(block, patches[i : i + batch_size]) for i in range(0, len(patches), batch_size)]
    return out


def _load(reader: PatchReader, patches: range) -> _Loaded:
    items = [reader[patch] for patch in patches]
    image, labels = (torch.from_numpy(np.stack([getattr(item, k) for item in items])) for k in ("image", "rows"))
    return _Loaded(image, labels, np.stack([item.checksum for item in items]))


def _take_finished(found: _Rows, reader: PatchReader, blocks: Blocks | None, workers: int) -> list[int]:
    """Take over the finished blocks, after a look that their pixels are still the same; return the others."""
    todo, known = [], []
    jobs: list[Callable[[], np.ndarray]] = []
    for block in range(-(-len(reader) // _BLOCK_PATCHES)):
        arrays = None if blocks is None else blocks.load(block)
        patches = _block_range(block, len(reader))
        if arrays is None or len(arrays["checksum"]) != len(patches):
            todo.append(block)
            continue
        known += zip(patches, arrays.pop("checksum"), strict=True)
        jobs += [partial(_checksum, reader, patch) for patch in patches]
        found.update(**arrays)
    for (patch, checksum), now in zip(known, ahead(jobs, workers), strict=True):
        refuse_changed(checksum, now, f"patch {reader.grid.window(patch)}")
    return todo


def _checksum(reader: PatchReader, patch: int) -> np.ndarray:
    return reader[patch].checksum


def _values(
    out: PublishedOutput, corners: np.ndarray, config: GHISTConfig, roles: TypeRoles, refine: float
) -> dict[str, np.ndarray]:
    """Refine the types of one batch; what :meth:`_Rows.update` takes."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.float().cpu().numpy()

    patch = out.nuclei.patch.cpu().numpy()
    logits, composition = array(out.type_logits), array(out.composition)
    refined = refine_types(
        logits.astype(np.float64),
        composition.astype(np.float64),
        patch,
        roles,
        strength=refine,
        high_confidence=config.high_confidence,
        invasive=config.invasive,
    )
    expression = array(out.expression).copy()
    for take, branch in (
        (refined.take_immune, out.expression_immune),
        (refined.take_invasive, out.expression_invasive),
    ):
        expression[take] = array(branch)[take]
    return {
        "rows": out.nuclei.ids.cpu().numpy() - 1,
        "area": out.nuclei.area.cpu().numpy(),
        # raster order of the corners
        "rank": (corners[:, 0] << 31 | corners[:, 1])[patch],
        "expression": expression / config.expression_scale,
        "logits": logits,
        "composition": composition[patch],
        "cell_type": refined.cell_type,
    }


def _prediction(slide: Slide, found: _Rows, morphology: np.ndarray) -> Prediction:
    raw = found.logits.argmax(axis=1)
    proba_raw = softmax(found.logits, axis=1) if len(found.logits) else found.logits
    proba = proba_raw.copy()
    every = np.arange(len(raw))
    total = np.zeros(len(raw), np.float32)
    for start in range(0, len(raw), _ROWS):
        total[start : start + _ROWS] = np.expm1(found.expression[start : start + _ROWS]).sum(axis=1)
    proba[every, raw] = proba_raw[every, found.cell_type]
    proba[every, found.cell_type] = proba_raw[every, raw]
    return Prediction(
        ids=slide.nuclei.ids,
        expression=found.expression,
        proba_raw=proba_raw,
        proba=proba,
        composition=found.composition,
        cell_type=found.cell_type,
        cell_type_raw=raw,
        total=total,
        morphology=morphology,
    )
