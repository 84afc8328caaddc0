"""Xenium output made from a simulated slide: what is read back must be that slide."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import ghistpy as gp
from ghistpy.geometry.affine import apply_affine
from ghistpy.io.xenium import read_alignment

PIXEL = 0.2125
MPP = 0.5


def _similarity(scale, degrees, shift):
    a = np.radians(degrees)
    return np.array(
        [[scale * np.cos(a), -scale * np.sin(a), shift[0]], [scale * np.sin(a), scale * np.cos(a), shift[1]], [0, 0, 1]]
    )


# pixels of the H&E to pixels of the morphology image
ALIGNMENT = _similarity(MPP / PIXEL, 6.0, (160.0, 40.0))


def _cell_names(n):
    """Prefix and suffix as in the files, and the names that they stand for."""
    prefix = np.arange(1000, 1000 + n, dtype=np.uint32) * 7919
    letters = ["".join(chr(ord("a") + int(c, 16)) for c in f"{p:08x}") for p in prefix]
    return np.stack([prefix, np.ones(n, np.uint32)], axis=1), [f"{w}-1" for w in letters]


def _write_cells(folder, run_labels, cell_of_nucleus, raw_ids, n):
    import shutil

    import zarr

    group = zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=2)
    group.create_array("cell_id", data=raw_ids)
    summary = group.create_array("cell_summary", data=np.zeros((n, 2)))
    summary.attrs["column_names"] = ["z_level", "nucleus_count"]
    masks = group.create_group("masks")
    masks.create_array("0", data=run_labels.astype(np.uint32))
    masks.create_array("1", data=np.concatenate([[0], cell_of_nucleus + 1])[run_labels].astype(np.uint32))
    group.create_array("polygon_sets/0/cell_index", data=cell_of_nucleus.astype(np.uint32))
    group.create_array("polygon_sets/1/cell_index", data=np.arange(n, dtype=np.uint32))
    shutil.make_archive(str(folder / "cells.zarr"), "zip", folder / "cells.zarr")
    shutil.rmtree(folder / "cells.zarr")


def _write_matrix(folder, counts, names, genes):
    import h5py
    from scipy import sparse

    m = sparse.csr_matrix(counts)
    kinds = ["Negative Control Probe" if g.startswith("Neg") else "Gene Expression" for g in genes]
    with h5py.File(folder / "cell_feature_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = m.data.astype(np.int32), m.indices, m.indptr
        group["shape"] = np.array([len(genes), len(names)])
        group["barcodes"] = np.array(names, dtype="S")
        features = group.create_group("features")
        features["id"], features["name"] = np.array(genes, dtype="S"), np.array(genes, dtype="S")
        features["feature_type"] = np.array(kinds, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(genes), dtype="S")


def _write_transcripts(folder, xy, genes, counts, names, rng):
    cell, gene = np.nonzero(counts)
    cell, gene = (np.repeat(v, counts[cell, gene].astype(int)) for v in (cell, gene))
    order = rng.permutation(len(cell))
    frame = pd.DataFrame(
        {
            "cell_id": np.array(names)[cell],
            "x_location": xy[cell, 0],
            "y_location": xy[cell, 1],
            "z_location": 10.0,
            "feature_name": np.array(genes)[gene],
            "qv": 30.0,
        }
    ).iloc[order]
    # some that count for nothing: a bad one, and between the nuclei
    extra = frame.head(50).assign(qv=5.0)
    pd.concat([frame, extra]).to_parquet(folder / "transcripts.parquet", index=False)


def _write_image(folder, pixels):
    import tifffile

    data = np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(
        folder / "he.ome.tif",
        data,
        photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run, and the slide it was made from. The last two nuclei belong to one cell."""
    folder = tmp_path_factory.mktemp("outs")
    slide = gp.datasets.simulate_slide(n_cells=400, n_genes=12, size_um=300.0, mpp=MPP, seed=3)
    table = slide["measured"]
    n = table.n_obs - 1
    labels = np.asarray(slide["nuclei"].data)
    cell_of_nucleus = np.minimum(np.arange(table.n_obs), n - 1)
    rng = np.random.default_rng(0)
    shape = (1900, 1750)
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    back = apply_affine(np.linalg.inv(ALIGNMENT), np.stack([x.ravel(), y.ravel()], 1))
    column, row = np.floor(back).astype(int).T
    ok = (row >= 0) & (column >= 0) & (row < labels.shape[0]) & (column < labels.shape[1])
    run_labels = np.zeros(shape[0] * shape[1], int)
    run_labels[ok] = labels[row[ok], column[ok]]
    run_labels = run_labels.reshape(shape)
    genes = [*table.var_names, "NegControlProbe_1"]
    counts = np.hstack([table.X.toarray()[:n], np.ones((n, 1))]).astype(int)
    raw_ids, names = _cell_names(n)
    to_run = np.diag([PIXEL, PIXEL, 1]) @ ALIGNMENT @ np.diag([1 / MPP, 1 / MPP, 1])
    xy = apply_affine(to_run, table.obsm["spatial"])[:n]
    _write_cells(folder, run_labels, cell_of_nucleus, raw_ids, n)
    _write_matrix(folder, counts, names, genes)
    pd.DataFrame(
        {"cell_id": names, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1], "cell_area": 80.0, "nucleus_area": 30.0}
    ).to_parquet(folder / "cells.parquet", index=False)
    _write_transcripts(folder, xy, genes, counts, names, rng)
    _write_image(folder, gp.io.open_image(slide).read(gp.geometry.Window(0, 0, *labels.shape)))
    np.savetxt(folder / "matrix.csv", ALIGNMENT, delimiter=",")
    info = {"pixel_size": PIXEL, "analysis_sw_version": "xenium-3.0.0.15", "region_name": "Region 1"}
    (folder / "experiment.xenium").write_text(json.dumps(info))
    return folder, slide, names


