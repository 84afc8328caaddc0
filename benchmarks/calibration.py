"""Rejections of `gp.tl.svg` without a pattern, and what its layout tests find when there is one.

    python benchmarks/calibration.py OUT [--slides N] [--cells N] [--genes G] [--perms P] [--only nulls,depth,...]

Simulated slides of 600 µm. Sections, each printed as markdown tables of "1 / 5 / 10 %: percent rejected at 1,
5 and 10 %", and all written to OUT/calibration.json:

nulls   every null x what makes neighbours alike x detection rate x shape of the tissue
depth   null="within_type" x counts per cell of the gene x counts that its depth is known from, log1p and raw
reach   null="map_shift" and "variogram" x range of the map x shape of the tissue
power   the same two where genes follow a gradient, a centre or a layout

Genes of one slide share its layout, so the standard error of a cell is that between slides; the largest one of
a table at 5 % is printed below it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial.distance import cdist

import ghistpy as gp

LEVELS = (0.01, 0.05, 0.1)
SIDE = 600.0
SHAPES = {
    "square": lambda x, y: x > -1,
    "disc": lambda x, y: np.hypot(x - 300, y - 300) < 300,
    "L": lambda x, y: (x < 250) | (y < 250),
    "ring": lambda x, y: (np.hypot(x - 300, y - 300) < 300) & (np.hypot(x - 300, y - 300) > 130),
}
STRUCTURES = (
    "nothing",
    "types, depth at random",
    "types, depth smooth",
    "a fifth of the types wrong",
    "smooth map",
    "blur of 15 µm",
)
POSITIVE = (5, 20, 80, 400, None)  # None: about all cells


class Slide:
    """Cells in a tissue; four types in patches of 50 µm, a depth and a layout as smooth."""

    def __init__(self, rng: np.random.Generator, shape: str, n: int) -> None:
        xy = rng.uniform(0, SIDE, (6 * n, 2))
        self.rng, self.n, self.xy = rng, n, xy[SHAPES[shape](*xy.T)][:n]
        self.layout = self.maps(50, 3)
        self.types = (self.maps(35, 4) + 0.3 * rng.normal(size=(n, 4))).argmax(axis=1)
        self.smooth = self.maps(35, 1)[:, 0]

    def maps(self, reach: float, n_maps: int, n_waves: int = 300) -> np.ndarray:
        """Stationary Gaussian maps of correlation exp(-d² / 4 reach²)."""
        phase = self.xy @ self.rng.normal(scale=1 / (reach * np.sqrt(2)), size=(2, n_waves))
        waves = np.column_stack([np.cos(phase), np.sin(phase)])
        return waves @ self.rng.normal(scale=1 / np.sqrt(n_waves), size=(2 * n_waves, n_maps))

    def table(self, values: np.ndarray, depth: np.ndarray, *, total: float = 3000, types=None) -> AnnData:
        """A table whose depth is known from ``total`` counts a cell."""
        table = AnnData(values.astype(np.float32))
        table.obs["total"] = self.rng.poisson(total * depth)
        table.obs["cell_type"] = pd.Categorical((self.types if types is None else types).astype(str))
        table.obsm["spatial"], table.obsm["layout"] = self.xy, self.layout
        return table

    def null_table(self, structure: str, n_genes: int) -> AnnData:
        """Genes by detection rate, ``n_genes`` each, that follow nothing but the structure."""
        rng, n = self.rng, self.n
        # the same in all cells where nothing needs it: genes that share a depth are hardly several observations
        logs = self.smooth if "type" in structure else np.zeros(n)
        depth = np.exp(0.5 * (rng.normal(size=n) if structure == "types, depth at random" else logs))
        types = self.types
        if structure == "a fifth of the types wrong":
            types = np.where(rng.random(n) < 0.2, rng.integers(0, 4, n), types)
        parts = []
        for k in POSITIVE:
            rate = np.ones((n, n_genes))
            if "type" in structure:
                rate = rng.gamma(1, 1, (4, n_genes))[self.types]
            elif structure == "smooth map":
                rate = np.exp(self.maps(30, n_genes))
            rate = rate * depth[:, None]
            parts.append(rng.poisson(rate / rate.mean(axis=0) * (10 if k is None else k / n)))
        values = np.hstack(parts).astype(float)
        if structure == "blur of 15 µm":
            spill = np.exp(-(cdist(self.xy, self.xy) ** 2) / (2 * 15**2))
            values = spill / spill.sum(axis=1, keepdims=True) @ values
        return self.table(values, depth, types=types)


def pvalues(table: AnnData, **options) -> np.ndarray:
    """P-values of all genes, by the verb."""
    gp.tl.svg(table, progress=False, n_jobs=1, **options)
    return table.var["svg_pval"].to_numpy()


def tests_of(n_perms: int) -> dict[str, dict]:
    """The tests, by the title of their table."""
    layout = {"layout_key": "layout"}
    return {
        "values, Moran's I": {"n_perms": n_perms},
        "values, SPARK-X": {"method": "sparkx"},
        "within_type, Moran's I": {"null": "within_type", "n_perms": n_perms},
        "within_type, SPARK-X": {"null": "within_type", "method": "sparkx"},
        "map_shift, coordinates": {"null": "map_shift", "method": "sparkx", "n_perms": 99},
        "map_shift, a smooth layout": {"null": "map_shift", "method": "sparkx", "n_perms": 99, **layout},
        "variogram, coordinates": {"null": "variogram", "method": "sparkx"},
        "variogram, a smooth layout": {"null": "variogram", "method": "sparkx", **layout},
    }


class Rates:
    """Rejections per slide, by table, row and column."""

    def __init__(self) -> None:
        self.found: dict = defaultdict(list)

    def add(self, title: str, row: str, column: str, pval: np.ndarray) -> None:
        self.found[title, row, column].append([float((pval[~np.isnan(pval)] <= level).mean()) for level in LEVELS])

    def report(self) -> dict[str, dict]:
        """Print one table per title; the same as plain values."""
        out: dict = defaultdict(dict)
        for (title, row, column), rates in self.found.items():
            rates = np.array(rates)
            error = rates.std(axis=0, ddof=1) / np.sqrt(len(rates)) if len(rates) > 1 else np.full(3, np.nan)
            out[title].setdefault(row, {})[column] = {"rate": rates.mean(axis=0).tolist(), "error": error.tolist()}
        for title, rows in out.items():
            columns = list(next(iter(rows.values())))
            print(f"\n**{title}**\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
            for row, cells in rows.items():
                shown = [" / ".join(f"{100 * r:.0f}" for r in cells[c]["rate"]) for c in columns]
                print(f"| {row} | {' | '.join(shown)} |")
            largest = max(c["error"][1] for cells in rows.values() for c in cells.values())
            print(f"\nLargest standard error at 5 %: {100 * largest:.1f} %.", flush=True)
        return out


def nulls(options: argparse.Namespace, rates: Rates) -> None:
    """Every null by structure, detection rate and shape."""
    for shape in options.shapes.split(","):
        for structure in STRUCTURES:
            for seed in range(options.slides):
                slide = Slide(np.random.default_rng([seed, 1]), shape, options.cells)
                table = slide.null_table(structure, options.genes)
                for title, chosen in tests_of(options.perms).items():
                    pval = pvalues(table, **chosen).reshape(len(POSITIVE), -1)
                    for k, part in zip(POSITIVE, pval, strict=True):
                        rates.add(title, f"{shape}: {structure}", "all" if k is None else str(k), part)


def depth(options: argparse.Namespace, rates: Rates) -> None:
    """Within types: counts per cell of the gene, counts that depth is known from."""
    tests = {k: v for k, v in tests_of(options.perms).items() if k.startswith("within_type")}
    for seed in range(options.slides):
        slide = Slide(np.random.default_rng([seed, 2]), "square", options.cells)
        truth = np.exp(0.5 * slide.smooth)
        for mean in (0.5, 2, 10, 40):
            rate = slide.rng.gamma(1, 1, (4, 4 * options.genes))[slide.types] * truth[:, None]
            values = slide.rng.poisson(mean * rate / rate.mean(axis=0))
            for total in (3000, 300, 60):
                table = slide.table(values, truth, total=total)
                table.layers["raw"] = table.X + 0.5  # not whole, so it is not taken as log1p
                for title, chosen in tests.items():
                    for scale, layer in (("log1p", None), ("raw", "raw")):
                        pval = pvalues(table, layer=layer, **chosen)
                        rates.add(f"{title}, {scale}", f"{mean:g} counts a cell", f"depth from {total}", pval)


def reach(options: argparse.Namespace, rates: Rates) -> None:
    """Layout tests by the range of the map and the shape of the tissue."""
    tests = {k: v for k, v in tests_of(0).items() if k.startswith(("map_shift", "variogram"))}
    for shape in options.shapes.split(","):
        for seed in range(2 * options.slides):
            slide = Slide(np.random.default_rng([seed, 3]), shape, options.cells)
            for far in (15, 30, 60, 100):
                values = slide.maps(far, options.genes) + 0.3 * slide.rng.normal(size=(slide.n, options.genes))
                table = slide.table(values, np.ones(slide.n))
                for title, chosen in tests.items():
                    rates.add(f"{title}, level", shape, f"range {far} µm", pvalues(table, **chosen))


def power(options: argparse.Namespace, rates: Rates) -> None:
    """Layout tests where genes follow something: a third to two thirds of the variance of a map of 20 µm."""
    tests = {k: v for k, v in tests_of(0).items() if k.startswith(("map_shift", "variogram"))}
    for shape in options.shapes.split(","):
        for seed in range(options.slides):
            slide = Slide(np.random.default_rng([seed, 4]), shape, options.cells)
            x, y = (slide.xy / SIDE).T
            patterns = {
                "gradient": (x - x.mean()) / x.std(),
                "centre": 3 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.04),
                "layout": slide.layout[:, 0] / slide.layout[:, 0].std(),
            }
            noise = slide.maps(20, options.genes) + 0.3 * slide.rng.normal(size=(slide.n, options.genes))
            for what, pattern in patterns.items():
                table = slide.table(noise + 0.8 * pattern[:, None], np.ones(slide.n))
                for title, chosen in tests.items():
                    if ("layout" in title) == (what == "layout"):
                        rates.add(f"{title.split(',')[0]}, power", shape, what, pvalues(table, **chosen))


SECTIONS = {"nulls": nulls, "depth": depth, "reach": reach, "power": power}


def main() -> None:
    """Run the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--slides", type=int, default=2)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--genes", type=int, default=40, help="per slide and cell of a table")
    parser.add_argument("--perms", type=int, default=199)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--only", default=",".join(SECTIONS))
    options = parser.parse_args()
    logging.getLogger("ghistpy").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.only.split(","):
        rates = Rates()
        SECTIONS[name](options, rates)
        results[name] = rates.report()
        (options.out / "calibration.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
