"""The in-silico table: linked, complete, provenance kept; written through and replaced in a store; bad input named."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest

import ghistpy as gp
from ghistpy.models import GHISTConfig

CONFIG = GHISTConfig(widths=(4, 6), embedding=6, decoder=4, random_features=16, context_um=(20.0,), tile_px=256)


@pytest.fixture(scope="module")
def slide():
    return gp.datasets.simulate_slide(n_cells=180, n_genes=9, seed=5)


@pytest.fixture(scope="module")
def model(slide):
    return gp.tl.fit(slide, config=CONFIG, max_epochs=0, progress=False)


@pytest.fixture(scope="module")
def table(slide, model):
    predict(slide, model)
    return slide["insilico"].copy()


def predict(slide, model, **options):
    gp.tl.predict_expression(slide, model, **{"device": "cpu", "progress": False, **options})


def arrays(slide):
    return np.asarray(slide["he"].data.compute()), np.asarray(slide["nuclei"].data.compute())


def slide_of(image, labels, *, mpp=0.5, names=None, attrs=None):
    """A slide of arrays, with an image of any kind."""
    import dask.array as da
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    from ghistpy.io.elements import to_microns

    element = Image2DModel.parse(
        da.from_array(image), dims=("c", "y", "x"), c_coords=names, transformations=to_microns(mpp)
    )
    labels = Labels2DModel.parse(da.from_array(labels), dims=("y", "x"), transformations=to_microns(mpp))
    return SpatialData(images={"he": element}, labels={"nuclei": labels}, attrs=attrs or {})


def test_one_row_per_nucleus_with_what_the_labels_say(slide, model, table):
    from skimage.measure import regionprops

    _, labels = arrays(slide)
    props = regionprops(labels)
    assert table.obs["cell_id"].tolist() == [p.label for p in props]
    np.testing.assert_allclose(table.obs["area_um2"], [p.area * 0.25 for p in props], rtol=1e-6)
    xy = (np.array([p.centroid for p in props])[:, ::-1] + 0.5) * 0.5
    np.testing.assert_allclose(table.obsm["spatial"], xy)
    np.testing.assert_allclose(table.obsm["spatial"], slide["measured"].obsm["spatial"])
    assert table.obs["region"].unique().tolist() == ["nuclei"]
    assert list(table.var_names) == model.genes
    assert table.X.dtype == np.float32


def test_columns_agree_with_each_other(model, table):
    proba = table.obsm["cell_type_proba"]
    names = np.array(table.uns["ghistpy"]["cell_types"])
    assert names.tolist() == model.cell_types
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert table.obs["cell_type"].astype(str).tolist() == names[proba.argmax(axis=1)].tolist()
    np.testing.assert_array_equal(table.obs["cell_type_confidence"], proba.max(axis=1))
    assert list(table.obs["cell_type"].cat.categories) == model.cell_types
    np.testing.assert_allclose(table.obs["total"], np.expm1(table.X).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(table.obsm["composition"].sum(axis=1), 1, rtol=1e-4)
    features = list(table.uns["ghistpy"]["morphology_features"])
    assert table.obsm["morphology"].shape[1] == len(features)
    area = np.exp(table.obsm["morphology"][:, features.index("log_area_um2")])
    np.testing.assert_allclose(area, table.obs["area_um2"], rtol=1e-4)
    for name, values in model.calibration.items():
        np.testing.assert_array_equal(table.var[name], values)


def test_provenance(slide, model, table):
    uns = table.uns["ghistpy"]
    assert uns["units"] == "log1p(expected count)"
    assert uns["model_hash"] == model.hash
    assert (uns["mpp"], uns["model_mpp"], uns["supervision"]) == (0.5, 0.5, "cells")
    assert (uns["image_key"], uns["labels_key"], uns["version"]) == ("he", "nuclei", gp.__version__)
    assert json.loads(uns["params"]) == {"refine": 2.0, "precision": "auto", "device": "cpu"}


def test_in_silico_values_are_not_taken_for_counts(slide, model, table):
    with pytest.raises(ValueError, match=r"holds 'log1p\(expected count\)'; training needs raw counts"):
        gp.tl.fit(slide, table_key="insilico", config=CONFIG, max_epochs=0, progress=False)


def test_options_that_do_not_change_the_result(slide, model, table):
    for options in ({"batch_size": 3}, {"workers": 0}, {"workers": 3, "batch_size": 2}, {"precision": "float32"}):
        predict(slide, model, key_added="again", **options)
        np.testing.assert_allclose(slide["again"].X, table.X, rtol=1e-5, atol=1e-6)
    predict(slide, model, key_added="again", precision="bfloat16")
    assert np.corrcoef(slide["again"].X.ravel(), table.X.ravel())[0, 1] > 0.99


def test_refinement_is_a_choice(slide, model, table):
    predict(slide, model, key_added="raw", refine=0)
    raw = slide["raw"]
    assert raw.obs["cell_type"].tolist() == raw.obs["cell_type_raw"].tolist() == table.obs["cell_type_raw"].tolist()


def as_float(image):
    return image.astype(np.float32) / 255


def as_16_bit(image):
    return image.astype(np.uint16) * 257


def with_alpha(image):
    return np.concatenate([image, np.full_like(image[:1], 255)])


def test_another_kind_of_image_is_the_same_image(slide, model, table):
    image, labels = arrays(slide)
    image = image.copy()
    image[:, :2, :2] = 255  # white is there, so that the range of floats and 16 bits is known
    plain = slide_of(image, labels)
    predict(plain, model)
    for convert in (as_float, as_16_bit, with_alpha):
        other = slide_of(convert(image), labels)
        predict(other, model)
        np.testing.assert_array_equal(other["insilico"].X, plain["insilico"].X, err_msg=convert.__name__)


def test_a_grey_image_is_its_rgb(slide, model):
    image, labels = arrays(slide)
    grey = image[1:2].copy()
    one, three = slide_of(grey, labels), slide_of(np.repeat(grey, 3, axis=0), labels)
    for each in (one, three):
        predict(each, model)
    np.testing.assert_array_equal(one["insilico"].X, three["insilico"].X)


def test_no_nucleus(slide, model, caplog):
    image, labels = arrays(slide)
    empty = slide_of(image, np.zeros_like(labels))
    with caplog.at_level(logging.WARNING, logger="ghistpy"):
        predict(empty, model)
    assert "holds no nucleus: the table 'insilico' has no rows" in caplog.text
    assert empty["insilico"].shape == (0, 9)
    assert list(empty["insilico"].var_names) == model.genes


def test_one_nucleus_and_a_slide_full_of_nuclei(slide, model):
    image, labels = arrays(slide)
    one = slide_of(image, np.where(labels == 7, 7, 0))
    predict(one, model)
    assert one["insilico"].obs["cell_id"].tolist() == [7]
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]] // 25
    full = slide_of(image, (y * 100 + x + 1).astype(np.int32))
    predict(full, model)
    for each in (one, full):
        assert np.isfinite(each["insilico"].X).all()
        assert np.isfinite(each["insilico"].obsm["morphology"]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32])
def test_ids_are_kept(slide, model, table, dtype):
    image, labels = arrays(slide)
    top = {np.int64: 2**63 - 1, np.uint64: 2**63 - 1, np.uint32: 2**32 - 1}[dtype]
    new = np.array([0, *(top - 3 * np.arange(180))], dtype=dtype)
    other = slide_of(image, new[labels])
    predict(other, model)
    got = other["insilico"]
    assert got.obs["cell_id"].dtype == np.int64
    assert got.obs["cell_id"].tolist() == sorted(int(v) for v in new[1:])
    np.testing.assert_allclose(got.X[::-1], table.X, rtol=1e-5, atol=1e-6)


def test_another_resolution(slide, model, table):
    image, labels = arrays(slide)
    fine = slide_of(np.repeat(np.repeat(image, 2, 1), 2, 2), np.repeat(np.repeat(labels, 2, 0), 2, 1), mpp=0.25)
    predict(fine, model)
    got = fine["insilico"]
    assert got.uns["ghistpy"]["mpp"] == 0.25
    np.testing.assert_allclose(got.obs["area_um2"], table.obs["area_um2"], rtol=1e-6)
    np.testing.assert_allclose(got.obsm["spatial"], table.obsm["spatial"])
    assert np.corrcoef(got.X.ravel(), table.X.ravel())[0, 1] > 0.9


# ---- stores


def digest(folder, skip=()):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(part in skip for part in p.relative_to(folder).parts)
    }


@pytest.fixture
def stored(slide, tmp_path):
    """A slide on disk, read back."""
    import spatialdata as sd

    image, labels = arrays(slide)
    other = slide_of(image, labels, attrs={"ghistpy": {"sample": "on disk"}})
    other["measured"] = slide["measured"].copy()
    path = tmp_path / "slide.zarr"
    other.write(path)
    return sd.read_zarr(path), path


def test_a_store_gets_the_table_and_nothing_else_changes(stored, model, table):
    import spatialdata as sd

    sdata, path = stored
    before = digest(path, skip={"zarr.json"})
    predict(sdata, model)
    back = sd.read_zarr(path)
    np.testing.assert_allclose(back["insilico"].X, table.X, rtol=1e-6)
    assert back["insilico"].obs["cell_id"].tolist() == table.obs["cell_id"].tolist()
    assert list(back["insilico"].uns["ghistpy"]["cell_types"]) == model.cell_types
    after = digest(path, skip={"zarr.json"})
    assert {k: v for k, v in after.items() if not k.startswith("tables/insilico/")} == before
    # a second call replaces it
    predict(sdata, model, refine=0)
    back = sd.read_zarr(path)
    assert json.loads(back["insilico"].uns["ghistpy"]["params"])["refine"] == 0
    assert sorted(p.name for p in path.parent.iterdir()) == ["slide.zarr"]
    predict(sdata, model, key_added="other")
    assert set(sd.read_zarr(path).tables) == {"measured", "insilico", "other"}


def test_a_disk_that_is_full_leaves_the_store(stored, model, monkeypatch):
    from ghistpy.io import _store

    sdata, path = stored
    predict(sdata, model)
    before = digest(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_store, "_write_staging", full)
    with pytest.raises(
        OSError, match=r"table 'insilico' could not be written .*No space left.* the store is unchanged"
    ):
        predict(sdata, model, refine=0)
    assert digest(path) == before
    assert json.loads(sdata["insilico"].uns["ghistpy"]["params"])["refine"] == 0  # not lost


def test_a_read_only_store_is_refused_before_the_work(stored, model, monkeypatch):
    from ghistpy.engine import predict as engine
    from ghistpy.io import _store

    sdata, path = stored
    before = digest(path)
    # permission bits do not bind the superuser, whom containers run as
    monkeypatch.setattr(_store.os, "access", lambda *_: False)
    monkeypatch.setattr(engine, "extract_blocks", lambda *_, **__: pytest.fail("worked for nothing"))
    with pytest.raises(PermissionError, match="'insilico' cannot be written .* read-only; make it writable"):
        predict(sdata, model)
    assert digest(path) == before


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "double"}, r"precision='double': expected one of \('auto', 'float32'"),
        ({"refine": -1}, "refine=-1: expected 0 or more"),
        ({"refine": float("nan")}, "refine=nan"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of 1 or more"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"workers": -1}, "workers=-1: expected a whole number of 0 or more"),
        ({"image_key": "nope"}, "image_key='nope'.*he"),
        ({"labels_key": "nope"}, "labels_key='nope'.*nuclei"),
        ({"key_added": "he"}, "table name 'he' is taken"),
        ({"key_added": "a/b"}, "table name 'a/b' cannot be used"),
    ],
)
def test_refuses(slide, model, options, message):
    with pytest.raises(ValueError, match=message):
        predict(slide, model, **options)


def test_what_is_no_model(slide, tmp_path):
    with pytest.raises(TypeError, match="model: expected a GHIST or the folder of one, got int"):
        predict(slide, 3)
    with pytest.raises(FileNotFoundError, match="is not a ghistpy model"):
        predict(slide, tmp_path)


def test_slides_that_cannot_be_predicted(slide, model):
    from spatialdata.transformations import Identity, Scale, set_transformation

    image, labels = arrays(slide)
    for elements, message in (
        ((image[:, :-3], labels), r"labels_key='nuclei' has shape .* segment this image"),
        ((image, labels.astype(np.float32)), r"labels_key='nuclei' has dtype float32, expected integers"),
        ((image, labels - 2), "negative id -2; nuclei need ids of 1 and above"),
        ((np.where(image > 0, np.nan, image.astype(float)), labels), "image_key='he'.* NaN"),
        ((image[:2].repeat(3, axis=0)[:5], labels), "image_key='he'.* 5 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(slide_of(*elements), model)
    for transformation in (Identity(), Scale([0.5, 0.7], axes=("x", "y"))):
        other = slide_of(image, labels)
        system = "global" if isinstance(transformation, Identity) else "microns"
        set_transformation(other["he"], {system: transformation}, set_all=True)
        with pytest.raises(ValueError, match="mpp"):
            predict(other, model)
    normalised = slide_of(image, labels, attrs={"ghistpy": {"normalized": {"he": True}}})
    with pytest.raises(ValueError, match="image_key='he' is stain-normalised already; .* pass the original image"):
        predict(normalised, model)
    assert "insilico" not in normalised.tables


def test_an_unreadable_tile_is_named_and_the_store_unchanged(stored, model):
    """A chunk of the image on disk is damaged."""
    import spatialdata as sd

    sdata, path = stored
    chunks = [p for p in (path / "images" / "he").rglob("*") if p.is_file() and p.name != "zarr.json"]
    max(chunks, key=lambda p: p.stat().st_size).write_bytes(b"damaged")
    before = digest(path)
    sdata = sd.read_zarr(path)
    with pytest.raises(OSError, match=r"slide 'on disk': image: Window\(.*\) \(px\) cannot be read: .*decompress"):
        predict(sdata, model)
    assert digest(path) == before
