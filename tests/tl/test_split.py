"""Folds share no instance, no patient and no pixel, and are the same every time."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ghistpy as gp
from ghistpy.models import GHISTConfig
from ghistpy.tl.split import validation_fold


def slide_of(yx, *, patient=None, sample=None, ids=None):
    """A slide that is a table only: that is all a split looks at."""
    from spatialdata import SpatialData

    yx = np.asarray(yx, dtype=float).reshape(-1, 2)
    ids = np.arange(len(yx)) * 3 + 5 if ids is None else ids
    table = gp.io.make_table(
        np.zeros((len(yx), 1), np.float32),
        ["g"],
        region="nuclei",
        instance_key="cell_id",
        ids=ids,
        obsm={"spatial": yx[:, ::-1]},
    )
    attrs = {k: v for k, v in (("patient", patient), ("sample", sample)) if v is not None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The table is annotating")
        return SpatialData(tables={"measured": table}, attrs={"ghistpy": attrs})


def cohort(n_patients=7, slides_each=2, n=40):
    rng = np.random.default_rng(0)
    return {
        f"s{p}{i}": slide_of(rng.uniform(0, 500, (n, 2)), patient=f"p{p}")
        for p in range(n_patients)
        for i in range(slides_each)
    }


def parts(fold):
    return {name: getattr(fold, name) for name in ("train", "val", "test")}


@pytest.mark.parametrize(("by", "n_splits"), [("patient", 4), ("patient", 7), ("slide", 5), ("slide", 14)])
def test_whole_patients_or_slides(by, n_splits):
    slides = cohort()
    folds = gp.tl.split(slides, by=by, n_splits=n_splits)
    assert len(folds) == n_splits
    tested = [name for fold in folds for name in fold.test]
    assert sorted(tested) == sorted(slides)  # each once
    for fold in folds:
        group = (lambda name: name[1]) if by == "patient" else (lambda name: name)
        groups = {part: {group(n) for n in samples} for part, samples in parts(fold).items()}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not groups[a] & groups[b]
        assert set(fold.train) | set(fold.val) | set(fold.test) == set(slides)
        for samples in parts(fold).values():
            for name, region in samples.items():
                np.testing.assert_array_equal(region.ids, slides[name]["measured"].obs["cell_id"])
        for name in fold.train:
            assert fold.held_out(name).shape == (0, 4)


def test_few_slides_give_a_band_of_each_to_validation():
    slides = cohort(n_patients=3, slides_each=1, n=200)
    for fold in gp.tl.split(slides, by="patient", n_splits=3):
        assert len(fold.train) == 2
        assert set(fold.val) == set(fold.train)
        for name in fold.train:
            ids = slides[name]["measured"].obs["cell_id"].to_numpy()
            both = np.concatenate([fold.train[name].ids, fold.val[name].ids])
            assert sorted(both) == sorted(ids)
            assert 0.1 < len(fold.val[name].ids) / len(ids) < 0.2
            np.testing.assert_array_equal(fold.held_out(name), fold.val[name].boxes_um)
            check_inside(slides[name], fold.val[name])


def check_inside(slide, region):
    """The ids of a held-out region are those whose centroid lies in its boxes."""
    table = slide["measured"]
    yx, ids = table.obsm["spatial"][:, ::-1], table.obs["cell_id"].to_numpy()
    inside = np.zeros(len(ids), bool)
    for y0, x0, y1, x1 in region.boxes_um:
        inside |= (yx[:, 0] > y0) & (yx[:, 0] <= y1) & (yx[:, 1] > x0) & (yx[:, 1] <= x1)
    assert set(ids[inside]) == set(region.ids)


def test_the_seed_assigns_patients():
    slides = cohort()
    tests = [[sorted(f.test) for f in gp.tl.split(slides, n_splits=3, seed=s)] for s in (0, 0, 1)]
    assert tests[0] == tests[1]
    assert tests[0] != tests[2]


@settings(max_examples=60, deadline=None)
@given(
    n_splits=st.integers(2, 6),
    buffer_um=st.sampled_from([0.0, 5.0, 30.0]),
    # few distinct places: many instances lie exactly on an edge
    places=st.integers(20, 400),
    wide=st.booleans(),
    seed=st.integers(0, 100),
)
def test_blocks(n_splits, buffer_um, places, wide, seed):
    rng = np.random.default_rng(seed)
    along = rng.choice(np.round(rng.uniform(0, 900, places), 1), 300)
    across = rng.uniform(0, 200, 300)
    slide = slide_of(np.stack([across, along] if wide else [along, across], axis=1), sample="a")
    ids = slide["measured"].obs["cell_id"].to_numpy()
    yx = slide["measured"].obsm["spatial"][:, ::-1]
    folds = gp.tl.split(slide, by="blocks", n_splits=n_splits, buffer_um=buffer_um)
    tested = np.concatenate([fold.test["a"].ids for fold in folds])
    assert sorted(tested) == sorted(ids)
    for fold in folds:
        sets = [set(p["a"].ids) for p in parts(fold).values()]
        assert sum(map(len, sets)) == len(set.union(*sets))
        assert len(ids) - len(set.union(*sets)) == fold.left_out
        for region in (fold.val["a"], fold.test["a"]):
            check_inside(slide, region)
        at = yx[np.isin(ids, fold.train["a"].ids)]
        for y0, x0, y1, x1 in fold.held_out("a"):
            gap = np.maximum.reduce([y0 - at[:, 0], at[:, 0] - y1, x0 - at[:, 1], at[:, 1] - x1])
            assert (gap >= buffer_um - 1e-9).all()
        assert fold.buffer_um == buffer_um


def test_blocks_hold_equally_many_and_lie_across_the_longer_side():
    rng = np.random.default_rng(0)
    yx = np.concatenate([rng.uniform(0, (100, 300), (500, 2)), rng.uniform(0, (100, 1000), (100, 2))])
    folds = gp.tl.split(slide_of(yx, sample="a"), by="blocks", n_splits=4, buffer_um=0)
    assert {len(fold.test["a"].ids) for fold in folds} == {150}
    boxes = np.concatenate([fold.test["a"].boxes_um for fold in folds])
    assert np.isinf(boxes[:, [0, 2]]).all()  # all of y
    np.testing.assert_array_equal(boxes[1:, 1], boxes[:-1, 3])  # no gap between bands
    assert all(0.08 < len(fold.val["a"].ids) / 600 < 0.2 for fold in folds)


def test_the_default_buffer_is_what_the_network_sees():
    rng = np.random.default_rng(0)
    slide = slide_of(rng.uniform(0, (300, 6000), (3000, 2)))
    fold = gp.tl.split(slide, by="blocks", n_splits=3)[0]
    assert fold.buffer_um == GHISTConfig().reach_um
    assert fold.left_out > 0


def test_no_fold_validates_on_a_band_of_every_slide():
    slides = cohort(n_patients=4, slides_each=1, n=100)
    slides["tiny"] = slide_of(np.random.default_rng(0).uniform(0, 50, (12, 2)))
    fold = validation_fold(slides, "measured")
    assert set(fold.val) == set(slides) - {"tiny"}
    assert len(fold.train["tiny"].ids) == 12  # too few to spare any
    assert not fold.test


def test_a_band_is_empty_where_a_slide_has_no_cells():
    folds = gp.tl.split(
        {"a": slide_of(np.random.default_rng(0).uniform(0, 900, (90, 2))), "none": slide_of(np.zeros((0, 2)))},
        by="blocks",
        n_splits=2,
        buffer_um=0,
    )
    assert len(folds[0].test["none"].ids) == len(folds[0].train["none"].ids) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "tile"}, "by='tile': expected 'patient', 'slide' or 'blocks'"),
        ({"n_splits": 1}, "n_splits=1: expected 2 or more"),
        ({"n_splits": 4}, r"n_splits=4: there are 3 patients \(\['p0', 'p1', 'p2'\]\); use at most that many"),
        ({"by": "slide", "n_splits": 9}, "n_splits=9: there are 6 slides"),
        ({"by": "blocks", "buffer_um": 1e4}, "buffer_um=10000: nothing is left to train on in fold 0; use a smaller"),
        ({"by": "blocks", "buffer_um": -1.0}, "buffer_um=-1.0: expected 0 µm or more"),
        ({"by": "blocks", "buffer_um": float("nan")}, "buffer_um=nan: expected 0 µm or more"),
        ({"n_splits": 2.5}, "n_splits=2.5: expected 2 or more"),
        ({"table_key": "nope"}, "table_key='nope'.*measured"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        gp.tl.split(cohort(n_patients=3), **options)


def test_refuses_slides_it_cannot_place():
    with pytest.raises(ValueError, match="sdatas: got no slide"):
        gp.tl.split([])
    same = [slide_of(np.zeros((3, 2)), sample="x") for _ in range(2)]
    with pytest.raises(ValueError, match=r"sample names \['x'\] repeat; pass a mapping"):
        gp.tl.split(same, by="slide", n_splits=2)
    bare = slide_of(np.zeros((3, 2)))
    del bare["measured"].obsm["spatial"]
    with pytest.raises(ValueError, match=r"has no obsm\['spatial'\] \(x, y in µm\)"):
        gp.tl.split({"a": bare, "b": bare}, by="slide", n_splits=2)
    alone = slide_of(np.zeros((3, 2)))
    alone.tables["measured"].uns.pop("spatialdata_attrs")
    with pytest.raises(ValueError, match="annotates no element; it needs an instance key"):
        gp.tl.split({"a": alone, "b": alone}, by="slide", n_splits=2)
    lost = slide_of([[0.0, 1.0], [np.nan, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] of sample 'a' holds 1 NaN or infinite"):
        gp.tl.split({"a": lost}, by="blocks", n_splits=2)


def test_names_come_from_attrs_or_numbers():
    named, unnamed = slide_of(np.zeros((3, 2)), sample="biopsy"), slide_of(np.zeros((3, 2)))
    folds = gp.tl.split([named, unnamed], by="slide", n_splits=2)
    assert sorted(n for f in folds for n in f.test) == ["biopsy", "slide_1"]
    strings = slide_of(np.random.default_rng(0).uniform(0, 9, (30, 2)), ids=None, sample="a")
    assert pd.api.types.is_integer_dtype(gp.tl.split(strings, by="blocks", n_splits=2, buffer_um=0)[0].test["a"].ids)
