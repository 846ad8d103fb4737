"""What an explanation needs of a network, and how two embeddings become a score."""

import threading
from collections import Counter
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from ..config import LAST
from .hooks import copy_without_hooks
from .inputs import pairs_for

EPSILON = 1e-12  # under the root of the distance: identical images keep a finite gradient

_lock = threading.Lock()  # around both of these
_inside = Counter()  # by module: how many blocks of `evaluating` it is in
_before = {}  # by module: the mode that it had before the first of them


class Explainable(Protocol):
    """A torch module that can be read, and continued, at a feature map. `SiameseNetwork` is one; `Cut` makes one."""

    layers: list[str]
    """Names of the feature maps that can be read, from the image to the last one; "last" means the last of them."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images (N, C, H, W), float (N, D), of length 1."""

    def features(self, images: torch.Tensor, layer: str = LAST) -> torch.Tensor:
        """Return the feature map of images (N, C, H, W) at a layer, (N, channels, h, w)."""

    def features_and_vectors(self, images: torch.Tensor, layer: str = LAST) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same, and the vectors (N, D) that become embeddings when they are brought to length 1.

        Where gradients are recorded, they flow from the vectors to the map.
        """

    def project_features(self, features: torch.Tensor, layer: str = LAST) -> torch.Tensor:
        """Return the vectors (N, D) of a feature map (N, channels, h, w) at a layer, of any length."""


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale vectors over the last dimension to length 1; NaN where the length is 0, or too small or large to compute.

    Such a vector has no direction: torch's `normalize` would return zeros, equal to any other such vector.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    has_direction = (lengths > EPSILON) & lengths.isfinite()
    return vectors / torch.where(has_direction, lengths, torch.nan)


def distance(embeddings1, embeddings2):
    """Return the Euclidean distance over the last dimension, in [0, 2] for embeddings of length 1."""
    return ((embeddings1 - embeddings2).square().sum(dim=-1) + EPSILON).sqrt()


def similarity(distances):
    """Return the similarity score 1 - distance / 2, in [0, 1]; rounding beyond the ends is cut off."""
    return (1 - distances / 2).clamp(0, 1)


def paired(rows: torch.Tensor) -> torch.Tensor:
    """Turn rows of B pairs, one image after the other, (2B, ...), into (B, 2, ...): the opposite of `flatten(0, 1)`."""
    return rows.unflatten(0, (-1, 2))


def embed_pairs(network: Explainable, images: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (B, 2, D) of both images of B pairs (B, 2, C, H, W)."""
    return paired(network(images.flatten(0, 1)))


@torch.no_grad()
def distances_of(network: Explainable, images: torch.Tensor) -> torch.Tensor:
    """Return the distances (B,) of B pairs of images, as `pairs_for` takes them, in evaluation mode."""
    with evaluating(network):
        embeddings = embed_pairs(network, pairs_for(network, images))
    return distance(*embeddings.unbind(1))


@contextmanager
def evaluating(network: nn.Module):
    """Set evaluation mode inside the block; afterwards every submodule is back in the mode that it had.

    Threads may be inside at once, also with networks that share modules: the last one to leave restores the modes. The
    block is outside of `torch.inference_mode`, which records no gradients. A thread that trains the same modules
    meanwhile would train them in evaluation mode.
    """
    modules = list(network.modules())
    with _lock:
        for module in modules:
            _before.setdefault(module, module.training)
            _inside[module] += 1
    try:
        network.eval()
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            yield network
    finally:
        with _lock:
            for module in modules:
                _inside[module] -= 1
                if not _inside[module]:
                    del _inside[module]
                    module.training = _before.pop(module)


def copy_of(network: nn.Module, shared=()) -> nn.Module:
    """Copy a network, in the modes that it has outside of `evaluating`. shared: tensors that are not copied."""
    copied = copy_without_hooks(network, shared)
    with _lock:
        for module, twin in zip(network.modules(), copied.modules(), strict=True):
            twin.training = _before.get(module, module.training)
    return copied
