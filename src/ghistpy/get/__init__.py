"""Tidy frames of what the tools wrote."""

from ghistpy.get.copy_number import cna
from ghistpy.get.evaluation import evaluation
from ghistpy.get.match import matching
from ghistpy.get.neighbours import (
    comparison,
    composition,
    interaction,
    local_moran,
    markers,
    nn_correlation,
    ripley,
)
from ghistpy.get.spatial_genes import svg
from ghistpy.get.survival import differential_state, kaplan_meier, outcome, survival

__all__ = [
    "evaluation",
    "matching",
    "survival",
    "kaplan_meier",
    "outcome",
    "differential_state",
    "composition",
    "svg",
    "local_moran",
    "nn_correlation",
    "interaction",
    "ripley",
    "markers",
    "comparison",
    "cna",
]
