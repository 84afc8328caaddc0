"""The published layout: the demo's tables with a label image made for their nuclei."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile

import ghistpy as gp

TYPES = ["B", "Myeloid", "Endothelial", "Fibroblast", "Macrophage", "Malignant", "Epithelial", "Plasma", "T"]


def squares(ids, sizes, side=16, field=16):
    """A label image with one nucleus of the given number of pixels per cell, anywhere in its field."""
    rng = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(len(ids))))
    labels = np.zeros((-(-len(ids) // columns) * field, columns * field), np.int32)
    order = np.argsort(np.hypot(*np.mgrid[:side, :side] - side / 2 + 0.1), axis=None, kind="stable")
    for k, (i, n) in enumerate(zip(ids, sizes, strict=True)):
        y, x = np.unravel_index(order[: int(n)], (side, side))
        top, left = np.array([k // columns, k % columns]) * field + rng.integers(0, field - side + 1, 2)
        labels[top + y, left + x] = i
    return labels


def write(folder, labels, counts, types=None, sizes=None):
    rgb = np.where(labels[..., None] > 0, (90, 60, 130), (240, 235, 240)).astype(np.uint8)
    tifffile.imwrite(folder / "he.tif", rgb, photometric="rgb")
    tifffile.imwrite(folder / "nuclei.tif", labels)
    counts.to_csv(folder / "expr.csv")
    return folder / "he.tif", folder / "nuclei.tif", folder / "expr.csv"


@pytest.mark.data
def test_demo_tables(data_dir, tmp_path):
    demo = data_dir / "data" / "ghist_demo"
    counts = pd.read_csv(demo / "expr_mat_breast_demo.csv.gz", index_col=0)
    sizes = pd.read_csv(demo / "nuclei_sizes_breast_demo.csv", index_col=0)["orig_size"]
    labels = squares(sizes.index, sizes, field=32)
    rgb = np.where(labels[..., None] > 0, (90, 60, 130), (240, 235, 240)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "he.tif", rgb, photometric="rgb")
    tifffile.imwrite(tmp_path / "nuclei.tif", labels)
    sdata = gp.io.read_ghist(
        tmp_path / "he.tif",
        tmp_path / "nuclei.tif",
        demo / "expr_mat_breast_demo.csv.gz",
        demo / "cell_types_breast_demo.csv",
        demo / "nuclei_sizes_breast_demo.csv",
        mpp=0.5,
        cell_type_names=TYPES,
    )
    table = sdata["measured"]
    kept = sizes.reindex(counts.index) >= 10
    assert table.shape == (int(kept.sum()), 280)
    np.testing.assert_array_equal(table.X.toarray(), counts[kept].drop(columns="cell_id").to_numpy())
    np.testing.assert_array_equal(table.obs["area_um2"], table.obs["nucleus_size_px"] * 0.25)
    types = pd.read_csv(demo / "cell_types_breast_demo.csv", index_col="c_ids")["ct_idx"]
    expected = [TYPES[i] for i in types.reindex(table.obs["cell_id"])]
    assert table.obs["cell_type"].tolist() == expected
    join = sdata.attrs["ghistpy"]["join"]
    assert join["cells"] + join["too_small"] == 5508
    assert join["without_nucleus"] == join["without_type"] == 0
    # dark nuclei on a pale ground: the cells lie on them
    gp.pp.match_cells(sdata)
    assert gp.get.matching(sdata)["verdict"] == "matched"


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    ids = np.array([7, 3, 11, 20, 2**31 - 5])
    counts = pd.DataFrame(rng.poisson(3, (5, 4)), index=ids, columns=list("ABCD"))
    sizes = pd.DataFrame({"sizes": [30, 12, 9, 40, 25]}, index=ids)
    return ids, counts, sizes, squares(ids, sizes["sizes"])


def test_join_keeps_ids_and_counts_what_it_leaves_out(parts, tmp_path):
    ids, counts, sizes, labels = parts
    labels = np.where(labels == 20, 0, labels)  # a cell without a nucleus
    labels[0, 0] = 99  # a nucleus without a cell
    he, nuclei, expr = write(tmp_path, labels, counts.rename_axis("id").assign(cell_id=ids))
    with h5py.File(tmp_path / "types.h5", "w") as file:
        file["ids"], file["data"] = np.array([7, 3, 2**31 - 5], np.uint32), np.array([1, 0, -1])
    sdata = gp.io.read_ghist(he, nuclei, expr, tmp_path / "types.h5", sizes, mpp=0.4)
    table = sdata["measured"]
    assert table.obs["cell_id"].tolist() == [7, 3, 2**31 - 5]  # order of the table; 11 is below 10 px
    assert table.obs["cell_type"].tolist()[:2] == ["type_1", "type_0"]
    assert table.obs["cell_type"].isna().tolist() == [False, False, True]
    assert sdata.attrs["ghistpy"]["join"] == {
        "cells": 3,
        "without_nucleus": 1,
        "too_small": 1,
        "nuclei_without_expression": 1,
        "without_type": 1,
    }
    every = gp.io.read_ghist(he, nuclei, expr, None, sizes, mpp=0.4, min_size_px=0)
    assert every["measured"].n_obs == 4
    assert "cell_type" not in every["measured"].obs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nuclei": lambda p: p[3].T[:, :-3]}, r"do not fit the image of"),
        ({"nuclei": lambda p: p[3].astype(float)}, "expected one plane of integer labels"),
        (
            {"nuclei": lambda p: np.where(p[3] > 0, p[3].astype(np.int64) + 1000, 0)},
            "5 of 5 cells of expression have no label",
        ),
        ({"expression": lambda p: pd.concat([p[1], p[1].iloc[:1]])}, r"expression: ids repeat: \[7\]"),
        ({"expression": lambda p: p[1] / 2}, "log or normalised values"),
        ({"expression": lambda p: p[1].set_axis(list("AABC"), axis=1)}, "genes repeat: .'A'"),
        ({"expression": lambda p: p[1].set_axis([f"c{i}" for i in range(5)])}, "integers of the label image"),
        ({"sizes": lambda p: p[2].rename(columns={"sizes": "area"})}, "no column 'sizes' or 'orig_size'"),
        ({"sizes": lambda p: p[2] * 0 + 1}, "no cell of min_size_px=10"),
        ({"cell_types": lambda p: pd.DataFrame({"c_ids": p[0], "type": 0})}, r"no column \['ct_idx'\]"),
        ({"cell_types": lambda p: pd.DataFrame({"c_ids": p[0], "ct_idx": 5})}, "2 names, but .* indices up to 5"),
        ({"cell_types": lambda p: pd.DataFrame({"c_ids": [7, 7], "ct_idx": 0})}, "cell_types: ids repeat"),
    ],
)
def test_bad_files(parts, tmp_path, change, message):
    _, counts, sizes, labels = parts
    he, *_ = write(tmp_path, labels, counts)
    args = {"nuclei": labels, "expression": counts, "cell_types": None, "sizes": sizes}
    args |= {name: make(parts) for name, make in change.items()}
    with pytest.raises(ValueError, match=message):
        gp.io.read_ghist(he, **args, mpp=0.5, cell_type_names=["a", "b"])


def test_missing_and_damaged_files(parts, tmp_path):
    _, counts, _, labels = parts
    he, nuclei, expr = write(tmp_path, labels, counts)
    with pytest.raises(FileNotFoundError, match=r"nuclei=.*none\.tif"):
        gp.io.read_ghist(he, tmp_path / "none.tif", expr, mpp=0.5)
    with pytest.raises(FileNotFoundError, match="expression="):
        gp.io.read_ghist(he, nuclei, tmp_path / "none.csv", mpp=0.5)
    nuclei.write_bytes(nuclei.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated, or not a TIFF"):
        gp.io.read_ghist(he, nuclei, expr, mpp=0.5)
    with pytest.raises(ValueError, match="mpp="):
        gp.io.read_ghist(he, labels, counts, mpp=None)
