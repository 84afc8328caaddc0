"""Speed and memory of prediction: both networks, end to end, scaling, start-up; a GPU when there is one.

    python benchmarks/predict.py OUT [--parts published,default,slide,scaling,startup,gpu] [--cells N]
                                 [--sides 2048,4096,8192,16384,32768] [--threads 1] [--keep]

Every part runs in a process of its own, so that peak memory is that of the part. Prints one table and
writes OUT/predict.json. Ratios are between figures of one run. Slides are written as SpatialData stores
under OUT/stores, 1.3 GB for 16,384 px and 5 GB for 32,768 px, and removed after use unless --keep.

published  one patch of 256 px with 60 nuclei: a plain program (network as drawn, one mask per nucleus over
           the feature maps, attention and reference cell by cell) beside ours, float32 and bfloat16
default    the default network on the same patch size and density, windows in memory: network, pooling, head
slide      a stored slide of --cells nuclei with labels, end to end: reading, features, network, table written
scaling    seconds and peak memory of the whole process until the table is on disk, by side of the slide
startup    from the start of the process to the first finished tile
gpu        both networks end to end on CUDA, share of time that it computes, bfloat16 against float32
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PARTS = ("published", "default", "slide", "scaling", "startup", "gpu")
GENES, TYPES = 280, 6
_BASE_CELLS = 2000


def main() -> None:
    """Run the parts, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--sides", default="2048,4096,8192,16384,32768")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a child process does
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        name, _, value = args.part.partition(":")
        print("RESULT " + json.dumps(CHILDREN[name](args, value)))
        return
    rows: list[dict] = []
    for part in args.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is none of {', '.join(PARTS)}")
        rows += run_part(part, args)
    report = {"machine": machine(), "threads": args.threads, "rows": rows}
    (args.out / "predict.json").write_text(json.dumps(report, indent=1))
    if not args.keep:
        shutil.rmtree(args.out / "stores", ignore_errors=True)
    width = max(len(row["what"]) for row in rows)
    print(json.dumps(report["machine"]))
    for row in rows:
        print(f"{row['part']:10} {row['what']:{width}} {row['value']:>14,.4g} {row['unit']}")


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "load": round(load, 1),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def run_part(part: str, args: argparse.Namespace) -> list[dict]:
    """The rows of one part; slides are made before, so that their memory is not counted."""
    names = [part]
    if part in ("slide", "startup", "gpu"):
        child(args, f"store:{args.cells}")
        names = [f"{part}:{args.cells}"]
    elif part == "scaling":
        names = []
        for side in (int(s) for s in args.sides.split(",")):
            child(args, f"store:{side}px")
            names.append(f"slide:{side}px")
    rows = []
    for name in names:
        for row in child(args, name):
            rows.append({"part": part, **row})
            print("  ", row, flush=True)
        if part == "scaling" and not args.keep:
            shutil.rmtree(store_path(args, name.partition(":")[2]))
    return rows


def child(args: argparse.Namespace, part: str) -> list[dict]:
    """Run one part in a fresh process."""
    started = time.time()
    command = [sys.executable, __file__, str(args.out), "--part", part, "--threads", str(args.threads)]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **threads, "BENCHMARK_STARTED": repr(started)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr}")
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def row(what: str, value: float, unit: str) -> dict:
    return {"what": what, "value": float(value), "unit": unit}


def best(function, repeats: int) -> float:
    """Lowest CPU time of several calls: what other processes do must not count."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


# ---- one patch: the published network, ours and plainly


def patch_inputs(side: int = 256, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Image (3, s, s) standardised, and labels with n round nuclei of about 300 px."""
    rng = np.random.default_rng(0)
    labels = np.zeros((side, side), np.int64)
    step = side / 8
    y, x = np.mgrid[:side, :side]
    for k in range(n):
        cy, cx = (k // 8 + 0.5) * step, (k % 8 + 0.5) * step
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= rng.uniform(8, 11) ** 2] = k + 1
    return rng.normal(size=(3, side, side)).astype(np.float32), labels


