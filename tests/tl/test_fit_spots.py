"""Fitting on spots: their nuclei add up to their counts, and cells are told apart without ever having been measured."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ghistpy as gp


@pytest.fixture(scope="module")
def spots(spot_slide_maker):
    return spot_slide_maker(1), spot_slide_maker(2)


@pytest.fixture(scope="module")
def spot_model(spots, quick_fit):
    (slide, *_), _ = spots
    return quick_fit(slide, supervision="spots", max_epochs=3, proportions_key="shares")


def evaluation_scale(table):
    counts = table.X.toarray() if sparse.issparse(table.X) else np.asarray(table.X)
    return np.log1p(1e4 * counts / np.maximum(table.obs["total"].to_numpy(), 1e-9)[:, None])


def test_spots_teach_more_than_their_mean(spots, spot_model):
    """On another slide: the nuclei of a spot add up to its counts, and single cells are told apart."""
    _, (other, cells, number) = spots
    assert spot_model.supervision == "spots"
    gp.tl.predict_expression(other, spot_model, device="cpu", progress=False)
    gp.tl.aggregate_spots(other)
    predicted, measured = other["insilico_spots"].copy(), other["measured"]
    predicted.X = np.expm1(predicted.X)
    enough = number >= 4
    x, y = (evaluation_scale(t)[enough] for t in (predicted, measured))
    mean = spot_model.baselines["gene_mean"]
    assert ((x - y) ** 2).mean() < 0.85 * ((mean - y) ** 2).mean()
    correlation = [np.corrcoef(x[:, g], y[:, g])[0, 1] for g in range(10)]
    assert np.median(correlation) > 0.35
    # never trained on a cell, yet cells follow their own counts
    own = np.log1p(cells.X.toarray())
    per_cell = [np.corrcoef(other["insilico"].X[:, g], own[:, g])[0, 1] for g in range(10)]
    assert np.median(per_cell) > 0.25
    # and their totals: counts per nucleus that sum to those of the spots
    total = other["insilico_spots"].obs["total"].to_numpy()[enough]
    assert np.corrcoef(total, measured.obs["total"][enough])[0, 1] > 0.6
    assert 0.7 < total.sum() / measured.obs["total"][enough].sum() < 1.4


def test_types_of_spots(spots, spot_model):
    (_, cells, _), (other, other_cells, _) = spots
    assert spot_model.cell_types == list(cells.obs["cell_type"].cat.categories)
    gp.tl.predict_expression(other, spot_model, device="cpu", progress=False)
    truth = other_cells.obs["cell_type"].astype(str).to_numpy()
    frequent = pd.Series(truth).value_counts(normalize=True).iloc[0]
    assert (other["insilico"].obs["cell_type"].astype(str).to_numpy() == truth).mean() > frequent + 0.1


def test_spots_without_types_get_states_or_a_reference(spots, caplog, quick_fit):
    (slide, cells, _), _ = spots
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        latent = quick_fit(slide, supervision="spots", max_epochs=0)
    assert "latent states stand in" in caplog.text
    assert latent.cell_types == [f"state_{k + 1}" for k in range(len(latent.cell_types))]
    profiles = pd.DataFrame(
        np.log1p(cells.varm["type_profiles"].T),
        index=list(cells.obs["cell_type"].cat.categories),
        columns=cells.var_names,
    )
    known = quick_fit(slide, supervision="spots", max_epochs=0, reference=profiles.iloc[:, ::-1])
    assert known.cell_types == list(profiles.index)


def test_held_out_blocks_of_spots(spots, quick_fit, spot_slide_maker, slide_pixels):
    (slide, *_), _ = spots
    fold = gp.tl.split(slide, by="blocks", n_splits=3, buffer_um=30)[0]
    image = slide_pixels(slide).copy()
    box = fold.test["simulated_1"].boxes_um[0] / 0.5
    axis = int(np.isfinite(box[1]) or np.isfinite(box[3]))
    low, high = (int(np.clip(v, 0, 1e6)) for v in (np.floor(box[axis]), np.ceil(box[axis + 2])))
    held = [slice(None)] * 3
    held[axis + 1] = slice(low, high)
    image[tuple(held)] = 9
    from ghistpy.io.elements import image_element

    noisy, _, _ = spot_slide_maker(1)
    del noisy.images["he"]
    noisy["he"] = image_element(image, 0.5)
    options = {"supervision": "spots", "fold": fold, "proportions_key": "shares"}
    assert quick_fit(noisy, **options).hash == quick_fit(slide, **options).hash


def test_spots_without_nuclei(spots, quick_fit, spot_slide_maker):
    (slide, *_), _ = spots
    from spatialdata.transformations import Scale, set_transformation

    far, _, _ = spot_slide_maker(1, n_cells=200)
    set_transformation(far["spots"], Scale([1e4, 1e4], axes=("x", "y")), "microns")
    with pytest.raises(ValueError, match="no nucleus lies in any of its .* spots"):
        quick_fit(far, supervision="spots")
    with pytest.raises(ValueError, match=r"proportions_key='types' is not in obsm .* there are \[.*'shares'"):
        quick_fit(slide, supervision="spots", proportions_key="types")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (pd.DataFrame([[1.0]], columns=["zzz"], index=["T"]), "reference: shares no gene with the panel"),
        (pd.DataFrame(-np.ones((1, 1)), columns=["first"], index=["T"]), "expected finite log1p values"),
    ],
)
def test_references_that_do_not_fit(spots, reference, message, quick_fit):
    (slide, *_), _ = spots
    reference = reference.rename(columns={"first": slide["measured"].var_names[0]})
    with pytest.raises(ValueError, match=message):
        quick_fit(slide, supervision="spots", reference=reference)
