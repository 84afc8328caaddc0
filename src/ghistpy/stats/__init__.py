"""Statistics on plain arrays: numpy and scipy only, arrays in, arrays or small named results out."""

from ghistpy.stats.autocorrelation import morans_i
from ghistpy.stats.ceiling import Ceiling, noise_ceiling
from ghistpy.stats.depth import depth_adjusted_pearson
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
from ghistpy.stats.ridge import Ridge, fit_ridge
from ghistpy.stats.segmentation import SegmentationScores, segmentation_scores
from ghistpy.stats.skill import skill_score, variance_ratio, within_type_pearson
from ghistpy.stats.types import CompositionAgreement, TypeAgreement, composition_agreement, type_agreement

__all__ = [
    "METRICS",
    "Ceiling",
    "CompositionAgreement",
    "Ridge",
    "SegmentationScores",
    "Summary",
    "TypeAgreement",
    "auc",
    "composition_agreement",
    "depth_adjusted_pearson",
    "fit_ridge",
    "gene_metrics",
    "js_divergence",
    "morans_i",
    "mutual_information",
    "noise_ceiling",
    "nrmse",
    "pearson",
    "rmse",
    "segmentation_scores",
    "skill_score",
    "spearman",
    "ssim_global",
    "summarise",
    "type_agreement",
    "variance_ratio",
    "within_type_pearson",
]
