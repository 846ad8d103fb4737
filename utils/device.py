"""The device and its precision; several processes under torchrun, which share the work.

Without torchrun there is one process, and the functions for several return what they are given.
"""

import os
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .config import Config, ConfigError
from .files import LogLines, UserError

FIRST = os.environ.get("RANK", "0") == "0"  # only the first process of torchrun prints
DELAY = 1  # seconds until a progress bar appears: what is done by then needs none
PATIENCE = timedelta(hours=2)  # processes wait for each other while the slowest fills its image cache
LONG_PATIENCE = timedelta(days=1)  # they share the work of days, and the slowest is still at it


def rank() -> int:
    """Return the number of this process, from 0; only process 0 writes files and shows progress."""
    if dist.is_initialized():
        return dist.get_rank()
    return 0


def world() -> int:
    """Return how many processes work together."""
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def share(batch: np.ndarray) -> np.ndarray:
    """Return the contiguous part of a batch that belongs to this process; sizes differ by at most one."""
    return np.array_split(batch, world())[rank()]


def gather(rows: torch.Tensor, total: int) -> torch.Tensor:
    """Return all rows of a batch, in order, from the rows of every share.

    Gradients flow into the rows of this process only. If each process differentiates the same loss of all rows, the sum
    of their gradients is the gradient of that loss; DistributedDataParallel averages, so scale the loss by `world()`.

    Args:
        rows: (N, D), of the share of this process.
        total: Rows of the whole batch.
    """
    if world() == 1:
        return rows
    sizes = [len(part) for part in np.array_split(np.arange(total), world())]
    padded = F.pad(rows.detach(), (0, 0, 0, max(sizes) - len(rows))).contiguous()  # collectives need equal shapes
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    for number, size in enumerate(sizes):
        parts[number] = parts[number][:size]
    parts[rank()] = rows
    return torch.cat(parts)


@contextmanager
def together():
    """Join the processes that torchrun has started, and yield a group for `from_first` and `to_first`; None if alone.

    Its processes wait long for each other, but not for one that has left the block, or died: then they have an error.
    """
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        _join_the_others(torch.device("cpu"))  # a GPU is not needed to wait
    if world() == 1:
        yield None
        return
    group = dist.new_group(timeout=LONG_PATIENCE, backend="gloo")
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def leave() -> bool:
    """Leave the other processes; return whether this was the first of them."""
    first = rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return first


def from_first(value, group=None):
    """Return the value of process 0 in every process: any picklable object.

    Raises:
        UserError: Another process has ended, or has not answered for too long.
    """
    holder = [value]
    if world() > 1:
        with _others_run():
            dist.broadcast_object_list(holder, group=group)
    return holder[0]


def to_first(value, group=None) -> list | None:
    """Return the values of all processes, in their order, in process 0, and None in the others: picklable objects.

    Raises:
        UserError: Another process has ended, or has not answered for too long.
    """
    if world() == 1:
        return [value]
    values = None
    if rank() == 0:
        values = [None] * world()
    with _others_run():
        dist.gather_object(value, values, group=group)
    return values


@contextmanager
def _others_run():
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"Process {rank()} stops: another one has ended, whose own message says why, or has not answered for too "
            "long. Run the same again: it goes on from what is complete."
        ) from error


def distributed(network: nn.Module) -> nn.Module:
    """Return the network with gradients averaged over all processes; unchanged without several, or nothing to train.

    On GPUs batch norm uses the whole batch. On CPUs, where torch does not offer that, it uses the share of each
    process, and a line says so.
    """
    if world() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    device = next(network.parameters()).device
    if device.type == "cuda":
        from .vision import timm

        # timm's function also keeps the activation that some of its norms hold
        network = timm.layers.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, [device], forward_sync_buffers=False)
    if FIRST and any(isinstance(module, _BatchNorm) for module in network.modules()):
        print("On CPUs, batch norm uses only the images of each process: results differ from those of one process.")
    return DistributedDataParallel(network, forward_sync_buffers=False)


def copy_statistics(network: nn.Module):
    """Copy the running statistics of batch norm from process 0 to all others."""
    if world() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


@dataclass(frozen=True)
class Runtime:
    """Where and how precisely to compute."""

    device: torch.device
    dtype: torch.dtype
    """Of convolutions: float32, or a shorter one under autocast. Weights stay float32."""

    def autocast(self):
        """Return a context in which matrix products and convolutions run in `dtype`."""
        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)

    def place(self, tensor_or_module):
        """Move to the device; four-dimensional tensors get channels-last order, which is faster for convolutions."""
        return tensor_or_module.to(self.device, memory_format=torch.channels_last)

    def free_memory(self) -> int:
        """Return the free bytes of a CUDA card; 0 for CPUs and Apple's GPUs, which have no memory of their own."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.mem_get_info(self.device)[0]

    def __str__(self):
        name = f"{os.cpu_count()} cores"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "mps":
            name = "Apple GPU"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def start(config: Config) -> Runtime:
    """Return `find_runtime(config)` and seed every generator with the key `seed`: the start of a training run."""
    runtime = find_runtime(config)
    seed_everything(config.seed)
    return runtime


def find_runtime(config: Config) -> Runtime:
    """Choose device and precision from the keys `cuda`, `gpu` and `precision`; nothing random is touched.

    `cuda: True` uses an Apple GPU (MPS) if there is no CUDA, and without any GPU the CPU, with one printed line. Under
    torchrun this process joins the others, and its GPU is that of its number on this machine, not `gpu`. With
    `deterministic: True` torch, in this whole process, uses only algorithms that repeat to the bit, until this is
    called with False.

    Raises:
        ConfigError: There is no GPU of that index, or the CPU is asked for float16.
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
    """Around what computes gradients: refuse an operation that has no deterministic algorithm by its name.

    Raises:
        ConfigError: `deterministic: True` is set, and the only algorithm of torch does not repeat to the bit. On GPUs
            these are the gradients of adaptive pooling (except to one place), of cubic interpolation and of reflection
            padding, which few backbones use.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # a module in a Cut raises the latter
        operation, lacking, _ = str(error).partition(" does not have a deterministic implementation")
        if not lacking:
            raise
        raise ConfigError(
            f"deterministic: True is refused: {operation}, which the backbone needs, has no algorithm that repeats to "
            "the bit on this device: set False, cuda: False, or another backbone_model"
        ) from error


def _device(config):
    if not config.cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return torch.device("mps")
        cause = "torch finds no GPU"
        if torch.version.cuda is None:
            cause = "this build of torch is for CPUs only"
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
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


def _dtype(precision, device):
    """Return the dtype of convolutions; with `auto`, the shortest that the hardware computes faster than float32."""
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision: float16 is refused on the CPU: set auto, float32 or bfloat16")
    if precision != "auto":
        return getattr(torch, precision)
    if _computes_bfloat16(device):
        return torch.bfloat16
    if device.type == "cuda":
        return torch.float16
    return torch.float32  # on MPS too, where nothing shorter was tried


def _computes_bfloat16(device):
    """Return whether the hardware has bfloat16 units; emulated bfloat16 is slower than float32."""
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


def progress(iterable, text: str, show=True, total=None):
    """Return a progress bar that appears after DELAY and vanishes when done, on stdout: notebooks show stderr in red.

    A file or a pipe gets lines instead, as LogLines says.
    """
    file = sys.stdout
    if not (file.isatty() or "ipykernel" in sys.modules):
        file = LogLines()
    return tqdm(iterable, text, total, leave=False, file=file, delay=DELAY, disable=not (show and FIRST))
