"""Backbones by name: torchvision's models cut into stages, with their weights."""

import pickle
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from utils.config import ConfigError

RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
CLASSIFIERS = ("fc.", "classifier.")  # ours replaces it, so its number of classes does not matter


def build_backbone(name: str, pretrained: bool | Path = False) -> nn.Sequential:
    """The feature stages of a torchvision model, in order and by name: float (B, 3, H, W) to (B, C, h, w).

    Only the feature stages are kept (not, for one, the norm before the classifier of ConvNeXt). pretrained: True for
    ImageNet weights, or the path of a state dict. Raises ConfigError when the weights cannot be loaded.
    """
    model = models.get_model(name)
    if pretrained:
        _load_weights(model, name, pretrained)
    if hasattr(model, "features"):  # MobileNet, EfficientNet, ConvNeXt: already a sequence, of numbered stages
        return nn.Sequential(OrderedDict((f"stage{number}", stage) for number, stage in enumerate(model.features)))
    stages = OrderedDict(stem=nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool))
    for stage in RESNET_STAGES:
        stages[stage] = getattr(model, stage)
    return nn.Sequential(stages)


def _load_weights(model, name, pretrained):
    """Load ImageNet weights (True) or a state dict file (a path) into a torchvision model, without its classifier."""
    weights = _download(name) if pretrained is True else _read(pretrained)
    own = model.state_dict()
    wanted = [key for key in own if not key.startswith(CLASSIFIERS)]
    fitting = isinstance(weights, dict) and all(key in weights for key in wanted)
    if not fitting or any(weights[key].shape != own[key].shape for key in wanted):
        raise ConfigError(f"pretrained: the weights in {pretrained} are not those of {name}: keys or shapes differ.")
    model.load_state_dict({key: weights[key] for key in wanted}, strict=False)


def _download(name):
    """The ImageNet weights of a torchvision model, from the cache of torch's hub or from torchvision's server."""
    url = models.get_model_weights(name).DEFAULT.url
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise ConfigError(
            f"pretrained: True, but the ImageNet weights of {name} cannot be fetched ({error}). "
            f"Download {url} elsewhere into {folder}, or set pretrained: False to train from scratch."
        ) from error


def _read(path):
    """A state dict file; code inside it is refused, not run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"pretrained: {path} does not exist. Name a state dict, True or False.") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(f"pretrained: {path} is not a state dict file saved by torch: {error}") from error
