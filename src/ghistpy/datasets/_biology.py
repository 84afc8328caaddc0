"""What all simulated slides share: cell types, niches, gene profiles and gene programmes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Appearance features, each normal on the log scale and independent given the type.
FEATURES = ("area", "elongation", "chromatin", "texture")
# What genes may follow within a type; crowding is the number of nuclei around a nucleus.
PROGRAMMES = ("size", "chromatin", "texture", "crowding")
NICHES = ("nest", "stroma", "aggregate")

# name, then (median, sd of the log) of nucleus area in µm², of elongation = log(major / minor axis), of
# the haematoxylin density (1 = average nucleus) and of its relative contrast inside the nucleus.
_TYPES = (
    ("Malignant", (68.0, 0.22), (0.22, 0.40), (0.82, 0.15), (0.36, 0.28)),
    ("Fibroblast", (38.0, 0.22), (0.95, 0.25), (0.86, 0.14), (0.19, 0.28)),
    ("Endothelial", (28.0, 0.18), (1.15, 0.22), (1.14, 0.12), (0.14, 0.28)),
    ("T/NK", (24.0, 0.14), (0.12, 0.40), (1.46, 0.09), (0.11, 0.28)),
    ("B", (32.0, 0.14), (0.13, 0.40), (1.20, 0.10), (0.23, 0.28)),
    ("Macrophage", (43.0, 0.18), (0.50, 0.28), (0.66, 0.13), (0.27, 0.28)),
)
TYPES = tuple(row[0] for row in _TYPES)
FEATURE_MEAN = np.log(np.array([[pair[0] for pair in row[1:]] for row in _TYPES]))  # (types, features)
FEATURE_SD = np.array([[pair[1] for pair in row[1:]] for row in _TYPES])

PROPORTIONS = np.array([0.38, 0.20, 0.08, 0.16, 0.10, 0.08])
# P(niche | type), rows sum to 1
NICHE_OF_TYPE = np.array(
    [[0.93, 0.06, 0.01], [0.08, 0.90, 0.02], [0.12, 0.78, 0.10], [0.18, 0.27, 0.55], [0.04, 0.14, 0.82],
     [0.35, 0.50, 0.15]]
)  # fmt: skip
# µm² of tissue per nucleus in each niche
SPACE_PER_CELL = np.array([150.0, 330.0, 62.0])

# Crowding: nuclei within this many µm, and the centre and scale that make it a z value.
CROWDING_RADIUS = 20.0
_CROWDING_CENTRE, _CROWDING_SCALE = 7.5, 3.5

# sd of the log rate within a type when nothing is hidden, and of the log of a cell's depth when all is
WITHIN_TYPE_SD = 0.6
DEPTH_SD = 0.35
VISIBLE_SHARE = 0.6  # of the genes


@dataclass(frozen=True)
class Biology:
    """Profiles and programmes of a panel.

    genes (G,) names; profiles (C, G) expected counts of an average cell of each type; loadings (G, K)
    change of the log rate per unit of a programme, zero for genes that the pixels do not show;
    programme (G,) index into PROGRAMMES, -1 for none.
    """

    genes: np.ndarray
    profiles: np.ndarray
    loadings: np.ndarray
    programme: np.ndarray


def draw_biology(n_genes: int, seed: int) -> Biology:
    """Profiles and programmes: the same for every slide with this panel size and seed."""
    rng = np.random.default_rng([seed, n_genes])
    level = rng.lognormal(np.log(1.2), 0.7, n_genes)
    profiles = level * rng.lognormal(0.0, 0.35, (len(TYPES), n_genes))
    # three genes of four are markers of one type, the rest are shared
    marker = np.where(rng.random(n_genes) < 0.75, rng.permutation(n_genes) % len(TYPES), -1)
    for k in range(len(TYPES)):
        profiles[k, marker == k] *= 6.0
    # total RNA per cell differs between types: large tumour cells against resting lymphocytes
    profiles *= np.array([1.5, 0.9, 0.9, 0.7, 0.75, 1.1])[:, None]
    visible = rng.permutation(n_genes) < round(VISIBLE_SHARE * n_genes)
    programme = np.where(visible, rng.permutation(n_genes) % len(PROGRAMMES), -1)
    sign = rng.choice([-1.0, 1.0], n_genes)
    loadings = np.zeros((n_genes, len(PROGRAMMES)))
    loadings[visible, programme[visible]] = sign[visible]
    width = max(3, len(str(n_genes)))
    genes = np.array([f"GENE{i + 1:0{width}d}" for i in range(n_genes)])
    return Biology(genes, profiles, loadings, programme)


def crowding_state(n_neighbours: np.ndarray) -> np.ndarray:
    """The crowding programme: bounded, so that dense aggregates do not run away."""
    return np.clip((n_neighbours - _CROWDING_CENTRE) / _CROWDING_SCALE, -2.0, 2.5)


def type_given_niche(proportions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(type | niche) (niches, types) and P(niche) (niches,) for the given type proportions."""
    joint = (proportions[:, None] * NICHE_OF_TYPE).T
    share = joint.sum(axis=1)
    return joint / share[:, None], share


def bayes_posterior(log_features: np.ndarray, niche: np.ndarray, proportions: np.ndarray) -> np.ndarray:
    """P(type | appearance, niche) (n, types): exact under the simulation.

    log_features (n, 4): logs of FEATURES; niche (n,) index into NICHES.
    """
    prior, _ = type_given_niche(proportions)
    z = (log_features[:, None, :] - FEATURE_MEAN) / FEATURE_SD
    with np.errstate(divide="ignore"):  # a type of proportion 0 has log prior -inf
        log_p = np.log(prior[niche]) - 0.5 * (z**2).sum(axis=2) - np.log(FEATURE_SD).sum(axis=1)
    log_p -= log_p.max(axis=1, keepdims=True)
    p = np.exp(log_p)
    return p / p.sum(axis=1, keepdims=True)


def visible_state(log_features: np.ndarray, crowding: np.ndarray, cell_type: np.ndarray | int) -> np.ndarray:
    """The programmes (n, 4) of cells if they were of that type: z values of size, chromatin, texture; crowding."""
    z = (log_features - FEATURE_MEAN[cell_type]) / FEATURE_SD[cell_type]
    return np.stack([z[:, 0], z[:, 2], z[:, 3], crowding], axis=1)
