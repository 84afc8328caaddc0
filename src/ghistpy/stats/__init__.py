"""Statistics on plain arrays: numpy and scipy only, arrays in, arrays or small named results out."""

from ghistpy.stats.autocorrelation import morans_i
from ghistpy.stats.ceiling import Ceiling, noise_ceiling
from ghistpy.stats.composition import local_composition, type_counts
from ghistpy.stats.coordinate_tests import SparkX, sparkx
from ghistpy.stats.depth import depth_adjusted_pearson
from ghistpy.stats.interaction import Interaction, cell_type_interaction, pairs_of_graph, pairs_within
from ghistpy.stats.local_autocorrelation import LocalMoran, local_moran
from ghistpy.stats.map_shift import MapShift, map_shift_test
from ghistpy.stats.metrics import (
    METRICS,
    Summary,
    auc,
    gene_metrics,
    js_divergence,
    mutual_information,
    nrmse,
    pearson,
    rmse,
    spearman,
    ssim_global,
    summarise,
)
from ghistpy.stats.multiple import adjust_pvalues, cauchy_combination
from ghistpy.stats.neighbours import (
    NeighborCorrelation,
    away_from_border,
    density_basis,
    edges_of_types,
    morans_i_all_pairs,
    neighbor_correlation,
    nn_correlation,
)
from ghistpy.stats.quadratic_form import row_standardised
from ghistpy.stats.ridge import Ridge, fit_ridge
from ghistpy.stats.ripley import Window, cross_l, l_scores, ripley_pairs
from ghistpy.stats.segmentation import SegmentationScores, segmentation_scores
from ghistpy.stats.skill import skill_score, variance_ratio, within_type_pearson
from ghistpy.stats.spatial_autocorrelation import Autocorrelation, autocorrelation_test
from ghistpy.stats.types import CompositionAgreement, TypeAgreement, composition_agreement, type_agreement
from ghistpy.stats.variogram import VariogramTest, variogram_test

__all__ = [
    "METRICS",
    "Autocorrelation",
    "Ceiling",
    "CompositionAgreement",
    "Interaction",
    "LocalMoran",
    "MapShift",
    "NeighborCorrelation",
    "Ridge",
    "SegmentationScores",
    "SparkX",
    "Summary",
    "TypeAgreement",
    "VariogramTest",
    "Window",
    "adjust_pvalues",
    "auc",
    "autocorrelation_test",
    "away_from_border",
    "cauchy_combination",
    "cell_type_interaction",
    "composition_agreement",
    "cross_l",
    "density_basis",
    "depth_adjusted_pearson",
    "edges_of_types",
    "fit_ridge",
    "gene_metrics",
    "js_divergence",
    "l_scores",
    "local_composition",
    "local_moran",
    "map_shift_test",
    "morans_i",
    "morans_i_all_pairs",
    "mutual_information",
    "neighbor_correlation",
    "nn_correlation",
    "noise_ceiling",
    "nrmse",
    "pairs_of_graph",
    "pairs_within",
    "pearson",
    "ripley_pairs",
    "rmse",
    "segmentation_scores",
    "row_standardised",
    "skill_score",
    "sparkx",
    "spearman",
    "ssim_global",
    "summarise",
    "type_agreement",
    "type_counts",
    "variance_ratio",
    "variogram_test",
    "within_type_pearson",
]
