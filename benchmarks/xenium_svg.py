"""Spatially variable genes of a real slide: Xenium breast, replicate 1, three regions, by all methods.

    python benchmarks/xenium_svg.py DATA OUT [--shifts N] [--top N]

DATA holds data/xenium_breast_rep1/<region>.csv.gz (cells x genes with x_centroid, y_centroid in µm). Prints, per
region, how the ranks of Moran's I, Geary's C and SPARK-X agree (Spearman, genes shared among the best 20), the
best genes of each, where those of SPARK-X stand when depth is regressed out, and how many genes each null rejects
at 5 %, before and after adjustment. Draws the best genes of Moran's I and of SPARK-X on the tissue to
OUT/<region>_<method>.png and writes OUT/xenium_svg.json.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import ghistpy as gp

REGIONS = ("bulbasaur", "charmander", "squirtle")
METHODS = ("moran", "geary", "sparkx")


def read_region(folder: Path, name: str) -> AnnData:
    """Counts and places of the cells of a region."""
    frame = pd.read_csv(folder / f"{name}.csv.gz", index_col=0)
    genes = [c for c in frame if c not in ("x_centroid", "y_centroid", "area")]
    table = AnnData(sparse.csr_matrix(frame[genes].to_numpy(np.float32)), var=pd.DataFrame(index=genes))
    table.obs_names = frame.index.astype(str)
    table.obsm["spatial"] = frame[["x_centroid", "y_centroid"]].to_numpy()
    return table


def rejected(table: AnnData, key: str) -> list[int]:
    """Genes with p < .05, and with adjusted p < .05."""
    return [int((table.var[f"{key}_{column}"] < 0.05).sum()) for column in ("pval", "pval_adj")]


def one_region(table: AnnData, n_shifts: int) -> dict:
    """Ranks and rejections of one region."""
    for method in METHODS:
        gp.tl.svg(table, method=method, key_added=method, progress=False)
    gp.tl.svg(table, method="sparkx", log_depth=True, key_added="of_depth", progress=False)
    gp.tl.svg(table, method="moran", null="variogram", key_added="variogram", progress=False)
    gp.tl.svg(table, null="map_shift", n_perms=n_shifts, key_added="map_shift", progress=False)
    ranks = table.var[[f"{m}_rank" for m in METHODS]]
    best = {m: list(table.var[f"{m}_rank"].nsmallest(20).index) for m in METHODS}
    pairs = [("moran", "geary"), ("moran", "sparkx"), ("geary", "sparkx")]
    agreement = ranks.corr("spearman").to_numpy()
    return {
        "cells": table.n_obs,
        "genes": table.n_vars,
        "span_um": np.ptp(table.obsm["spatial"], axis=0).round().tolist(),
        "spearman": {f"{a}, {b}": float(agreement[METHODS.index(a), METHODS.index(b)]) for a, b in pairs},
        "shared of 20": {f"{a}, {b}": len(set(best[a]) & set(best[b])) for a, b in pairs},
        "best": {m: genes[:8] for m, genes in best.items()},
        "rank with log_depth, best of sparkx": table.var.loc[best["sparkx"][:8], "of_depth_rank"].astype(int).to_dict(),
        "rejected, adjusted": {key: rejected(table, key) for key in (*METHODS, "variogram", "map_shift")},
        "least p, variogram": list(table.var["variogram_pval"].nsmallest(8).index),
    }


def main() -> None:
    """Test and draw the regions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shifts", type=int, default=199)
    parser.add_argument("--top", type=int, default=6)
    options = parser.parse_args()
    logging.getLogger("ghistpy").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in REGIONS:
        table = read_region(options.data / "data" / "xenium_breast_rep1", name)
        results[name] = one_region(table, options.shifts)
        print(name, json.dumps(results[name], indent=1), flush=True)
        for method in ("moran", "sparkx"):
            gp.pl.svg(table, key=method, n_genes=options.top)
            plt.savefig(options.out / f"{name}_{method}.png", dpi=110)
            plt.close("all")
    (options.out / "xenium_svg.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
