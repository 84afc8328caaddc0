"""Stain normalisation: planted stains, the formulae written out again, glass, blank slides, blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ghistpy.imaging.normalize import (
    DEFAULT_REFERENCE,
    METHODS,
    StainReference,
    StainTransform,
    fit_reference,
    macenko_vectors,
    to_lab,
)

H, E = np.array([0.62, 0.71, 0.33]), np.array([0.12, 0.88, 0.46])
GLASS = np.array([240.0, 236.0, 242.0])


def unit(vector):
    return np.asarray(vector) / np.linalg.norm(vector)


def degrees(a, b):
    return np.degrees(np.arccos(np.clip(unit(a) @ unit(b), -1, 1)))


def stained(n=20_000, *, h=H, e=E, glass=GLASS, strength=1.0, noise=0.01, seed=0):
    """(n, 3) uint8: nuclei (almost pure haematoxylin), stroma (almost pure eosin), and mixtures."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    amount_h = np.choose(kind, [rng.gamma(6, 0.3, n), rng.gamma(1, 0.005, n), rng.gamma(3, 0.3, n)])
    amount_e = np.choose(kind, [rng.gamma(1, 0.005, n), rng.gamma(6, 0.15, n), rng.gamma(4, 0.15, n)])
    od = strength * (amount_h[:, None] * unit(h) + amount_e[:, None] * unit(e)) + rng.normal(0, noise, (n, 3))
    return np.clip(np.rint((glass + 1) * np.exp(-od) - 1), 0, 255).astype(np.uint8)


def as_image(pixels):
    side = int(np.sqrt(len(pixels)))
    return np.ascontiguousarray(pixels[: side * side].T.reshape(3, side, side))


class TestFit:
    def test_planted_stains(self):
        found = fit_reference(stained(), GLASS)
        assert degrees(found.hematoxylin, H) < 2
        assert degrees(found.eosin, E) < 2
        assert found.background == tuple(GLASS)

    @pytest.mark.parametrize("percentile", [1.0, 5.0])
    def test_equals_the_published_steps(self, percentile):
        """SVD of the tuples, angles in the plane, their extremes: written out as in the paper."""
        od = -np.log((stained() + 1.0) / (GLASS + 1))
        od = od[od.mean(axis=1) > 0.15]
        _, _, vt = np.linalg.svd(od, full_matrices=False)
        plane = vt[:2] * np.sign(od.mean(0) @ vt[:2].T)[:, None]
        angle = np.arctan2(od @ plane[1], od @ plane[0])
        ends = [
            np.cos(a) * plane[0] + np.sin(a) * plane[1] for a in np.percentile(angle, [percentile, 100 - percentile])
        ]
        ends.sort(key=lambda v: -v[0])
        np.testing.assert_allclose(macenko_vectors(od, percentile=percentile), ends, atol=1e-8)

    def test_amount_follows_the_strength(self):
        weak, strong = (fit_reference(stained(strength=s), GLASS) for s in (0.6, 1.2))
        np.testing.assert_allclose(np.array(strong.max_concentration) / weak.max_concentration, 2.0, rtol=0.05)

    def test_lab_is_that_of_ruderman(self):
        # the decorrelated axes are orthonormal in the logarithms, and grey lies on the first up to the white point
        rgb = np.random.default_rng(0).integers(0, 256, (50, 3))
        lms = np.log(
            rgb @ np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]).T + 1
        )
        lab = to_lab(rgb)
        np.testing.assert_allclose(lab[:, 0], lms.sum(1) / np.sqrt(3))
        np.testing.assert_allclose(lab[:, 1], (lms[:, 0] + lms[:, 1] - 2 * lms[:, 2]) / np.sqrt(6))
        np.testing.assert_allclose(lab[:, 2], (lms[:, 0] - lms[:, 1]) / np.sqrt(2))

    @pytest.mark.parametrize("value", [0, 128, 240, 255])
    def test_blank_or_uniform(self, value):
        pixels = np.full((5000, 3), value, np.uint8)
        if value >= 240:
            assert fit_reference(pixels, np.full(3, 241.0)) is None
        else:
            with pytest.raises(ValueError, match="no haematoxylin and eosin"):
                fit_reference(pixels, np.full(3, 241.0))

    def test_other_stains_are_refused(self):
        other = stained(h=[0.3, 0.3, 0.9], e=[0.1, 0.4, 0.91])
        with pytest.raises(ValueError, match="slide 'x': the two stains found.*is this an H&E slide"):
            fit_reference(other, GLASS, "slide 'x'")

    def test_flecks_of_ink_do_not_matter(self):
        ink = np.clip(np.array([30, 110, 150]) + np.random.default_rng(1).normal(0, 8, (800, 3)), 0, 255)
        clean = fit_reference(stained(), GLASS)
        inked = fit_reference(np.concatenate([stained(), ink.astype(np.uint8)]), GLASS)
        assert degrees(clean.hematoxylin, inked.hematoxylin) < 0.5

    def test_json_round_trip(self):
        found = fit_reference(stained(), GLASS)
        assert StainReference.from_dict(json.loads(json.dumps(found.to_dict()))) == found

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"background": (240, 240)}, "background: expected 3"),
            ({"eosin": (0.1, np.nan, 0.2)}, "eosin"),
            ({"max_concentration": (0, 1)}, "max_concentration: expected 2 finite numbers above 0"),
            ({"lab_std": (1, 0, 1)}, "lab_std"),
        ],
    )
    def test_bad_reference(self, change, match):
        with pytest.raises(ValueError, match=match):
            StainReference(**{**DEFAULT_REFERENCE.to_dict(), **change})
        with pytest.raises(ValueError, match="expected the keys"):
            StainReference.from_dict({"background": [1, 2, 3]})


