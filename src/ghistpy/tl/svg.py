"""Spatially variable genes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _design
from ghistpy.tl._table import Table, coordinates, expression, gene_columns, neighbours, resolve_table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

_METHODS = ("moran", "geary", "sparkx")
_NULLS = ("values", "within_type", "map_shift")
_ALTERNATIVES = ("greater", "less", "two-sided")
_CLAIMS = {
    "values": (
        "Values are not exchangeable between cells. Smooth depth, spill-over of transcripts and cell types that lie "
        "together do this as well as anything else."
    ),
    "within_type": (
        "Given the cell types and the depth as recorded, values are not exchangeable between cells of a type. Wrong "
        "types and spill-over of transcripts do this as well as biology."
    ),
    "map_shift": (
        "The map follows the layout more closely than it follows copies of the layout that are shifted. "
        "Smoothness alone does not do this."
    ),
}
_WITHHELD = (
    "The table is predicted from H&E. A predictor reads overlapping windows, so its values are smooth whatever the "
    "gene does, and every p-value that permutes values would be next to 0. Rank genes by their score, or use "
    "null='map_shift', n_perms=999."
)


@dataclass
class _Result:
    score: np.ndarray
    pval: np.ndarray
    best_low: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Options:
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

    def bar(self, items: Any) -> Any:
        """The iteration with a progress bar."""
        if not self.progress:
            return items
        from tqdm.auto import tqdm

        return tqdm(items, desc="svg", leave=False)


def svg(
    adata_or_sdata: AnnData | SpatialData,
    *,
    method: str = "moran",
    n_perms: int = 0,
    null: str = "values",
    alternative: str = "greater",
    table_key: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    graph: Any = None,
    n_neighbors: int | None = None,
    radius: float | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    covariates: Sequence[str] | None = None,
    log_depth: bool = False,
    depth_key: str | None = None,
    layout_key: str | None = None,
    adjust: str | None = None,
    key_added: str = _keys.SVG,
    seed: int = 0,
    n_jobs: int = -1,
    progress: bool = True,
) -> None:
    """Score, test and rank genes by how much their expression varies over the tissue.

    Parameters
    ----------
    adata_or_sdata
        A table of cells or spots, measured or in silico, or the slide that holds it.
    method
        ``"moran"``: Moran's I on the neighbour graph, high = neighbours are alike. ``"geary"``: Geary's C,
        low = alike. ``"sparkx"``: SPARK-X on the coordinates, score = -log10 p.
    n_perms
        0: analytic p-values. For Moran's I and Geary's C these come from exact moments and a Pearson III
        curve, and only for genes that are positive in 400 cells or more (the others get NaN, counted).
        Otherwise the number of permutations or map shifts; p is then never below 1 / (n_perms + 1).
    null
        What the p-value speaks against.

        ``"values"``
            values are exchangeable between cells. Withheld (NaN) for in-silico tables, whose values are
            smooth by construction.
        ``"within_type"``
            given cell types and depth, values are exchangeable within a type: probabilities of the types
            (``obsm["cell_type_proba"]``, else indicators of ``cell_type_key``), log depth, its square and cube
            and its products with the types are regressed out, and residuals are permuted within type and
            depth (SPARK-X: regressed out only). It claims nothing beyond the labels: where a fifth of them
            are wrong, most genes are rejected. Withheld for in-silico tables.
        ``"map_shift"``
            the map of the gene is unrelated to the layout of the slide, however smooth both are: p compares
            how well the layout explains the gene with copies of it that are shifted on a torus, the slide
            continued by its mirror images. The layout are SPARK-X's functions of the coordinates, or
            ``layout_key``. The score remains that of the method. The only p-value for in-silico tables.
    alternative
        ``"greater"``: neighbours more alike than under the null; ``"less"``, ``"two-sided"``. SPARK-X and map
        shifts have no direction.
    table_key
        Table of the slide; None = its only one.
    layer
        Layer to test instead of ``X``.
    genes
        Genes to test; the others become NaN. None = all.
    graph
        Key of ``obsp``, an (n, n) matrix, or an AnnData of the same rows. None =
        ``obsp["spatial_connectivities"]`` when it is there, else the 6 nearest neighbours. Rows are scaled to
        sum 1.
    n_neighbors, radius
        Make a graph of that many nearest neighbours, or of all pairs within ``radius`` µm, instead.
    cell_type_key
        Column of ``obs`` with the types, for ``"within_type"``.
    covariates
        Columns of ``obs`` that are regressed out (numbers, or categories as indicators). Moran and Geary then
        need permutations.
    log_depth
        Regress out the log of the depth too: raw counts of large cells are high, and large cells lie together.
    depth_key
        Column of ``obs`` with the counts of a cell; None = ``obs["total"]``, else the sum over genes.
    layout_key
        Layout for ``"map_shift"``: a column of ``obs`` (numbers as they are, categories as their shares among
        the neighbours) or an ``obsm``.
    adjust
        ``"bh"`` or ``"by"``; None = ``"by"`` for SPARK-X, as in the original, else ``"bh"``.
    key_added
        Prefix of what is written.
    seed
        Of permutations and shifts.
    n_jobs
        Threads, -1 = as many as there are cores; results do not depend on it.
    progress
        Show a progress bar over permutations.

    Notes
    -----
    Written into the table:

    ==================== ==== ======= ==================================================================
    key                  slot dtype   meaning
    ==================== ==== ======= ==================================================================
    ``svg_score``        var  float64 I, C or -log10 p; NaN for constant genes
    ``svg_pval``         var  float64 p-value; NaN where there is none, ``uns`` says why
    ``svg_pval_adj``     var  float64 adjusted over the genes that have one
    ``svg_rank``         var  float64 1 = most variable by score, not by p, which has a floor; NaN last
    ``svg``              uns  dict    method, null, claim, graph, covariates, counts of what was left out
    ==================== ==== ======= ==================================================================

    The score of an in-silico gene is higher than that of the measured gene, because prediction smooths:
    compare scores within a table only.

    SPARK-X leaves out cells without counts and, as the original, depends on how the slide is turned.

    References
    ----------
    Moran, Biometrika 37:17 (1950), doi:10.2307/2332142. Geary, The Incorporated Statistician 5:115 (1954),
    doi:10.2307/2986645. Zhu, Sun and Zhou, Genome Biology 22:184 (2021), doi:10.1186/s13059-021-02404-0.

    Raises
    ------
    ValueError
        Unknown table, layer, genes, method, null or key; values that are NaN or infinite; fewer than 4 rows; a
        graph of another table; a null that needs permutations without them; log depth of values that are
        no counts.

    Warns
    -----
    UserWarning
        Coordinates or a radius that are hardly in µm.

    Examples
    --------
    >>> import ghistpy as gp
    >>> table = gp.datasets.simulate_slide(n_cells=1500, n_genes=20, seed=1).tables["measured"]
    >>> gp.tl.svg(table, n_perms=99, progress=False)
    >>> best = table.var["svg_rank"].idxmin()
    >>> bool(table.var.loc[best, "svg_score"] > 0.1), float(table.var.loc[best, "svg_pval"])
    (True, 0.01)
    """
    options = _Options(
        method, null, n_perms, alternative, layer, cell_type_key, covariates, log_depth, depth_key, layout_key, seed,
        n_jobs, progress,
    )  # fmt: skip
    adjust = _check(options, adjust)
    table = resolve_table(adata_or_sdata, table_key)
    columns = gene_columns(table, genes)
    values = expression(table, layer=layer)
    chosen = values if len(columns) == values.shape[1] else values[:, columns]
    needs_graph = method != "sparkx" or (null == "map_shift" and layout_key is not None)
    found = neighbours(table, graph=graph, n_neighbors=n_neighbors, radius=radius) if needs_graph else None
    run = _sparkx if method == "sparkx" else _autocorrelation
    result = run(table, values, chosen, found, options)
    if null == "map_shift":
        _map_shift(table, chosen, found, options, result)
    _write(table, columns, result, found, options, adjust, key_added)


def _check(options: _Options, adjust: str | None) -> str:
    from ghistpy.stats.multiple import ADJUSTMENTS

    adjust = ("by" if options.method == "sparkx" else "bh") if adjust is None else adjust
    for name, value, known in (
        ("method", options.method, _METHODS),
        ("null", options.null, _NULLS),
        ("alternative", options.alternative, _ALTERNATIVES),
        ("adjust", adjust, ADJUSTMENTS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; there are {list(known)}")
    n_perms, null, sparkx = options.n_perms, options.null, options.method == "sparkx"
    if isinstance(n_perms, bool) or int(n_perms) != n_perms or n_perms < 0:
        raise ValueError(f"n_perms={n_perms!r}: expected a whole number of at least 0")
    if null == "map_shift" and n_perms == 0:
        raise ValueError("null='map_shift' has no analytic p-value; give the number of shifts, such as n_perms=999")
    if null == "map_shift" and (options.covariates or options.log_depth):
        raise ValueError("null='map_shift' takes no covariates; regress them out before, or leave them out")
    if null != "map_shift" and options.layout_key is not None:
        raise ValueError(f"layout_key={options.layout_key!r} belongs to null='map_shift', got null={null!r}")
    if sparkx and null != "map_shift" and n_perms:
        raise ValueError(f"method='sparkx' has analytic p-values under null={null!r}; leave n_perms at 0")
    if (sparkx or null == "map_shift") and options.alternative != "greater":
        raise ValueError(f"alternative={options.alternative!r}: SPARK-X and map shifts have no direction; leave it out")
    if not sparkx and not n_perms and (null == "within_type" or options.covariates or options.log_depth):
        raise ValueError(
            "null='within_type', covariates and log_depth have no analytic p-value for Moran's I and Geary's C; give "
            "n_perms, such as n_perms=999"
        )
    return adjust


def _conditioning(table: Table, values: Any, options: _Options, notes: dict[str, Any]) -> tuple[Any, Any]:
    """Design (n, p) and strata (n,), None each where nothing is regressed out or all rows are alike."""
    design, strata = [], None
    if options.null == "within_type":
        types, source = _design.type_columns(table, options.cell_type_key)
        depth, depth_source = _design.log_depth(table, values, layer=options.layer, depth_key=options.depth_key)
        columns, strata = _design.within_type(types, depth)
        design.append(columns)
        notes |= {
            "types": source,
            "depth": depth_source,
            "n_types": int((types.sum(axis=0) > 0).sum()),
            "n_without_type": int((types.sum(axis=1) == 0).sum()),
            "n_strata": len(np.unique(strata)),
        }
    elif options.log_depth:
        depth, notes["depth"] = _design.log_depth(table, values, layer=options.layer, depth_key=options.depth_key)
        design.append(depth[:, None])
    if options.covariates:
        design.append(_design.covariate_columns(table, options.covariates))
        notes["covariates"] = ", ".join(
            [options.covariates] if isinstance(options.covariates, str) else options.covariates
        )
    return (np.column_stack(design) if design else None), strata


def _autocorrelation(table: Table, values: Any, chosen: Any, found: Any, options: _Options) -> _Result:
    from ghistpy.stats.quadratic_form import row_standardised
    from ghistpy.stats.spatial_autocorrelation import MIN_POSITIVE, autocorrelation_test

    notes: dict[str, Any] = dict(found.notes)
    design, strata = _conditioning(table, values, options, notes)
    shifted = options.null == "map_shift"
    withheld = table.in_silico and not shifted
    n_perms = 0 if shifted else options.n_perms
    if withheld and n_perms:
        n_perms = int(design is not None)  # p-values would be withheld; the score of residuals asks for one
    tested = autocorrelation_test(
        chosen,
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
    if not options.n_perms and not withheld:
        few = ~tested.constant & (tested.n_positive < MIN_POSITIVE)
        notes["n_genes_too_sparse"] = int(few.sum())
        if few.any():
            logger.warning(
                "%d of %d genes of %s are positive in fewer than %d cells: their analytic p-values do not hold and are "
                "NaN; give n_perms, such as n_perms=999",
                few.sum(), len(few), table.label, MIN_POSITIVE,
            )  # fmt: skip
    best_low = (options.method == "geary") != (options.alternative == "less")
    score_rank = options.alternative == "two-sided"
    if score_rank:
        notes["ranked_by"] = "distance of the score from its expectation"
    return _Result(tested.score, tested.pval, best_low, notes | ({"_expected": tested.expected} if score_rank else {}))


def _sparkx(table: Table, values: Any, chosen: Any, found: Any, options: _Options) -> _Result:
    from ghistpy.stats.coordinate_tests import sparkx

    notes: dict[str, Any] = {}
    if found is not None:
        notes |= found.notes
    if table.units not in (None, _keys.UNITS_COUNTS) and options.layer is None:
        notes["note"] = f"SPARK-X was made for counts; X holds {table.units}, on which it runs as it does on counts"
    design, _ = _conditioning(table, values, options, notes)
    tested = sparkx(chosen, coordinates(table), covariates=design)
    notes |= {
        "n_cells_without_counts": int((~tested.kept).sum()),
        "n_empty_genes": tested.n_empty_genes,
        "n_constant_genes": tested.n_constant_genes,
    }
    return _Result(-tested.log_p / np.log(10), tested.pval, False, notes)


def _map_shift(table: Table, chosen: Any, found: Any, options: _Options, result: _Result) -> None:
    from ghistpy.stats.coordinate_tests import coordinate_kernels
    from ghistpy.stats.map_shift import map_shift_test
    from ghistpy.tl._table import regions

    if regions(table) is not None:
        raise ValueError(f"null='map_shift': {table.label} annotates several elements; test one slide at a time")
    xy = coordinates(table)
    if options.layout_key is None:
        layout, source = coordinate_kernels(xy), "SPARK-X's functions of the coordinates"
    else:
        layout = [_design.layout_columns(table, options.layout_key, found.weights)]
        source = options.layout_key
    shifted = map_shift_test(chosen, xy, layout, n_shifts=options.n_perms, seed=options.seed, progress=options.bar)
    result.pval = np.where(np.isnan(result.score), np.nan, shifted.pval)
    result.notes |= {"layout": source, "n_shifts_redrawn": shifted.n_redrawn}


def _write(
    table: Table, columns: np.ndarray, result: _Result, found: Any, options: _Options, adjust: str, key: str
) -> None:
    from ghistpy import __version__
    from ghistpy.stats.multiple import adjust_pvalues

    withheld = table.in_silico and options.null != "map_shift"
    if withheld:
        result.pval = np.full(len(columns), np.nan)
        logger.warning("%s: p-values are withheld. %s", table.label, _WITHHELD)
    var = table.adata.var
    for name, part in (
        ("score", result.score),
        ("pval", result.pval),
        ("pval_adj", adjust_pvalues(result.pval, adjust)),
        ("rank", _rank(result)),
    ):
        column = np.full(table.adata.n_vars, np.nan)
        column[columns] = part
        var[f"{key}_{name}"] = column
    result.notes.pop("_expected", None)
    table.adata.uns[key] = {
        "method": options.method,
        "null": options.null,
        "n_perms": int(options.n_perms),
        "alternative": options.alternative,
        "adjust": adjust,
        "claim": "none: p-values are withheld" if withheld else _CLAIMS[options.null],
        "withheld": _WITHHELD if withheld else "",
        "layer": options.layer or "X",
        "units": (table.units or "unknown") if options.layer is None else "unknown",
        "seed": int(options.seed),
        "n_genes": len(columns),
        "n_genes_without_pval": int(np.isnan(result.pval).sum()),
        "version": __version__,
        **result.notes,
    }


def _rank(result: _Result) -> np.ndarray:
    """1 = best score, ties in the order of the genes; NaN without a score."""
    score = result.score
    if "_expected" in result.notes:
        order_by = -np.abs(score - result.notes["_expected"])
    else:
        order_by = score if result.best_low else -score
    rank = np.full(len(score), np.nan)
    known = np.flatnonzero(~np.isnan(score))
    rank[known[np.argsort(order_by[known], kind="stable")]] = np.arange(1, len(known) + 1)
    return rank
