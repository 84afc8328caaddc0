"""Refinement of types against the recorded cases of the published program, and its expectation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import foldnorm

from ghistpy.engine.published_refine import refine_types, swap_types
from ghistpy.nn.published_losses import TypeRoles

TAKES_BRANCH = ("B", "Myeloid", "Malignant")


@pytest.mark.data
@pytest.mark.parametrize("case", range(4))
def test_recorded_case(data_dir, case):
    stored = json.loads((data_dir / "golden" / "model" / "ghist_misc_parity.json").read_text())["adjust_pr"][case]
    index = {name: i for i, name in enumerate(stored["cell_types"])}
    logits = np.array(stored["logits"])
    raw = logits.argmax(axis=1)
    observed = np.bincount(raw, minlength=len(index)) / len(raw)
    np.testing.assert_allclose(observed, stored["comp_out"], atol=1e-6)
    protected = np.isin(np.arange(len(logits)), stored["ignore_idx"])
    takes = tuple(index[name] for name in TAKES_BRANCH)
    final = swap_types(
        logits,
        np.array(stored["comp_est"])[None],
        np.zeros(len(logits), dtype=np.int64),
        tuple(index[name] for name in stored["target"]),
        stored["scale"],
        protected=protected,
        one_sided=takes if stored["is_invasive"] else None,
        noise=np.array(stored["noise"]),
    )
    assert final.tolist() == stored["final"]
    assert np.flatnonzero(final != raw).tolist() == stored["swapped"]
    assert np.flatnonzero((final != raw) & np.isin(final, takes)).tolist() == stored["swapped_target"]


def _plain(logits, composition, patch, roles, strength, high_confidence):
    """One patch and one nucleus after the other, with scipy's folded normal for the noise."""
    out = logits.argmax(axis=1)
    for p in np.unique(patch):
        members = [i for i in range(len(patch)) if patch[i] == p]
        raw = [int(np.argmax(logits[i])) for i in members]
        proba = [np.exp(logits[i]) / np.exp(logits[i]).sum() for i in members]
        competing = [
            i
            for i, t, pr in zip(members, raw, proba, strict=True)
            if t in roles.immune_candidates and not any(pr[c] > high_confidence for c in roles.confident)
        ]
        for i in competing:
            best, value = None, -np.inf
            for t in roles.immune_candidates:
                sd = np.sqrt(1 - 1 / len(competing))
                mean = composition[p, t]
                noise = foldnorm.mean(mean / sd, scale=sd) if sd > 0 else mean
                gain = strength * len(members) * (mean - raw.count(t) / len(members)) * noise
                if logits[i, t] + gain > value:
                    best, value = t, logits[i, t] + gain
            out[i] = best
    return out


def _patches(seed=0, n=60, n_patches=5, n_types=6):
    rng = np.random.default_rng(seed)
    patch = np.sort(rng.integers(0, n_patches, n))
    patch[patch == 3] = 2  # a patch without nuclei
    logits = 1.5 * rng.standard_normal((n, n_types))
    return logits, rng.dirichlet(np.ones(n_types), n_patches), patch


ROLES = TypeRoles(immune=(0, 1), invasive=(3,), immune_candidates=(0, 1, 2), invasive_candidates=(3, 4), confident=(2,))


@pytest.mark.parametrize("seed", range(5))
def test_expected_noise_equals_a_plain_loop(seed):
    logits, composition, patch = _patches(seed)
    ours = refine_types(logits, composition, patch, ROLES, strength=2.0, high_confidence=0.6)
    plain = _plain(logits, composition, patch, ROLES, 2.0, 0.6)
    assert ours.cell_type.tolist() == plain.tolist()
    assert (plain != logits.argmax(axis=1)).any()


def test_expectation_is_the_mean_of_the_published_noise():
    """Draw the noise as published: normal, shifted so that its mean over the nuclei is the estimate."""
    from ghistpy.engine.published_refine import _expected_noise

    rng = np.random.default_rng(0)
    for n, mean in ((1, 0.3), (2, 0.1), (7, 0.6)):
        z = rng.standard_normal((40_000, n))
        drawn = np.abs(z - z.mean(axis=1, keepdims=True) + mean).mean()
        expected = _expected_noise(np.array([[mean]]), np.array([n]))[0, 0]
        assert expected == pytest.approx(drawn, abs=0.01)


def test_branches_follow_the_swap():
    logits, composition, patch = _patches(1)
    raw = logits.argmax(axis=1)
    refined = refine_types(logits, composition, patch, ROLES, invasive=True)
    changed = refined.cell_type != raw
    into = lambda types: changed & np.isin(refined.cell_type, types)  # noqa: E731
    assert refined.take_immune.tolist() == into([0, 1]).tolist()
    assert refined.take_invasive.tolist() == into([3]).tolist()
    assert refined.take_immune.any()
    assert refined.take_invasive.any()
    # without the flag the invasive candidates stay
    plain = refine_types(logits, composition, patch, ROLES)
    assert not plain.take_invasive.any()
    assert (plain.cell_type[np.isin(raw, [3, 4])] == raw[np.isin(raw, [3, 4])]).all()


def test_confident_nuclei_stay():
    logits = np.array([[0.0, 0.0, 5.0], [0.0, 0.0, 0.1], [0.2, 0.0, 0.1]])
    composition = np.array([[1.0, 0.0, 0.0]])
    roles = TypeRoles(immune_candidates=(0, 2), confident=(2,))
    patch = np.zeros(3, dtype=np.int64)
    refined = refine_types(logits, composition, patch, roles, strength=50.0)
    assert refined.cell_type.tolist() == [2, 0, 0]
    free = refine_types(logits, composition, patch, roles, strength=50.0, high_confidence=1.0)
    assert free.cell_type.tolist() == [0, 0, 0]


@pytest.mark.parametrize("roles", [TypeRoles(), TypeRoles.from_names(["T", "Stroma"])])
def test_without_two_candidates_nothing_changes(roles):
    logits, composition, patch = _patches()
    refined = refine_types(logits, composition, patch, roles, invasive=True)
    assert refined.cell_type.tolist() == logits.argmax(axis=1).tolist()
    assert not refined.take_immune.any()


def test_strength_zero_and_no_nuclei():
    logits, composition, patch = _patches()
    assert (refine_types(logits, composition, patch, ROLES, strength=0).cell_type == logits.argmax(axis=1)).all()
    assert len(refine_types(logits[:0], composition, patch[:0], ROLES).cell_type) == 0


def test_order_of_patches_does_not_matter():
    logits, composition, patch = _patches(2)
    order = np.random.default_rng(0).permutation(len(patch))
    whole = refine_types(logits, composition, patch, ROLES)
    shuffled = refine_types(logits[order], composition, patch[order], ROLES)
    assert shuffled.cell_type.tolist() == whole.cell_type[order].tolist()
