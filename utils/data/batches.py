"""Batches: which images train together, their pixels on the way to the device, and what the network gets of them."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from kornia import augmentation as K
from torch import nn

from ..config import Config, ImageSettings, Normalization
from ..device import Runtime
from ..vision import functional as V
from .cache import Decoder
from .splits import Splits, draw_pairs

BLOCK = 1024  # images copied at a time
AHEAD = 2  # batches that are read while the device computes


def draw_epoch(splits: Splits, config: Config, number: int) -> list[np.ndarray]:
    """Draw the training batches of epoch `number`: int64 arrays of image indices.

    With `pairs: batch` these are those of `draw_batches`. With `pairs: paper` they are up to batch_size pairs of the
    pair rule, drawn again in each epoch: an anchor, its partner, the next anchor, its partner, and so on.
    """
    random = np.random.default_rng((config.seed, 3, number))
    size = config.hyperparameters.batch_size
    if config.pairs == "batch":
        return draw_batches(splits.train, splits.folder.labels, size, random)
    pairs = draw_pairs(splits.train, splits.folder.labels, config.number_of_iterations, random)
    images = np.stack([pairs.first, pairs.second], axis=1)[random.permutation(len(pairs))]  # (P, 2)
    return [batch.flatten() for batch in np.array_split(images, math.ceil(len(pairs) / size))]


def draw_batches(indices: np.ndarray, labels: np.ndarray, batch_size: int, random: np.random.Generator):
    """Draw the batches of an epoch for `pairs: batch`: a list of int64 arrays of at most `batch_size` image indices.

    Each batch has at least two classes, and nearly every image meets another of its class: classes are dealt in hands
    of four (of two below a batch size of eight), spread evenly over the epoch. Every image appears once, unless one
    class so outnumbers the others that a batch would have no second class: then that batch gives up a hand for images
    drawn from the other classes.

    Args:
        indices: int64 (N,), the images to deal.
        labels: int64, the class of every image of the folder.
        batch_size: At least 4.
        random: Of the shuffling.
    """
    hand = 4
    if batch_size < 8:
        hand = 2
    order = random.permutation(indices)
    order = order[np.argsort(labels[order], kind="stable")]  # each class is one block, shuffled inside
    counts = np.unique(labels[order], return_counts=True)[1]
    turns = _turns(counts, hand, random)  # (N,): when each image is played
    played = np.argsort(turns, kind="stable")
    hands = np.arange(turns.max() + 1)
    first_hands = [part[0] for part in np.array_split(hands, math.ceil(len(hands) / (batch_size // hand)))]
    starts = np.searchsorted(turns[played], first_hands)  # in images
    batches = []
    for batch in np.split(order[played], starts[1:]):
        label = labels[batch[0]]
        if (labels[batch] == label).all():
            others = order[labels[order] != label]
            drawn = random.choice(others, min(hand, len(others)), replace=False)
            batch = np.concatenate([batch[: max(batch_size - hand, hand)], drawn])
        batches.append(batch)
    return batches


def _turns(counts, hand, random):
    """Deal the images of each class, `counts` of them, in hands; return when the hand of each image is played.

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


def resident(pixels: Decoder, runtime: Runtime, memory_share: float) -> Decoder | torch.Tensor:
    """Copy the pixels to the GPU, if they take at most `memory_share` of its free memory; else return them.

    The copy is a tensor, uint8 (N, h, w, 3): rows are picked there, and no batch is copied.
    """
    shape = (len(pixels), *pixels.size, 3)
    if math.prod(shape) > memory_share * runtime.free_memory():
        return pixels
    rows = torch.empty(shape, dtype=torch.uint8, device=runtime.device)
    readable = np.setdiff1d(np.arange(len(pixels)), list(pixels.unreadable))
    for start in range(0, len(readable), BLOCK):
        part = readable[start : start + BLOCK]
        rows[part] = torch.from_numpy(pixels[part]).to(runtime.device)
    return rows


def deliver(pixels, batches, runtime: Runtime):
    """Yield the pixels of each batch of indices, uint8 (B, h, w, 3) on the device, reading AHEAD batches ahead."""

    def read(indices):
        part = torch.as_tensor(pixels[indices])
        if runtime.device.type == "cuda" and part.device.type == "cpu":
            part = part.pin_memory()  # other memory is not copied while the GPU computes
        return part

    with ThreadPoolExecutor(1) as pool:
        waiting = deque()
        for indices in batches:
            waiting.append(pool.submit(read, indices))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result().to(runtime.device, non_blocking=True)
        while waiting:
            yield waiting.popleft().result().to(runtime.device, non_blocking=True)


def training_transform(settings: ImageSettings) -> nn.Module:
    """Augment as `image` in config.yml says, each image differently: uint8 (B, H, W, 3) to float32 (B, 3, h, w).

    Random numbers come from torch's CPU generator, whatever the device of the pixels.
    """
    crop = settings.RandomCropScale
    colours = settings.brightness, settings.contrast, settings.saturation, settings.hue
    steps = [_Floats(settings.Channels)]
    if crop < 1:
        steps.append(K.RandomResizedCrop(settings.size, (crop, 1.0), p=1.0, cropping_mode="resample"))
    if settings.HorizontalFlip:
        steps.append(K.RandomHorizontalFlip(settings.HorizontalFlip))
    if settings.VerticalFlip:
        steps.append(K.RandomVerticalFlip(settings.VerticalFlip))
    if any(colours):
        steps.append(K.ColorJitter(*colours, p=1.0))
    steps.append(K.Normalize(settings.normalization.mean, settings.normalization.std))
    if settings.RandomRotationDegrees:  # after the normalisation: corners turned in are 0, the average colour
        steps.append(K.RandomRotation(float(settings.RandomRotationDegrees), p=1.0))
    return nn.Sequential(*steps)


def evaluation_transform(settings: ImageSettings) -> nn.Module:
    """Resize to `image.size` and normalise, nothing random: uint8 (B, H, W, 3) to float32 (B, 3, h, w)."""
    normalize = K.Normalize(settings.normalization.mean, settings.normalization.std)
    return nn.Sequential(_Floats(settings.Channels, settings.size), normalize)


def to_pixels(images: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Undo the normalisation, for figures: float (..., 3, h, w) to uint8 (..., h, w, 3)."""
    mean = torch.tensor(normalization.mean, device=images.device)[:, None, None]
    std = torch.tensor(normalization.std, device=images.device)[:, None, None]
    values = (images * std + mean).clamp(0, 1)
    return (values * 255).round().to(torch.uint8).movedim(-3, -1)


class _Floats(nn.Module):
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]; resized to `size`, and grey for one channel."""

    def __init__(self, channels, size=None):
        super().__init__()
        self.channels = channels
        self.size = size

    def forward(self, pixels):
        images = pixels.movedim(-1, 1)
        if self.size:
            images = V.resize(images, self.size, antialias=True)
        images = V.to_dtype(images, torch.float32, scale=True)
        if self.channels == 1:
            images = V.rgb_to_grayscale(images, num_output_channels=3)
        return images
