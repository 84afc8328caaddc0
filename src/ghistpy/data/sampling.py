"""Training windows of the default network: which are drawn in an epoch, and what is read for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.utils.data import Dataset, Sampler

from ghistpy.data.slide import Slide
from ghistpy.data.targets import Instances
from ghistpy.data.windows import WindowInput, collate, load_window
from ghistpy.geometry import Window, model_scale

INSET_PX = 32  # nuclei nearer to the border of a training window are not learned from


@dataclass(frozen=True)
class WindowGrid:
    """Where training windows may lie and how large they are; ``mpp`` is µm per px of the model.

    Windows are squares of ``side`` px whose corners are multiples of ``align`` px; ``stride`` px lie
    between feature positions.
    """

    mpp: float
    stride: int
    align: int
    side: int

    @classmethod
    def for_instances(cls, spot_diameter_um: float | None, *, mpp: float, stride: int, align: int) -> WindowGrid:
        """Windows of 320 px for cells (``spot_diameter_um`` is None), else large enough to hold a spot.

        Rounding to the grid and jitter move a window by up to ``align`` px, so that much is added.
        """
        side = 320.0 if spot_diameter_um is None else spot_diameter_um / mpp + 2 * (INSET_PX + align)
        return cls(mpp, stride, align, int(-(-side // align) * align))

    def draw_at(self, slide: int, centre: np.ndarray, jitter: np.ndarray, seed: list[int] | None) -> Draw:
        """A window around ``centre`` (model px), moved by ``jitter`` (-0.5..0.5) of one grid step."""
        origin = np.round((centre - self.side / 2) / self.align + jitter).astype(int) * self.align
        number = -1 if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
        return Draw(slide, int(origin[0]), int(origin[1]), number)


@dataclass(frozen=True)
class Labelled:
    """A prepared slide with its instances; values are standardised per gene by the caller."""

    slide: Slide
    instances: Instances
    values: np.ndarray

    def centres_px(self, mpp: float) -> np.ndarray:
        """(S, 2) y, x in model px: middle of the box of the centroids of each instance.

        The box, not the mean: a window around the mean of uneven nuclei may miss the far ones.
        """
        nuclei, member = self.slide.nuclei, self.instances.member
        rows = np.flatnonzero(member >= 0)
        at = nuclei.centroid_px[rows] / model_scale(self.slide.mpp, mpp)
        low, high = np.full((2, len(self.instances), 2), np.inf)
        np.minimum.at(low, member[rows], at)
        np.minimum.at(high, member[rows], -at)
        return (low - high) / 2


@dataclass(frozen=True)
class Draw:
    """One window to read: slide index, origin in model px, and the seed of its augmentation (-1: none)."""

    slide: int
    y0: int
    x0: int
    seed: int


@dataclass(frozen=True)
class TrainingItem:
    """A window with its nuclei grouped into instances 0..k-1 and what these should be."""

    window: WindowInput
    group: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    types: np.ndarray


class TrainingBatch:
    """Tensors of several windows; moves between devices as one."""

    def __init__(self, items: Sequence[TrainingItem], stride: int) -> None:
        self.od, self.coverage, self.local = collate([item.window for item in items], stride)
        start = np.cumsum([0] + [len(item.values) for item in items])
        self.group = torch.from_numpy(np.concatenate([i.group + s for i, s in zip(items, start, strict=False)]))
        self.values = torch.from_numpy(np.concatenate([item.values for item in items]))
        self.types = torch.from_numpy(np.concatenate([item.types for item in items]))
        self.mask = torch.from_numpy(np.concatenate([np.broadcast_to(item.mask, item.values.shape) for item in items]))

    def to(self, device: torch.device, non_blocking: bool = False) -> TrainingBatch:
        """Move every tensor."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device, non_blocking=non_blocking))
        return self


