"""TCGA breast cancers: against the file read another way."""

import csv
import io
import zipfile

import numpy as np
import pytest

from ghistpy import datasets

FILE = "porpoise_tcga_brca_all_clean.csv.zip"


@pytest.fixture
def use_data(data_dir, monkeypatch):
    monkeypatch.setenv("GHISTPY_DATA_DIR", str(data_dir))
    return data_dir / "data" / "tcga_brca" / FILE


@pytest.mark.data
def test_equals_the_file(use_data):
    expression, cna = datasets.tcga_brca(), datasets.tcga_brca("cna")
    assert expression.shape == (956, 1558)
    assert cna.shape == (956, 1333)
    assert list(expression.obs_names) == list(cna.obs_names)
    with zipfile.ZipFile(use_data) as archive, archive.open(archive.namelist()[0]) as binary:
        rows = list(csv.DictReader(io.TextIOWrapper(binary)))
    assert len(rows) == 1022 == expression.obs["n_slides"].sum()
    row = next(r for r in rows if r["case_id"] == "TCGA-A2-A0D0")
    patient = expression.obs.loc["TCGA-A2-A0D0"]
    assert patient["site"] == row["site"]
    assert patient["survival_months"] == float(row["survival_months"])
    assert patient["censorship"] == int(float(row["censorship"]))
    assert expression["TCGA-A2-A0D0", "ERBB2"].X.item() == pytest.approx(float(row["ERBB2_rnaseq"]), rel=1e-6)
    assert cna["TCGA-A2-A0D0", "ERBB2"].X.item() == float(row["ERBB2_cnv"])
    assert (expression.obs["censorship"] == 0).sum() == 130
    assert expression.obs["site"].nunique() == 37
    assert set(np.unique(cna.X)) == {-2, -1, 0, 1, 2}
    assert set(cna.var["kind"]) == {"cna"}
    # what belongs to the patient is the same in all of its slides
    columns = [c for c in rows[0] if c not in ("slide_id", "")]
    first = {}
    for r in rows:
        assert all(first.setdefault(r["case_id"], r)[c] == r[c] for c in columns)


def test_unknown_assay():
    with pytest.raises(ValueError, match="assay='protein': expected one of"):
        datasets.tcga_brca("protein")
