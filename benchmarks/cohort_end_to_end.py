"""From slides to survival and copy number: simulated patients whose effects show in their images.

    python benchmarks/cohort_end_to_end.py OUT [--patients 60] [--cells 400] [--effect 1.5] [--permutations 99]

A model is fitted on four other slides, every patient's slide is predicted, features are made of the
predictions, and the planted effects are looked for: T/NK cells and survival, malignant cells and state,
macrophages and the copies of MACRO. The same with ``effect=0`` is the null. Slides, predictions and features
stay in OUT, and a second run computes what is missing. Writes OUT/cohort_end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--panel", type=int, default=20)
    parser.add_argument("--effect", type=float, default=1.5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--permutations", type=int, default=99)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "zarr v3 autosharding")
    rows = []
    for effect in (args.effect, 0.0):
        rows.append(run(args.out / f"effect_{effect:g}", effect, args))
        print(json.dumps(rows[-1], indent=1), flush=True)
    print(pd.DataFrame(rows).set_index("effect").T.to_string())
    (args.out / "cohort_end_to_end.json").write_text(json.dumps(rows, indent=1))


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
    return row | judge(features, truth, args)


def judge(features, truth, args: argparse.Namespace) -> dict:
    """What was found of what was planted."""
    share = features[:, features.var["kind"] == "proportion_logit"].copy()
    share.obs["event"] = share.obs["event"].astype(bool)
    row = {}
    for cell_type in ("T/NK", "Malignant", "Macrophage"):
        ours = share[:, f"proportion_logit--{cell_type}"].X.ravel()
        real = truth[share.obs_names, f"log_share--{cell_type}"].X.ravel()
        row[f"Spearman of {cell_type} with the truth"] = float(stats.spearmanr(ours, real).statistic)
    gp.tl.survival_cv(
        share, time_key="time", event_key="event", n_features=2, n_repeats=10, n_permutations=args.permutations,
        progress=False,
    )  # fmt: skip
    row |= {f"survival: {k}": v for k, v in survival_numbers(share).items()}
    state = truth.obs.loc[share.obs_names, "state"].to_numpy() == "B"
    malignant = share[:, "proportion_logit--Malignant"].X.ravel()
    row["state: p of malignant share"] = float(stats.ttest_ind(malignant[state], malignant[~state]).pvalue)
    clr = features[:, features.var["kind"] == "proportion_clr"].copy()
    gp.tl.cna_association(
        clr, truth.uns["cna"], positions=truth.uns["positions"], n_permutations=args.permutations, progress=False
    )
    found = gp.get.cna(clr)
    row["CNA: best pair"] = f"{found['gene'][0]} / {found['feature'][0].split('--')[1]}"
    row["CNA: its family-wise p"] = float(found["pval_fwer"][0])
    own = found[(found["gene"] == "MACRO") & (found["feature"] == "proportion_clr--Macrophage")]
    row["CNA: log10 p of MACRO / Macrophage"] = float(own["log10_pval"].iloc[0]) if len(own) else np.nan
    return row


def survival_numbers(share) -> dict:
    """C-index of the model with its interval, how often T/NK was selected, permutation p."""
    summary = gp.get.survival(share)
    selected = gp.get.survival(share, part="selected").set_index("feature")
    permuted = gp.get.survival(share, part="permutation")
    model = summary.iloc[0]
    return {
        "C-index": float(model["c_index"]),
        "permutation p": float(permuted["pval"].iloc[0]),
        "T/NK selected": float(selected["frequency"].get("proportion_logit--T/NK", 0.0)),
        "log HR of T/NK": float(selected["mean_coef"].get("proportion_logit--T/NK", np.nan)),
    }


if __name__ == "__main__":
    main()
