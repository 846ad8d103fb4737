"""How much memory a training step takes, estimated before anything is allocated."""

import copy

import psutil
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..config import Config, ConfigError
from ..device import Runtime, world
from ..network.siamese import SiameseNetwork

GIGABYTE = 1e9
LEAST_BATCH = {"batch": 4, "paper": 2}  # of `batch_size`, by `pairs`


def check_memory(network: SiameseNetwork, config: Config, runtime: Runtime):
    """Raises ConfigError where the feature maps of one batch, which training keeps for its gradients, take more memory
    than is free.
    """
    images = config.hyperparameters.batch_size * (2 if config.pairs == "paper" else 1) / world()
    needed = images * kept_bytes(network, config.image.size, runtime.dtype)
    free = runtime.free_memory() or psutil.virtual_memory().available
    if needed > free:
        fitting = int(config.hyperparameters.batch_size * free / needed)
        enough = fitting >= max(LEAST_BATCH[config.pairs], 2 * world())
        cure = (
            f"set hyperparameters.batch_size to {fitting} or less, or lower image.size"
            if enough
            else "lower image.size"
        )
        raise ConfigError(
            f"hyperparameters.batch_size, image.size: training on {images:.0f} images of {list(config.image.size)} at "
            f"a time takes {needed / GIGABYTE:,.1f} GB, and {free / GIGABYTE:,.1f} GB are free: {cure}"
        )


def kept_bytes(network: SiameseNetwork, image_size, dtype=torch.float32) -> int:
    """Bytes of the feature maps that autograd keeps for one image (3, *image_size); nothing is allocated or computed.

    0 where the backbone cannot be traced so.
    """
    backbone = copy.deepcopy(network.backbone).to("meta").eval()
    own = {StorageWeakRef(values.untyped_storage()) for values in (*backbone.parameters(), *backbone.buffers())}
    kept = {}

    def keep(values):
        storage = StorageWeakRef(values.untyped_storage())
        if storage not in own:
            kept[storage] = values.numel() * dtype.itemsize
        return values

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
            backbone.forward_features(torch.empty(1, 3, *image_size, device="meta"))
    except (NotImplementedError, RuntimeError):
        return 0
    return sum(kept.values())
