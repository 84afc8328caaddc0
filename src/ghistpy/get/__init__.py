"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation
from ghistpy.get.match import matching
from ghistpy.get.survival import differential_state, kaplan_meier, outcome, survival

__all__ = [
    "evaluation",
    "matching",
    "survival",
    "kaplan_meier",
    "outcome",
    "differential_state",
]
