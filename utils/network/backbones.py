"""Backbones by name: timm's models without their classifiers, with their weights."""

import pickle
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.archives import UNLOADABLE, check_archive, is_archive
from utils.config import ConfigError
from utils.network.explainable import evaluating
from utils.network.hooks import example_of
from utils.registry import weights_config, weights_name

UNITS = (4, 8, 14, 16, 28, 32, 56, 64)  # pixels of which image sizes are tried as multiples
UNUSED_BUFFER = "num_batches_tracked"  # many published weights lack it, and nothing here reads it


def build_backbone(name: str, image_size) -> nn.Module:
    """A timm model of random weights without its classifier: what its `forward_features` gives, pooled over places, is
    its embedding.

    image_size: height and width of the images. Raises ConfigError for a size that the model cannot take.
    """
    model, problem = _create(name, image_size)
    if problem:
        raise ConfigError(_refused_size(name, image_size, problem))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)  # timm's residual branches are nothing at first: too slow for short training
    return model


def load_weights(model: nn.Module, name: str, pretrained: bool | Path):
    """Load the weights that the name means (True), or those of a safetensors or state dict file (a path).

    All weights that are trained (`requires_grad`) and all statistics must be there. Raises ConfigError when they cannot
    be loaded; code in a file is refused, not run.
    """
    path = _fetch(name) if pretrained is True else Path(pretrained)
    weights = _read(path)
    unused = {key for key, value in model.named_parameters() if not value.requires_grad}
    own = model.state_dict()
    wanted = {key: _kind(value) for key, value in own.items() if key not in unused and not key.endswith(UNUSED_BUFFER)}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert and _unfitting(weights, wanted):  # from another image size, or with the names of the first publication
        with suppress(AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # a file of another family
            weights = convert(weights, model)
    unfitting = _unfitting(weights, wanted)
    if unfitting:
        raise ConfigError(
            f"pretrained: the weights in {path} are not those of {name}: keys or shapes differ, {unfitting[0]} for one."
        )
    infinite = [key for key in wanted if not weights[key].isfinite().all()]
    if infinite:
        raise ConfigError(f"pretrained: {path} holds values that are not finite, in {infinite[0]} for one.")
    model.load_state_dict({key: weights[key] for key in wanted}, strict=False)


def _create(name, image_size):
    """The model with random weights, and why it cannot take images of this size, if it cannot."""
    settings = {"num_classes": 0}
    if weights_config(name).fixed_input_size:
        settings["img_size"] = tuple(image_size)
    try:
        model = timm.create_model(name, **settings)
        with evaluating(model), torch.no_grad():
            model.forward_features(example_of(image_size).to(next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError) as error:
        return None, str(error).partition("\n")[0] or "its layers do not fit it"
    patches = getattr(getattr(model, "patch_embed", None), "proj", None)
    if isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride:
        height, width = patches.stride
        if image_size[0] % height or image_size[1] % width:
            return None, f"its patches of {height} x {width} pixels would leave out a margin"
    return model, ""


def _refused_size(name, image_size, problem) -> str:
    """What to say of a size that a model cannot take: the nearest that it can, found without computing anything."""
    height, width = image_size
    refused = f"image.size: {list(image_size)} is refused for {name}: {problem}."
    with torch.device("meta"):
        for unit in UNITS:
            heights = sorted({max(height // unit, 1) * unit, (height // unit + 1) * unit})
            widths = sorted({max(width // unit, 1) * unit, (width // unit + 1) * unit})
            sizes = [size for size in product(heights, widths) if not _create(name, size)[1]]
            if sizes:
                return f"{refused} Set {' or '.join(str(list(size)) for size in sizes)}"
        own = weights_config(name).input_size[1:]
        if not _create(name, own)[1]:
            return f"{refused} Set {list(own)}"
    return f"backbone_model: {name} cannot be built: {problem}"


def _unfitting(weights, wanted) -> list[str]:
    """The keys that are missing, of another shape, or whole numbers in place of others."""
    found = {key: _kind(value) for key, value in weights.items()}
    return [key for key, kind in wanted.items() if found.get(key) != kind]


def _kind(value):
    """Shape of a tensor and whether it holds real numbers; None of anything else."""
    return (value.shape, value.is_floating_point()) if isinstance(value, torch.Tensor) else None


def _fetch(name) -> Path:
    """The file of a backbone's weights, from the cache of timm's hub or from the hub itself."""
    config = weights_config(name)
    weights = weights_name(name)
    if not config.hf_hub_id:
        raise ConfigError(f"pretrained: True, but timm has no weights for {name}: name another backbone, or set False.")
    file = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(config.hf_hub_id, file))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"pretrained: True, but the weights of {weights} cannot be fetched ({str(error).partition('. ')[0]}). "
            f"Download https://huggingface.co/{config.hf_hub_id}/resolve/main/{file} elsewhere and set `pretrained` to "
            "the path of that file, or to False to train from scratch."
        ) from error


def _read(path) -> dict:
    """A safetensors or state dict file; code inside it is refused, not run."""
    if not path.is_file():
        cause = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"pretrained: {path} {cause}. Name a file of weights, True or False.")
    wrong = f"pretrained: {path} is not a safetensors or state dict file"
    try:
        if is_archive(path):
            check_archive(path)
        weights = load_state_dict(str(path), weights_only=True)
    except pickle.UnpicklingError as error:  # whose own message advises to load it all the same
        raise ConfigError(f"{wrong}: it holds more than tensors, or is damaged.") from error
    except (*UNLOADABLE, SafetensorError) as error:
        raise ConfigError(f"{wrong}, holds more than tensors, or is damaged ({type(error).__name__}).") from error
    if not isinstance(weights, dict):
        raise ConfigError(f"{wrong}: it holds a {type(weights).__name__}.")
    return weights
