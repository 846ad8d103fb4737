"""The Siamese network: image to feature map to embedding, the same for both images of a pair."""

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from utils.config import LAST, Config, ConfigError
from utils.network.backbones import build_backbone
from utils.network.explainable import evaluating


class SiameseNetwork(nn.Module):
    """One shared backbone, global average pooling, one linear layer to the embedding, L2 normalisation.

    With a single linear layer the embedding is linear in the feature map, but for a constant bias and its length, so
    that a similarity can be taken apart by place. `backbone` is a Sequential of stages, by name; any of them can serve
    as feature layer.
    """

    def __init__(self, backbone_model: str, embedding_size: int, pretrained=False):
        super().__init__()
        self.backbone = build_backbone(backbone_model, pretrained)
        channels = _output_channels(self.backbone)
        self.embedding = nn.Linear(channels, embedding_size)

    @property
    def layers(self) -> list[str]:
        """Names of the stages of the backbone, from the image to the last feature map."""
        return [name for name, _ in self.backbone.named_children()]

    def check_layer(self, layer: str):
        """Raises ConfigError when `layer` is neither "last" nor a stage of the backbone."""
        if layer not in (LAST, *self.layers):
            known = ", ".join((LAST, *self.layers))
            raise ConfigError(f"explanation.layer: {layer!r} is refused: should be {known}")

    def features(self, images, layer=LAST):
        """images (B, 3, H, W) to the feature map (B, C, h, w) of a stage of the backbone."""
        dtype = next(self.backbone.parameters()).dtype  # bfloat16 in the copy that `folded` makes
        stages = self.backbone[: self._end_of(layer)]
        return stages(images.to(dtype))

    def project_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a stage to vectors, float32 (B, embedding_size), of any length."""
        stages = self.backbone[self._end_of(layer) :]
        features = stages(features)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round distances to two digits
            pooled = features.to(self.embedding.weight.dtype).mean(dim=(2, 3))  # (B, C)
            return self.embedding(pooled)

    def embed_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a stage to embeddings, float32 (B, embedding_size), of length 1."""
        return F.normalize(self.project_features(features, layer), dim=1)

    def forward(self, images):
        """One branch: images (B, 3, H, W) to embeddings, float32 (B, embedding_size), of length 1."""
        return self.embed_features(self.features(images))

    def summary(self, image_size) -> pd.DataFrame:
        """Output shape and number of parameters of each stage, for images of (height, width)."""
        rows = []
        features = torch.zeros(1, 3, *image_size, device=self.embedding.weight.device)
        with evaluating(self), torch.no_grad():
            for name, stage in self.backbone.named_children():
                features = stage(features)
                rows.append((name, _shape(features.shape[1:]), _parameters(stage)))
        rows.append(("embedding", str(self.embedding.out_features), _parameters(self.embedding)))
        rows.append(("all", "", _parameters(self)))
        return pd.DataFrame(rows, columns=["stage", "output", "parameters"]).set_index("stage")

    def _end_of(self, layer):
        """How many stages lead from the image to the feature map of `layer`."""
        self.check_layer(layer)
        return len(self.backbone) if layer == LAST else self.layers.index(layer) + 1


def build_network(config: Config) -> SiameseNetwork:
    """The network that the config describes, on the CPU, in training mode.

    Raises ConfigError when `pretrained` weights cannot be loaded or `explanation.layer` is no stage of the backbone.
    """
    network = SiameseNetwork(config.backbone_model, config.embedding_size, config.pretrained)
    network.check_layer(config.explanation.layer)  # refused now, not after hours of training
    return network


def _output_channels(backbone):
    with evaluating(backbone), torch.no_grad():
        return backbone(torch.zeros(1, 3, 32, 32)).shape[1]


def _shape(sizes):
    return " x ".join(map(str, sizes))


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())
