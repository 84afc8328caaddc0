"""Transcripts into counts: against scipy's label look-up and skimage's expansion, and conservation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from spatialdata.models import PointsModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import ghistpy as gp

GENES = np.array(["ACTB", "CD3E", "T/NK", "NegControlProbe_01", "BLANK_7"])


def _frame(n=4000, seed=0, side=200.0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.uniform(-10, side + 10, n),
            "y": rng.uniform(-10, side + 10, n),
            "feature_name": rng.choice(GENES, n, p=[0.4, 0.3, 0.2, 0.06, 0.04]),
            "qv": rng.choice([12.0, 20.0, 40.0], n),
        }
    )


@pytest.fixture
def slide():
    return gp.datasets.simulate_slide(n_cells=80, n_genes=5, size_um=200.0, mpp=0.5, seed=1)


def _add(sdata, frame, transformation=None, **kwargs):
    transformation = transformation or Identity()
    sdata.points["transcripts"] = PointsModel.parse(frame, transformations={"microns": transformation}, **kwargs)


def _expected(frame, labels, mpp, min_quality, expansion_px=0):
    """Counts by a plain look-up in the expanded labels."""
    from skimage.segmentation import expand_labels

    labels = expand_labels(labels, expansion_px) if expansion_px else labels
    f = frame[(frame["qv"] >= min_quality) & ~frame["feature_name"].str.startswith(("NegControl", "BLANK"))]
    column, row = np.floor(f["x"] / mpp).astype(int), np.floor(f["y"] / mpp).astype(int)
    ok = (row >= 0) & (column >= 0) & (row < labels.shape[0]) & (column < labels.shape[1])
    f = f[ok].assign(cell=labels[row[ok], column[ok]])
    return pd.crosstab(f["cell"], f["feature_name"]).drop(index=0, errors="ignore")


@pytest.mark.parametrize(("expansion", "npartitions"), [(0.0, 1), (3.0, 3)])
def test_counts_equal_a_plain_look_up_and_are_conserved(slide, expansion, npartitions):
    frame = _frame()
    _add(slide, frame, npartitions=npartitions)
    gp.pp.assign_transcripts(slide, key_added="counted", expansion_um=expansion)
    table = slide["counted"]
    expected = _expected(frame, np.asarray(slide["nuclei"].data), 0.5, 20, int(expansion / 0.5))
    found = pd.DataFrame(table.X.toarray(), index=table.obs["cell_id"], columns=table.var_names)
    assert found.columns.tolist() == ["ACTB", "CD3E", "T/NK"]
    pd.testing.assert_frame_equal(
        found.loc[expected.index], expected.astype(np.float32), check_names=False, check_index_type=False
    )
    assert found.to_numpy().sum() == expected.to_numpy().sum()
    report = json.loads(table.uns["ghistpy"]["assignment"])
    parts = ("assigned", "low_quality", "control", "outside_image", "outside_nuclei")
    assert sum(report[k] for k in parts) == report["transcripts"] == len(frame)
    assert all(report[k] > 0 for k in parts)
    assert report["low_quality"] == (frame["qv"] < 20).sum()
    # all nuclei are there, also those without a transcript
    np.testing.assert_array_equal(table.obs["cell_id"], slide["measured"].obs["cell_id"])
    np.testing.assert_allclose(table.obsm["spatial"], slide["measured"].obsm["spatial"])
    np.testing.assert_allclose(table.obs["total"], found.sum(axis=1))


def test_partitions_and_category_types_do_not_matter(slide):
    frame = _frame(seed=3)
    _add(slide, frame, npartitions=1)
    gp.pp.assign_transcripts(slide, key_added="a")
    _add(slide, frame.assign(feature_name=frame["feature_name"].astype("category")), npartitions=4)
    gp.pp.assign_transcripts(slide, key_added="b")
    assert slide["a"].var_names.tolist() == slide["b"].var_names.tolist()
    assert (slide["a"].X != slide["b"].X).nnz == 0


def test_transformation_of_the_points_is_used(slide):
    frame = _frame(seed=4)
    _add(slide, frame)
    gp.pp.assign_transcripts(slide, key_added="a")
    # the same points in pixels, rotated by 90 degrees about the origin
    moved = frame.assign(x=-frame["y"] / 0.5, y=frame["x"] / 0.5)
    back = Affine([[0, 0.5, 0], [-0.5, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    _add(slide, moved, back)
    gp.pp.assign_transcripts(slide, key_added="b")
    assert (slide["a"].X != slide["b"].X).nnz == 0


def test_column_is_gene_and_quality_none(slide):
    frame = _frame(seed=5).assign(is_gene=lambda f: f["feature_name"] != "CD3E")
    _add(slide, frame.drop(columns="qv"))
    gp.pp.assign_transcripts(slide, key_added="a", min_quality=None)
    assert slide["a"].var_names.tolist() == ["ACTB", "T/NK"]
    report = json.loads(slide["a"].uns["ghistpy"]["assignment"])
    assert report["low_quality"] == 0
    assert report["control"] == (frame["feature_name"].isin(["CD3E", *GENES[3:]])).sum()


def _without_name(frame):
    frame.loc[[3, 5], "feature_name"] = ["", None]
    return frame


def _category_with_hole(frame):
    frame["feature_name"] = frame["feature_name"].where(frame.index > 4).astype("category")
    return frame


def _without_position(frame):
    frame.loc[7, "x"] = np.nan
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_name, "2 transcripts have no gene name in column 'feature_name'"),
        (_category_with_hole, "5 transcripts have no gene name"),
        (_without_position, "1 transcripts have no finite x and y"),
        (lambda f: f.drop(columns="qv"), "no column 'qv'.*min_quality=None"),
        (lambda f: f.rename(columns={"feature_name": "gene"}), "no column 'feature_name'.*feature_key="),
        (lambda f: f.assign(x=f["x"] + 1000), "transcripts lie outside the labels, which span 200 x 200 µm"),
        (lambda f: f.assign(qv=1.0), "no transcript is left"),
    ],
)
def test_bad_transcripts_write_nothing(slide, change, message):
    _add(slide, change(_frame(seed=2)))
    before = slide["measured"]
    with pytest.raises(ValueError, match=message):
        gp.pp.assign_transcripts(slide)
    assert slide["measured"] is before


def test_bad_arguments(slide):
    with pytest.raises(ValueError, match="points_key='transcripts' is not among the points"):
        gp.pp.assign_transcripts(slide)
    _add(slide, _frame())
    with pytest.raises(ValueError, match="expansion_um=-1"):
        gp.pp.assign_transcripts(slide, expansion_um=-1)
    with pytest.raises(ValueError, match="labels_key='cells' is not among the labels"):
        gp.pp.assign_transcripts(slide, labels_key="cells")
    singular = Affine([[1, 1, 0], [1, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(slide["transcripts"], singular, "microns")
    with pytest.raises(ValueError, match="singular"):
        gp.pp.assign_transcripts(slide)
    set_transformation(slide["transcripts"], {"global": Scale([1, 1], axes=("x", "y"))}, set_all=True)
    with pytest.raises(ValueError, match="no transformation to 'microns'"):
        gp.pp.assign_transcripts(slide)
