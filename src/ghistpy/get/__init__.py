"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation
from ghistpy.get.neighbours import comparison, composition, interaction, ripley

__all__ = ["evaluation", "composition", "interaction", "ripley", "comparison"]
