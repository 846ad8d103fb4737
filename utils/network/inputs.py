"""Images as users hold them, in tensors, arrays or lists, to one tensor as a network takes it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..files import ExplanationError

NARROWEST = 5  # pixels of an image's width, at least: a last axis that is shorter holds channels
FILES = (
    "images are given as {kind}, which has no values that the network takes: pass "
    "FromFiles(network, load, threshold).explain((path1, path2), ...), where load(path) gives float (C, H, W) of a file"
)


def pairs_for(network: nn.Module, images) -> torch.Tensor:
    """Return B pairs of images as one tensor.

    Args:
        network: The network that takes them.
        images: Floats (B, 2, C, H, W), with any number of channels: a tensor, an array, or a list of pairs of tensors
            or arrays (C, H, W). A tensor stays as it is; anything else gets the floating type and device of the
            network's first floating parameter, float32 on the CPU where it has none.

    Returns:
        Float (B, 2, C, H, W), without a gradient.

    Raises:
        ExplanationError: The images have another shape or several, hold whole numbers, are files or PIL images, stand
            on another device than the network, or have more or fewer channels than it takes.
    """
    tensor = _tensor_for(network, images)
    shape = tuple(tensor.shape)
    if len(shape) != 5 or shape[1] != 2 or not all(shape[2:]):
        raise ExplanationError(
            f"images {shape} must be (B, 2, C, H, W), two images of C channels in each pair: "
            f"pass {_pairing(shape, images)}"
        )
    _check_channels(network, tensor, images)
    return tensor


def images_for(network: nn.Module, images) -> torch.Tensor:
    """Return N images as one tensor (N, C, H, W); arguments and errors are those of `pairs_for`."""
    tensor = _tensor_for(network, images)
    shape = tuple(tensor.shape)
    if len(shape) != 4 or not all(shape[1:]):
        cures = {
            3: "images[:, None] of grey images, images[None] of one image",
            5: "images.reshape(-1, *images.shape[2:])",
        }
        cure = cures.get(len(shape), "torch.stack(images) of a list of tensors (C, H, W)")
        raise ExplanationError(f"images {shape} must be (N, C, H, W), N images of C channels: pass {cure}")
    _check_channels(network, tensor, images)
    return tensor


def image_for(network: nn.Module, image) -> torch.Tensor:
    """Return one image as a tensor (C, H, W), on any device; other errors are those of `pairs_for`."""
    tensor = _tensor_for(network, image, anywhere=True)
    shape = tuple(tensor.shape)
    if len(shape) != 3 or not all(shape):
        cure = {2: ": give image[None]", 4: ": give image[0]"}.get(len(shape), "")
        raise ExplanationError(f"an image {shape} must be (C, H, W), one image of C channels{cure}")
    _check_channels(network, tensor, image)
    return tensor


def _tensor_for(network, images, anywhere=False):
    """Images in any container as one tensor of floats; a tensor as it is."""
    place = place_of(network)
    if not isinstance(images, torch.Tensor):
        return _converted(images, *(place or (torch.device("cpu"), torch.float32)))
    _check_floats(images.dtype, images.is_floating_point(), "images.float()")
    devices = {parameter.device for parameter in _parameters(network)}  # a large network may lie on several
    if place and images.device not in devices and not anywhere:
        raise ExplanationError(
            f'images are on {images.device} and the network is on {place[0]}: pass images.to("{place[0]}")'
        )
    return images.detach() if images.requires_grad else images


def place_of(network: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Return device and type of the network's first floating parameter; None where it has none."""
    for parameter in _parameters(network):
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return None


def _parameters(network):
    for module in network.modules():
        yield from module.parameters(recurse=False)


