"""The Siamese network: image to feature map to embedding, and two embeddings to a distance."""

import copy
import pickle
from collections import OrderedDict
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models

from utils.config import Config, ConfigError

RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
EPSILON = 1e-12  # under the root of the distance: identical images keep a finite gradient


class SiameseNetwork(nn.Module):
    """One shared backbone, global average pooling, one linear layer to the embedding, L2 normalisation.

    With a single linear layer the embedding is linear in the feature map, but for a constant bias and its length, so
    that a similarity can be taken apart by place. Of a torchvision model only the feature stages are kept (not, for
    one, the norm before the classifier of ConvNeXt). `backbone` is a Sequential of these stages, by name; any of them
    can serve as feature layer.
    """

    def __init__(self, backbone_model: str, embedding_size: int, pretrained=False):
        super().__init__()
        self.backbone = _backbone_stages(backbone_model, pretrained)
        channels = _output_channels(self.backbone)
        self.embedding = nn.Linear(channels, embedding_size)

    @property
    def layers(self) -> list[str]:
        """Names of the stages of the backbone, from the image to the last feature map."""
        return [name for name, _ in self.backbone.named_children()]

    def features(self, images, layer="last"):
        """images (B, 3, H, W) to the feature map (B, C, h, w) of a stage of the backbone."""
        dtype = next(self.backbone.parameters()).dtype  # bfloat16 in the copy that `folded` makes
        return self.backbone[: self._stages_up_to(layer)](images.to(dtype))

    def embed_features(self, features, layer="last"):
        """Feature map (B, C, h, w) of a stage to embeddings, float32 (B, embedding_size), of length 1."""
        features = self.backbone[self._stages_up_to(layer) :](features)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round distances to two digits
            pooled = features.to(self.embedding.weight.dtype).mean(dim=(2, 3))  # (B, C)
            return F.normalize(self.embedding(pooled), dim=1)

    def forward(self, images):
        """One branch: images (B, 3, H, W) to embeddings, float32 (B, embedding_size), of length 1."""
        return self.embed_features(self.features(images))

    def summary(self, image_size) -> str:
        """Output shape and parameters of each stage, for images of (height, width), as text."""
        rows, features = [], torch.zeros(1, 3, *image_size, device=self.embedding.weight.device)
        with evaluating(self), torch.no_grad():
            for name, stage in self.backbone.named_children():
                features = stage(features)
                rows.append((name, "x".join(map(str, features.shape[1:])), _parameters(stage)))
        rows.append(("embedding", str(self.embedding.out_features), _parameters(self.embedding)))
        rows.append(("all", "", _parameters(self)))
        return "\n".join(f"{name:<10}{shape:>14}{count:>14,}" for name, shape, count in rows)

    def _stages_up_to(self, layer):
        if layer == "last":
            return len(self.backbone)
        if layer not in self.layers:
            raise ConfigError(f"explanation.layer: {layer!r} is refused: should be last, {', '.join(self.layers)}")
        return self.layers.index(layer) + 1


def distance(embeddings1, embeddings2):
    """Euclidean distance ||e1 - e2|| over the last dimension, in [0, 2] for embeddings of length 1."""
    return ((embeddings1 - embeddings2).square().sum(dim=-1) + EPSILON).sqrt()


def similarity(distances):
    """Similarity score 1 - distance / 2 in [0, 1]; rounding beyond the ends is cut off."""
    return (1 - distances / 2).clamp(0, 1)


def build_network(config: Config) -> SiameseNetwork:
    """The network that the config describes, on the CPU, in training mode.

    Raises ConfigError when `pretrained` weights cannot be loaded or `explanation.layer` is no stage of the backbone.
    """
    network = SiameseNetwork(config.backbone_model, config.embedding_size, config.pretrained)
    network._stages_up_to(config.explanation.layer)  # refused now, not after hours of training
    return network


@torch.no_grad()
def distances_of(network: nn.Module, images1, images2) -> torch.Tensor:
    """Distances (B,) of B pairs of images (B, 3, H, W), in evaluation mode."""
    with evaluating(network):
        return distance(*network(torch.cat([images1, images2])).chunk(2))


@contextmanager
def evaluating(network: nn.Module):
    """Evaluation mode inside the block; afterwards every submodule is back in the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode


def folded(network: SiameseNetwork, dtype: torch.dtype) -> SiameseNetwork:
    """A copy for evaluation alone, faster and the same up to rounding: each batch norm is folded into the convolution
    before it, and the weights of the backbone are kept in `dtype`.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.backbone.modules()):
        children = list(module.named_children())
        for (name, child), (after, norm) in pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, fuse_conv_bn_eval(child, norm))
                setattr(module, after, nn.Identity())
    network.backbone.to(dtype)
    return network


def _backbone_stages(name, pretrained) -> nn.Sequential:
    model = models.get_model(name)
    if pretrained:
        _load_weights(model, name, pretrained)
    if hasattr(model, "features"):  # MobileNet, EfficientNet, ConvNeXt: already a sequence, of numbered stages
        return nn.Sequential(OrderedDict((f"stage{number}", stage) for number, stage in enumerate(model.features)))
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    return nn.Sequential(OrderedDict(stem=stem, **{name: getattr(model, name) for name in RESNET_STAGES}))


def _load_weights(model, name, pretrained):
    """Load ImageNet weights (True) or a state dict file (a path) into a torchvision model, without its classifier."""
    if pretrained is True:
        url = models.get_model_weights(name).DEFAULT.url
        try:
            weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except (URLError, OSError) as error:
            folder = Path(torch.hub.get_dir(), "checkpoints")
            raise ConfigError(
                f"pretrained: True, but the ImageNet weights of {name} cannot be fetched ({error}). "
                f"Download {url} elsewhere into {folder}, or set pretrained: False to train from scratch."
            ) from error
    else:
        try:
            weights = torch.load(pretrained, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise ConfigError(f"pretrained: {pretrained} does not exist. Name a state dict, True or False.") from error
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ConfigError(f"pretrained: {pretrained} is not a state dict file saved by torch: {error}") from error
    own = model.state_dict()
    classifier = ("fc.", "classifier.")  # ours replaces it, so its number of classes does not matter
    wanted = {key for key in own if not key.startswith(classifier)}
    fitting = isinstance(weights, dict) and wanted <= weights.keys()
    if not fitting or any(weights[key].shape != own[key].shape for key in wanted):
        raise ConfigError(f"pretrained: the weights in {pretrained} are not those of {name}: keys or shapes differ.")
    model.load_state_dict({key: weights[key] for key in wanted}, strict=False)


def _output_channels(backbone):
    with evaluating(backbone), torch.no_grad():
        return backbone(torch.zeros(1, 3, 32, 32)).shape[1]


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())
