"""Registration: planted maps are found, stored as transformations, and nonsense is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from spatialdata.models import PointsModel
from spatialdata.transformations import Identity, get_transformation

import ghistpy as gp
from ghistpy.geometry.affine import apply_affine, check_affine, take_apart


def _similarity(scale, degrees, shift, mirror=False):
    a = np.radians(degrees)
    m = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    return np.block([[m, np.array(shift, float)[:, None]], [np.zeros((1, 2)), np.ones((1, 1))]])


def _slide(**kwargs):
    sdata = gp.datasets.simulate_slide(n_genes=5, **({"n_cells": 300, "seed": 2} | kwargs))
    xy = sdata["measured"].obsm["spatial"]
    frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "feature_name": "ACTB", "qv": 40.0})
    sdata.points["transcripts"] = PointsModel.parse(frame, transformations={"microns": Identity()})
    return sdata


def _points_um(sdata):
    matrix = get_transformation(sdata["transcripts"], "microns").to_affine_matrix(("x", "y"), ("x", "y"))
    return apply_affine(matrix, sdata["transcripts"][["x", "y"]].compute().to_numpy())


AFFINE = np.array([[1.1, 0.2, 30.0], [-0.1, 0.9, -12.0], [0, 0, 1]])


@pytest.mark.parametrize(("model", "truth"), [("similarity", _similarity(0.93, 33.0, (40, -7))), ("affine", AFFINE)])
def test_landmarks_find_the_planted_map(model, truth):
    sdata = _slide()
    before = sdata["measured"].obsm["spatial"].copy()
    a = np.random.default_rng(0).uniform(0, 200, (6, 2))
    gp.pp.align_landmarks(sdata, a, apply_affine(truth, a), model=model)
    report = sdata.attrs["ghistpy"]["alignment"]
    np.testing.assert_allclose(report["matrix"], truth, atol=1e-8)
    assert report["rms_um"] < 1e-8
    assert max(report["leave_one_out_um"]) < 1e-7
    np.testing.assert_allclose(sdata["measured"].obsm["spatial"], apply_affine(truth, before))
    np.testing.assert_allclose(sdata["measured"].obsm["spatial_unaligned"], before)
    np.testing.assert_allclose(_points_um(sdata), apply_affine(truth, before))
    # the coordinates themselves are as they were
    np.testing.assert_allclose(sdata["transcripts"][["x", "y"]].compute(), before)
    # a second registration goes on from there
    gp.pp.align_landmarks(sdata, a, a + [1.0, 0.0])
    np.testing.assert_allclose(_points_um(sdata), apply_affine(truth, before) + [1.0, 0.0])


def test_residuals_are_those_of_numpy_least_squares():
    rng = np.random.default_rng(1)
    a = rng.uniform(0, 500, (8, 2))
    b = apply_affine(AFFINE, a) + rng.normal(0, 3, (8, 2))
    sdata = _slide()
    gp.pp.align_landmarks(sdata, a, b, model="affine")
    solution = np.linalg.lstsq(np.column_stack([a, np.ones(8)]), b, rcond=None)[0]
    expected = np.linalg.norm(np.column_stack([a, np.ones(8)]) @ solution - b, axis=1)
    report = sdata.attrs["ghistpy"]["alignment"]
    # scikit-image weighs the errors of both sides: all but the least squares of one
    assert expected.std() < np.sqrt((np.square(report["residuals_um"])).mean()) < 1.01 * np.sqrt((expected**2).mean())
    assert report["rms_um"] == pytest.approx(np.sqrt(np.square(report["residuals_um"]).mean()))
    assert np.mean(report["leave_one_out_um"]) > np.mean(report["residuals_um"])
    with pytest.raises(ValueError, match="the worst is number"):
        gp.pp.align_landmarks(_slide(), a, b, max_residual_um=1.0)


SQUARE = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0]])


@pytest.mark.parametrize(
    ("moving", "fixed", "options", "message"),
    [
        (SQUARE, SQUARE[:3], {}, "4 and 3 landmarks"),
        (SQUARE[:1], SQUARE[:1], {}, "1 landmarks; model='similarity' needs 2"),
        (SQUARE[:2], SQUARE[:2], {"model": "affine"}, "needs 3 or more"),
        (SQUARE * 0, SQUARE, {}, "moving: all landmarks are one point"),
        (SQUARE * [1, 0], SQUARE, {"model": "affine"}, "moving: the landmarks lie on one line"),
        (SQUARE, SQUARE * [np.nan, 1], {}, "fixed: 4 landmarks are NaN"),
        (SQUARE.T, SQUARE.T, {}, r"shape \(2, 4\)"),
        (SQUARE, SQUARE * [-1, 1], {}, "the landmarks are mirrored"),
        (SQUARE, SQUARE[:, ::-1], {"model": "affine"}, "the landmarks are mirrored"),
        (SQUARE, SQUARE, {"model": "elastic"}, "model='elastic': expected one of"),
        (SQUARE, SQUARE, {"elements": ["none"]}, r"\['none'\] are not among points"),
        (SQUARE, SQUARE, {"table_key": "none"}, "table_key='none' is not among the tables"),
    ],
)
def test_bad_landmarks_write_nothing(moving, fixed, options, message):
    sdata = _slide(n_cells=40)
    before = sdata["measured"].obsm["spatial"].copy()
    with pytest.raises(ValueError, match=message):
        gp.pp.align_landmarks(sdata, moving, fixed, **options)
    np.testing.assert_array_equal(sdata["measured"].obsm["spatial"], before)
    assert "alignment" not in sdata.attrs.get("ghistpy", {})
    np.testing.assert_array_equal(_points_um(sdata), before)


def test_mirrored_landmarks_are_accepted_on_request():
    sdata = _slide(n_cells=40)
    gp.pp.align_landmarks(sdata, SQUARE, SQUARE * [-1, 1] + [100, 0], allow_mirrored=True)
    np.testing.assert_allclose(
        sdata.attrs["ghistpy"]["alignment"]["matrix"], [[-1, 0, 100], [0, 1, 0], [0, 0, 1]], atol=1e-9
    )


@pytest.mark.parametrize(
    "truth",
    [
        _similarity(1.0, 90.0, (0, 0), mirror=True),  # x and y swapped
        _similarity(1.0, 63.7, (15, 100)),
        _similarity(1.004, -171.3, (300, 280), mirror=True),
    ],
)
def test_density_finds_rotation_flip_and_shift(truth):
    sdata = _slide(n_cells=700, size_um=400.0)
    right = sdata["measured"].obsm["spatial"].copy()
    sdata["measured"].obsm["spatial"] = apply_affine(np.linalg.inv(truth), right)
    gp.pp.align_density(sdata, elements=[])
    error = np.linalg.norm(sdata["measured"].obsm["spatial"] - right, axis=1)
    assert np.median(error) < 1.5
    assert error.max() < 4
    gp.pp.match_cells(sdata)
    assert sdata.attrs["ghistpy"]["alignment"]["z"] > 10


def test_density_tries_the_scales_that_are_given():
    sdata = _slide(n_cells=500, size_um=350.0)
    right = sdata["measured"].obsm["spatial"].copy()
    sdata["measured"].obsm["spatial"] = right[:, ::-1] / 0.5
    with pytest.raises(ValueError, match="no rotation, flip or shift of the cells stands out from chance"):
        gp.pp.align_density(sdata)
    gp.pp.align_density(sdata, scales=(1.0, 0.5))
    assert np.linalg.norm(sdata["measured"].obsm["spatial"] - right, axis=1).max() < 4


def test_density_claims_nothing_for_random_cells():
    for seed in range(2):
        sdata = _slide(n_cells=300, size_um=300.0)
        xy = np.random.default_rng(seed).uniform(0, 300, (300, 2))
        sdata["measured"].obsm["spatial"] = xy
        with pytest.raises(ValueError, match="stands out from chance"):
            gp.pp.align_density(sdata)
        np.testing.assert_array_equal(sdata["measured"].obsm["spatial"], xy)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.obsm.pop("spatial"), {}, "has no obsm"),
        (lambda t: None, {"scales": ()}, "scales="),
        (lambda t: None, {"scales": (0.0,)}, "scales="),
    ],
)
def test_bad_density_input(change, options, message):
    sdata = _slide(n_cells=40)
    change(sdata["measured"])
    with pytest.raises(ValueError, match=message):
        gp.pp.align_density(sdata, **options)


def test_affine_is_taken_apart_and_checked():
    parts = take_apart(_similarity(2.0, 30.0, (1, 2), mirror=True))
    assert parts.mirrored
    assert parts.mean_scale == pytest.approx(2.0)
    assert parts.shear_deg == pytest.approx(0, abs=1e-9)
    assert take_apart(np.array([[1, np.tan(np.radians(10)), 0], [0, 1, 0], [0, 0, 1]])).shear_deg == pytest.approx(10)
    np.testing.assert_array_equal(check_affine([[1, 0, 3], [0, 1, 4]], "m")[2], [0, 0, 1])
    for bad in ([[1, 2], [3, 4]], "matrix", [[1, 0, 0], [0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0], [0, 0, 1]]):
        with pytest.raises(ValueError, match="^m: "):
            check_affine(bad, "m")


@pytest.mark.data
def test_lung_core_is_put_right(data_dir, monkeypatch):
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    right = gp.datasets.xenium_lung_tma()["measured"].obsm["spatial"]
    wrong = gp.datasets.xenium_lung_tma(as_labelled=True)
    gp.pp.align_density(wrong)
    assert np.median(np.linalg.norm(wrong["measured"].obsm["spatial"] - right, axis=1)) < 4
    gp.pp.match_cells(wrong)
