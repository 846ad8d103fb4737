"""The Siamese network: image to feature map to embedding, the same for both images of a pair."""

import difflib
import math
from bisect import bisect_left
from contextlib import ExitStack
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from utils.config import LAST, Config, ConfigError
from utils.network.backbones import build_backbone, example_of
from utils.network.explainable import evaluating
from utils.network.hooks import hooked, read, resume
from utils.network.maps import Layout, layout_of
from utils.registry import backbone_name, normalization_of, restriction_of

RESNET_STEM = {"act1": ("stem", "maxpool")}  # timm names the map before the pooling, the paper's repository that after
TRAINED_SHARE = {"full": 1.0, "last": 0.25, "frozen": 0.0}  # of the stages, from the last one down
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest value


@dataclass(frozen=True)
class Layer:
    """A feature map that can be read: the path of its module in the backbone, its layout, its channels, its stride."""

    module: str
    layout: Layout
    channels: int
    stride: int


class SiameseNetwork(nn.Module):
    """One shared backbone, the mean over places, one linear layer to the embedding, L2 normalisation.

    backbone_model: a name of timm's, however it is spelt. embedding_size: None leaves the linear layer out: the embedding is the backbone's
    own. pretrained: as in `build_backbone`. image_size: height and width of the images; convolutions take others too.

    With a single linear layer the embedding is linear in the last feature map, but for a constant bias and its length,
    so that a similarity can be taken apart by place; no class token stands in between. Raises ValueError for an unknown
    name, ConfigError as `build_backbone` does.
    """

    def __init__(self, backbone_model: str, embedding_size: int | None, pretrained=False, image_size=(224, 224)):
        super().__init__()
        self.backbone_model = backbone_name(backbone_model)
        self.image_size = tuple(image_size)
        self.backbone = build_backbone(self.backbone_model, pretrained, image_size)
        self._layers = _find_layers(self.backbone, self.image_size)
        self._last = list(self._layers)[-1]
        self._tried = {self._last}
        self._frozen = []
        channels = self._layers[self._last].channels
        self.embedding = nn.Identity() if embedding_size is None else nn.Linear(channels, embedding_size)

    @property
    def layers(self) -> list[str]:
        """Names of the feature maps, from the image to the last one; other modules of the backbone can be named too."""
        return list(self._layers)

    def check_layer(self, layer: str):
        """Raises ConfigError when `layer` is neither "last", nor one of `layers`, `stride4`, `stride8`, ..., nor the
        name of another module of the backbone whose output is a feature map that the embedding depends on.
        """
        self._find(layer)

    def features(self, images, layer=LAST):
        """images (B, 3, H, W) to the feature map (B, C, h, w) of a layer."""
        name, found = self._find(layer)
        images = images.to(self._dtype)  # bfloat16 in the copy that `folded` makes
        if name == self._last:
            output = self.backbone.forward_features(images)
            return found.layout.without_prefix(found.layout.to_map(output))
        output = read(self.backbone.forward_features, self.backbone.get_submodule(found.module), images)
        return found.layout.to_map(output)

    def project_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a layer to vectors, float32 (B, embedding_size), of any length.

        In evaluation mode, for layers before the last one: what stands before them runs on a blank image.
        """
        name, found = self._find(layer)
        if name != self._last:
            features = self._last_map(features, found)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round distances to two digits
            exact = torch.promote_types(features.dtype, torch.float32)
            pooled = features.to(exact).mean(dim=(2, 3))  # (B, C)
            return self.embedding(pooled)

    def embed_features(self, features, layer=LAST):
        """Feature map (B, C, h, w) of a layer to embeddings, float32 (B, embedding_size), of length 1."""
        return F.normalize(self.project_features(features, layer), dim=1)

    def forward(self, images):
        """One branch: images (B, 3, H, W) to embeddings, float32 (B, embedding_size), of length 1."""
        return self.embed_features(self.features(images))

    def stages(self) -> dict[str, list[nn.Module]]:
        """The modules of the backbone that lead to each layer from the one before it, in the order of their making.

        A module stands without its children, which have places of their own.
        """
        names = [name for name, _ in self.backbone.named_modules()]
        ends = []  # of each layer: the place of its last module
        for layer in self._layers.values():
            inside = [place for place, name in enumerate(names) if f"{name}.".startswith(f"{layer.module}.")]
            ends.append(max([*inside, *ends[-1:]]))
        ends[-1] = len(names)
        stages = {name: [] for name in self._layers}
        for place, module in enumerate(self.backbone.modules()):
            stages[self.layers[bisect_left(ends, place)]].append(module)
        return stages

    def freeze(self, training: str):
        """Keep part of the backbone as it is: "full" trains all stages, "last" the last quarter, "frozen" none.

        Parameters that are kept need no gradient, and their modules stay in evaluation mode, batch norm included.
        """
        stages = list(self.stages().values())
        trained = math.ceil(len(stages) * TRAINED_SHARE[training])
        self._frozen = [module for stage in stages[: len(stages) - trained] for module in stage]
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode=True):
        """Training or evaluation mode, as torch.nn.Module has it; what `freeze` keeps stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def summary(self) -> pd.DataFrame:
        """Output shape and number of parameters of each stage, for images of `image_size`, and how many are trained."""
        rows = []
        for (name, layer), modules in zip(self._layers.items(), self.stages().values(), strict=True):
            height, width = layer.layout.grid
            rows.append((name, f"{layer.channels} x {height} x {width}", *_parameters(modules)))
        rows.append(("embedding", str(self._embedding_size), *_parameters(self.embedding.modules())))
        rows.append(("all", "", *_parameters(self.modules())))
        return pd.DataFrame(rows, columns=["stage", "output", "parameters", "trained"]).set_index("stage")

    @property
    def _dtype(self):
        return next(self.backbone.parameters()).dtype

    @property
    def _embedding_size(self):
        linear = isinstance(self.embedding, nn.Linear)
        return self.embedding.out_features if linear else self._layers[self._last].channels

    def _last_map(self, features, layer):
        """From the map of a layer to the last one, (B, C, h, w)."""
        blank = torch.zeros(1, 3, *self.image_size, dtype=self._dtype, device=features.device)
        output = layer.layout.to_output(features.clone())  # the backbone may go on in place
        module = self.backbone.get_submodule(layer.module)
        output = resume(self.backbone.forward_features, module, blank, output)
        last = self._layers[self._last].layout
        return last.without_prefix(last.to_map(output))

    def _find(self, layer) -> tuple[str, Layer]:
        """The name of a layer and where it is; tried with two images before it is used for the first time."""
        name = self._name_of(layer)
        found = self._layers.get(name) or self._module(name)
        if found is not None and name not in self._tried and self._works(name, found):
            self._tried.add(name)
        if name in self._tried:
            return name, found
        known = list(dict.fromkeys([LAST, *self.layers, *self._by_stride()]))
        names = [name for name, _ in self.backbone.named_modules() if name not in (*known, layer)]
        near = difflib.get_close_matches(layer, names, n=1) if found is None else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        why = "" if found is None else ": the embedding depends on more than its map"
        raise ConfigError(f"explanation.layer: {layer!r} is refused{why}; {hint}should be {', '.join(known)}")

    def _name_of(self, layer):
        """The name under which a layer is known: "last" and strides mean one of `layers`."""
        return self._last if layer == LAST else self._by_stride().get(layer, layer)

    def _by_stride(self) -> dict[str, str]:
        """The last layer of each stride, as stride4, stride8, ..."""
        return {f"stride{layer.stride}": name for name, layer in self._layers.items()}

    def _module(self, name) -> Layer | None:
        """Any other module of the backbone, where its output is a map."""
        if name not in dict(self.backbone.named_modules()) or not name:
            return None
        images = example_of(self.image_size, next(self.parameters()).device).to(self._dtype)
        with evaluating(self), torch.no_grad():
            try:
                output = read(self.backbone.forward_features, self.backbone.get_submodule(name), images)
            except ValueError:
                return None  # a module that does not run
        return _layer(name, output, self.image_size)

    @torch.no_grad()
    def _works(self, name, layer) -> bool:
        """Whether places stand where timm says, and nothing goes around the layer."""
        images = example_of(self.image_size, next(self.parameters()).device).to(self._dtype)
        tolerance = TOLERANCE[self._dtype]
        module = self.backbone.get_submodule(layer.module)
        with evaluating(self):
            output = read(self.backbone.forward_features, module, images)
            features = layer.layout.to_map(output)
            if layer.layout.order != "NCHW" and not _places_as_in_timm(self.backbone, layer, features, images):
                return False
            expected = self.features(images)
            try:
                found = self._last_map(features, layer)
            except (RuntimeError, ValueError):
                return False  # it runs twice, or remembers the blank image
        return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def build_network(config: Config) -> SiameseNetwork:
    """The network that the config describes, on the CPU, in training mode; frozen as `backbone_training` says.

    One line says so when weights that are loaded expect another normalisation than the config's, or have a licence that
    does not allow every use. Raises ConfigError when `pretrained` weights cannot be loaded, for an image size that the
    backbone cannot take, and when `explanation.layer` is no layer of it.
    """
    size = None if config.hyperparameters.epochs == 0 else config.embedding_size
    network = SiameseNetwork(config.backbone_model, size, config.pretrained, config.image.size)
    network.check_layer(config.explanation.layer)  # refused now, not after hours of training
    network.freeze(config.backbone_training)
    if config.pretrained:
        _notices(config)
    return network


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


