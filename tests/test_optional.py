from __future__ import annotations

import sys

import pytest

from ghistpy._optional import require


def test_returns_the_module():
    assert require("json.decoder", extra="wsi") is sys.modules["json.decoder"]


def test_absent_module_names_the_extra():
    with pytest.raises(ImportError, match=r"'no_such_module' is not installed.*pip install 'ghistpy\[instanseg\]'"):
        require("no_such_module", extra="instanseg")


def test_broken_module_says_what_broke(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"does not import \(No module named 'something_it_needs'\)"):
        require("half_installed", extra="cellpose")
