"""Refinement of cell types by the composition of a patch, as published, but deterministic.

Fu et al., Nature Methods 22:1900 (2025), doi 10.1038/s41592-025-02795-z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from ghistpy.nn.published_losses import TypeRoles

# Strength of the Malignant / Epithelial refinement in the published program.
INVASIVE_STRENGTH = 10_000.0


@dataclass(frozen=True)
class Refined:
    """Types of N nuclei after refinement.

    ``cell_type`` (N,) int64; ``take_immune`` and ``take_invasive`` (N,) bool: nuclei whose expression
    comes from that branch, because they were swapped to one of its types.
    """

    cell_type: np.ndarray
    take_immune: np.ndarray
    take_invasive: np.ndarray


def refine_types(
    logits: np.ndarray,
    composition: np.ndarray,
    patch: np.ndarray,
    roles: TypeRoles,
    *,
    strength: float = 2.0,
    high_confidence: float = 0.6,
    invasive: bool = False,
) -> Refined:
    """Refine the types of the nuclei of some patches.

    Parameters
    ----------
    logits
        (N, C) of all nuclei of those patches.
    composition
        (P, C) estimated proportions.
    patch
        (N,) patch of each nucleus, in [0, P).
    roles
        Which types compete, which are protected, which take another branch.
    strength
        The paper's alpha; 0 leaves the types as they are.
    high_confidence
        A nucleus whose protected type has a probability above this is left alone.
    invasive
        Also let the invasive candidates compete.
    """
    raw = logits.argmax(axis=1) if len(logits) else np.zeros(0, dtype=np.int64)
    nobody = np.zeros(len(raw), dtype=bool)
    if len(raw) == 0 or strength == 0:
        return Refined(raw, nobody, nobody)
    protected = nobody
    if roles.confident:
        proba = np.exp(logits - logits.max(axis=1, keepdims=True))
        proba /= proba.sum(axis=1, keepdims=True)
        protected = (proba[:, list(roles.confident)] > high_confidence).any(axis=1)
    cell_type = swap_types(logits, composition, patch, roles.immune_candidates, strength, protected=protected)
    take_immune = (cell_type != raw) & np.isin(cell_type, roles.immune + roles.invasive)
    take_invasive = nobody
    if invasive:
        other = swap_types(logits, composition, patch, roles.invasive_candidates, INVASIVE_STRENGTH)
        swapped = other != raw
        take_invasive = swapped & np.isin(other, roles.immune + roles.invasive)
        cell_type = np.where(swapped, other, cell_type)
    return Refined(cell_type, take_immune, take_invasive)


def swap_types(
    logits: np.ndarray,
    composition: np.ndarray,
    patch: np.ndarray,
    candidates: tuple[int, ...],
    strength: float,
    *,
    protected: np.ndarray | None = None,
    one_sided: tuple[int, ...] | None = None,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Let the nuclei of the candidate types choose again among those types.

    The logit of candidate type t of a nucleus in patch p changes by
    ``strength * n_p * (estimated - observed proportion of t in p) * |noise|``.

    Parameters
    ----------
    logits, composition, patch
        As in :func:`refine_types`.
    candidates
        Types that compete; fewer than two change nothing.
    protected
        (N,) bool: left as they are.
    one_sided
        When given, the observed proportions count as 0, and only these types gain.
    noise
        (M, T) for the M nuclei that compete, in order, and the T candidates. The published program
        draws it: normal values, shifted so that their mean over the M nuclei of the patch is the
        estimated proportion. By default the expectation of its absolute value stands in.

    Returns
    -------
    (N,) int64 type of every nucleus.
    """
    raw = logits.argmax(axis=1)
    types = np.asarray(candidates, dtype=np.int64)
    if len(types) < 2:
        return raw
    competes = np.isin(raw, types)
    if protected is not None:
        competes &= ~protected
    n_patches, n_types = composition.shape
    count = np.bincount(patch, minlength=n_patches)
    observed = np.bincount(patch * n_types + raw, minlength=n_patches * n_types).reshape(n_patches, n_types)
    gain = strength * (composition * count[:, None] - (0 if one_sided is not None else observed))
    if one_sided is not None:
        gain[:, ~np.isin(np.arange(n_types), one_sided)] = 0
    rows = np.flatnonzero(competes)
    where = patch[rows]
    if noise is None:
        size = _expected_noise(composition[:, types], np.bincount(where, minlength=n_patches))[where]
    else:
        size = np.abs(noise)
    adjusted = logits[np.ix_(rows, types)] + gain[np.ix_(where, types)] * size
    out = raw.copy()
    out[rows] = types[adjusted.argmax(axis=1)]
    return out


def _expected_noise(mean: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(P, T) expectation of ``|noise|``: a folded normal with that mean and variance ``1 - 1 / n``.

    The published noise is centred on its mean over the n competing nuclei, which takes 1 / n of the
    variance: a nucleus that competes alone has no randomness at all.
    """
    sd = np.sqrt(1.0 - 1.0 / np.maximum(n, 1))[:, None]
    # sd 0 gives the limit |mean|; the floor only avoids a division by zero
    z = mean / np.maximum(sd, 1e-12)
    return sd * np.sqrt(2 / np.pi) * np.exp(-0.5 * np.minimum(z * z, 1e4)) + mean * erf(z / np.sqrt(2))
