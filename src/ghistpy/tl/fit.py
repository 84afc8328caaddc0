"""Train a predictor on slides with measured expression."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from pathlib import Path

    from ghistpy.data.slide import Slide
    from ghistpy.models import GHIST, GHISTConfig
    from ghistpy.tl._training import TrainingSet
    from ghistpy.tl.split import Fold

logger = logging.getLogger("ghistpy")


def fit(
    sdatas: Any,
    *,
    config: GHISTConfig | None = None,
    fold: Fold | None = None,
    image_key: str = _keys.IMAGE,
    labels_key: str = _keys.LABELS,
    table_key: str = _keys.MEASURED,
    cell_type_key: str = _keys.CELL_TYPE,
    genes: Sequence[str] | None = None,
    reference: Any = None,
    proportions_key: str | None = None,
    supervision: str = "cells",
    max_epochs: int = 30,
    accelerator: str = "auto",
    devices: Any = "auto",
    precision: str = "32-true",
    seed: int = 0,
    callbacks: Sequence[Any] | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> GHIST:
    """Train a network that predicts expression and cell type of every nucleus from H&E.

    Parameters
    ----------
    sdatas
        A SpatialData, a mapping sample -> SpatialData, or a sequence. Panels may differ: a gene that a
        slide did not measure is left out of that slide's loss.
    config
        Settings of the network; default ``GHISTConfig()``, or ``GHISTConfig.published(...)``.
    fold
        A fold of :func:`ghistpy.tl.split`: trains on its ``train`` part, stops and chooses by ``val``;
        pixels of ``val`` and ``test`` regions are blanked before anything is computed. None: a band of
        15 % of each slide is the validation part (spots of three slides and more: the last slide).
    image_key, labels_key
        Image and nucleus labels of each slide.
    table_key
        Measured table with raw counts, linked to the labels (cells) or to the spots' shapes.
    cell_type_key
        Column of ``obs`` with cell types (cells).
    genes
        Genes to learn; default all of the tables.
    reference
        Profiles (AnnData or DataFrame, profiles x genes, log1p scale). Spots: their mixture gives the
        types of the spots. Published network with ``use_reference``: its reference.
    proportions_key
        Spots: ``obsm`` key with cell-type proportions per spot (a DataFrame, or an array with names in
        ``uns[key + "_cell_types"]``). Without it and ``reference`` the types are latent states
        ``state_1`` ... and no type metric means anything.
    supervision
        ``"cells"`` or ``"spots"``: the nuclei of a spot together explain its counts.
    max_epochs
        Epochs at the most; training stops earlier when the validation loss does. 0 fits the
        head on measured morphology and untrained features only.
    accelerator, devices, precision, callbacks
        As Lightning's Trainer takes them.
    seed
        Start weights, sampling and augmentation.
    checkpoint_dir
        Folder for checkpoints; an interrupted training goes on from its last finished epoch.
    progress
        Show progress bars.

    Returns
    -------
    GHIST
        The model, with baselines, gene sets and calibration from the training data.

    Raises
    ------
    ValueError
        No raw counts, no nuclei, genes or types that are in no table, an unknown ``supervision``, or a
        ``checkpoint_dir`` of another training.

    Notes
    -----
    The network learns to see nuclei; then types, profiles and the residual are fitted in closed form on
    features of the nuclei and of their neighbourhood (:class:`ghistpy.nn.head.ContextHead`).

    Examples
    --------
    >>> import ghistpy as gp
    >>> slide = gp.datasets.simulate_slide(n_cells=200, n_genes=10)
    >>> model = gp.tl.fit(slide, max_epochs=0, progress=False)
    >>> model.genes == list(slide["measured"].var_names)
    True
    """
    from ghistpy.models import GHISTConfig
    from ghistpy.tl._training import gather
    from ghistpy.tl.split import named_slides, validation_fold

    if supervision not in ("cells", "spots"):
        raise ValueError(f"supervision={supervision!r}: expected 'cells' or 'spots'")
    if isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 0:
        raise ValueError(f"max_epochs={max_epochs!r}: expected 0 or a positive number of epochs")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected 0 or a positive whole number")
    config = config or GHISTConfig()
    slides = named_slides(sdatas)
    fold = fold or validation_fold(slides, table_key, whole_slide=supervision == "spots")
    data = gather(
        slides,
        fold,
        supervision=supervision,
        image_key=image_key,
        labels_key=labels_key,
        table_key=table_key,
        cell_type_key=cell_type_key,
        genes=genes,
        proportions_key=proportions_key,
    )
    trainer = {
        "max_epochs": max_epochs,
        "seed": seed,
        "accelerator": accelerator,
        "devices": devices,
        "precision": precision,
        "checkpoint_dir": checkpoint_dir,
        "callbacks": tuple(callbacks or ()),
        "progress": progress,
    }
    if config.architecture == "published":
        return _fit_published(data, config, reference, trainer)
    if supervision == "spots" and not data.cell_types:
        data = _with_spot_types(data, reference, seed)
    return _fit_default(data, config, trainer)


def _fit_default(data: TrainingSet, config: GHISTConfig, trainer: Mapping[str, Any]) -> GHIST:
    from ghistpy.engine.train import TrainOptions, train_network
    from ghistpy.models import GHIST
    from ghistpy.tl import _model_data

    spots = data.spot_diameter_um is not None
    options = TrainOptions(**trainer, **({"batch_size": 16, "patience": 6} if spots else {}))
    trained = train_network(
        data.train,
        data.validation,
        config,
        n_genes=len(data.genes),
        n_types=len(data.cell_types),
        spot_diameter_um=data.spot_diameter_um,
        options=options,
    )
    fitted = _model_data.extract_all(
        data, trained.network, config, accelerator=options.accelerator, progress=options.progress
    )
    head, held_out, type_means = _model_data.fit_head(data, fitted, config, seed=options.seed)
    return GHIST(
        network=trained.network,
        head=head,
        config=config,
        genes=data.genes,
        cell_types=data.cell_types,
        supervision="spots" if spots else "cells",
        baselines=_model_data.baselines(fitted, type_means=type_means if spots else None),
        gene_sets=_model_data.gene_sets(fitted, data.genes),
        calibration={} if held_out is None else _model_data.calibration(held_out),
        history=trained.history,
    )


def _with_spot_types(data: TrainingSet, reference: Any, seed: int) -> TrainingSet:
    """Spots without known types get shares of the reference's profiles, or one latent state each."""
    from ghistpy.data.targets import SPOT_SCALE
    from ghistpy.engine.states import LatentStates
    from ghistpy.stats.mixture import mixture_proportions

    def scaled(slide: Slide) -> np.ndarray:
        target = slide.targets
        return np.log1p(SPOT_SCALE * target.counts / np.maximum(target.total, 1)[:, None])

    if reference is None:
        states = LatentStates(np.concatenate([scaled(s) for s in data.train]), seed=seed)
        names = [f"state_{k + 1}" for k in range(len(states))]
        logger.info("spots have no cell types: %d latent states stand in for them", len(names))

        def shares(slide: Slide) -> np.ndarray:
            return states.assign(scaled(slide))
    else:
        names, profiles = reference_profiles(reference, data.genes)

        def shares(slide: Slide) -> np.ndarray:
            return mixture_proportions(slide.targets.counts, np.expm1(profiles)).astype(np.float32)

    def typed(slides: list[Slide]) -> list[Slide]:
        return [replace(s, targets=replace(s.targets, proportions=shares(s))) for s in slides]

    return replace(
        data,
        cell_types=names,
        train=typed(data.train),
        validation=typed(data.validation),
        fit=typed(data.fit),
    )


