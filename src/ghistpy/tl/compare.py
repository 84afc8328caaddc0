"""Whether the structure of the measured slide is preserved in the predicted one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.tl._notes import check_key, write_frame, write_notes
from ghistpy.tl._table import check_radius, coordinates, regions, resolve_table, whole_number

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ghistpy.get.pairs import Pairs

_PER_GENE = ("morans_i", "nn_correlation", "nn_correlation_within_type")


def compare_tables(
    sdata: SpatialData,
    measured: str = _keys.MEASURED,
    predicted: str = _keys.INSILICO,
    *,
    layer: str | None = None,
    cell_type_key: str = _keys.CELL_TYPE,
    n_neighbors: int = 6,
    radius: float = 50.0,
    moran: str = "knn",
    key_added: str = _keys.COMPARISON,
) -> None:
    """Compare spatial structure of measured and predicted cells: what a correlation per gene cannot see.

    Parameters
    ----------
    sdata
        The slide.
    measured
        Table of raw counts of cells or spots.
    predicted
        Table of predicted nuclei, or of predicted spots when ``measured`` holds spots.
    layer
        Layer of the measured table that holds the counts.
    cell_type_key
        Column of the measured table with its types; predicted types are those of the model.
    n_neighbors
        Neighbours of a cell for Moran's I (row-standardised graph).
    radius
        µm; pairs within it make the interactions of types.
    moran
        ``"knn"``, or ``"all_pairs"`` for weights 1/distance between all cells as scFeatures takes them (up
        to 5,000 cells).
    key_added
        Key in ``uns`` of the predicted table.

    Writes
    ------
    ======================== ==== ========= =======================================================
    key                      slot dtype     meaning
    ======================== ==== ========= =======================================================
    ``key_added``            uns  DataFrame statistic, name (gene or type), partner (second type or ""),
                                            measured, predicted
    ``key_added`` + _summary uns  DataFrame statistic, n, n_nan, pearson, spearman, rmse, median_measured,
                                            median_predicted: agreement over genes or types
    ``key_added`` + _notes   uns  JSON      rows and genes paired and left out, parameters
    ======================== ==== ========= =======================================================

    Statistics: ``morans_i``, ``nn_correlation`` (nearest neighbour), ``nn_correlation_within_type``
    (6 nearest, measured types in the measured and predicted types in the predicted table), ``interaction``
    (share of pairs), ``interaction_log2_ratio`` (over shuffled types), ``composition``. The last four need
    types in both tables.

    Raises
    ------
    ValueError
        Tables that share no rows or genes, counts that are none, no coordinates, a spot table against a
        table of nuclei, a radius that is no positive number, ``"all_pairs"`` over several slides.

    Warns
    -----
    UserWarning
        Coordinates or a radius that are hardly in µm.

    Notes
    -----
    Cells are compared on log1p(count), spots on log1p(1e4 · count / total). Counting noise lowers Moran's I
    and correlations of measured genes, overlapping fields of view raise those of predicted ones: even a
    perfect prediction has larger values than the measured table. The ranking of genes (``spearman``) is
    what can be preserved. No p-values: genes share cells.

    Slides or regions of one table share no neighbours and have means of their own, so that a difference between them
    is no structure; types are expected as if they were shuffled within each.

    Examples
    --------
    >>> import ghistpy as gp
    >>> sdata = gp.datasets.simulate_slide(n_cells=400, n_genes=12)
    >>> measured = sdata["measured"]
    >>> sdata["insilico"] = gp.io.make_table(
    ...     measured.layers["attainable"],
    ...     measured.var_names,
    ...     region="nuclei",
    ...     instance_key="cell_id",
    ...     ids=measured.obs["cell_id"],
    ...     obs={"cell_type": measured.obs["cell_type"]},
    ...     obsm={"spatial": measured.obsm["spatial"]},
    ...     uns={"ghistpy": {"units": "log1p(expected count)"}},
    ... )
    >>> gp.tl.compare_tables(sdata)
    >>> summary = sdata["insilico"].uns["comparison_summary"].set_index("statistic")
    >>> float(summary.loc["composition", "rmse"])
    0.0
    >>> bool(summary.loc["morans_i", "median_predicted"] > summary.loc["morans_i", "median_measured"])
    True
    """
    import pandas as pd

    from ghistpy.get.pairs import pair_tables

    check_key(key_added)
    if moran not in ("knn", "all_pairs"):
        raise ValueError(f"moran={moran!r}: expected 'knn' or 'all_pairs'")
    n_neighbors = whole_number(n_neighbors, "n_neighbors", 1)
    pairs = pair_tables(sdata, measured, predicted, layer=layer, cell_type_key=cell_type_key)
    table = resolve_table(sdata, predicted)
    if pairs.xy is None:
        raise ValueError(f"predicted={predicted!r}: coordinates are {pairs.notes['coordinates']}")
    if len(pairs) < 4:
        raise ValueError(f"measured={measured!r}, predicted={predicted!r}: {len(pairs)} pairs; at least 4 are needed")
    coordinates(table)  # says when they are hardly in µm
    groups = regions(table)
    groups = None if groups is None else np.unique(groups[pairs.predicted_rows], return_inverse=True)[1]
    if groups is not None and moran == "all_pairs":
        raise ValueError(
            f"moran='all_pairs': predicted={predicted!r} holds several slides or regions, between which no distance is "
            "known; use 'knn', or one slide"
        )
    check_radius(f"predicted={predicted!r}", pairs.xy, radius, groups=groups)
    frame, notes = _genes(pairs, groups, n_neighbors, moran)
    types, type_notes = _types(pairs, groups, radius)
    frame = pd.concat([frame, *types])
    write_frame(table, key_added, frame)
    write_frame(table, f"{key_added}_summary", _summary(frame))
    parameters = {"measured": measured, "layer": layer, "n_neighbors": n_neighbors, "radius_um": radius, "moran": moran}
    write_notes(table, key_added, {**pairs.notes, **notes, **type_notes, **parameters})


def _genes(
    pairs: Pairs, groups: np.ndarray | None, n_neighbors: int, moran: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Statistics per gene of both sides, block by block."""
    import pandas as pd

    from ghistpy import stats
    from ghistpy.geometry.graph import knn_graph
    from ghistpy.stats.metrics import column_blocks, dense_columns

    graph = knn_graph(pairs.xy, min(n_neighbors, len(pairs) - 1), groups=groups)
    nearest = knn_graph(pairs.xy, 1, groups=groups).weights
    within = [_within(graph.weights, labels) for labels in (pairs.measured_type, pairs.predicted_type)]
    row_standardised = stats.row_standardised(graph.weights)
    found: dict[str, list[list[np.ndarray]]] = {name: [[], []] for name in _PER_GENE}
    for columns in column_blocks(len(pairs), len(pairs.genes)):
        for side, block in enumerate((dense_columns(pairs.truth, columns), pairs.predicted(columns))):
            block = _about_own_mean(block, groups)
            if moran == "knn":
                found["morans_i"][side].append(stats.morans_i(block, row_standardised))
            else:
                found["morans_i"][side].append(stats.morans_i_all_pairs(block, pairs.xy))
            found["nn_correlation"][side].append(stats.neighbor_correlation(block, nearest).value)
            if within[side] is not None:
                edges, codes = within[side]
                value = stats.neighbor_correlation(block, edges, strata=codes).value
                found["nn_correlation_within_type"][side].append(value)
    frames, left_out = [], {}
    for name, sides in found.items():
        if not all(sides):
            continue
        values = [np.concatenate(side) for side in sides]
        frames.append(_rows(name, pairs.genes, "", *values))
        left_out[name] = int(np.isnan(values).any(axis=0).sum())
    n_slides = 1 if groups is None else int(groups.max()) + 1
    notes = {"n_genes_without_value": left_out, "n_duplicates": graph.n_duplicates, "n_slides": n_slides}
    return pd.concat(frames), notes


