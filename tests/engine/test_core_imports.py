"""The torch core imports and predicts where only torch, numpy and scipy exist."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import ghistpy

SCRIPT = """
import importlib.abc, sys

ALLOWED = {"ghistpy", "torch", "numpy", "scipy", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath",
           "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools", "packaging", "triton"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_") and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not installed on this machine", name=name)

sys.meta_path.insert(0, Block())

import pkgutil
import ghistpy
for layer in ("nn", "geometry", "data"):
    package = importlib.import_module(f"ghistpy.{layer}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ghistpy.{layer}.{module.name}")

import numpy as np, torch
from ghistpy.data.slide import Slide
from ghistpy.data.windows import LOCAL_FEATURES
from ghistpy.engine.features import n_features
from ghistpy.engine.options import choose_options
from ghistpy.engine.predict import predict
from ghistpy.engine.published import predict_published
from ghistpy.engine.scratch import Scratch
from ghistpy.geometry import MemorySource, find_nuclei
from ghistpy.nn.cellnet import CellNet
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead
from ghistpy.nn.published import PublishedNetwork
from ghistpy.nn.published_losses import TypeRoles

rng = np.random.default_rng(0)
one = np.pad(np.ones((12, 12), int), 4)
labels = np.kron(np.arange(1, 17).reshape(4, 4), one)
source = MemorySource(labels)
image = MemorySource(rng.integers(0, 255, (3, 80, 80), dtype=np.uint8))
slide = Slide("s", image, source, 0.5, find_nuclei(source))
config = GHISTConfig(widths=(4, 6), embedding=6, decoder=4, random_features=8, context_um=(20.0,), tile_px=64)
n_local = len(LOCAL_FEATURES)
network = CellNet(config, n_types=3, n_genes=5, n_local=n_local)
head = ContextHead(config, n_features=n_features(config, 3, n_local), n_local=n_local, n_types=3, n_genes=5)
scratch = Scratch(__import__("pathlib").Path(sys.argv[1]), {})
options = choose_options(config, device="cpu")
print(predict(network, head, slide, config, spots=False, options=options, scratch=scratch).expression.shape)
published = GHISTConfig.published(width_factor=1 / 16, embedding=16, patch_px=64)
network = PublishedNetwork(published, 5, 3)
stain = {"image_mean": np.ones(3), "image_std": np.ones(3)}
out = predict_published(network, slide, roles=TypeRoles.from_names(["a", "b", "c"]), **stain)
print(out.expression.shape)
"""


def test_core(tmp_path):
    source = str(Path(ghistpy.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "scratch")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source, "PATH": "", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["(16, 5)", "(16, 5)"]
