"""CNA association: time and memory of all tests with log p and BH, and of permutations; calibration on TCGA.

    python benchmarks/cna.py OUT [--genes 20000] [--features 280] [--patients 600] [--permutations 3] [--tcga]

Every gene has calls of its own, which is the dearest case: real genes share theirs. ``--tcga`` permutes the
patients of TCGA-BRCA 20 times and prints how often some test is significant after Bonferroni, with and
without normal scores; it compares what principal components of expression as covariates do to the first
500 pairs, with the same calibration. Writes OUT/cna.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

import ghistpy as gp
from ghistpy.stats.adjusted import adjusted_welch
from ghistpy.stats.association import prepare, rank_normal


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
    rows = [*size(args), *small_groups()] + (
        [*calibration(), *components(), *factors(), *all_features()] if args.tcga else []
    )
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


def small_groups() -> list[dict]:
    """p-values of the adjusted test where calls and features follow the covariate, over what is expected."""
    out = []
    for n in (25, 40, 80, 200):
        below, smaller = [], []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            burden = rng.normal(size=n)
            calls = np.clip(np.rint(0.8 * rng.normal(size=(200, n)) + burden), -1, 1)
            values = prepare(rank_normal(rng.normal(size=(n, 25)) + burden[:, None]))
            found = adjusted_welch(calls < 0, calls > 0, values, burden[:, None], min_samples=5)
            below.append(np.exp(found.log_p[np.isfinite(found.log_p)]))
            smaller.append(np.minimum(found.n_low, found.n_high))
        p = np.concatenate(below)
        row = {"what": f"null with covariate, {n} patients, smaller group {np.median(smaller):.0f}"}
        out.append(row | {f"p <= {a:g} / expected": float((p <= a).mean() / a) for a in (0.05, 0.01, 1e-3, 1e-4)})
    return out


def calibration() -> list[dict]:
    """Family-wise error of Bonferroni, λ and BH discoveries on permuted patients of TCGA-BRCA."""
    adata, cna = tcga()
    out = []
    for min_samples in (5, 20, 50):
        for transform in ("rank_normal", None):
            what = f"TCGA permuted, {transform}, min_samples={min_samples}"
            out.append({"what": what} | permuted(adata, cna, transform=transform, min_samples=min_samples))
    return out


def tcga(*, ties: bool = False) -> tuple[AnnData, AnnData]:
    """Features without ties, which are tested without permutations; principal components of all features."""
    adata, cna = gp.datasets.tcga_brca(), gp.datasets.tcga_brca("cna")
    adata.layers["scores"] = rank_normal(adata.X)
    sc.pp.pca(adata, n_comps=10, key_added="values")
    sc.pp.pca(adata, n_comps=10, layer="scores", key_added="scores")
    few_ties = np.array([np.unique(x, return_counts=True)[1].max() < 0.05 * len(x) for x in adata.X.T])
    return adata if ties else adata[:, few_ties].copy(), cna


def permuted(adata: AnnData, cna: AnnData, times: int = 20, **options: object) -> dict:
    """The patients of the calls shuffled, so that they have nothing to do with features and covariates."""
    hits, lam, false = [], [], []
    for seed in range(times):
        shuffled = cna.copy()
        shuffled.obs_names = np.random.default_rng(seed).permutation(cna.obs_names)
        gp.tl.cna_association(adata, shuffled, progress=False, **options)
        stored = adata.uns["cna_association"]
        notes = json.loads(stored["notes"])
        hits.append(np.nanmin(stored["log10_pval"]) < np.log10(0.05 / notes["n_tests"]))
        false.append(int((stored["log10_pval_adj"] <= np.log10(0.05)).sum()))
        lam.append(notes["inflation"])
    return {
        "FWER of Bonferroni": float(np.mean(hits)),
        "median λ": float(np.median(lam)),
        "median BH discoveries": float(np.median(false)),
    }


def components() -> list[dict]:
    """What the first pairs are when principal components of expression are covariates."""
    adata, cna = tcga()
    out = []
    for of, n in [("scores", n) for n in (0, 1, 2, 5, 10)] + [("values", n) for n in (2, 5, 10)]:
        adata.obsm["factors"] = adata.obsm[of][:, :n]
        options = {"covariates": "factors" if n else None}
        gp.tl.cna_association(adata, cna, n_permutations=20, progress=False, **options)
        row = {"what": f"TCGA, {n} principal components of {of}"} | first_pairs(adata)
        row["λ of permuted residuals"] = gp.get.cna(adata, n_top=1).attrs["notes"]["inflation_permuted"]
        if of == "scores":
            row |= {f"permuted: {k}": v for k, v in permuted(adata, cna, times=10, **options).items()}
        out.append(row)
        print(pd.Series(row).to_string(), flush=True)
    return out


def factors() -> list[dict]:
    """What the components are: the share of their variance in 10 patients, and their correlation with calls."""
    adata, cna = tcga()
    out = []
    for of in ("scores", "values"):
        Z = adata.obsm[of]
        few = np.sort(Z**2 / (Z**2).sum(axis=0), axis=0)[-10:].sum(axis=0)
        row = {"what": f"components of {of}", "variance in 10 patients": few.round(3).tolist()}
        for gene in ("ERBB2", "MYC"):
            calls = np.asarray(cna[:, gene].X).ravel()
            row[f"correlation with calls of {gene}"] = [round(float(np.corrcoef(calls, z)[0, 1]), 2) for z in Z.T]
        out.append(row)
    return out


def all_features() -> list[dict]:
    """The same of all features, those with ties by 999 permutations, and seconds."""
    adata, cna = tcga(ties=True)
    adata.obsm["factors"] = adata.obsm["scores"][:, :5]
    out = []
    for covariates in (None, "age", "factors"):
        started = time.perf_counter()
        gp.tl.cna_association(adata, cna, covariates=covariates, progress=False)
        seconds = time.perf_counter() - started
        out.append({"what": f"TCGA, all features, covariates={covariates}", "seconds": seconds} | first_pairs(adata))
        print(pd.Series(out[-1]).to_string(), flush=True)
    return out


def first_pairs(adata: AnnData) -> dict:
    """Inflation, loci, and where the first 500 pairs lie."""
    pairs, loci = gp.get.cna(adata, n_top=500), gp.get.cna(adata, part="loci")
    row = {"λ": pairs.attrs["notes"]["inflation"], "loci": len(loci), "significant": int(loci["n_genes"].sum())}
    row |= {f"cis of {k}": float(pairs["cis"][:k].mean()) for k in (100, 200, 300, 400, 450, 500)}
    row["cis of loci"] = float(loci["cis"].mean())
    of_feature = gp.get.cna(adata, part="features").set_index("feature").loc[pairs["feature"]]
    same = pairs["chrom"].to_numpy() == of_feature["chrom"].to_numpy()
    distance = np.abs(pairs["start"].to_numpy() - of_feature["start"].to_numpy())
    row |= {"on one chromosome": float(same.mean()), "within 10 Mb": float((same & (distance <= 10_000_000)).mean())}
    return row | ranks(adata, "ERBB2")


def ranks(adata: AnnData, gene: str) -> dict:
    """Rank of a gene with itself among all pairs and among the pairs of a gene with itself."""
    pairs = gp.get.cna(adata)
    own = pairs[pairs["gene"] == pairs["feature_gene"]]["gene"].tolist()
    itself = (pairs["gene"] == gene) & (pairs["feature_gene"] == gene)
    return {
        f"rank of {gene}": int(np.flatnonzero(itself)[0]) + 1,
        f"rank of {gene} among {len(own)} same-gene pairs": own.index(gene) + 1,
        "first of them": " ".join(own[:7]),
    }


if __name__ == "__main__":
    main()
