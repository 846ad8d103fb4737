"""Several processes as one, under torchrun: each takes its share of a batch, and the result is that of the whole batch.

Without torchrun every function here does nothing but hand back what it was given.
"""

import os
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .config import Config, ConfigError
from .vision import timm


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
        network = timm.layers.convert_sync_batchnorm(
            network
        )  # timm's, which keeps the activation that some of its norms hold
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


GLOBAL = {nn.BatchNorm2d: GlobalBatchNorm2d, timm.layers.BatchNormAct2d: GlobalBatchNormAct2d}


def _ends(total):
    return [total * number // world() for number in range(world() + 1)]


LACKING = " does not have a deterministic implementation"  # what torch says of an operation, by its name
FIRST = os.environ.get("RANK", "0") == "0"  # of several processes of torchrun only the first speaks


@dataclass(frozen=True)
class Runtime:
    """The device, and the dtype of convolutions: float32, or a shorter one under autocast (weights stay float32)."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self):
        """A context in which matrix products and convolutions run in `dtype`."""
        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)

    def place(self, tensor_or_module):
        """Move to the device, four-dimensional tensors in channels-last order: the faster one for convolutions."""
        return tensor_or_module.to(self.device, memory_format=torch.channels_last)

    def free_memory(self) -> int:
        """Bytes free on a CUDA card; 0 elsewhere: CPUs and Apple's GPUs have no memory apart."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def __str__(self):
        names = {"cuda": torch.cuda.get_device_name, "mps": lambda device: "Apple GPU"}
        name = names[self.device.type](self.device) if self.device.type in names else f"{os.cpu_count()} cores"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def start(config: Config) -> Runtime:
    """`find_runtime`, and every generator seeded with the key `seed`: how a training run begins."""
    runtime = find_runtime(config)
    seed_everything(config.seed)
    return runtime


def find_runtime(config: Config) -> Runtime:
    """Choose device and precision from the keys `cuda`, `gpu` and `precision`; nothing random is touched.

    `cuda: True` takes an Apple GPU (MPS) where there is no CUDA; without a GPU it falls back to the CPU and prints one
    line. Under torchrun this process joins the others, and its GPU is that of its number on this machine, not `gpu`.
    With `deterministic: True` torch, in this whole process, takes algorithms alone that repeat to the bit, until this
    is called with False.

    Raises ConfigError when there is no GPU of that index, or float16 is asked of a CPU.
    """
    device = _device(config)
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        _join_the_others(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, and needed by a later deterministic run
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic
    return Runtime(device, _dtype(config.precision, device))


@contextmanager
def deterministic_or_refused():
    """Around what computes gradients: an operation that has no deterministic algorithm is refused by its name.

    Raises:
        ConfigError: `deterministic: True` is set, and torch has one algorithm alone, which does not repeat to the bit.
            On GPUs such are the gradients of adaptive pooling (but to one place), of cubic interpolation and of
            reflection padding, which few backbones use.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # a module in a Cut raises the latter
        operation, lacking, _ = str(error).partition(LACKING)
        if not lacking:
            raise
        raise ConfigError(
            f"deterministic: True is refused: {operation}, which the backbone needs, has no algorithm that repeats to "
            "the bit on this device: set False, cuda: False, or another backbone_model"
        ) from error


def _device(config):
    """The GPU that the config names, or the CPU."""
    if not config.cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available() and torch.backends.mps.is_available():
        return torch.device("mps")
    if not torch.cuda.is_available():
        cause = "this build of torch is for CPUs only" if torch.version.cuda is None else "no usable GPU was found"
        if FIRST:
            print(f"cuda: True, but {cause}: running on the CPU.")
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", config.gpu))
    if number >= torch.cuda.device_count():
        raise ConfigError(f"gpu: {number} is refused: the GPUs here are 0 to {torch.cuda.device_count() - 1}")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.fp32_precision = "tf32"
    return torch.device("cuda", number)


def _join_the_others(device):
    """Make this process one of those that torchrun has started."""
    patience = timedelta(hours=2)  # processes wait for one another while the slowest fills its image cache
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=patience, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=patience)


def _dtype(precision, device):
    """The dtype of convolutions: with `auto`, the shortest that the hardware computes faster than float32."""
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision: float16 is refused on the CPU: set auto, float32 or bfloat16")
    if precision != "auto":
        return getattr(torch, precision)
    if computes_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32  # on MPS too, where nothing shorter was tried


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 units; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "bf16"))


def seed_everything(seed: int):
    """Seed Python, NumPy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(iterable, text: str, show: bool, total=None):
    """A progress bar that vanishes when done, on a terminal and in notebooks, which paint stderr red: on stdout.

    A file or a pipe gets none: a bar draws over itself, which there would be one long line.
    """
    drawn = sys.stdout.isatty() or "ipykernel" in sys.modules
    return tqdm(iterable, text, total, leave=False, file=sys.stdout, disable=not (show and FIRST and drawn))
