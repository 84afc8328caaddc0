"""Spot assays (ST, Visium) into a SpatialData."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.io.elements import check_mpp, image_element

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")


def read_spots(
    image: str | Path | np.ndarray,
    counts: str | Path | pd.DataFrame | AnnData,
    positions: str | Path | pd.DataFrame | None = None,
    *,
    mpp: float | None,
    spot_diameter_um: float,
    image_key: str = _keys.IMAGE,
    shapes_key: str = _keys.SPOTS,
    table_key: str = _keys.MEASURED,
) -> SpatialData:
    """Read a spot assay: an H&E image, counts per spot and where the spots lie.

    Parameters
    ----------
    image
        Path of a picture that :func:`read_slide` reads, or an array (3, y, x) or (y, x, 3).
    counts
        Raw counts, spots x genes: a CSV or TSV (also gzipped) whose first column is the spot id, an h5ad
        file, a DataFrame indexed by spot id, or an AnnData. Visium: the ``outs`` folder of Space Ranger, its
        ``filtered_feature_bc_matrix.h5``, or the folder of that name.
    positions
        CSV, TSV or DataFrame with columns ``pixel_x`` and ``pixel_y``: the centre of each spot in pixels of
        the full resolution (column, row). The spot id is a column ``spot_id`` or ``barcode``, the index or
        first column, or ``<x>x<y>`` of the array coordinates in columns ``x`` and ``y``: the one that
        matches the counts. Where there is a column ``selected``, rows other than 1 are left out. Visium:
        ``tissue_positions.csv`` or ``tissue_positions_list.csv``; ``None`` takes the one beside the counts.
        Spots that are not in tissue are left out.
    mpp
        µm per pixel of the image; ``None`` takes it from the file, and for Visium else from the array, whose
        spots are 100 µm apart.
    spot_diameter_um
        Diameter of a spot in µm (100 for ST, 55 for Visium).
    image_key, shapes_key, table_key
        Names of the elements.

    Returns
    -------
    SpatialData
        Image; shapes ``spots`` (circles in µm, coordinate system ``"microns"``, indexed by spot id); table
        ``measured``, linked to them:

        =========== ====== =========== ==============================================
        key         slot   dtype       meaning
        =========== ====== =========== ==============================================
        X           X      float32 CSR raw counts
        spot_id     obs    str or int  as in ``counts``
        total       obs    float64     counts over all genes
        array_x/_y  obs    numbers     array coordinates, when positions have ``x``, ``y``
        spatial     obsm   float64     centre x, y in µm
        ghistpy     uns    dict        ``units``
        =========== ====== =========== ==============================================

        ``attrs["ghistpy"]``: ``sample``, ``spot_diameter_um`` and ``join``, how many spots were used and how
        many were left out for which reason.

    Raises
    ------
    ValueError
        Counts that are negative, missing or not whole (log or normalised values), repeated ids or genes,
        no spot in both tables, most spots outside the image, µm/px unknown.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import ghistpy as gp
    >>> counts = pd.DataFrame({"ERBB2": [3, 0]}, index=["10x21", "10x22"])
    >>> positions = pd.DataFrame({"pixel_x": [20.0, 60.0], "pixel_y": [30.0, 30.0]}, index=["10x21", "10x22"])
    >>> image = np.full((3, 64, 96), 230, np.uint8)
    >>> sdata = gp.io.read_spots(image, counts, positions, mpp=0.5, spot_diameter_um=10)
    >>> sdata.tables["measured"].obs["spot_id"].tolist()
    ['10x21', '10x22']
    """
    import spatialdata as sd

    diameter = check_mpp(spot_diameter_um, "spot_diameter_um")
    positions, implied = _positions(positions, counts)
    pixels, mpp, sample = _image(image, mpp, implied)
    ids, genes, matrix = _read_counts(counts)
    located, report = _locate(positions, ids, mpp, pixels.shape[-2:])
    keep = located["row"].to_numpy()
    xy = located[["pixel_x", "pixel_y"]].to_numpy(float) * mpp
    table = _table(ids[keep], genes, matrix[keep], xy, located, shapes_key)
    attrs = {"sample": sample, "spot_diameter_um": diameter, "join": report}
    return sd.SpatialData(
        images={image_key: image_element(pixels, mpp)},
        shapes={shapes_key: _circles(ids[keep], xy, diameter / 2)},
        tables={table_key: table},
        attrs={_keys.ATTRS: attrs},
    )


def _positions(positions: Any, counts: Any) -> tuple[Any, float | None]:
    """Positions, those of Space Ranger as a frame, and µm/px according to their array."""
    from ghistpy.io import visium

    if positions is None:
        if not isinstance(counts, (str, Path)):
            raise ValueError(
                "positions=None: only an output folder of Space Ranger says where its spots lie; pass positions="
            )
        positions = visium.find_positions(Path(counts))
    if isinstance(positions, (str, Path)) and visium.is_positions(Path(positions)):
        frame = visium.read_positions(Path(positions))
        return frame, visium.mpp_of_array(frame)
    return positions, None


def _agree(mpp: float, implied: float | None) -> float:
    if implied is not None and abs(np.log(mpp / implied)) > 0.05:
        logger.warning(
            "the image is at %g µm/px, but spots 100 µm apart make it %.4g: is it the image that the positions are of?",
            mpp,
            implied,
        )
    return mpp


def _image(image: Any, mpp: float | None, implied: float | None) -> tuple[Any, float, str]:
    """Pixels (3, y, x) uint8, µm/px and the name of the sample."""
    from ghistpy.imaging.stain import as_rgb_uint8
    from ghistpy.io._rgb import white_of_maximum
    from ghistpy.io.slide import read_pixels

    if mpp is not None:
        mpp = check_mpp(mpp)
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.exists():
            raise FileNotFoundError(f"image={str(path)!r}: there is no such file")
        pixels, found = read_pixels(path)
        if mpp is None and found is None and implied is None:
            raise ValueError(f"{path}: the file does not say how many µm a pixel has; pass mpp=")
        if mpp is not None and found is not None and abs(mpp - found) > 0.01 * found:
            logger.warning("%s says %g µm/px; mpp=%g wins", path, found, mpp)
        used = next(value for value in (mpp, found, implied) if value is not None)
        return pixels, _agree(used, implied), path.name.split(".")[0]
    array = np.asarray(image)
    if mpp is None:
        mpp = implied
    if mpp is None:
        raise ValueError("mpp=None: an array does not say how many µm a pixel has; pass mpp=")
    axis = -1 if array.ndim == 3 and array.shape[-1] in (3, 4) and array.shape[0] not in (3, 4) else 0
    white = None if array.dtype == np.uint8 else white_of_maximum(array.dtype, array.max(), array.min(), "image")
    return as_rgb_uint8(array, channel_axis=axis, white=white), _agree(mpp, implied), "sample"


def _read_frame(path: Path, argument: str, **kwargs: Any) -> pd.DataFrame:
    import pandas as pd

    if not path.exists():
        raise FileNotFoundError(f"{argument}={str(path)!r}: there is no such file")
    suffix = [s for s in path.suffixes if s != ".gz"][-1:]
    if suffix not in ([".tsv"], [".txt"], [".csv"]):
        raise ValueError(f"{argument}={str(path)!r}: expected .csv, .tsv or .txt (also .gz)")
    try:
        return pd.read_csv(path, sep="," if suffix == [".csv"] else "\t", **kwargs)
    except (EOFError, OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{argument}={str(path)!r}: truncated or not a table ({error})") from error


def _read_counts(counts: Any) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """Ids (S,), genes (G,) and checked counts (S, G)."""
    import pandas as pd
    from anndata import AnnData, read_h5ad
    from scipy import sparse

    if isinstance(counts, (str, Path)):
        path = Path(counts)
        if path.is_dir() or path.suffix == ".h5":
            from ghistpy.io.visium import read_matrix

            counts = read_matrix(path)
        else:
            counts = read_h5ad(path) if path.suffix == ".h5ad" else _read_frame(path, "counts", index_col=0)
    if isinstance(counts, AnnData):
        index, genes = counts.obs_names, counts.var_names
        matrix = sparse.csr_matrix(counts.X)
    elif isinstance(counts, pd.DataFrame):
        index, genes = counts.index, counts.columns
        text = [str(c) for c, kind in zip(genes, counts.dtypes, strict=True) if kind.kind not in "iufb"]
        if text:
            raise ValueError(
                f"counts: columns {text[:5]} hold no numbers; expected spots x genes with the spot id as index"
            )
        matrix = sparse.csr_matrix(counts.to_numpy())
    else:
        raise TypeError(f"counts: expected a path, a DataFrame or an AnnData, got {type(counts).__name__}")
    for what, names in (("spot ids", index), ("genes", genes)):
        if names.has_duplicates:
            raise ValueError(f"counts: {what} repeat: {names[names.duplicated()].unique()[:5].tolist()}")
    check_counts(matrix.data, "counts")
    ids = index.to_numpy() if index.dtype.kind in "iu" else index.astype(str).to_numpy(object)
    return ids, genes.astype(str).to_numpy(), matrix.astype(np.float32)


def check_counts(values: np.ndarray, name: str) -> None:
    """Check that values are raw counts.

    Parameters
    ----------
    values
        Any numbers; of a sparse matrix its ``data``.
    name
        How the error calls them.

    Raises
    ------
    ValueError
        NaN or infinite, negative, or not whole: then they are log or normalised values.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            raise ValueError(f"{name}: {int(bad.sum())} values are NaN or infinite; a gene not seen in a spot counts 0")
        broken = values != np.rint(values)
        if broken.any():
            raise ValueError(
                f"{name}: {int(broken.sum())} of {values.size} values are not whole (for example "
                f"{values[broken].flat[0]:g}): these are log or normalised values, and raw counts are needed"
            )
    if values.size and values.min() < 0:
        raise ValueError(
            f"{name}: {int((values < 0).sum())} values are negative (the smallest is {values.min():g}); raw counts are "
            "needed"
        )


