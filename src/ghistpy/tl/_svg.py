"""The tests behind :func:`ghistpy.tl.svg`: one function per family, arrays and notes out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _design
from ghistpy.tl._table import Table, coordinates, regions
from ghistpy.tl._values import take_columns

logger = logging.getLogger("ghistpy")

LAYOUT_NULLS = ("map_shift", "variogram")  # smooth maps are no evidence to them, so in-silico tables get their p


@dataclass(frozen=True)
class Options:
    """What the caller of ``svg`` chose."""

    method: str
    null: str
    n_perms: int
    alternative: str
    layer: str | None
    cell_type_key: str
    covariates: Sequence[str] | None
    log_depth: bool
    depth_key: str | None
    layout_key: str | None
    seed: int
    n_jobs: int
    progress: bool

    @property
    def of_layout(self) -> bool:
        """The p-value is that of a test against a layout."""
        return self.null in LAYOUT_NULLS

    @property
    def uses_depth(self) -> bool:
        """Depth is regressed out."""
        return self.null == "within_type" or self.log_depth

    def bar(self, items: Any) -> Any:
        """The iteration with a progress bar."""
        if not self.progress:
            return items
        from tqdm.auto import tqdm

        return tqdm(items, desc="svg", leave=False)


@dataclass
class Result:
    """Per gene: score, p-value, what ranks go by (low first), and notes for ``uns``."""

    score: np.ndarray
    pval: np.ndarray
    order: np.ndarray
    notes: dict[str, Any]


def check_regions(table: Table, options: Options) -> np.ndarray | None:
    """Region of each row, None when it is one; refuses what pools regions.

    Raises
    ------
    ValueError
        Several regions and a test that takes them for one.
    """
    groups = regions(table)
    if groups is None:
        return None
    count = f"{table.label} annotates {groups.max() + 1} elements (slides)"
    if options.of_layout:
        raise ValueError(f"null={options.null!r}: {count}; test one slide at a time")
    if options.method == "sparkx":
        raise ValueError(
            f"method='sparkx': {count}, and where they lie to each other is a pattern to SPARK-X; test one slide at a "
            "time, or use method='moran', n_perms=999"
        )
    if not options.n_perms and not table.in_silico:
        raise ValueError(
            f"n_perms=0: {count}, whose levels differ; analytic p-values hold for one slide. Give n_perms, such as "
            "n_perms=999, to permute within slides, or test one slide at a time"
        )
    return groups


def autocorrelation(table: Table, values: Any, columns: np.ndarray, found: Any, options: Options) -> Result:
    """Moran's I or Geary's C of some columns."""
    from ghistpy.stats import row_standardised
    from ghistpy.stats.spatial_autocorrelation import MIN_POSITIVE, autocorrelation_test

    notes: dict[str, Any] = dict(found.notes)
    design, strata = _conditioning(table, values, options, notes)
    withheld = table.in_silico and not options.of_layout
    n_perms = 0 if options.of_layout else options.n_perms
    if withheld:
        n_perms = int(design is not None)  # p-values would be withheld; the score of residuals asks for one
    tested = autocorrelation_test(
        _transformed(take_columns(values, columns), table, options, notes),
        row_standardised(found.weights),
        method=options.method,
        n_perms=n_perms,
        alternative=options.alternative,
        strata=strata,
        design=design,
        seed=options.seed,
        n_jobs=options.n_jobs,
        progress=options.bar,
    )
    notes["n_constant_genes"] = int(tested.constant.sum())
    if not options.n_perms and not withheld and not options.of_layout:
        few = ~tested.constant & np.isnan(tested.pval)
        notes["n_genes_too_sparse"] = int(few.sum())
        if few.any():
            logger.warning(
                "%d of %d genes of %s are positive in fewer than %d cells, or few outliers carry their variance: their "
                "analytic p-values do not hold and are NaN; give n_perms, such as n_perms=999",
                few.sum(), len(few), table.label, MIN_POSITIVE,
            )  # fmt: skip
    if options.alternative == "two-sided":
        notes["ranked_by"] = "distance of the score from its expectation"
        order = -np.abs(tested.score - tested.expected)
    else:
        best_low = (options.method == "geary") != (options.alternative == "less")
        order = tested.score if best_low else -tested.score
    return Result(tested.score, tested.pval, order, notes)


def sparkx(table: Table, values: Any, columns: np.ndarray, found: Any, options: Options) -> Result:
    """SPARK-X of some columns; cells without any value in the whole table are left out."""
    from ghistpy.stats.coordinate_tests import rows_with_values
    from ghistpy.stats.coordinate_tests import sparkx as test

    notes: dict[str, Any] = {} if found is None else dict(found.notes)
    chosen = take_columns(values, columns)
    stored = chosen.data if hasattr(chosen, "tocsc") else chosen
    held = table.units if options.layer is None and table.units != _keys.UNITS_COUNTS else None
    if held is not None or (stored < 0).any():
        notes["note"] = (
            f"SPARK-X was made for counts; the values are {held or 'partly negative'}, on which it runs as on counts"
        )
    design, _ = _conditioning(table, values, options, notes)
    chosen = _transformed(chosen, table, options, notes)
    tested = test(chosen, coordinates(table), covariates=design, kept=rows_with_values(values))
    notes |= {
        "n_cells_without_counts": int((~tested.kept).sum()),
        "n_empty_genes": tested.n_empty_genes,
        "n_constant_genes": tested.n_constant_genes,
    }
    score = -tested.log_p / np.log(10)
    return Result(score, tested.pval, -score, notes)


def follow_layout(table: Table, values: Any, columns: np.ndarray, found: Any, options: Options, result: Result) -> None:
    """Replace the p-values of a result by those of a test against a layout; stray cells are left out."""
    from ghistpy.stats.coordinate_tests import coordinate_kernels
    from ghistpy.stats.map_shift import map_shift_test, strays
    from ghistpy.stats.variogram import variogram_test

    xy = coordinates(table)
    stray = strays(xy)
    if options.layout_key is None:
        layout, source = coordinate_kernels(xy[~stray]), "SPARK-X's functions of the coordinates"
    else:
        layout = [_design.layout_columns(table, options.layout_key, found.weights)[~stray]]
        source = options.layout_key
    notes = {"layout": source, "n_stray_cells": int(stray.sum())}
    chosen, xy = take_columns(values, columns), xy[~stray]
    if stray.any():
        chosen = chosen[~stray]
        logger.warning(
            "%d of %d rows of %s lie far from all others; null=%r leaves them out",
            stray.sum(), table.n, table.label, options.null,
        )  # fmt: skip
    if options.null == "variogram":
        tested = variogram_test(chosen, xy, layout)
        notes |= {"n_tiles": tested.n_tiles, "tile_um": tested.side}
    else:
        tested = map_shift_test(chosen, xy, layout, n_shifts=options.n_perms, seed=options.seed, progress=options.bar)
        notes |= {"n_shifts_redrawn": tested.n_redrawn, "share_of_rows_compared": tested.overlap}
    result.pval = np.where(np.isnan(result.score), np.nan, tested.pval)
    result.notes |= notes


def _transformed(values: Any, table: Table, options: Options, notes: dict[str, Any]) -> Any:
    """Counts as log1p where depth is regressed out: on raw counts depth is a factor, which no sum takes away."""
    if not options.uses_depth:
        return values
    stored = values.data if hasattr(values, "tocsc") else values
    logs = options.layer is None and table.units not in (None, _keys.UNITS_COUNTS)
    counts = not logs and not ((stored < 0) | (stored != np.floor(stored))).any()
    notes["transform"] = "log1p" if counts else "none"
    if not counts:
        return values
    return values.log1p() if hasattr(values, "tocsc") else np.log1p(values)


def _conditioning(
    table: Table, values: Any, options: Options, notes: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Design (n, p) and strata (n,), None each where nothing is regressed out or all rows are alike."""
    design, groups = [], regions(table)
    strata = groups
    if groups is not None:
        design.append(_design.indicators(groups, groups.max() + 1))
        notes["n_regions"] = int(groups.max()) + 1
    if options.uses_depth:
        depth, notes["depth"] = _design.log_depth(table, values, layer=options.layer, depth_key=options.depth_key)
    if options.null == "within_type":
        types, notes["types"] = _design.type_columns(table, options.cell_type_key)
        columns, strata = _design.within_type(types, depth, groups)
        design.append(columns)
        notes |= {
            "n_types": int((types.sum(axis=0) > 0).sum()),
            "n_without_type": int((types.sum(axis=1) == 0).sum()),
            "n_strata": len(np.unique(strata)),
        }
    elif options.log_depth:
        design.append(_design.depth_powers(depth))
    if options.covariates:
        design.append(_design.covariate_columns(table, options.covariates))
        notes["covariates"] = ", ".join(
            [options.covariates] if isinstance(options.covariates, str) else options.covariates
        )
    return (np.column_stack(design) if design else None), strata
