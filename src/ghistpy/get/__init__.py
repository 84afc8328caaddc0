"""Tidy frames of what the tools wrote."""

from ghistpy.get.copy_number import cna
from ghistpy.get.evaluation import evaluation
from ghistpy.get.survival import differential_state, kaplan_meier, outcome, survival

__all__ = ["evaluation", "survival", "kaplan_meier", "outcome", "differential_state", "cna"]