def _locate(positions: Any, ids: np.ndarray, mpp: float, size: tuple[int, int]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The spots in both tables and inside the image, in the order of the counts, and what was left out.

    Columns of the frame: pixel_x, pixel_y, row (of the counts) and those that came.
    """
    import pandas as pd

    if isinstance(positions, (str, Path)):
        frame = _read_frame(Path(positions), "positions")
    elif isinstance(positions, pd.DataFrame):
        frame = positions.copy()
    else:
        raise TypeError(f"positions: expected a path or a DataFrame, got {type(positions).__name__}")
    missing = {"pixel_x", "pixel_y"} - set(frame.columns)
    if missing:
        raise ValueError(f"positions: no column {sorted(missing)}; there are {[str(c) for c in frame.columns]}")
    report = {"not_selected": 0}
    if "selected" in frame:
        chosen = frame["selected"] == 1
        report["not_selected"] = int((~chosen).sum())
        frame = frame[chosen]
    known = pd.Index([str(i) for i in ids.tolist()])
    names = _position_ids(frame, known)
    if names.has_duplicates:
        raise ValueError(f"positions: spot ids repeat: {names[names.duplicated()].unique()[:5].tolist()}")
    frame = frame.assign(row=known.get_indexer(names))
    report["only_in_positions"] = int((frame["row"] < 0).sum())
    report["only_in_counts"] = int((~known.isin(names)).sum())
    frame = frame[frame["row"] >= 0].sort_values("row")
    xy = frame[["pixel_x", "pixel_y"]].to_numpy(float)
    if not np.isfinite(xy).all():
        raise ValueError(f"positions: {int((~np.isfinite(xy)).any(axis=1).sum())} spots have no pixel_x or pixel_y")
    inside = (xy >= 0).all(axis=1) & (xy[:, 0] < size[1]) & (xy[:, 1] < size[0])
    report["outside_image"] = int((~inside).sum())
    if inside.mean() < 0.5:
        raise ValueError(
            f"positions: {report['outside_image']} of {len(xy)} spots lie outside the image of {size[1]} x {size[0]} "
            f"px (pixel_x up to {xy[:, 0].max():g}, pixel_y up to {xy[:, 1].max():g}); pixel_x is the column and "
            "pixel_y the row, in pixels of this image"
        )
    frame = frame[inside]
    report["spots"] = len(frame)
    left_out = {key: n for key, n in report.items() if n and key != "spots"}
    if left_out:
        logger.warning("read_spots: %d spots; left out: %s", len(frame), left_out)
    return frame, report


def _position_ids(frame: pd.DataFrame, known: pd.Index) -> pd.Index:
    """The ids of the positions: of all ways to name them, the one that matches the counts best."""
    import pandas as pd

    candidates = {"index": frame.index.astype(str)}
    for column in ("spot_id", "barcode", frame.columns[0]):
        if column in frame:
            candidates[f"column {column!r}"] = pd.Index(frame[column].astype(str))
    if {"x", "y"} <= set(frame.columns):
        x, y = (frame[c].astype(float) for c in "xy")
        if (x == x.round()).all() and (y == y.round()).all():
            candidates["<x>x<y>"] = pd.Index(x.astype(int).astype(str) + "x" + y.astype(int).astype(str))
    hits = {how: int(names.isin(known).sum()) for how, names in candidates.items()}
    best = max(hits, key=hits.__getitem__)
    if not hits[best]:
        raise ValueError(
            f"positions and counts have no spot in common: counts have ids such as {known[:3].tolist()}, positions "
            f"{ ({how: names[:3].tolist() for how, names in candidates.items()}) }; are counts spots x genes?"
        )
    return candidates[best]


def _table(
    ids: np.ndarray, genes: np.ndarray, matrix: csr_matrix, xy: np.ndarray, located: pd.DataFrame, region: str
) -> AnnData:
    from ghistpy.io.tables import make_table

    obs = {_keys.TOTAL: np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()}
    for axis in "xy":
        if axis in located:
            obs[f"array_{axis}"] = located[axis].to_numpy()
    return make_table(
        matrix,
        genes,
        region=region,
        instance_key=_keys.SPOT_ID,
        ids=ids,
        obs=obs,
        obsm={_keys.SPATIAL: xy},
        uns={_keys.UNS: {"units": _keys.UNITS_COUNTS}},
    )


def _circles(ids: np.ndarray, xy: np.ndarray, radius: float) -> GeoDataFrame:
    """Spots as circles in µm; the coordinate system "microns" is their own."""
    import pandas as pd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    return ShapesModel.parse(
        xy, geometry=0, radius=radius, index=pd.Index(ids), transformations={_keys.MICRONS: Identity()}
    )
