"""Tidy frames of what the tools wrote."""

from ghistpy.get.evaluation import evaluation

__all__ = ["evaluation"]
