"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation
from ghistpy.get.spatial_genes import svg

__all__ = ["evaluation", "svg"]
