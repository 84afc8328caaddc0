"""Neighbour statistics of one slide: seconds, peak memory and the ratio to named programs.

    python benchmarks/slide_biology_neighbours.py [--cells 100000] [--genes 300] [--out FILE]

Every task runs in a process of its own on the same simulated table; the peak is that of the process less
what it held before the task. Programs that are compared get the same graph or points and types.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

DENSITY = 3000  # cells per mm²
N_TYPES = 10
MOST_FOR_ALL_PAIRS = 20_000


def make(n_cells: int, n_genes: int):
    """Cells in niches, sparse counts."""
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    rng = np.random.default_rng(0)
    side = np.sqrt(n_cells / DENSITY) * 1000
    xy = rng.uniform(0, side, (n_cells, 2))
    niche = (np.sin(xy[:, 0] / 150) + np.cos(xy[:, 1] / 150) > 0).astype(int)
    chance = rng.dirichlet(np.ones(N_TYPES), 2)
    code = (rng.random(n_cells)[:, None] > np.cumsum(chance, axis=1)[niche]).sum(axis=1).clip(0, N_TYPES - 1)
    rate = rng.gamma(0.4, 0.8, (N_TYPES, n_genes))
    parts = np.array_split(code, max(1, n_cells // 5000))
    X = sparse.vstack([sparse.csr_matrix(rng.poisson(rate[c]).astype(np.float32)) for c in parts], format="csr")
    table = AnnData(X, obs=pd.DataFrame(index=np.arange(n_cells).astype(str)))
    table.obs["cell_type"] = pd.Categorical.from_codes(code, [f"type_{k}" for k in range(N_TYPES)])
    table.obsm["spatial"] = xy
    return table


def with_graph(table, radius: float = 30.0):
    """A radius graph in obsp, as squidpy stores it."""
    from scipy import sparse

    from ghistpy.geometry import radius_graph

    table.obsp["spatial_connectivities"] = sparse.csr_matrix(radius_graph(table.obsm["spatial"], radius).weights)
    return table


def tasks() -> dict:
    """Name -> (prepare, run)."""
    import ghistpy as gp

    def squidpy(name: str, **options):
        import squidpy as sq

        return lambda t: getattr(sq.gr, name)(t, cluster_key="cell_type", **options)

    def corrcoef(t):
        from scipy.spatial import cKDTree

        index = cKDTree(t.obsm["spatial"]).query(t.obsm["spatial"], 2)[1][:, 1]
        X = t.X.tocsc()
        return [np.corrcoef(c := X[:, [g]].toarray().ravel(), c[index])[0, 1] for g in range(t.n_vars)]

    def squidpy_ripley(t):
        import squidpy as sq

        if t.n_obs > MOST_FOR_ALL_PAIRS:
            raise SystemExit("all pairs of a type do not fit into memory; use --cells 20000")
        options = {"max_dist": 50, "n_steps": 51, "n_simulations": 1, "n_observations": 100}
        return sq.gr.ripley(t, cluster_key="cell_type", mode="L", **options)

    def dense(t):
        t.X = t.X.toarray()
        return t

    same = lambda t: t  # noqa: E731
    return {
        "nn correlation, sparse": (same, gp.tl.neighborhood_correlation),
        "nn correlation, dense": (dense, gp.tl.neighborhood_correlation),
        "nn correlation, 6 neighbours within type": (
            same, lambda t: gp.tl.neighborhood_correlation(t, n_neighbors=6, within_type=True)),
        "nn correlation, density adjusted": (
            same, lambda t: gp.tl.neighborhood_correlation(t, adjust_density=True)),
        "nn correlation, from 20 µm": (same, lambda t: gp.tl.neighborhood_correlation(t, min_distance=20)),
        "numpy.corrcoef gene by gene": (same, corrcoef),
        "composition within 50 µm of every cell": (same, lambda t: gp.tl.composition(t, radius=50)),
        "interaction, 30 µm": (same, lambda t: gp.tl.cell_type_interaction(t, radius=30)),
        "interaction, given graph": (with_graph, gp.tl.cell_type_interaction),
        "squidpy interaction_matrix, given graph": (with_graph, squidpy("interaction_matrix")),
        "interaction, 100 permutations": (
            with_graph, lambda t: gp.tl.cell_type_interaction(t, n_perms=100, progress=False)),
        "squidpy nhood_enrichment, 100 permutations": (
            with_graph, squidpy("nhood_enrichment", n_perms=100, show_progress_bar=False)),
        "Ripley L, 10 x 10 types, 50 µm": (same, gp.tl.ripley_l),
        "squidpy ripley L, 50 µm, within types, uncorrected": (same, squidpy_ripley),
        "Ripley L, 20 permutations": (same, lambda t: gp.tl.ripley_l(t, n_perms=20, step=2, progress=False)),
        "local Moran, 1 gene, 199 permutations": (
            same, lambda t: gp.tl.local_moran(t, t.var_names[0], n_perms=199, progress=False)),
    }  # fmt: skip


def run_one(name: str, n_cells: int, n_genes: int) -> None:
    """In its own process: prints seconds and peak."""
    import warnings

    warnings.simplefilter("ignore")
    prepare, run = tasks()[name]
    small = prepare(make(2000, 5))
    run(small)  # imports and compilation do not count
    table = prepare(make(n_cells, n_genes))
    gc.collect()
    before, seconds = resident_mb(), []
    watch = Watch()
    for _ in range(3):
        started = time.perf_counter()
        run(table)
        seconds.append(time.perf_counter() - started)
        if seconds[0] > 20:
            break
    peak = watch.stop()
    print("RESULT" + json.dumps({"seconds": min(seconds), "peak_mb": peak - before, "total_mb": peak}))


def resident_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Watch:
    """Largest memory of this process, looked at every 5 ms."""

    def __init__(self) -> None:
        self.peak, self.running = 0.0, True
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident_mb())
            time.sleep(0.005)

    def stop(self) -> float:
        self.running = False
        self.thread.join()
        return max(self.peak, resident_mb())


def main() -> None:
    """Run all tasks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--task")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.task:
        run_one(args.task, args.cells, args.genes)
        return
    rows = {}
    print(f"{args.cells:,} cells x {args.genes} genes, {N_TYPES} types")
    print("| task | s | peak MB | process MB |")
    print("| --- | --- | --- | --- |")
    for name in tasks():
        command = [sys.executable, __file__, "--task", name, "--cells", str(args.cells), "--genes", str(args.genes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not found:
            print(f"| {name} | failed: {done.stderr.strip().splitlines()[-1:]} |")
            continue
        rows[name] = json.loads(found[0][6:])
        r = rows[name]
        print(f"| {name} | {r['seconds']:.2f} | {r['peak_mb']:.0f} | {r['total_mb']:.0f} |", flush=True)
    pairs = {
        "interaction, given graph": "squidpy interaction_matrix, given graph",
        "interaction, 100 permutations": "squidpy nhood_enrichment, 100 permutations",
        "Ripley L, 10 x 10 types, 50 µm": "squidpy ripley L, 50 µm, within types, uncorrected",
        "nn correlation, sparse": "numpy.corrcoef gene by gene",
    }
    for ours, theirs in pairs.items():
        if ours in rows and theirs in rows:
            print(f"{theirs} / {ours}: {rows[theirs]['seconds'] / rows[ours]['seconds']:.1f}x")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
