"""Simulated slides and loaders of public data."""

from ghistpy.datasets.her2st import her2st
from ghistpy.datasets.simulate import simulate_slide
from ghistpy.datasets.tcga import tcga_brca

__all__ = ["her2st", "simulate_slide", "tcga_brca"]
