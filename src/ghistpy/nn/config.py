"""Settings of a network: what is needed, beside the genes and cell types, to build it again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ghistpy.geometry.context import REACH
from ghistpy.imaging.surround import reach_px

ARCHITECTURES = ("default", "published")

# Widths of the encoder of U-Net 3+ (Huang et al. 2020), as the paper uses them.
_PUBLISHED_WIDTHS = (64, 128, 256, 512, 1024)
# Four 2x poolings: the sides of a patch must be divisible by this.
_PUBLISHED_STRIDE = 16
_ATTENTION_HEADS = 8
# From the centroid to the farthest px of a large nucleus.
_NUCLEUS_UM = 12.0


@dataclass(frozen=True)
class GHISTConfig:
    """Settings of a GHIST network; checks itself.

    The default is ghistpy's own network. :meth:`published` gives the network of the paper.

    Parameters
    ----------
    architecture
        ``"default"`` or ``"published"``.
    mpp
        µm per pixel at which the network sees the slide.
    widths
        Channels of the encoder levels, from the finest to the coarsest. The published network has
        exactly five; its skip branches and decoder follow from the first.
    embedding
        Length of the vector that describes a nucleus.
    stride, decoder
        Default network only: px between feature positions, channels of the feature map.
    context_um
        Default network only: widths in µm (Gaussian standard deviations) of the neighbourhoods that
        condition a nucleus. Wide ones follow tissue regions and need slides to learn from; a held-out
        block needs a buffer of :attr:`reach_um`.
    random_features, kernel_gamma
        Default network only: number of random Fourier features of the head; they stand for the kernel
        exp(-kernel_gamma * mean squared difference of the standardised features).
    tile_px
        Default network only: side in px of the square whose nuclei are predicted together.
    patch_px, overlap_px
        Published network only: side of a patch in px and how far neighbouring patches overlap when
        predicting (training patches do not overlap).
    expression_scale
        Published network only: it is trained on ``expression_scale * log1p(count)``.
    min_nucleus_px
        Published network only: nuclei smaller than this (whole area, px) are not trained on.
    use_reference
        Published network only: expression starts as a mixture of reference profiles.
    invasive
        Published network only: also refine Malignant against Epithelial when predicting.
    high_confidence
        Published network only: a T cell with a probability above this is not refined.

    Raises
    ------
    ValueError
        When a value cannot be used; the message names the field, the value and what to do.

    Examples
    --------
    >>> from ghistpy.nn.config import GHISTConfig
    >>> GHISTConfig().architecture
    'default'
    >>> GHISTConfig.published(use_reference=True).widths
    (64, 128, 256, 512, 1024)
    >>> GHISTConfig.from_dict(GHISTConfig.published().to_dict()) == GHISTConfig.published()
    True
    """

    architecture: str = "default"
    mpp: float = 0.5
    widths: tuple[int, ...] = (16, 32, 64)
    embedding: int = 48
    # default network
    stride: int = 4
    decoder: int = 48
    context_um: tuple[float, ...] = (20.0, 60.0)
    random_features: int = 512
    kernel_gamma: float = 0.1
    tile_px: int = 1024
    # published network
    patch_px: int = 256
    overlap_px: int = 30
    expression_scale: float = 5.0
    min_nucleus_px: int = 10
    use_reference: bool = False
    invasive: bool = False
    high_confidence: float = 0.6

    def __post_init__(self) -> None:
        # JSON has lists only; a frozen dataclass must hold tuples to stay hashable.
        for name in ("widths", "context_um"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"{name}: expected a tuple of numbers, got {value!r}; write {name}=(…,)")
            object.__setattr__(self, name, tuple(value))
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture: got {self.architecture!r}; use one of {list(ARCHITECTURES)}")
        self._check_common()
        if self.architecture == "published":
            self._check_published()
        else:
            self._check_default()

    def _check_common(self) -> None:
        _positive("mpp", self.mpp, "give the µm per pixel of the slides the network is made for")
        if not self.widths:
            raise ValueError("widths: got (); give the channels of at least one encoder level")
        for width in self.widths:
            _positive_int("widths", width, "give a positive number of channels for every level")
        _positive_int("embedding", self.embedding, "give a positive length")

    def _check_default(self) -> None:
        for name in ("stride", "decoder", "tile_px", "random_features"):
            _positive_int(name, getattr(self, name), "give a positive integer")
        if self.stride & (self.stride - 1):
            raise ValueError(f"stride: got {self.stride}; use a power of two such as 2 or 4")
        if self.tile_px % self.align_px:
            raise ValueError(
                f"tile_px: got {self.tile_px}, not a multiple of the grid of {self.align_px} px; use a multiple"
            )
        _positive("kernel_gamma", self.kernel_gamma, "0.03 to 0.3 are usual")
        for radius in self.context_um:
            _positive("context_um", radius, "give radii in µm above 0")

    def _check_published(self) -> None:
        if len(self.widths) != len(_PUBLISHED_WIDTHS):
            raise ValueError(
                f"widths: got {self.widths}; the published network has {len(_PUBLISHED_WIDTHS)} levels, "
                f"as in {_PUBLISHED_WIDTHS}; GHISTConfig.published(width_factor=…) scales them all"
            )
        if self.embedding % _ATTENTION_HEADS:
            raise ValueError(
                f"embedding: got {self.embedding}; its attention has {_ATTENTION_HEADS} heads, "
                f"use a multiple of {_ATTENTION_HEADS}"
            )
        _positive_int("patch_px", self.patch_px, "give a side in px")
        if self.patch_px % _PUBLISHED_STRIDE:
            raise ValueError(
                f"patch_px: got {self.patch_px}; the network halves a patch four times, "
                f"use a multiple of {_PUBLISHED_STRIDE}"
            )
        _whole("overlap_px", self.overlap_px)
        if not 0 <= self.overlap_px < self.patch_px:
            raise ValueError(
                f"overlap_px: got {self.overlap_px}; use 0 or more, but less than patch_px={self.patch_px}"
            )
        _positive("expression_scale", self.expression_scale, "the paper uses 5.0")
        _whole("min_nucleus_px", self.min_nucleus_px)
        if self.min_nucleus_px < 0:
            raise ValueError(f"min_nucleus_px: got {self.min_nucleus_px}; use 0 to keep every nucleus")
        if not 0 < self.high_confidence <= 1:
            raise ValueError(f"high_confidence: got {self.high_confidence!r}; use a probability in (0, 1]")

    @property
    def align_px(self) -> int:
        """Windows of the default network start at multiples of this many px."""
        return max(16, self.stride * 2 ** (len(self.widths) - 1))

    @property
    def halo_px(self) -> int:
        """Px around a nucleus that the default network's feature map can see."""
        # Each level: a 3x3 convolution that halves and one that does not; nearest upsampling adds less
        # than one step of the coarsest level; a last 3x3 at the finest.
        steps = [self.stride * 2**level for level in range(len(self.widths))]
        reach = self.stride + steps[0] + sum(below + here for below, here in pairwise(steps)) + steps[0]
        return reach + steps[-1]

    @property
    def reach_um(self) -> float:
        """Distance in µm from the centroid of a nucleus beyond which a pixel has no influence on it.

        Default network: pixels shape the features of a nucleus (of up to 24 µm across), those the types of
        its neighbours in the widest neighbourhood, and these the composition in the narrowest one.
        """
        if self.architecture == "published":
            return self.patch_px * self.mpp
        own = max(self.halo_px * self.mpp + _NUCLEUS_UM, reach_px(self.mpp) * self.mpp)
        widths = self.context_um or (0.0,)
        return own + REACH * (max(widths) + min(widths))

    @classmethod
    def published(cls, *, width_factor: float = 1.0, **overrides: Any) -> GHISTConfig:
        """The network of the GHIST paper, with the paper's values.

        Parameters
        ----------
        width_factor
            Multiplies all five widths. 1 is the paper's network; a smaller one of the same form
            (at 1/16 the first level has 4 channels) serves quick checks and benchmarks.
        **overrides
            Any field of :class:`GHISTConfig` except ``architecture``.

        References
        ----------
        Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.

        Examples
        --------
        >>> GHISTConfig.published(width_factor=0.25, embedding=64).widths
        (16, 32, 64, 128, 256)
        """
        _positive("width_factor", width_factor, "1.0 is the paper's network")
        values: dict[str, Any] = {
            "widths": tuple(max(1, round(width * width_factor)) for width in _PUBLISHED_WIDTHS),
            "embedding": 256,
        }
        if "architecture" in overrides:
            raise ValueError("architecture: published() sets it; call GHISTConfig(…) for another one")
        return cls.from_dict({**values, **overrides, "architecture": "published"})

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values that JSON can hold (tuples become lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GHISTConfig:
        """The inverse of :meth:`to_dict`; fields that are absent take their default.

        Raises
        ------
        ValueError
            When there is a name that is no field, so that a setting never goes missing unseen.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ValueError(
                f"config: unknown field(s) {unknown}; known are {fields}. "
                "A model that a newer ghistpy saved needs that version"
            )
        return cls(**values)


def _positive(name: str, value: object, remedy: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}; {remedy}")


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: expected an integer, got {value!r}; give a whole number of px")


def _positive_int(name: str, value: object, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name}: expected an integer above 0, got {value!r}; {remedy}")
