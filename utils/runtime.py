"""Where and how the network computes: device, precision, memory format, seed, progress bars."""

import os
import random
import sys
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from utils.config import Config, ConfigError


@dataclass(frozen=True)
class Runtime:
    """The device, and the dtype of convolutions: float32, or bfloat16 under autocast (weights stay float32)."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self):
        """A context in which matrix products and convolutions run in `dtype`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def place(self, tensor_or_module):
        """Move to the device, four-dimensional tensors in channels-last order: the faster one for convolutions."""
        return tensor_or_module.to(self.device, memory_format=torch.channels_last)

    def __str__(self):
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{os.cpu_count()} cores"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def start(config: Config) -> Runtime:
    """Choose device and precision from the keys `cuda`, `gpu` and `precision`, and seed every generator.

    `cuda: True` on a machine without a GPU falls back to the CPU and prints one line.

    Raises ConfigError when `gpu` is not the index of a GPU of this machine.
    """
    device = torch.device("cpu")
    if config.cuda and not torch.cuda.is_available():
        cause = "this build of torch is for CPUs only" if torch.version.cuda is None else "no usable GPU was found"
        print(f"cuda: True, but {cause}: running on the CPU.")
    elif config.cuda:
        if config.gpu >= torch.cuda.device_count():
            raise ConfigError(f"gpu: {config.gpu} is refused: the GPUs here are 0 to {torch.cuda.device_count() - 1}")
        device = torch.device("cuda", config.gpu)
    if config.precision == "auto":
        dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    else:
        dtype = getattr(torch, config.precision)
    seed_everything(config.seed)
    return Runtime(device, dtype)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 units; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "bf16"))


def seed_everything(seed: int):
    """Seed Python, NumPy and torch (all devices), and let cuDNN choose only reproducible algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def progress(iterable, text: str, show: bool, total=None):
    """A progress bar that vanishes when done; on stdout, because notebooks paint stderr red."""
    return tqdm(iterable, text, total, leave=False, file=sys.stdout, disable=not show)
