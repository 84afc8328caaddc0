"""What a predictor returns for the nuclei of one slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghistpy.engine.scratch import StoredRows


@dataclass(frozen=True)
class Prediction:
    """One row per nucleus, in the order of ``ids``; n nuclei, G genes, C types, F features.

    ids (n,) int64; expression (n, G) float32, log1p(expected count); proba_raw and proba (n, C)
    float32, before and after refinement; composition (n, C) float32, mean types of the neighbourhood;
    cell_type_raw and cell_type (n,) int64, index of the type; total (n,) float32, expected counts over
    all genes of the assay; morphology (n, F) float32. The expression of a large slide may lie in a file.
    """

    ids: np.ndarray
    expression: np.ndarray | StoredRows
    proba_raw: np.ndarray
    proba: np.ndarray
    composition: np.ndarray
    cell_type_raw: np.ndarray
    cell_type: np.ndarray
    total: np.ndarray
    morphology: np.ndarray
