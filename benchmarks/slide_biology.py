"""Speed and memory of the statistics of one slide, beside squidpy on the same graph in the same run.

    python benchmarks/slide_biology.py OUT [--cells N] [--genes G] [--perms P] [--large L] [--only moran,sparkx]

One section per statistic. Every figure is taken in a process of its own, after a first call that compiles,
and is the median of three calls (one for permutations). Peak memory is that of the process, with the table
in it. Prints one table and writes OUT/slide_biology.json. Targets: 100,000 cells x 300 genes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

TARGETS = {
    "moran, sparse: times squidpy": ">= 8",
    "moran, dense: times squidpy": ">= 8",
    "permutations, sparse: seconds": "<= 45",
    "sparkx, sparse: seconds": "<= 2",
    "sparkx, large sparse: seconds": "<= 10",
    "sparkx, large sparse: peak GB": "<= 6",
}


def make_table(n: int, n_genes: int, *, dense: bool = False, seed: int = 0):
    """Cells at 4,000 per mm², counts with a detection rate of about 12 %, some genes with a pattern."""
    from anndata import AnnData

    from ghistpy.geometry import knn_graph

    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, np.sqrt(n / 4000) * 1000, (n, 2))
    level = rng.gamma(0.5, 0.3, n_genes)
    fold = np.exp(0.5 * np.sin(xy[:, 0] / 200))
    blocks = [
        sparse.csc_array(rng.poisson(level[i : i + 20] * fold[:, None]).astype(np.float32))
        for i in range(0, n_genes, 20)
    ]
    X = sparse.csr_matrix(sparse.hstack(blocks))
    table = AnnData(X.toarray() if dense else X)
    table.obsm["spatial"] = xy
    table.obsp["spatial_connectivities"] = sparse.csr_matrix(knn_graph(xy, 6).weights)
    return table


def seconds_of(call: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of ``call``, after one call that compiles on other data."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def _warm(run: Callable, **options) -> None:
    run(make_table(2000, 70, **options))


def moran(n: int, n_genes: int, method: str = "moran", dense: bool = False) -> dict[str, float]:
    """Score and analytic p of all genes, ours and squidpy's, from the same table and graph."""
    import squidpy as sq

    import ghistpy as gp

    def ours(table):
        gp.tl.svg(table, method=method)

    def theirs(table):
        sq.gr.spatial_autocorr(table, mode=method, n_perms=None, show_progress_bar=False)

    for run in (ours, theirs):
        _warm(run, dense=dense)
    table = make_table(n, n_genes, dense=dense)
    a, b = seconds_of(lambda: ours(table)), seconds_of(lambda: theirs(table))
    key, column = ("moranI", "I") if method == "moran" else ("gearyC", "C")
    apart = np.abs(table.uns[key].loc[table.var_names, column] - table.var["svg_score"]).max()
    return {"seconds": a, "squidpy seconds": b, "times squidpy": b / a, "largest difference": float(apart)}


def permutations(n: int, n_genes: int, n_perms: int, dense: bool = False) -> dict[str, float]:
    """P-values of all genes by permuting values."""
    import ghistpy as gp

    def ours(table, n_perms=2):
        gp.tl.svg(table, n_perms=n_perms, progress=False)

    _warm(ours, dense=dense)
    table = make_table(n, n_genes, dense=dense)
    taken = seconds_of(lambda: ours(table, n_perms), 1)
    return {"seconds": taken, "permutations": n_perms, "ms per permutation": 1000 * taken / n_perms}


def squidpy_permutations(n: int, n_genes: int) -> dict[str, float]:
    """100 permutations by squidpy (which moves rows of the graph) and by us, on a small table."""
    import squidpy as sq

    import ghistpy as gp

    table = make_table(n, n_genes)
    _warm(lambda t: gp.tl.svg(t, n_perms=2, progress=False))
    sq.gr.spatial_autocorr(make_table(500, 10), n_perms=2, n_jobs=1, show_progress_bar=False)
    a = seconds_of(lambda: gp.tl.svg(table, n_perms=100, progress=False))
    b = seconds_of(lambda: sq.gr.spatial_autocorr(table, n_perms=100, n_jobs=1, show_progress_bar=False), 1)
    return {"seconds": a, "squidpy seconds": b, "times squidpy": b / a, "permutations": 100}


