"""A prediction depends on the slide and the model, not on how the slide is cut, batched, ordered or placed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ghistpy.engine import extract as extract_module
from ghistpy.engine.extract import extract
from ghistpy.engine.features import composition
from ghistpy.engine.options import RunOptions
from ghistpy.engine.predict import predict
from ghistpy.geometry import MemorySource, TilePlan, find_nuclei

LARGEST = 2**63 - 1
FLOATS = ("expression", "proba_raw", "proba", "composition", "total", "morphology")


def run(model, slide, *, spots=False, tile_px=None, refine=2.0, scratch=None, **options):
    config = model.config if tile_px is None else dataclasses.replace(model.config, tile_px=tile_px)
    options = RunOptions(**options)
    return predict(
        model.network, model.head, slide, config, spots=spots, refine=refine, options=options, scratch=scratch
    )


def assert_close(got, expected, rows=slice(None), rtol=1e-5, atol=1e-6):
    for name in FLOATS:
        np.testing.assert_allclose(
            getattr(got, name)[rows], getattr(expected, name), rtol=rtol, atol=atol, err_msg=name
        )


def assert_same(got, expected):
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.fixture(scope="module")
def expected(model, slide):
    return run(model, slide)


@pytest.mark.parametrize("tile_px", [64, 128, 256])
def test_tile_size(model, slide, expected, tile_px):
    got = run(model, slide, tile_px=tile_px)
    np.testing.assert_array_equal(got.ids, expected.ids)
    assert_close(got, expected)


@pytest.mark.parametrize("batch_size", [2, 3, 8, 32])
def test_batch_size(model, slide, expected, batch_size):
    assert_close(run(model, slide, tile_px=128, batch_size=batch_size), expected)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers(model, slide, workers):
    alone = run(model, slide, tile_px=128, workers=0)
    assert_same(run(model, slide, tile_px=128, workers=workers), alone)


def test_tile_order(model, slide, monkeypatch):
    before = run(model, slide, tile_px=64)
    plan_slide = extract_module.plan_slide

    def shuffled(slide, config):
        plan = plan_slide(slide, config)
        order = np.random.default_rng(0).permutation(len(plan))
        owned = [plan.owned(t) for t in order]
        start = np.cumsum([0, *(len(rows) for rows in owned)])
        return TilePlan(plan.scale, plan.windows[order], np.concatenate(owned), start)

    monkeypatch.setattr(extract_module, "plan_slide", shuffled)
    assert_same(run(model, slide, tile_px=64), before)


@pytest.mark.parametrize("steps", [(1, 3), (13, 0), (40, 7)])
def test_the_slide_within_a_larger_one(model, slide, expected, steps, slide_maker):
    dy, dx = (s * model.config.align_px for s in steps)
    image = np.pad(slide.image._array, ((0, 0), (dy, 37), (dx, 150)), constant_values=255)
    labels = np.pad(slide.labels._array, ((dy, 37), (dx, 150)))
    assert_close(run(model, slide_maker(image, labels), tile_px=128), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_ids_are_kept_and_do_not_matter(model, slide, expected, slide_maker, dtype):
    """Not consecutive, above 2**31, next to each other above 2**53, in another order."""
    n = len(slide.nuclei)
    rng = np.random.default_rng(0)
    new = np.concatenate([LARGEST - np.arange(n // 2), rng.choice(2**40, n - n // 2, replace=False) + 1])
    new = rng.permutation(new)
    labels = np.append(np.int64(0), new).astype(dtype)[slide.labels._array]
    got = run(model, slide_maker(slide.image._array, labels), tile_px=128)
    assert got.ids.dtype == np.int64
    assert got.ids.tolist() == sorted(new.tolist())
    assert_close(got, expected, rows=np.searchsorted(got.ids, new))


def test_pixels_and_types_matter(model, slide, expected):
    """The comparisons above are not of constants."""
    assert (expected.expression.std(axis=0) > 0.05).all()
    assert len(np.unique(expected.cell_type)) > 1
    assert np.abs(expected.proba - expected.proba_raw).max() > 0.05
    np.testing.assert_allclose(expected.proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(expected.cell_type, expected.proba.argmax(axis=1))
    np.testing.assert_array_equal(expected.cell_type_raw, expected.proba_raw.argmax(axis=1))
    np.testing.assert_allclose(expected.total, np.expm1(expected.expression).sum(axis=1), rtol=1e-5)


def test_spots_have_counts_of_their_types(model, slide, expected):
    """expression of a head on spots is log1p(1e4 share): shares times the total of the types."""
    got = run(model, slide, spots=True)
    total = expected.proba.astype(np.float64) @ model.head.type_total.numpy()
    np.testing.assert_allclose(got.total, total, rtol=1e-5)
    share = np.expm1(expected.expression.astype(np.float64)) / 1e4
    np.testing.assert_allclose(np.expm1(got.expression), share * total[:, None], rtol=1e-4)


def test_no_nucleus(model, slide, slide_maker):
    empty = slide_maker(slide.image._array, np.zeros(slide.labels.shape, int))
    got = run(model, empty)
    assert (got.expression.shape, got.proba.shape, got.morphology.shape[0]) == ((0, 7), (0, 4), 0)
    assert len(got.ids) == len(got.cell_type) == len(got.total) == 0


def test_one_nucleus(model, slide, expected, slide_maker):
    alone = slide_maker(slide.image._array, np.where(slide.labels._array == 100, 100, 0))
    got = run(model, alone)
    row = np.flatnonzero(expected.ids == 100)
    assert got.ids.tolist() == [100]
    # what is measured on the nucleus itself stays; its neighbourhood is itself
    np.testing.assert_allclose(got.morphology, expected.morphology[row], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.composition, got.proba_raw, rtol=1e-5)
    assert np.isfinite(got.expression).all()


@pytest.mark.parametrize("pitch", [1000, 12, 1])
def test_a_slide_covered_by_nuclei(model, slide_maker, pitch):
    """No background anywhere: one nucleus over all of it, tiles of 6 µm, and one nucleus per px."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :44] // pitch
    labels = y * 1000 + x + 1
    image = rng.integers(0, 255, (3, 40, 44), dtype=np.uint8)
    covered = slide_maker(image, labels)
    got = run(model, covered, tile_px=64)
    assert len(got.ids) == len(np.unique(labels))
    for name in FLOATS:
        assert np.isfinite(getattr(got, name)).all(), name
    assert_close(run(model, covered, tile_px=512), got)


