"""Training, validation and test parts that share no patient, no slide or no pixel."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

WHOLE = np.array([[-np.inf, -np.inf, np.inf, np.inf]])
VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class Region:
    """Instances of one sample and where they lie.

    ids (n,) instance ids of the table; boxes_um (k, 4) float64 rows (y0, x0, y1, x1) in µm; a side
    that is infinite reaches to the border of the slide.
    """

    ids: np.ndarray
    boxes_um: np.ndarray = field(default_factory=lambda: WHOLE.copy())


@dataclass(frozen=True)
class Fold:
    """One split. ``train``, ``val``, ``test``: sample -> :class:`Region`.

    ``left_out`` counts the instances within ``buffer_um`` of a held-out region: they are in no part.
    """

    train: dict[str, Region]
    val: dict[str, Region]
    test: dict[str, Region]
    buffer_um: float = 0.0
    left_out: int = 0

    def held_out(self, sample: str) -> np.ndarray:
        """(k, 4) boxes in µm whose pixels training must not see."""
        parts = [part[sample].boxes_um for part in (self.val, self.test) if sample in part]
        return np.concatenate(parts) if parts else np.zeros((0, 4))


@dataclass(frozen=True)
class _Sample:
    name: str
    patient: str
    ids: np.ndarray
    yx_um: np.ndarray


def named_slides(sdatas: Any) -> dict[str, SpatialData]:
    """Sample -> SpatialData from one, a mapping or a sequence; names from ``attrs``, else numbered."""
    if isinstance(sdatas, Mapping):
        out = {str(k): v for k, v in sdatas.items()}
    else:
        items = list(sdatas) if isinstance(sdatas, Sequence) else [sdatas]
        names = [str(s.attrs.get(_keys.ATTRS, {}).get("sample", f"slide_{i}")) for i, s in enumerate(items)]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"sdatas: sample names {repeated} repeat; pass a mapping sample -> SpatialData")
        out = dict(zip(names, items, strict=True))
    if not out:
        raise ValueError("sdatas: got no slide; pass a SpatialData, a mapping sample -> SpatialData or a sequence")
    return out


def split(
    sdatas: Any,
    *,
    by: str = "patient",
    n_splits: int = 5,
    buffer_um: float | None = None,
    table_key: str = _keys.MEASURED,
    seed: int = 0,
) -> list[Fold]:
    """Split slides into folds without leaks.

    Parameters
    ----------
    sdatas
        A SpatialData, a mapping sample -> SpatialData, or a sequence.
    by
        ``"patient"`` (``attrs["ghistpy"]["patient"]``) or ``"slide"``: a patient or slide is in one
        part of a fold. ``"blocks"``: each slide is cut into ``n_splits`` bands across its longer
        side, with as many instances each; band k is the test part.
    n_splits
        Number of folds; as many as there are patients or slides at the most.
    buffer_um
        Blocks: training instances nearer than this to a held-out band are left out. Default: the
        distance that the default network sees, ``GHISTConfig().reach_um``. The pixels of held-out
        bands are never read in training, whatever the buffer.
    table_key
        Table whose instances are split; ``obsm["spatial"]`` (x, y in µm) is needed.
    seed
        Assignment of patients or slides to folds.

    Returns
    -------
    list of Fold
        ``n_splits`` frozen folds; every instance is in the test part of exactly one.

    Notes
    -----
    Validation (for early stopping and choices within training) is another whole patient or slide when
    five or more remain for training; otherwise a band of 15 % of each training slide.

    Raises
    ------
    ValueError
        Unknown ``by``, fewer groups than folds, a buffer that leaves nothing to train on, sample names
        that repeat, a table that is linked to no element or has no positions.

    Examples
    --------
    >>> import ghistpy as gp
    >>> slide = gp.datasets.simulate_slide(n_cells=300, n_genes=10)
    >>> folds = gp.tl.split(slide, by="blocks", n_splits=3, buffer_um=30)
    >>> sorted(len(fold.test["simulated_0"].ids) for fold in folds)
    [100, 100, 100]
    """
    if by not in ("patient", "slide", "blocks"):
        raise ValueError(f"by={by!r}: expected 'patient', 'slide' or 'blocks'")
    if isinstance(n_splits, bool) or not isinstance(n_splits, (int, np.integer)) or n_splits < 2:
        raise ValueError(f"n_splits={n_splits}: expected 2 or more, a whole number")
    if buffer_um is not None and not (np.isfinite(buffer_um) and buffer_um >= 0):
        raise ValueError(f"buffer_um={buffer_um}: expected 0 µm or more")
    samples = [_sample(name, sdata, table_key) for name, sdata in named_slides(sdatas).items()]
    if by == "blocks":
        if buffer_um is None:
            from ghistpy.nn.config import GHISTConfig

            buffer_um = GHISTConfig().reach_um
        return [_band_fold(samples, k, n_splits, buffer_um) for k in range(n_splits)]
    return _group_folds(samples, by, n_splits, seed)


def _sample(name: str, sdata: SpatialData, table_key: str) -> _Sample:
    from ghistpy.io import get_element
    from ghistpy.io.tables import linked_to

    table = get_element(sdata, "tables", table_key, "table_key")
    link = linked_to(table)
    if link is None:
        raise ValueError(f"table_key={table_key!r} of sample {name!r} annotates no element; it needs an instance key")
    if _keys.SPATIAL not in table.obsm:
        raise ValueError(f"table_key={table_key!r} of sample {name!r} has no obsm['spatial'] (x, y in µm)")
    patient = str(sdata.attrs.get(_keys.ATTRS, {}).get("patient", name))
    yx = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)[:, 1::-1]
    if not np.isfinite(yx).all():
        bad = int((~np.isfinite(yx)).any(axis=1).sum())
        raise ValueError(
            f"obsm['spatial'] of sample {name!r} holds {bad} NaN or infinite positions; remove those rows of "
            f"table_key={table_key!r}, they lie in no part of the slide"
        )
    return _Sample(name, patient, table.obs[link[2]].to_numpy(), yx)


def _group_folds(samples: list[_Sample], by: str, n_splits: int, seed: int) -> list[Fold]:
    group = np.array([s.patient if by == "patient" else s.name for s in samples])
    names = np.unique(group)
    if len(names) < n_splits:
        raise ValueError(
            f"n_splits={n_splits}: there are {len(names)} {by}s ({names.tolist()}); use at most that many, "
            "or by='blocks' within slides"
        )
    shuffled = np.random.default_rng(seed).permutation(names)
    tests = np.array_split(shuffled, n_splits)
    folds = []
    for k, test in enumerate(tests):
        rest = [n for other in (*tests[k + 1 :], *tests[:k]) for n in other]
        val = rest[:1] if len(rest) >= 5 else []
        kept = [s for s, g in zip(samples, group, strict=True) if g in rest and g not in val]
        fold = with_validation(kept) if not val else Fold({s.name: Region(s.ids) for s in kept}, {}, {})
        whole = {s.name: Region(s.ids) for s, g in zip(samples, group, strict=True) if g in val}
        held = {s.name: Region(s.ids) for s, g in zip(samples, group, strict=True) if g in test}
        folds.append(Fold(fold.train, fold.val | whole, held, fold.buffer_um, fold.left_out))
    return folds


def _axis(sample: _Sample) -> int:
    return int(np.ptp(sample.yx_um, axis=0).argmax()) if len(sample.ids) else 0


def _band(axis: int, low: float, high: float) -> np.ndarray:
    box = WHOLE.copy()
    box[0, axis], box[0, axis + 2] = low, high
    return box


def _edges(sample: _Sample, n: int) -> np.ndarray:
    """Edges of ``n`` bands with equally many instances; the outer ones are open."""
    position = sample.yx_um[:, _axis(sample)]
    inner = np.quantile(position, np.arange(1, n) / n) if len(position) else np.zeros(n - 1)
    return np.concatenate([[-np.inf], inner, [np.inf]])


def _inside(sample: _Sample, low: float, high: float) -> np.ndarray:
    position = sample.yx_um[:, _axis(sample)]
    return (position > low) & (position <= high)


def _band_fold(samples: list[_Sample], k: int, n_splits: int, buffer_um: float) -> Fold:
    train, val, test, left_out = {}, {}, {}, 0
    for sample in samples:
        (low, high), (v_low, v_high) = _bands(sample, k, n_splits)
        axis = _axis(sample)
        in_test, in_val = _inside(sample, low, high), _inside(sample, v_low, v_high)
        near = _inside(sample, min(low, v_low) - buffer_um, max(high, v_high) + buffer_um)
        left_out += int((near & ~in_test & ~in_val).sum())
        train[sample.name] = Region(sample.ids[~near])
        val[sample.name] = Region(sample.ids[in_val], _band(axis, v_low, v_high))
        test[sample.name] = Region(sample.ids[in_test], _band(axis, low, high))
    if not sum(len(r.ids) for r in train.values()):
        raise ValueError(
            f"buffer_um={buffer_um:g}: nothing is left to train on in fold {k}; use a smaller buffer, fewer splits, "
            "or a network that sees less (GHISTConfig(context_um=...))"
        )
    logger.info("split: fold %d leaves out %d instances within %g µm of held-out bands", k, left_out, buffer_um)
    return Fold(train, val, test, buffer_um, left_out)


def _bands(sample: _Sample, k: int, n_splits: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of the test band, and of the validation band beside it, on its far side from the nearer border."""
    steps = round(1 / VALIDATION_SHARE)  # of a test band
    # both from one set of edges, so that they meet exactly
    edges = _edges(sample, steps * n_splits)
    first, last = k * steps, (k + 1) * steps
    width = max(1, round((n_splits - 1) * VALIDATION_SHARE * steps))
    beside = (last, last + width) if k < n_splits / 2 else (first - width, first)
    return (edges[first], edges[last]), (edges[beside[0]], edges[beside[1]])


