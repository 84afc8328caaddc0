"""Prepare a slide: find the tissue, normalise the stain, segment the nuclei."""

from ghistpy.imaging.normalize import StainReference
from ghistpy.pp.align import align_density, align_landmarks
from ghistpy.pp.annotate import annotate_cell_types
from ghistpy.pp.assign import assign_transcripts
from ghistpy.pp.match import match_cells
from ghistpy.pp.reference import build_reference
from ghistpy.pp.segment import segment_nuclei
from ghistpy.pp.stain import fit_stain, normalize_stain
from ghistpy.pp.tissue import find_tissue

__all__ = [
    "StainReference",
    "find_tissue",
    "fit_stain",
    "normalize_stain",
    "segment_nuclei",
    "assign_transcripts",
    "match_cells",
    "align_landmarks",
    "align_density",
    "build_reference",
    "annotate_cell_types",
]
