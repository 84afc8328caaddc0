"""Predict expression and cell type of every nucleus of a slide."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.data.slide import Slide
    from ghistpy.engine.prediction import Prediction
    from ghistpy.models import GHIST

logger = logging.getLogger("ghistpy")

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def predict_expression(
    sdata: SpatialData,
    model: GHIST | str | Path,
    *,
    image_key: str = _keys.IMAGE,
    labels_key: str = _keys.LABELS,
    key_added: str = _keys.INSILICO,
    refine: float = 2.0,
    device: str | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    workers: int = 1,
    resume: bool = True,
    scratch_dir: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Predict expression and cell type of every nucleus and write the table.

    Parameters
    ----------
    sdata
        Slide with an RGB image and nucleus labels of the same size; µm/px is the image's ``Scale`` to
        ``"microns"``. A slide at another µm/px than the model's is resampled window by window.
    model
        A :class:`~ghistpy.models.GHIST`, or the folder of one.
    image_key, labels_key
        Image and labels.
    key_added
        Name of the table. On a backed store an existing one is replaced without a moment in
        which neither is there.
    refine
        How much the neighbourhood moves the cell types: 0 not at all, 2 as much as fitted the training
        cells best (default network) or as published.
    device
        ``"cpu"``, ``"cuda"``, ...; default CUDA when there is one.
    precision
        ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"``: bfloat16 on CUDA devices that have it,
        else float32.
    batch_size
        Windows at once; default 1 on the CPU, 8 on a GPU. Does not change the result.
    workers
        Threads that read ahead.
    resume, scratch_dir
        Accepted for the interface; a run is not resumed yet, and a ``scratch_dir`` is logged as unused.
    progress
        Show a progress bar.

    Notes
    -----
    Written: table ``key_added``, one row per nucleus in ascending id, linked to ``labels_key``.

    ================================ ======== ============ ==============================================
    key                              slot     dtype        meaning
    ================================ ======== ============ ==============================================
    X                                X        float32      (n, G) log1p(expected count)
    cell_id                          obs      int64        id of the nucleus, as in the labels
    region                           obs      categorical  name of the labels
    cell_type, cell_type_raw         obs      categorical  type after and before refinement
    cell_type_confidence             obs      float32      probability of ``cell_type``
    area_um2                         obs      float32      area of the nucleus
    total                            obs      float32      expected counts over all genes of the assay
    spatial                          obsm     float64      (n, 2) x, y of the centroid, µm
    cell_type_proba                  obsm     float32      (n, C), order in ``uns["ghistpy"]["cell_types"]``
    composition                      obsm     float32      (n, C) mean types of the neighbourhood
    morphology                       obsm     float32      (n, F), names in ``uns["ghistpy"]``
    expected_pcc, expected_skill     var      float64      accuracy on the validation split, when known
    ghistpy                          uns      dict         provenance: version, model, units, µm/px, ...
    ================================ ======== ============ ==============================================

    Raises
    ------
    ValueError
        µm/px unknown, image and labels of different size, float labels, an image that is normalised
        already, an unknown ``precision``, a ``batch_size`` or number of ``workers`` that makes no sense.
    TypeError
        ``model`` is neither a model nor a path.
    OSError
        The store cannot be written (it is then unchanged), or a tile cannot be read (it is named).

    References
    ----------
    Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z (the published network).

    Examples
    --------
    >>> import ghistpy as gp
    >>> slide = gp.datasets.simulate_slide(n_cells=200, n_genes=10)
    >>> model = gp.tl.fit(slide, max_epochs=0, progress=False)
    >>> gp.tl.predict_expression(slide, model, progress=False)
    >>> slide["insilico"].n_obs
    200
    """
    from ghistpy.data.slide import Slide
    from ghistpy.geometry import find_nuclei
    from ghistpy.io import ensure_can_save, open_slide, write_table
    from ghistpy.models import GHIST

    if isinstance(model, (str, Path)):
        model = GHIST.load(model)
    if not isinstance(model, GHIST):
        raise TypeError(f"model: expected a GHIST or the folder of one, got {type(model).__name__}")
    _check_options(refine, precision, batch_size, workers)
    if scratch_dir is not None:
        logger.info("scratch_dir=%s is not used: this version does not resume a prediction", scratch_dir)
    ensure_can_save(sdata, key_added)
    if sdata.attrs.get(_keys.ATTRS, {}).get("normalized", {}).get(image_key):
        raise ValueError(
            f"image_key={image_key!r} is stain-normalised already; the model normalises what it is given, "
            "pass the original image"
        )
    image, labels, mpp = open_slide(sdata, image_key, labels_key)
    name = str(sdata.attrs.get(_keys.ATTRS, {}).get("sample", "slide"))
    slide = Slide(name, image, labels, mpp, find_nuclei(labels))
    if len(slide.nuclei) == 0:
        logger.warning("labels_key=%r holds no nucleus: the table %r has no rows", labels_key, key_added)
    prediction = _run(model, slide, refine, _device(device), precision, batch_size, workers, progress)
    parameters = {"refine": refine, "precision": precision, "device": str(_device(device))}
    table = _table(prediction, slide, model, labels_key, image_key, parameters)
    write_table(sdata, key_added, table)