def published_network():
    """The paper's network with 280 genes, 6 types, 60 reference profiles and plausible random weights."""
    import torch

    from ghistpy.nn.config import GHISTConfig
    from ghistpy.nn.published import PublishedNetwork

    torch.manual_seed(0)
    reference = np.random.default_rng(1).gamma(1.0, 0.4, (60, GENES)).astype(np.float32)
    network = PublishedNetwork(GHISTConfig.published(use_reference=True), GENES, TYPES, reference)
    return network.eval()


def plain_backbone(cnn, x):
    """U-Net 3+ as it is drawn: every branch is brought to the level's size, then convolved."""
    import torch
    from torch.nn import functional as F

    encoder = []
    for level in range(1, 6):
        x = getattr(cnn, f"conv{level}")(x if level == 1 else F.max_pool2d(x, 2))
        encoder.append(x)
    decoder = {5: encoder[-1]}
    for level in range(4, 0, -1):
        branches = []
        for source in range(1, 6):
            kind = "PT" if source < level else "Cat" if source == level else "UT"
            name = f"h{'d' if kind == 'UT' else ''}{source}_{kind}_hd{level}"
            x = encoder[source - 1] if source <= level else decoder[source]
            if kind == "PT":
                x = F.max_pool2d(x, 2 ** (level - source), ceil_mode=True)
            elif kind == "UT":
                x = F.interpolate(x, scale_factor=2 ** (source - level), mode="bilinear", align_corners=False)
            branches.append(F.relu(getattr(cnn, f"{name}_bn")(getattr(cnn, f"{name}_conv")(x))))
        x = getattr(cnn, f"conv{level}d_1")(torch.cat(branches, dim=1))
        decoder[level] = F.relu(getattr(cnn, f"bn{level}d_1")(x))
    return cnn.outconv_seg(decoder[1]), decoder[1], encoder[0]


def plain_published(network, image, labels):
    """Expression and type logits of the nuclei of one patch, nucleus by nucleus."""
    import torch
    from torch.nn import functional as F

    _, hd1, h1 = plain_backbone(network.cnn, image)
    features = []
    for name in range(1, int(labels.max()) + 1):
        mask = (labels == name).float()  # (1, H, W)
        inside = [(m * mask).sum((0, 2, 3)) / mask.sum() for m in (hd1, h1)]
        features.append(torch.cat([*inside, hd1.mean((0, 2, 3)), h1.mean((0, 2, 3))]))
    embedding = network.embed_hist(torch.stack(features))
    composition = F.softmax(network.estimate_comp(embedding.mean(0, keepdim=True)), dim=1)
    out = []
    for branch in ("", "_immune", "_invasive"):
        weights = F.softmax(getattr(network, "mlp_weights" + branch)(embedding), dim=1)
        profiles = network.reference.repeat(len(weights), 1, 1)  # (N, n_ref, G)
        mixture = (weights.unsqueeze(2) * profiles).sum(1)
        refine = getattr(network, "refine_expr" + branch)
        query = refine.query_transform(composition.repeat(len(weights), 1))
        key, value = refine.key_transform(mixture), refine.value_transform(mixture)
        attended, _ = refine.attention(query[None], key[None], value[None])
        out.append(F.relu(mixture + refine.linear_out(attended[0])))
    network.mlp_genes(out[0])
    return out[0], network.mlp_hist(embedding)


