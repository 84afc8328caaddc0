"""From slides to survival and copy number: simulated patients whose effects show in their images.

    python benchmarks/cohort_end_to_end.py OUT [--patients 60] [--cells 250] [--effect 1.5] [--permutations 99]

A model is fitted on four other slides, every patient's slide is predicted, features are made of the
predictions, and the planted effects are looked for by ``tl.survival_cv``, ``tl.differential_state`` and
``tl.cna_association``: T/NK cells and survival, malignant cells and state, macrophages and the copies of MACRO.
The same with ``effect=0`` is one null; how often nothing is called something is counted in ``--null-cohorts``
cohorts of features. Slides, predictions and features stay in OUT, and a second run computes what is missing.
Writes OUT/cohort_end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import ghistpy as gp
from ghistpy.tl._features import KINDS


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--cells", type=int, default=250)
    parser.add_argument("--panel", type=int, default=20)
    parser.add_argument("--effect", type=float, default=1.5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--null-cohorts", type=int, default=100)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "zarr v3 autosharding")
    logging.getLogger("ghistpy").setLevel(logging.ERROR)
    calibration = nulls(args)
    print(json.dumps(calibration, indent=1), flush=True)
    rows = []
    for effect in (args.effect, 0.0):
        rows.append(run(args.out / f"effect_{effect:g}", effect, args))
        print(json.dumps(rows[-1], indent=1), flush=True)
    print(pd.DataFrame(rows).set_index("effect").T.to_string())
    (args.out / "cohort_end_to_end.json").write_text(json.dumps({"cohorts": rows, "nulls": calibration}, indent=1))


def train(path: Path, args: argparse.Namespace) -> Path:
    """A model from four slides with the biology of the cohort; kept."""
    if not path.exists():
        common = {"n_cells": 1500, "n_genes": args.panel, "biology_seed": 0}
        slides = {f"train_{i}": gp.datasets.simulate_slide(seed=900 + i, **common) for i in range(4)}
        gp.tl.fit(slides, max_epochs=args.epochs, accelerator="cpu", progress=False).save(path)
    return path


def predict(sdata, *, model: str) -> int:
    """Predict one slide into its store."""
    gp.tl.predict_expression(sdata, gp.models.GHIST.load(model), progress=False)
    return sdata["insilico"].n_obs


def run(folder: Path, effect: float, args: argparse.Namespace) -> dict:
    """One cohort, from slides to results."""
    started = time.perf_counter()
    options = {"n_patients": args.patients, "n_cells": args.cells, "panel": args.panel, "effect": effect}
    truth, cohort = gp.datasets.simulate_cohort(slides=folder, seed=0, **options)
    model = train(folder.parent / "model", args)
    row = {"effect": effect, "simulate and fit, s": time.perf_counter() - started}
    started = time.perf_counter()
    predicted = cohort.map(predict, params={"model": str(model)})
    row |= {"predict, s": time.perf_counter() - started, "slides predicted": len(predicted)}
    started = time.perf_counter()
    kinds = [k for k in KINDS if k != "CCI" and not k.startswith("pathway")]
    # centred log ratios: on small slides many patients share a logit of 0 cells, and ties cost power
    features = gp.tl.cohort_features(cohort, kinds=[*kinds, "proportion_clr"])
    row |= {"features, s": time.perf_counter() - started, "features": features.n_vars}
    return row | judge(features, cohort, truth, args)


def judge(features, cohort, truth, args: argparse.Namespace) -> dict:
    """What was found of what was planted."""
    row = {}
    for cell_type in ("T/NK", "Malignant", "Macrophage"):
        ours = features[:, f"proportion_logit--{cell_type}"].X.ravel()
        real = truth[features.obs_names, f"log_share--{cell_type}"].X.ravel()
        row[f"Spearman of {cell_type} with the truth"] = float(stats.spearmanr(ours, real).statistic)
    return row | judge_survival(features, args) | judge_state(features, cohort) | judge_copies(features, truth, args)


def judge_survival(features, args: argparse.Namespace) -> dict:
    """C-index of the model with its interval, how often T/NK was selected, permutation p."""
    gp.tl.survival_cv(
        features, kind="proportion_logit", time_key="time", event_key="event", n_features=2, n_repeats=20,
        n_permutations=args.permutations, progress=False,
    )  # fmt: skip
    model = gp.get.survival(features).iloc[0]
    selected = gp.get.survival(features, part="selected").set_index("feature")
    permuted = gp.get.survival(features, part="permutation").set_index("statistic")
    return {
        "survival: C-index": float(model["c_index"]),
        "survival: interval": [float(model["ci_low"]), float(model["ci_high"])],
        "survival: permutation p": float(permuted.loc["c_index", "pval"]),
        "survival: T/NK selected": float(selected["frequency"].get("proportion_logit--T/NK", 0.0)),
        "survival: log HR of T/NK": float(selected["mean_coef"].get("proportion_logit--T/NK", np.nan)),
    }


def judge_state(features, cohort) -> dict:
    """The planted share between states; and genes within types, where nothing was planted."""
    gp.tl.differential_state(features, groupby="state", reference="A", kind="proportion_clr", key_added="shares")
    shares = gp.get.differential_state(features, key="shares").set_index("gene")
    others = shares.drop(index="Malignant")["pval_adj_global"]
    genes = {}
    for table in ("measured", "insilico"):
        found = gp.tl.differential_state(cohort, groupby="state", reference="A", table_key=table)
        frame = gp.get.differential_state(found)
        genes |= {
            f"state: genes within types below 0.05, {table}": float((frame["pval"] < 0.05).mean()),
            f"state: the same, adjusted, {table}": f"{int((frame['pval_adj_global'] < 0.05).sum())} of {len(frame)}",
        }
    return {
        "state: p of malignant share": float(shares.loc["Malignant", "pval"]),
        "state: its adjusted p": float(shares.loc["Malignant", "pval_adj_global"]),
        "state: other types below 0.05 (adjusted)": f"{int((others < 0.05).sum())} of {len(others)}",
    } | genes


def judge_copies(features, truth, args: argparse.Namespace) -> dict:
    """The best pair of gene and share, and the planted one."""
    clr = features[:, features.var["kind"] == "proportion_clr"].copy()
    gp.tl.cna_association(
        clr, truth.uns["cna"], positions=truth.uns["positions"], n_permutations=args.permutations, progress=False
    )
    found = gp.get.cna(clr)
    own = found[(found["gene"] == "MACRO") & (found["feature"] == "proportion_clr--Macrophage")]
    return {
        "CNA: best pair": f"{found['gene'][0]} / {found['feature'][0].split('--')[1]}",
        "CNA: its family-wise p": float(found["pval_fwer"][0]),
        "CNA: log10 p of MACRO / Macrophage": float(own["log10_pval"].iloc[0]) if len(own) else np.nan,
    }


def nulls(args: argparse.Namespace) -> dict:
    """How often nothing is called something, in cohorts of features without any effect."""
    rows = []
    for seed in range(args.null_cohorts):
        adata = gp.datasets.simulate_cohort(n_patients=args.patients, n_cna_genes=200, effect=0, seed=1000 + seed)
        follow_up = {"time_key": "time", "event_key": "event", "kind": "gene_mean_bulk"}
        gp.tl.survival_cv(
            adata, **follow_up, n_features=2, n_repeats=1, n_permutations=19, n_bootstraps=1, progress=False
        )
        gp.tl.differential_state(adata, groupby="state", kind="gene_mean_bulk")
        state = gp.get.differential_state(adata)
        gp.tl.cna_association(
            adata, adata.uns["cna"], positions=adata.uns["positions"], n_permutations=19, progress=False
        )
        rows.append(
            {
                "survival": gp.get.survival(adata, part="permutation").set_index("statistic").loc["c_index", "pval"],
                "state, any adjusted": state["pval_adj_global"].min(),
                "state, share below 0.05": (state["pval"] < 0.05).mean(),
                "CNA, family-wise": gp.get.cna(adata)["pval_fwer"].min(),
            }
        )
    frame = pd.DataFrame(rows)
    out = {
        "cohorts": len(frame),
        "state: share of tests below 0.05": float(frame.pop("state, share below 0.05").mean()),
    }
    for level in (0.05, 0.1):
        out |= {f"{name}: cohorts at {level}": float((frame[name] <= level + 1e-9).mean()) for name in frame}
    return out


if __name__ == "__main__":
    main()
