"""What "auto" becomes, and what is refused."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from ghistpy.engine.options import choose_options
from ghistpy.nn.config import GHISTConfig

DEFAULT, PUBLISHED = GHISTConfig(), GHISTConfig.published()


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device as far as choosing goes; free memory in GB and bfloat16 can be set."""
    device = SimpleNamespace(free=140, bfloat16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: device.bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(device.free * 1e9), int(150e9)))
    return device


def test_cpu(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="ghistpy"):
        options = choose_options(DEFAULT)
    assert (options.device, options.batch_size, options.autocast) == ("cpu", 1, None)
    assert 1 <= options.workers <= 8
    assert f"default network on cpu in float32: batches of 1, {options.workers} reading threads" in caplog.text
    assert choose_options(DEFAULT, precision="bfloat16", batch_size=4, workers=0).autocast is torch.bfloat16


def test_cuda(cuda):
    options = choose_options(DEFAULT)
    assert (options.device, options.autocast, options.batch_size) == ("cuda", torch.bfloat16, 8)
    assert choose_options(PUBLISHED).batch_size == 32
    cuda.bfloat16 = False
    assert choose_options(DEFAULT).autocast is torch.float16
    assert choose_options(DEFAULT, precision="float32").autocast is None
    assert choose_options(DEFAULT, device="cpu").autocast is None


def test_batches_follow_the_free_memory(cuda):
    sizes = []
    for free in (0.1, 2, 8, 24, 140):
        cuda.free = free
        sizes.append(choose_options(PUBLISHED, precision="float32").batch_size)
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[2] < sizes[-1] == 32
    cuda.free = 8
    assert choose_options(PUBLISHED).batch_size > sizes[2]  # half the bytes
    assert choose_options(PUBLISHED, batch_size=3).batch_size == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "half"}, "precision='half': expected one of"),
        ({"batch_size": "large"}, "batch_size='large': expected a whole number of 1 or more, or 'auto'"),
        ({"batch_size": True}, "batch_size=True"),
        ({"workers": 1.5}, "workers=1.5: expected a whole number of 0 or more"),
        ({"device": "gpu"}, "device='gpu': expected 'cpu', 'cuda' or 'cuda:1'"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        choose_options(DEFAULT, **values)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device here; give device='cpu'"):
        choose_options(DEFAULT, device="cuda:1")
