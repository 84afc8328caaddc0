"""Networks of other packages: how they are called, and what is said when they are not there."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from scipy import ndimage

import ghistpy as gp
from ghistpy.io.elements import image_element


@pytest.fixture
def sdata():
    y, x = np.mgrid[:180, :240]
    nuclei = np.hypot((y % 30) - 15, (x % 30) - 15) < 7  # 48 discs of 38 µm²
    image = np.where(nuclei, np.array([90, 60, 140])[:, None, None], np.array([235, 180, 210])[:, None, None])
    return sd.SpatialData(images={"he": image_element(image.astype(np.uint8), 0.5)})


@pytest.fixture
def instanseg(monkeypatch):
    """An InstanSeg that labels what is dark in the image it is given, and notes how it was called."""
    import torch

    calls = []

    class InstanSeg:
        def __init__(self, model, device, verbosity):
            calls.append({"model": model, "device": device})

        def eval_small_image(self, image, pixel_size, *, normalise, return_image_tensor, target, rescale_output):
            assert image.dtype == torch.float32
            assert (normalise, return_image_tensor, target, rescale_output) == (False, False, "nuclei", True)
            calls.append({"pixel_size": pixel_size, "range": (float(image.min()), float(image.max()))})
            return torch.as_tensor(ndimage.label(image[0].numpy() < 0.5)[0].astype(np.float32))[None, None]

    module = types.ModuleType("instanseg")
    module.InstanSeg = InstanSeg
    monkeypatch.setitem(sys.modules, "instanseg", module)
    return calls


@pytest.fixture
def cellpose(monkeypatch):
    calls = []

    class CellposeModel:
        def __init__(self, device, use_bfloat16, pretrained_model="cpsam_v2"):
            if pretrained_model == "cpsam_v2":
                raise OSError("no network")
            if b"model" not in Path(pretrained_model).read_bytes():
                raise RuntimeError("not a checkpoint")
            calls.append({"device": str(device), "use_bfloat16": use_bfloat16})

        def eval(self, rgb, *, channel_axis, normalize, min_size):
            calls.append({"normalize": normalize, "shape": rgb.shape, "channel_axis": channel_axis})
            return ndimage.label(rgb[..., 0] < 150)[0].astype(np.uint16), [], []

    package, module = types.ModuleType("cellpose"), types.ModuleType("cellpose.models")
    module.CellposeModel = CellposeModel
    package.models = module
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", module)
    return calls


def test_instanseg_is_stitched_and_stretched_by_the_slide(sdata, instanseg):
    gp.pp.segment_nuclei(sdata, method="instanseg", device="cpu", tile_px=64, progress=False)
    assert sdata["nuclei"].values.max() == 48
    assert instanseg[0] == {"model": "brightfield_nuclei", "device": "cpu"}
    assert {call["pixel_size"] for call in instanseg[1:]} == {0.5}
    assert len(instanseg) == 1 + 12
    # a tile is stretched by the limits of the slide: 0 to 1, whatever it holds
    assert all(call["range"] == pytest.approx((0, 1), abs=1e-6) for call in instanseg[1:])


def test_cellpose_is_stitched_and_stretched_by_the_slide(sdata, cellpose, tmp_path):
    (tmp_path / "w").write_bytes(b"model")
    gp.pp.segment_nuclei(
        sdata, method="cellpose", weights=tmp_path / "w", device="cpu", tile_px=64, n_jobs=2, progress=False
    )
    assert sdata["nuclei"].values.max() == 48
    assert cellpose[0] == {"device": "cpu", "use_bfloat16": False}
    assert len({str(call["normalize"]) for call in cellpose[1:]}) == 1
    assert np.array(cellpose[1]["normalize"]["lowhigh"]).shape == (3, 2)


@pytest.mark.parametrize("method", ["instanseg", "cellpose"])
def test_package_is_not_installed(sdata, monkeypatch, method):
    for name in ("instanseg", "cellpose", "cellpose.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'ghistpy\[{method}\]'"):
        gp.pp.segment_nuclei(sdata, method=method, progress=False)
    assert "nuclei" not in sdata.labels


def test_weights_are_not_there(sdata, cellpose, instanseg, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="not on this machine .*no network.*huggingface.*pass weights="):
        gp.pp.segment_nuclei(sdata, method="cellpose", progress=False)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["instanseg"], "InstanSeg", refuse)
    with pytest.raises(FileNotFoundError, match="no network.*brightfield_nuclei.zip.*weights='.../instanseg.pt'"):
        gp.pp.segment_nuclei(sdata, method="instanseg", progress=False)
    for method in ("instanseg", "cellpose"):
        with pytest.raises(FileNotFoundError, match=r"weights='/nowhere/w.pt': there is no such file"):
            gp.pp.segment_nuclei(sdata, method=method, weights="/nowhere/w.pt", progress=False)
    assert not sdata.labels


def test_weights_are_no_model(sdata, cellpose, instanseg, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"text" * 50)
    with pytest.raises(ValueError, match="no TorchScript model of InstanSeg"):
        gp.pp.segment_nuclei(sdata, method="instanseg", weights=tmp_path / "w.pt", progress=False)
    with pytest.raises(ValueError, match="no model of Cellpose 4"):
        gp.pp.segment_nuclei(sdata, method="cellpose", weights=tmp_path / "w.pt", progress=False)
    with pytest.raises(ValueError, match="only for method='instanseg' or 'cellpose'"):
        gp.pp.segment_nuclei(sdata, weights=tmp_path / "w.pt", progress=False)


def test_broken_torchvision_is_named(sdata, monkeypatch):
    def broken(module, *, extra):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("ghistpy.pp.networks.require", broken)
    with pytest.raises(ImportError, match="does not import .*nms.* torch and a torchvision of one origin"):
        gp.pp.segment_nuclei(sdata, method="cellpose", progress=False)


def test_real_instanseg_with_a_model_of_ours(sdata, tmp_path):
    """The package itself, on a TorchScript model that labels connected dark pixels by spreading a maximum."""
    pytest.importorskip("instanseg")
    import torch

    class Flood(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pixel_size: float = 1.0  # half the resolution of the slide
            self.cells_and_nuclei: bool = False

        def forward(self, x: torch.Tensor, target_segmentation: torch.Tensor) -> torch.Tensor:
            dark = (x[:, :1] < 0.5).float()
            n = x.shape[-1] * x.shape[-2]
            labels = torch.arange(1, n + 1, device=x.device).reshape(1, 1, x.shape[-2], x.shape[-1]).float() * dark
            for _ in range(30):
                labels = torch.nn.functional.max_pool2d(labels, 3, 1, 1) * dark
            return labels

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Flood()).save(str(tmp_path / "instanseg.pt"))
    gp.pp.segment_nuclei(
        sdata, method="instanseg", weights=tmp_path / "instanseg.pt", device="cpu", tile_px=96, progress=False
    )
    areas = np.bincount(sdata["nuclei"].values.ravel())[1:] * 0.25
    assert len(areas) == 48
    np.testing.assert_allclose(areas, np.pi * 3.5**2, rtol=0.2)