def _find_layers(backbone, image_size) -> dict[str, Layer]:
    """The feature maps that timm names for a backbone, by name, and at last the map that is pooled.

    Parameters on which that map does not depend (a norm before the classifier, for one) are marked as not trained.
    """
    images = example_of(image_size, next(backbone.parameters()).device)
    outputs, last = _outputs(backbone, images)
    modules = dict(backbone.named_modules())
    layers = {}
    for info in backbone.feature_info:
        name = module = info["module"]
        if name in RESNET_STEM and "maxpool" in modules:
            name, module = RESNET_STEM[name]
        layer = _layer(module, outputs.get(module), image_size)
        if layer is not None:
            layers[name] = layer
    final = _layer("", last, image_size)
    if final is None or not _places_as_in_timm(backbone, final, final.layout.to_map(last), images):
        kind = type(backbone).__name__
        raise ConfigError(f"backbone_model: {kind} is refused: it gives no feature map for images of {image_size}")
    if final.layout.prefix or not layers or outputs[list(layers.values())[-1].module] is not last:
        layers[LAST] = final  # a norm, a convolution or the loss of tokens stands behind the last that timm names
    return layers


def _outputs(backbone, images):
    """What each module gives for these images, by name, and the last map; unused parameters are marked."""
    outputs = {}

    def keeper(name):
        def keep(module, inputs, output):
            outputs[name] = output

        return keep

    with evaluating(backbone), ExitStack() as hooks, torch.enable_grad():
        for name, module in backbone.named_modules():
            hooks.enter_context(hooked(module, keeper(name)))
        last = backbone.forward_features(images)
    if not isinstance(last, torch.Tensor):
        raise ConfigError(f"backbone_model: {type(backbone).__name__} is refused: it gives several maps, not one")
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for weight, gradient in zip(weights, torch.autograd.grad(last.sum(), weights, allow_unused=True), strict=True):
        if gradient is None:
            weight.requires_grad_(False)
    return outputs, last


