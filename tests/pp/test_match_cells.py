"""Matching of cells and image: planted mistakes are named, right ones pass, and chance is no match."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ghistpy as gp

W, H = 500.0, 400.0


@pytest.fixture(scope="module")
def _slide():
    """Wider than high: a slide cut from a square one, its table linked to nothing."""
    from ghistpy.io.elements import image_element, labels_element

    full = gp.datasets.simulate_slide(n_cells=1200, n_genes=5, size_um=500.0, mpp=0.5, seed=2)
    pixels = np.asarray(gp.io.open_image(full).read(gp.geometry.Window(0, 0, 800, 1000)))
    labels = np.asarray(full["nuclei"].data)[:800]
    keep = full["measured"].obsm["spatial"][:, 1] < 395
    table = full["measured"][keep].copy()
    del table.uns["spatialdata_attrs"]
    return pixels, labels, table, image_element, labels_element


@pytest.fixture
def make(_slide):
    import spatialdata as sd

    pixels, labels, table, image_element, labels_element = _slide

    def build(change=lambda xy: xy, rows=slice(None), linked=False):
        own = table[rows].copy()
        own.obsm["spatial"] = change(own.obsm["spatial"])
        if linked:
            own.uns["spatialdata_attrs"] = {"region": "nuclei", "region_key": "region", "instance_key": "cell_id"}
        return sd.SpatialData(
            images={"he": image_element(pixels, 0.5)},
            labels={"nuclei": labels_element(labels, 0.5)},
            tables={"measured": own},
        )

    return build


def _rotate(xy, degrees):
    a, c = np.radians(degrees), np.array([W, H]) / 2
    return (xy - c) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + c


MISTAKES = {
    "swapped": (lambda xy: xy[:, ::-1], r"x and y swapped .*exchange the columns"),
    "flipped": (lambda xy: np.column_stack([W - xy[:, 0], xy[:, 1]]), r"x flipped .*x = 500\.0 - x"),
    "flipped y": (lambda xy: np.column_stack([xy[:, 0], H - xy[:, 1]]), r"y flipped .*y = 400\.0 - y"),
    "pixels": (lambda xy: xy / 0.5, r"scaled by 0\.5 .*they are pixels of this image"),
    "swapped pixels": (lambda xy: xy[:, ::-1] / 0.5, r"x and y swapped, scaled by 0\.5"),
    "Xenium pixels": (lambda xy: xy / 0.2125, r"scaled by 0\.2125 .*pixels of the Xenium"),
    "µm/px wrong": (lambda xy: xy * 1.04, r"scaled by 0\.96.*µm/px of the image is 0\.52"),
    "shifted": (lambda xy: xy + [9.0, -4.0], r"shifted by \(-9\.0, \+4\.0\) µm"),
    "shifted far": (lambda xy: xy + [70.0, 30.0], r"shifted by \(-70\.0, -30\.0\) µm"),
    "rotated": (lambda xy: _rotate(xy, 2.0), "tiles are off by more than 5 µm .*distorted"),
    "turned": (lambda xy: _rotate(xy, 40.0), r"nothing to do with the nuclei of this image"),
    "chance": (lambda xy: np.random.default_rng(0).uniform(0, [W, H], xy.shape), "nothing to do with the nuclei"),
}


def test_right_cells_pass(make):
    sdata = make()
    gp.pp.match_cells(sdata)
    report = gp.get.matching(sdata)
    assert report["verdict"] == "matched"
    assert report["on_nuclei"] == 1.0
    labels = np.asarray(sdata["nuclei"].data)
    assert report["nuclei_share"] == pytest.approx((labels > 0).mean())
    assert report["shift_um"] == [0.0, 0.0]
    first = gp.get.matching(sdata, "placements").iloc[0]
    assert first["placement"] == "as it is"
    # the null is that of wrong shifts: nothing but small changes of scale comes near
    others = gp.get.matching(sdata, "placements").query("swap or flip_x or flip_y")
    assert others["z"].max() < 0.2 * first["z"]
    tiles = gp.get.matching(sdata, "tiles")
    assert (np.hypot(tiles["dx_um"], tiles["dy_um"])[tiles["reliable"]] <= 1).all()
    counts = gp.get.matching(sdata, "counts")
    expected = sdata["measured"].obs["cell_type"].value_counts()
    assert counts.set_index("cell_type")["n"].to_dict() == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(make, name):
    change, message = MISTAKES[name]
    sdata = make(change)
    with pytest.raises(ValueError, match=message):
        gp.pp.match_cells(sdata)
    # the report stays, with the matrix that fits where there is one
    report = gp.get.matching(sdata)
    assert report["verdict"] not in ("matched", "inconclusive")
    if report["matrix"] is not None:
        matrix = np.array(report["matrix"])
        xy = sdata["measured"].obsm["spatial"] @ matrix[:2, :2].T + matrix[:2, 2]
        truth = make()["measured"].obsm["spatial"]
        assert np.median(np.linalg.norm(xy - truth, axis=1)) < 1.0
        sdata["measured"].obsm["spatial"] = xy
        gp.pp.match_cells(sdata)


@pytest.mark.parametrize("name", ["swapped", "shifted far"])
def test_labels_that_the_table_is_linked_to_are_evidence(make, name):
    sdata = make(MISTAKES[name][0], linked=True)
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] and the labels that the table is linked to disagree"):
        gp.pp.match_cells(sdata)
    shuffled = make(lambda xy: np.random.default_rng(0).permutation(xy), linked=True)
    with pytest.raises(ValueError, match="do the ids belong to these labels"):
        gp.pp.match_cells(shuffled)
    gp.pp.match_cells(make(linked=True))


def test_no_false_alarm_by_chance(make):
    """Sixty random cells on tissue: no placement may be claimed, and too few to refuse."""
    kinds = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sdata = make(lambda xy, rng=rng: rng.uniform(0, [W, H], xy.shape), rows=slice(0, 60))
        gp.pp.match_cells(sdata, on_mismatch="warn")
        kinds.append(gp.get.matching(sdata)["verdict"])
    assert set(kinds) <= {"inconclusive", "unmatched"}


def test_few_right_cells_pass(make):
    for start in range(0, 500, 100):
        sdata = make(rows=slice(start, start + 40))
        gp.pp.match_cells(sdata)
        assert gp.get.matching(sdata)["verdict"] == "matched"


def test_blank_image_is_inconclusive(make, caplog):
    from ghistpy.io.elements import image_element

    sdata = make()
    sdata.images["blank"] = image_element(np.full((3, 800, 1000), 240, np.uint8), 0.5)
    gp.pp.match_cells(sdata, image_key="blank")
    assert gp.get.matching(sdata)["verdict"] == "inconclusive"
    assert "inconclusive" in caplog.text


def test_counts_by_part_of_a_fold(make):
    sdata = make(linked=True)
    fold = gp.tl.split({"slide_0": sdata}, by="blocks", n_splits=3, buffer_um=10, seed=0)[0]
    gp.pp.match_cells(sdata, fold=fold)
    counts = gp.get.matching(sdata, "counts").groupby("part")["n"].sum()
    assert counts["train"] == len(fold.train["slide_0"].ids)
    assert counts["test"] == len(fold.test["slide_0"].ids)
    assert counts.sum() == sdata["measured"].n_obs
    with pytest.raises(ValueError, match="linked to no element"):
        gp.pp.match_cells(make(), fold=fold)


def test_report_can_be_stored(make, tmp_path):
    sdata = make(linked=True)
    gp.pp.match_cells(sdata)
    sdata.write(tmp_path / "slide.zarr")
    again = gp.io.read_slide(tmp_path / "slide.zarr")
    assert gp.get.matching(again) == gp.get.matching(sdata)
    assert len(gp.get.matching(again, "placements")) == len(gp.get.matching(sdata, "placements"))


def _with_nan(xy):
    return np.where(np.arange(len(xy))[:, None] == 3, np.nan, xy)


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        ({"change": _with_nan}, {}, "1 of .* cells have no finite position"),
        ({"rows": slice(0, 5)}, {}, "has 5 cells; 20 or more"),
        ({}, {"on_mismatch": "ignore"}, "on_mismatch='ignore'"),
        ({}, {"max_shift_um": 0}, "max_shift_um=0"),
        ({}, {"table_key": "none"}, "table_key='none' is not among the tables"),
    ],
)
def test_bad_input_writes_nothing(make, kwargs, options, message):
    sdata = make(**kwargs)
    with pytest.raises(ValueError, match=message):
        gp.pp.match_cells(sdata, **options)
    with pytest.raises(ValueError, match="no report 'matching'"):
        gp.get.matching(sdata)


@pytest.mark.data
def test_lung_core_with_swapped_columns(data_dir, monkeypatch):
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    wrong = gp.datasets.xenium_lung_tma(as_labelled=True)
    with pytest.raises(ValueError, match=r"x and y swapped \(z 2\d.*exchange the columns, xy = xy\[:, ::-1\]"):
        gp.pp.match_cells(wrong)
    right = gp.datasets.xenium_lung_tma()
    gp.pp.match_cells(right)
    report = gp.get.matching(right)
    assert report["verdict"] == "matched"
    assert report["z"] > 15
    assert report["on_tissue"] > 0.95
    assert json.loads(wrong["measured"].uns["ghistpy"]["matching"]["summary"])["on_tissue"] < 0.7
    shifted = gp.datasets.xenium_lung_tma()
    shifted["measured"].obsm["spatial"] += [20.0, -12.0]
    with pytest.raises(ValueError, match="shifted by"):
        gp.pp.match_cells(shifted)


@pytest.mark.data
@pytest.mark.parametrize("tile", ["01", "02", "03", "06", "07", "08", "09", "10"])
def test_nuclei_that_pathologists_outlined(data_dir, tile):
    """Centroids of the masks of eight real tiles: matched, swapped and random, all told apart."""
    import anndata as ad
    import spatialdata as sd
    import tifffile
    from PIL import Image

    from ghistpy.geometry import MemorySource, find_nuclei
    from ghistpy.io.elements import image_element

    folder, mpp = data_dir / "data" / "nuclei_miccai2015", 0.5 if tile < "08" else 0.25
    labels = tifffile.imread(folder / f"image{tile}_labels.tif").astype(np.int64)
    rgb = np.asarray(Image.open(folder / f"image{tile}.png").convert("RGB")).transpose(2, 0, 1)
    xy = find_nuclei(MemorySource(labels)).centroid_px[:, ::-1] * mpp

    def verdict(positions):
        table = ad.AnnData(np.ones((len(positions), 1), np.float32), obsm={"spatial": positions})
        images = {"he": image_element(np.ascontiguousarray(rgb), mpp)}
        sdata = sd.SpatialData(images=images, tables={"measured": table})
        gp.pp.match_cells(sdata, on_mismatch="warn")
        return gp.get.matching(sdata)["verdict"]

    assert verdict(xy) == "matched"
    assert verdict(xy[:, ::-1]) == "swapped"
    size = np.array(labels.shape[::-1]) * mpp
    assert verdict(np.random.default_rng(0).uniform(0, size, xy.shape)) in ("inconclusive", "unmatched")
