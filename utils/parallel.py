"""Several processes as one, under torchrun: each takes its share of a batch, and the result is that of the whole batch.

Without torchrun every function here does nothing but hand back what it was given.
"""

from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """The number of this process, from 0; process 0 alone writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch):
    """The contiguous part of a batch (an array or tensor) that belongs to this process; sizes differ by at most one."""
    ends = _ends(len(batch))
    return batch[ends[rank()] : ends[rank() + 1]]


def gather(rows: torch.Tensor, total: int) -> torch.Tensor:
    """All rows (total, D) of a batch, in its order, from the rows of every share.

    Gradients flow into the rows of this process only. Where each process differentiates the same loss of all rows,
    their sum is the gradient of that loss; DistributedDataParallel averages instead, so scale the loss by `world()`.
    """
    if world() == 1:
        return rows
    ends = _ends(total)
    sizes = [end - start for start, end in pairwise(ends)]
    padded = F.pad(rows.detach(), (0, 0, 0, max(sizes) - len(rows))).contiguous()  # collectives want equal shapes
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank()] = rows
    return torch.cat(parts)


def from_first(value):
    """The value that process 0 has, in every process: any picklable object."""
    holder = [value]
    if world() > 1:
        dist.broadcast_object_list(holder)
    return holder[0]


def distributed(network: nn.Module) -> nn.Module:
    """The network with gradients averaged over all processes and batch norm over the whole batch; as it was where it is
    alone or has nothing to train.

    Batch norm is torch's SyncBatchNorm on GPUs and GlobalBatchNorm2d, which computes the same, on CPUs.
    """
    if world() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    device = next(network.parameters()).device
    if device.type == "cuda":
        network = convert_sync_batchnorm(network)  # timm's, which keeps the activation that some of its norms hold
    for module in network.modules():
        if type(module) in GLOBAL:
            module.__class__ = GLOBAL[type(module)]  # no state of its own: parameters and buffers stay in place
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None, broadcast_buffers=False)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of the batches of all processes (torch has this for GPUs only)."""

    def forward(self, images):
        """(B, C, h, w) of any B, the shares of all processes being one batch, to the same shape."""
        if not self.training:
            return super().forward(images)
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        places = (0, 2, 3)
        count = all_reduce(torch.tensor(values.numel() / values.shape[1], dtype=values.dtype))
        mean = all_reduce(values.sum(places)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(places)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """The same for timm's batch norm that holds an activation."""

    def forward(self, images):
        """(B, C, h, w) of any B, the shares of all processes being one batch, to the same shape."""
        return self.act(self.drop(super().forward(images)))


GLOBAL = {nn.BatchNorm2d: GlobalBatchNorm2d, BatchNormAct2d: GlobalBatchNormAct2d}


def _ends(total):
    return [total * number // world() for number in range(world() + 1)]
