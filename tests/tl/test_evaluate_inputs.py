"""Tables that evaluate must refuse, and how it says so."""

import numpy as np
import pytest

import ghistpy as gp
from ghistpy.io import make_table


def test_spots_against_cells_names_the_remedy(spots):
    with pytest.raises(ValueError, match="run tl.aggregate_spots"):
        gp.tl.evaluate(spots.sdata)
    gp.tl.aggregate_spots(spots.sdata)
    spots.sdata.tables["cells"] = make_table(
        np.ones((3, 2)), ["G0", "G1"], region="nuclei", instance_key="cell_id", ids=[10, 20, 30]
    )
    with pytest.raises(ValueError, match="evaluate the table of nuclei"):
        gp.tl.evaluate(spots.sdata, measured="cells", predicted="insilico_spots")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, p: m.X.__setitem__((3, 2), np.nan), "measured=measured: 1 values are NaN"),
        (lambda m, p: m.X.__setitem__((3, 2), -4), r"1 counts are negative \(lowest -4\)"),
        (lambda m, p: setattr(m, "X", np.log1p(m.X)), "are no whole numbers .*so they are no raw counts"),
        (lambda m, p: m.uns["ghistpy"].update(units="log1p(expected count)"), "does not hold raw counts"),
        (lambda m, p: m.uns.update(log1p={"base": None}), r"uns\['log1p'\] is set"),
        (lambda m, p: p.X.__setitem__((slice(0, 2), 1), np.nan), "2 values are NaN or infinite, in 2 of 625 rows"),
        (lambda m, p: p.uns.pop("ghistpy"), r"units'\] is None, expected 'log1p\(expected count\)'"),
        (lambda m, p: setattr(m, "var_names", [f"ENSG{i}" for i in range(8)]), "share no gene"),
        (lambda m, p: m.obs.isetitem(0, np.arange(625) + 10**6), "share no id"),
    ],
)
def test_tables_that_cannot_be_compared(cells, change, message):
    change(cells.sdata["measured"], cells.sdata["insilico"])
    with pytest.raises(ValueError, match=message):
        gp.tl.evaluate(cells.sdata)


def test_regions_must_meet(cells):
    cells.sdata.labels["other"] = cells.sdata["nuclei"]
    table = cells.sdata["measured"]
    cells.sdata.tables["measured"] = make_table(
        table.X, table.var_names, region="other", instance_key="cell_id", ids=cells.ids
    )
    with pytest.raises(ValueError, match=r"annotates \['other'\] and predicted='insilico' annotates \['nuclei'\]"):
        gp.tl.evaluate(cells.sdata)
