"""Files into containers, tables into stores."""

from ghistpy.io.cohort import Cohort, CohortResults, read_cohort
from ghistpy.io.resolution import get_element, get_mpp
from ghistpy.io.slide import read_slide
from ghistpy.io.sources import open_image, open_labels, open_slide, rgb_source
from ghistpy.io.spots import read_spots
from ghistpy.io.tables import ensure_can_save, make_table, save, write_table

__all__ = [
    "Cohort",
    "CohortResults",
    "ensure_can_save",
    "get_element",
    "get_mpp",
    "make_table",
    "open_image",
    "open_labels",
    "open_slide",
    "read_cohort",
    "read_slide",
    "read_spots",
    "rgb_source",
    "save",
    "write_table",
]
