"""The simulation: what it claims to know exactly is checked by other means."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.spatial import cKDTree

from ghistpy import datasets, io
from ghistpy.datasets import _biology as biology
from ghistpy.datasets._counts import LogMoments, Noise, draw_counts, log_rate
from ghistpy.geometry import Window

SMALL = {"n_cells": 400, "n_genes": 40}


@pytest.fixture(scope="module")
def slide():
    return datasets.simulate_slide(n_cells=2500, n_genes=60, seed=3)


@pytest.fixture(scope="module")
def table(slide):
    return slide.tables["measured"]


def arrays(sdata) -> tuple[np.ndarray, np.ndarray]:
    image, labels, _ = io.open_slide(sdata)
    window = Window(0, 0, *labels.shape)
    return image.read(window), labels.read(window)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


class TestNuclei:
    def test_every_nucleus_is_one_piece_of_its_area(self, slide, table):
        _, labels = arrays(slide)
        assert labels.dtype == np.int32
        ids, area = np.unique(labels[labels > 0], return_counts=True)
        np.testing.assert_array_equal(ids, table.obs["cell_id"])
        np.testing.assert_allclose(area * 0.25, table.obs["area_um2"])
        # the drawn area arrives in the pixels: nothing is clipped by a neighbour
        np.testing.assert_allclose(table.obs["area_um2"], np.exp(table.obsm["appearance"][:, 0]), rtol=0.12)
        # one piece: as many components as nuclei even when neighbours that touch are kept apart
        edges = np.zeros(labels.shape, bool)
        for axis in range(2):
            step = np.diff(labels, axis=axis) != 0
            pad = [(0, 0), (0, 0)]
            pad[axis] = (1, 0)
            edges |= np.pad(step, pad)
        boxes = ndimage.find_objects(labels)
        pieces = [ndimage.label(labels[box] == k + 1, np.ones((3, 3)))[1] for k, box in enumerate(boxes)]
        assert max(pieces) == 1
        assert edges.any()

    def test_centroids_are_in_um(self, slide, table):
        _, labels = arrays(slide)
        centre = np.array(ndimage.center_of_mass(labels > 0, labels, table.obs["cell_id"].to_numpy()))
        np.testing.assert_allclose(table.obsm["spatial"], (centre[:, ::-1] + 0.5) * 0.5, atol=1e-6)

    def test_neighbourhood_depends_on_type(self, table):
        types = table.obs["cell_type"].to_numpy()
        near = cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=9)[1][:, 1:]
        same = {
            t: (types[near[types == t]] == t).mean() / (types == t).mean() for t in ("Malignant", "Fibroblast", "B")
        }
        assert min(same.values()) > 1.3

    def test_proportions(self):
        sdata = datasets.simulate_slide(**SMALL, proportions={"B": 3, "T/NK": 1})
        counted = sdata.tables["measured"].obs["cell_type"].value_counts()
        assert counted["B"] + counted["T/NK"] == 400
        assert stats.binomtest(int(counted["B"]), 400, 0.75).pvalue > 1e-4
        assert counted.index.size == 6  # absent types stay categories


class TestPixels:
    def test_looks_like_a_stained_section(self, slide):
        image, labels = arrays(slide)
        inside = image[:, labels > 0].mean(axis=1)
        outside = image[:, labels == 0].mean(axis=1)
        assert (inside < outside - 20).all()
        assert inside[2] > inside[0] > inside[1]  # nuclei are blue-violet
        assert outside[0] > outside[1] + 15  # collagen and cytoplasm are pink
        white = (image.min(axis=0) > 225).mean()
        assert 0.01 < white < 0.3

    def test_nuclei_show_their_chromatin(self, slide, table):
        image, labels = arrays(slide)
        density = -np.log((image[0] + 1.0) / 247.0)
        mean = ndimage.mean(density, labels, table.obs["cell_id"].to_numpy())
        spread = ndimage.standard_deviation(density, labels, table.obs["cell_id"].to_numpy()) / mean
        look = table.obsm["appearance"]
        assert stats.spearmanr(mean, look[:, 2]).statistic > 0.95
        for name in ("Malignant", "Fibroblast"):
            rows = (table.obs["cell_type"] == name).to_numpy()
            assert stats.spearmanr(spread[rows], look[rows, 3]).statistic > 0.7

    @pytest.mark.parametrize(
        "stain",
        ["pale", "purple", np.array([[0.5, 0.9, 0.3], [0.1, 0.6, 0.2]]), {"background": [230, 230, 235]}],
    )
    def test_stain_changes_colour_and_nothing_else(self, stain):
        plain, other = datasets.simulate_slide(**SMALL), datasets.simulate_slide(**SMALL, stain=stain)
        np.testing.assert_array_equal(arrays(plain)[1], arrays(other)[1])
        np.testing.assert_array_equal(plain.tables["measured"].X.toarray(), other.tables["measured"].X.toarray())
        assert np.abs(arrays(plain)[0].mean(axis=(1, 2)) - arrays(other)[0].mean(axis=(1, 2))).max() > 3


class TestExpectations:
    @pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
    def test_moments_equal_monte_carlo(self, fraction):
        rng = np.random.default_rng(0)
        noise = Noise.of(fraction)
        log = np.log(np.array([0.02, 0.3, 1.0, 4.0, 20.0, 120.0]))
        drawn = np.log1p(draw_counts(rng, np.tile(log, (60_000, 1)), noise)[0])
        moments = LogMoments(noise)
        error = drawn.std(axis=0) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(axis=0) - moments.mean(log)) < 4.5 * error + 1e-4).all()
        np.testing.assert_allclose(moments.variance(log), drawn.var(axis=0), rtol=0.04)

    def test_poisson_limit_equals_a_sum(self):
        moments = LogMoments(Noise.of(0.0))
        for rate in (0.05, 0.9, 7.0, 60.0):
            count = np.arange(400)
            assert moments.mean(np.log(rate)) == pytest.approx(
                stats.poisson.pmf(count, rate) @ np.log1p(count), abs=1e-4
            )

    def test_truth_scatters_around_the_ceiling_by_the_stated_noise(self, table):
        rest = np.log1p(table.X.toarray()) - table.layers["ceiling"]
        assert abs(rest.mean()) < 0.01
        assert (rest**2).mean() == pytest.approx(table.var["noise_var"].mean(), rel=0.03)
        # nothing that the pixels show is left in the rest, beyond chance
        shown = np.c_[table.obsm["visible_state"], table.obs["cell_type"].cat.codes]
        r = np.array([correlation(np.repeat(shown[:, [k]], rest.shape[1], 1), rest) for k in range(5)])
        assert np.abs(r).mean() < 1.3 * np.sqrt(2 / np.pi / len(rest))

    def test_ceiling_beats_attainable_beats_type_mean(self, table):
        truth, types = np.log1p(table.X.toarray()), table.obs["cell_type"].cat.codes.to_numpy()
        profile = np.stack([truth[types == k].mean(axis=0) for k in range(6)])
        guessed = table.obsm["bayes_proba"] @ profile
        error = [((truth - p) ** 2).mean() for p in (table.layers["ceiling"], table.layers["attainable"], guessed)]
        assert error[0] < error[1] < error[2]

    def test_only_visible_genes_follow_the_visible_state(self, table):
        seen = table.var["visible"].to_numpy()
        assert seen.mean() == pytest.approx(0.6)
        assert table.uns["ghistpy"]["visible_genes"] == table.var_names[seen].tolist()
        within = np.zeros(len(seen))
        for name in ("Malignant", "Fibroblast"):
            rows = (table.obs["cell_type"] == name).to_numpy()
            within += table.layers["ceiling"][rows].std(axis=0)
        assert (within[~seen] < 1e-4).all()
        assert (within[seen] > 0.05).all()

    def test_unpredictable_fraction_moves_the_ceiling(self):
        scores = []
        for fraction in (0.0, 0.5, 1.0):
            t = datasets.simulate_slide(n_cells=1000, n_genes=40, unpredictable_fraction=fraction).tables["measured"]
            rows = (t.obs["cell_type"] == "Malignant").to_numpy()
            seen = t.var["visible"].to_numpy()
            truth, ceiling = np.log1p(t.X.toarray())[rows][:, seen], t.layers["ceiling"][rows][:, seen]
            scores.append(correlation(ceiling, truth).mean() if fraction < 1 else float(ceiling.std(axis=0).max()))
            if fraction == 0:
                np.testing.assert_allclose(t.obs["depth"], 1)
        assert scores[0] > scores[1] + 0.1
        assert scores[2] < 1e-5

    def test_bayes_posterior_is_calibrated_and_unbeaten(self):
        from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
        from sklearn.metrics import f1_score, log_loss

        rng = np.random.default_rng(0)
        n, shares = 40_000, biology.PROPORTIONS
        types = rng.choice(6, n, p=shares)
        niche = (rng.random(n)[:, None] > np.cumsum(biology.NICHE_OF_TYPE, axis=1)[types]).sum(axis=1)
        look = biology.FEATURE_MEAN[types] + biology.FEATURE_SD[types] * rng.standard_normal((n, 4))
        proba = biology.bayes_posterior(look, niche, shares)
        # calibration: of the cells that get a type with probability p, a share p are of it
        for low, high in ((0.1, 0.3), (0.3, 0.7), (0.7, 0.95)):
            chosen = (proba > low) & (proba < high)
            hits = (types[:, None] == np.arange(6))[chosen]
            assert hits.mean() == pytest.approx(proba[chosen].mean(), abs=4 * np.sqrt(0.25 / chosen.sum()))
        fitted = QuadraticDiscriminantAnalysis().fit(np.c_[look, niche == 0, niche == 2][: n // 2], types[: n // 2])
        other = fitted.predict_proba(np.c_[look, niche == 0, niche == 2][n // 2 :])
        assert log_loss(types[n // 2 :], proba[n // 2 :]) < log_loss(types[n // 2 :], other)
        bayes_f1 = f1_score(types, proba.argmax(axis=1), average="macro")
        assert 0.88 < bayes_f1 < 0.98  # types really overlap
        assert bayes_f1 >= f1_score(types[n // 2 :], other.argmax(axis=1), average="macro") - 0.01

    def test_stored_macro_f1(self, table):
        from sklearn.metrics import f1_score

        expected = f1_score(table.obs["cell_type"].cat.codes, table.obsm["bayes_proba"].argmax(axis=1), average="macro")
        assert table.uns["ghistpy"]["bayes_macro_f1"] == pytest.approx(expected)

    def test_crowding_is_that_of_the_slide(self, table):
        xy = table.obsm["spatial"]
        n = np.array([len(k) - 1 for k in cKDTree(xy).query_ball_point(xy, biology.CROWDING_RADIUS)])
        # centres of the drawn ellipses and of their pixels differ by a fraction of a µm
        assert np.corrcoef(biology.crowding_state(n), table.obsm["visible_state"][:, 3])[0, 1] > 0.99


class TestBiology:
    def test_slides_of_one_biology_share_profiles(self):
        one = datasets.simulate_slide(**SMALL, seed=1).tables["measured"]
        two = datasets.simulate_slide(**SMALL, seed=2, stain="pale", proportions=[1, 1, 1, 1, 1, 1]).tables["measured"]
        np.testing.assert_array_equal(one.varm["type_profiles"], two.varm["type_profiles"])
        assert one.var["programme"].tolist() == two.var["programme"].tolist()
        assert (one.X != two.X).nnz > 0
        other = datasets.simulate_slide(**SMALL, seed=1, biology_seed=1).tables["measured"]
        assert not np.allclose(one.varm["type_profiles"], other.varm["type_profiles"])

    def test_seed_is_everything(self):
        one, two = (datasets.simulate_slide(**SMALL, seed=5) for _ in range(2))
        for a, b in zip(arrays(one), arrays(two), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.tables["measured"].X.toarray(), two.tables["measured"].X.toarray())

    def test_mean_of_a_programme_is_the_profile(self):
        panel = biology.draw_biology(30, 0)
        state = np.random.default_rng(0).standard_normal((200_000, 4))
        rate = np.exp(log_rate(panel, state, 2, 0.4)).mean(axis=0)
        np.testing.assert_allclose(rate, panel.profiles[2], rtol=0.01)

    def test_parameters_are_recorded(self, table):
        params = json.loads(table.uns["ghistpy"]["params"])
        assert (params["n_cells"], params["seed"], params["mpp"]) == (2500, 3, 0.5)
        assert sum(params["proportions"].values()) == pytest.approx(1)


class TestArguments:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"n_cells": 0}, "n_cells=0: expected 1 to"),
            ({"n_genes": 0}, "n_genes=0"),
            ({"mpp": 3}, "mpp=3: expected 0.2 to 1"),
            ({"unpredictable_fraction": 1.5}, "unpredictable_fraction=1.5"),
            ({"proportions": {"Tumour": 1}}, "unknown types \\['Tumour'\\]; the types are \\['Malignant'"),
            ({"proportions": [1, 2]}, "expected 6 shares"),
            ({"proportions": [0] * 6}, "expected 6 shares"),
            ({"stain": "green"}, "stain='green'"),
            ({"stain": np.ones(3)}, r"expected a \(2, 3\) array"),
            ({"stain": {"dapi": [1, 1, 1]}}, "unknown keys \\['dapi'\\]"),
            ({"stain": {"eosin": [1, -1, 1]}}, "finite values of 0 and above"),
            ({"size_um": 50}, "too small for n_cells=400: they need at least"),
        ],
    )
    def test_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            datasets.simulate_slide(**{**SMALL, **kwargs})

    @settings(max_examples=4, deadline=None)
    @given(
        n_cells=st.integers(1, 60),
        n_genes=st.integers(1, 12),
        mpp=st.sampled_from([0.25, 0.5, 0.687, 1.0]),
        fraction=st.floats(0, 1),
        seed=st.integers(0, 2**31),
        kind=st.integers(0, 5),
    )
    def test_any_size_and_scale(self, n_cells, n_genes, mpp, fraction, seed, kind):
        sdata = datasets.simulate_slide(
            n_cells=n_cells, n_genes=n_genes, mpp=mpp, unpredictable_fraction=fraction, seed=seed,
            proportions=np.eye(6)[kind],
        )  # fmt: skip
        table = sdata.tables["measured"]
        assert table.shape == (n_cells, n_genes)
        assert len(np.unique(arrays(sdata)[1])) == n_cells + 1
        assert io.get_mpp(sdata) == mpp
        assert np.isfinite(table.layers["ceiling"]).all()
        np.testing.assert_allclose(table.layers["attainable"], table.layers["ceiling"], atol=1e-5)  # one type only

    def test_store_round_trip(self, tmp_path):
        import spatialdata as sd

        sdata = datasets.simulate_slide(**SMALL)
        sdata.write(tmp_path / "s.zarr")
        back = sd.read_zarr(tmp_path / "s.zarr")
        for a, b in zip(arrays(sdata), arrays(back), strict=True):
            np.testing.assert_array_equal(a, b)
        one, two = sdata.tables["measured"], back.tables["measured"]
        np.testing.assert_array_equal(one.X.toarray(), two.X.toarray())
        np.testing.assert_array_equal(one.layers["ceiling"], two.layers["ceiling"])
        assert one.obs["cell_type"].tolist() == two.obs["cell_type"].tolist()


def test_speed():
    """2,000 cells in 3 s and 20,000 in 30 s of one core; here the smaller, with room for a busy machine."""
    import time

    start = time.process_time()
    datasets.simulate_slide()
    assert time.process_time() - start < 6
