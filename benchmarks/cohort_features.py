"""Features of a cohort: time and memory for all kinds.

    python benchmarks/cohort_features.py OUT [--samples 20] [--cells 50000] [--genes 280] [--workers 1]

Samples are tables of cells with eight types in patches, 5,000 cells per mm², in-silico values. With
``--workers 2`` they run on a local Dask cluster of two processes with one thread each. Writes
OUT/cohort_features.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import ghistpy as gp
from ghistpy.tl._features import KINDS


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=280)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--each", action="store_true", help="also time every kind on one sample")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.samples):
            sample(i, args).write_h5ad(Path(folder) / f"S{i}.h5ad")
        frame = pd.DataFrame({"sample": [f"S{i}" for i in range(args.samples)]})
        frame["path"] = frame["sample"] + ".h5ad"
        cohort = gp.Cohort(frame, root=folder)
        rows = [run(cohort, args)] + (each_kind(cohort.subset(cohort.samples[:1])) if args.each else [])
    print(pd.DataFrame(rows).to_string(index=False))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cohort_features.json").write_text(json.dumps(rows, indent=1))


def sample(seed: int, args: argparse.Namespace) -> AnnData:
    """Cells of eight types in patches of 80 µm."""
    rng = np.random.default_rng(seed)
    side = np.sqrt(args.cells / 5000) * 1000
    xy = rng.uniform(0, side, (args.cells, 2))
    centre = rng.uniform(0, side, (max(8, args.cells // 30), 2))
    from scipy.spatial import cKDTree

    home = rng.integers(0, 8, len(centre))[cKDTree(centre).query(xy)[1]]
    code = np.where(rng.random(args.cells) < 0.7, home, rng.integers(0, 8, args.cells))
    profile = np.random.default_rng(99).gamma(0.5, 1.0, (8, args.genes))
    X = np.log1p(profile[code] * rng.gamma(4, 0.25, (args.cells, args.genes))).astype(np.float32)
    table = AnnData(X, var=pd.DataFrame(index=[f"G{i:03d}" for i in range(args.genes)]))
    table.obs["cell_type"] = pd.Categorical([f"T{c}" for c in code])
    table.obsm["spatial"] = xy
    table.uns["ghistpy"] = {"units": "log1p(expected count)"}
    return table


def options(genes: list[str]) -> dict:
    """50 gene sets of 20 genes and 100 ligand-receptor pairs."""
    rng = np.random.default_rng(1)
    sets = {f"set{i}": rng.choice(genes, 20, replace=False).tolist() for i in range(50)}
    return {"gene_sets": sets, "lr_pairs": [tuple(rng.choice(genes, 2, replace=False)) for _ in range(100)]}


def run(cohort: gp.Cohort, args: argparse.Namespace) -> dict:
    """All kinds over the whole cohort."""
    client = None
    if args.workers > 1:
        from distributed import Client, LocalCluster

        client = Client(LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=None))
    genes = [f"G{i:03d}" for i in range(args.genes)]
    started = time.perf_counter()
    found = gp.tl.cohort_features(cohort, kinds=KINDS, client=client, progress=False, **options(genes))
    seconds = time.perf_counter() - started
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]
    if client is not None:
        peaks += client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6).values()
        client.shutdown()
    what = f"{args.samples} samples x {args.cells} cells x {args.genes} genes, {args.workers} workers"
    return {"what": what, "features": found.n_vars, "seconds": seconds, "peak GB": float(np.sum(peaks))}


def each_kind(cohort: gp.Cohort) -> list[dict]:
    """Seconds of every kind for one sample (reading, both passes included)."""
    genes = cohort[cohort.samples[0]].var_names.tolist()
    out = []
    for kind in KINDS:
        started = time.perf_counter()
        gp.tl.cohort_features(cohort, kinds=kind, progress=False, **options(genes))
        out.append({"what": kind, "seconds": time.perf_counter() - started})
    return out


if __name__ == "__main__":
    main()
