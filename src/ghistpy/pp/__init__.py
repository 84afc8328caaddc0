"""Prepare a slide: find the tissue, normalise the stain, segment the nuclei."""

from ghistpy.imaging.normalize import StainReference
from ghistpy.pp.segment import segment_nuclei
from ghistpy.pp.stain import fit_stain, normalize_stain
from ghistpy.pp.tissue import find_tissue

__all__ = ["StainReference", "find_tissue", "fit_stain", "normalize_stain", "segment_nuclei"]
