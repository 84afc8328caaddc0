"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation
from ghistpy.get.neighbours import comparison, composition, interaction, ripley
from ghistpy.get.spatial_genes import svg

__all__ = ["evaluation", "composition", "svg", "interaction", "ripley", "comparison"]
