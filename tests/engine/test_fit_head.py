"""The fitted head finds what is there, stays at the mean per type where nothing is, and does so every time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ghistpy.data.slide import CellTargets, Slide, SpotTargets
from ghistpy.data.targets import instances_of
from ghistpy.data.windows import LOCAL_FEATURES
from ghistpy.engine.extract import Extracted
from ghistpy.engine.fit_head import FitSlide, fit_head
from ghistpy.engine.predict import apply_head
from ghistpy.engine.states import LatentStates
from ghistpy.geometry import MemorySource, Nuclei
from ghistpy.nn.config import GHISTConfig

CONFIG = GHISTConfig(embedding=4, random_features=24, context_um=(20.0,))
GENES, TYPES = 6, 3
PROFILES = np.array([[3.0, 1.0, 1.0, 2.0, 2.0, 1.0], [1.0, 3.0, 1.0, 2.0, 2.0, 1.0], [1.0, 1.0, 3.0, 2.0, 2.0, 1.0]])


def nuclei_of(yx_um, mpp=0.5):
    n = len(yx_um)
    centre = yx_um / mpp
    box = np.concatenate([np.floor(centre) - 5, np.floor(centre) + 5], axis=1).astype(np.int64)
    return Nuclei(np.arange(1, n + 1) * 3, box, np.full(n, 80), centre)


def tissue(n=1200, seed=0, slope=0.5, clustered=True):
    """Nuclei whose logits hint at the type, and whose first measured feature moves gene 3 (by type) and 4."""
    rng = np.random.default_rng(seed)
    yx = rng.uniform(0, 600, (n, 2))
    if clustered:  # a type lives in stripes
        code = ((yx[:, 1] // 100).astype(int) + (rng.random(n) < 0.1)) % TYPES
    else:
        code = rng.integers(0, TYPES, n)
    logits = rng.normal(0, 1.0, (n, TYPES))
    logits[np.arange(n), code] += 1.5
    local = rng.normal(size=(n, len(LOCAL_FEATURES)))
    shown = PROFILES[code].copy()
    shown[:, 3] += slope * np.array([1.0, -1.0, 0.0])[code] * local[:, 0]
    shown[:, 4] += slope * local[:, 0]
    values = np.maximum(shown + rng.normal(0, 0.3, shown.shape), 0)
    extracted = Extracted(
        rng.normal(size=(n, CONFIG.embedding)).astype(np.float32), logits.astype(np.float32), local.astype(np.float32)
    )
    empty = MemorySource(np.zeros((1200, 1200), dtype=np.uint8))
    slide = Slide("s", MemorySource(np.zeros((3, 4, 4), np.uint8)), empty, 0.5, nuclei_of(yx))
    return slide, extracted, code, values, shown


def cells(slide, code, values, mask=None, rows=slice(None)):
    mask = np.ones(GENES, bool) if mask is None else mask
    targets = CellTargets(slide.nuclei.ids[rows], np.expm1(values[rows]).astype(np.float32), mask, code[rows])
    return dataclasses.replace(slide, targets=targets)


def fit_cells(*slides, held=0.2, seed=0):
    items = []
    for slide, extracted in slides:
        instances = instances_of(slide, TYPES)
        hold = np.random.default_rng(5).random(len(instances)) < held
        items.append(FitSlide(slide, extracted, instances, hold, None))
    return fit_head(items, CONFIG, n_types=TYPES, n_genes=GENES, spots=False, seed=seed)


@pytest.fixture(scope="module")
def fitted():
    slide, extracted, code, values, _shown = tissue()
    head, held_out, _ = fit_cells((cells(slide, code, values), extracted))
    return head, held_out


def test_it_finds_what_the_features_show(fitted):
    """On another slide: the slope that all types share, and the one that differs between them."""
    head, _ = fitted
    slide, extracted, code, _, shown = tissue(seed=1)
    got = apply_head(head, slide, extracted, CONFIG, spots=False)
    assert (got.cell_type == code).mean() > (extracted.logits.argmax(axis=1) == code).mean() + 0.05
    known = got.cell_type == code
    for gene in (3, 4):
        assert np.corrcoef(got.expression[known, gene], shown[known, gene])[0, 1] > 0.85, gene
    mean = got.proba @ head.profiles.numpy()
    error = ((got.expression - shown) ** 2).mean(axis=0)
    floor = ((mean - shown) ** 2).mean(axis=0)
    assert (error[3:5] < 0.5 * floor[3:5]).all()
    assert (error < 1.1 * floor + 0.01).all()


def test_profiles_are_the_means_of_the_types():
    slide, extracted, code, values, _ = tissue()
    head, _, _ = fit_cells((cells(slide, code, values), extracted))
    expected = np.array([values[code == k].mean(axis=0) for k in range(TYPES)])
    np.testing.assert_allclose(head.profiles, expected, rtol=1e-3)


def test_without_anything_to_find_it_stays_at_the_mean_per_type():
    slide, extracted, code, _, _ = tissue(slope=0.0)
    noise = PROFILES[code] + np.random.default_rng(3).normal(0, 0.5, (len(code), GENES))
    head, held_out, _ = fit_cells((cells(slide, code, np.maximum(noise, 0)), extracted))
    other, extracted, code, _, shown = tissue(seed=1, slope=0.0)
    got = apply_head(head, other, extracted, CONFIG, spots=False)
    mean = got.proba @ head.profiles.numpy()
    assert ((got.expression - shown) ** 2).mean() < 1.1 * ((mean - shown) ** 2).mean() + 0.003
    floor = ((held_out.type_mean - held_out.values) ** 2).mean()
    assert ((held_out.predicted - held_out.values) ** 2).mean() < 1.02 * floor


def test_held_out_instances_are_those_of_the_slide(fitted):
    _, held_out = fitted
    _, _, _, values, _ = tissue()
    hold = np.random.default_rng(5).random(len(values)) < 0.2
    np.testing.assert_allclose(held_out.values, values[hold], rtol=1e-4, atol=1e-5)
    assert held_out.measured.all()
    error = ((held_out.predicted - held_out.values) ** 2).mean(axis=0)
    floor = ((held_out.type_mean - held_out.values) ** 2).mean(axis=0)
    assert (error[3:5] < 0.9 * floor[3:5]).all()


def test_neighbours_of_another_type_change_the_types(fitted):
    """The same nuclei, among others: the composition acts."""
    head, _ = fitted
    assert float(head.prior_weight) > 0
    slide, extracted, _code, _, _ = tissue(seed=1)
    before = apply_head(head, slide, extracted, CONFIG, spots=False)
    middle = np.abs(slide.nuclei.centroid_px * 0.5 - 300).max(axis=1) < 25
    near = (np.abs(slide.nuclei.centroid_px * 0.5 - 300).max(axis=1) < 80) & ~middle
    logits = extracted.logits.copy()
    logits[near] = np.array([-4.0, -4.0, 4.0])
    after = apply_head(head, slide, dataclasses.replace(extracted, logits=logits), CONFIG, spots=False)
    assert middle.sum() >= 3
    assert (after.composition[middle, 2] > before.composition[middle, 2]).all()
    assert (after.proba[middle, 2] > before.proba[middle, 2]).all()
    raw = [apply_head(head, slide, extracted, CONFIG, spots=False, refine=0.0) for _ in range(2)]
    np.testing.assert_array_equal(raw[0].proba, raw[1].proba)
    np.testing.assert_allclose(raw[0].proba, before.proba_raw, rtol=1e-5)


def same_heads(a, b):
    return all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_deterministic_but_for_its_seed():
    slide, extracted, code, values, _ = tissue(n=300)
    item = cells(slide, code, values), extracted
    assert same_heads(fit_cells(item)[0], fit_cells(item)[0])
    assert not same_heads(fit_cells(item)[0], fit_cells(item, seed=1)[0])


def test_values_of_genes_outside_the_panel_do_not_matter():
    first, second = tissue(n=400), tissue(n=400, seed=2)
    mask = np.array([True, True, True, True, False, True])
    fits = []
    for junk in (0.0, 7.0):
        values = second[3].copy()
        values[:, 4] = junk
        fits.append(
            fit_cells(
                (cells(first[0], first[2], first[3]), first[1]), (cells(second[0], second[2], values, mask), second[1])
            )
        )
    (head, held_out, _), (other, _, _) = fits
    for name, a in head.state_dict().items():
        np.testing.assert_allclose(a, other.state_dict()[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert held_out.measured[:, 4].sum() < held_out.measured[:, 3].sum()
    got = apply_head(head, second[0], second[1], CONFIG, spots=False)
    assert np.corrcoef(got.expression[:, 4], second[4][:, 4])[0, 1] > 0.7


def test_a_type_with_one_cell_and_one_without():
    slide, extracted, code, values, _ = tissue(n=300)
    code = np.where(code == 2, 1, code)
    code[0] = 2
    head, _, _ = _fit_four(slide, extracted, code, values)
    np.testing.assert_allclose(head.profiles[2], values[0], rtol=0.01, atol=0.01)
    # nobody has the fourth: it gets the mean of all
    np.testing.assert_allclose(head.profiles[3], values.mean(axis=0), rtol=1e-3)
    for value in head.state_dict().values():
        assert np.isfinite(value.numpy()).all()


def _fit_four(slide, extracted, code, values):
    logits = np.concatenate([extracted.logits, np.full((len(code), 1), -5, np.float32)], axis=1)
    slide = cells(slide, code, values)
    instances = instances_of(slide, 4)
    item = FitSlide(
        slide, dataclasses.replace(extracted, logits=logits), instances, np.zeros(len(instances), bool), None
    )
    return fit_head([item], CONFIG, n_types=4, n_genes=GENES, spots=False)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_very_few_cells(n):
    slide, extracted, code, values, _ = tissue(n=40)
    part = cells(slide, code, values, rows=slice(0, n))
    head, held_out, _ = fit_cells((part, extracted))
    assert held_out is None
    got = apply_head(head, slide, extracted, CONFIG, spots=False)
    assert np.isfinite(got.expression).all()
    # hardly more than the mean can be known
    np.testing.assert_allclose(got.expression.mean(axis=0), values[:n].mean(axis=0), atol=2.0)


def test_cells_of_unknown_type_count_for_expression_only():
    slide, extracted, code, values, shown = tissue()
    unknown = code.copy()
    unknown[::2] = -1
    head, _, _ = fit_cells((cells(slide, unknown, values), extracted))
    expected = np.array([values[unknown == k].mean(axis=0) for k in range(TYPES)])
    np.testing.assert_allclose(head.profiles, expected, rtol=0.02)
    got = apply_head(head, slide, extracted, CONFIG, spots=False)
    assert np.corrcoef(got.expression[:, 4], shown[:, 4])[0, 1] > 0.8


def spot_slide(seed=0, pitch=60.0, total_of=(300.0, 900.0, 1500.0)):
    """Squares of tissue as spots: expected shares are means of the nuclei weighted by their totals."""
    slide, extracted, code, _, shown = tissue(n=2500, seed=seed)
    rng = np.random.default_rng(seed)
    total = np.array(total_of)[code]
    rate = np.expm1(shown)
    rate = rate / rate.sum(axis=1, keepdims=True) * total[:, None]
    yx = slide.nuclei.centroid_px * 0.5
    across = int(np.ceil(600 / pitch))
    spot = (yx[:, 0] // pitch).astype(int) * across + (yx[:, 1] // pitch).astype(int)
    expected = np.stack([np.bincount(spot, rate[:, g], across**2) for g in range(GENES)], axis=1)
    counts = rng.poisson(expected)
    share = np.stack([np.bincount(spot, code == k, across**2) for k in range(TYPES)], axis=1).astype(np.float32)
    targets = SpotTargets(
        counts.astype(np.float32),
        np.maximum(counts.sum(axis=1), 1).astype(np.float32),
        np.ones(GENES, bool),
        slide.nuclei.ids,
        spot,
        share / np.maximum(share.sum(axis=1, keepdims=True), 1),
        np.zeros((across**2, 2)),
    )
    return dataclasses.replace(slide, targets=targets), extracted, code, total, spot, expected


def fit_spots(slide, extracted):
    instances = instances_of(slide, TYPES)
    hold = np.random.default_rng(5).random(len(instances)) < 0.2
    item = FitSlide(slide, extracted, instances, hold, slide.targets.total[instances.kept])
    return fit_head([item], CONFIG, n_types=TYPES, n_genes=GENES, spots=True)[0], instances


def test_nuclei_of_spots_add_up():
    slide, extracted, _code, _total, spot, _ = spot_slide()
    head, instances = fit_spots(slide, extracted)
    got = apply_head(head, slide, extracted, CONFIG, spots=True)
    # counts per nucleus of a type, learned from the totals of spots alone
    learned = [got.total[got.cell_type == k].mean() for k in range(TYPES)]
    assert learned[0] < 0.75 * learned[1] < 0.9 * learned[2]
    summed = np.bincount(spot, got.total, len(slide.targets.total))
    assert np.corrcoef(summed, slide.targets.total)[0, 1] > 0.85
    np.testing.assert_allclose(summed.sum(), slide.targets.total.sum(), rtol=0.05)
    # the log of the summed nuclei is right on average, gene by gene
    counts = np.stack([np.bincount(spot, np.expm1(got.expression[:, g]), len(summed)) for g in range(GENES)], axis=1)
    x = np.log1p(1e4 * counts / summed[:, None])
    np.testing.assert_allclose(x.mean(axis=0), instances.values.mean(axis=0), atol=0.02)


def test_spots_tell_more_than_their_mean():
    """On another slide, spot by spot."""
    slide, extracted, *_ = spot_slide()
    head, _ = fit_spots(slide, extracted)
    other, extracted, code, _, spot, expected = spot_slide(seed=1)
    got = apply_head(head, other, extracted, CONFIG, spots=True)
    counts = np.stack([np.bincount(spot, np.expm1(got.expression[:, g]), len(expected)) for g in range(GENES)], axis=1)
    share, truth = (x / x.sum(axis=1, keepdims=True) for x in (counts, expected))
    correlation = [np.corrcoef(share[:, g], truth[:, g])[0, 1] for g in range(GENES)]
    assert min(correlation[:3]) > 0.8  # genes of the types
    assert correlation[4] > 0.4  # a feature of the nucleus, averaged over seventeen of them
    assert (got.cell_type == code).mean() > 0.8


@pytest.mark.parametrize("shown", [False, True])
def test_the_kernel_of_spots_follows_the_embedding_only_where_that_serves_a_held_slide(shown):
    """Two slides; the second is held. Genes follow a bent function of the embedding on both slides, or none of it."""
    config = dataclasses.replace(CONFIG, context_um=(), random_features=600, kernel_gamma=8.0)
    items = []
    for seed in (0, 1):
        slide, extracted, *_ = spot_slide(seed=seed)
        spots = instances_of(slide, TYPES)
        extracted = dataclasses.replace(extracted, local=np.zeros_like(extracted.local))
        if shown:  # the nuclei of a spot share their embedding, so that means over the spot keep the bend
            place = np.random.default_rng(seed).normal(size=(len(spots), CONFIG.embedding)).astype(np.float32)
            extracted = dataclasses.replace(extracted, embedding=place[spots.member])
            counts = np.exp(2.0 + 2.0 * np.cos(2.0 * place[:, [0]] + np.arange(GENES)))
            targets = dataclasses.replace(slide.targets, counts=np.rint(counts).astype(np.float32))
            slide = dataclasses.replace(slide, targets=targets)
        instances = instances_of(slide, TYPES)
        held = np.full(len(instances), seed == 1)
        items.append(FitSlide(slide, extracted, instances, held, slide.targets.total[instances.kept]))
    head, held_out, _ = fit_head(items, config, n_types=TYPES, n_genes=GENES, spots=True)
    assert (head.direction[: CONFIG.embedding] != 0).any() == shown
    assert (head.direction[CONFIG.embedding :] != 0).all()
    if shown:
        pairs = zip(held_out.values.T, held_out.predicted.T, strict=True)
        assert np.mean([np.corrcoef(truth, predicted)[0, 1] for truth, predicted in pairs]) > 0.5


def test_a_gene_that_nobody_measured_and_a_slide_without_spots():
    slide, extracted, *_ = spot_slide()
    mask = np.array([True] * (GENES - 1) + [False])
    targets = dataclasses.replace(slide.targets, gene_mask=mask)
    slide = dataclasses.replace(slide, targets=targets)
    instances = instances_of(slide, TYPES)
    item = FitSlide(slide, extracted, instances, np.zeros(len(instances), bool), targets.total[instances.kept])
    none = np.zeros(0, np.int64)
    empty = dataclasses.replace(
        slide,
        targets=dataclasses.replace(
            targets, counts=targets.counts[:0], total=targets.total[:0], nucleus_id=none, spot=none,
            proportions=targets.proportions[:0], xy_um=targets.xy_um[:0],
        ),
    )  # fmt: skip
    no_spots = FitSlide(empty, extracted, instances_of(empty, TYPES), np.zeros(0, bool), targets.total[:0])
    head, _, means = fit_head([item, no_spots], CONFIG, n_types=TYPES, n_genes=GENES, spots=True)
    alone, _, _ = fit_head([item], CONFIG, n_types=TYPES, n_genes=GENES, spots=True)
    assert np.isfinite(means).all()
    got = [apply_head(h, slide, extracted, CONFIG, spots=True).expression for h in (head, alone)]
    assert np.isfinite(got[0]).all()
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0][:, -1], 0)  # nothing is known of it


def test_latent_states_are_clusters():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, 300)
    values = rng.normal(0, 3, (4, 20))[code] + rng.normal(size=(300, 20))
    states = LatentStates(values, n_states=4)
    share = states.assign(values)
    assert share.dtype == np.float32
    np.testing.assert_array_equal(share.sum(axis=1), 1)
    table = share.T @ np.eye(4)[code]
    assert table.max(axis=1).sum() == 300  # every cluster is one code
    again = LatentStates(values, n_states=4)
    np.testing.assert_array_equal(again.assign(values), share)


@pytest.mark.parametrize("n", [1, 3, 7, 20])
def test_few_or_equal_spots_get_few_states(n):
    values = np.random.default_rng(0).normal(size=(n, 5))
    for x in (values, np.ones((n, 5))):
        states = LatentStates(x)
        assert 1 <= len(states) <= max(1, n // 5)
        assert states.assign(x).shape == (n, len(states))
