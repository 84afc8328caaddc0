"""Accuracy of a prediction gene by gene: arrays (observations, genes) in, one value per gene out.

A gene that is constant has no correlation: its value is NaN, never 0, and :func:`summarise` reports
both readings. Matrices may be dense or scipy sparse; genes are widened to float64 block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

Matrix = np.ndarray | sparse.spmatrix | sparse.sparray
_BLOCK_VALUES = 4_000_000  # values of one matrix in float64 at once: 32 MB
_LEVELS = 256
_CONSTANT = 1e-9  # standard deviation below this share of the largest value: constant up to rounding


@dataclass(frozen=True)
class Summary:
    """Values of many genes in a few numbers; ``*_nan0`` counts a NaN as 0, the others leave it out."""

    n: int
    n_nan: int
    median: float
    mean: float
    q25: float
    q75: float
    median_nan0: float
    mean_nan0: float


def summarise(values: np.ndarray) -> Summary:
    """Median, mean and quartiles of per-gene values, with NaN left out and with NaN as 0.

    Parameters
    ----------
    values
        (G,) one value per gene; NaN where the metric is undefined.

    Examples
    --------
    >>> summarise([0.2, 0.4, float("nan")]).median_nan0
    0.2
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    missing = np.isnan(values)
    kept, filled = values[~missing], np.where(missing, 0.0, values)
    q25, median, q75 = np.quantile(kept, [0.25, 0.5, 0.75]) if len(kept) else [np.nan] * 3
    mean = kept.mean() if len(kept) else np.nan
    median0, mean0 = (np.median(filled), filled.mean()) if len(filled) else (np.nan, np.nan)
    numbers = (float(v) for v in (median, mean, q25, q75, median0, mean0))
    return Summary(len(kept), int(missing.sum()), *numbers)


def column_blocks(n: int, n_genes: int) -> Iterator[np.ndarray]:
    """Index arrays that cut the genes into blocks of bounded memory for ``n`` observations."""
    width = max(1, _BLOCK_VALUES // max(n, 1))
    for start in range(0, n_genes, width):
        yield np.arange(start, min(start + width, n_genes))


def dense_columns(matrix: Matrix, columns: np.ndarray) -> np.ndarray:
    """Those genes as a dense float64 array (n, len(columns))."""
    block = matrix[:, columns]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def check_pair(truth: Matrix, predicted: Matrix) -> tuple[Matrix, Matrix]:
    """Both matrices in a form whose columns can be sliced, or an error naming what is wrong."""
    pair = [m.tocsc() if sparse.issparse(m) else np.asarray(m) for m in (truth, predicted)]
    pair = [m[:, None] if m.ndim == 1 else m for m in pair]
    if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
        raise ValueError(
            f"truth, predicted: expected two (observations, genes) matrices of one shape, "
            f"got {pair[0].shape} and {pair[1].shape}"
        )
    if pair[0].shape[0] == 0:
        raise ValueError("truth: there is no observation, so no metric is defined")
    for name, matrix in zip(("truth", "predicted"), pair, strict=True):
        bad = int((~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)).sum())
        if bad:
            raise ValueError(f"{name}: {bad} values are NaN or infinite; remove those observations or genes first")
    return pair[0], pair[1]


