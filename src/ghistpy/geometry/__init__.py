"""Tile plans, windows and labels: numpy and scipy only."""

from ghistpy.geometry.context import neighborhood_features, neighborhood_mean
from ghistpy.geometry.coverage import Coverage, cover
from ghistpy.geometry.graph import SpatialGraph, check_graph, knn_graph, radius_graph
from ghistpy.geometry.nuclei import Nuclei, find_nuclei
from ghistpy.geometry.points import local_density
from ghistpy.geometry.resample import read_image, read_labels
from ghistpy.geometry.source import (
    ArraySource,
    MaskedSource,
    MemorySource,
    NamedSource,
    UnreadableError,
    Window,
    read_padded,
)
from ghistpy.geometry.tiles import TilePlan, model_scale, plan_tiles

__all__ = [
    "ArraySource",
    "Coverage",
    "MaskedSource",
    "MemorySource",
    "NamedSource",
    "Nuclei",
    "SpatialGraph",
    "TilePlan",
    "UnreadableError",
    "Window",
    "check_graph",
    "cover",
    "find_nuclei",
    "knn_graph",
    "local_density",
    "model_scale",
    "neighborhood_features",
    "neighborhood_mean",
    "plan_tiles",
    "radius_graph",
    "read_image",
    "read_labels",
    "read_padded",
]
