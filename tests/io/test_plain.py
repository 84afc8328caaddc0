"""Plain values in a file: everything comes back as it was, and what could run is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ghistpy.io._plain import read_plain, write_plain


def round_trip(folder, value):
    write_plain(folder / "value.h5", value)
    return read_plain(folder / "value.h5")


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=trees)
def test_nested_values_come_back_with_their_types(tmp_path_factory, value):
    found = round_trip(tmp_path_factory.mktemp("plain"), value)
    assert found == value
    assert repr(found) == repr(value)  # 1 and True, (1,) and [1], -0.0 and 0.0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.array([1.5, np.nan, -np.inf], dtype=np.float32),
        np.array(["T/NK", "", "ß"]),
        np.array([["a", "bb"]], dtype=object),
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        np.zeros((0, 4)),
        np.array([], dtype=str),
        np.array(3.5),
        np.array([True, False]),
    ],
)
def test_arrays(tmp_path, array):
    found = round_trip(tmp_path, {"x": array})["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_scalars_frames_and_tables(tmp_path):
    frame = pd.DataFrame(
        {"n": [1, 2], "x": [0.5, np.nan], "type": pd.Categorical(["a", "b"]), "yes": [True, False], "who": ["p", "q"]},
        index=pd.Index(["r1", "r2"], name="row"),
    )
    adata = AnnData(np.eye(2, dtype=np.float32), obs=frame.copy(), uns={"k": {"v": 1}})
    value = {"i": np.int16(4), "f": np.float32(0.1), "frame": frame, "adata": adata, "x": frame["x"], "s": np.str_("t")}
    found = round_trip(tmp_path, value)
    assert (found["i"], type(found["i"]), found["s"]) == (4, np.int16, "t")
    assert found["f"] == np.float32(0.1)
    pd.testing.assert_frame_equal(found["frame"], frame)
    pd.testing.assert_series_equal(found["x"], frame["x"])
    np.testing.assert_array_equal(found["adata"].X, adata.X)
    pd.testing.assert_frame_equal(found["adata"].obs, adata.obs, check_names=False)
    assert found["adata"].uns == {"k": {"v": 1}}


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"who": ["p", None, "q"], "any": [1, "x", np.nan], "when": pd.to_datetime(["2020-01-01"] * 3)}),
        pd.DataFrame({0: [1.5, 2], 1: [True, False]}, index=[10, 20]),
        pd.DataFrame({"s": pd.array(["a", None], dtype="string"), "i": pd.array([1, None], dtype="Int64")}),
        pd.DataFrame({"c": pd.Categorical(["lo", np.nan], ["lo", "hi"], ordered=True), "k": pd.Categorical([2, 1])}),
        pd.DataFrame({"x": []}),
        pd.DataFrame(index=["a", "b"]),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
        pd.DataFrame({"x": [1]}, index=pd.DatetimeIndex(["2021-05-01"], name="day")),
    ],
)
def test_frames_of_every_kind(tmp_path, frame):
    frame.attrs["notes"] = {"n": 3, "what": ["a"]}
    found = round_trip(tmp_path, frame)
    pd.testing.assert_frame_equal(found, frame, check_freq=False, check_index_type="equiv", check_column_type="equiv")
    assert found.attrs == frame.attrs


def test_frames_that_get_gives_keep_their_notes(tmp_path):
    import ghistpy as gp

    table = gp.datasets.simulate_slide(n_cells=200, n_genes=5)["measured"]
    gp.tl.composition(table)
    gp.tl.svg(table)
    for frame in (gp.get.composition(table), gp.get.svg(table)):
        found = round_trip(tmp_path, frame)
        pd.testing.assert_frame_equal(found, frame)
        assert found.attrs["notes"] == frame.attrs["notes"]


@pytest.mark.parametrize("made", [sparse.csr_matrix, sparse.csc_array])
def test_sparse(tmp_path, made):
    value = made(np.array([[0, 1.5], [2, 0]]))
    found = round_trip(tmp_path, [value])[0]
    assert type(found) is made
    np.testing.assert_array_equal(found.toarray(), value.toarray())


class _Program:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, _Program()]}, r"result\['a'\]\[1\] is a .*_Program"),
        (test_arrays, "function"),
        ({1: 2}, "keys of a dict have to be text"),
        (np.array([1, None], dtype=object), "array of object"),
        ({1, 2}, "builtins.set"),
        (np.ma.masked_array([1, 2], [True, False]), "MaskedArray"),
        (pd.DataFrame({"a": [[1], [2]]}), r"result\['a'\] is a column of list"),
        (pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([("x", "y")])), "result.index is a column of tuple"),
        (AnnData(np.eye(2), uns={"f": object()}), "result is a AnnData that no file takes"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_place(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        write_plain(tmp_path / "value.h5", value)


def test_a_file_that_is_cut_is_an_error(tmp_path):
    path = tmp_path / "value.h5"
    write_plain(path, {"x": np.arange(10_000)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises((OSError, KeyError, ValueError)):
        read_plain(path)
