"""Figures: one function per result, axes in and axes out. They draw what is stored and compute no statistic."""

from ghistpy.pl.accuracy import gene_accuracy, gene_scatter
from ghistpy.pl.cohort import cohort_composition
from ghistpy.pl.comparison import comparison
from ghistpy.pl.embedding import embedding
from ghistpy.pl.genome import cna_genome
from ghistpy.pl.heatmap import state_heatmap
from ghistpy.pl.local_moran import local_moran
from ghistpy.pl.maps import compare_genes, slide
from ghistpy.pl.marker_maps import marker_maps
from ghistpy.pl.match import matching
from ghistpy.pl.models import c_index, outcome_accuracy
from ghistpy.pl.neighbours import interaction, nn_correlation, ripley
from ghistpy.pl.outlines import nuclei, tissue
from ghistpy.pl.ranking import svg_ranking
from ghistpy.pl.spatial_genes import svg
from ghistpy.pl.staining import stain
from ghistpy.pl.survival import kaplan_meier, risk_features
from ghistpy.pl.training import history
from ghistpy.pl.types import composition, confusion
from ghistpy.pl.volcano import volcano

__all__ = [
    "slide",
    "compare_genes",
    "gene_accuracy",
    "gene_scatter",
    "composition",
    "confusion",
    "history",
    "nn_correlation",
    "interaction",
    "ripley",
    "embedding",
    "marker_maps",
    "tissue",
    "nuclei",
    "stain",
    "matching",
    "kaplan_meier",
    "c_index",
    "risk_features",
    "outcome_accuracy",
    "state_heatmap",
    "volcano",
    "svg",
    "svg_ranking",
    "local_moran",
    "comparison",
    "cna_genome",
    "cohort_composition",
]