def with_validation(samples: list[_Sample], buffer_um: float = 0.0) -> Fold:
    """All instances for training but a band of 15 % of each slide for validation."""
    n = round(1 / VALIDATION_SHARE)
    train, val, left_out = {}, {}, 0
    for i, sample in enumerate(samples):
        if len(sample.ids) < 4 * n:  # too few to spare any
            train[sample.name] = Region(sample.ids)
            continue
        edges, k = _edges(sample, n), (i * 2 + 1) % n
        low, high = edges[k], edges[k + 1]
        held = _inside(sample, low, high)
        near = _inside(sample, low - buffer_um, high + buffer_um)
        left_out += int((near & ~held).sum())
        train[sample.name] = Region(sample.ids[~near])
        val[sample.name] = Region(sample.ids[held], _band(_axis(sample), low, high))
    return Fold(train, val, {}, buffer_um, left_out)


def validation_fold(slides: Mapping[str, Any], table_key: str, *, whole_slide: bool = False) -> Fold:
    """The split that training makes for itself when it is given none.

    ``whole_slide``: of three slides and more the last is the validation part. A few hundred spots of the
    training slides cannot tell how smooth a fit carries over to another slide; one slide of them can.
    """
    samples = [_sample(name, sdata, table_key) for name, sdata in slides.items()]
    if whole_slide and len(samples) >= 3:
        *train, val = samples
        return Fold({s.name: Region(s.ids) for s in train}, {val.name: Region(val.ids)}, {})
    return with_validation(samples)
