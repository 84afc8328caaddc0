"""Xenium output and its H&E image into a SpatialData, in the frame of the H&E."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.geometry.affine import apply_affine, check_affine, take_apart
from ghistpy.geometry.source import Window

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource

logger = logging.getLogger("ghistpy")

CELLS = "cells"
_BLOCK = 1024


@dataclass(frozen=True)
class _Frame:
    """The frame of the slide: its image when there is one, size (y, x) in px, µm/px.

    ``from_xenium`` (3, 3) takes µm of the Xenium run to µm of the slide; ``pixel_size`` µm per px of the run.
    """

    pixels: Any
    shape: tuple[int, int]
    mpp: float
    from_xenium: np.ndarray
    pixel_size: float


def read_xenium(
    path: str | Path,
    *,
    histology: str | Path | None = None,
    alignment: str | Path | np.ndarray | None = None,
    mpp: float | None = None,
    transcripts: bool = True,
    max_pixels: int = 1_000_000_000,
) -> SpatialData:
    """Read the output of a Xenium run, and the H&E image of the same section.

    Parameters
    ----------
    path
        Folder of the run: ``experiment.xenium``, ``cells.zarr.zip``, ``cells.parquet``,
        ``cell_feature_matrix.h5``, ``transcripts.parquet``.
    histology
        The H&E image, with or without pyramid, any format of :func:`read_slide`. None: the ``*he_image.ome.tif``
        of the folder, and without one a slide without image, in the frame of the run.
    alignment
        What Xenium Explorer exports for it: a CSV of 3 x 3 numbers (or the matrix) that takes pixels (x, y) of
        the H&E to pixels of the morphology image. None: the ``*he_imagealignment.csv`` of the folder; without
        one the two frames are taken to be the same, which :func:`ghistpy.pp.match_cells` can check.
    mpp
        µm per pixel of the H&E. Default: what the file says, else what the alignment says.
    transcripts
        Read the transcripts as well (lazily).
    max_pixels
        Of a PNG or JPEG, see :func:`read_slide`.

    Returns
    -------
    SpatialData
        All in the frame of the H&E, which is neither turned nor resampled:

        ===================== ======= ==================================================================
        element               kind    holds
        ===================== ======= ==================================================================
        ``he``                image   (3, y, x) uint8 with its µm/px
        ``nuclei``, ``cells`` labels  segmentation of the run, taken to the pixels of the H&E by nearest
                                      neighbour, lazily; the value is the number of the *cell*
        ``transcripts``       points  as in the file; an affine transformation to ``"microns"``
        ``measured``          table   raw counts of cells x genes, controls left out
        ===================== ======= ==================================================================

        The table is linked to ``nuclei`` by ``obs["cell_id"]`` (1 .. n, the order of the run); the id of the
        vendor is ``obs["original_id"]``; ``obsm["spatial"]`` is the centroid of the cell (x, y in µm of the
        H&E), ``obs["total"]`` the counts over all genes, ``obs["cell_area_um2"]`` its area.
        ``attrs["ghistpy"]["xenium"]`` holds the alignment and how many cells lie outside the image.

    Raises
    ------
    ImportError
        The extra ``xenium`` (spatialdata-io) is not installed.
    FileNotFoundError
        The folder or one of its files is missing.
    ValueError
        An alignment that is singular, mirrored, or does not agree with the µm/px of the file (the message
        says so when its inverse does); most cells outside the image; ids that repeat.

    Notes
    -----
    A cell with two nuclei has two pieces with one number; a cell without a nucleus has no label in ``nuclei``
    and is still a row of the table. ``sdata.write`` computes the labels once; until then they are looked up
    anew at each reading.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.io.read_xenium("outs", histology="he.ome.tif", alignment="matrix.csv")  # doctest: +SKIP
    >>> gp.pp.match_cells(sdata)  # doctest: +SKIP
    """
    import spatialdata as sd
    from spatialdata.transformations import Affine, set_transformation

    from ghistpy.io.elements import image_element
    from ghistpy.io.sources import open_labels

    folder = Path(path)
    experiment = _experiment(folder)
    histology, alignment = _find_histology(folder, histology, alignment)
    raw = _read_folder(folder, transcripts)
    frame = _frame(raw, experiment, histology, alignment, mpp, max_pixels)
    lut = _nucleus_to_cell(folder)
    labels = {
        _keys.LABELS: _labels_in_frame(open_labels(raw, "nucleus_labels"), frame, lut),
        CELLS: _labels_in_frame(open_labels(raw, "cell_labels"), frame, None),
    }
    table, outside = _table(raw.tables["table"], frame)
    report = {"alignment": frame.from_xenium.tolist(), "cells": table.n_obs, "cells_outside_image": outside}
    images = {} if frame.pixels is None else {_keys.IMAGE: image_element(frame.pixels, frame.mpp)}
    points = {}
    if transcripts:
        points[_keys.TRANSCRIPTS] = raw.points["transcripts"]
        to_microns = Affine(frame.from_xenium, input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(points[_keys.TRANSCRIPTS], {_keys.MICRONS: to_microns}, set_all=True)
    sample = str(experiment.get("region_name") or folder.name)
    return sd.SpatialData(
        images=images,
        labels=labels,
        points=points,
        tables={_keys.MEASURED: table},
        attrs={_keys.ATTRS: {"sample": sample, "xenium": report}},
    )


def _experiment(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(folder)!r}: there is no such folder")
    file = folder / "experiment.xenium"
    if not file.is_file():
        raise FileNotFoundError(f"path={str(folder)!r} has no experiment.xenium; is it the output folder of the run?")
    missing = [n for n in ("cells.zarr.zip", "cells.parquet", "cell_feature_matrix.h5") if not (folder / n).is_file()]
    if missing:
        raise FileNotFoundError(f"path={str(folder)!r} lacks {missing}; copy the whole output folder of the run")
    try:
        experiment = json.loads(file.read_text())
        pixel_size = float(experiment["pixel_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not the description of a Xenium run ({error!r})") from error
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"{file}: pixel_size={pixel_size}; expected µm per pixel above 0")
    return experiment


def _find_histology(folder: Path, histology: Any, alignment: Any) -> tuple[Path | None, Any]:
    """The image and alignment that were given, else those of the folder."""
    if histology is None and alignment is not None:
        raise ValueError("alignment: there is no image to align; pass histology= as well")
    if histology is not None:
        return Path(histology), alignment
    found = sorted(folder.glob("*he_image.ome.tif*"))
    if not found:
        logger.info("%s has no *he_image.ome.tif: the slide has no image", folder)
        return None, None
    if len(found) > 1:
        raise ValueError(f"histology: {folder} has {[f.name for f in found]}; pass the one to use")
    matrices = sorted(folder.glob("*he_imagealignment.csv"))
    logger.info("H&E image %s, alignment %s", found[0].name, matrices[0].name if matrices else None)
    return found[0], matrices[0] if matrices else None


def _read_folder(folder: Path, transcripts: bool) -> SpatialData:
    from ghistpy._optional import require

    if transcripts and not (folder / "transcripts.parquet").is_file():
        raise FileNotFoundError(f"path={str(folder)!r} lacks transcripts.parquet; pass transcripts=False to go without")
    reader = require("spatialdata_io", extra="xenium").xenium
    return reader(
        folder,
        cells_boundaries=False,
        nucleus_boundaries=False,
        cells_as_circles=False,
        cells_labels=True,
        nucleus_labels=True,
        transcripts=transcripts,
        morphology_mip=False,
        morphology_focus=False,
        aligned_images=False,
        cells_table=True,
    )


def read_alignment(alignment: str | Path | np.ndarray) -> np.ndarray:
    """The alignment matrix of Xenium Explorer: pixels (x, y) of the H&E to pixels of the morphology image.

    Parameters
    ----------
    alignment
        CSV of 3 x 3 numbers, or the matrix.

    Returns
    -------
    numpy.ndarray
        (3, 3) float64.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not 3 x 3 finite numbers, singular, or mirrored.
    """
    name = "alignment"
    if isinstance(alignment, (str, Path)):
        file = Path(alignment)
        name = f"alignment={str(file)!r}"
        if not file.is_file():
            raise FileNotFoundError(f"{name}: there is no such file")
        try:
            alignment = np.loadtxt(file, delimiter=",", ndmin=2, encoding="utf-8-sig")
        except ValueError as error:
            raise ValueError(
                f"{name}: expected three rows of three numbers, as Xenium Explorer exports ({error})"
            ) from error
    matrix = check_affine(alignment, name)
    if take_apart(matrix).mirrored:
        raise ValueError(
            f"{name}: the matrix mirrors the image (its determinant is negative); a section is not turned over between "
            "Xenium and H&E. Mirror the image file if it was scanned so, align it again and export the matrix"
        )
    return matrix


def _frame(
    raw: SpatialData, experiment: dict[str, Any], histology: Path | None, alignment: Any, mpp: float | None, limit: int
) -> _Frame:
    from ghistpy.io.elements import check_mpp
    from ghistpy.io.slide import read_pixels
    from ghistpy.io.sources import open_labels

    pixel_size = float(experiment["pixel_size"])
    if histology is None:
        if mpp is not None:
            raise ValueError(f"mpp={mpp!r}: there is no image that it could belong to; pass histology=")
        return _Frame(None, open_labels(raw, "cell_labels").shape, pixel_size, np.eye(3), pixel_size)
    if not histology.exists():
        raise FileNotFoundError(f"histology={str(histology)!r}: there is no such file")
    matrix = None if alignment is None else read_alignment(alignment)
    pixels, found = read_pixels(histology, limit)
    stated = check_mpp(mpp) if mpp is not None else found
    if matrix is None:
        if stated is None:
            raise ValueError(f"{histology}: neither the file nor an alignment says how many µm a pixel has; pass mpp=")
        logger.warning(
            "%s: no alignment was given; µm of the image are taken to be µm of the run, which pp.match_cells checks",
            histology,
        )
        return _Frame(pixels, pixels.shape[-2:], stated, np.eye(3), pixel_size)
    implied = _check_scale(matrix, pixel_size, stated)
    used = stated if stated is not None else implied
    to_slide = np.diag([used, used, 1]) @ np.linalg.inv(matrix) @ np.diag([1 / pixel_size, 1 / pixel_size, 1])
    return _Frame(pixels, pixels.shape[-2:], used, to_slide, pixel_size)


def _check_scale(matrix: np.ndarray, pixel_size: float, stated: float | None) -> float:
    """µm per pixel of the H&E according to the alignment, which must agree with what is stated."""
    parts = take_apart(matrix)
    ratio = max(parts.scale) / min(parts.scale)
    if ratio > 1.1 or abs(parts.shear_deg) > 5:
        raise ValueError(
            f"alignment: it stretches the image by {parts.scale[0]:.4g} along x and {parts.scale[1]:.4g} along y, "
            "with a "
            f"shear of {parts.shear_deg:.1f}°; a section keeps its shape. Align it again"
        )
    implied = parts.mean_scale * pixel_size
    if stated is not None and abs(np.log(implied / stated)) > 0.1:
        inverse = pixel_size / parts.mean_scale
        hint = (
            "it is the inverse of the matrix that is needed (H&E pixels to morphology pixels)"
            if abs(np.log(inverse / stated)) < 0.05
            else "is it the matrix of this image, at full resolution?"
        )
        raise ValueError(
            f"alignment: it makes a pixel of the H&E {implied:.4g} µm wide, but the file (or mpp=) says "
            f"{stated:.4g}: {hint}"
        )
    return implied


def _nucleus_to_cell(folder: Path) -> np.ndarray | None:
    """Number of the cell of each nucleus label (label 0 first), None where they are the same."""
    import zarr

    store = zarr.storage.ZipStore(folder / "cells.zarr.zip", read_only=True)
    try:
        group = zarr.open_group(store, mode="r")
        if "polygon_sets" not in group:
            return None
        cell = np.asarray(group["polygon_sets/0/cell_index"][...], dtype=np.int64) + 1
    finally:
        store.close()
    return np.concatenate([[0], cell])


def _labels_in_frame(source: ArraySource, frame: _Frame, lut: np.ndarray | None) -> Any:
    """A label image of the run in the pixels of the slide, by nearest neighbour, block by block."""
    import dask.array as da

    from ghistpy.io.elements import labels_element

    to_run = np.diag([1 / frame.pixel_size] * 2 + [1]) @ np.linalg.inv(frame.from_xenium)
    to_run = to_run @ np.diag([frame.mpp] * 2 + [1])

    def look_up(block_info: Any = None) -> np.ndarray:
        (y0, y1), (x0, x1) = block_info[None]["array-location"]
        return _sample(source, to_run, Window(y0, x0, y1, x1), lut)

    chunks = tuple(tuple(min(_BLOCK, n - i) for i in range(0, n, _BLOCK)) for n in frame.shape)
    lazy = da.map_blocks(look_up, chunks=chunks, dtype=np.int64, meta=np.empty((0, 0), np.int64))
    return labels_element(lazy, frame.mpp)


def _sample(source: ArraySource, to_run: np.ndarray, box: Window, lut: np.ndarray | None) -> np.ndarray:
    """Labels under the pixel centres of a box of the slide; ``to_run`` takes its pixels to those of the source."""
    x, y = np.meshgrid(np.arange(box.x0, box.x1) + 0.5, np.arange(box.y0, box.y1) + 0.5)
    column, row = np.floor(apply_affine(to_run, np.stack([x.ravel(), y.ravel()], axis=1))).astype(np.int64).T
    out = np.zeros(len(row), dtype=np.int64)
    inside = (row >= 0) & (row < source.shape[0]) & (column >= 0) & (column < source.shape[1])
    if inside.any():
        row, column = row[inside], column[inside]
        window = Window(int(row.min()), int(column.min()), int(row.max()) + 1, int(column.max()) + 1)
        values = source.read(window)[row - window.y0, column - window.x0].astype(np.int64)
        if lut is not None and values.max() >= len(lut):
            raise ValueError(
                f"cells.zarr.zip: its mask of nuclei holds label {values.max()}, but its polygons know "
                f"{len(lut) - 1}; the "
                "file is damaged, copy it again"
            )
        out[inside] = values if lut is None else lut[values]
    return out.reshape(box.shape)


def _table(raw: AnnData, frame: _Frame) -> tuple[AnnData, int]:
    """The table in the frame of the slide, and how many cells lie outside its image."""
    from scipy import sparse

    from ghistpy.io.spots import check_counts
    from ghistpy.io.tables import make_table

    counts = sparse.csr_matrix(raw.X)
    check_counts(counts.data, "cell_feature_matrix.h5")
    original = raw.obs["cell_id"].astype(str).to_numpy()
    number = raw.obs["cell_labels"] if "cell_labels" in raw.obs else raw.obs["cell_id"]
    xy = apply_affine(frame.from_xenium, np.asarray(raw.obsm["spatial"], dtype=np.float64))
    size = np.array(frame.shape[::-1]) * frame.mpp
    outside = int((~((xy >= 0) & (xy < size)).all(axis=1)).sum())
    if frame.pixels is not None and outside:
        _report_outside(outside, len(xy), size)
    obs = {_keys.ORIGINAL_ID: original, _keys.TOTAL: np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()}
    for column, name in (("cell_area", "cell_area_um2"), ("nucleus_area", "nucleus_area_um2")):
        if column in raw.obs:
            obs[name] = raw.obs[column].to_numpy(dtype=np.float64)
    table = make_table(
        counts.astype(np.float32),
        raw.var_names,
        region=_keys.LABELS,
        instance_key=_keys.CELL_ID,
        ids=number.astype(np.int64).to_numpy(),
        obs=obs,
        obsm={_keys.SPATIAL: xy},
        uns={_keys.UNS: {"units": _keys.UNITS_COUNTS}},
    )
    return table, outside


def _report_outside(outside: int, n: int, size: np.ndarray) -> None:
    if outside > 0.5 * n:
        raise ValueError(
            f"alignment: {outside} of {n} cells come to lie outside the image of {size[0]:.0f} x {size[1]:.0f} µm; "
            "is it "
            "the matrix of this image, and not its inverse?"
        )
    logger.warning("%d of %d cells lie outside the H&E image; they are kept", outside, n)
