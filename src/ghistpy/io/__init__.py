"""Files into containers, tables into stores."""

from ghistpy.io.cohort import Cohort, CohortResults, read_cohort
from ghistpy.io.geojson import write_geojson
from ghistpy.io.ghist import read_ghist
from ghistpy.io.labels import read_label_table, read_labels
from ghistpy.io.resolution import get_element, get_mpp
from ghistpy.io.slide import read_slide, thumbnail
from ghistpy.io.sources import open_image, open_labels, open_slide, rgb_source
from ghistpy.io.spots import read_spots
from ghistpy.io.tables import ensure_can_save, make_table, save, write_table
from ghistpy.io.xenium import read_xenium

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
    "read_label_table",
    "read_labels",
    "read_ghist",
    "read_cohort",
    "read_slide",
    "read_spots",
    "read_xenium",
    "rgb_source",
    "save",
    "thumbnail",
    "write_geojson",
    "write_table",
]