def _check_options(refine: float, precision: str, batch_size: int | None, workers: int) -> None:
    if refine < 0 or not np.isfinite(refine):
        raise ValueError(f"refine={refine}: expected 0 or more")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {_PRECISIONS}")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _autocast(precision: str, device: str) -> Any:
    import torch

    if precision == "auto":
        on_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _run(
    model: GHIST,
    slide: Slide,
    refine: float,
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int,
    progress: bool,
) -> Prediction:
    common = {
        "refine": refine,
        "device": device,
        "batch_size": batch_size or (1 if device == "cpu" else 8),
        "workers": workers,
        "autocast": _autocast(precision, device),
        "progress": progress,
    }
    if model.config.architecture == "published":
        from ghistpy.data.windows import prepare
        from ghistpy.engine.published import predict_published
        from ghistpy.nn.published_losses import TypeRoles

        return predict_published(
            model.network,
            prepare(slide),
            image_mean=model.extras["image_mean"],
            image_std=model.extras["image_std"],
            roles=TypeRoles.from_names(model.cell_types),
            **common,
        )
    from ghistpy.engine.predict import predict

    return predict(model.network, model.head, slide, model.config, spots=model.supervision == "spots", **common)


def _table(
    prediction: Prediction,
    slide: Slide,
    model: GHIST,
    labels_key: str,
    image_key: str,
    parameters: dict[str, Any],
) -> AnnData:
    import pandas as pd

    from ghistpy.io import make_table

    n = len(prediction.ids)
    confidence = prediction.proba[np.arange(n), prediction.cell_type] if n else np.zeros(0, np.float32)
    obs = {
        _keys.CELL_TYPE: pd.Categorical.from_codes(prediction.cell_type, model.cell_types),
        _keys.CELL_TYPE_RAW: pd.Categorical.from_codes(prediction.cell_type_raw, model.cell_types),
        _keys.CELL_TYPE_CONFIDENCE: confidence,
        _keys.AREA_UM2: (slide.nuclei.area_px * slide.mpp**2).astype(np.float32),
        _keys.TOTAL: prediction.total,
    }
    obsm = {
        _keys.SPATIAL: slide.nuclei.centroid_px[:, ::-1] * slide.mpp,
        _keys.CELL_TYPE_PROBA: prediction.proba,
        _keys.COMPOSITION: prediction.composition,
        _keys.MORPHOLOGY: prediction.morphology,
    }
    return make_table(
        prediction.expression,
        model.genes,
        region=labels_key,
        instance_key=_keys.CELL_ID,
        ids=prediction.ids,
        obs=obs,
        obsm=obsm,
        var=model.calibration,
        uns={_keys.UNS: _provenance(model, slide, labels_key, image_key, parameters)},
    )


def _provenance(
    model: GHIST, slide: Slide, labels_key: str, image_key: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    import ghistpy
    from ghistpy.imaging.morphology import FEATURES

    return {
        "kind": "in silico: predicted from H&E, not measured",
        "units": _keys.UNITS_LOG1P,
        "version": ghistpy.__version__,
        "model_hash": model.hash,
        "architecture": model.config.architecture,
        "supervision": model.supervision,
        "cell_types": list(model.cell_types),
        "morphology_features": list(FEATURES),
        "mpp": float(slide.mpp),
        "model_mpp": float(model.mpp),
        "image_key": image_key,
        "labels_key": labels_key,
        "params": json.dumps(parameters),
    }
