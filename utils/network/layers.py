"""The feature maps of a backbone: which there are, how each is read, and how the network goes on from it."""

import difflib
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ..config import LAST, ConfigError
from .distance import evaluating
from .hooks import NotRun, example_of, read, resume, watched
from .places import Layout, PlacesError, close, likely_layout, measure_layout

RESNET_STEM = {"act1": ("stem", "maxpool")}  # timm names the map before the pooling, the paper's repository that after
STEM_STRIDE = 4


@dataclass(frozen=True)
class Layer:
    """A feature map that can be read: the path of its module in the backbone, its layout, its channels, its stride."""

    module: str
    layout: Layout
    channels: int
    stride: int


class Layers:
    """The layers of a timm model for images of (height, width).

    Those that timm names, and at last the map that is pooled: what its `forward_features` gives, as a map of places.
    Raises ConfigError for a backbone that gives no such map. Parameters on which that map does not depend (a norm
    before the classifier, for one) are marked as not trained.
    """

    def __init__(self, backbone: nn.Module, image_size):
        self.backbone = backbone
        self.image_size = tuple(image_size)
        self.known = _known_layers(backbone, self.image_size)
        self.last = list(self.known)[-1]
        self._tried = {self.last: self.known[self.last]}

    @property
    def names(self) -> list[str]:
        """From the image to the last map."""
        return list(self.known)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the maps."""
        return next(self.backbone.parameters()).dtype

    def read(self, images, layer=LAST) -> torch.Tensor:
        """images (B, 3, H, W) to the map (B, C, h, w) of a layer."""
        name, found = self.find(layer)
        images = images.to(self.dtype)  # bfloat16 in the copy that `folded` makes
        if name == self.last:
            output = self.backbone.forward_features(images)
            return found.layout.without_placeless(found.layout.to_map(output))
        output = read(self.backbone.forward_features, self.backbone.get_submodule(found.module), images)
        return found.layout.to_map(output)

    def resume(self, features, layer=LAST) -> torch.Tensor:
        """The map (B, C, h, w) of a layer to the last one; in evaluation mode, for its way begins at a blank image."""
        name, found = self.find(layer)
        return features if name == self.last else self._resume(features, found)

    def find(self, layer) -> tuple[str, Layer]:
        """The name of a layer and where it is; tried with two images before it is used for the first time.

        Raises ConfigError when `layer` is neither "last", nor one of `names`, `stride4`, `stride8`, ..., nor the path
        of another module of the backbone whose output is a map that the last one depends on alone.
        """
        strides = {f"stride{known.stride}": name for name, known in self.known.items()}  # the last one of each
        name = self.last if layer == LAST else strides.get(layer, layer)
        if name in self._tried:
            return name, self._tried[name]
        found = self.known.get(name) or self._module(name)
        measured = found and self._measured(found)
        if measured is not None:
            self._tried = self._tried | {name: measured}  # another one, for threads that read or copy it now
            return name, measured
        known = list(dict.fromkeys([LAST, *self.names, *strides]))
        others = [path for path, _ in self.backbone.named_modules() if path not in (*known, layer)]
        near = difflib.get_close_matches(layer, others, n=1) if found is None else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        why = "" if found is None else ": other layers go around it, or its places are not those of the image"
        raise ConfigError(f"explanation.layer: {layer!r} is refused{why}; {hint}should be {', '.join(known)}")

    def stages(self) -> dict[str, list[nn.Module]]:
        """The modules of the backbone that lead to each layer from the one before it, in the order of their making.

        A module stands without its children, which have places of their own.
        """
        paths = [path for path, _ in self.backbone.named_modules()]
        ends = []  # of each layer: the place of its last module
        for layer in self.known.values():
            inside = [place for place, path in enumerate(paths) if f"{path}.".startswith(f"{layer.module}.")]
            ends.append(max([*inside, *ends[-1:]]))
        ends[-1] = len(paths)
        stages = {name: [] for name in self.known}
        for place, module in enumerate(self.backbone.modules()):
            stages[self.names[bisect_left(ends, place)]].append(module)
        return stages

    def _resume(self, features, layer):
        blank = torch.zeros(1, 3, *self.image_size, dtype=self.dtype, device=features.device)
        output = layer.layout.to_output(features.clone())  # the backbone may go on in place
        module = self.backbone.get_submodule(layer.module)
        output = resume(self.backbone.forward_features, module, blank, output)
        last = self.known[self.last].layout
        return last.without_placeless(last.to_map(output))

    def _examples(self):
        return example_of(self.image_size).to(next(self.backbone.parameters()))

    def _run(self, layer):
        """The function from images to what the module of a layer gives."""
        module = self.backbone.get_submodule(layer.module)
        return partial(read, self.backbone.forward_features, module)

    @torch.no_grad()
    def _module(self, path) -> Layer | None:
        """Any other module of the backbone, where its output is a map."""
        if not path or path not in dict(self.backbone.named_modules()):
            return None
        try:
            with evaluating(self.backbone):
                output = read(self.backbone.forward_features, self.backbone.get_submodule(path), self._examples())
        except NotRun:
            return None
        return _layer(self.backbone, path, output, self.image_size)

    @torch.no_grad()
    def _measured(self, layer) -> Layer | None:
        """The layer with its places as they are measured; None where they are not those of the image, or where other
        layers go around it.
        """
        images = self._examples()
        run = self._run(layer)
        with evaluating(self.backbone):
            layer = _with_places(layer, run, images)
            if layer is None:
                return None
            expected = self.read(images)
            try:
                found = self._resume(layer.layout.to_map(run(images)), layer)
            except (AssertionError, RuntimeError, ValueError):
                return None  # it runs twice, or something remembers the blank image
        return layer if close(expected, found) else None


def _known_layers(backbone, image_size) -> dict[str, Layer]:
    """The layers that timm names, by name, and the last one."""
    images = example_of(image_size).to(next(backbone.parameters()))
    outputs, last = _outputs(backbone, images)
    modules = dict(backbone.named_modules())
    layers = {}
    stride = None
    for info in backbone.feature_info:
        name = module = info["module"]
        if name in RESNET_STEM and "maxpool" in modules:
            name, module = RESNET_STEM[name]
            info = info | {"reduction": STEM_STRIDE}
        layer = _layer(backbone, module, outputs.get(module), image_size, info["reduction"])
        if layer is not None:
            layers[name] = layer
            stride = layer.stride
    final = _layer(backbone, "", last, image_size, stride)
    with evaluating(backbone):
        final = final and _with_places(final, backbone.forward_features, images)
    if final is None:
        kind = type(backbone).__name__
        raise ConfigError(f"backbone_model: {kind} is refused: it gives no feature map for images of {image_size}")
    if final.layout.placeless or not layers or outputs[list(layers.values())[-1].module] is not last:
        layers[LAST] = final  # a norm, a convolution or the loss of tokens stands behind the last that timm names
    else:
        name = list(layers)[-1]
        layers[name] = replace(layers[name], layout=final.layout)
    return layers


def _outputs(backbone, images):
    """What each module gives for these images, by path, and the last map; unused parameters are marked."""
    outputs = {}

    def keep(path, module, inputs, output):
        outputs[path] = output

    with evaluating(backbone), watched(backbone, keep), torch.enable_grad():
        last = backbone.forward_features(images)
    if not isinstance(last, torch.Tensor):
        raise ConfigError(f"backbone_model: {type(backbone).__name__} is refused: it gives several maps, not one")
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for weight, gradient in zip(weights, torch.autograd.grad(last.sum(), weights, allow_unused=True), strict=True):
        if gradient is None:
            weight.requires_grad_(False)
    return outputs, last


def _layer(backbone, module, output, image_size, stride=None) -> Layer | None:
    """A layer from what its module gives; None where that has no shape of a map. stride: where timm knows it."""
    layout = likely_layout(output, image_size, getattr(backbone, "output_fmt", "NCHW"))
    if layout is None:
        return None
    channels = layout.without_placeless(layout.to_map(output)).shape[1]
    return Layer(module, layout, channels, stride or round(image_size[0] / layout.grid[0]))


def _with_places(layer, run, images) -> Layer | None:
    """The layer with its places as they are measured, where its shape allows others than those of a convolution; None
    where they are not those of the image. run: from images to what its module gives.
    """
    if layer.layout.tokens is None and not layer.layout.channels_last and layer.channels not in layer.layout.grid:
        return layer
    try:
        layout = measure_layout(run, images)
    except PlacesError:
        return None
    if layout.grid == (1, 1) and layout.tokens is not None:
        return None  # a class token alone
    return replace(layer, layout=layout)
