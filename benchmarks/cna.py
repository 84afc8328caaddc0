"""CNA association: time and memory of all tests with log p and BH, and of permutations; calibration on TCGA.

    python benchmarks/cna.py OUT [--genes 20000] [--features 280] [--patients 600] [--permutations 3] [--tcga]

Every gene has calls of its own, which is the dearest case: real genes share theirs. ``--tcga`` permutes the
patients of TCGA-BRCA 20 times and prints how often some test is significant after Bonferroni, with and
without normal scores. Writes OUT/cna.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import ghistpy as gp


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=280)
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--permutations", type=int, default=3)
    parser.add_argument("--tcga", action="store_true")
    args = parser.parse_args()
    rows = [*size(args)] + (calibration() if args.tcga else [])
    print(pd.DataFrame(rows).to_string(index=False))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cna.json").write_text(json.dumps(rows, indent=1))


def size(args: argparse.Namespace) -> list[dict]:
    """Seconds and peak memory of all tests, and seconds per permutation on top."""
    rng = np.random.default_rng(0)
    adata = AnnData(rng.normal(size=(args.patients, args.features)).astype(np.float32))
    shares = [0.03, 0.2, 0.45, 0.25, 0.07]
    calls = rng.choice(np.arange(-2, 3), size=(args.patients, args.genes), p=shares).astype(np.int8)
    cna = AnnData(calls)
    positions = pd.DataFrame(
        {"gene": cna.var_names, "chrom": [f"chr{1 + i % 22}" for i in range(args.genes)], "start": 1}
    )
    positions["start"] = 1 + (np.arange(args.genes) // 22) * 100_000
    gp.tl.cna_association(adata, cna[:, :50].copy(), positions=positions, progress=False)  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started = time.perf_counter()
    gp.tl.cna_association(adata, cna, positions=positions, progress=False)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    what = f"{args.genes} genes x {args.features} features x {args.patients} patients"
    out = [{"what": what, "seconds": seconds, "peak GB": peak, "of it before": before}]
    if args.permutations:
        started = time.perf_counter()
        gp.tl.cna_association(adata, cna, positions=positions, n_permutations=args.permutations, progress=False)
        each = (time.perf_counter() - started - seconds) / (args.permutations + 1)  # the observed order, too
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        out.append({"what": "one permutation", "seconds": each, "peak GB": peak})
        out.append({"what": "1,000 permutations (from it)", "seconds": 1000 * each})
    return out


def calibration() -> list[dict]:
    """Family-wise error of Bonferroni, λ and BH discoveries on permuted patients of TCGA-BRCA."""
    adata, cna = gp.datasets.tcga_brca(), gp.datasets.tcga_brca("cna")
    few_ties = np.array([np.unique(x, return_counts=True)[1].max() < 0.05 * len(x) for x in adata.X.T])
    adata = adata[:, few_ties].copy()
    out = []
    for min_samples in (5, 20, 50):
        for transform in ("rank_normal", None):
            hits, lam, false = [], [], []
            for seed in range(20):
                shuffled = cna.copy()
                shuffled.obs_names = np.random.default_rng(seed).permutation(cna.obs_names)
                options = {"transform": transform, "min_samples": min_samples, "progress": False}
                gp.tl.cna_association(adata, shuffled, **options)
                stored = adata.uns["cna_association"]
                notes = json.loads(stored["notes"])
                hits.append(np.nanmin(stored["log10_pval"]) < np.log10(0.05 / notes["n_tests"]))
                false.append(int((stored["log10_pval_adj"] <= np.log10(0.05)).sum()))
                lam.append(notes["inflation"])
            out.append(
                {
                    "what": f"TCGA permuted, {transform}, min_samples={min_samples}",
                    "FWER of Bonferroni": float(np.mean(hits)),
                    "median λ": float(np.median(lam)),
                    "median BH discoveries": float(np.median(false)),
                }
            )
    return out


if __name__ == "__main__":
    main()