def within_type(n: int, n_genes: int, n_perms: int) -> dict[str, float]:
    """Residuals permuted within types and depth."""
    import ghistpy as gp

    def ours(table, n_perms=2):
        table.obs["cell_type"] = pd.Categorical(np.arange(table.n_obs) % 6).astype(str)
        gp.tl.svg(table, n_perms=n_perms, null="within_type", progress=False)

    _warm(ours)
    table = make_table(n, n_genes)
    return {"seconds": seconds_of(lambda: ours(table, n_perms), 1), "permutations": n_perms}


def map_shift(n: int, n_genes: int, n_perms: int) -> dict[str, float]:
    """Shifted layouts."""
    import ghistpy as gp

    table = make_table(n, n_genes)
    taken = seconds_of(lambda: gp.tl.svg(table, null="map_shift", n_perms=n_perms, progress=False), 1)
    return {"seconds": taken, "shifts": n_perms, "ms per shift": 1000 * taken / n_perms}


def variogram(n: int, n_genes: int) -> dict[str, float]:
    """Variance components of all genes and the test of SPARK-X's functions of the coordinates."""
    import ghistpy as gp

    _warm(lambda t: gp.tl.svg(t, null="variogram"))
    table = make_table(n, n_genes)
    return {"seconds": seconds_of(lambda: gp.tl.svg(table, null="variogram"))}


def sparkx(n: int, n_genes: int, dense: bool = False) -> dict[str, float]:
    """SPARK-X of all genes."""
    import ghistpy as gp

    _warm(lambda t: gp.tl.svg(t, method="sparkx"), dense=dense)
    table = make_table(n, n_genes, dense=dense)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds_of(lambda: gp.tl.svg(table, method="sparkx")), "peak GB before the call": before}


def local_moran(n: int, n_perms: int) -> dict[str, float]:
    """Local Moran's I of five genes with conditional permutations."""
    import ghistpy as gp

    def ours(table, n_perms=2):
        gp.tl.local_moran(table, table.var_names[:5].tolist(), n_perms=n_perms)

    _warm(ours)
    table = make_table(n, 10)
    return {"seconds": seconds_of(lambda: ours(table, n_perms), 1), "permutations": n_perms, "genes": 5}


def sections(args: argparse.Namespace) -> dict[str, tuple[Callable, tuple]]:
    """Name of every section, its function and arguments."""
    n, g, p = args.cells, args.genes, args.perms
    return {
        "moran, sparse": (moran, (n, g)),
        "moran, dense": (moran, (n, g, "moran", True)),
        "geary, sparse": (moran, (n, g, "geary")),
        "permutations, sparse": (permutations, (n, g, p)),
        "permutations, dense": (permutations, (n, g, p, True)),
        "permutations, beside squidpy (5,000 cells)": (squidpy_permutations, (5000, g)),
        "within_type": (within_type, (n, g, p)),
        "map_shift": (map_shift, (n, g, 99)),
        "variogram": (variogram, (n, g)),
        "sparkx, sparse": (sparkx, (n, g)),
        "sparkx, dense": (sparkx, (n, g, True)),
        "sparkx, large sparse": (sparkx, (args.large, g)),
        "sparkx, large dense": (sparkx, (args.large, g, True)),
        "local_moran": (local_moran, (n, 199)),
    }


def _child(function: Callable, arguments: tuple, pipe) -> None:
    warnings.simplefilter("ignore")
    result = function(*arguments)
    pipe.send(result | {"peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6})


def run(function: Callable, arguments: tuple) -> dict[str, float]:
    """A section in a process of its own, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, arguments, sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = {"seconds": float("nan")}
    process.join()
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--perms", type=int, default=1000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="sections whose names start with one of these, by comma")
    args = parser.parse_args()
    wanted = tuple(name.strip() for name in args.only.split(",") if name.strip())
    results = {}
    for name, (function, arguments) in sections(args).items():
        if not wanted or name.startswith(wanted):
            results[name] = run(function, arguments)
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in results[name].items()), flush=True)
    frame = pd.DataFrame(results).T
    print(frame.to_string(float_format=lambda v: f"{v:.4g}", na_rep=""))
    for target, bound in TARGETS.items():
        section, _, column = target.partition(": ")
        if section in results:
            print(f"{target} {results[section].get(column, float('nan')):.3g} (target {bound})")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(args).items() if k != "out"} | {
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }
    (args.out / "slide_biology.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1))


if __name__ == "__main__":
    main()
