"""Accuracy on HER2ST C2-C5, leave one section out: predicted nuclei summed to spots.

    python benchmarks/her2st.py OUT [--epochs N] [--sections C2,C3,C4,C5]

Needs GHISTPY_DATA_DIR with data/her2st and tools/score_her2st.py (the protocol: spots with 500 UMI and
more, y = log1p(1e4 count / total)). Every other section trains with spot supervision; the held-out
one is predicted nucleus by nucleus, summed to spots and scored. The same network with the spot disk as
its only instance and the baselines stand beside it. Prints a table; writes OUT/her2st.json, the
predictions and pictures. The four sections are one patient: nothing is said about other patients.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

import ghistpy as gp

SECTIONS = ("C2", "C3", "C4", "C5")
MIN_TOTAL = 500
SHOWN_GENES = ("ERBB2", "FASN", "COL1A1", "IGKC")
NUCLEI, DISKS = "nuclei", "spot_disks"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--instances", default=f"{NUCLEI},{DISKS}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Path(os.environ.get("GHISTPY_DATA_DIR", ""))
    scorer = data / "tools" / "score_her2st.py"
    if not scorer.exists():
        sys.exit("GHISTPY_DATA_DIR must name a folder with tools/score_her2st.py and data/her2st")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("ghistpy").setLevel(logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    genes = panel(scorer, data / "data" / "her2st")
    slides = {section: load(section, args.out / "slides") for section in SECTIONS}
    results: dict[str, dict] = {"seconds": {}}
    methods: list[str] = []
    for labels_key in args.instances.split(","):
        started = time.perf_counter()
        for held in args.sections.split(","):
            for method in predict_section(slides, held, labels_key, genes, args):
                methods.append(method)
        results["seconds"][labels_key] = time.perf_counter() - started
    for method in dict.fromkeys(methods):
        results[method] = score(scorer, data / "data" / "her2st", args.out / method, args.sections)
    table = summary(results, dict.fromkeys(methods))
    print(table.round(3).to_string())
    results["summary"] = json.loads(table.to_json(orient="index"))
    (args.out / "her2st.json").write_text(json.dumps(results, indent=1))
    print(f"written to {args.out}")


def panel(scorer: Path, data: Path) -> list[str]:
    """Genes that the protocol scores."""
    printed = subprocess.run(
        [sys.executable, str(scorer), "--data", str(data), "--print-genes"], capture_output=True, text=True, check=True
    )
    sets = json.loads(printed.stdout)["sets"]
    return list(dict.fromkeys(g for members in sets.values() for g in members))


def load(section: str, folder: Path):
    """A section with its nuclei, its spot disks as labels, and the spots that are deep enough."""
    import spatialdata

    path = folder / f"{section}.zarr"
    if not path.exists():  # segmented once
        slide = gp.datasets.her2st(section)
        gp.pp.segment_nuclei(slide, key_added=NUCLEI, progress=False)
        add_disks(slide)
        slide.write(path)
    slide = spatialdata.read_zarr(path)
    slide.path = None  # predictions stay in memory
    table = slide.tables["measured"]
    slide.tables["measured"] = table[table.obs["total"] >= MIN_TOTAL].copy()
    return slide


def add_disks(slide) -> None:
    """Label image in which every spot is one instance, numbered from 1 in the order of the table."""
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Scale

    mpp = gp.io.get_mpp(slide)
    height, width = gp.io.open_labels(slide, NUCLEI).shape
    centre = np.asarray(slide.tables["measured"].obsm["spatial"]) / mpp
    radius = slide.attrs["ghistpy"]["spot_diameter_um"] / 2 / mpp
    labels = np.zeros((height, width), np.int32)
    for number, (x, y) in enumerate(centre, start=1):  # 180 disks
        y0, x0 = max(0, int(y - radius) - 1), max(0, int(x - radius) - 1)
        yy, xx = np.mgrid[y0 : min(height, int(y + radius) + 2), x0 : min(width, int(x + radius) + 2)]
        inside = (yy + 0.5 - y) ** 2 + (xx + 0.5 - x) ** 2 <= radius**2
        labels[yy[inside], xx[inside]] = number
    scale = Scale([mpp, mpp], axes=("x", "y"))
    slide.labels[DISKS] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"microns": scale})


def predict_section(slides: dict, held: str, labels_key: str, genes: list[str], args: argparse.Namespace) -> list[str]:
    """Train on the other sections, predict the held-out one, write one CSV per method (unless they are there)."""
    methods = [labels_key] if labels_key != NUCLEI else [NUCLEI, "morphology_ridge", "type_mean"]
    if all((args.out / method / f"{held}.csv").exists() for method in methods):
        return methods
    config = gp.models.GHISTConfig(
        mpp=0.687, widths=(24, 48, 96), context_um=(50.0, 100.0, 200.0, 400.0), random_features=1024
    )
    model = gp.tl.fit(
        {s: slide for s, slide in slides.items() if s != held},
        config=config,
        genes=genes,
        labels_key=labels_key,
        supervision="spots",
        max_epochs=args.epochs,
        seed=args.seed,
        progress=False,
    )
    slide, key = slides[held], f"insilico_{labels_key}"
    gp.tl.predict_expression(slide, model, labels_key=labels_key, key_added=key, progress=False)
    gp.tl.aggregate_spots(slide, table_key=key, key_added=f"{key}_spots")
    spots = slide.tables[f"{key}_spots"]
    written = {labels_key: per_ten_thousand(spots)}
    if labels_key == NUCLEI:
        written |= baselines(model, spots)
        gp.tl.evaluate(slide, model=model, predicted=f"{key}_spots")
        draw(slide, held, key, args.out)
    for method, values in written.items():
        folder = args.out / method
        folder.mkdir(exist_ok=True)
        frame = pd.DataFrame(values, index=spots.obs["spot_id"].astype(str).to_numpy(), columns=list(spots.var_names))
        frame.round(5).to_csv(folder / f"{held}.csv")
    if labels_key == NUCLEI:
        model.save(args.out / f"model_without_{held}")
    return methods


def per_ten_thousand(spots) -> np.ndarray:
    """log1p(1e4 count / total) of predicted spots; a spot without nuclei has no prediction: 0."""
    total = np.maximum(spots.obs["total"].to_numpy(), 1e-9)
    return np.log1p(1e4 * np.expm1(spots.X) / total[:, None])


def baselines(model, spots) -> dict[str, np.ndarray]:
    """Predictions of the trained baselines: mean per predicted type, and ridge on the spot's mean morphology."""
    b = model.baselines
    number = np.log1p(spots.obs["n_nuclei"].to_numpy(dtype=float))[:, None]
    features = np.concatenate([np.asarray(spots.obsm["morphology"], dtype=float), number], axis=1)
    z = np.nan_to_num((features - b["ridge_center"]) / b["ridge_scale"])
    composition = np.nan_to_num(np.asarray(spots.obsm["composition"], dtype=float))
    return {
        "morphology_ridge": np.maximum(z @ b["ridge_weight"] + b["ridge_intercept"], 0),
        "type_mean": np.log1p(composition @ np.expm1(b["type_profiles"])),
    }


