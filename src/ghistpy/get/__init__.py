"""Tidy frames of what the tools wrote."""

from ghistpy.get.copy_number import cna
from ghistpy.get.evaluation import evaluation

__all__ = ["cna", "evaluation"]
