"""Transcripts into counts per nucleus."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

    from ghistpy.geometry import ArraySource
    from ghistpy.geometry.nuclei import Nuclei

_log = logging.getLogger("ghistpy")

# names of probes that stand for no gene: Xenium, CosMx, MERSCOPE
CONTROLS = (
    r"^(NegControl|NegPrb|Negative|antisense|UnassignedCodeword|DeprecatedCodeword|Intergenic|"
    r"GenomicControl|BLANK|Blank|SystemControl|FalseCode)"
)
_TILE_PX = 1024


def assign_transcripts(
    sdata: SpatialData,
    *,
    points_key: str = _keys.TRANSCRIPTS,
    labels_key: str = _keys.LABELS,
    key_added: str = _keys.MEASURED,
    min_quality: float | None = 20,
    expansion_um: float = 0.0,
    feature_key: str | None = None,
    control_pattern: str | None = CONTROLS,
) -> None:
    """Count the transcripts of every gene in every nucleus, or cell.

    Parameters
    ----------
    sdata
        The slide.
    points_key
        Transcripts with a transformation to ``"microns"``, as :func:`ghistpy.io.read_xenium` makes them.
    labels_key
        Label image of nuclei or cells.
    key_added
        Table to write; one of that name is replaced.
    min_quality
        Transcripts with a smaller ``qv`` are left out; None takes all.
    expansion_um
        A transcript up to this far outside belongs to the nearest nucleus.
    feature_key
        Column of gene names; default: what the points name, else ``feature_name``.
    control_pattern
        Regular expression of names that are no genes. A column ``is_gene`` is heeded as well.

    Writes
    ------
    Table ``key_added``, in memory, one row per label:

    ============ ===== =========== ==================================================================
    key          slot  dtype       meaning
    ============ ===== =========== ==================================================================
    X            X     float32 CSR raw counts, genes in alphabetical order
    cell_id      obs   int64       the label
    region       obs   category    name of the labels
    area_um2     obs   float64     area of the label
    total        obs   float64     counts over all genes
    spatial      obsm  float64     centroid x, y in µm
    ghistpy      uns   dict        ``units``; ``assignment``: JSON with the parameters and the number of
                                   transcripts that were assigned and that were left out, by reason
    ============ ===== =========== ==================================================================

    Raises
    ------
    ValueError
        No such points or labels, no way to µm, transcripts without a name or a finite position, a quality that
        is not there, or most transcripts outside the image. Nothing is written then.

    Notes
    -----
    Every transcript is counted once: assigned + low_quality + control + outside_image + outside_nuclei =
    all. A transcript within reach of several nuclei goes to the one with the nearest pixel. Transcripts are
    read partition by partition, labels window by window.

    Examples
    --------
    >>> import ghistpy as gp, numpy as np, pandas as pd
    >>> from spatialdata.models import PointsModel
    >>> from spatialdata.transformations import Identity
    >>> sdata = gp.datasets.simulate_slide(n_cells=40, n_genes=5)
    >>> x, y = sdata["measured"].obsm["spatial"].T
    >>> frame = pd.DataFrame({"x": x, "y": y, "feature_name": "ACTB", "qv": 30.0})
    >>> sdata.points["transcripts"] = PointsModel.parse(frame, transformations={"microns": Identity()})
    >>> gp.pp.assign_transcripts(sdata, key_added="counted")
    >>> sdata["counted"].X.sum()
    np.float32(40.0)
    """
    from ghistpy.geometry import find_nuclei
    from ghistpy.io import get_element, open_labels
    from ghistpy.io.resolution import element_mpp

    if min_quality is not None and not np.isfinite(min_quality):
        raise ValueError(f"min_quality={min_quality!r}: expected a number, or None to take all transcripts")
    if not (np.isfinite(expansion_um) and expansion_um >= 0):
        raise ValueError(f"expansion_um={expansion_um!r}: expected µm of 0 or more")
    points = get_element(sdata, "points", points_key, "points_key")
    matrix = points_to_microns(points, points_key)
    columns = _columns(points, points_key, feature_key, min_quality)
    labels, mpp = open_labels(sdata, labels_key), element_mpp(sdata, "labels", labels_key, "labels_key")
    nuclei = find_nuclei(labels)
    if not len(nuclei):
        raise ValueError(f"labels_key={labels_key!r} holds no nucleus; segment the image first (pp.segment_nuclei)")
    tally = _Tally(len(nuclei))
    pattern = re.compile(control_pattern) if control_pattern else None
    for part in _partitions(points, columns):
        kept = _kept(part, columns, matrix, pattern, min_quality, labels.shape, mpp, tally, points_key)
        rows = _rows_of(kept.xy_px, labels, nuclei, expansion_um / mpp)
        tally.add(rows, kept.gene, kept.names)
    _check_inside(tally, points_key, labels.shape, mpp)
    table = _table(tally, nuclei, mpp, labels_key)
    report = tally.report() | {"points_key": points_key, "min_quality": min_quality, "expansion_um": expansion_um}
    table.uns[_keys.UNS]["assignment"] = json.dumps(report)
    if key_added in sdata.tables:
        _log.info("table %r replaced in memory", key_added)
        del sdata.tables[key_added]
    sdata.tables[key_added] = table
    _log.info("table %r: %d nuclei x %d genes; transcripts: %s", key_added, *table.shape, tally.report())


def points_to_microns(points: Any, points_key: str) -> np.ndarray:
    """(3, 3) affine matrix from the x, y of a points element to µm."""
    from spatialdata.transformations import get_transformation

    known = get_transformation(points, get_all=True)
    if _keys.MICRONS not in known:
        raise ValueError(
            f"points_key={points_key!r} has no transformation to {_keys.MICRONS!r} (there are {sorted(known)}); set "
            "one with spatialdata.transformations.set_transformation: Identity() when its x and y are µm of this image"
        )
    matrix = np.asarray(known[_keys.MICRONS].to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError(f"points_key={points_key!r}: its transformation to {_keys.MICRONS!r} is singular: {matrix}")
    return matrix


@dataclass(frozen=True)
class _Columns:
    feature: str
    quality: str | None
    is_gene: str | None

    def names(self) -> list[str]:
        return ["x", "y", self.feature, *(c for c in (self.quality, self.is_gene) if c)]


def _columns(points: Any, points_key: str, feature_key: str | None, min_quality: float | None) -> _Columns:
    found = [str(c) for c in points.columns]
    feature = feature_key or points.attrs.get("spatialdata_attrs", {}).get("feature_key") or "feature_name"
    if feature not in found:
        raise ValueError(
            f"points_key={points_key!r} has no column {feature!r} with gene names (there are {found}); pass "
            "feature_key="
        )
    if min_quality is not None and "qv" not in found:
        raise ValueError(
            f"min_quality={min_quality:g}: points_key={points_key!r} has no column 'qv' (there are {found}); pass "
            "min_quality=None to take all transcripts"
        )
    return _Columns(feature, "qv" if min_quality is not None else None, "is_gene" if "is_gene" in found else None)


def _partitions(points: Any, columns: _Columns) -> Any:
    """Pandas frames of the columns that are needed, one partition after the other."""
    for part in points[columns.names()].partitions:
        yield part.compute()


@dataclass
class _Tally:
    """Counts as they come in; names of genes in order of appearance."""

    n_nuclei: int
    left_out: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("low_quality", "control", "outside_image", "outside_nuclei"), 0)
    )
    total: int = 0
    assigned: int = 0
    genes: dict[str, int] = field(default_factory=dict)
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, rows: np.ndarray, gene: np.ndarray, names: np.ndarray) -> None:
        """Rows (m,) of nuclei, -1 = none, and codes (m,) into ``names``."""
        # a gene that is only seen between nuclei is still a gene of the assay
        code = np.array([self.genes.setdefault(str(n), len(self.genes)) for n in names], dtype=np.int64)
        hit = rows >= 0
        self.left_out["outside_nuclei"] += int((~hit).sum())
        self.assigned += int(hit.sum())
        if hit.any():
            pair, n = np.unique(np.stack([rows[hit], code[gene[hit]]]), axis=1, return_counts=True)
            self.chunks.append((pair[0], pair[1], n))

    def report(self) -> dict[str, int]:
        """All transcripts, assigned ones, and those left out by reason."""
        return {"transcripts": self.total, "assigned": self.assigned, **self.left_out}

    def matrix(self) -> tuple[csr_matrix, np.ndarray]:
        """Counts (nuclei, genes) and gene names, alphabetical."""
        from scipy.sparse import coo_matrix

        names = np.array(list(self.genes), dtype=object)
        order = np.argsort(names.astype(str))
        rank = np.empty(len(names), dtype=np.int64)
        rank[order] = np.arange(len(names))
        rows, columns, n = (np.concatenate(p) if p else np.zeros(0, np.int64) for p in _transpose(self.chunks))
        shape = (self.n_nuclei, len(names))
        return coo_matrix((n.astype(np.float32), (rows, rank[columns])), shape=shape).tocsr(), names[order]


def _transpose(chunks: list[tuple[np.ndarray, ...]]) -> list[list[np.ndarray]]:
    return [[chunk[i] for chunk in chunks] for i in range(3)]


@dataclass(frozen=True)
class _Kept:
    """Transcripts that count: pixels (m, 2) x, y, codes (m,) of genes, and the names (k,) they stand for."""

    xy_px: np.ndarray
    gene: np.ndarray
    names: np.ndarray


def _kept(
    part: pd.DataFrame,
    columns: _Columns,
    matrix: np.ndarray,
    controls: re.Pattern[str] | None,
    min_quality: float | None,
    shape: tuple[int, ...],
    mpp: float,
    tally: _Tally,
    points_key: str,
) -> _Kept:
    tally.total += len(part)
    code, names = _gene_codes(part[columns.feature], points_key, columns.feature)
    keep = np.ones(len(part), dtype=bool)
    if columns.quality is not None:
        keep = part[columns.quality].to_numpy(dtype=np.float64) >= min_quality  # NaN is low
        tally.left_out["low_quality"] += int((~keep).sum())
    is_control = np.array([bool(controls and controls.search(name)) for name in names], dtype=bool)
    control = is_control[code] if len(names) else np.zeros(len(part), dtype=bool)
    if columns.is_gene is not None:
        control = control | ~part[columns.is_gene].to_numpy(dtype=bool)
    tally.left_out["control"] += int((keep & control).sum())
    keep &= ~control
    xy = part[["x", "y"]].to_numpy(dtype=np.float64)
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy)).any(axis=1).sum())
        raise ValueError(f"points_key={points_key!r}: {bad} transcripts have no finite x and y; leave them out")
    px = np.floor((xy @ matrix[:2, :2].T + matrix[:2, 2]) / mpp)
    inside = ((px >= 0) & (px < [shape[1], shape[0]])).all(axis=1)
    tally.left_out["outside_image"] += int((keep & ~inside).sum())
    keep &= inside
    used, gene = np.unique(code[keep], return_inverse=True)
    return _Kept(px[keep].astype(np.int64), gene, names[used])


def _gene_codes(feature: pd.Series, points_key: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) and names (k,); every transcript has a name."""
    import pandas as pd

    if isinstance(feature.dtype, pd.CategoricalDtype):
        code, names = feature.cat.codes.to_numpy(np.int64), feature.cat.categories.to_numpy()
    else:
        code, names = pd.factorize(feature.to_numpy())
    names = np.array([n.decode() if isinstance(n, bytes) else str(n) for n in names], dtype=object)
    empty = np.array([not n.strip() or n.strip().lower() in ("nan", "none", "<na>") for n in names], dtype=bool)
    nameless = (code < 0) | (empty[np.maximum(code, 0)] if len(names) else True)
    if nameless.any():
        raise ValueError(
            f"points_key={points_key!r}: {int(nameless.sum())} transcripts have no gene name in column {column!r}; "
            "name or remove them where the file was made"
        )
    return code, names


