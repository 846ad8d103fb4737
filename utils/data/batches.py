"""Batches: which images train together, and their pixels on the way to the device."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..config import Config
from ..device import Runtime
from .cache import Decoder
from .splits import Splits, draw_pairs

BLOCK = 1024  # images copied at once


def draw_epoch(splits: Splits, config: Config, number: int) -> list[np.ndarray]:
    """The training batches of epoch `number`, as int64 arrays of image indices.

    With `pairs: batch`, those of `draw_batches`; with `pairs: paper`, up to batch_size pairs of the rule, drawn anew:
    an anchor, its partner, the next anchor, its partner, and so on.
    """
    random = np.random.default_rng((config.seed, 3, number))
    size = config.hyperparameters.batch_size
    if config.pairs == "batch":
        return draw_batches(splits.train, splits.folder.labels, size, random)
    pairs = draw_pairs(splits.train, splits.folder.labels, config.number_of_iterations, random)
    images = np.stack([pairs.first, pairs.second], axis=1)  # (P, 2)
    count = math.ceil(len(pairs) / size)
    chosen = np.array_split(random.permutation(len(pairs)), count)
    return [images[batch].flatten() for batch in chosen]


def draw_batches(indices: np.ndarray, labels: np.ndarray, batch_size: int, random: np.random.Generator):
    """Batches for `pairs: batch`: a list of int64 arrays of at most `batch_size` image indices.

    Each batch holds at least two classes, and nearly every image meets another of its class: classes are dealt in
    hands of four (of two below a batch size of eight), spread evenly over the epoch. Every image appears once, unless
    one class so outnumbers the others that a batch would be left without a second class: then that batch gives up a
    hand for images drawn from the other classes.
    """
    hand = 4 if batch_size >= 8 else 2
    order = random.permutation(indices)
    order = order[np.argsort(labels[order], kind="stable")]  # classes lie in contiguous blocks, shuffled inside
    counts = np.unique(labels[order], return_counts=True)[1]
    turns = _turns(counts, hand, random)  # (N,): when each image is played
    played = np.argsort(turns, kind="stable")
    hands = turns.max() + 1
    batches = math.ceil(hands / (batch_size // hand))
    lengths = [len(part) for part in np.array_split(np.arange(hands), batches)]  # in hands
    ends = np.searchsorted(turns[played], np.cumsum(lengths)[:-1])  # in images
    return [
        _with_two_classes(batch, order, labels, batch_size, hand, random) for batch in np.split(order[played], ends)
    ]


def _turns(counts, hand, random):
    """Deals the images of each class, `counts` of them, in hands; returns when the hand of each image is played.

    The hands of a class are spread evenly over the epoch, each at a random place within its share of it.
    """
    hands = -(-counts // hand)  # of each class, rounded up
    first_hand = np.cumsum(hands) - hands
    first_image = np.cumsum(counts) - counts
    total = hands.sum()
    place = np.arange(counts.sum()) - np.repeat(first_image, counts)  # of each image in its class
    dealt = np.repeat(first_hand, counts) + place * np.repeat(hands, counts) // np.repeat(counts, counts)
    number = np.arange(total) - np.repeat(first_hand, hands)  # of each hand in its class
    moment = (number + random.random(total)) / np.repeat(hands, hands)  # in [0, 1) of the epoch
    turn = np.argsort(np.argsort(moment))  # of each hand
    return turn[dealt]


def _with_two_classes(batch, order, labels, batch_size, hand, random):
    """The batch; where it holds one class alone, it gives up a hand for images drawn from the others."""
    label = labels[batch[0]]
    if (labels[batch] != label).any():
        return batch
    others = order[labels[order] != label]
    strangers = random.choice(len(others), min(hand, len(others)), replace=False)
    kept = batch[: max(batch_size - hand, hand)]
    return np.concatenate([kept, others[strangers]])


class ResidentPixels:
    """All pixels as one tensor on the device: rows are picked there and nothing is copied from batch to batch."""

    def __init__(self, pixels: Decoder, device):
        self.paths = pixels.paths
        self.size = pixels.size
        self.rows = torch.empty(len(pixels), *pixels.size, 3, dtype=torch.uint8, device=device)
        readable = np.setdiff1d(np.arange(len(pixels)), list(pixels.unreadable))
        for start in range(0, len(readable), BLOCK):
            part = readable[start : start + BLOCK]
            self.rows[part] = torch.from_numpy(pixels[part]).to(device)

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
