"""Trained predictors: save, load, and read the published program's checkpoints."""

from ghistpy.models.ghist import GHIST
from ghistpy.models.published import load_published
from ghistpy.nn.config import GHISTConfig

__all__ = ["GHIST", "GHISTConfig", "load_published"]