def run_published(args: argparse.Namespace, _: str) -> list[dict]:
    """Plain, ours in float32, ours in bfloat16."""
    import torch

    from ghistpy.nn.published import fused_published

    torch.set_num_threads(1)
    network = published_network()
    image, labels = (torch.from_numpy(v)[None] for v in patch_inputs())
    n = int(labels.max())
    with torch.inference_mode():
        plain = plain_published(network, image, labels)
        slow = best(lambda: plain_published(network, image, labels), 2)
        network = fused_published(network)
        image = image.to(memory_format=torch.channels_last)

        def ours():
            return network(image, labels, segmentation=False)

        exact = ours()
        fast = best(ours, 4)
        with torch.autocast("cpu", torch.bfloat16):
            half = ours()
            faster = best(ours, 4)
    # expression is on the scale of training, 5 log1p(count); the tolerance of the reference values is 1e-4
    scale = network.config.expression_scale
    difference = max(float((exact.expression - plain[0]).abs().max()) / scale,
                     float((exact.type_logits - plain[1]).abs().max()))  # fmt: skip
    spread = float((half.expression - exact.expression).pow(2).mean().sqrt() / exact.expression.pow(2).mean().sqrt())
    return [
        row("plain program, seconds a patch of 60 nuclei", slow, "CPU-s"),
        row("ours, float32", fast, "CPU-s"),
        row("ours, bfloat16", faster, "CPU-s"),
        row("cells per CPU-second, plain", n / slow, "1/s"),
        row("cells per CPU-second, float32", n / fast, "1/s"),
        row("cells per CPU-second, bfloat16", n / faster, "1/s"),
        row("float32 over plain", slow / fast, "x"),
        row("bfloat16 over plain", slow / faster, "x"),
        row("largest difference, float32 to plain (log1p count, logits)", difference, ""),
        row("relative RMS difference of expression, bfloat16 to float32", spread, ""),
    ]


# ---- the default network with windows in memory


def default_model(width: float = 1.0):
    """The default network, untrained, with a head whose features are standardised: speed needs no more."""
    import ghistpy as gp

    slide = gp.datasets.simulate_slide(n_cells=500, n_genes=GENES, seed=3)
    return gp.tl.fit(slide, max_epochs=0, progress=False)


def run_default(args: argparse.Namespace, _: str) -> list[dict]:
    """Network, pooling and head per CPU-second, beside the plain published program."""
    import torch

    import ghistpy as gp
    from ghistpy.data.slide import Slide
    from ghistpy.data.windows import collate, prepare
    from ghistpy.engine.extract import Extracted, load_tile, plan_slide
    from ghistpy.engine.predict import apply_head
    from ghistpy.geometry import find_nuclei
    from ghistpy.nn.cellnet import fused

    torch.set_num_threads(1)
    model = default_model()
    sdata = gp.datasets.simulate_slide(n_cells=10_000, n_genes=GENES, seed=4)
    image, labels, mpp = gp.io.open_slide(sdata)
    slide = prepare(Slide("benchmark", image, labels, mpp, find_nuclei(labels)))
    plan, n = plan_slide(slide, model.config), len(slide.nuclei)
    started = time.process_time()
    tiles = [load_tile(slide, plan, t, model.config) for t in range(len(plan))]
    reading = time.process_time() - started
    inputs = [collate([tile], model.config.stride) for tile in tiles]
    network = fused(model.network)

    def run(half: bool):
        parts = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for od, coverage, local in inputs:
                out = network(od.to(memory_format=torch.channels_last), coverage, local)
                parts.append((out.embedding, out.type_logits, local))
        values = [torch.cat(p).float().numpy() for p in zip(*parts, strict=True)]
        back = np.argsort(plan.order)
        found = Extracted(*(v[back] for v in values))
        return apply_head(model.head, slide, found, model.config, spots=False)

    exact = run(False).expression
    seconds, half = best(lambda: run(False), 3), best(lambda: run(True), 3)
    difference = np.sqrt(np.mean((run(True).expression - exact) ** 2) / np.mean(exact**2))
    published = published_network()
    patch = [torch.from_numpy(v)[None] for v in patch_inputs()]
    with torch.inference_mode():
        plain = best(lambda: plain_published(published, *patch), 2) / 60
    return [
        row("network, pooling and head, float32", n / seconds, "cells/CPU-s"),
        row("network, pooling and head, bfloat16", n / half, "cells/CPU-s"),
        row("reading, optical density and measured features", n / reading, "cells/CPU-s"),
        row("plain published program", 1 / plain, "cells/CPU-s"),
        row("default over plain published, float32", plain * n / seconds, "x"),
        row("relative RMS difference of expression, bfloat16 to float32", difference, ""),
    ]