def draw(slide, section: str, key: str, out: Path) -> None:
    """Predicted nuclei over H&E beside measured spots, and the accuracy per gene set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [g for g in SHOWN_GENES if g in slide.tables[key].var_names]
    gp.pl.compare_genes(slide, shown, predicted=key, measured="measured")
    plt.savefig(out / f"genes_{section}.png", dpi=110, bbox_inches="tight")
    plt.close("all")
    gp.pl.gene_accuracy(slide, table_key=f"{key}_spots")
    plt.savefig(out / f"accuracy_{section}.png", dpi=110, bbox_inches="tight")
    plt.close("all")


def score(scorer: Path, data: Path, predictions: Path, sections: str) -> dict:
    """The scorer's JSON for one method."""
    printed = subprocess.run(
        [sys.executable, str(scorer), "--data", str(data), "--pred", str(predictions), "--sections", sections],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(printed.stdout)["sections"]


def summary(results: dict, methods) -> pd.DataFrame:
    """Mean over sections of the section medians (genes) and means (programmes)."""
    rows = {}
    for method in methods:
        sections = results[method].values()
        row = {}
        for kind in ("raw", "depth_adjusted"):
            for name in ("hvg200", "svg50"):
                row[f"{name} {kind}"] = np.mean([s["sets"][name][kind]["median_nan0"] for s in sections])
            row[f"programmes {kind}"] = np.mean([s["programs_mean"][kind] for s in sections])
        null = [s["sets"]["svg50"]["null_of_median"]["map_rotation_adj"]["q95"] for s in sections]
        row["svg50 adjusted, rotated map q95"] = np.mean(null)
        rows[method] = row
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    main()
