"""Pixels to the device, batch by batch: read ahead in a thread, or all of them kept there."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from utils.cache import Decoder
from utils.runtime import Runtime

BLOCK = 1024  # images copied at once


class ResidentPixels:
    """All pixels as one tensor on the device: rows are picked there and nothing is copied from batch to batch."""

    def __init__(self, pixels: Decoder, device):
        self.paths, self.size = pixels.paths, pixels.size
        self.rows = torch.empty(len(pixels), *pixels.size, 3, dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), BLOCK):
            part = np.arange(start, min(start + BLOCK, len(pixels)))
            self.rows[start : start + BLOCK] = torch.from_numpy(pixels[part]).to(device)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices) -> torch.Tensor:
        """indices int64 (B,) to pixels uint8 (B, h, w, 3) on the device."""
        return self.rows[torch.from_numpy(indices).to(self.rows.device)]


def resident(pixels: Decoder, runtime: Runtime, memory_share: float):
    """The pixels on the GPU, where they take at most `memory_share` of its free memory; else as they were."""
    fits = len(pixels) * np.prod((*pixels.size, 3)) <= memory_share * runtime.free_memory()
    return ResidentPixels(pixels, runtime.device) if fits else pixels


def deliver(pixels, batches, runtime: Runtime):
    """Yields the pixels of each batch of indices, uint8 (B, h, w, 3) on the device, reading two batches ahead."""

    def read(indices):
        part = torch.as_tensor(pixels[indices])
        # only pinned memory is copied while the GPU computes
        return part.pin_memory() if runtime.device.type == "cuda" and part.device.type == "cpu" else part

    with ThreadPoolExecutor(1) as pool:
        ahead = deque()
        for indices in batches:
            ahead.append(pool.submit(read, indices))
            if len(ahead) > 2:
                yield ahead.popleft().result().to(runtime.device, non_blocking=True)
        while ahead:
            yield ahead.popleft().result().to(runtime.device, non_blocking=True)