def is_constant(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """True where a gene does not vary beyond rounding."""
    # the deviation from one observation, not from the mean, is exactly 0 for equal values
    first = np.take(values, [0], axis=axis)
    spread = np.sqrt(((values - first) ** 2).mean(axis=axis))
    return spread <= _CONSTANT * np.abs(values).max(axis=axis)


# kernels: dense float64 (n, b) blocks in, (b,) out


def _centre(values: np.ndarray) -> np.ndarray:
    return values - values.mean(0)


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns of two dense blocks; NaN where one is constant."""
    undefined = is_constant(a) | is_constant(b)
    a, b = _centre(a), _centre(b)
    # scaling first keeps products of tiny values away from the underflow
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = a / np.sqrt((a**2).sum(0)), b / np.sqrt((b**2).sum(0))
        r = np.clip((a * b).sum(0), -1.0, 1.0)
    return np.where(undefined, np.nan, r)


def _rmse(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.sqrt(((t - p) ** 2).mean(0))


def _nrmse(t: np.ndarray, p: np.ndarray, by: str) -> np.ndarray:
    if by == "range":
        scale = t.max(0) - t.min(0)
    else:
        scale = t.std(0, ddof=1) if len(t) > 1 else np.zeros(t.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_constant(t), np.nan, _rmse(t, p) / scale)


def _quantise(values: np.ndarray) -> np.ndarray:
    """Divide by the maximum and cut the range of every gene into 256 equal levels, 0 … 255.

    An interval owns its upper end; the lowest value belongs to the lowest level.
    """
    top = values.max(0)
    values = np.divide(values, top, out=np.zeros_like(values), where=top != 0)
    low = values.min(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = np.ceil((values - low) / ((values.max(0) - low) / _LEVELS)) - 1
    return np.clip(level, 0, _LEVELS - 1)


def _ssim(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    undefined = is_constant(t) | is_constant(p)
    with np.errstate(invalid="ignore"):
        t, p = _quantise(t), _quantise(p)
    c1, c2 = (0.01 * (_LEVELS - 1)) ** 2, (0.03 * (_LEVELS - 1)) ** 2
    mt, mp, n = t.mean(0), p.mean(0), max(len(t) - 1, 1)
    vt, vp, cov = ((t - mt) ** 2).sum(0) / n, ((p - mp) ** 2).sum(0) / n, ((t - mt) * (p - mp)).sum(0) / n
    value = (2 * mt * mp + c1) * (2 * cov + c2) / ((mt**2 + mp**2 + c1) * (vt + vp + c2))
    return np.where(undefined, np.nan, value)


def _auc(t: np.ndarray, ranks: np.ndarray, cutoff: float) -> np.ndarray:
    """Mann-Whitney form: ties of the prediction count one half."""
    positive = t > cutoff
    n1 = positive.sum(0).astype(np.float64)
    n0 = len(t) - n1
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * positive).sum(0) - n1 * (n1 + 1) / 2) / (n1 * n0)


def _distribution(values: np.ndarray) -> np.ndarray:
    values = np.maximum(values, 0.0)
    total = values.sum(0)
    return np.divide(values, total, out=np.full_like(values, 1.0 / len(values)), where=total > 0)


def _js(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    t, p = _distribution(t), _distribution(p)
    middle = (t + p) / 2

    def kl(a: np.ndarray) -> np.ndarray:
        ratio = np.divide(a, middle, out=np.ones_like(a), where=a > 0)
        return (a * np.log2(ratio)).sum(0)

    return np.clip((kl(t) + kl(p)) / 2, 0.0, 1.0)


def _bins(ranks: np.ndarray, n_bins: int) -> np.ndarray:
    """Equal-frequency bins from mean ranks, so tied values share a bin."""
    return np.minimum(((ranks - 0.5) * n_bins / len(ranks)).astype(np.int64), n_bins - 1)


def _entropy(counts: np.ndarray, n: int) -> np.ndarray:
    p = counts / n
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)


def _mutual_information(rt: np.ndarray, rp: np.ndarray) -> np.ndarray:
    n, genes = rt.shape
    # rounding up, not down, at exact cubes: 1000 ** (1 / 3) is 9.999…
    k = max(10, int(np.floor(n ** (1 / 3) + 1e-9)))
    t, p, g = _bins(rt, k), _bins(rp, k), np.arange(genes)

    def count(index: np.ndarray, size: int) -> np.ndarray:
        return np.bincount((g * size + index).ravel(), minlength=genes * size).reshape(genes, size)

    ht, hp = _entropy(count(t, k), n), _entropy(count(p, k), n)
    joint = _entropy(count(t * k + p, k * k), n)
    scale = np.sqrt(ht * hp)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-12, np.maximum(ht + hp - joint, 0.0) / scale, np.nan)


_KERNELS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pearson": correlate,
    "rmse": _rmse,
    "nrmse_range": lambda t, p: _nrmse(t, p, "range"),
    "nrmse_sd": lambda t, p: _nrmse(t, p, "sd"),
    "ssim_global": _ssim,
    "js_divergence": _js,
}
_RANKED = ("spearman", "auc", "mutual_information")
METRICS = ("pearson", "spearman", "rmse", "nrmse_range", "nrmse_sd", "ssim_global", "auc", "js_divergence")
METRICS = (*METRICS, "mutual_information")


def block_metrics(
    t: np.ndarray,
    p: np.ndarray,
    metrics: Sequence[str] = METRICS,
    *,
    cutoff: float = 0.0,
    truth_ranks: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of dense float64 blocks (n, b); ranks are computed once for all that need them."""
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise ValueError(f"metrics: unknown {unknown}; there are {list(METRICS)}")
    out = {m: _KERNELS[m](t, p) for m in metrics if m in _KERNELS}
    if any(m in _RANKED for m in metrics):
        rp = rankdata(p, axis=0)
        rt = rankdata(t, axis=0) if truth_ranks is None else truth_ranks
        ranked: dict[str, Callable[[], np.ndarray]] = {
            "spearman": lambda: correlate(rt, rp),
            "auc": lambda: _auc(t, rp, cutoff),
            "mutual_information": lambda: _mutual_information(rt, rp),
        }
        out |= {m: ranked[m]() for m in metrics if m in _RANKED}
    return {m: out[m] for m in metrics}


def gene_metrics(
    truth: Matrix, predicted: Matrix, metrics: Sequence[str] = METRICS, *, cutoff: float = 0.0
) -> dict[str, np.ndarray]:
    """Several metrics of every gene in one pass.

    Parameters
    ----------
    truth, predicted
        (n, G) measured and predicted expression on one scale, dense or scipy sparse, finite.
    metrics
        Any of ``pearson``, ``spearman``, ``rmse``, ``nrmse_range``, ``nrmse_sd``, ``ssim_global``,
        ``auc``, ``js_divergence``, ``mutual_information``.
    cutoff
        ``auc`` asks which observations have truth above it.

    Returns
    -------
    dict of metric to (G,) float64; NaN where the metric is undefined for the gene.

    Raises
    ------
    ValueError
        Shapes disagree, there is no observation, a value is not finite, a metric is unknown.

    Notes
    -----
    O(n log n) per gene for the ranks, O(n) for everything else.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> gene_metrics(truth, truth + 1, ["pearson", "rmse"])
    {'pearson': array([ 1., nan]), 'rmse': array([1., 1.])}
    """
    truth, predicted = check_pair(truth, predicted)
    parts = [
        block_metrics(dense_columns(truth, c), dense_columns(predicted, c), metrics, cutoff=cutoff)
        for c in column_blocks(*truth.shape)
    ]
    return {m: np.concatenate([part[m] for part in parts]) if parts else np.zeros(0) for m in metrics}


def pearson(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Pearson correlation per gene (G,); NaN where truth or prediction is constant."""
    return gene_metrics(truth, predicted, ["pearson"])["pearson"]


def spearman(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Spearman rank correlation per gene (G,), mean ranks for ties; NaN where either is constant."""
    return gene_metrics(truth, predicted, ["spearman"])["spearman"]


def rmse(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Root mean squared error per gene (G,), in the units of the values."""
    return gene_metrics(truth, predicted, ["rmse"])["rmse"]


def nrmse(truth: Matrix, predicted: Matrix, *, by: str = "range") -> np.ndarray:
    """RMSE over the range (``by="range"``) or sample standard deviation (``"sd"``) of the truth (G,)."""
    if by not in ("range", "sd"):
        raise ValueError(f"by: expected 'range' or 'sd', got {by!r}")
    return gene_metrics(truth, predicted, [f"nrmse_{by}"])[f"nrmse_{by}"]


def ssim_global(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Structural similarity of the value distributions per gene (G,); no coordinates enter.

    What the benchmarks of the field call SSIM: each gene is divided by its maximum, its range is cut
    into 256 equal levels, and one global SSIM with sample variances is taken, C1 = (0.01 · 255)²,
    C2 = (0.03 · 255)² (Wang et al. 2004, doi:10.1109/TIP.2003.819861). NaN where either is constant.
    """
    return gene_metrics(truth, predicted, ["ssim_global"])["ssim_global"]


def auc(truth: Matrix, predicted: Matrix, *, cutoff: float = 0.0) -> np.ndarray:
    """Area under the ROC curve of "truth > cutoff" per gene (G,); NaN where one class is empty."""
    return gene_metrics(truth, predicted, ["auc"], cutoff=cutoff)["auc"]


def js_divergence(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Jensen-Shannon divergence in bits per gene (G,), the observations read as a distribution.

    Negative values are clipped at 0; a gene that is all zero becomes the uniform distribution.
    """
    return gene_metrics(truth, predicted, ["js_divergence"])["js_divergence"]


def mutual_information(truth: Matrix, predicted: Matrix) -> np.ndarray:
    """Mutual information over √(H(truth) · H(predicted)) per gene (G,).

    Equal-frequency bins, max(10, n^⅓) of them; tied values share a bin. NaN where either has one bin.
    """
    return gene_metrics(truth, predicted, ["mutual_information"])["mutual_information"]
