"""One process of a torchrun launch in test_parallel.py: gradients RESULT CONFIG... or train CONFIG."""

import sys

import torch

from utils import __main__
from utils.config import load_config
from utils.data.splits import load_splits
from utils.device import Runtime, distributed, rank, seed_everything, start
from utils.network.siamese import build_network
from utils.train.loop import build_scaler, train_epoch


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


if __name__ == "__main__":
    task, *paths = sys.argv[1:]
    if task == "gradients":
        result, *config_paths = paths
        results = {}
        for path in config_paths:
            config = load_config(path)
            runtime = start(config)
            results[path] = {str(dtype): gradients(config, runtime, dtype) for dtype in (torch.float32, torch.float64)}
        torch.save(results, f"{result}.{rank()}")
        torch.distributed.destroy_process_group()
    else:
        sys.argv = ["utils", "train", "--config", *paths]
        __main__.main()
