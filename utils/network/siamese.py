"""Backbones by name: timm's models without their classifiers, with their weights."""

import math
import pickle
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import AUTO, LAST, Config, ConfigError
from ..device import FIRST
from ..files import UNLOADABLE, check_archive, is_archive
from ..vision import backbone_name, normalization_of, restriction_of, timm, weights_config, weights_name
from .distance import evaluating, unit
from .hooks import example_of
from .layers import Layers

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
        weights = timm.models.load_state_dict(str(path), weights_only=True)
    except pickle.UnpicklingError as error:  # whose own message advises to load it all the same
        raise ConfigError(f"{wrong}: it holds more than tensors, or is damaged.") from error
    except (*UNLOADABLE, SafetensorError) as error:
        raise ConfigError(f"{wrong}, holds more than tensors, or is damaged ({type(error).__name__}).") from error
    if not isinstance(weights, dict):
        raise ConfigError(f"{wrong}: it holds a {type(weights).__name__}.")
    return weights


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
