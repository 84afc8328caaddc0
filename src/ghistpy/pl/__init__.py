"""Figures: one function per result, axes in and axes out. They draw what is stored and compute no statistic."""

from ghistpy.pl.accuracy import gene_accuracy, gene_scatter
from ghistpy.pl.cohort import cohort_composition
from ghistpy.pl.embedding import embedding, marker_maps
from ghistpy.pl.genome import cna_genome
from ghistpy.pl.maps import compare_genes, slide
from ghistpy.pl.match import matching
from ghistpy.pl.neighbours import interaction, nn_correlation, ripley
from ghistpy.pl.outlines import nuclei, tissue
from ghistpy.pl.patients import outcome_accuracy, state_heatmap, volcano
from ghistpy.pl.spatial_genes import svg, svg_ranking
from ghistpy.pl.staining import stain
from ghistpy.pl.survival import c_index, kaplan_meier, risk_features
from ghistpy.pl.training import history
from ghistpy.pl.types import composition, confusion

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
    "cna_genome",
    "cohort_composition",
]
