"""Spatially variable genes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl import _svg
from ghistpy.tl._notes import check_key
from ghistpy.tl._table import Table, expression, gene_columns, neighbours, resolve_table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("ghistpy")

_METHODS = ("moran", "geary", "sparkx")
_NULLS = ("values", "within_type", *_svg.LAYOUT_NULLS)
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
    "variogram": (
        "The map follows the layout more closely than a stationary map as smooth as itself does. Smoothness alone "
        "does not do this, unless it reaches further than about a fifth of the slide."
    ),
}
_WITHHELD = (
    "The table is predicted from H&E. A predictor reads overlapping windows, so its values are smooth whatever the "
    "gene does, and every p-value that permutes values would be next to 0. Rank genes by their score, or use "
    "null='variogram', or null='map_shift', n_perms=999."
)


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
        curve, and only for genes that are positive in 400 cells or more and whose variance is not that of a few
        outliers (the others get NaN, counted).
        Otherwise the number of permutations or map shifts; p is then never below 1 / (n_perms + 1) (two-sided
        2 / (n_perms + 1)).
    null
        What the p-value speaks against.

        ``"values"``
            values are exchangeable between cells. Withheld (NaN) for in-silico tables, whose values are
            smooth by construction.
        ``"within_type"``
            given cell types and depth, values are exchangeable within a type: probabilities of the types
            (``obsm["cell_type_proba"]``, else indicators of ``cell_type_key``), log depth, its square and cube
            and its products with the types are regressed out, and residuals are permuted within type and
            depth (SPARK-X: regressed out only). Counts enter as log1p. It claims nothing beyond the labels:
            where a fifth of them are wrong, most genes of high expression are rejected. So are genes that
            make up much of the counts that the depth is known from. Withheld for in-silico tables.
        ``"variogram"``
            the map of the gene is a stationary map unrelated to the layout of the slide, as smooth as the
            gene is seen to be (:func:`ghistpy.stats.variogram_test`; analytic). The layout are SPARK-X's
            functions of the coordinates, or ``layout_key``. The score remains that of the method. The
            p-value for in-silico tables.
        ``"map_shift"``
            the same question without a model of the map: copies of the layout are shifted on a torus, the
            slide continued by its mirror images. Finds less, above all where the slide is no rectangle.
    alternative
        ``"greater"``: neighbours more alike than under the null; ``"less"``, ``"two-sided"``. SPARK-X and tests of
        a layout have no direction.
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
        Regress out the log of the depth, its square and cube too: raw counts of large cells are high, and large
        cells lie together. Counts then enter as log1p.
    depth_key
        Column of ``obs`` with the counts of a cell; None = ``obs["total"]``, else the sum over genes.
    layout_key
        Layout for ``"variogram"`` and ``"map_shift"``: a column of ``obs`` (numbers as they are, categories as
        their shares among the neighbours) or an ``obsm``.
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

    A table that annotates several elements (slides) is tested within them: values minus the mean of their
    slide, permuted within it, so that levels that differ between slides are no pattern; this needs
    ``n_perms``. SPARK-X and tests of a layout take one slide at a time.

    SPARK-X leaves out cells without any count in the table and, as the original, depends on how the slide is
    turned.

    References
    ----------
    Moran, Biometrika 37:17 (1950), doi:10.2307/2332142. Geary, The Incorporated Statistician 5:115 (1954),
    doi:10.2307/2986645. Zhu, Sun and Zhou, Genome Biology 22:184 (2021), doi:10.1186/s13059-021-02404-0.

    Raises
    ------
    ValueError
        Unknown table, layer, genes, method, null or key; no gene; values that are NaN or infinite; fewer than
        4 rows; a graph of another table; a null that needs permutations without them; several slides where
        one is needed; log depth of values that are no counts; types that are missing everywhere or
        probabilities that are not finite.

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
    options = _svg.Options(
        method, null, n_perms, alternative, layer, cell_type_key, covariates, log_depth, depth_key, layout_key, seed,
        n_jobs, progress,
    )  # fmt: skip
    adjust = _check(options, adjust)
    check_key(key_added)
    table = resolve_table(adata_or_sdata, table_key)
    columns = gene_columns(table, genes)
    _svg.check_regions(table, options)
    values = expression(table, layer=layer)
    needs_graph = method != "sparkx" or layout_key is not None
    found = neighbours(table, graph=graph, n_neighbors=n_neighbors, radius=radius) if needs_graph else None
    run = _svg.sparkx if method == "sparkx" else _svg.autocorrelation
    result = run(table, values, columns, found, options)
    if options.of_layout:
        _svg.follow_layout(table, values, columns, found, options, result)
    _write(table, columns, result, options, adjust, key_added)


def _check(options: _svg.Options, adjust: str | None) -> str:
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
    if options.of_layout and (options.covariates or options.log_depth):
        raise ValueError(f"null={options.null!r} takes no covariates; regress them out before, or leave them out")
    _check_permutations(options)
    if not options.of_layout and options.layout_key is not None:
        raise ValueError(
            f"layout_key={options.layout_key!r} belongs to null='map_shift' and 'variogram', got null={options.null!r}"
        )
    if (options.method == "sparkx" or options.of_layout) and options.alternative != "greater":
        raise ValueError(
            f"alternative={options.alternative!r}: SPARK-X and tests of a layout have no direction; leave it out"
        )
    return adjust


def _check_permutations(options: _svg.Options) -> None:
    n_perms, null, sparkx = options.n_perms, options.null, options.method == "sparkx"
    if isinstance(n_perms, bool) or not isinstance(n_perms, Integral) or n_perms < 0:
        raise ValueError(f"n_perms={n_perms!r}: expected a whole number of at least 0")
    if null == "map_shift" and n_perms == 0:
        raise ValueError("null='map_shift' has no analytic p-value; give the number of shifts, such as n_perms=999")
    if n_perms and (null == "variogram" or (sparkx and null != "map_shift")):
        raise ValueError(f"method={options.method!r} has analytic p-values under null={null!r}; leave n_perms at 0")
    if not sparkx and not n_perms and (null == "within_type" or options.covariates or options.log_depth):
        raise ValueError(
            "null='within_type', covariates and log_depth have no analytic p-value for Moran's I and Geary's C; give "
            "n_perms, such as n_perms=999"
        )


def _write(
    table: Table, columns: np.ndarray, result: _svg.Result, options: _svg.Options, adjust: str, key: str
) -> None:
    from ghistpy import __version__
    from ghistpy.stats.multiple import adjust_pvalues

    withheld = table.in_silico and not options.of_layout
    if withheld:
        result.pval = np.full(len(columns), np.nan)
        logger.warning("%s: p-values are withheld. %s", table.label, _WITHHELD)
    var = table.adata.var
    for name, part in (
        ("score", result.score),
        ("pval", result.pval),
        ("pval_adj", adjust_pvalues(result.pval, adjust)),
        ("rank", _rank(result.order)),
    ):
        column = np.full(table.adata.n_vars, np.nan)
        column[columns] = part
        var[f"{key}_{name}"] = column
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


def _rank(order: np.ndarray) -> np.ndarray:
    """1 = lowest of ``order``, ties in the order of the genes; NaN stays NaN."""
    rank = np.full(len(order), np.nan)
    known = np.flatnonzero(~np.isnan(order))
    rank[known[np.argsort(order[known], kind="stable")]] = np.arange(1, len(known) + 1)
    return rank
