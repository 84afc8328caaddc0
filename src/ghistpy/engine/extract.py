"""Run the default network over a slide: every nucleus once, tile by tile."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ghistpy.data.slide import Slide
from ghistpy.data.windows import LOCAL_FEATURES, WindowInput, collate, load_window, window_checksum
from ghistpy.engine.options import RunOptions
from ghistpy.engine.scratch import Blocks
from ghistpy.geometry import TilePlan, model_scale, plan_tiles
from ghistpy.imaging.surround import reach_px
from ghistpy.nn.cellnet import CellNet, fused
from ghistpy.nn.config import GHISTConfig

# A block is finished as a whole: so many tiles at most, fewer when they hold many nuclei.
_BLOCK_TILES, _BLOCK_NUCLEI = 8, 8192

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Extracted:
    """Per nucleus of a slide, in the order of ``slide.nuclei``.

    embedding (n, E), logits (n, C), local (n, F) float32 (local = measured features).
    """

    embedding: np.ndarray
    logits: np.ndarray
    local: np.ndarray

    def take(self, rows: np.ndarray) -> Extracted:
        """Those nuclei."""
        return Extracted(self.embedding[rows], self.logits[rows], self.local[rows])


@dataclass(frozen=True)
class ExtractedBlocks:
    """The same, in blocks of tiles that may lie on disk: only what is asked for is read.

    ``first`` (blocks + 1,) int64: block b holds the tiles ``first[b]`` to ``first[b + 1]``, its rows in the
    order of the plan.
    """

    plan: TilePlan
    first: np.ndarray
    blocks: Blocks

    def take(self, rows: np.ndarray) -> Extracted:
        """Those nuclei; each block that holds one is read once."""
        at = self._place[rows]
        edges = self.plan.start[self.first]
        block = np.searchsorted(edges, at, side="right") - 1
        parts: dict[str, np.ndarray] = {}
        for number in np.unique(block):
            mine = np.flatnonzero(block == number)
            arrays = self.blocks.load(int(number))
            if arrays is None:
                raise OSError(f"block {number} of the extracted features was removed or damaged while it was needed")
            for name in ("embedding", "logits", "local"):
                values = arrays[name]
                if name not in parts:
                    parts[name] = np.empty((len(rows), values.shape[1]), np.float32)
                parts[name][mine] = values[at[mine] - edges[number]]
        return Extracted(**parts)

    @cached_property
    def _place(self) -> np.ndarray:
        """(n,) int64: where the nucleus of each row stands in the plan."""
        place = np.empty_like(self.plan.order)
        place[self.plan.order] = np.arange(len(place))
        return place


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
    return load_window(
        slide, window, plan.owned(tile), scale=plan.scale, mpp=config.mpp, stride=config.stride, checksum=True
    )


def plan_blocks(plan: TilePlan) -> np.ndarray:
    """(blocks + 1,) int64 first tile of each block; they depend on the plan alone."""
    first, tiles, nuclei = [0], 0, 0
    for tile, size in enumerate(np.diff(plan.start)):
        tiles, nuclei = tiles + 1, nuclei + int(size)
        if tiles == _BLOCK_TILES or nuclei >= _BLOCK_NUCLEI:
            first.append(tile + 1)
            tiles = nuclei = 0
    if first[-1] != len(plan):
        first.append(len(plan))
    return np.array(first, dtype=np.int64)


def ahead(jobs: Sequence[Callable[[], _Item]], workers: int) -> Iterator[_Item]:
    """Results of the jobs in order; threads run a few of them ahead, so memory stays bounded."""
    if workers == 0:
        for job in jobs:
            yield job()
        return
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > workers + 1:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for job in pending:
                job.cancel()


class _Batch(NamedTuple):
    """Tiles of one block that go through the network together."""

    block: int
    tiles: list[int]


class _Loaded(NamedTuple):
    od: Tensor
    coverage: Tensor
    local: Tensor
    checksum: np.ndarray  # (tiles, 2)


def _batches(plan: TilePlan, first: np.ndarray, todo: Sequence[int], batch_size: int) -> list[_Batch]:
    """Consecutive tiles of equal size and of one block, at most ``batch_size`` together."""
    out: list[_Batch] = []
    sides = plan.windows[:, 2:] - plan.windows[:, :2]
    for block in todo:
        for tile in range(first[block], first[block + 1]):
            last = out[-1] if out and out[-1].block == block else None
            if last and len(last.tiles) < batch_size and (sides[last.tiles[0]] == sides[tile]).all():
                last.tiles.append(tile)
            else:
                out.append(_Batch(block, [tile]))
    return out


def _load(slide: Slide, plan: TilePlan, config: GHISTConfig, tiles: list[int], pin: bool) -> _Loaded:
    items = [load_tile(slide, plan, tile, config) for tile in tiles]
    od, coverage, local = collate(items, config.stride)
    if pin:
        # only from pinned memory does a copy to the device overlap with its work
        od, local = od.pin_memory(), local.pin_memory()
    return _Loaded(od, coverage, local, np.stack([item.checksum for item in items]))


def _check_finished(slide: Slide, plan: TilePlan, first: np.ndarray, blocks: Blocks, workers: int) -> list[int]:
    """Blocks that are still to do; those that are finished must have been computed from what is there now."""
    todo, jobs, known = [], [], []
    for block in range(len(first) - 1):
        arrays = blocks.load(block)
        tiles = range(first[block], first[block + 1])
        if arrays is None or len(arrays["embedding"]) != plan.start[tiles.stop] - plan.start[tiles.start]:
            todo.append(block)
            continue
        for tile, checksum in zip(tiles, arrays["checksum"], strict=True):
            known.append((tile, checksum))
            jobs.append(_checksum_job(slide, plan, tile))
    for (tile, checksum), now in zip(known, ahead(jobs, workers), strict=True):
        refuse_changed(checksum, now, str(plan.slide_window(tile)))
    return todo


def _checksum_job(slide: Slide, plan: TilePlan, tile: int) -> Callable[[], np.ndarray]:
    return lambda: window_checksum(slide, plan.model_window(tile), plan.owned(tile), plan.scale)


def refuse_changed(before: np.ndarray, now: np.ndarray, where: str) -> None:
    """Raise when pixels or labels are not those that finished blocks were computed from."""
    changed = [name for name, a, b in zip(("image", "labels"), before, now, strict=True) if a != b]
    if changed:
        raise ValueError(
            f"resume=True: the {' and the '.join(changed)} changed in {where} (px) since the unfinished prediction was "
            "computed; restore what was there, or give resume=False to discard it and start over"
        )


def extract_blocks(
    network: CellNet, slide: Slide, config: GHISTConfig, blocks: Blocks, options: RunOptions
) -> ExtractedBlocks:
    """Embedding, type logits and measured features of every nucleus of a prepared slide, block by block.

    Parameters
    ----------
    network
        Left as it is; a fused copy runs on the device.
    slide
        See :func:`ghistpy.data.windows.prepare`.
    config
        Settings of the network.
    blocks
        Where they are kept; those that are there already are not computed again.
    options
        Device, batch size, threads, precision.

    Raises
    ------
    UnreadableError
        A tile cannot be read; slide and tile are named.
    ValueError
        The image or the labels are not those that the finished blocks were computed from.
    """
    plan = plan_slide(slide, config)
    first = plan_blocks(plan)
    todo = _check_finished(slide, plan, first, blocks, options.workers)
    batches = _batches(plan, first, todo, options.batch_size)
    pin = options.device.startswith("cuda")
    jobs = [lambda tiles=batch.tiles: _load(slide, plan, config, tiles, pin) for batch in batches]
    loaded = ahead(jobs, options.workers)
    if options.progress:
        from tqdm.auto import tqdm

        loaded = tqdm(loaded, total=len(batches), desc=f"nuclei of {slide.name}", unit="batch")
    parts: list[dict[str, np.ndarray]] = []
    with _fewer_threads(options):
        for at, (batch, result) in enumerate(zip(batches, _run(network, loaded, options), strict=True)):
            parts.append(result)
            if at + 1 == len(batches) or batches[at + 1].block != batch.block:
                blocks.save(batch.block, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
                parts = []
    return ExtractedBlocks(plan, first, blocks)


@contextlib.contextmanager
def _fewer_threads(options: RunOptions) -> Iterator[None]:
    """Leave the cores to the reading threads: on a CPU they have more to do than the network."""
    before = torch.get_num_threads()
    if torch.device(options.device).type == "cpu" and options.workers:
        torch.set_num_threads(max(1, before - options.workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(network: CellNet, loaded: Iterator[_Loaded], options: RunOptions) -> Iterator[dict[str, np.ndarray]]:
    """Results of batches in order. One batch is under way on the device while the one before is fetched."""
    network = fused(network).to(options.device)
    if options.compiled:
        network = copy.copy(network)
        network.feature_map = torch.compile(network.feature_map, dynamic=True)
    previous = None
    for item in loaded:
        with options.context():
            od, coverage, local = (t.to(options.device, non_blocking=True) for t in item[:3])
            result = network(od.to(memory_format=torch.channels_last), coverage, local)
        if previous is not None:
            yield _fetch(*previous)
        previous = result.embedding, result.type_logits, item
    if previous is not None:
        yield _fetch(*previous)


def _fetch(embedding: Tensor, logits: Tensor, item: _Loaded) -> dict[str, np.ndarray]:
    return {
        "embedding": embedding.float().cpu().numpy(),
        "logits": logits.float().cpu().numpy(),
        "local": item.local.numpy(),
        "checksum": item.checksum,
    }


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
    """Embedding, type logits and measured features of every nucleus of a prepared slide, in memory.

    The result does not depend on tile size, batch size, order or ``workers`` (float32 rounding apart).

    Parameters
    ----------
    network
        Left as it is; a fused copy runs on ``device``.
    slide
        See :func:`ghistpy.data.windows.prepare`.
    config
        Settings of the network.
    device, batch_size, workers, autocast, progress
        See :class:`~ghistpy.engine.options.RunOptions`.

    Raises
    ------
    UnreadableError
        A tile cannot be read; slide and tile are named.
    """
    options = RunOptions(str(device), batch_size, workers, autocast, progress=progress)
    found = extract_blocks(network, slide, config, Blocks(), options)
    if len(slide.nuclei):
        return found.take(np.arange(len(slide.nuclei)))
    widths = (config.embedding, network.types.out_features, len(LOCAL_FEATURES))
    return Extracted(*(np.zeros((0, width), np.float32) for width in widths))


def measure(slide: Slide, mpp: float) -> np.ndarray:
    """(n, F) measured features of every nucleus of a prepared slide at ``mpp``, without a network."""
    plan = plan_tiles(slide.nuclei, scale=model_scale(slide.mpp, mpp), halo=reach_px(mpp))
    out = np.zeros((len(slide.nuclei), len(LOCAL_FEATURES)), np.float32)
    for tile in range(len(plan)):
        window = load_window(slide, plan.model_window(tile), plan.owned(tile), scale=plan.scale, mpp=mpp, stride=16)
        out[window.rows] = window.local
    return out
