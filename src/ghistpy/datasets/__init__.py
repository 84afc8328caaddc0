"""Simulated slides and loaders of public data."""

from ghistpy.datasets.cohort import simulate_cohort
from ghistpy.datasets.genes import gene_positions
from ghistpy.datasets.her2st import her2st
from ghistpy.datasets.simulate import simulate_slide
from ghistpy.datasets.tcga import tcga_brca

__all__ = ["gene_positions", "her2st", "simulate_cohort", "simulate_slide", "tcga_brca"]
