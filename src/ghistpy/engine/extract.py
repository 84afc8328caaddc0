"""Run the default network over a slide: every nucleus once, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ghistpy.data.slide import Slide
from ghistpy.data.windows import LOCAL_FEATURES, WindowInput, collate, load_window
from ghistpy.geometry import TilePlan, model_scale, plan_tiles
from ghistpy.imaging.surround import reach_px
from ghistpy.nn.cellnet import CellNet, fused
from ghistpy.nn.config import GHISTConfig


@dataclass(frozen=True)
class Extracted:
    """Per nucleus of a slide, in the order of ``slide.nuclei``.

    embedding (n, E), logits (n, C), local (n, F) float32 (local = measured features).
    """

    embedding: np.ndarray
    logits: np.ndarray
    local: np.ndarray


def plan_slide(slide: Slide, config: GHISTConfig) -> TilePlan:
    """The tiles of a slide as the default network needs them."""
    return plan_tiles(
        slide.nuclei,
        scale=model_scale(slide.mpp, config.mpp),
        core=config.tile_px,
        halo=max(config.halo_px, reach_px(config.mpp)),
        align=config.align_px,
    )


def load_tile(slide: Slide, plan: TilePlan, tile: int, config: GHISTConfig) -> WindowInput:
    """Read one planned tile with the nuclei that it owns."""
    window = plan.model_window(tile)
    return load_window(slide, window, plan.owned(tile), scale=plan.scale, mpp=config.mpp, stride=config.stride)


def _batches(plan: TilePlan, batch_size: int) -> list[list[int]]:
    """Consecutive tiles of equal size, at most ``batch_size`` together."""
    out: list[list[int]] = []
    sides = plan.windows[:, 2:] - plan.windows[:, :2]
    for tile in range(len(plan)):
        if out and len(out[-1]) < batch_size and (sides[out[-1][0]] == sides[tile]).all():
            out[-1].append(tile)
        else:
            out.append([tile])
    return out


def _load_ahead(
    slide: Slide, plan: TilePlan, config: GHISTConfig, batches: list[list[int]], workers: int
) -> Iterator[list[WindowInput]]:
    """Batches in order; reading runs at most two batches ahead in threads, so memory stays bounded."""
    if workers == 0:
        for batch in batches:
            yield [load_tile(slide, plan, tile, config) for tile in batch]
        return
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for batch in batches:
            pending.append([pool.submit(load_tile, slide, plan, tile, config) for tile in batch])
            if len(pending) > 2:
                yield [job.result() for job in pending.pop(0)]
        for batch in pending:
            yield [job.result() for job in batch]


@torch.inference_mode()
def extract(
    network: CellNet,
    slide: Slide,
    config: GHISTConfig,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> Extracted:
    """Embedding, type logits and measured features of every nucleus of a prepared slide.

    The result does not depend on tile size, batch size, order or ``workers`` (float32 rounding apart).

    Parameters
    ----------
    network
        Left as it is; a fused copy runs on ``device``.
    slide
        See :func:`ghistpy.data.windows.prepare`.
    config
        Settings of the network.
    device, autocast
        Where it runs, and in which half precision (None: float32).
    batch_size
        Windows of equal size that go through the network together, at most.
    workers
        Threads that read ahead; 0 reads between batches.
    progress
        Show a progress bar.

    Raises
    ------
    UnreadableError
        A tile cannot be read; slide and tile are named.
    """
    network = fused(network).to(device)
    plan = plan_slide(slide, config)
    n = len(slide.nuclei)
    out = Extracted(
        np.zeros((n, config.embedding), np.float32),
        np.zeros((n, network.types.out_features), np.float32),
        np.zeros((n, len(LOCAL_FEATURES)), np.float32),
    )
    batches = _batches(plan, batch_size)
    loaded = _load_ahead(slide, plan, config, batches, workers)
    if progress:
        from tqdm.auto import tqdm

        loaded = tqdm(loaded, total=len(batches), desc=f"nuclei of {slide.name}", unit="batch")
    for items in loaded:
        rows = np.concatenate([item.rows for item in items])
        od, coverage, local = (t.to(device, non_blocking=True) for t in collate(items, config.stride))
        od = od.to(memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            result = network(od, coverage, local)
        out.embedding[rows] = result.embedding.float().cpu().numpy()
        out.logits[rows] = result.type_logits.float().cpu().numpy()
        out.local[rows] = local.cpu().numpy()
    return out


def measure(slide: Slide, mpp: float) -> np.ndarray:
    """(n, F) measured features of every nucleus of a prepared slide at ``mpp``, without a network."""
    plan = plan_tiles(slide.nuclei, scale=model_scale(slide.mpp, mpp), halo=reach_px(mpp))
    out = np.zeros((len(slide.nuclei), len(LOCAL_FEATURES)), np.float32)
    for tile in range(len(plan)):
        window = load_window(slide, plan.model_window(tile), plan.owned(tile), scale=plan.scale, mpp=mpp, stride=16)
        out[window.rows] = window.local
    return out