class WindowSampler(Sampler[Draw]):
    """Draws the windows of an epoch; a function of (seed, epoch) alone, so a resumed run is the same.

    Windows are centred near instances chosen with probability ~ 1 / sqrt(frequency of their type), so
    rare types are seen. Each process of a distributed run takes its share.
    """

    def __init__(self, slides: Sequence[Labelled], grid: WindowGrid, *, per_epoch: int, seed: int) -> None:
        self.slides, self.grid = slides, grid
        self.per_epoch, self.seed, self.epoch = per_epoch, seed, 0
        weights = [_instance_weight(s.instances) for s in slides]
        self.slide_of = np.concatenate([np.full(len(w), i) for i, w in enumerate(weights)])
        self.centre = np.concatenate([s.centres_px(grid.mpp) for s in slides])
        total = np.concatenate(weights)
        self.probability = total / total.sum()

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def _share(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __len__(self) -> int:
        rank, world = self._share()
        return len(range(rank, self.per_epoch // world * world, world))

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        picks = rng.choice(len(self.probability), self.per_epoch, p=self.probability, replace=True)
        jitter = rng.uniform(-0.5, 0.5, (self.per_epoch, 2))
        rank, world = self._share()
        for k in range(rank, self.per_epoch // world * world, world):
            slide, centre = int(self.slide_of[picks[k]]), self.centre[picks[k]]
            yield self.grid.draw_at(slide, centre, jitter[k], seed=[self.seed, self.epoch, k])


def _instance_weight(instances: Instances) -> np.ndarray:
    frequency = instances.types.sum(axis=0)
    weight = instances.types @ (1.0 / np.sqrt(np.maximum(frequency, 1.0)))
    # Instances of unknown type get the average weight.
    return np.where(weight > 0, weight, weight[weight > 0].mean() if (weight > 0).any() else 1.0)


class WindowDataset(Dataset):
    """Reads what a :class:`Draw` asks for."""

    def __init__(self, slides: Sequence[Labelled], grid: WindowGrid, *, whole_only: bool) -> None:
        self.slides, self.grid = slides, grid
        # A spot is explained by all of its nuclei: it counts only when the window holds every one.
        self.whole_only = whole_only
        self.draws: list[Draw] = []

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, draw: Draw | int) -> TrainingItem:
        draw = self.draws[draw] if isinstance(draw, int) else draw
        labelled = self.slides[draw.slide]
        slide, instances = labelled.slide, labelled.instances
        scale, side = model_scale(slide.mpp, self.grid.mpp), self.grid.side
        window = Window(draw.y0, draw.x0, draw.y0 + side, draw.x0 + side)
        at = slide.nuclei.centroid_px / scale
        low, high = np.array([window.y0, window.x0]) + INSET_PX, np.array([window.y1, window.x1]) - INSET_PX
        inside = (instances.member >= 0) & (at >= low).all(axis=1) & (at < high).all(axis=1)
        rows = np.flatnonzero(inside)
        if self.whole_only:
            size = np.bincount(instances.member[instances.member >= 0], minlength=len(instances))
            here = np.bincount(instances.member[rows], minlength=len(instances))
            rows = rows[(here == size)[instances.member[rows]]]
        augment = None if draw.seed < 0 else Augment(np.random.default_rng(draw.seed))
        loaded = load_window(
            slide, window, rows, scale=scale, mpp=self.grid.mpp, stride=self.grid.stride, augment=augment
        )
        kept, group = np.unique(instances.member[rows], return_inverse=True)
        return TrainingItem(loaded, group, labelled.values[kept], instances.gene_mask, instances.types[kept])


class Augment:
    """Flips, quarter turns, and changes of stain and sharpness in optical density."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(
        self, od: np.ndarray, labels: np.ndarray, centroid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Change od (3, h, w), labels (k, h, w) and centroids (n, 2) of one square window together."""
        rng, side = self.rng, od.shape[1]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        od, labels = np.rot90(od, turns, axes=(1, 2)), np.rot90(labels, turns, axes=(1, 2))
        y, x = centroid[:, 0], centroid[:, 1]
        for _ in range(turns):
            y, x = side - x, y
        if mirror:
            od, labels, x = od[:, :, ::-1], labels[:, :, ::-1], side - x
        od = self._stain(np.ascontiguousarray(od))
        return od, np.ascontiguousarray(labels), np.stack([y, x], axis=1)

    def _stain(self, od: np.ndarray) -> np.ndarray:
        rng = self.rng
        gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.06, 3))
        mix = np.diag(gain) + rng.normal(0, 0.03, (3, 3))
        od = np.tensordot(mix.astype(np.float32), od, axes=1)
        if rng.random() < 0.3:
            od = ndimage.gaussian_filter(od, (0, *[rng.uniform(0.3, 1.0)] * 2))
        return np.clip(od + rng.normal(0, 0.02) + rng.normal(0, 0.02, od.shape), -0.5, 4).astype(np.float32)