def test_a_nucleus_larger_than_a_tile(model, slide, slide_maker):
    labels = slide.labels._array.copy()
    labels[50:400, 60:450] = 5000
    big = slide_maker(slide.image._array, labels)
    assert_close(run(model, big, tile_px=64), run(model, big, tile_px=512))


@pytest.mark.parametrize(("mpp", "least"), [(0.25, 0.8), (0.8, 0.6)])
def test_another_resolution(slide, slide_maker, model_maker, mpp, least):
    """The same tissue, scanned finer or coarser: nearly the same prediction, wherever the tiles are."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import resize

    # noise of single px means another tissue at another resolution
    slide = slide_maker(gaussian_filter(slide.image._array, (0, 2, 2)), slide.labels._array)
    model = model_maker(slide)
    expected = run(model, slide)
    factor = 0.5 / mpp
    shape = [round(s * factor) for s in slide.labels.shape]
    image = np.stack([resize(c, shape, order=1, anti_aliasing=factor < 1) for c in slide.image._array / 255.0])
    rows = [
        np.minimum(((np.arange(s) + 0.5) / factor).astype(int), n - 1)
        for s, n in zip(shape, slide.labels.shape, strict=True)
    ]
    labels = slide.labels._array[np.ix_(*rows)]
    other = slide_maker((image * 255).round().astype(np.uint8), labels, mpp=mpp)
    got = run(model, other)
    assert_close(run(model, other, tile_px=64), got)
    rows = find_nuclei(slide.labels).index_of(got.ids)
    inner = expected.morphology[rows, 0] > np.log(20)  # µm²: slivers at the border are lost or distorted
    for name in ("expression", "proba", "composition"):
        a, b = getattr(got, name)[inner].ravel(), getattr(expected, name)[rows][inner].ravel()
        assert np.corrcoef(a, b)[0, 1] > least, name
    area = expected.morphology[rows, 0]
    assert np.abs(got.morphology[inner, 0] - area[inner]).max() < 0.35  # log area in µm²


def test_a_scanner_that_rounds(model, slide, expected, slide_maker):
    """Within 1 % the pixels are taken as they are."""
    got = run(model, slide_maker(slide.image._array, slide.labels._array, mpp=0.5017))
    np.testing.assert_allclose(got.morphology, expected.morphology, rtol=1e-6)


class Broken(MemorySource):
    """Its px from row 300 on cannot be read."""

    def __init__(self, array, error):
        super().__init__(array)
        self.error = error

    def read(self, window):
        if window.y1 > 300:
            raise self.error
        return super().read(window)


@pytest.mark.parametrize("error", [OSError("bad sector"), RuntimeError("zstd: bad sector")])
@pytest.mark.parametrize("workers", [0, 3])
def test_an_unreadable_tile_is_named(model, slide, error, workers):
    broken = dataclasses.replace(slide, image=Broken(slide.image._array, error))
    with pytest.raises(OSError, match=r"slide 's': .*Window\(y0=\d+, x0=-?\d+, y1=\d+.* cannot be read: .*bad sector"):
        run(model, broken, tile_px=64, workers=workers)


def test_half_precision_is_close(model, slide, expected):
    got = run(model, slide, autocast=torch.bfloat16)
    assert got.expression.dtype == np.float32
    for name in ("expression", "proba", "composition"):
        assert np.corrcoef(getattr(got, name).ravel(), getattr(expected, name).ravel())[0, 1] > 0.99, name


def test_extract_reads_every_nucleus_in_its_own_row(model, slide):
    """The features of a nucleus are those of a window around it alone."""
    whole = extract(model.network, slide, model.config)
    for row in (0, 57, 200, len(slide.nuclei) - 1):
        alone = dataclasses.replace(slide, nuclei=slide.nuclei.take(np.array([row])))
        got = extract(model.network, alone, model.config)
        for name in ("embedding", "logits", "local"):
            np.testing.assert_allclose(
                getattr(got, name)[0], getattr(whole, name)[row], rtol=1e-5, atol=1e-6, err_msg=name
            )


def test_measured_area_is_that_of_the_labels(model, slide, expected):
    np.testing.assert_allclose(expected.morphology[:, 0], np.log(slide.nuclei.area_px * 0.25), rtol=1e-5)


@pytest.mark.parametrize("context_um", [(20.0,), (10.0, 30.0), ()])
def test_reach_bounds_what_a_nucleus_sees(slide_maker, model_maker, nuclei_drawer, context_um):
    """Pixels are replaced right of a line: no nucleus further left than the reach may notice."""
    image, labels = nuclei_drawer(height=40, width=1600, pitch=20)
    slide = slide_maker(image, labels)
    model = model_maker(slide, context_um=context_um)
    before = run(model, slide)
    at = 1200
    changed = image.copy()
    changed[:, :, at:] = 255 - changed[:, :, at:]
    after = run(model, dataclasses.replace(slide, image=MemorySource(changed)))
    distance_um = (at - slide.nuclei.centroid_px[:, 1]) * 0.5
    noticed = np.abs(after.proba - before.proba).max(axis=1) + np.abs(after.expression - before.expression).max(axis=1)
    beyond = distance_um > model.config.reach_um
    assert beyond.sum() > 5
    np.testing.assert_array_equal(noticed[beyond], 0)
    # and the bound is not idle: influence does travel through two neighbourhoods
    seen = distance_um[noticed > 0].max()
    assert seen > model.config.halo_px * 0.25 + 1.5 * sum(context_um[:1] + context_um[-1:])


def test_composition_without_neighbourhoods_is_the_nucleus_itself(slide, model):
    proba = np.random.default_rng(0).dirichlet(np.ones(4), len(slide.nuclei)).astype(np.float32)
    config = dataclasses.replace(model.config, context_um=())
    np.testing.assert_array_equal(composition(slide, proba, config), proba)


def test_composition_is_the_mean_of_the_narrow_neighbourhood(slide, model):
    proba = np.random.default_rng(0).dirichlet(np.ones(4), len(slide.nuclei)).astype(np.float32)
    yx = slide.nuclei.centroid_px * 0.5
    weight = np.exp(-0.5 * ((yx[:, None] - yx[None]) ** 2).sum(axis=2) / 20.0**2)
    exact = weight @ proba / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(composition(slide, proba, model.config), exact, atol=0.02)


def test_held_out_regions_are_neither_predicted_nor_seen(model, slide):
    box = np.array([[0.0, 100.0, np.inf, 180.0]])
    held = dataclasses.replace(slide, excluded_um=box)
    noisy = dataclasses.replace(held, image=MemorySource(slide.image._array.copy()))
    noisy.image._array[:, :, 200:360] = 7
    a, b = run(model, held), run(model, noisy)
    assert_same(a, b)
    touches = (slide.nuclei.bbox[:, 1] < 360) & (slide.nuclei.bbox[:, 3] > 200)
    np.testing.assert_array_equal(a.ids, slide.nuclei.ids[~touches])
