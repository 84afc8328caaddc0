"""What is installed and whether a slide is fit for use: each problem with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghistpy import _keys
from ghistpy.doctor.environment import check_environment
from ghistpy.doctor.findings import NOTE, OK, PROBLEM, Finding, describe
from ghistpy.doctor.slide import check_slide, check_store

__all__ = ["NOTE", "OK", "PROBLEM", "Finding", "check_environment", "check_slide", "check_store", "describe", "doctor"]


def doctor(
    store: Annotated[Path | None, typer.Argument(help="Also look at this SpatialData store.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a model to compare the store with.")] = None,
    image_key: Annotated[str, typer.Option(help="Image of the store.")] = _keys.IMAGE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is installed, and what is wrong with a slide. Exit code 1 when there is a problem."""
    import json
    import logging

    if model is not None and store is None:
        raise ValueError("--model is compared with a store; give one")
    logger = logging.getLogger("ghistpy")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what verbs log is in the findings
    try:
        findings = check_environment()
        if store is not None:
            trained = None
            if model is not None:
                from ghistpy.models import GHIST

                trained = GHIST.load(model)
            findings += check_store(store, trained, image_key=image_key)
    finally:
        logger.setLevel(level)
    typer.echo(json.dumps([vars(f) for f in findings], indent=1) if as_json else describe(findings))
    if any(f.level == PROBLEM for f in findings):
        raise typer.Exit(1)
