"""Accuracy of a prediction gene by gene: arrays (observations, genes) in, one value per gene out.

A gene that is constant has no correlation: its value is NaN, never 0, and :func:`summarise` reports
both readings. Matrices may be dense or scipy sparse; genes are widened to float64 block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.special import entr

Matrix = np.ndarray | sparse.spmatrix | sparse.sparray
_BLOCK_VALUES = 2_000_000  # values of one matrix in float64 at once: 16 MB
_LEVELS = 256
_CONSTANT = 1e-9  # range below this share of the largest value: constant up to rounding


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
    """Those genes as a dense float64 array (n, len(columns)), each gene contiguous in memory."""
    block = matrix[:, columns]
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64, order="F")


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


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->j", a, b)


def rank_columns(values: np.ndarray) -> np.ndarray:
    """Ranks 1 … n of every column of a dense block (n, b), tied values share their mean rank.

    Gene by gene on contiguous memory: three times as fast as scipy's rankdata along an axis.
    """
    n = len(values)
    out = np.empty(values.shape, order="F")
    for j in range(values.shape[1]):
        column = np.ascontiguousarray(values[:, j])
        order = np.argsort(column)
        ordered = column[order]
        start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        size = np.diff(start, append=n)
        out[order, j] = np.repeat(start + (size + 1) / 2, size)
    return out


class Columns:
    """A dense block (n, b) of genes with what the metrics need of it, each computed at most once.

    The measured side is compared with many predictions: it keeps its ranks, levels and entropy.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.asarray(values, dtype=np.float64, order="F")
        self.n = len(self.values)

    @cached_property
    def low(self) -> np.ndarray:
        """Smallest value of each gene."""
        return self.values.min(0)

    @cached_property
    def high(self) -> np.ndarray:
        """Largest value of each gene."""
        return self.values.max(0)

    @cached_property
    def constant(self) -> np.ndarray:
        """True where a gene does not vary beyond rounding."""
        return self.high - self.low <= _CONSTANT * np.maximum(np.abs(self.high), np.abs(self.low))

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of each gene."""
        return self.values.mean(0)

    @cached_property
    def centred(self) -> np.ndarray:
        """Values less the mean of their gene."""
        return self.values - self.mean

    @cached_property
    def power(self) -> np.ndarray:
        """Sum of squares about the mean."""
        return _dot(self.centred, self.centred)

    @cached_property
    def ranked(self) -> Columns:
        """Mean ranks in place of values."""
        return Columns(rank_columns(self.values))

    @cached_property
    def levels(self) -> Columns:
        """Divided by the maximum, the range of every gene cut into 256 equal levels, 0 … 255.

        An interval owns its upper end; the lowest value belongs to the lowest level.
        """
        top = np.where(self.high != 0, self.high, np.inf)  # a maximum of 0 makes zeros
        scaled = self.values / top
        low = scaled.min(0)
        step = (scaled.max(0) - low) / _LEVELS
        level = np.ceil((scaled - low) / np.where(step > 0, step, 1.0)) - 1
        return Columns(np.clip(level, 0, _LEVELS - 1))

    @cached_property
    def share(self) -> np.ndarray:
        """The observations as a distribution: clipped at 0, uniform where all are 0."""
        values = np.maximum(self.values, 0.0)
        total = values.sum(0)
        return np.where(total > 0, values, 1.0) / np.where(total > 0, total, float(self.n))

    @cached_property
    def share_entropy(self) -> np.ndarray:
        """Entropy of ``share`` in nats."""
        return entr(self.share).sum(0)

    @cached_property
    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Equal-frequency bins from mean ranks, so tied values share one, and their entropy."""
        k = n_bins(self.n)
        bins = np.minimum(((self.ranked.values - 0.5) * (k / self.n)).astype(np.int64), k - 1)
        return bins, np.array([_entropy(np.bincount(bins[:, j])) for j in range(bins.shape[1])])


def n_bins(n: int) -> int:
    """max(10, n^⅓), without falling below an exact cube by rounding."""
    return max(10, int(np.floor(n ** (1 / 3) + 1e-9)))


def _entropy(counts: np.ndarray) -> float:
    return float(entr(counts / counts.sum()).sum())


def correlate(a: Columns, b: Columns) -> np.ndarray:
    """Pearson correlation of the genes of two blocks; NaN where one is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(_dot(a.centred, b.centred) / np.sqrt(a.power) / np.sqrt(b.power), -1.0, 1.0)
    return np.where(a.constant | b.constant, np.nan, r)


def _rmse(t: Columns, p: Columns) -> np.ndarray:
    error = t.values - p.values
    return np.sqrt(_dot(error, error) / t.n)


def _nrmse(t: Columns, p: Columns, scale: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(t.constant, np.nan, _rmse(t, p) / scale)


def _ssim(t: Columns, p: Columns) -> np.ndarray:
    a, b, n = t.levels, p.levels, max(t.n - 1, 1)
    c1, c2 = (0.01 * (_LEVELS - 1)) ** 2, (0.03 * (_LEVELS - 1)) ** 2
    cov = _dot(a.centred, b.centred) / n
    brightness = (2 * a.mean * b.mean + c1) / (a.mean**2 + b.mean**2 + c1)
    value = brightness * (2 * cov + c2) / (a.power / n + b.power / n + c2)
    return np.where(t.constant | p.constant, np.nan, value)


def _auc(t: Columns, p: Columns, cutoff: float) -> np.ndarray:
    """Mann-Whitney form: ties of the prediction count one half."""
    positive = (t.values > cutoff).astype(np.float64)
    n1 = positive.sum(0)
    n0 = t.n - n1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (_dot(p.ranked.values, positive) - n1 * (n1 + 1) / 2) / (n1 * n0)


def _js(t: Columns, p: Columns) -> np.ndarray:
    mixed = entr((t.share + p.share) / 2).sum(0)
    return np.clip((mixed - (t.share_entropy + p.share_entropy) / 2) / np.log(2), 0.0, 1.0)


def _mutual_information(t: Columns, p: Columns) -> np.ndarray:
    (bt, ht), (bp, hp), k = t.bins, p.bins, n_bins(t.n)
    joint = np.array([_entropy(np.bincount(bt[:, j] * k + bp[:, j])) for j in range(bt.shape[1])])
    scale = np.sqrt(ht * hp)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-12, np.maximum(ht + hp - joint, 0.0) / scale, np.nan)


_KERNELS: dict[str, Callable[[Columns, Columns], np.ndarray]] = {
    "pearson": correlate,
    "spearman": lambda t, p: correlate(t.ranked, p.ranked),
    "rmse": _rmse,
    "nrmse_range": lambda t, p: _nrmse(t, p, t.high - t.low),
    "nrmse_sd": lambda t, p: _nrmse(t, p, np.sqrt(t.power / max(t.n - 1, 1))),
    "ssim_global": _ssim,
    "auc": lambda t, p: _auc(t, p, 0.0),
    "js_divergence": _js,
    "mutual_information": _mutual_information,
}
METRICS = tuple(_KERNELS)


def block_metrics(
    t: Columns, p: Columns, metrics: Sequence[str] = METRICS, *, cutoff: float = 0.0
) -> dict[str, np.ndarray]:
    """Metrics of two blocks; what one of them has computed before is used again."""
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise ValueError(f"metrics: unknown {unknown}; there are {list(METRICS)}")
    return {m: _auc(t, p, cutoff) if m == "auc" else _KERNELS[m](t, p) for m in metrics}


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
        block_metrics(*(Columns(dense_columns(m, c)) for m in (truth, predicted)), metrics, cutoff=cutoff)
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
