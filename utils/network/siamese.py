"""The Siamese network: one backbone of timm for both images, and a linear layer to their embeddings."""

import math

import pandas as pd
import torch
from torch import nn

from ..config import AUTO, LAST, MORE, Config, ConfigError
from ..device import FIRST
from ..files import ExplanationError
from ..vision import backbone_name, normalization_of, restriction_of
from .backbones import backbone_arguments, build_backbone, layout_of, load_weights, named_layers
from .distance import evaluating, example_of, unit
from .layers import Layers, Reading

PATH_CELLS = 16  # along the shorter side of the map at which paths through several layers start, at least
LEAST_CELLS = 6  # along the shorter side of the maps behind it
TRAINED_SHARE = {"full": 1.0, "last": 0.25, "frozen": 0.0}  # of the stages, from the last one down


class SiameseNetwork(nn.Module):
    """One shared backbone, the mean over places, one linear layer to the embedding, L2 normalisation.

    With a single linear layer the embedding is linear in the last feature map, but for a constant bias and its length,
    so that a similarity can be decomposed by place; no class token stands in between.

    Args:
        backbone_model: A name of timm's, in any spelling.
        embedding_size: Number of dimensions; None leaves the linear layer out: the embedding is the backbone's own.
        pretrained: As in `load_weights`, or False.
        image_size: Height and width of the images; convolutions take others too.
        arguments: `backbone_arguments` of another network, from a checkpoint: the backbone is built as that one was,
            and nothing is fetched.

    Raises:
        ValueError: The name is unknown.
        ConfigError: The backbone takes no images of this size or gives no map, or weights cannot be loaded.
    """

    channels = 3
    """Of the images."""

    def __init__(
        self,
        backbone_model: str,
        embedding_size: int | None,
        pretrained=False,
        image_size=(224, 224),
        arguments: dict | None = None,
    ):
        super().__init__()
        self.backbone_model = backbone_name(backbone_model)
        self.image_size = tuple(image_size)
        self.backbone_arguments = arguments or backbone_arguments(self.backbone_model)
        self.backbone = build_backbone(self.backbone_model, image_size, self.backbone_arguments)
        self._named = named_layers(self.backbone, self.image_size)
        self._last = list(self._named)[-1]
        self._layers = Layers(self.backbone, self._run, self._vectors)
        self._readings = {}  # by name of the layer
        self._unreadable = frozenset()  # names of layers
        if pretrained:
            load_weights(self.backbone, self.backbone_model, pretrained)
        self._frozen = []
        channels = self._named[self._last].channels
        self.embedding_size = embedding_size or channels
        self.embedding = nn.Linear(channels, embedding_size) if embedding_size else nn.Identity()

    @property
    def layers(self) -> list[str]:
        """Names of the feature maps, from the image to the last one; other modules of the backbone can be named too."""
        return list(self._named)

    @property
    def path_layer(self) -> str:
        """The layer that methods on a path read, with MORE where coarser layers are behind it.

        It is the coarsest one whose map has PATH_CELLS cells along its shorter side, or else the finest. Where all
        layers have one stride, as in most transformers, it is the layer a third of the way.
        """
        by_stride = sorted(self._last_of_each_stride().items())  # the finest first
        start = None
        for _, name in by_stride:
            has_cells = min(self._named[name].layout.grid) >= PATH_CELLS
            if (start is None or has_cells) and self._is_readable(name) and self._coarser(name):
                start = f"{name}{MORE}"
        if start is not None:
            return start
        alone = by_stride[0][1]
        if len(by_stride) == 1:
            alone = self.layers[len(self.layers) // 3]
        return alone if self._is_readable(alone) else LAST

    def check_layer(self, layer: str):
        """Check a layer before it is explained.

        Raises:
            ConfigError: It cannot be read, names coarser ones of which there are none, or its map for images of
                `image_size` is a single place.
        """
        name = self._name(layer)
        layout = self._named[self._last].layout
        if name != self._last:
            layout = self._reading(name).layout
        self._later(layer)
        if layout.grid == (1, 1):
            raise ConfigError(
                f"image.size: {list(self.image_size)} is too small for explanation.layer {layer!r} of "
                f"{self.backbone_model}: its map is 1 x 1, which has no places to explain. Set a larger size, or name "
                "another layer."
            )

    def features(self, images, layer=LAST):
        """Return the feature map (N, C, h, w) of images (N, 3, H, W) at a layer."""
        name = self._name(layer)
        if name == self._last:
            return self._last_map(self._run(images))
        return self._layers.read(self._reading(name), images)

    def features_and_vectors(self, images, layer=LAST):
        """Return the same, and the vectors (N, embedding_size), of any length; gradients flow from them to the map.

        Raises:
            ExplanationError: The map of these images has only one place: heatmaps would be 1.0 everywhere.
        """
        with torch.no_grad():
            features = self.features(images, layer)
            if features.shape[-2:].numel() == 1:
                raise self._without_places(images, layer)
        features.requires_grad_(torch.is_grad_enabled())
        return features, self.project_features(features, layer)

    def project_features(self, features, layer=LAST):
        """Return the vectors of a feature map (N, C, h, w) at a layer: float32 (N, embedding_size), of any length.

        In evaluation mode, for layers before the last one.
        """
        name = self._name(layer)
        if name == self._last:
            return self._project(features)
        return self._layers.resume(self._reading(name), features)

    def project_through(self, features, layer=LAST):
        """Return the same vectors, and the maps (N, c, h, w) of later layers on the way, which gradients flow through.

        These are the last layers of each coarser stride if `layer` ends in MORE; otherwise there are none.

        Raises:
            ConfigError: It ends so, and there are none.
        """
        names = self._later(layer)
        if not names:
            return self.project_features(features, layer), []
        later = [self._reading(name) for name in names]  # measured before any hook is set
        return self._layers.resume_through(self._reading(self._name(layer)), features, later)

    def forward(self, images):
        """Return the embeddings of images (N, 3, H, W), float32 (N, embedding_size), of length 1."""
        return unit(self.project_features(self.features(images)))

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return the modules of the backbone that lead to each layer from the one before it, without their children.

        They stand in the order of their making; children are listed themselves.
        """
        paths, modules = zip(*self.backbone.named_modules(), strict=True)
        stages = {}
        start = 0
        for name, layer in self._named.items():
            end = start
            for place in range(start, len(paths)):
                if f"{paths[place]}.".startswith(f"{layer.path}."):
                    end = place + 1
            stages[name] = list(modules[start:end])
            start = end
        stages[name] += modules[start:]
        return stages

    def freeze(self, training: str):
        """Exclude part of the backbone from training: "frozen" all of it, "last" all but the last quarter of its stages
        (rounded up), "full" nothing.

        Parameters of that part need no gradient, and its modules stay in evaluation mode, batch norm included.
        """
        stages = list(self.stages().values())
        trained = math.ceil(len(stages) * TRAINED_SHARE[training])
        paths = {module: path for path, module in self.named_modules()}
        self._frozen = []  # by path: under torchrun batch norms are replaced
        for stage in stages[: len(stages) - trained]:
            for module in stage:
                self._frozen.append(paths[module])
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode=True):
        """Set training or evaluation mode, as torch.nn.Module does; frozen modules stay in evaluation mode."""
        super().train(mode)
        for path in self._frozen:
            self.get_submodule(path).training = False
        return self

    def summary(self) -> pd.DataFrame:
        """Return the output shape of each stage for images of `image_size`, and its parameters, all and trained."""
        rows = []
        for (name, layer), modules in zip(self._named.items(), self.stages().values(), strict=True):
            height, width = layer.layout.grid
            rows.append((name, f"{layer.channels} x {height} x {width}", *_parameters(modules)))
        rows.append(("embedding", str(self.embedding_size), *_parameters(self.embedding.modules())))
        rows.append(("all", "", *_parameters(self.modules())))
        return pd.DataFrame(rows, columns=["stage", "output", "parameters", "trained"]).set_index("stage")

    def _without_places(self, images, layer) -> ExplanationError:
        larger = []
        for name in self.layers:
            if self.features(images[:1], name).shape[-2:].numel() > 1:
                larger.append(name)
        height, width = images.shape[-2:]
        cure = f"name one of {', '.join(larger)}" if larger else "pass larger images"
        return ExplanationError(
            f"layer {layer!r} gives maps of 1 x 1 for images of {height} x {width}, without places to compare: {cure}"
        )

    def _run(self, images):
        weight = next(self.backbone.parameters())
        return self.backbone.forward_features(images.to(weight.dtype))  # bfloat16 in a copy by `folded`

    def _vectors(self, output, count):
        return self._project(self._last_map(output))

    def _last_map(self, output):
        """Turn what the backbone gives into a map without the channels of tokens that have no place."""
        layout = self._named[self._last].layout
        return layout.without_placeless(layout.to_map(output))

    def _project(self, features):
        """Turn the last map (N, C, h, w) into vectors, float32 or longer (N, embedding_size)."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round distances to two digits
            exact = torch.promote_types(features.dtype, torch.float32)
            pooled = features.to(exact).mean(dim=(2, 3))  # (N, C)
            return self.embedding(pooled)

    def _aliases(self) -> dict[str, str]:
        """Return the names of layers that are known as "last", "stride4", "stride8", ..."""
        aliases = {LAST: self._last}
        for stride, name in self._last_of_each_stride().items():
            aliases[f"stride{stride}"] = name
        return aliases

    def _last_of_each_stride(self) -> dict[int, str]:
        """Return the name of the last layer of each stride."""
        names = {}
        for name, named in self._named.items():
            names[named.stride] = name
        return names

    def _later(self, layer) -> list[str]:
        """Return the coarser layers that are read too where `layer` ends in MORE.

        Raises:
            ConfigError: It ends so, and there are none.
        """
        if not layer.endswith(MORE):
            return []
        names = self._coarser(self._name(layer))
        if not names:
            raise ConfigError(
                f"explanation.layer: {layer!r} is refused: {self.backbone_model} has no layer of a coarser stride "
                f"behind it with {LEAST_CELLS} cells along each side. Leave out the {MORE}, or name an earlier layer"
            )
        return names

    def _coarser(self, name) -> list[str]:
        """Return the last layer of each coarser stride behind a named layer, of modules that can be read.

        Maps of fewer than LEAST_CELLS cells along a side are left out: they would tint the whole image.
        """
        names = {}  # by stride
        if name in self._named:
            for later, named in self._named.items():
                has_cells = min(named.layout.grid) >= LEAST_CELLS
                if named.path and has_cells and named.stride > self._named[name].stride and self._is_readable(later):
                    names[named.stride] = later
        return list(names.values())

    def _is_readable(self, name) -> bool:
        """Return whether a layer can be read: after training, a map of tokens may no longer answer to its places."""
        if name not in self._readings and name not in self._unreadable:
            try:
                self._reading(name)
            except ConfigError:
                self._unreadable = self._unreadable | {name}
        return name not in self._unreadable

    def _name(self, layer) -> str:
        layer = layer.removesuffix(MORE)
        return self._aliases().get(layer, layer)

    def _reading(self, name) -> Reading:
        """Return how the maps of a layer before the last one are read; measured before it is used for the first time.

        Raises:
            ConfigError: The backbone has no such layer, its output is no map, or other layers go around it.
        """
        reading = self._readings.get(name)
        if reading is None:
            try:
                reading = self._measured(name)
            except ValueError as error:
                names = ", ".join(dict.fromkeys([*self._aliases(), *self._named]))
                raise ConfigError(
                    f"explanation.layer: {name!r} is refused; should be {names}, or the path of a module: {error}"
                ) from error
            self._readings = self._readings | {name: reading}  # a new one: threads read or copy it
        return reading

    @torch.no_grad()
    def _measured(self, name):
        path = name
        if name in self._named:
            path = self._named[name].path
        image = example_of(self.image_size, 1).to(next(self.backbone.parameters()))
        with evaluating(self):
            output = self._layers.output(self._layers.find(path), image)
            return self._layers.measure(path, image, layout_of(output, self.backbone, image))


def build_network(config: Config) -> SiameseNetwork:
    """Build the network that the config describes, on the CPU, in training mode; frozen as `backbone_training` says.

    A line is printed when weights that are loaded expect another normalisation than the config's, or have a licence
    that does not allow every use.

    Raises:
        ConfigError: `pretrained` weights cannot be loaded, the backbone cannot take images of this size, or
            `explanation.layer` is no layer of it.
    """
    size = None if config.hyperparameters.epochs == 0 else config.embedding_size
    network = SiameseNetwork(config.backbone_model, size, config.pretrained, config.image.size)
    network.check_layer(LAST)
    if config.explanation.layer != AUTO:
        network.check_layer(config.explanation.layer)  # refused now, not after hours of training
    network.freeze(config.backbone_training)
    if config.pretrained and FIRST:
        _print_notices(config)
    return network


def _print_notices(config):
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
    """Return how many parameters these modules have themselves, and how many of them are trained."""
    count = trained = 0
    for module in modules:
        for parameter in module.parameters(recurse=False):
            count += parameter.numel()
            if parameter.requires_grad:
                trained += parameter.numel()
    return count, trained
