"""The verbs of ghistpy from a shell. Everything heavy is imported inside the commands, so that --help is quick."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ghistpy import _keys as keys
from ghistpy.doctor import doctor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from ghistpy.models import GHIST

# What a user can cause: shown as one line. Anything else is a defect of ghistpy and keeps its traceback.
USER_ERRORS = (ValueError, KeyError, OSError, ImportError)


class _Commands(TyperGroup):
    """Turns errors that a user can cause into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            # str(KeyError("x")) is "'x'"
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            typer.echo(f"error: {message}", err=True)
            raise SystemExit(1) from None


app = typer.Typer(
    cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Mpp = Annotated[float | None, typer.Option(help="µm per pixel, for files that do not record it.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


app.command()(doctor)


def _show_version(value: bool) -> None:
    if value:
        from ghistpy import __version__

        typer.echo(f"ghistpy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, warnings and all messages.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more of what is done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Spatial gene expression of every nucleus, predicted from H&E slides."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ghistpy").setLevel("DEBUG" if debug else "INFO" if verbose else "WARNING")
    if not debug:
        # What our dependencies say about their own insides is for us, not for someone at a terminal.
        warnings.simplefilter("ignore")
        for name in ("lightning.pytorch.utilities.rank_zero", "ome_zarr"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _is_store(path: Path) -> bool:
    """True for a SpatialData store; an OME-Zarr image is a slide."""
    from ghistpy.io.slide import is_spatialdata

    return path.is_dir() and is_spatialdata(path)


def _open_store(path: Path, mpp: float | None = None) -> SpatialData:
    from ghistpy import io

    if not _is_store(path):
        what = "is not a SpatialData store" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; 'ghistpy segment' and 'ghistpy predict' write such stores")
    return io.read_slide(path, mpp=mpp)


def _segment_if_needed(sdata: SpatialData, name: str, method: str = "watershed") -> bool:
    """Segment a slide without labels, and say so. True when labels were added."""
    if keys.LABELS in sdata.labels:
        return False
    from ghistpy import pp
    from ghistpy.io.tables import linked_to

    for table_key, table in sdata.tables.items():
        if keys.LABELS in (linked_to(table) or [[]])[0]:
            raise ValueError(
                f"{name}: table {table_key!r} annotates labels {keys.LABELS!r}, which are missing; nuclei that are "
                "segmented now would not carry its ids: add the labels that it belongs to"
            )
    typer.echo(f"{name}: no labels {keys.LABELS!r}, segmenting nuclei (method {method!r})")
    pp.segment_nuclei(sdata, method=method)
    return True


def _write_new_store(source: Path, target: Path, *, mpp: float | None, method: str = "watershed") -> None:
    """Write a segmented slide to a new store: complete under its name, or absent."""
    from ghistpy import io

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was stopped
    try:
        if _is_store(source):
            shutil.copytree(source, partial)  # bytes as they are: no second encoding of image and ids
            sdata = io.read_slide(partial, mpp=mpp)
            if mpp is not None:
                sdata.write_transformations(keys.IMAGE)
            if _segment_if_needed(sdata, source.name, method):
                sdata.write_element(keys.LABELS)
        else:
            sdata = io.read_slide(source, mpp=mpp)
            _segment_if_needed(sdata, source.name, method)
            sdata.write(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name, or remove it")


def _measures_spots(sdata: SpatialData, table_key: str) -> bool:
    """Whether a table is linked to shapes rather than to labels."""
    from ghistpy.io import get_element
    from ghistpy.io.tables import linked_to

    link = linked_to(get_element(sdata, "tables", table_key, "table"))
    return link is not None and bool(link[0]) and all(name in sdata.shapes for name in link[0])


def _read_manifest(path: Path) -> dict[str, SpatialData]:
    """Stores of a manifest by sample, each with its patient in ``attrs["ghistpy"]``."""
    import pandas as pd

    frame = pd.read_csv(path, dtype=str)
    absent = [name for name in ("sample", "path", "patient") if name not in frame.columns]
    if absent:
        raise ValueError(f"manifest {path} has no column {', '.join(absent)}; it has: {', '.join(frame.columns)}")
    if frame[["sample", "path", "patient"]].isna().any(axis=None):
        raise ValueError(f"manifest {path} has empty cells in sample, path or patient")
    doubled = frame["sample"][frame["sample"].duplicated()].unique()
    if len(doubled):
        raise ValueError(f"manifest {path} names samples twice: {', '.join(doubled)}")
    sdatas = {}
    for row in frame.itertuples():
        sdata = _open_store(path.parent / row.path)  # an absolute path stays absolute
        sdata.attrs[keys.ATTRS] = {**sdata.attrs.get(keys.ATTRS, {}), "sample": row.sample, "patient": row.patient}
        sdatas[row.sample] = sdata
    return sdatas


@app.command()
def segment(
    slide: Annotated[Path, typer.Argument(help="Slide file, or a SpatialData store without labels.")],
    out: Annotated[Path, typer.Argument(help="Store to write, e.g. slide.zarr.")],
    mpp: Mpp = None,
    method: Annotated[str, typer.Option(help="Method of segmentation: watershed.")] = "watershed",
) -> None:
    """Segment the nuclei of a slide and write a SpatialData store."""
    _refuse_existing(out)
    _write_new_store(slide, out, mpp=mpp, method=method)
    typer.echo(f"{out}: written")


@app.command()
def fit(
    manifest: Annotated[Path, typer.Argument(help="CSV with the columns sample, path, patient.")],
    out: Annotated[Path, typer.Option(help="Folder of the model to write.")],
    supervision: Annotated[str, typer.Option(help="What was measured: cells or spots.")] = "cells",
    table_key: Annotated[str, typer.Option(help="Table of raw counts.")] = keys.MEASURED,
    cell_type_key: Annotated[str, typer.Option(help="Column of the table with cell types.")] = keys.CELL_TYPE,
    reference: Annotated[Path | None, typer.Option(help="Profiles of cell types (.h5ad): types x genes.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Upper limit of epochs.")] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Keep checkpoints here and resume from them.")] = None,
    seed: Seed = 0,
) -> None:
    """Train a model on the slides of a manifest."""
    _refuse_existing(out)
    sdatas = _read_manifest(manifest)
    for name, sdata in sdatas.items():
        if _segment_if_needed(sdata, name):
            typer.echo(f"{name}: these labels are not saved; 'ghistpy segment' writes a store that has them")
    options: dict[str, Any] = {} if max_epochs is None else {"max_epochs": max_epochs}
    if reference is not None:
        import anndata

        options["reference"] = anndata.read_h5ad(reference)
    from ghistpy import tl

    model = tl.fit(
        sdatas,
        table_key=table_key,
        cell_type_key=cell_type_key,
        supervision=supervision,
        checkpoint_dir=checkpoint_dir,
        seed=seed,
        **options,
    )
    model.save(out)
    types = ", ".join(model.cell_types)
    typer.echo(f"{out}: {len(model.genes)} genes, {len(model.cell_types)} cell types ({types}), {model.mpp:g} µm/px")


@app.command()
def predict(
    slides: Annotated[list[Path], typer.Argument(help="Slide files or SpatialData stores.")],
    model: Annotated[Path, typer.Option(help="Folder of a trained model.")],
    out: Annotated[Path, typer.Option(help="Folder for one store per slide.")],
    mpp: Mpp = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip finished slides, continue interrupted ones.")] = False,
) -> None:
    """Predict every nucleus of each slide; slides without labels are segmented first."""
    from ghistpy.models import GHIST

    targets = [out / f"{slide.name.removesuffix(slide.suffix).removesuffix('.ome')}.zarr" for slide in slides]
    if len(set(targets)) < len(targets):
        raise ValueError(f"slides must have different names, got {', '.join(slide.name for slide in slides)}")
    for slide, target in zip(slides, targets, strict=True):
        if target.exists() and not resume and slide.resolve() != target.resolve():
            raise FileExistsError(f"{target} exists; give --resume to continue it, or another --out")
    trained = GHIST.load(model)
    failed = []
    for slide, target in zip(slides, targets, strict=True):
        try:
            _predict_one(slide, target, trained, mpp, resume)
        except USER_ERRORS as error:
            if len(slides) == 1:
                raise
            failed.append(slide.name)  # one bad slide must not cost the night's other hundred
            typer.echo(f"{slide.name}: failed: {error}", err=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(slides)} slides failed: {', '.join(failed)}")


def _predict_one(slide: Path, target: Path, trained: GHIST, mpp: float | None, resume: bool) -> None:
    from ghistpy import tl

    if not target.exists():
        _write_new_store(slide, target, mpp=mpp)
    sdata = _open_store(target, mpp)
    table = sdata.tables.get(keys.INSILICO)
    if resume and table is not None and table.uns.get(keys.UNS, {}).get("model_hash") == trained.hash:
        typer.echo(f"{slide.name}: already predicted in {target}")
        return
    if _segment_if_needed(sdata, slide.name):
        sdata.write_element(keys.LABELS)
    tl.predict_expression(sdata, trained)
    table = sdata.tables[keys.INSILICO]
    typer.echo(f"{slide.name}: {table.n_obs:,} nuclei x {table.n_vars} genes in {target}")


@app.command()
def evaluate(
    store: Annotated[Path, typer.Argument(help="Store with a measured and a predicted table.")],
    model: Annotated[Path | None, typer.Option(help="The model: its baselines come from its training data.")] = None,
    measured: Annotated[str, typer.Option(help="Measured table.")] = keys.MEASURED,
    predicted: Annotated[str, typer.Option(help="Predicted table.")] = keys.INSILICO,
    csv: Annotated[Path | None, typer.Option(help="Also write the long frame here.")] = None,
) -> None:
    """Compare a prediction with what was measured, beside the baselines."""
    from ghistpy import get, io, tl
    from ghistpy.models import GHIST

    sdata = _open_store(store)
    trained = None if model is None else GHIST.load(model)
    if _measures_spots(sdata, measured) and not _measures_spots(sdata, predicted):
        typer.echo(f"table {measured!r} holds spots: sums of {predicted!r} over the nuclei of each spot are compared")
        tl.aggregate_spots(sdata, table_key=predicted)
        predicted = keys.INSILICO_SPOTS
    tl.evaluate(sdata, model=trained, measured=measured, predicted=predicted)
    io.save(sdata, predicted)
    frame = get.evaluation(sdata, table_key=predicted)
    if csv is not None:
        frame.to_csv(csv, index=False)
    typer.echo(_summary(frame))


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("ghistpy-demo"),
    n_cells: Annotated[int, typer.Option(help="Nuclei of each slide.")] = 2000,
    max_epochs: Annotated[int, typer.Option(help="Upper limit of epochs.")] = 12,
    seed: Seed = 0,
) -> None:
    """Simulate two slides, train on one, predict the other, evaluate, draw."""
    from ghistpy import datasets, get, io, tl

    store = _clear_demo(out)
    typer.echo("simulating two slides: same biology, different layout, stain and mixture of cell types")
    mixture = {"Malignant": 25, "Fibroblast": 30, "Endothelial": 10, "T/NK": 15, "B": 10, "Macrophage": 10}
    train = datasets.simulate_slide(n_cells=n_cells, seed=2 * seed)
    test = datasets.simulate_slide(n_cells=n_cells, seed=2 * seed + 1, stain="purple", proportions=mixture)
    test.write(store)
    typer.echo(f"training on the first: {n_cells:,} nuclei, at most {max_epochs} epochs")
    model = tl.fit({"train": train}, max_epochs=max_epochs, seed=seed)
    model.save(out / "model")
    typer.echo("predicting every nucleus of the second, which the model has never seen")
    test = _open_store(store)
    tl.predict_expression(test, model)
    tl.evaluate(test, model=model)
    io.save(test, keys.INSILICO)
    frame = get.evaluation(test)
    frame.to_csv(out / "evaluation.csv", index=False)
    typer.echo(f"\n{_summary(frame, _known_ceiling(test, model.gene_sets))}")
    typer.echo("medians over genes; ceiling: the most that the pixels of this simulation show, known exactly\n")
    for path in [store, out / "model", out / "evaluation.csv", *_draw_demo(test, model, out)]:
        typer.echo(f"wrote {path}")


def _clear_demo(out: Path) -> Path:
    """Folder for a demo; what an earlier demo left is replaced, anything else is not touched."""
    store, model, mark = out / "slide.zarr", out / "model", out / ".ghistpy-demo"
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and holds no ghistpy demo; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for folder in (store, model):
        if folder.exists():
            shutil.rmtree(folder)
    return store


def _known_ceiling(sdata: SpatialData, gene_sets: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
    """Scores of the best possible predictor of a simulated slide, by gene set and metric."""
    import numpy as np

    from ghistpy.stats import pearson, within_type_pearson

    table = sdata.tables[keys.MEASURED]
    truth, best = np.log1p(table.X.toarray()), np.asarray(table.layers["attainable"])
    codes = table.obs[keys.CELL_TYPE].cat.codes.to_numpy()
    scores = {"pearson": pearson(truth, best), "within_type_pearson": within_type_pearson(truth, best, codes)}
    columns = {name: table.var_names.get_indexer(genes) for name, genes in gene_sets.items()}
    columns["all"] = np.arange(table.n_vars)
    medians = {(name, m): float(np.nanmedian(v[i])) for name, i in columns.items() for m, v in scores.items()}
    return {**medians, ("all", "macro_f1"): float(table.uns[keys.UNS]["bayes_macro_f1"])}


def _draw_demo(sdata: SpatialData, model: GHIST, out: Path) -> list[Path]:
    from ghistpy import pl

    genes = next(iter(model.gene_sets.values()), model.genes)[:3]
    axes = {
        "types_measured": pl.slide(sdata, keys.CELL_TYPE, table_key=keys.MEASURED),
        "types_predicted": pl.slide(sdata, keys.CELL_TYPE),
        "genes": pl.compare_genes(sdata, genes)[0, 0],
        "gene_accuracy": pl.gene_accuracy(sdata),
        "gene_scatter": pl.gene_scatter(sdata, genes[0]),
        "composition": pl.composition(sdata),
        "confusion": pl.confusion(sdata),
        **({"history": pl.history(model)} if len(model.history) else {}),
    }
    for name, ax in axes.items():
        ax.figure.savefig(out / f"{name}.png", dpi=150, bbox_inches="tight")
    return [out / f"{name}.png" for name in axes]


_METRICS = {
    "pearson": "PCC",
    "pearson_depth_adjusted": "PCC, depth-adjusted",
    "within_type_pearson": "PCC within type",
    "skill": "skill over type_mean",
    "accuracy": "accuracy of types",
    "macro_f1": "macro-F1 of types",
}


def _summary(frame: pd.DataFrame, ceiling: Mapping[tuple[str, str], float] | None = None) -> str:
    """Model beside baselines (and ceiling): one line per gene set and metric."""
    rows = frame[frame["level"].isin(["gene_set", "overall"]) & frame["metric"].isin(list(_METRICS))]
    rows = rows.astype({"name": str, "metric": str, "method": str})
    rows = rows[~rows.duplicated(["name", "metric", "method"], keep="last")]  # the set of all genes is also "overall"
    table = rows.pivot(index=["name", "metric"], columns="method", values="value")
    order = [(name, metric) for name in rows["name"].unique() for metric in _METRICS if (name, metric) in table.index]
    table = table.loc[order, [m for m in rows["method"].unique() if table[m].notna().any()]]
    if ceiling is not None:
        table = table.drop(columns="noise_ceiling").assign(ceiling=[ceiling.get(row, float("nan")) for row in order])
    table = table.set_axis([f"{name}: {_METRICS[metric]}" for name, metric in order]).rename_axis(columns=None)
    return table.to_string(float_format=lambda v: f"{v:.3f}", na_rep="-")
