"""Maps against stationary maps that are as smooth as they are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.special import fdtrc

from ghistpy.stats.coordinate_tests import orthonormal_blocks
from ghistpy.stats.metrics import Matrix
from ghistpy.stats.multiple import cauchy_combination

MIN_TILES = 100
_TILES = 300
_RANGES = (1.0, 2.0, 4.0)  # of the Gaussian covariances, in sides of a tile
_RANK = 1e-10


@dataclass(frozen=True)
class VariogramTest:
    """Result of :func:`variogram_test`.

    Attributes
    ----------
    pval
        (G,) p-values; NaN for genes that do not vary between tiles.
    log_p
        (G,) their natural logarithms.
    variance
        (4, G) variance components: noise, and maps of range 1, 2 and 4 tile sides.
    freedom
        (k, G) degrees of freedom that the variance of each part of the layout was estimated with.
    n_tiles
        Tiles that hold a point.
    side
        Of a tile, µm.
    """

    log_p: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray
    n_tiles: int
    side: float

    @property
    def pval(self) -> np.ndarray:
        """(G,) p-values."""
        return np.exp(self.log_p)


def variogram_test(values: Matrix, coordinates: np.ndarray, layout: list[np.ndarray]) -> VariogramTest:
    """Test whether genes follow a layout more than stationary maps with their variogram do.

    The null hypothesis: the map of a gene is noise plus a stationary Gaussian map that is unrelated to the
    layout and whose range is short against the slide. How smooth it is, is estimated from the gene, so that
    the smoothness of a prediction or of depth is no evidence.

    Parameters
    ----------
    values
        (n, G) expression, dense or sparse, finite.
    coordinates
        (n, 2), µm.
    layout
        Parts of the layout, (n, p) columns each, such as pairs of functions of the coordinates.

    Returns
    -------
    VariogramTest

    Raises
    ------
    ValueError
        Shapes that do not fit, or points in fewer than 100 tiles.

    Notes
    -----
    Points are pooled in about 300 square tiles, as their sums over the square root of their number, so that
    noise has one variance. With Q the columns of the layout and the mean, R = 1 - QQ' and K_j the covariances
    (noise, and exp(-d² / 2 r²) with r of 1, 2 and 4 sides), the components s are the non-negative least squares
    fit of Σ s_j R K_j R to R y y' R: the map that the layout leaves tells how smooth the gene is, and the fit
    accounts for what the layout took. Each part with orthonormal columns B is tested by the Wald statistic
    y'B (B' Σ s_j K_j B)⁻¹ B'y, with an F distribution whose degrees of freedom follow from the variance of s
    (Satterthwaite). Parts enter a Cauchy combination.

    This is what infinitely many surrogates with the variogram of the gene would say. In simulations with stationary
    maps it rejected 2 to 8 % instead of 5 % and 0 to 3 % instead of 1 %, whatever the shape of the tissue
    (``benchmarks/calibration.py``). Maps with a range above 4 sides (about a fifth of the slide) are beyond what
    one slide can tell from a pattern.

    O(n G + tiles³).

    References
    ----------
    Clifford, Richardson and Hémon, Biometrics 45:123 (1989), doi:10.2307/2532039. Rao, J. Multivar. Anal.
    1:257 (1971), doi:10.1016/0047-259X(71)90001-7 (the fit of s). Satterthwaite, Biometrics Bull. 2:110
    (1946), doi:10.2307/3002019.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> xy = rng.uniform(0, 1000, (1500, 2))
    >>> values = np.column_stack([xy[:, 0] / 500 + rng.normal(size=1500), rng.normal(size=1500)])
    >>> result = variogram_test(values, xy, [xy])
    >>> bool(result.pval[0] < 1e-9), bool(result.pval[1] > 0.05)
    (True, True)
    """
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    xy = np.asarray(coordinates, dtype=np.float64)
    n = values.shape[0]
    if xy.shape != (n, 2) or not layout or any(len(part) != n for part in layout):
        raise ValueError(f"coordinates, layout: expected {n} rows, got {xy.shape} and {[np.shape(p) for p in layout]}")
    tile, side = _tiles(xy)
    count = np.bincount(tile)
    pool = sparse.csr_array((1 / np.sqrt(count[tile]), (tile, np.arange(n))), shape=(len(count), n))
    mean = np.sqrt(count / n)[:, None]
    y = pool @ values
    y = np.asarray(y.toarray() if sparse.issparse(y) else y, dtype=np.float64)
    size = (y**2).sum(axis=0)
    y -= mean @ (mean.T @ y)
    varies = (y**2).sum(axis=0) > 1e-12 * size
    y = y[:, varies]
    blocks = orthonormal_blocks([pool @ part for part in layout], mean)
    kernels = _kernels(pool @ xy / np.sqrt(count)[:, None], count, side)
    variance, spread = _components(y, np.column_stack([mean, *blocks]), kernels)
    tests = [_wald(block, y, kernels, variance, spread) for block in blocks]
    log_p, freedom = (np.stack(rows) for rows in zip(*tests, strict=True))
    log_p = cauchy_combination(log_p) if len(log_p) > 1 else log_p[0]
    return VariogramTest(*(_spread_out(part, varies) for part in (log_p, variance, freedom)), len(count), side)


def _spread_out(part: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """Columns of the genes that vary at their places among all, NaN elsewhere."""
    out = np.full((*part.shape[:-1], len(varies)), np.nan)
    out[..., varies] = part
    return out


def _tiles(xy: np.ndarray) -> tuple[np.ndarray, float]:
    """The tile (n,) of each point and the side of the square tiles, of which about ``_TILES`` hold points."""
    span = np.maximum(np.ptp(xy, axis=0), 1e-12)
    side = np.sqrt(span.prod() / _TILES)
    for _ in range(5):  # a tissue that is no rectangle fills a part of its box only
        column, row = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64).T
        filled, tile = np.unique(column * (row.max() + 1) + row, return_inverse=True)
        if len(filled) >= 0.9 * min(_TILES, len(xy) / 2):
            break
        side *= np.sqrt(max(len(filled), 1) / _TILES)
    if len(filled) < MIN_TILES:
        raise ValueError(
            f"coordinates: {len(xy)} points fill {len(filled)} tiles, a variogram needs {MIN_TILES}; take a larger "
            "part of the slide"
        )
    return tile, float(side)


def _kernels(centre: np.ndarray, count: np.ndarray, side: float) -> np.ndarray:
    """Covariances (4, m, m) of the pooled values: noise, and maps of rising range."""
    squared, weight = cdist(centre, centre, "sqeuclidean"), np.sqrt(np.outer(count, count))
    maps = [weight * np.exp(-squared / (2 * (factor * side) ** 2)) for factor in _RANGES]
    return np.stack([np.eye(len(count)), *maps])


def _components(y: np.ndarray, fixed: np.ndarray, kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance components (4, G) of what ``fixed`` leaves, and their covariances (G, 4, 4)."""
    left, size, _ = np.linalg.svd(fixed, full_matrices=False)
    q = left[:, size > 1e-6 * size[0]]
    e = y - q @ (q.T @ y)
    projected = kernels - q @ (q.T @ kernels)
    projected -= (projected @ q) @ q.T
    flat = projected.reshape(len(kernels), -1)
    gram = flat @ flat.T
    forms = np.stack([np.einsum("ig,ig->g", e, k @ e) for k in projected])
    s = _non_negative(gram, forms)
    # noise of rounding size keeps a gene that the layout explains entirely from dividing by 0
    s[0] = np.maximum(s[0], 1e-12 * (y**2).sum(axis=0) / len(y) + 1e-300)
    products = np.stack([(a @ b).ravel() for a in projected for b in projected])
    fourth = (products @ products.T).reshape((len(kernels),) * 4)  # tr(K_i K_a K_j K_b) at [i, a, b, j]
    forms_cov = 2 * np.einsum("ag,bg,iabj->gij", s, s, fourth)
    free = (s > 0).T
    both = free[:, :, None] & free[:, None, :]
    inverse = both * np.linalg.inv(np.where(both, gram, np.eye(len(kernels))))
    return s, inverse @ forms_cov @ inverse


