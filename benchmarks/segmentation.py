"""Nuclei against annotations: F1 at IoU 0.5, aggregated Jaccard index, panoptic quality, seconds per mm².

    python benchmarks/segmentation.py OUT [--methods watershed,instanseg] [--weights FILE] [--robustness]

Reads nuclei_miccai2015 (tiles 01 to 07 at 0.5 µm/px, 08 to 10 at 0.25) and nuclei_pannuke_breast (0.25 µm/px;
red and blue are exchanged in its PNGs) from GHISTPY_DATA_DIR/data, segments every tile with
``pp.segment_nuclei`` at its default settings, and prints means over tiles. With --robustness the settings of the
watershed are moved one at a time, and chosen on one data set for the other. Writes OUT/segmentation.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import spatialdata as sd
from PIL import Image
from tifffile import imread

import ghistpy as gp
from ghistpy.imaging.watershed import WatershedParams
from ghistpy.io.elements import image_element
from ghistpy.stats import segmentation_scores

SCORES = ("f1", "aji", "panoptic_quality", "dice")
GRID = {"smoothing_um": (0.35, 0.5, 0.7), "min_quality": (0.1, 0.2, 0.3)}
MOVED = {
    "smoothing_um": (0.35, 0.7),
    "min_quality": (0.1, 0.3),
    "min_area_um2": (5.0, 12.0),
    "max_area_um2": (300.0, 600.0),
    "peak_um": (1.2, 2.2),
    "dense": (False,),
}


@dataclass(frozen=True)
class Tile:
    """An annotated tile: rgb (3, h, w) uint8, labels (h, w), µm/px."""

    dataset: str
    name: str
    rgb: np.ndarray
    truth: np.ndarray
    mpp: float

    @property
    def mm2(self) -> float:
        """Area."""
        return self.truth.size * self.mpp**2 / 1e6


def read_tiles(folder: Path) -> Iterator[Tile]:
    """All tiles of both data sets."""
    for path in sorted((folder / "nuclei_miccai2015").glob("image*.png")):
        mpp = 0.5 if int(path.stem[5:]) < 8 else 0.25
        truth = imread(path.with_name(path.stem + "_labels.tif")).astype(np.int64)
        name = "MICCAI 2015, 20x" if mpp == 0.5 else "MICCAI 2015, 40x"
        yield Tile(name, path.stem, _rgb(path), truth, mpp)
    coco = json.loads((folder / "nuclei_pannuke_breast" / "annotation_coco.json").read_text())
    for image in coco["images"]:
        shape = (image["height"], image["width"])
        masks = [a["segmentation"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        truth = np.zeros(shape, dtype=np.int64)
        for number, mask in enumerate(masks, start=1):
            truth[_unpacked(mask["counts"], shape)] = number
        rgb = _rgb(folder / "nuclei_pannuke_breast" / image["file_name"])[::-1]
        yield Tile("PanNuke breast, 40x", image["file_name"], np.ascontiguousarray(rgb), truth, 0.25)


def _rgb(path: Path) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))


def _unpacked(counts: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Run lengths along columns, background first, as a mask."""
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(shape[::-1]).T


def score(tile: Tile, **options: object) -> dict[str, object]:
    """Segment one tile and compare."""
    sdata = sd.SpatialData(images={"he": image_element(tile.rgb, tile.mpp)})
    started, cpu = time.perf_counter(), time.process_time()
    gp.pp.segment_nuclei(sdata, progress=False, **options)
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    scores = asdict(segmentation_scores(tile.truth, sdata["nuclei"].values))
    return {"dataset": tile.dataset, "tile": tile.name, **times, "mm2": tile.mm2, **scores}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the tiles of each data set, and the worst tile."""
    groups = rows.groupby("dataset", sort=False)
    table = groups[list(SCORES)].mean()
    table.insert(0, "tiles", groups.size())
    table.insert(1, "nuclei", groups["n_true"].sum())
    table["lowest f1"] = groups["f1"].min()
    table["s per mm²"] = groups["seconds"].sum() / groups["mm2"].sum()
    table["CPU s per mm²"] = groups["cpu_seconds"].sum() / groups["mm2"].sum()
    return table


def robustness(tiles: list[Tile]) -> tuple[pd.DataFrame, dict[str, object]]:
    """Mean F1 with one setting moved at a time, and with settings that were chosen on the other data set."""

    def mean_f1(**settings: object) -> dict[str, float]:
        rows = pd.DataFrame([score(tile, params=WatershedParams(**settings)) for tile in tiles])
        return rows.groupby(rows["dataset"].str.split(",").str[0], sort=False)["f1"].mean().to_dict()

    moved = {"default": mean_f1()}
    for name, values in MOVED.items():
        for value in values:
            moved[f"{name}={value}"] = mean_f1(**{name: value})
    choices = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    found = [mean_f1(**choice) for choice in choices]
    crossed = {}
    for dataset in moved["default"]:
        (other,) = set(moved["default"]) - {dataset}
        best = max(range(len(choices)), key=lambda k: found[k][other])
        crossed[dataset] = {"chosen on": other, **choices[best], "f1": found[best][dataset]}
    return pd.DataFrame(moved).T, crossed


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default="watershed")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--robustness", action="store_true")
    args = parser.parse_args()
    tiles = list(read_tiles(Path(os.environ["GHISTPY_DATA_DIR"]) / "data"))
    args.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {}
    for method in args.methods.split(","):
        options = {} if method == "watershed" else {"weights": args.weights}
        score(tiles[0], method=method, **options)  # imports and first calls are not part of the time
        rows = pd.DataFrame([score(tile, method=method, **options) for tile in tiles])
        print(f"\n{method}\n{summary(rows).round(3).to_string()}\n\n{rows[['tile', *SCORES]].round(3).to_string()}")
        result[method] = rows.to_dict("records")
    if args.robustness:
        moved, crossed = robustness(tiles)
        print(f"\nmean F1, one setting moved\n{moved.round(3).to_string()}\n\nchosen on the other data set: {crossed}")
        result["moved"], result["crossed"] = moved.to_dict("index"), crossed
    (args.out / "segmentation.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
