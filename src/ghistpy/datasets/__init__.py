"""Simulated slides and loaders of public data."""

from ghistpy.datasets.cohort import simulate_cohort
from ghistpy.datasets.genes import gene_positions
from ghistpy.datasets.her2st import her2st
from ghistpy.datasets.simulate import simulate_slide
from ghistpy.datasets.tcga import tcga_brca
from ghistpy.datasets.xenium import xenium_lung_tma

__all__ = [
    "her2st",
    "simulate_slide",
    "xenium_lung_tma",
    "tcga_brca",
    "gene_positions",
    "simulate_cohort",
]
