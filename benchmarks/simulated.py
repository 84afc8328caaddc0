"""Accuracy and speed of the default network on simulated slides, where the truth is known.

    python benchmarks/simulated.py OUT [--cells N] [--genes G] [--seeds 0,1,2] [--epochs N]
    python benchmarks/simulated.py OUT --network published --epochs 8 [--width-factor 0.125]

For every seed: train on one slide, predict another with another stain and other type proportions.
Prints, as medians over the 100 most spatially variable genes of the training slide, Pearson and
within-type Pearson of the model, the type-mean of its own types, the bound for anything that reads
pixels ("attainable": types known only as well as the pixels tell) and the bound with the true types
given ("ceiling"); skill over the type-mean; macro-F1 beside the Bayes classifier; seconds; and cells
per CPU-second of network, pooling and head (default network only). Writes OUT/simulated.json.
``--network published`` trains the network of the paper instead, on the same slides and at a reduced width,
because at full width it does not train in minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

import ghistpy as gp
from ghistpy.stats.metrics import pearson
from ghistpy.stats.skill import skill_score, within_type_pearson

TEST_PROPORTIONS = {"Malignant": 0.2, "Fibroblast": 0.3, "Endothelial": 0.1, "T/NK": 0.2, "B": 0.1, "Macrophage": 0.1}
STAINS = ("purple", "pale")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--network", choices=("default", "published"), default="default")
    parser.add_argument("--width-factor", type=float, default=0.125)
    args = parser.parse_args()
    rows = [run(int(seed), args) for seed in args.seeds.split(",")]
    table = pd.DataFrame(rows).set_index("seed")
    table.loc["mean"] = table.mean()
    print(table.T.round(3).to_string())
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    (args.out / "simulated.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


def run(seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train, predict and score one pair of slides."""
    common = {"n_cells": args.cells, "n_genes": args.genes, "biology_seed": seed}
    train = gp.datasets.simulate_slide(seed=2 * seed + 1, **common)
    stain = STAINS[seed % len(STAINS)]
    test = gp.datasets.simulate_slide(seed=2 * seed + 2, stain=stain, proportions=TEST_PROPORTIONS, **common)
    started = time.perf_counter()
    published = args.network == "published"
    config = gp.models.GHISTConfig.published(width_factor=args.width_factor, embedding=64) if published else None
    model = gp.tl.fit(train, config=config, max_epochs=args.epochs, seed=seed, progress=False)
    seconds = time.perf_counter() - started
    gp.tl.predict_expression(test, model, progress=False)
    row = {"seed": seed, **accuracy(test, model), "training seconds": seconds, "epochs": len(model.history)}
    if not published:
        row["cells per CPU-second (network, pooling, head)"] = speed(test, model)
    row["peak memory GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return row


def dense(values) -> np.ndarray:
    """A matrix as float64."""
    return np.asarray(values.todense() if hasattr(values, "todense") else values, dtype=np.float64)


def accuracy(test, model) -> dict[str, float]:
    """Model beside type-mean and both bounds."""
    measured, predicted = test.tables["measured"], test.tables["insilico"]
    if not (measured.obs["cell_id"].to_numpy() == predicted.obs["cell_id"].to_numpy()).all():
        raise RuntimeError("tables are not in the same order")
    truth = np.log1p(dense(measured.X))
    code = np.array([model.cell_types.index(t) for t in measured.obs["cell_type"].astype(str)])
    own = predicted.obs["cell_type"].cat.codes.to_numpy()
    type_mean = model.baselines["type_profiles"][own]
    values = {
        "model": dense(predicted.X),
        "type mean": type_mean,
        "attainable": dense(measured.layers["attainable"]),
        "ceiling": dense(measured.layers["ceiling"]),
    }
    top = [model.genes.index(g) for g in model.gene_sets["top100"]]
    out = {}
    for name, value in values.items():
        out[f"PCC {name}"] = float(np.nanmedian(pearson(truth, value)[top]))
        if name != "type mean":
            out[f"within-type PCC {name}"] = float(np.nanmedian(within_type_pearson(truth, value, code)[top]))
    for what in ("PCC", "within-type PCC"):
        for bound in ("attainable", "ceiling"):
            out[f"{what}, share of {bound}"] = out[f"{what} model"] / out[f"{what} {bound}"]
    for name in ("model", "attainable"):
        out[f"skill over type mean, {name}"] = float(np.nanmedian(skill_score(truth, values[name], type_mean)))
    bayes_types = list(measured.uns["ghistpy"]["cell_types"])
    bayes = np.array([model.cell_types.index(t) for t in bayes_types])[measured.obsm["bayes_proba"].argmax(axis=1)]
    out["macro-F1 model"] = float(f1_score(code, own, average="macro"))
    out["macro-F1 Bayes"] = float(f1_score(code, bayes, average="macro"))
    return out


def speed(test, model) -> float:
    """Cells per CPU-second of one thread: forward pass, pooling and head; windows are read before."""
    import torch

    from ghistpy.data.slide import Slide
    from ghistpy.data.windows import LOCAL_FEATURES, collate, prepare
    from ghistpy.engine.extract import Extracted, load_tile, plan_slide
    from ghistpy.engine.predict import apply_head
    from ghistpy.geometry import find_nuclei
    from ghistpy.nn.cellnet import fused

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image, labels, mpp = gp.io.open_slide(test)
    slide = prepare(Slide("test", image, labels, mpp, find_nuclei(labels)))
    plan = plan_slide(slide, model.config)
    inputs = [collate([load_tile(slide, plan, t, model.config)], model.config.stride) for t in range(len(plan))]
    n = len(slide.nuclei)
    found = Extracted(
        np.zeros((n, model.config.embedding), np.float32),
        np.zeros((n, len(model.cell_types)), np.float32),
        np.zeros((n, len(LOCAL_FEATURES)), np.float32),
    )
    network = fused(model.network)
    started = time.process_time()
    with torch.inference_mode():
        for tile, (od, coverage, local) in enumerate(inputs):
            out = network(od.to(memory_format=torch.channels_last), coverage, local)
            rows = plan.owned(tile)
            found.embedding[rows], found.logits[rows] = out.embedding.numpy(), out.type_logits.numpy()
            found.local[rows] = local.numpy()
    apply_head(model.head, slide, found, model.config, spots=False)
    seconds = time.process_time() - started
    torch.set_num_threads(threads)
    return n / seconds


if __name__ == "__main__":
    main()