# ---- slides on disk


def store_path(args: argparse.Namespace, size: str) -> Path:
    return args.out / "stores" / f"{size}.zarr"


def make_store(args: argparse.Namespace, size: str) -> list[dict]:
    """A small simulated slide repeated over a large one, band by band: never in memory as a whole."""
    import dask.array as da
    import spatialdata as sd

    import ghistpy as gp
    from ghistpy.io.elements import image_element, labels_element

    path = store_path(args, size)
    if path.exists():
        return []
    base = gp.datasets.simulate_slide(n_cells=_BASE_CELLS, n_genes=4, seed=11)
    image, labels, mpp = gp.io.open_slide(base)
    height, width = labels.shape
    from ghistpy.geometry import Window

    pixels, ids = (s.read(Window(0, 0, height, width)) for s in (image, labels))
    if size.endswith("px"):
        side = int(size[:-2])
        shape = (side, side)
    else:
        across = int(np.ceil(np.sqrt(int(size) / _BASE_CELLS)))
        shape = (-(-int(size) // (_BASE_CELLS * across)) * height, across * width)
    count = -(-shape[1] // width)

    def window(source, at, offset):
        y, x = (np.arange(a, b) for a, b in at)
        part = source[..., (y % height)[:, None], (x % width)[None, :]]
        if not offset:
            return part
        copy = (y // height)[:, None] * count + (x // width)[None, :]
        return np.where(part > 0, part + copy * _BASE_CELLS, 0).astype(np.int32)

    chunk = 1024
    chunks = tuple(tuple(min(chunk, n - i) for i in range(0, n, chunk)) for n in shape)
    lazy_image = da.map_blocks(
        lambda block_info=None: window(pixels, block_info[None]["array-location"][1:], False),
        chunks=((3,), *chunks), dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8),
    )  # fmt: skip
    lazy_labels = da.map_blocks(
        lambda block_info=None: window(ids, block_info[None]["array-location"], True),
        chunks=chunks, dtype=np.int32, meta=np.zeros((0, 0), np.int32),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    elements = {"images": {"he": single_scale(image_element, lazy_image, mpp)},
                "labels": {"nuclei": single_scale(labels_element, lazy_labels, mpp)}}  # fmt: skip
    import dask

    with dask.config.set(scheduler="synchronous"):
        sd.SpatialData(**elements, attrs={"ghistpy": {"sample": size}}).write(path)
    return []


def single_scale(_, array, mpp):
    """An element without a pyramid: it would only cost disk."""
    from spatialdata.models import Image2DModel, Labels2DModel

    from ghistpy.io.elements import to_microns

    model, dims = (Image2DModel, ("c", "y", "x")) if array.ndim == 3 else (Labels2DModel, ("y", "x"))
    return model.parse(array, dims=dims, transformations=to_microns(mpp))


def run_slide(args: argparse.Namespace, size: str, **options) -> list[dict]:
    """Seconds and peak memory of a stored slide until its table is on disk, and the parts of it."""
    import spatialdata as sd
    import torch

    import ghistpy as gp
    from ghistpy.tl import predict as verb

    model = default_model()
    sdata = sd.read_zarr(store_path(args, size))
    before = peak_gb()
    torch.set_num_threads(args.threads)
    peak_at_write = []
    write = verb._write

    def watched(*values):
        write(*values)
        peak_at_write.append(peak_gb())

    verb._write = watched
    started, cpu = time.perf_counter(), time.process_time()
    gp.tl.predict_expression(sdata, model, progress=False, **options)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    n, area = sdata["insilico"].n_obs, np.prod(sdata["nuclei"].shape) / 1e6
    return [
        row(f"{size}: nuclei", n, ""),
        row(f"{size}: slide", area, "Mpx"),
        row(f"{size}: end to end", seconds, "s"),
        row(f"{size}: end to end", cpu, "CPU-s"),
        row(f"{size}: cells per second", n / seconds, "1/s"),
        row(f"{size}: peak memory of the process, table on disk", peak_at_write[0], "GB"),
        row(f"{size}: of which before predicting (imports, model)", before, "GB"),
    ]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run_startup(args: argparse.Namespace, size: str) -> list[dict]:
    """From the start of the process to the first tile that went through the network, model read from disk."""
    import spatialdata as sd

    import ghistpy as gp
    from ghistpy.engine import extract

    started = float(os.environ["BENCHMARK_STARTED"])
    imported = time.time() - started
    model = args.out / "model"
    if not model.exists():
        default_model().save(model)
        return child(args, f"startup:{size}")
    fetch, first = extract._fetch, []

    class Enough(Exception):
        pass

    def stop(*values):
        fetch(*values)
        first.append(time.time() - started)
        raise Enough

    extract._fetch = stop
    sdata = sd.read_zarr(store_path(args, size))
    opened = time.time() - started
    try:
        gp.tl.predict_expression(sdata, model, progress=False, resume=False)
    except Enough:
        pass
    shutil.rmtree(store_path(args, size).with_name(f"{size}.zarr.insilico.partial"), ignore_errors=True)
    return [
        row("imports of spatialdata and ghistpy", imported, "s"),
        row("slide opened", opened, "s"),
        row(f"first tile ready ({size} nuclei are found first)", first[0], "s"),
    ]


# ---- a GPU


def run_gpu(args: argparse.Namespace, size: str) -> list[dict]:
    """End to end on CUDA; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return []
    import spatialdata as sd

    import ghistpy as gp

    sdata = sd.read_zarr(store_path(args, size))
    small = gp.datasets.simulate_slide(n_cells=500, n_genes=GENES, seed=3)
    config = gp.models.GHISTConfig.published()
    models = {"default": default_model(), "published": gp.tl.fit(small, config=config, max_epochs=1, progress=False)}
    rows = []
    for name, model in models.items():
        gp.tl.predict_expression(small, model, progress=False, device="cuda")  # starts CUDA
        values = {}
        for precision in ("bfloat16", "float32"):
            busy = GpuTime()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            with busy:
                gp.tl.predict_expression(sdata, model, progress=False, device="cuda", precision=precision)
            seconds = time.perf_counter() - started
            values[precision] = np.asarray(sdata["insilico"].X[:20_000])
            rows += [
                row(f"{name}, {precision}: {size} nuclei end to end", seconds, "s"),
                row(f"{name}, {precision}: share of time that the GPU computes", busy.seconds / seconds, ""),
                row(f"{name}, {precision}: peak GPU memory", torch.cuda.max_memory_allocated() / 1e9, "GB"),
            ]
        a, b = values["bfloat16"], values["float32"]
        rows.append(
            row(f"{name}: relative RMS, bfloat16 to float32", np.sqrt(((a - b) ** 2).mean() / (b**2).mean()), "")
        )
    started = time.perf_counter()
    gp.tl.fit(gp.datasets.simulate_slide(n_cells=10_000, n_genes=GENES, seed=4), max_epochs=5, progress=False)
    rows.append(row("default network: training, 5 epochs on 10,000 cells", time.perf_counter() - started, "s"))
    return rows


class GpuTime:
    """Seconds that the device spent in kernels, from torch's profiler."""

    def __enter__(self):
        import torch

        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        self.seconds = sum(event.self_device_time_total for event in self._profile.key_averages()) / 1e6


CHILDREN = {
    "published": run_published,
    "default": run_default,
    "store": make_store,
    "slide": run_slide,
    "startup": run_startup,
    "gpu": run_gpu,
}

if __name__ == "__main__":
    main()