def _about_own_mean(block: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Values less the mean of their slide, so that slides that differ are no structure."""
    if groups is None:
        return block
    slides = np.eye(groups.max() + 1)[groups]
    return block - slides @ ((slides.T @ block) / slides.sum(axis=0)[:, None])


def _within(weights: Any, labels: np.ndarray | None) -> tuple[Any, np.ndarray] | None:
    from ghistpy import stats

    if labels is None:
        return None
    codes, names = _codes(labels)
    return (stats.edges_of_types(weights, codes), codes) if len(names) else None


def _codes(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    import pandas as pd

    column = pd.Categorical(labels)
    return np.asarray(column.codes, np.int64), [str(c) for c in column.categories]


def _types(pairs: Pairs, groups: np.ndarray | None, radius: float) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Composition and interaction over the union of the types of both sides; cells typed on both."""
    from ghistpy import stats
    from ghistpy.geometry.graph import radius_graph

    if pairs.measured_type is None or pairs.predicted_type is None:
        return [], {"cell_types": "not compared: a table has none"}
    kept = np.flatnonzero([a is not None and b is not None for a, b in _both(pairs)])
    if len(kept) < 2:
        return [], {"cell_types": "not compared: no cell has both"}
    names = sorted(set(pairs.measured_type[kept]) | set(pairs.predicted_type[kept]))
    position = {name: i for i, name in enumerate(names)}
    groups = None if groups is None else groups[kept]
    near = stats.pairs_of_graph(radius_graph(pairs.xy[kept], radius, groups=groups).weights)
    shares, results = [], []
    for labels in (pairs.measured_type, pairs.predicted_type):
        codes = np.array([position[name] for name in labels[kept]])
        shares.append(stats.type_counts(codes, len(names))[0] / len(kept))
        results.append(stats.cell_type_interaction(codes, len(names), near, groups=groups))
    labels = np.array(names, dtype=object)
    first, second = labels[results[0].first], labels[results[0].second]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [np.log2(r.fraction / r.expected) for r in results]
    ratios = [np.where(np.isfinite(r), r, np.nan) for r in ratios]
    frames = [
        _rows("interaction", first, second, results[0].fraction, results[1].fraction),
        _rows("interaction_log2_ratio", first, second, *ratios),
        _rows("composition", labels, "", *shares),
    ]
    notes = {"cell_types": names, "n_without_types": int(len(pairs) - len(kept)), "n_neighbour_pairs": len(near)}
    return frames, notes


def _both(pairs: Pairs) -> Any:
    return zip(pairs.measured_type, pairs.predicted_type, strict=True)


def _rows(statistic: str, name: Any, partner: Any, measured: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    columns = {"statistic": statistic, "name": name, "partner": partner, "measured": measured, "predicted": predicted}
    return pd.DataFrame(columns).astype({"statistic": object, "name": object, "partner": object})


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    from ghistpy import stats

    rows = []
    for statistic, part in frame.groupby("statistic", sort=False):
        values = part[["measured", "predicted"]].to_numpy(dtype=float)
        kept = values[np.isfinite(values).all(axis=1)]
        scores = dict.fromkeys(("pearson", "spearman", "rmse"), np.nan)
        if len(kept):
            found = stats.gene_metrics(kept[:, :1], kept[:, 1:], list(scores))
            scores = {m: float(v[0]) for m, v in found.items()}
        medians = np.median(kept, axis=0) if len(kept) else [np.nan, np.nan]
        rows.append(
            {
                "statistic": statistic,
                "n": len(kept),
                "n_nan": len(values) - len(kept),
                **scores,
                "median_measured": float(medians[0]),
                "median_predicted": float(medians[1]),
            }
        )
    return pd.DataFrame(rows)