class TestTransform:
    def test_macenko_equals_the_published_steps(self):
        pixels = stained()
        source, target = fit_reference(pixels, GLASS), DEFAULT_REFERENCE
        od = -np.log((pixels + 1.0) / (GLASS + 1))
        stains = np.array([source.hematoxylin, source.eosin]).T
        amounts = np.linalg.lstsq(stains, od.T, rcond=None)[0]
        amounts *= (np.array(target.max_concentration) / source.max_concentration)[:, None]
        wanted = np.array([target.hematoxylin, target.eosin]).T @ amounts
        expected = (np.array(target.background)[:, None] + 1) * np.exp(-wanted) - 1
        got = StainTransform(source, target, tuple(GLASS))(as_image(pixels))
        expected = np.clip(expected, 0, 255)[:, : got[0].size].reshape(got.shape)
        assert np.abs(got - expected).max() < 0.52

    def test_reinhard_gives_mean_and_spread_of_the_target(self):
        pixels = stained(strength=0.9)
        # a target within reach, so that nothing is clipped
        target = fit_reference(stained(h=[0.7, 0.62, 0.3], strength=0.8, seed=1), np.full(3, 255.0))
        got = StainTransform(fit_reference(pixels, GLASS), target, tuple(GLASS), "reinhard")(as_image(pixels))
        od = -np.log((as_image(pixels) + 1.0) / (GLASS[:, None, None] + 1)).mean(axis=0)
        lab = to_lab(got[:, od > 0.15].T)
        np.testing.assert_allclose(lab.mean(0), target.lab_mean, atol=0.02)
        np.testing.assert_allclose(lab.std(0), target.lab_std, rtol=0.08)

    @pytest.mark.parametrize("method", METHODS)
    def test_one_tissue_in_two_stains_comes_out_alike(self, method):
        first = stained()
        second = stained(h=[0.72, 0.6, 0.34], e=[0.25, 0.85, 0.46], glass=np.array([250.0, 246, 250]), strength=0.7)
        out = []
        for pixels, glass in ((first, GLASS), (second, np.array([250.0, 246, 250]))):
            source = fit_reference(pixels, glass)
            out.append(StainTransform(source, DEFAULT_REFERENCE, tuple(glass), method)(as_image(pixels)).astype(float))
        before = np.abs(as_image(first).astype(float) - as_image(second)).mean()
        assert np.abs(out[0] - out[1]).mean() < 0.25 * before

    @pytest.mark.parametrize("method", METHODS)
    def test_own_look_changes_little_and_twice_is_once(self, method):
        image = as_image(stained(noise=0.0))
        source = fit_reference(image.reshape(3, -1).T, GLASS)
        once = StainTransform(source, source, tuple(GLASS), method)(image)
        assert np.abs(once.astype(int) - image).max() <= 2
        np.testing.assert_allclose(StainTransform(source, source, tuple(GLASS), method)(once), once, atol=2)

    @pytest.mark.parametrize("method", METHODS)
    def test_glass_becomes_glass(self, method):
        glass = np.broadcast_to(GLASS.astype(np.uint8)[:, None, None], (3, 4, 5))
        got = StainTransform(fit_reference(stained(), GLASS), DEFAULT_REFERENCE, tuple(GLASS), method)(glass)
        assert (got == 241).all()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("value", [0, 255])
    def test_extremes_stay_in_range(self, method, value):
        """uint8 cannot hold NaN, so the cast would warn, and warnings are errors."""
        source = fit_reference(stained(), GLASS)
        image = np.full((3, 5, 5), value, np.uint8)
        got = StainTransform(source, DEFAULT_REFERENCE, tuple(GLASS), method)(image)
        assert got.dtype == np.uint8
        assert got.max() < 60 if value == 0 else got.min() > 235
        assert StainTransform(None, DEFAULT_REFERENCE, (255.0,) * 3, method)(image).max() <= 241

    @pytest.mark.parametrize("method", METHODS)
    def test_a_pixel_does_not_depend_on_its_block(self, method):
        image = as_image(stained())
        transform = StainTransform(fit_reference(stained(), GLASS), DEFAULT_REFERENCE, tuple(GLASS), method)
        whole = transform(image)
        for y0, x0, h, w in ((0, 0, 1, 1), (3, 17, 40, 7), (64, 1, 33, 100)):
            np.testing.assert_array_equal(
                transform(image[:, y0 : y0 + h, x0 : x0 + w]), whole[:, y0 : y0 + h, x0 : x0 + w]
            )

    def test_bad_input(self):
        with pytest.raises(ValueError, match="method='vahadane': expected one of"):
            StainTransform(None, DEFAULT_REFERENCE, (240.0,) * 3, "vahadane")
        with pytest.raises(ValueError, match="expected .* uint8, got shape"):
            StainTransform(None, DEFAULT_REFERENCE, (240.0,) * 3)(np.zeros((3, 4, 4)))
