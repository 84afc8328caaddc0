"""Statistics on plain arrays: numpy and scipy only, arrays in, arrays or small named results out."""

from ghistpy.stats.autocorrelation import morans_i
from ghistpy.stats.ceiling import Ceiling, noise_ceiling
from ghistpy.stats.coordinate_tests import SparkX, sparkx
from ghistpy.stats.depth import depth_adjusted_pearson
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
from ghistpy.stats.ridge import Ridge, fit_ridge
from ghistpy.stats.skill import skill_score, variance_ratio, within_type_pearson
from ghistpy.stats.spatial_autocorrelation import Autocorrelation, autocorrelation_test, row_standardised
from ghistpy.stats.types import CompositionAgreement, TypeAgreement, composition_agreement, type_agreement

__all__ = [
    "METRICS",
    "Autocorrelation",
    "Ceiling",
    "CompositionAgreement",
    "LocalMoran",
    "MapShift",
    "Ridge",
    "SparkX",
    "Summary",
    "TypeAgreement",
    "adjust_pvalues",
    "auc",
    "autocorrelation_test",
    "cauchy_combination",
    "composition_agreement",
    "depth_adjusted_pearson",
    "fit_ridge",
    "gene_metrics",
    "js_divergence",
    "local_moran",
    "map_shift_test",
    "morans_i",
    "mutual_information",
    "noise_ceiling",
    "nrmse",
    "pearson",
    "rmse",
    "row_standardised",
    "skill_score",
    "sparkx",
    "spearman",
    "ssim_global",
    "summarise",
    "type_agreement",
    "variance_ratio",
    "within_type_pearson",
]
