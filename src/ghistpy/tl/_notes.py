"""Results of the verbs on tables: frames in ``uns`` with notes of how they came about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ghistpy import _keys
from ghistpy.tl._table import Table

if TYPE_CHECKING:
    import pandas as pd


def write_frame(table: Table, key: str, frame: pd.DataFrame) -> None:
    """Store a tidy frame in ``uns``; columns of names become plain strings, as a store can hold them."""
    table.adata.uns[key] = frame.reset_index(drop=True)


def write_notes(table: Table, key: str, notes: dict[str, Any]) -> None:
    """Store parameters and counts of what was left out in ``uns[key + "_notes"]`` as JSON."""
    from ghistpy import __version__

    stored = {"version": __version__, "units": table.units, "in_silico": table.in_silico, **notes}
    table.adata.uns[key + _keys.NOTES] = json.dumps(stored)


def check_key(key_added: str) -> str:
    """A key that a store can hold, or an error."""
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise ValueError(f"key_added={key_added!r}: expected a name without '/'")
    return key_added
