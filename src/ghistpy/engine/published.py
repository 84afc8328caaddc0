"""Prediction with the published network: its fixed grid of patches, every nucleus once.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import softmax

from ghistpy.data.patches import Patch, PatchGrid, PatchReader, plan_patches
from ghistpy.data.slide import Slide
from ghistpy.data.windows import N_MORPHOLOGY, prepare
from ghistpy.engine.extract import measure
from ghistpy.engine.prediction import Prediction
from ghistpy.engine.published_refine import refine_types
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.published import PublishedNetwork, PublishedOutput
from ghistpy.nn.published_losses import TypeRoles

logger = logging.getLogger("ghistpy")

# Patches that are read ahead while the network works on others.
_READ_AHEAD = 2


class _Rows:
    """Results per nucleus while patches arrive: of several copies the one with the largest area is kept.

    Equal areas: the patch that comes first in raster order, so that the order of arrival never matters.
    """

    def __init__(self, n: int, n_genes: int, n_types: int) -> None:
        self.area = np.zeros(n, dtype=np.int64)
        self.rank = np.zeros(n, dtype=np.int64)
        self.expression = np.zeros((n, n_genes), dtype=np.float32)
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


@torch.inference_mode()
def predict_published(
    network: PublishedNetwork,
    slide: Slide,
    *,
    image_mean: np.ndarray,
    image_std: np.ndarray,
    roles: TypeRoles,
    refine: float = 2.0,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    progress: bool = False,
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
    device, batch_size, workers, autocast, progress
        Where and how; ``workers`` threads read patches ahead. They do not change the result beyond
        rounding.
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
    slide = prepare(slide)
    config = network.config
    network = network.to(device=device, memory_format=torch.channels_last).eval()
    if grid is None:
        grid = plan_patches(slide, mpp=config.mpp, side=config.patch_px, overlap=config.overlap_px)
    found = _Rows(len(slide.nuclei), network.n_genes, network.n_types)
    batches = [range(i, min(i + batch_size, len(grid))) for i in range(0, len(grid), batch_size)]
    loaded = _read_ahead(PatchReader(slide, grid, image_mean, image_std), batches, workers)
    if progress:
        from tqdm.auto import tqdm

        loaded = tqdm(loaded, total=len(batches), desc=f"patches of {slide.name}", unit="batch")
    for batch, patches in zip(batches, loaded, strict=True):
        image, labels = (torch.from_numpy(np.stack([getattr(p, k) for p in patches])) for k in ("image", "rows"))
        image = image.to(device, memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            out = network(image, labels.to(device), segmentation=False)
        _collect(found, out, grid.corners[batch], config, roles, refine)
    lost = found.fill_unseen(slide.nuclei.centroid_px)
    if lost:
        logger.warning(
            "slide %s: %d nuclei share a model px with another one and take the values of the nearest nucleus",
            slide.name,
            lost,
        )
    # measured in windows that hold each nucleus whole: patches cut some
    return _prediction(slide, found, measure(slide, config.mpp)[:, :N_MORPHOLOGY])


def _read_ahead(reader: PatchReader, batches: list[range], workers: int) -> Iterator[list[Patch]]:
    """Batches in order; reading runs a few batches ahead in threads, so memory stays bounded."""
    if workers == 0:
        yield from ([reader[patch] for patch in batch] for batch in batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: list[list] = []
        for batch in batches:
            pending.append([pool.submit(reader.__getitem__, patch) for patch in batch])
            if len(pending) > _READ_AHEAD:
                yield [job.result() for job in pending.pop(0)]
        for jobs in pending:
            yield [job.result() for job in jobs]


def _collect(
    found: _Rows,
    out: PublishedOutput,
    corners: np.ndarray,
    config: GHISTConfig,
    roles: TypeRoles,
    refine: float,
) -> None:
    """Refine the types of one batch and keep its best copies."""

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
    found.update(
        out.nuclei.ids.cpu().numpy() - 1,
        out.nuclei.area.cpu().numpy(),
        # raster order of the corners
        (corners[:, 0] << 31 | corners[:, 1])[patch],
        expression=expression / config.expression_scale,
        logits=logits,
        composition=composition[patch],
        cell_type=refined.cell_type,
    )


def _prediction(slide: Slide, found: _Rows, morphology: np.ndarray) -> Prediction:
    raw = found.logits.argmax(axis=1)
    proba_raw = softmax(found.logits, axis=1) if len(found.logits) else found.logits
    proba = proba_raw.copy()
    every = np.arange(len(raw))
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
        total=np.expm1(found.expression).sum(axis=1),
        morphology=morphology,
    )
