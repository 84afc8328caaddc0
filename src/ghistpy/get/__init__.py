"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation
from ghistpy.get.match import matching

__all__ = ["evaluation", "matching"]
