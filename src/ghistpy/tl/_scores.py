"""Metrics of every method on every gene, and their summaries, as one long frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy.get.pairs import SPOTS, Pairs
from ghistpy.stats.autocorrelation import block_morans_i, morans_i
from ghistpy.stats.depth import depth_basis, residuals
from ghistpy.stats.metrics import METRICS, Columns, block_metrics, column_blocks, correlate, dense_columns, summarise
from ghistpy.stats.skill import WithinType, block_variance_ratio, mean_squared_error, ratio_skill
from ghistpy.stats.types import composition_agreement, type_agreement
from ghistpy.tl._baselines import Method

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

MODEL = "model"
CEILING = "noise_ceiling"
PREDICTION = "prediction"
REFERENCE = "type_mean"  # what skill is measured against
# a NaN of these reads naturally as "no agreement", so their summaries exist with NaN as 0 too
_ZERO_IF_NAN = (
    "pearson",
    "spearman",
    "ssim_global",
    "mutual_information",
    "pearson_depth_adjusted",
    "within_type_pearson",
)
_N_NEIGHBOURS = 6
COLUMNS = ("level", "name", "method", "source", "metric", "value", "n")


class Scorer:
    """Per-gene metrics for all methods on the same observations."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.basis = depth_basis(pairs.total) if pairs.total is not None else None
        self.types, self.within = _within(pairs)
        self.graph, self.nearest = _graph(pairs.xy)

    def score(self, methods: Sequence[Method]) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
        """Method to metric to (G,) values; method to (C, G) correlations inside each type."""
        parts: dict[str, list[dict[str, np.ndarray]]] = {m.name: [] for m in methods}
        by_type: dict[str, list[np.ndarray]] = {m.name: [] for m in methods}
        for columns in column_blocks(len(self.pairs), len(self.pairs.genes)):
            t = Columns(dense_columns(self.pairs.truth, columns))
            shared = self._of_truth(t)
            error: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            for method in methods:
                p = Columns(method.values(columns, t.values))
                error[method.name] = tuple(mean_squared_error(t.values, p.values, offset=o) for o in (False, True))
                values, types = self._one(t, p, shared)
                parts[method.name].append(values)
                by_type[method.name].append(types)
            if REFERENCE in error:
                for name, own in error.items():
                    pair = zip(("skill", "skill_offset_removed"), own, error[REFERENCE], strict=True)
                    parts[name][-1] |= {key: ratio_skill(a, b) for key, a, b in pair}
        joined = {
            name: {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]} for name, blocks in parts.items()
        }
        return joined, {name: np.concatenate(blocks, axis=1) for name, blocks in by_type.items()}

    def _of_truth(self, t: Columns) -> dict[str, Any]:
        """What all methods need of the truth, computed once a block."""
        shared: dict[str, Any] = {}
        if self.within is not None:
            shared["inside"] = self.within.prepare(t)
        if self.basis is not None:
            shared["residual"] = Columns(residuals(t.values, self.basis))
        if self.graph is not None:
            shared["moran"] = block_morans_i(t, self.graph)
            shared["nn"] = self._neighbour(t)
        return shared

    def _neighbour(self, block: Columns) -> np.ndarray:
        rows, index = self.nearest
        if len(rows) < 2:
            return np.full(block.values.shape[1], np.nan)
        return correlate(Columns(block.values[rows]), Columns(block.values[index]))

    def _one(self, t: Columns, p: Columns, shared: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        out = block_metrics(t, p, METRICS)
        out["variance_ratio"] = block_variance_ratio(t, p)
        types = np.zeros((0, len(t.mean)))
        if self.within is not None:
            out["within_type_pearson"], types = self.within.correlate(shared["inside"], self.within.prepare(p))
        if self.basis is not None:
            out["pearson_depth_adjusted"] = correlate(shared["residual"], Columns(residuals(p.values, self.basis)))
        if self.graph is not None:
            out["morans_i_error"] = block_morans_i(p, self.graph) - shared["moran"]
            out["nn_correlation_error"] = self._neighbour(p) - shared["nn"]
        return out, types


def _within(pairs: Pairs) -> tuple[list[str], WithinType | None]:
    """Types inside which correlation is taken: measured ones when there are any, else predicted ones."""
    import pandas as pd

    labels = pairs.measured_type if pairs.measured_type is not None else pairs.predicted_type
    if pairs.kind == SPOTS or labels is None:
        pairs.notes["within_type"] = "absent: a spot has no one type" if pairs.kind == SPOTS else "absent: no types"
        return [], None
    names = sorted(set(labels.tolist()) - {None})
    codes = pd.Index(names, dtype=object).get_indexer(labels)
    within = WithinType(codes, len(names))
    pairs.notes["within_type"] = "measured types" if pairs.measured_type is not None else "predicted types"
    pairs.notes["n_without_type"] = int((codes < 0).sum())
    pairs.notes["n_in_types_too_small"] = within.n_left_out
    return names, within


def _graph(xy: np.ndarray | None) -> tuple[sparse.csr_array | None, tuple[np.ndarray, np.ndarray]]:
    """Weights of the k nearest neighbours; nearest pairs that are closer than the edge of the field."""
    from scipy import sparse
    from scipy.spatial import KDTree

    empty = np.zeros(0, dtype=np.int64)
    if xy is None or len(xy) < 3:
        return None, (empty, empty)
    n, k = len(xy), min(_N_NEIGHBOURS, len(xy) - 1)
    distance, index = KDTree(xy).query(xy, k=k + 1)
    # of two nuclei in one place either may be listed first: drop oneself wherever one is
    own = index == np.arange(n)[:, None]
    own[:, -1] |= ~own.any(1)
    index, distance = index[~own].reshape(n, k), distance[~own].reshape(n, k)
    weights = sparse.csr_array((np.full(n * k, 1.0 / k), (np.repeat(np.arange(n), k), index.ravel())), shape=(n, n))
    edge = np.minimum(xy - xy.min(0), xy.max(0) - xy).min(1)
    inside = np.flatnonzero(distance[:, 0] <= edge)
    return weights, (inside, index[inside, 0])


def default_gene_sets(pairs: Pairs) -> dict[str, list[str]]:
    """The spatially most structured genes of the slide that is evaluated; for want of training data."""
    graph, _ = _graph(pairs.xy)
    if graph is None:
        return {}
    score = np.nan_to_num(morans_i(pairs.truth, graph), nan=-np.inf)
    order = np.argsort(-score, kind="stable")
    sizes = [n for n in (20, 50, 100) if n < len(order)]
    return {f"top{n} (chosen on the evaluated slide)": pairs.genes[order[:n]].tolist() for n in sizes}


def ceiling_values(pairs: Pairs, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise ceiling per gene from halves of the measured counts."""
    from ghistpy.stats.ceiling import noise_ceiling

    ceiling = noise_ceiling(pairs.counts, total=pairs.total, seed=seed)
    out = {"pearson": ceiling.pearson}
    return out if ceiling.depth_adjusted is None else out | {"pearson_depth_adjusted": ceiling.depth_adjusted}


def _rows(level: str, name: Any, method: str, source: str, metric: Any, value: Any, n: Any) -> pd.DataFrame:
    import pandas as pd

    columns = dict(zip(COLUMNS, (level, name, method, source, metric, value, n), strict=True))
    size = max(np.size(v) for v in (name, metric, value))
    return pd.DataFrame({k: np.full(size, v, dtype=object) if np.ndim(v) == 0 else v for k, v in columns.items()})


def gene_frame(
    genes: np.ndarray, values: Mapping[str, Mapping[str, np.ndarray]], sources: Mapping[str, str], n: int
) -> list[pd.DataFrame]:
    """One row per gene, method and metric."""
    return [
        _rows("gene", genes, method, sources[method], metric, v, n)
        for method, metrics in values.items()
        for metric, v in metrics.items()
    ]


def summary_rows(
    level: str, name: str, values: Mapping[str, Mapping[str, np.ndarray]], sources: Mapping[str, str], index: np.ndarray
) -> list[pd.DataFrame]:
    """Summaries over the genes ``index``: ``metric`` is the median, NaN left out, ``n`` genes enter it."""
    out = []
    for method, metrics in values.items():
        for metric, v in metrics.items():
            s = summarise(v[index])
            rows = {metric: s.median, f"{metric}_mean": s.mean, f"{metric}_n_nan": float(s.n_nan)}
            if metric in _ZERO_IF_NAN:
                rows |= {f"{metric}_median_nan0": s.median_nan0, f"{metric}_mean_nan0": s.mean_nan0}
            out.append(_rows(level, name, method, sources[method], list(rows), list(rows.values()), s.n))
    return out


def type_frames(
    pairs: Pairs, types: Sequence[str], within: Mapping[str, np.ndarray], counts: np.ndarray, sources: Mapping[str, str]
) -> tuple[list[pd.DataFrame], pd.DataFrame | None]:
    """Correlation inside every type, agreement of the types themselves, and the confusion as long frame."""
    rows = []
    for method, table in within.items():
        for i, name in enumerate(types):
            s = summarise(table[i])
            metrics = {"pearson": s.median, "pearson_mean": s.mean, "pearson_n_nan": float(s.n_nan)}
            rows.append(
                _rows("cell_type", name, method, sources[method], list(metrics), list(metrics.values()), int(counts[i]))
            )
    agreement, confusion = _agreement(pairs)
    return rows + agreement, confusion


def _agreement(pairs: Pairs) -> tuple[list[pd.DataFrame], pd.DataFrame | None]:
    import pandas as pd

    truth, guess = pairs.measured_type, pairs.predicted_type
    if pairs.kind == SPOTS or truth is None or guess is None:
        pairs.notes["cell_types"] = "absent: " + (
            "spots" if pairs.kind == SPOTS else "no measured types" if truth is None else "no predicted types"
        )
        return [], None
    both = (truth != None) & (guess != None)  # noqa: E711 elementwise on object arrays
    shared = set(truth[both].tolist()) & set(guess[both].tolist())
    if not shared:
        pairs.notes["cell_types"] = (
            f"absent: measured types {sorted(set(truth[both].tolist()))[:5]} and predicted types "
            f"{sorted(set(guess[both].tolist()))[:5]} have no name in common"
        )
        return [], None
    pairs.notes["cell_types"] = f"compared on {int(both.sum())} of {len(pairs)} cells with both labels"
    result = type_agreement(truth[both].astype(str), guess[both].astype(str))
    measured, predicted = result.confusion.sum(1), result.confusion.sum(0)
    names, n = result.classes.tolist(), int(both.sum())
    composition = composition_agreement(
        dict(zip(names, measured.tolist(), strict=True)), dict(zip(names, predicted.tolist(), strict=True))
    )
    per_class = {
        "f1": result.f1,
        "precision": result.precision,
        "recall": result.recall,
        "proportion_measured": composition.truth,
        "proportion_predicted": composition.predicted,
    }
    rows = [_rows("cell_type", names, MODEL, PREDICTION, metric, v, measured) for metric, v in per_class.items()]
    overall = {
        "accuracy": result.accuracy,
        "macro_f1": result.macro_f1,
        "composition_pearson": composition.pearson,
        "composition_spearman": composition.spearman,
        "composition_rmse": composition.rmse,
    }
    rows.append(_rows("overall", "all", MODEL, PREDICTION, list(overall), list(overall.values()), n))
    c = len(names)
    confusion = pd.DataFrame(
        {"measured": np.repeat(names, c), "predicted": np.tile(names, c), "n": result.confusion.ravel()}
    )
    return rows, confusion


def finish(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One frame with categorical names (small in memory and in a store) and numbers as float and int."""
    import pandas as pd

    out = pd.concat(frames, ignore_index=True)
    for column in ("level", "name", "method", "source", "metric"):
        out[column] = pd.Categorical(out[column].astype(str))
    out["value"] = out["value"].astype(np.float64)
    out["n"] = out["n"].astype(np.int64)
    return out
