import os
import random
import sys

import numpy as np
import pytest
import torch

from utils import __main__ as commands
from utils import device as runtime
from utils import files
from utils.config import ConfigError
from utils.train.loop import build_scaler, optimize


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
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.start(make_config({"cuda": True})).device.type == "cpu"
    assert capsys.readouterr().out.count("\n") == 1
    runtime.start(make_config({"cuda": False}))
    assert capsys.readouterr().out == ""


def test_apple_gpus_are_taken_where_there_is_no_cuda(make_config, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    chosen = runtime.find_runtime(make_config({"cuda": True, "precision": "auto"}))
    assert (chosen.device.type, chosen.dtype) == ("mps", torch.float32)
    assert chosen.free_memory() == 0
    assert str(chosen) == "mps (Apple GPU), float32"
    short = runtime.find_runtime(make_config({"cuda": True, "precision": "bfloat16"}))
    assert short.autocast().device == "mps"
    assert capsys.readouterr().out == ""
    assert runtime.find_runtime(make_config({"cuda": False})).device.type == "cpu"


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


def test_progress_bar_only_where_wanted(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert list(runtime.progress(range(3), "Counting")) == [0, 1, 2]
    assert capsys.readouterr().out == ""  # it is done before a bar could be seen
    monkeypatch.setattr(runtime, "DELAY", 0)
    assert list(runtime.progress(range(3), "Counting", show=False)) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    assert list(runtime.progress(range(3), "Counting", show=True)) == [0, 1, 2]
    assert "Counting" in capsys.readouterr().out


def test_a_file_gets_a_line_now_and_then_instead_of_a_bar(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # other tests may have started a notebook
    monkeypatch.setattr(runtime, "DELAY", 0)
    assert list(runtime.progress(range(3), "Counting")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(files, "SILENCE", -1)
    assert list(runtime.progress(range(3), "Counting")) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Counting:   0%")
    assert all(line.startswith("Counting: ") and "\r" not in line for line in lines)


def test_float16_is_refused_on_the_cpu(make_config):
    with pytest.raises(ConfigError, match="float16 is refused on the CPU"):
        runtime.start(make_config({"precision": "float16"}))


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_of_a_gpu(make_config, monkeypatch, bfloat16, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(runtime, "seed_everything", lambda seed: None)
    started = runtime.start(make_config({"cuda": True, "precision": "auto"}))
    assert started.dtype == dtype
    assert build_scaler(started).is_enabled() == (dtype == torch.float16)
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.fp32_precision == "tf32"


def test_one_process_runs_with_and_without_deterministic_algorithms(make_config, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for deterministic in (True, False, True):
        runtime.find_runtime(make_config({"deterministic": deterministic}))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic == (not torch.backends.cudnn.benchmark) == deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the other one that torch accepts
    runtime.find_runtime(make_config({"deterministic": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def unrepeatable(values):
    """What torch has no deterministic algorithm for, on a CPU too."""
    values.clone().put_(torch.tensor([0]), torch.ones(1))


def test_an_operation_that_does_not_repeat_is_refused_by_its_name(make_config):
    runtime.find_runtime(make_config({"deterministic": True}))
    message = r"deterministic: True is refused: put_, which the backbone needs.*set False"
    with pytest.raises(ConfigError, match=message), runtime.deterministic_or_refused():
        unrepeatable(torch.zeros(3))
    with pytest.raises(RuntimeError, match="something else"), runtime.deterministic_or_refused():
        raise RuntimeError("something else")
    runtime.find_runtime(make_config({"deterministic": False}))
    with runtime.deterministic_or_refused():
        unrepeatable(torch.zeros(3))


def test_under_torchrun_the_gpu_is_that_of_the_process(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(runtime.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(runtime, "seed_everything", lambda seed: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    config = make_config({"cuda": True, "gpu": 0, "precision": "float32"})
    assert runtime.start(config).device == torch.device("cuda", 3)


def test_a_scaled_step_is_the_step_without_scaling(device):
    """Loss scaling, which float16 needs, must not change what is learned: clipping comes after unscaling."""
    weights = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        loss = model(torch.ones(4, 3, device=device)).square().sum()
        optimize(model, loss, optimizer, scaler, 0.5)
        weights.append(model.weight.detach().cpu())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(given, expected, monkeypatch):
    """Else two processes on one machine slow each other many times over."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    commands._load_torch()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
