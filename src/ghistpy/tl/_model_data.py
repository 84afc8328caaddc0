"""What a model carries besides its weights: baselines, gene sets and calibration from its training data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from ghistpy.data.targets import Instances
    from ghistpy.engine.fit_head import FitSlide, HeldOut
    from ghistpy.models import GHISTConfig
    from ghistpy.tl._training import TrainingSet

logger = logging.getLogger("ghistpy")

SET_SIZES = (20, 50, 100)
_NEIGHBOURS = 6


def extract_all(
    data: TrainingSet, network: Any, config: GHISTConfig, *, accelerator: str, progress: bool
) -> list[FitSlide]:
    """Features of every nucleus of the slides that the head is fitted on."""
    import torch

    from ghistpy.data.windows import prepare
    from ghistpy.engine.extract import extract

    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    out = []
    for slide in map(prepare, data.fit):
        out.append(_fit_slide(data, slide, extract(network, slide, config, device=device, progress=progress)))
    network.cpu()
    return out


def measure_all(data: TrainingSet, config: GHISTConfig) -> list[FitSlide]:
    """The same with measured features only (the published network has no head to fit)."""
    from ghistpy.data.windows import prepare
    from ghistpy.engine.extract import Extracted, measure

    out = []
    for slide in map(prepare, data.fit):
        n = len(slide.nuclei)
        empty = np.zeros((n, 0), np.float32)
        out.append(_fit_slide(data, slide, Extracted(empty, empty, measure(slide, config.mpp))))
    return out


def _fit_slide(data: TrainingSet, slide: Any, extracted: Any) -> FitSlide:
    from ghistpy.data.targets import instances_of
    from ghistpy.engine.fit_head import FitSlide

    instances = instances_of(slide, len(data.cell_types))
    number = len(data.held[slide.name])
    lost = number - len(instances)
    if lost:
        logger.warning(
            "%s: %d of %d measured instances have no nucleus, or not all: not learned from", slide.name, lost, number
        )
    total = None if data.spot_diameter_um is None else slide.targets.total[instances.kept]
    return FitSlide(slide, extracted, instances, data.held[slide.name][instances.kept], total)


def fit_head(
    data: TrainingSet, fitted: Sequence[FitSlide], config: GHISTConfig, *, seed: int
) -> tuple[Any, HeldOut | None, np.ndarray]:
    """Fit the default network's head; with what it predicts for validation, and the mean per type."""
    from ghistpy.engine.fit_head import fit_head as fit

    return fit(
        fitted,
        config,
        n_types=len(data.cell_types),
        n_genes=len(data.genes),
        spots=data.spot_diameter_um is not None,
        seed=seed,
    )


def instance_morphology(item: FitSlide, *, spots: bool) -> np.ndarray:
    """(S, F) mean morphology of the nuclei of each instance; spots: log1p of their number behind it."""
    from ghistpy.data.windows import N_MORPHOLOGY

    mean = item.instances.average() @ item.extracted.local[:, :N_MORPHOLOGY]
    if not spots:
        return mean
    member = item.instances.member
    number = np.bincount(member[member >= 0], minlength=len(item.instances))
    return np.concatenate([mean, np.log1p(number)[:, None]], axis=1)


def baselines(fitted: Sequence[FitSlide], *, type_means: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Means, variances, type profiles and a morphology ridge, from the training data alone.

    ``type_means`` (C, G) for spots, whose types are mixed.
    """
    from ghistpy.stats.ridge import fit_ridge

    values = np.concatenate([f.instances.values for f in fitted]).astype(np.float64)
    mask = np.concatenate([np.broadcast_to(f.instances.gene_mask, f.instances.values.shape) for f in fitted])
    weight = mask.sum(axis=0)
    mean = (values * mask).sum(axis=0) / np.maximum(weight, 1)
    var = (((values - mean) * mask) ** 2).sum(axis=0) / np.maximum(weight, 1)
    types = np.concatenate([f.instances.types for f in fitted]).astype(np.float64)
    spots = type_means is not None
    if spots:
        profiles = type_means
    else:
        # A type that no cell has (in the panel of a gene) is given the mean of all cells.
        number = types.T @ mask
        profiles = np.where(number > 0, (types.T @ (values * mask)) / np.maximum(number, 1), mean)
    features = np.concatenate([instance_morphology(f, spots=spots) for f in fitted])
    ridge = fit_ridge(
        features,
        values,
        alphas=np.geomspace(1e-4, 1e1, 11) * len(values),
        mask=None if mask.all() else mask,
    )
    return {
        "gene_mean": mean,
        "gene_var": var,
        "type_profiles": profiles,
        "ridge_center": ridge.center,
        "ridge_scale": ridge.scale,
        "ridge_weight": ridge.weight,
        "ridge_intercept": ridge.intercept,
    }


def gene_sets(fitted: Sequence[FitSlide], genes: Sequence[str]) -> dict[str, list[str]]:
    """The 20, 50 and 100 most spatially variable genes of the training data (mean Moran's I), and all."""
    from ghistpy.stats.autocorrelation import morans_i

    total, number = np.zeros(len(genes)), np.zeros(len(genes))
    for item in fitted:
        if len(item.instances) > _NEIGHBOURS:
            score = morans_i(item.instances.values, neighbours(item.instances))
            good = item.instances.gene_mask & np.isfinite(score)
            total[good] += score[good]
            number[good] += 1
    order = np.argsort(-np.where(number > 0, total / np.maximum(number, 1), -np.inf), kind="stable")
    sets = {f"top{n}": [genes[i] for i in order[:n]] for n in SET_SIZES if n < len(genes)}
    return sets | {"all": list(genes)}


def neighbours(instances: Instances) -> sparse.csr_array:
    """(S, S) graph that joins every instance to its nearest others."""
    from scipy.spatial import KDTree

    n = len(instances)
    _, index = KDTree(instances.yx_um).query(instances.yx_um, k=_NEIGHBOURS + 1)
    rows, columns = np.repeat(np.arange(n), _NEIGHBOURS), index[:, 1:].ravel()
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(n, n))


def calibration(held_out: HeldOut) -> dict[str, np.ndarray]:
    """Accuracy per gene on the validation instances, by a head that did not see them."""
    from ghistpy.stats.metrics import pearson
    from ghistpy.stats.skill import skill_score

    every = held_out.measured.all(axis=0)
    pcc, skill = np.full(len(every), np.nan), np.full(len(every), np.nan)
    if every.any():
        truth, predicted = held_out.values[:, every], held_out.predicted[:, every]
        pcc[every] = pearson(truth, predicted)
        skill[every] = skill_score(truth, predicted, held_out.type_mean[:, every])
    return {"expected_pcc": pcc, "expected_skill": skill}
