"""Predict expression and cell type of every nucleus of a slide."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.data.slide import Slide
    from ghistpy.engine.options import RunOptions
    from ghistpy.engine.prediction import Prediction
    from ghistpy.engine.scratch import Scratch, StoredRows
    from ghistpy.models import GHIST

logger = logging.getLogger("ghistpy")

_CHUNK_BYTES = 2**24  # of a block of X in the store, when X is written block by block


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
    batch_size: int | str | None = "auto",
    workers: int | str | None = "auto",
    compile: bool = False,
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
        ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"``: on CUDA bfloat16 where the device has it,
        else float16; float32 on the CPU, where bfloat16 is a choice.
    batch_size
        Windows at once. ``"auto"``: 1 on the CPU; on CUDA what fits into half of the free memory. Does not
        change the result beyond rounding.
    workers
        Threads that read ahead; ``"auto"``: one per core, 8 at most. Does not change the result.
    compile
        Compile the convolutions of the default network with ``torch.compile``: worth its 20 to 60 s only on
        a GPU and for many slides in one process.
    resume
        Go on where an earlier call with the same model, image and labels was stopped. Finished blocks lie in
        a folder beside the store, ``<store>.<key_added>.partial``, which is removed at the end. ``False``:
        remove what is there and start over.
    scratch_dir
        Folder for the blocks instead of beside the store. A slide that has no store is resumed only with it.
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

    Memory does not grow with the slide but for about 0.5 kB per nucleus: pixels are read window by window,
    and with a store or ``scratch_dir`` features and predicted values wait on disk. Above 256 MB, ``X`` of
    the table in memory is a dask array over the store; ``.to_memory()`` loads it.

    Raises
    ------
    ValueError
        µm/px unknown, image and labels of different size, float labels, an image that is normalised
        already, an unknown ``precision``, a ``batch_size`` or number of ``workers`` that makes no sense,
        an unfinished prediction of another model, image or labels (what changed is named).
    TypeError
        ``model`` is neither a model nor a path.
    OSError
        The store or the scratch folder cannot be written, or a tile cannot be read (it is named). The store
        is then unchanged, and finished blocks are kept for the next call.

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
    from ghistpy.data.windows import prepare
    from ghistpy.engine.options import choose_options
    from ghistpy.engine.predict import fingerprint
    from ghistpy.geometry import NamedSource, find_nuclei
    from ghistpy.imaging.stain import sample_pixels, white_balance
    from ghistpy.io import ensure_can_save, open_slide
    from ghistpy.models import GHIST

    if isinstance(model, (str, Path)):
        model = GHIST.load(model)
    if not isinstance(model, GHIST):
        raise TypeError(f"model: expected a GHIST or the folder of one, got {type(model).__name__}")
    if refine < 0 or not np.isfinite(refine):
        raise ValueError(f"refine={refine}: expected 0 or more")
    options = choose_options(
        model.config,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        compiled=compile,
        progress=progress,
    )
    ensure_can_save(sdata, key_added)
    if sdata.attrs.get(_keys.ATTRS, {}).get("normalized", {}).get(image_key):
        raise ValueError(
            f"image_key={image_key!r} is stain-normalised already; the model normalises what it is given, "
            "pass the original image"
        )
    image, labels, mpp = open_slide(sdata, image_key, labels_key)
    name = str(sdata.attrs.get(_keys.ATTRS, {}).get("sample", "slide"))
    sample = sample_pixels(NamedSource(image, f"slide {name!r}: image"))
    slide = prepare(Slide(name, image, labels, mpp, find_nuclei(labels), stain=white_balance(sample)))
    if len(slide.nuclei) == 0:
        logger.warning("labels_key=%r holds no nucleus: the table %r has no rows", labels_key, key_added)
    parameters = {"refine": refine, "precision": precision, "device": options.device}
    identity = {**_identity(model, refine, options), **fingerprint(slide, sample)}
    with _scratch(sdata, f"{name}.{key_added}", identity, resume, scratch_dir) as scratch:
        prediction = _run(model, slide, refine, options, scratch)
        table = _table(prediction, slide, model, labels_key, image_key, parameters)
        _write(sdata, key_added, table)


def _identity(model: GHIST, refine: float, options: RunOptions) -> dict[str, str]:
    """What the finished blocks of a prediction depend on, beside the slide."""
    import ghistpy

    precision = "float32" if options.autocast is None else str(options.autocast).removeprefix("torch.")
    identity = {"model": model.hash, "precision": precision, "version": ghistpy.__version__}
    if model.config.architecture == "published":
        identity["refine"] = repr(float(refine))  # it is refined patch by patch, before a block is finished
    return identity


@contextlib.contextmanager
def _scratch(
    sdata: SpatialData, name: str, identity: dict[str, str], resume: bool, scratch_dir: str | Path | None
) -> Iterator[Scratch | None]:
    """The folder for finished blocks, or None; what fails inside leaves it for the next call.

    ``name`` tells the runs in one ``scratch_dir`` apart; beside a store, the store's name does.
    """
    from ghistpy.engine.scratch import Scratch
    from ghistpy.io.tables import store_path

    store = store_path(sdata)
    if scratch_dir is None and store is None:
        if resume:
            logger.info("resume=True has no effect: the slide has no store; give scratch_dir= to make it resumable")
        yield None
        return
    folder = Path(scratch_dir or store.parent)
    if store is not None:
        name = f"{store.name}.{name.rpartition('.')[2]}"
    scratch = Scratch(folder / f"{name}.partial", identity, resume=resume)
    try:
        yield scratch
    except BaseException:
        scratch.close()
        raise
    scratch.remove()


def _run(model: GHIST, slide: Slide, refine: float, options: RunOptions, scratch: Scratch | None) -> Prediction:
    common = {"refine": refine, "options": options, "scratch": scratch}
    if model.config.architecture == "published":
        from ghistpy.engine.published import predict_published
        from ghistpy.nn.published_losses import TypeRoles

        return predict_published(
            model.network,
            slide,
            image_mean=model.extras["image_mean"],
            image_std=model.extras["image_std"],
            roles=TypeRoles.from_names(model.cell_types),
            **common,
        )
    from ghistpy.engine.predict import predict

    return predict(model.network, model.head, slide, model.config, spots=model.supervision == "spots", **common)


def _write(sdata: SpatialData, key_added: str, table: AnnData) -> None:
    """Set and store the table; a large matrix goes block by block from the scratch file into the store."""
    from ghistpy.io import write_table
    from ghistpy.io.tables import lazy_matrix

    if isinstance(table.X, np.ndarray):
        write_table(sdata, key_added, table)
        return
    import dask

    # one block at a time: threads would each hold one
    with dask.config.set(scheduler="synchronous"):
        write_table(sdata, key_added, table)
        lazy = lazy_matrix(sdata, key_added)
        # without a store the values live in the scratch folder, which is about to go
        table.X = table.X.compute() if lazy is None else lazy


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
        _matrix(prediction.expression),
        model.genes,
        region=labels_key,
        instance_key=_keys.CELL_ID,
        ids=prediction.ids,
        obs=obs,
        obsm=obsm,
        var=model.calibration,
        uns={_keys.UNS: _provenance(model, slide, labels_key, image_key, parameters)},
    )


def _matrix(values: np.ndarray | StoredRows) -> Any:
    """What fits is in memory; what lies in a file becomes a dask array over it."""
    if isinstance(values, np.ndarray):
        return values
    import dask.array as da

    rows = max(1, _CHUNK_BYTES // (4 * max(values.shape[1], 1)))
    return da.from_array(values, chunks=(rows, values.shape[1]), name=False, asarray=False)


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
