"""What each of the processes of test_parallel.py does."""

import runpy
import sys

import torch

from utils.config import load_config
from utils.data.splits import load_splits
from utils.device import Runtime, distributed, seed_everything, start
from utils.network.siamese import build_network
from utils.train.loop import build_scaler, fit, train_epoch


class Recorder(torch.optim.SGD):
    """An optimizer that keeps every gradient and moves nothing."""

    def __init__(self, network):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        super().__init__(trained, lr=1.0)
        self.gradients = []

    def step(self, closure=None):
        self.gradients.append([parameter.grad.clone() for parameter in self.param_groups[0]["params"]])


def gradients(config, runtime: Runtime, dtype=torch.float32) -> dict:
    """Loss of an epoch, the gradients of all its batches, and the running statistics of batch norm after it."""
    splits = load_splits(config)
    seed_everything(config.seed)
    network = runtime.place(build_network(config).to(dtype))
    recorder = Recorder(network)
    loss = train_epoch(distributed(network), recorder, build_scaler(runtime), splits, config, runtime, 1)
    return {"loss": loss, "gradients": recorder.gradients, "buffers": list(network.buffers())}


def gradients_of_both(path):
    """The gradients in float32 and in float64."""
    config = load_config(path)
    runtime = start(config)
    return {str(dtype): gradients(config, runtime, dtype) for dtype in (torch.float32, torch.float64)}


def train(path):
    """Run the command `train`. The package is imported anew: only the process of rank 0 prints."""
    for name in list(sys.modules):
        if name.split(".")[0] == "utils":
            del sys.modules[name]
    sys.argv = ["utils", "train", "--config", str(path)]
    runpy.run_module("utils", run_name="__main__")


def epochs(path):
    """How many epochs the history of a run has."""
    config = load_config(path)
    return len(fit(config, runtime=start(config)))
