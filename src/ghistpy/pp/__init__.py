"""Prepare a slide: find the tissue, segment the nuclei."""

from ghistpy.pp.segment import segment_nuclei

__all__ = ["segment_nuclei"]
