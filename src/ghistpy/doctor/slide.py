"""Whether a slide is fit for use, and with a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.doctor.findings import NOTE, OK, PROBLEM, Finding

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ghistpy.models import GHIST

# µm/px in which single nuclei can be seen, and in which slides are scanned at all
_FINE_MPP, _PLAUSIBLE_MPP = 0.7, (0.1, 5.0)
_PLAUSIBLE_AREA = (12.0, 150.0)
# ratio of optical densities beyond which stain counts as unusual
_STAIN_RATIO = 2.0


def check_slide(
    sdata: SpatialData, model: GHIST | None = None, *, image_key: str = _keys.IMAGE, labels_key: str = _keys.LABELS
) -> list[Finding]:
    """Whether a slide can be used, and with a model.

    Parameters
    ----------
    sdata
        The slide; nothing in it is changed.
    model
        A trained model to compare genes, µm/px and stain with.
    image_key, labels_key
        Image and nuclei.

    Returns
    -------
    list of Finding

    Examples
    --------
    >>> import ghistpy as gp
    >>> from ghistpy.doctor import check_slide
    >>> findings = check_slide(gp.datasets.simulate_slide(n_cells=200, n_genes=5))
    >>> [f.topic for f in findings if f.level == "problem"]
    []
    """
    out = list(_image(sdata, image_key))
    usable = not any(f.level == PROBLEM and f.topic in ("image", "µm/px") for f in out)
    out += _labels(sdata, image_key, labels_key, usable)
    for name, table in sdata.tables.items():
        out += _guarded(f"table {name}", lambda name=name, table=table: _table(sdata, name, table))
        if model is not None:
            out += _panel(name, table, model)
        if usable:
            out += _guarded("matching", lambda name=name, table=table: _matching(sdata, name, table, image_key))
    if not sdata.tables:
        out.append(
            Finding(NOTE, "tables", "none", "ghistpy predict writes one; io.read_spots and others bring measured ones")
        )
    if usable:
        out += _guarded("stain", lambda: _stain(sdata, image_key, model))
    if model is not None and usable:
        out += _model_scale(sdata, image_key, model)
    return out


def _guarded(topic: str, check: Callable[[], Iterator[Finding] | list[Finding]]) -> list[Finding]:
    """The findings of a check, or what stopped it: a slide that is damaged must not stop its doctor."""
    try:
        return list(check())
    except (ValueError, KeyError, OSError) as error:
        return [Finding(PROBLEM, topic, str(error), "see the message")]


def _image(sdata: SpatialData, image_key: str) -> Iterator[Finding]:
    from ghistpy.io import get_mpp, open_image
    from ghistpy.io.elements import PYRAMID_ABOVE

    if image_key not in sdata.images:
        text = f"no image {image_key!r} (there are: {', '.join(sdata.images) or 'none'})"
        yield Finding(PROBLEM, "image", text, "read the slide with io.read_slide, or give --image-key")
        return
    try:
        source = open_image(sdata, image_key)
    except ValueError as error:
        yield Finding(PROBLEM, "image", str(error), "read the slide with io.read_slide")
        return
    channels, height, width = source.shape
    plain = channels == 3 and source.dtype == np.uint8
    yield Finding(
        OK if plain else NOTE,
        "image",
        f"{width} x {height} px, {channels} channels of {source.dtype}",
        "" if plain else "it is converted at every reading; io.read_slide writes (3, y, x) uint8 once",
    )
    try:
        mpp = get_mpp(sdata, image_key)
    except ValueError as error:
        yield Finding(PROBLEM, "µm/px", str(error), "read the slide again with io.read_slide(path, mpp=...)")
        return
    yield _resolution(mpp)
    levels = len(getattr(sdata.images[image_key], "children", None) or {}) or 1
    if max(height, width) > PYRAMID_ABOVE and levels == 1:
        text = f"one level for {width} x {height} px: overviews read all of it"
        yield Finding(NOTE, "pyramid", text, "io.read_slide gives an image a pyramid; write the store again")
    else:
        yield Finding(OK, "pyramid", f"{levels} level{'s' if levels > 1 else ''}")


def _resolution(mpp: float) -> Finding:
    low, high = _PLAUSIBLE_MPP
    if not low <= mpp <= high:
        remedy = "correct it: io.read_slide(path, mpp=...); 20x is about 0.5, 40x about 0.25"
        return Finding(PROBLEM, "µm/px", f"{mpp:g}, which no slide scanner makes", remedy)
    if mpp > _FINE_MPP:
        return Finding(NOTE, "µm/px", f"{mpp:g}: single nuclei are hard to tell apart", "use a scan at 20x or 40x")
    return Finding(OK, "µm/px", f"{mpp:g}")


def _labels(sdata: SpatialData, image_key: str, labels_key: str, usable: bool) -> list[Finding]:
    if labels_key not in sdata.labels:
        text = f"none named {labels_key!r} (there are: {', '.join(sdata.labels) or 'none'})"
        return [Finding(NOTE, "labels", text, "pp.segment_nuclei or ghistpy segment makes them")]
    if not usable:
        return []

    def look() -> Iterator[Finding]:
        from ghistpy.geometry import find_nuclei
        from ghistpy.io import open_slide

        _, source, mpp = open_slide(sdata, image_key, labels_key)
        nuclei = find_nuclei(source)
        if not len(nuclei):
            yield Finding(PROBLEM, "labels", f"{labels_key!r} holds no nucleus", "segment again, with other settings")
            return
        area = float(np.median(nuclei.area_px)) * mpp**2
        text = f"{len(nuclei):,} nuclei, median area {area:.0f} µm²"
        if _PLAUSIBLE_AREA[0] <= area <= _PLAUSIBLE_AREA[1]:
            yield Finding(OK, "labels", text)
        else:
            yield Finding(NOTE, "labels", f"{text}: unusual for nuclei", "check µm/px, and look at pl.nuclei")

    return _guarded("labels", look)


def _table(sdata: SpatialData, name: str, table: AnnData) -> Iterator[Finding]:
    """Genes, units and the link of a table."""
    from ghistpy.io.tables import _check_link, linked_to

    topic = f"table {name}"
    units = table.uns.get(_keys.UNS, {}).get("units", "not stated")
    repeated = int(table.var_names.duplicated().sum())
    empty = int((table.var_names.astype(str).str.strip() == "").sum())
    if repeated or empty:
        text = f"{repeated} gene names repeat, {empty} are empty"
        yield Finding(PROBLEM, topic, text, "table.var_names_make_unique(), or merge and name them")
    yield Finding(OK, topic, f"{table.n_obs:,} rows x {table.n_vars:,} genes, units: {units}")
    link = linked_to(table)
    if link is None:
        remedy = "training needs a link: io.make_table(..., region='nuclei', instance_key='cell_id', ids=...)"
        yield Finding(NOTE, topic, "is linked to no labels or shapes", remedy)
        return
    _check_link(sdata, name, table)
    for region in link[0]:
        yield from _linkage(sdata, topic, region, table, link)


def _linkage(sdata: SpatialData, topic: str, region: str, table: AnnData, link: Any) -> Iterator[Finding]:
    import pandas as pd

    from ghistpy.geometry import find_nuclei
    from ghistpy.io import open_labels

    ids = table.obs.loc[table.obs[link[1]] == region, link[2]].to_numpy()
    if region in sdata.labels:
        known = find_nuclei(open_labels(sdata, region)).index_of(ids) >= 0
    elif region in sdata.shapes:
        known = pd.Index(ids).isin(sdata.shapes[region].index)
    else:
        return
    share = float(known.mean()) if len(known) else 1.0
    text = f"{int(known.sum()):,} of {len(known):,} ids are in {region!r}"
    level = OK if share > 0.9 else NOTE if share > 0.5 else PROBLEM
    remedy = "rows without one are left out" if level == NOTE else "table and labels do not belong together"
    yield Finding(level, topic, text, "" if level == OK else remedy)


def _panel(name: str, table: AnnData, model: GHIST) -> list[Finding]:
    topic = f"table {name}"
    own = table.uns.get(_keys.UNS, {})
    if "model_hash" in own:
        same = own["model_hash"] == model.hash
        text = "predicted by this model" if same else f"predicted by another model ({own['model_hash']})"
        return [Finding(OK if same else NOTE, topic, text, "" if same else "predict again to use this one")]
    names = table.var_names.astype(str)
    shared = len(set(model.genes) & set(names))
    text = f"{shared} of the {len(model.genes)} genes of the model"
    if shared >= 0.5 * len(model.genes):
        return [Finding(OK, topic, text)]
    if shared == 0 and len({g.upper() for g in model.genes} & set(names.str.upper())):
        remedy = "names differ in upper and lower case only: human and mouse?"
    elif shared == 0:
        remedy = (
            f"the model names genes such as {model.genes[:3]}, the table {names[:3].tolist()}: symbols or Ensembl ids?"
        )
    else:
        remedy = "the prediction can be evaluated on these genes only"
    return [Finding(PROBLEM if shared == 0 else NOTE, topic, text, remedy)]


def _matching(sdata: SpatialData, name: str, table: AnnData, image_key: str) -> Iterator[Finding]:
    """Whether measured cells lie on the nuclei."""
    from ghistpy import get, pp
    from ghistpy.io.tables import linked_to

    own = table.uns.get(_keys.UNS, {})
    link = linked_to(table)
    spots = link is not None and any(region in sdata.shapes for region in link[0])
    if spots or "model_hash" in own or _keys.SPATIAL not in table.obsm or table.n_obs < 20:
        return
    import spatialdata as sd

    # a shallow copy: the report must not end up in the slide
    light = table[:, :0].copy()
    other = sd.SpatialData(images=dict(sdata.images), labels=dict(sdata.labels), tables={name: light})
    pp.match_cells(other, table_key=name, image_key=image_key, on_mismatch="warn")
    report = get.matching(other, table_key=name)
    kind = {"matched": OK, "inconclusive": NOTE}.get(report["verdict"], PROBLEM)
    text, _, remedy = report["message"].partition(" To fix ")
    yield Finding(
        kind, f"matching {name}", text, "" if kind == OK else f"to fix {remedy}" if remedy else "see pl.matching"
    )


def _stain(sdata: SpatialData, image_key: str, model: GHIST | None) -> Iterator[Finding]:
    """Optical density of the tissue beside that of ordinary slides, or what the model was trained on."""
    from ghistpy.imaging.stain import NOMINAL_OD, sample_pixels, white_balance
    from ghistpy.io import open_image, rgb_source

    pixels = sample_pixels(rgb_source(open_image(sdata, image_key), f"image_key={image_key!r}"))
    if model is not None and {"image_mean", "image_std"} <= set(model.extras):
        mean, spread = (np.asarray(model.extras[k], dtype=float).ravel() for k in ("image_mean", "image_std"))
        distance = float(np.abs((pixels.mean(axis=0) - mean) / spread).max())
        text = f"mean colour {distance:.1f} SD from what the model was trained on"
        yield Finding(
            OK if distance < 1 else NOTE, "stain", text, "" if distance < 1 else "pp.normalize_stain brings it nearer"
        )
        return
    stats = white_balance(pixels)
    ratio = np.array(stats.od_scale) / np.array(NOMINAL_OD)
    distance = float(np.exp(np.abs(np.log(ratio)).max()))
    glass = ", ".join(f"{v:.0f}" for v in stats.background)
    text = (
        f"density {', '.join(f'{r:.2f}' for r in ratio)} times that of an ordinary slide in R, G, B (the target that "
        f"slides are scaled to), glass at {glass}"
    )
    remedy = "very pale or dark: look at the slide; blue and red swapped, fluorescence or ink do this"
    yield Finding(OK if distance < _STAIN_RATIO else NOTE, "stain", text, "" if distance < _STAIN_RATIO else remedy)


def _model_scale(sdata: SpatialData, image_key: str, model: GHIST) -> list[Finding]:
    from ghistpy.io import get_mpp

    mpp = get_mpp(sdata, image_key)
    text = f"the model sees {model.mpp:g} µm/px, the slide has {mpp:g}"
    if mpp <= 1.5 * model.mpp:
        return [Finding(OK, "model", text)]
    return [Finding(NOTE, "model", f"{text}: pixels are made up by interpolation", "use a finer scan")]


def check_store(path: Path, model: GHIST | None = None, *, image_key: str = _keys.IMAGE) -> list[Finding]:
    """:func:`check_slide` for a store on disk, which is opened and left as it is."""
    import spatialdata as sd

    from ghistpy.io._store import staging_path
    from ghistpy.io.slide import is_spatialdata

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_dir() or not is_spatialdata(path):
        raise ValueError(
            f"{path} is not a SpatialData store; 'ghistpy segment SLIDE OUT.zarr' makes one of a slide file"
        )
    out = []
    if staging_path(path).exists():
        text = "a process was stopped while it wrote a table"
        out.append(Finding(PROBLEM, "store", text, f"io.read_slide({str(path)!r}) finishes or removes what it left"))
    try:
        sdata = sd.read_zarr(path)
    except Exception as error:  # noqa: BLE001  a damaged store raises whatever zarr, anndata or pyarrow raise
        return [*out, Finding(PROBLEM, "store", f"{path} cannot be opened: {error}", "copy or make it again")]
    return out + check_slide(sdata, model, image_key=image_key)