def _converted(images, device, dtype):
    """A container of images as one tensor of this type on this device."""
    if isinstance(images, str | Path | Image.Image):
        raise ExplanationError(FILES.format(kind=type(images).__name__))
    if isinstance(images, torch.Tensor):
        _check_floats(images.dtype, images.is_floating_point(), "image.float()")
        return images.detach().to(device, dtype)
    if isinstance(images, list | tuple):
        if images and all(isinstance(value, int | float) for value in images):
            return torch.tensor(images, device=device, dtype=dtype)
        return _stacked([_converted(part, device, dtype) for part in images])
    if not hasattr(images, "__array__"):
        raise ExplanationError(
            f"images of {type(images).__name__} are refused: pass floats (B, 2, C, H, W), a tensor, an array or a list"
        )
    array = np.asarray(images)
    if array.dtype.kind in "US":
        raise ExplanationError(FILES.format(kind="names"))
    if array.dtype == object and array.ndim:
        return _stacked([_converted(part, device, dtype) for part in array])
    _check_floats(array.dtype, array.dtype.kind == "f", 'images.astype("float32")')
    precision = np.float64 if dtype == torch.float64 else np.float32
    return torch.tensor(np.ascontiguousarray(array, precision), device=device, dtype=dtype)


def _stacked(parts):
    for part in parts:
        if part.shape != parts[0].shape:
            raise ExplanationError(
                f"images of the shapes {tuple(parts[0].shape)} and {tuple(part.shape)} stand in one list: resize or "
                "crop all to one size, with the same number of channels, and two images in each pair"
            )
    return torch.stack(parts) if parts else torch.empty(0)


def _check_floats(dtype, floating, cast):
    if not floating:
        raise ExplanationError(
            f"images of {dtype} are refused: pass what the network was trained on, for most networks "
            f"({cast} / 255 - mean) / std, with the mean and std of each channel"
        )


def _pairing(shape, images):
    """How images of another shape become pairs, in code."""
    code = _code_of(images)
    cures = []
    if len(shape) == 5 and shape[0] == 2:
        cures.append(f"{code}.swapaxes(0, 1)")
    if len(shape) == 4 and shape[0] == 2:
        cures.append(f"{code}[None] for one pair")
    if len(shape) == 4 and shape[1] == 2:
        cures.append(f"{code}[:, :, None] for grey images without an axis of channels")
    if len(shape) == 3 and shape[0] == 2:
        cures.append(f"{code}[None, :, None] for one pair of grey images")
    if len(shape) == 4 and not cures and shape[0] % 2 == 0:
        cures.append(f"{code}.reshape{(-1, 2, *shape[1:])} where both images of a pair follow each other")
    return " or ".join(cures) or "torch.stack([images1, images2], dim=1) of two tensors (B, C, H, W)"


def _check_channels(network, tensor, images):
    """Raise ExplanationError for channels that stand last, and for another number than the network says it takes."""
    count, _, width = tensor.shape[-3:]
    code = _code_of(images)
    axes = list(range(tensor.dim()))
    if width < NARROWEST <= count:
        turn = "permute" if isinstance(images, torch.Tensor) or "torch" in code else "transpose"
        order = ", ".join(map(str, [*axes[:-3], axes[-1], *axes[-3:-1]]))
        raise ExplanationError(
            f"images {tuple(tensor.shape)} have their channels last, as in OpenCV, but they come before height and "
            f"width here: pass {code}.{turn}({order})"
        )
    wanted = getattr(network, "channels", count)
    if count != wanted:
        chosen = f":{wanted}" if count > wanted else str([0] * wanted)
        index = ", ".join([":"] * (tensor.dim() - 3) + [chosen])
        raise ExplanationError(
            f"channels of the images: {count}; channels of the network: {wanted}. Pass as many, say {code}[{index}], "
            f"or explain a module that takes {count} in a Cut"
        )


def _code_of(images):
    """What stands for all images in code: lists have no axes to index."""
    if isinstance(images, torch.Tensor | np.ndarray):
        return "images"
    first = images[0] if isinstance(images, list | tuple) and images else None
    if isinstance(first, torch.Tensor):
        return "torch.stack(images)"
    if isinstance(first, list | tuple) and first and isinstance(first[0], torch.Tensor):
        return "torch.stack([torch.stack(pair) for pair in images])"
    return "np.array(images)"