def _non_negative(gram: np.ndarray, forms: np.ndarray) -> np.ndarray:
    """Minimisers s >= 0 of s' gram s / 2 - forms' s, one per column, by trying all sets of positive components."""
    best, lowest = np.zeros_like(forms), np.zeros(forms.shape[1])
    for k in range(1, len(gram) + 1):
        for chosen in map(list, combinations(range(len(gram)), k)):
            s = np.zeros_like(forms)
            s[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], forms[chosen])
            loss = -0.5 * (s * forms).sum(axis=0)
            better = (s >= 0).all(axis=0) & (loss < lowest)
            best[:, better], lowest[better] = s[:, better], loss[better]
    return best


def _wald(
    block: np.ndarray, y: np.ndarray, kernels: np.ndarray, variance: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Natural log of p (G,) of one part of the layout, and the degrees of freedom of its variance (G,)."""
    p = block.shape[1]
    if not p:
        return np.zeros((2, y.shape[1]))
    on_block = np.einsum("ip,kij,jq->kpq", block, kernels, block, optimize=True)
    a = (block.T @ y).T[:, :, None]
    wald = (a * np.linalg.solve(np.einsum("kg,kpq->gpq", variance, on_block), a)).sum(axis=(1, 2))
    weight = np.trace(on_block, axis1=1, axis2=2)
    freedom = 2 * (weight @ variance) ** 2 / np.einsum("k,gkl,l->g", weight, spread, weight)
    freedom = np.maximum(freedom, 1.0)
    return np.log(np.maximum(fdtrc(p, freedom, wald / p), 1e-300)), freedom
