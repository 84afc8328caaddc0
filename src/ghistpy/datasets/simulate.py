"""Simulated H&E slides whose expression is known exactly."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.datasets import _biology as biology

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

# nuclei that cover more of the slide than this cannot be placed without overlap
_MAX_COVERAGE = 0.5


def simulate_slide(
    *,
    n_cells: int = 2000,
    n_genes: int = 100,
    size_um: float | None = None,
    mpp: float = 0.5,
    seed: int = 0,
    unpredictable_fraction: float = 0.5,
    biology_seed: int = 0,
    proportions: Mapping[str, float] | Sequence[float] | None = None,
    stain: str | Mapping[str, Any] | np.ndarray | None = None,
) -> SpatialData:
    """Simulate an H&E slide with single-cell counts of which everything is known.

    Six cell types live in tumour nests, stroma and lymphoid aggregates. Size, elongation, chromatin
    density and chromatin texture of a nucleus are drawn from its type, and the types overlap. A count is
    drawn around type profile x depth x what the pixels show x what they do not show:

    - *visible genes* follow one programme each: size, chromatin or texture of the nucleus relative to
      its type, or the number of nuclei around it;
    - gamma noise for each gene and cell, and the depth of the cell, cannot be seen.

    Parameters
    ----------
    n_cells
        Number of nuclei, exactly as many as there are labels.
    n_genes
        Number of genes; 60 % of them are visible genes.
    size_um
        Side of the square slide in µm. Default: from the number of cells, at the density of tissue.
    mpp
        µm per pixel, 0.2 to 1.
    seed
        Layout, appearance, counts and pixels.
    unpredictable_fraction
        Share of the variance of the log rate within a type that the pixels do not show, 0 to 1.
    biology_seed
        Type profiles and gene programmes: slides that share it (and ``n_genes``) share their biology,
        whatever their seed, stain and proportions.
    proportions
        Share of each type, as mapping name -> share or in the order of the types: Malignant, Fibroblast,
        Endothelial, T/NK, B, Macrophage. Normalised to sum 1. Types that a mapping leaves out get 0.
    stain
        ``None``, ``"pale"``, ``"purple"``, a (2, 3) array of optical densities (haematoxylin and eosin by
        RGB), or a mapping with any of ``haematoxylin``, ``eosin``, ``background`` (three values each).

    Returns
    -------
    SpatialData
        Image ``he`` (3, y, x) uint8, labels ``nuclei`` (y, x) int32 with ids 1 .. n_cells and no two nuclei
        merged, and table ``measured``:

        ==================== ======= ============ ==================================================
        key                  slot    dtype        meaning
        ==================== ======= ============ ==================================================
        X                    X       float32 CSR  raw counts
        ceiling              layers  float32      E[log1p(count) | type, visible state]
        attainable           layers  float32      E[log1p(count) | what the pixels show]: the same
                                                  with the type unknown, averaged over bayes_proba
        cell_id              obs     int64        id in the labels
        cell_type            obs     category     true type
        niche                obs     category     nest, stroma or aggregate
        depth                obs     float64      hidden factor of the cell, mean 1
        area_um2             obs     float64      area of the nucleus in the labels
        total                obs     float64      counts over all genes
        spatial              obsm    float64      centroid x, y in µm
        bayes_proba          obsm    float64      P(type | appearance, niche), exact
        visible_state        obsm    float64      size, chromatin, texture (z within type), crowding
        appearance           obsm    float64      log of area (µm²), elongation, chromatin, texture
        visible              var     bool         whether the gene follows a visible programme
        programme            var     category     which one, or ``none``
        noise_var            var     float64      mean Var[log1p(count) | type, visible state]
        type_profiles        varm    float64      (G, C) expected counts of an average cell
        ghistpy              uns     dict         units, cell_types, visible_genes, visible_states,
                                                  mpp, bayes_macro_f1, params (JSON)
        ==================== ======= ============ ==================================================

    Raises
    ------
    ValueError
        A parameter out of range, an unknown type or stain, more nuclei than fit into ``size_um``.

    Notes
    -----
    ``ceiling`` is the mean of the truth that remains when type and visible state are known, so no
    predictor can have a smaller mean squared error on log1p(count) than it has; ``attainable`` is the
    bound for a predictor that has to tell the types apart from the pixels. Both are computed by exact
    summation over counts and quadrature over the depth, not by sampling. ``bayes_macro_f1`` is that of
    the argmax of ``bayes_proba`` on this slide.

    Cost: O(n_cells x n_genes) for the counts and O(pixels) for the image.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=60, n_genes=20, seed=1)
    >>> sdata.tables["measured"].shape
    (60, 20)
    >>> int(sdata.labels["nuclei"].max())
    60
    """
    from ghistpy.datasets._layout import grow_tissue, place_cells
    from ghistpy.datasets._render import draw_nuclei, paint, resolve_stain

    _check_range("n_cells", n_cells, 1, 2_000_000)
    _check_range("n_genes", n_genes, 1, 100_000)
    _check_range("mpp", mpp, 0.2, 1.0)
    _check_range("unpredictable_fraction", unpredictable_fraction, 0.0, 1.0)
    shares = _check_proportions(proportions)
    colours = resolve_stain(stain)
    size_px = _size_px(n_cells, size_um, mpp, shares)
    layout, look, count = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))

    tissue = grow_tissue(layout, size_px * mpp, shares)
    cells = place_cells(layout, tissue, n_cells, size_px * mpp, shares)
    nuclei = draw_nuclei(look, cells, size_px, mpp)
    image = paint(look, tissue, cells, nuclei, colours, mpp)

    panel = biology.draw_biology(n_genes, biology_seed)
    table = _measure(count, cells, nuclei, panel, shares, unpredictable_fraction, mpp)
    params = {
        "n_cells": n_cells, "n_genes": n_genes, "size_um": size_px * mpp, "mpp": mpp, "seed": seed,
        "unpredictable_fraction": unpredictable_fraction, "biology_seed": biology_seed,
        "proportions": dict(zip(biology.TYPES, shares.tolist(), strict=True)),
        "stain": {"haematoxylin": colours.haematoxylin.tolist(), "eosin": colours.eosin.tolist(),
                  "background": colours.background.tolist()},
    }  # fmt: skip
    table.uns[_keys.UNS]["params"] = json.dumps(params)
    return _assemble(image, nuclei.labels, table, mpp, f"simulated_{seed}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r}: expected {low} to {high}")


def _check_proportions(proportions: Mapping[str, float] | Sequence[float] | None) -> np.ndarray:
    """Shares (6,) that sum to 1."""
    if proportions is None:
        return biology.PROPORTIONS.copy()
    if isinstance(proportions, Mapping):
        unknown = set(proportions) - set(biology.TYPES)
        if unknown:
            raise ValueError(f"proportions: unknown types {sorted(unknown)}; the types are {list(biology.TYPES)}")
        values = np.array([float(proportions.get(name, 0.0)) for name in biology.TYPES])
    else:
        values = np.asarray(proportions, dtype=float)
    if values.shape != (len(biology.TYPES),) or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
        raise ValueError(
            f"proportions: expected {len(biology.TYPES)} shares of 0 and above for {list(biology.TYPES)}, got "
            f"{proportions!r}"
        )
    return values / values.sum()


def _size_px(n_cells: int, size_um: float | None, mpp: float, shares: np.ndarray) -> int:
    """Side of the slide in px, after a check that the nuclei fit."""
    areas = np.exp(biology.FEATURE_MEAN[:, 0] + 0.5 * biology.FEATURE_SD[:, 0] ** 2)
    if size_um is None:
        _, niche_share = biology.type_given_niche(shares)
        # a frame, because nuclei keep away from the border
        size_um = np.sqrt(n_cells * (niche_share * biology.SPACE_PER_CELL).sum()) + 8.0
    needed = np.sqrt(n_cells * (shares * areas).sum() / _MAX_COVERAGE) + 8.0
    if size_um < needed:
        raise ValueError(
            f"size_um={size_um:g} is too small for n_cells={n_cells}: they need at least {np.ceil(needed):g} µm"
        )
    return round(size_um / mpp)


def _measure(
    rng: np.random.Generator,
    cells: Any,
    nuclei: Any,
    panel: biology.Biology,
    shares: np.ndarray,
    unpredictable_fraction: float,
    mpp: float,
) -> AnnData:
    """The table of counts with everything that is known of them."""
    import pandas as pd
    from scipy import sparse

    from ghistpy.datasets._counts import LogMoments, Noise, draw_counts, log_rate
    from ghistpy.datasets._layout import count_neighbours
    from ghistpy.io.tables import make_table

    noise = Noise.of(unpredictable_fraction)
    visible_sd = biology.WITHIN_TYPE_SD * np.sqrt(1 - unpredictable_fraction)
    crowding = biology.crowding_state(count_neighbours(cells.xy))
    state = biology.visible_state(cells.log_features, crowding, cells.cell_type)
    rate = log_rate(panel, state, cells.cell_type, visible_sd)
    counts, depth = draw_counts(rng, rate, noise)
    moments = LogMoments(noise)
    proba = biology.bayes_posterior(cells.log_features, cells.niche, shares)

    def mean_as(k: int, rows: np.ndarray) -> np.ndarray:
        as_type = biology.visible_state(cells.log_features[rows], crowding[rows], k)
        return moments.mean(log_rate(panel, as_type, k, visible_sd))

    table = make_table(
        sparse.csr_matrix(counts.astype(np.float32)),
        panel.genes,
        region=_keys.LABELS,
        instance_key=_keys.CELL_ID,
        ids=np.arange(1, len(counts) + 1),
        obs={
            _keys.CELL_TYPE: pd.Categorical.from_codes(cells.cell_type, categories=list(biology.TYPES)),
            "niche": pd.Categorical.from_codes(cells.niche, categories=list(biology.NICHES)),
            "depth": depth,
            _keys.AREA_UM2: nuclei.area_px * mpp**2,
            _keys.TOTAL: counts.sum(axis=1).astype(float),
        },
        obsm={
            _keys.SPATIAL: nuclei.centroid_px * mpp,
            "bayes_proba": proba,
            "visible_state": state,
            "appearance": cells.log_features,
        },
        var={"visible": panel.programme >= 0, "noise_var": moments.variance(rate).mean(axis=0)},
        uns={_keys.UNS: _describe(panel, mpp, _macro_f1(cells.cell_type, proba.argmax(axis=1)))},
        layers={"ceiling": moments.mean(rate).astype(np.float32), "attainable": _average(proba, mean_as, rate.shape)},
    )
    names = [*biology.PROGRAMMES, "none"]
    table.var["programme"] = pd.Categorical.from_codes(
        np.where(panel.programme < 0, len(names) - 1, panel.programme), categories=names
    )
    table.varm["type_profiles"] = panel.profiles.T.copy()
    return table


def _describe(panel: biology.Biology, mpp: float, macro_f1: float) -> dict[str, Any]:
    from ghistpy import __version__

    return {
        "units": _keys.UNITS_COUNTS,
        "cell_types": list(biology.TYPES),
        "visible_genes": panel.genes[panel.programme >= 0].tolist(),
        "visible_states": list(biology.PROGRAMMES),
        "mpp": float(mpp),
        "bayes_macro_f1": macro_f1,
        "version": __version__,
    }


def _average(proba: np.ndarray, mean_as: Callable[[int, np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Mean over the types, weighted by their probability, of what is expected of a cell of that type."""
    out = np.zeros(shape, np.float32)
    for k in range(proba.shape[1]):
        rows = np.flatnonzero(proba[:, k] > 1e-6)  # what is left out changes no entry by more than 1e-5
        out[rows] += proba[rows, k, None] * mean_as(k, rows)
    return out


def _macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the types that occur of 2 TP / (2 TP + FP + FN)."""
    k = len(biology.TYPES)
    table = np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)
    present = table.sum(axis=1) > 0
    f1 = 2 * np.diag(table) / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)
    return float(f1[present].mean())


def _assemble(image: np.ndarray, labels: np.ndarray, table: AnnData, mpp: float, sample: str) -> SpatialData:
    import spatialdata as sd

    from ghistpy.io.elements import image_element, labels_element

    return sd.SpatialData(
        images={_keys.IMAGE: image_element(image, mpp)},
        labels={_keys.LABELS: labels_element(labels, mpp)},
        tables={_keys.MEASURED: table},
        attrs={_keys.ATTRS: {"sample": sample, "patient": sample}},
    )
