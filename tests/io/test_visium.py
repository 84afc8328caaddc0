"""Folders as Space Ranger writes them, both generations, and what is wrong with some."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io as sio
from scipy import sparse

import ghistpy as gp

MPP = 0.8
GENES = ["ERBB2", "TBCE", "TBCE", "CD3E"]


def _array(rows=8, columns=9, degrees=7.0):
    """Spots of a hexagonal array, 100 µm apart, on an image that is turned."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    column = 2 * column + row % 2
    um = np.column_stack([column * 50.0, row * 100 * np.sqrt(3) / 2])
    a = np.radians(degrees)
    um = um @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + [180.0, 90.0]
    return row, column, um


def _counts(n):
    return np.random.default_rng(0).poisson(3.0, (n, len(GENES)))


def _h5(path, counts, names):
    m = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = m.data.astype(np.int32), m.indices, m.indptr
        group["shape"] = np.array([len(GENES), len(names)])
        group["barcodes"] = np.array(names, dtype="S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(len(GENES))], dtype="S")
        features["name"] = np.array(GENES, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), dtype="S")


def _mtx(folder, counts, names):
    folder.mkdir()
    sio.mmwrite(str(folder / "matrix.mtx"), sparse.coo_matrix(counts.T))
    with open(folder / "matrix.mtx", "rb") as plain, gzip.open(folder / "matrix.mtx.gz", "wb") as packed:
        packed.write(plain.read())
    (folder / "matrix.mtx").unlink()
    features = "".join(f"ENSG{i}\t{g}\tGene Expression\n" for i, g in enumerate(GENES))
    for name, text in (("features.tsv.gz", features), ("barcodes.tsv.gz", "".join(f"{n}\n" for n in names))):
        with gzip.open(folder / name, "wt") as file:
            file.write(text)


def _outs(folder, *, header=True, matrix="h5"):
    row, column, um = _array()
    n = len(row)
    names = [f"BARCODE{i:04d}-1" for i in range(n)]
    in_tissue = (np.arange(n) % 5 != 0).astype(int)
    counts = _counts(n)[in_tissue == 1]
    kept = [name for name, inside in zip(names, in_tissue, strict=True) if inside]
    (folder / "spatial").mkdir(parents=True)
    if matrix == "h5":
        _h5(folder / "filtered_feature_bc_matrix.h5", counts, kept)
    else:
        _mtx(folder / "filtered_feature_bc_matrix", counts, kept)
    px = um / MPP
    frame = pd.DataFrame(
        {
            "barcode": names,
            "in_tissue": in_tissue,
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": px[:, 1],
            "pxl_col_in_fullres": px[:, 0],
        }
    ).sample(frac=1, random_state=0)
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    frame.to_csv(folder / "spatial" / name, header=header, index=False)
    return counts, kept, um[in_tissue == 1]


IMAGE = np.full((3, 1200, 1400), 230, np.uint8)


@pytest.mark.parametrize(("header", "matrix"), [(True, "h5"), (False, "mtx")])
def test_output_folder(tmp_path, header, matrix):
    counts, names, um = _outs(tmp_path / "outs", header=header, matrix=matrix)
    sdata = gp.io.read_spots(IMAGE, tmp_path / "outs", mpp=None, spot_diameter_um=55)
    # the array says how large a pixel is
    assert gp.io.get_mpp(sdata) == pytest.approx(MPP, rel=1e-6)
    table = sdata["measured"]
    assert table.obs["spot_id"].tolist() == names
    assert table.var_names.tolist() == ["ERBB2", "TBCE", "TBCE-1", "CD3E"]
    np.testing.assert_array_equal(table.X.toarray(), counts)
    np.testing.assert_allclose(table.obsm["spatial"], um, rtol=1e-9)
    assert sdata["spots"]["radius"].unique().tolist() == [27.5]
    assert sdata.attrs["ghistpy"]["join"]["not_selected"] == 15
    _, column, _ = _array()
    assert table.obs["array_x"].tolist() == column[np.arange(72) % 5 != 0].tolist()


def test_files_one_by_one_and_a_scale_that_disagrees(tmp_path, caplog):
    _outs(tmp_path / "outs")
    files = tmp_path / "outs" / "filtered_feature_bc_matrix.h5", tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    sdata = gp.io.read_spots(IMAGE, *files, mpp=MPP, spot_diameter_um=55)
    assert sdata["measured"].n_obs == 57
    assert "100 µm apart" not in caplog.text
    gp.io.read_spots(IMAGE, files[0], mpp=0.5, spot_diameter_um=55)
    assert "spots 100 µm apart make it 0.8" in caplog.text


def test_bad_folders(tmp_path):
    _outs(tmp_path / "outs")
    positions = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    matrix = tmp_path / "outs" / "filtered_feature_bc_matrix.h5"

    def read(counts, where=None):
        return gp.io.read_spots(IMAGE, counts, where, mpp=None, spot_diameter_um=55)

    with pytest.raises(ValueError, match="positions=None: only an output folder"):
        read(pd.DataFrame({"A": [1]}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is it the outs folder of Space Ranger"):
        read(tmp_path / "empty", positions)
    with pytest.raises(FileNotFoundError, match=r"there is no spatial/tissue_positions\.csv"):
        read(tmp_path / "empty")
    short = tmp_path / "tissue_positions.csv"
    short.write_text("barcode,in_tissue\nA,1\n")
    with pytest.raises(ValueError, match="2 columns, expected"):
        read(matrix, short)
    text = positions.read_text().splitlines()
    short.write_text("\n".join([text[0], text[1].rsplit(",", 1)[0] + ",x"]))
    with pytest.raises(ValueError, match="could not convert"):
        read(matrix, short)
    short.write_text("\n".join([*text, text[1]]))
    with pytest.raises(ValueError, match="repeat"):
        read(matrix, short)
    matrix.write_bytes(matrix.read_bytes()[:500])
    with pytest.raises(ValueError, match="truncated, or not a matrix of Space Ranger"):
        read(matrix, positions)