def _read(run, **kwargs):
    pytest.importorskip("spatialdata_io", reason="the extra xenium is not installed")
    kwargs = {"histology": run[0] / "he.ome.tif", "alignment": run[0] / "matrix.csv"} | kwargs
    return gp.io.read_xenium(run[0], **kwargs)


@pytest.fixture(scope="module")
def xenium(run):
    return _read(run)


def test_slide_is_that_of_the_image(run, xenium):
    _, slide, names = run
    assert gp.io.get_mpp(xenium) == pytest.approx(MPP)
    table, truth = xenium["measured"], slide["measured"]
    n = len(names)
    assert table.obs["original_id"].tolist() == names
    assert table.obs["cell_id"].tolist() == list(range(1, n + 1))
    assert table.var_names.tolist() == truth.var_names.tolist()  # without the control
    np.testing.assert_array_equal(table.X.toarray(), truth.X.toarray()[:n])
    np.testing.assert_allclose(table.obsm["spatial"], truth.obsm["spatial"][:n], atol=1e-6)
    assert xenium.attrs["ghistpy"]["sample"] == "Region 1"
    labels, original = np.asarray(xenium["nuclei"].data), np.asarray(slide["nuclei"].data)
    assert labels.shape == original.shape
    merged = np.where(original == n + 1, n, original)  # the last two nuclei are one cell
    assert (labels == merged).mean() > 0.98  # borders move by the raster of the run
    inside = np.concatenate([[0], np.bincount(merged.ravel())])
    assert np.corrcoef(np.bincount(labels.ravel(), minlength=n + 1)[1:], inside[2:])[0, 1] > 0.99
    np.testing.assert_array_equal(labels, np.asarray(xenium["cells"].data))


def test_it_matches_and_transcripts_give_the_counts(run, xenium):
    gp.pp.match_cells(xenium)
    report = gp.get.matching(xenium)
    assert report["verdict"] == "matched"
    assert report["linked_without_label"] == 0
    gp.pp.assign_transcripts(xenium, key_added="counted")
    counted = json.loads(xenium["counted"].uns["ghistpy"]["assignment"])
    assert counted["low_quality"] == 50
    assert counted["outside_image"] == 0
    n = xenium["measured"].n_obs
    # a centroid lies in its nucleus but for a few crescents
    assert counted["outside_nuclei"] < 0.02 * counted["transcripts"]
    difference = xenium["counted"].X[: n - 1] != xenium["measured"].X[: n - 1]
    assert len(np.unique(difference.nonzero()[0])) < 0.02 * n


def test_round_trip_through_a_store(xenium, tmp_path):
    xenium.write(tmp_path / "x.zarr")
    again = gp.io.read_slide(tmp_path / "x.zarr")
    np.testing.assert_array_equal(np.asarray(again["nuclei"].data), np.asarray(xenium["nuclei"].data))
    gp.pp.assign_transcripts(xenium, key_added="first")
    gp.pp.assign_transcripts(again, key_added="again")
    assert (again["again"].X != xenium["first"].X).nnz == 0


def test_without_histology_the_frame_is_that_of_the_run(run):
    sdata = _read(run, histology=None, alignment=None, transcripts=False)
    assert list(sdata.images) == []
    assert sdata["nuclei"].shape == (1900, 1750)
    centroids = gp.geometry.find_nuclei(gp.io.open_labels(sdata)).centroid_px[:, ::-1] * PIXEL
    xy = sdata["measured"].obsm["spatial"]
    assert np.median(np.linalg.norm(centroids[:-1] - xy[: len(centroids) - 1], axis=1)) < 0.5
    assert list(sdata.points) == []


def test_image_and_alignment_of_the_folder_are_found(run, tmp_path):
    import shutil

    copy = tmp_path / "outs"
    shutil.copytree(run[0], copy)
    (copy / "he.ome.tif").rename(copy / "Xenium_he_image.ome.tif")
    (copy / "matrix.csv").rename(copy / "Xenium_he_imagealignment.csv")
    sdata = _read((copy,), histology=None, alignment=None, transcripts=False)
    assert sdata["he"].shape == (3, 600, 600)


