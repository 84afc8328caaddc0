"""What Space Ranger writes for a Visium slide: the matrix of counts and the positions of the spots."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("ghistpy")

SPOT_DIAMETER_UM = 55.0
_PITCH_UM = 100.0
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
_MATRICES = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", "raw_feature_bc_matrix.h5")
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv")


def find_positions(counts: Path) -> Path:
    """The positions file beside a matrix, or in an output folder.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    folders = [counts, counts.parent] if counts.is_dir() else [counts.parent]
    places = [folder / sub / name for folder in folders for sub in ("spatial", ".") for name in _POSITIONS]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"positions=None: there is no spatial/{_POSITIONS[0]} (or {_POSITIONS[1]}) beside {str(counts)!r}; pass "
            "positions="
        )
    return found


def read_matrix(path: Path) -> AnnData:
    """Counts of an output folder, of a matrix folder (matrix.mtx.gz), or of a 10x .h5 file.

    Gene symbols that repeat get a number (``"TBCE"``, ``"TBCE-1"``), as scanpy does; how many is logged.
    """
    import warnings

    import scanpy as sc

    if path.is_dir() and not any(path.glob("matrix.mtx*")):
        found = next((path / name for name in _MATRICES if (path / name).exists()), None)
        if found is None:
            raise FileNotFoundError(
                f"counts={str(path)!r} has none of {_MATRICES}; is it the outs folder of Space Ranger?"
            )
        path = found
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            table = sc.read_10x_mtx(path, make_unique=False) if path.is_dir() else sc.read_10x_h5(path)
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"counts={str(path)!r}: truncated, or not a matrix of Space Ranger ({error})") from error
    if "feature_types" in table.var:
        genes = (table.var["feature_types"] == "Gene Expression").to_numpy()
        if not genes.all():
            logger.info("%s: %d features that are no genes left out", path, int((~genes).sum()))
            table = table[:, genes].copy()
    repeated = int(table.var_names.duplicated().sum())
    if repeated:
        logger.info("%s: %d gene symbols repeat and get a number", path, repeated)
        table.var_names_make_unique()
    return table


def is_positions(path: Path) -> bool:
    """Whether a file is one of Space Ranger's positions, by its name."""
    return path.name.removesuffix(".gz").startswith("tissue_positions")


def read_positions(path: Path) -> pd.DataFrame:
    """Positions as :func:`ghistpy.io.read_spots` takes them.

    Returns
    -------
    pandas.DataFrame
        Columns ``barcode``, ``selected`` (in tissue), ``x``, ``y`` (column and row of the array), ``pixel_x``,
        ``pixel_y`` in px of the full resolution.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"positions={str(path)!r}: there is no such file")
    try:
        # Space Ranger 1 writes no header
        frame = pd.read_csv(path, header=None, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError) as error:
        raise ValueError(f"positions={str(path)!r}: truncated or not a table ({error})") from error
    if frame.shape[1] != len(_COLUMNS):
        raise ValueError(f"positions={str(path)!r}: {frame.shape[1]} columns, expected {_COLUMNS}")
    if str(frame.iloc[0, 0]) == "barcode":
        frame = frame.set_axis(frame.iloc[0].astype(str), axis=1).iloc[1:]
    else:
        frame.columns = _COLUMNS
    missing = set(_COLUMNS) - set(frame.columns)
    if missing:
        raise ValueError(f"positions={str(path)!r}: no column {sorted(missing)}; there are {list(frame.columns)}")
    try:
        numbers = frame[_COLUMNS[1:]].astype(float)
    except ValueError as error:
        raise ValueError(f"positions={str(path)!r}: {error}") from error
    return pd.DataFrame(
        {
            "barcode": frame["barcode"].to_numpy(str),
            "selected": numbers["in_tissue"].to_numpy(int),
            "x": numbers["array_col"].to_numpy(int),
            "y": numbers["array_row"].to_numpy(int),
            "pixel_x": numbers["pxl_col_in_fullres"].to_numpy(),
            "pixel_y": numbers["pxl_row_in_fullres"].to_numpy(),
        }
    )


def mpp_of_array(frame: pd.DataFrame) -> float | None:
    """µm per pixel from the array, whose spots are 100 µm apart, however it is turned; None for too few spots."""
    # columns of the array are 50 µm apart, every other row is shifted by one of them
    array = np.column_stack([frame["x"] * _PITCH_UM / 2, frame["y"] * _PITCH_UM * np.sqrt(3) / 2]).astype(float)
    pixels = frame[["pixel_x", "pixel_y"]].to_numpy(float)
    centred = array - array.mean(axis=0)
    if len(frame) < 3 or np.linalg.matrix_rank(centred) < 2:
        return None
    slope = np.linalg.lstsq(centred, pixels - pixels.mean(axis=0), rcond=None)[0]
    area = abs(np.linalg.det(slope))
    return float(1 / np.sqrt(area)) if area > 0 else None
