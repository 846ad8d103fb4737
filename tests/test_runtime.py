import random

import numpy as np
import pytest
import torch

from utils import runtime
from utils.config import ConfigError


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_for_python_numpy_and_torch():
    runtime.seed_everything(3)
    first = draws()
    runtime.seed_everything(3)
    assert draws() == first
    runtime.seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_cuda_without_a_gpu_falls_back_with_one_line(make_config, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.start(make_config({"cuda": True})).device.type == "cpu"
    assert capsys.readouterr().out.count("\n") == 1
    runtime.start(make_config({"cuda": False}))
    assert capsys.readouterr().out == ""


def test_gpu_picks_the_index_and_a_wrong_one_is_refused(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runtime, "seed_everything", lambda seed: None)  # would wake the GPU that is not there
    assert runtime.start(make_config({"cuda": True, "gpu": 1})).device == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="gpu: 2 is refused: the GPUs here are 0 to 1"):
        runtime.start(make_config({"cuda": True, "gpu": 2}))


@pytest.mark.parametrize(("capabilities", "dtype"), [({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)])
def test_auto_precision_follows_the_hardware(make_config, monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert runtime.start(make_config({"precision": "auto"})).dtype == dtype


def test_autocast_and_memory_format(device):
    convolution, images = torch.nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    for dtype in (torch.float32, torch.bfloat16):
        place = runtime.Runtime(device, dtype)
        placed, module = place.place(images), place.place(convolution)
        assert placed.is_contiguous(memory_format=torch.channels_last)
        assert placed.device.type == device.type
        assert module.weight.dtype == torch.float32
        with place.autocast():
            assert module(placed).dtype == dtype


def test_progress_bar_only_where_wanted(capsys):
    assert list(runtime.progress(range(3), "Counting", show=False)) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    assert list(runtime.progress(range(3), "Counting", show=True)) == [0, 1, 2]
    assert "Counting" in capsys.readouterr().out