def _layer(module, output, image_size) -> Layer | None:
    """A layer from what its module gives; None where that is no map."""
    layout = layout_of(output, image_size)
    if layout is None:
        return None
    channels = layout.without_prefix(layout.to_map(output)).shape[1]
    return Layer(module, layout, channels, round(image_size[0] / layout.grid[0]))


def _places_as_in_timm(backbone, layer, features, images) -> bool:
    """Whether a map whose places had to be found out, (B, C, h, w), has them where timm has them."""
    if layer.layout.order == "NCHW":
        return True
    known = [info["module"] for info in backbone.feature_info]
    if layer.module not in (*known, ""):
        return False
    last = layer.module == ""
    index = len(known) - 1 if last else known.index(layer.module)
    features = layer.layout.without_prefix(features)
    for norm in {False, last}:  # some backbones have no norm behind the last block
        try:
            with evaluating(backbone), torch.no_grad():
                (expected,) = backbone.forward_intermediates(images, [index], norm=norm, intermediates_only=True)
        except (AssertionError, AttributeError, TypeError):
            continue  # timm does not say
        close = TOLERANCE[features.dtype] * expected.abs().max()
        if features.shape == expected.shape and (features - expected).abs().max() <= close:
            return True
    return False


def _parameters(modules) -> tuple[int, int]:
    """How many parameters these modules have themselves, and how many of them are trained."""
    found = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return sum(weight.numel() for weight in found), sum(weight.numel() for weight in found if weight.requires_grad)