def test_pyramid_and_plain_images_are_the_same(run, xenium, tmp_path):
    import tifffile

    plain = np.asarray(gp.io.open_image(xenium).read(gp.geometry.Window(0, 0, 600, 600))).transpose(1, 2, 0)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as tif:
        options = {"photometric": "rgb", "tile": (128, 128)}
        metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
        tif.write(plain, subifds=1, metadata=metadata, **options)
        tif.write(plain[::2, ::2], subfiletype=1, **options)
    sdata = _read(run, histology=tmp_path / "pyramid.ome.tif", transcripts=False)
    np.testing.assert_array_equal(
        gp.io.open_image(sdata).read(gp.geometry.Window(0, 0, 600, 600)).transpose(1, 2, 0), plain
    )
    np.testing.assert_array_equal(np.asarray(sdata["nuclei"].data), np.asarray(xenium["nuclei"].data))


def test_output_before_version_2(run, tmp_path):
    """Labels of nuclei were those of their cells; there are no polygon sets."""
    import shutil
    import zipfile

    import zarr

    old = tmp_path / "outs"
    shutil.copytree(run[0], old)
    with zipfile.ZipFile(old / "cells.zarr.zip") as packed:
        packed.extractall(tmp_path / "cells.zarr")
    group = zarr.open_group(tmp_path / "cells.zarr", mode="r+", use_consolidated=False)
    n = group["cell_id"].shape[0]
    cell = np.concatenate([[0], np.asarray(group["polygon_sets/0/cell_index"][...]).astype(np.int64) + 1])
    group["masks/0"][...] = cell[np.asarray(group["masks/0"][...])].astype(np.uint32)
    del group["polygon_sets"]
    group.create_array("seg_mask_value", data=np.arange(1, n + 1, dtype=np.uint32))
    (old / "cells.zarr.zip").unlink()
    shutil.make_archive(str(old / "cells.zarr"), "zip", tmp_path / "cells.zarr")
    info = json.loads((old / "experiment.xenium").read_text()) | {"analysis_sw_version": "xenium-1.6.0.7"}
    (old / "experiment.xenium").write_text(json.dumps(info))
    files = {"histology": old / "he.ome.tif", "alignment": old / "matrix.csv"}
    was, now = _read(run, transcripts=False), _read((old,), transcripts=False, **files)
    np.testing.assert_array_equal(np.asarray(now["nuclei"].data), np.asarray(was["nuclei"].data))
    assert now["measured"].obs["cell_id"].tolist() == was["measured"].obs["cell_id"].tolist()


def test_wrong_alignment_is_noticed_by_the_match(run):
    sdata = _read(run, alignment=ALIGNMENT + np.array([[0, 0, 80], [0, 0, 0], [0, 0, 0]]), transcripts=False)
    with pytest.raises(ValueError, match="shifted by"):
        gp.pp.match_cells(sdata)


MIRRORED = ALIGNMENT @ np.diag([-1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.linalg.inv(ALIGNMENT), "it is the inverse of the matrix that is needed"),
        (MIRRORED, "mirrors the image .*determinant is negative"),
        (np.array([[1, 2, 0], [2, 4, 0], [0, 0, 1]]), "singular"),
        (np.diag([2.4, 1.0, 1.0]), "stretches the image by 2.4 along x and 1 along y"),
        (np.full((3, 3), np.nan), "9 of its 9 numbers are NaN"),
        (np.eye(4), r"got shape \(4, 4\)"),
        (ALIGNMENT + np.array([[0, 0, 9000.0], [0, 0, 0], [0, 0, 0]]), "cells come to lie outside the image"),
        (ALIGNMENT + np.array([[0, 0, 0], [0, 0, 0], [0, 0.1, 0]]), "last row of an affine matrix is 0 0 1"),
    ],
)
def test_bad_alignment(run, matrix, message):
    with pytest.raises(ValueError, match=message):
        _read(run, alignment=matrix, transcripts=False)


def test_alignment_files(tmp_path):
    good = tmp_path / "good.csv"
    np.savetxt(good, ALIGNMENT, delimiter=",")
    np.testing.assert_allclose(read_alignment(good), ALIGNMENT)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_alignment(tmp_path / "none.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text("fixedX,fixedY\n1,2\n")
    with pytest.raises(ValueError, match="three rows of three numbers"):
        read_alignment(bad)
    with pytest.raises(ValueError, match="singular"):
        read_alignment(np.diag([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="mirrors the image"):
        read_alignment(MIRRORED)


def test_missing_parts(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        gp.io.read_xenium(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no experiment\.xenium"):
        gp.io.read_xenium(tmp_path)
    (tmp_path / "experiment.xenium").write_text('{"pixel_size": 0.2125}')
    with pytest.raises(FileNotFoundError, match=r"lacks \['cells\.zarr\.zip'"):
        gp.io.read_xenium(tmp_path)
    with pytest.raises(ValueError, match="there is no image to align"):
        gp.io.read_xenium(run[0], alignment=ALIGNMENT)
    with pytest.raises(FileNotFoundError, match="histology="):
        _read(run, histology=tmp_path / "none.tif")


def test_without_the_extra(run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "spatialdata_io", None)
    with pytest.raises(ImportError, match=r"pip install 'ghistpy\[xenium\]'"):
        gp.io.read_xenium(run[0])