def _rows_of(xy_px: np.ndarray, labels: ArraySource, nuclei: Nuclei, reach_px: float) -> np.ndarray:
    """Row (m,) of the nucleus under each pixel, or within reach of it; -1 = none."""
    from ghistpy.geometry import Window
    from ghistpy.geometry.nuclei import as_int64

    out = np.full(len(xy_px), -1, dtype=np.int64)
    margin = int(np.ceil(reach_px))
    tiles, index = np.unique(xy_px // _TILE_PX, axis=0, return_inverse=True)
    order = np.argsort(index.ravel(), kind="stable")
    edges = np.searchsorted(index.ravel()[order], np.arange(len(tiles) + 1))
    for (x, y), start, stop in zip(tiles * _TILE_PX, edges[:-1], edges[1:], strict=True):
        here = order[start:stop]
        window = Window(y - margin, x - margin, y + _TILE_PX + margin, x + _TILE_PX + margin).clip(*labels.shape)
        block = as_int64(labels.read(window))
        px, py = (xy_px[here] - [window.x0, window.y0]).T
        out[here] = nuclei.index_of(_nearest(block, px, py, reach_px))
    return out


def _nearest(block: np.ndarray, px: np.ndarray, py: np.ndarray, reach_px: float) -> np.ndarray:
    """Label under each pixel, else the nearest one within reach, else 0."""
    from scipy.ndimage import distance_transform_edt

    found = block[py, px]
    if reach_px <= 0 or not block.any() or found.all():
        return found
    distance, (near_y, near_x) = distance_transform_edt(block == 0, return_indices=True)
    expanded = np.where(distance[py, px] <= reach_px, block[near_y[py, px], near_x[py, px]], 0)
    return np.where(found > 0, found, expanded)


def _check_inside(tally: _Tally, points_key: str, shape: tuple[int, ...], mpp: float) -> None:
    if not tally.total:
        raise ValueError(f"points_key={points_key!r} holds no transcript")
    outside = tally.left_out["outside_image"]
    located = outside + tally.assigned + tally.left_out["outside_nuclei"]
    if located and outside > 0.5 * located:
        raise ValueError(
            f"points_key={points_key!r}: {outside} of {located} transcripts lie outside the labels, which span "
            f"{shape[1] * mpp:.0f} x {shape[0] * mpp:.0f} µm; its transformation to {_keys.MICRONS!r} is wrong, or x "
            "and "
            "y are swapped (pp.align_landmarks sets another)"
        )
    if not located:
        raise ValueError(f"points_key={points_key!r}: no transcript is left, all were left out: {tally.report()}")


def _table(tally: _Tally, nuclei: Nuclei, mpp: float, labels_key: str) -> AnnData:
    from ghistpy.io import make_table

    counts, genes = tally.matrix()
    return make_table(
        counts,
        genes,
        region=labels_key,
        instance_key=_keys.CELL_ID,
        ids=nuclei.ids,
        obs={
            _keys.AREA_UM2: nuclei.area_px * mpp**2,
            _keys.TOTAL: np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(),
        },
        obsm={_keys.SPATIAL: nuclei.centroid_px[:, ::-1] * mpp},
        uns={_keys.UNS: {"units": _keys.UNITS_COUNTS}},
    )