def reference_profiles(reference: Any, genes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names and (K, G) log profiles of a reference in the order of ``genes``; absent genes are 0."""
    frame = reference.to_df() if hasattr(reference, "to_df") else reference
    shared = [g for g in genes if g in frame.columns]
    if not shared:
        raise ValueError(
            f"reference: shares no gene with the panel ({list(genes[:3])}…); its columns are {list(frame.columns[:3])}…"
        )
    if len(shared) < len(genes):
        absent = len(genes) - len(shared)
        logger.warning("reference lacks %d of %d genes; they count as not expressed", absent, len(genes))
    values = frame.reindex(columns=list(genes), fill_value=0.0).to_numpy(dtype=np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("reference: expected finite log1p values of 0 and above")
    return [str(n) for n in frame.index], values


def _fit_published(data: TrainingSet, config: GHISTConfig, reference: Any, trainer: Mapping[str, Any]) -> GHIST:
    from ghistpy.engine.train_published import train_published
    from ghistpy.models import GHIST
    from ghistpy.tl import _model_data

    if data.spot_diameter_um is not None:
        raise ValueError("supervision='spots': the published network learns from single cells; use the default network")
    profiles = None
    if config.use_reference:
        if reference is None:
            raise ValueError("reference: config.use_reference is set, so profiles are needed (pass reference=)")
        profiles = reference_profiles(reference, data.genes)[1]
    network, extras, history = train_published(
        data.train, config, genes=data.genes, cell_types=data.cell_types, reference=profiles, **trainer
    )
    fitted = _model_data.measure_all(data, config)
    return GHIST(
        network=network,
        config=config,
        genes=data.genes,
        cell_types=data.cell_types,
        extras=extras,
        baselines=_model_data.baselines(fitted),
        gene_sets=_model_data.gene_sets(fitted, data.genes),
        history=history,
    )
