"""The Siamese network: image to feature map to embedding, the same for both images of a pair."""

import math

import pandas as pd
import torch
from torch import nn

from utils.config import AUTO, LAST, Config, ConfigError
from utils.network.backbones import build_backbone, load_weights
from utils.network.explainable import unit
from utils.network.layers import Layers
from utils.registry import backbone_name, normalization_of, restriction_of
from utils.runtime import FIRST

TRAINED_SHARE = {"full": 1.0, "last": 0.25, "frozen": 0.0}  # of the stages, from the last one down


class SiameseNetwork(nn.Module):
    """One shared backbone, the mean over places, one linear layer to the embedding, L2 normalisation.

    backbone_model: a name of timm's, however it is spelt. embedding_size: None leaves the linear layer out: the
    embedding is the backbone's own. pretrained: as in `load_weights`, or False. image_size: height and width of the
    images; convolutions take others too.

    With a single linear layer the embedding is linear in the last feature map, but for a constant bias and its length,
    so that a similarity can be taken apart by place; no class token stands in between. Raises ValueError for an unknown
    name, ConfigError as `build_backbone`, `Layers` and `load_weights` do.
    """

    channels = 3
    """Of the images."""

    def __init__(self, backbone_model: str, embedding_size: int | None, pretrained=False, image_size=(224, 224)):
        super().__init__()
        self.backbone_model = backbone_name(backbone_model)
        self.image_size = tuple(image_size)
        self.backbone = build_backbone(self.backbone_model, image_size)
        self._maps = Layers(self.backbone, image_size)
        if pretrained:
            load_weights(self.backbone, self.backbone_model, pretrained)
        self._frozen = []
        channels = self._maps.known[self._maps.last].channels
        self.embedding_size = embedding_size or channels
        self.embedding = nn.Identity() if embedding_size is None else nn.Linear(channels, embedding_size)

    @property
    def layers(self) -> list[str]:
        """Names of the feature maps, from the image to the last one; other modules of the backbone can be named too."""
        return self._maps.names

    def check_layer(self, layer: str):
        """Raises ConfigError for a layer that cannot be read, as `Layers.find` has it, and for one whose map is
        a single place for images of `image_size`.
        """
        _, found = self._maps.find(layer)
        if found.layout.grid == (1, 1):
            known = [name for name, other in self._maps.known.items() if other.layout.grid != (1, 1)]
            raise ConfigError(
                f"explanation.layer: {layer!r} is refused: its maps are 1 x 1 for images of {self.image_size}, which "
                f"have no places to tell apart; should be {', '.join(known) or 'that of larger images'}"
            )

    def features(self, images, layer=LAST):
        """images (B, 3, H, W) to the feature map (B, C, h, w) of a layer."""
        return self._maps.read(images, layer)

    def features_and_vectors(self, images, layer=LAST):
        """The same, and the vectors (B, embedding_size) of any length; gradients flow from them to the map alone."""
        with torch.no_grad():
            features = self.features(images, layer)
        features.requires_grad_(torch.is_grad_enabled())
        return features, self.project_features(features, layer)

    def project_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a layer to vectors, float32 (B, embedding_size), of any length.

        In evaluation mode, for layers before the last one.
        """
        features = self._maps.resume(features, layer)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round distances to two digits
            exact = torch.promote_types(features.dtype, torch.float32)
            pooled = features.to(exact).mean(dim=(2, 3))  # (B, C)
            return self.embedding(pooled)

    def embed_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a layer to embeddings, float32 (B, embedding_size), of length 1."""
        return unit(self.project_features(features, layer))

    def forward(self, images):
        """One branch: images (B, 3, H, W) to embeddings, float32 (B, embedding_size), of length 1."""
        return self.embed_features(self.features(images))

    def stages(self) -> dict[str, list[nn.Module]]:
        """The modules of the backbone between each layer and the one before it; a module without its children."""
        return self._maps.stages()

    def freeze(self, training: str):
        """Keep part of the backbone as it is from now on: "frozen" all of it, "last" all but the last quarter of its
        stages (rounded up), "full" nothing.

        Parameters that are kept need no gradient, and their modules stay in evaluation mode, batch norm included.
        """
        stages = list(self.stages().values())
        trained = math.ceil(len(stages) * TRAINED_SHARE[training])
        paths = {module: path for path, module in self.named_modules()}
        kept = [module for stage in stages[: len(stages) - trained] for module in stage]
        for module in kept:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self._frozen = [paths[module] for module in kept]  # by path: under torchrun batch norms are replaced
        self.train(self.training)

    def train(self, mode=True):
        """Training or evaluation mode, as torch.nn.Module has it; what `freeze` keeps stays in evaluation mode."""
        super().train(mode)
        for path in self._frozen:
            self.get_submodule(path).training = False
        return self

    def summary(self) -> pd.DataFrame:
        """Output shape and number of parameters of each stage, for images of `image_size`, and how many are trained."""
        rows = []
        for (name, layer), modules in zip(self._maps.known.items(), self.stages().values(), strict=True):
            height, width = layer.layout.grid
            rows.append((name, f"{layer.channels} x {height} x {width}", *_parameters(modules)))
        rows.append(("embedding", str(self.embedding_size), *_parameters(self.embedding.modules())))
        rows.append(("all", "", *_parameters(self.modules())))
        return pd.DataFrame(rows, columns=["stage", "output", "parameters", "trained"]).set_index("stage")


def build_network(config: Config) -> SiameseNetwork:
    """The network that the config describes, on the CPU, in training mode; frozen as `backbone_training` says.

    One line says so when weights that are loaded expect another normalisation than the config's, or have a licence that
    does not allow every use. Raises ConfigError when `pretrained` weights cannot be loaded, for an image size that the
    backbone cannot take, and when `explanation.layer` is no layer of it.
    """
    size = None if config.hyperparameters.epochs == 0 else config.embedding_size
    network = SiameseNetwork(config.backbone_model, size, config.pretrained, config.image.size)
    _check_size(network)
    if config.explanation.layer != AUTO:
        network.check_layer(config.explanation.layer)  # refused now, not after hours of training
    network.freeze(config.backbone_training)
    if config.pretrained and FIRST:
        _notices(config)
    return network


def _check_size(network):
    """Raises ConfigError for images so small that the last map, which the paper's method reads, is a single place."""
    last = network._maps.find(LAST)[1]
    if last.layout.grid == (1, 1):
        raise ConfigError(
            f"image.size: {list(network.image_size)} is refused for {network.backbone_model}: its last map is 1 x 1, "
            f"which has no places to explain: set more than {last.stride} pixels a side, say {[2 * last.stride] * 2}"
        )


def _notices(config):
    expected = normalization_of(config.backbone_model)
    given = config.image.normalization.model_dump()
    if given != expected:
        print(
            f"image.normalization: mean {list(given['mean'])} and std {list(given['std'])} are used, but the weights "
            f"of {config.backbone_model} expect {list(expected['mean'])} and {list(expected['std'])} (auto)."
        )
    licence = restriction_of(config.backbone_model)
    if licence:
        print(f"The weights of {config.backbone_model} have a licence that does not allow every use: {licence}.")


def _parameters(modules) -> tuple[int, int]:
    """How many parameters these modules have themselves, and how many of them are trained."""
    found = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return sum(weight.numel() for weight in found), sum(weight.numel() for weight in found if weight.requires_grad)
