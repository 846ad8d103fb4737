"""Images in any container to one tensor, to embeddings and to distances; what an explanation needs of a network."""

import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..config import LAST
from ..files import ExplanationError
from .hooks import copy_without_hooks

NARROWEST = 5  # pixels of an image's width, at least: a last axis that is shorter holds channels
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


def project_through(network: Explainable, features, layer: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the vectors (N, D) of a feature map, and the maps of the later layers that `layer` names too.

    Only a network with a method `project_through`, as SiameseNetwork has it, can read several layers.
    """
    if hasattr(network, "project_through"):
        return network.project_through(features, layer)
    return network.project_features(features, layer), []


def path_layer(network: Explainable) -> str:
    """Return the layer that methods on a path read: the last one, unless the network has another `path_layer`."""
    return getattr(network, "path_layer", LAST)


def pairs_for(network: nn.Module, images) -> torch.Tensor:
    """Return B pairs of images as one tensor.

    Args:
        network: The network that takes them.
        images: Floats (B, 2, C, H, W), with any number of channels: a tensor, an array, or a list of pairs of tensors
            or arrays (C, H, W). A tensor is returned as it is; anything else gets the floating type and device of the
            network's first floating parameter, float32 on the CPU where it has none.

    Returns:
        Float (B, 2, C, H, W), without a gradient.

    Raises:
        ExplanationError: The images have another shape or several, hold whole numbers, are files or PIL images, stand
            on another device than the network, or have more or fewer channels than it takes.
    """
    pairs = _tensor_for(network, images)
    if pairs.dim() != 5 or pairs.shape[1] != 2 or not all(pairs.shape[2:]):
        raise ExplanationError(
            f"images {tuple(pairs.shape)} must be (B, 2, C, H, W), two images of C channels in each pair: "
            "pass torch.stack([images1, images2], dim=1) of two tensors (B, C, H, W), or pair[None] of one (2, C, H, W)"
        )
    _check_channels(network, pairs)
    return pairs


def images_for(network: nn.Module, images) -> torch.Tensor:
    """Return N images as one tensor (N, C, H, W); arguments and errors are those of `pairs_for`."""
    tensor = _tensor_for(network, images)
    if tensor.dim() != 4 or not all(tensor.shape[1:]):
        raise ExplanationError(
            f"images {tuple(tensor.shape)} must be (N, C, H, W), N images of C channels: pass pairs.flatten(0, 1) of "
            "pairs, image[None] of one image, or images[:, None] of grey ones without an axis of channels"
        )
    _check_channels(network, tensor)
    return tensor


def place_of(network: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Return device and type of the network's first floating parameter; None where it has none."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return None


def example_of(image_size, count=2, channels=3) -> torch.Tensor:
    """Return images of noise (count, channels, height, width) on the CPU, the same each time, to try a module with."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, *image_size, generator=generator, device="cpu")
    colours = torch.randn(count, channels, 1, 1, generator=generator, device="cpu")
    return noise + colours


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Blur images (B, ..., C, H, W) by a Gaussian with a twelfth of each side as sigma, cut off at two sigma.

    Unlike a grey patch, a blur brings no edge of its own, and looks like no class.
    """
    from kornia.filters import gaussian_blur2d  # slow to import

    height, width = images.shape[-2:]
    sigma = height / 12, width / 12
    kernel = 2 * int(2 * sigma[0]) + 1, 2 * int(2 * sigma[1]) + 1
    return gaussian_blur2d(images.flatten(0, -4), kernel, sigma).reshape(images.shape)


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    """Replace the pixels of images (B, ..., C, H, W) by the mean colour of each image."""
    return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)


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


def _tensor_for(network, images):
    """Turn images in any container into one tensor of floats; a tensor stays as it is."""
    place = place_of(network)
    if not isinstance(images, torch.Tensor):
        return _converted(images, *(place or (torch.device("cpu"), torch.float32)))
    _check_floats(images.dtype, images.is_floating_point())
    devices = {parameter.device for parameter in network.parameters()}  # a large network may lie on several
    if place and images.device not in devices:
        raise ExplanationError(
            f'images are on {images.device} and the network is on {place[0]}: pass images.to("{place[0]}")'
        )
    return images.detach() if images.requires_grad else images


def _converted(images, device, dtype):
    """Turn a container of images into one tensor of this type on this device."""
    if isinstance(images, str | Path | Image.Image):
        raise ExplanationError(
            f"images are given as {type(images).__name__}, which has no values that the network takes: pass FromFiles("
            "network, load, threshold).explain((path1, path2), ...), where load(path) gives float (C, H, W) of a file"
        )
    if isinstance(images, list | tuple) and images and isinstance(images[0], int | float):
        images = np.array(images, np.float64)
    if not isinstance(images, torch.Tensor | list | tuple):
        if not hasattr(images, "__array__"):
            raise ExplanationError(
                f"images of {type(images).__name__} are refused: pass floats (B, 2, C, H, W), a tensor, an array or a "
                "list"
            )
        images = np.asarray(images)
        if images.dtype.kind in "OUS":  # of other arrays, or of names of files
            return _converted(list(images), device, dtype)
        _check_floats(images.dtype, images.dtype.kind == "f")
        images = torch.tensor(np.ascontiguousarray(images, np.float64))
    if isinstance(images, torch.Tensor):
        _check_floats(images.dtype, images.is_floating_point())
        return images.detach().to(device, dtype)
    parts = []
    for image in images:
        parts.append(_converted(image, device, dtype))
        if parts[-1].shape != parts[0].shape:
            raise ExplanationError(
                f"images of the shapes {tuple(parts[0].shape)} and {tuple(parts[-1].shape)} stand in one list: resize "
                "or crop all to one size, with the same number of channels, and two images in each pair"
            )
    return torch.stack(parts) if parts else torch.empty(0)


def _check_floats(dtype, floating):
    if not floating:
        raise ExplanationError(
            f"images of {dtype} are refused: pass floats, normalised as the network was trained, for most networks "
            "(images / 255 - mean) / std, with the mean and std of each channel"
        )


def _check_channels(network, images):
    """Raise ExplanationError for channels that stand last, and for another number than the network says it takes."""
    count, _, width = images.shape[-3:]
    if width < NARROWEST <= count:
        raise ExplanationError(
            f"images {tuple(images.shape)} have their channels last, as in OpenCV, but they come before height and "
            "width here: pass images.movedim(-1, -3) of a tensor, or np.moveaxis(images, -1, -3) of an array or a list"
        )
    wanted = getattr(network, "channels", count)
    if count != wanted:
        raise ExplanationError(
            f"channels of the images: {count}; channels of the network: {wanted}. Select or repeat channels, say "
            f"images[..., {[0] * wanted}, :, :], or explain a module that takes {count} in a Cut"
        )
