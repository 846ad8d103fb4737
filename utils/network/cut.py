"""Any torch module, cut at one of its layers, so that its pairs of images can be explained."""

import difflib
from collections.abc import Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from utils.config import LAST
from utils.network.explainable import evaluating

PADDING = 2  # cells that a map may have more along one side than its proportions ask for
NOISE = 4  # images that try whether the map decides
TOLERANCE = 5e-3  # of the values of an embedding of length 1, computed twice in the same way


class Cut(nn.Module):
    """A module as explanations take it: its feature map at `layer` is read or replaced, its output has length 1.

    module: from images, float (N, 3, H, W), to one tensor of embeddings (N, D), alone or in a tuple, dict or object: a
    torchvision or timm classifier without its head, for one. layer: the name of the submodule, as `named_modules` has
    it, whose output is a feature map (N, C, h, w). The map is read and replaced by hooks that are there for one call
    only; weights, gradients, modes and hooks of the module stay as they are.

    Raises ValueError, saying what the module lacks: at once for a layer that it has not; when images go through, for a
    layer that gives no map or runs more or less than once, an output that is not one tensor (N, D), and an embedding
    that the map at `layer` does not determine.
    """

    def __init__(self, module: nn.Module, layer: str):
        super().__init__()
        self.module = module
        self.layer = layer
        self._blank = None  # an image (1, 3, H, W) of zeros, as the module was last given them
        self._checked = False
        names = [name for name, _ in module.named_modules() if name]
        if layer not in names:
            near = difflib.get_close_matches(layer, names, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(names[:20])}"
            raise ValueError(f"{type(module).__name__} has no layer {layer!r}: {hint}?")

    @property
    def layers(self) -> list[str]:
        """The one layer that is read."""
        return [self.layer]

    def forward(self, images):
        """images (N, 3, H, W) to embeddings, float (N, D), of length 1."""
        return F.normalize(self._vectors(self.module(images)), dim=1)

    def features(self, images, layer=LAST):
        """images (N, 3, H, W) to the feature map (N, C, h, w) at the layer."""
        self._check_name(layer)
        self._blank = torch.zeros_like(images[:1])
        if not self._checked:
            self._check_that_the_map_decides()
            self._checked = True
        return self._read(images)

    def project_features(self, features, layer=LAST):
        """Feature map (N, C, h, w) at the layer to what the module makes of it: float (N, D), of any length.

        What stands before the layer runs on a blank image meanwhile: its result is replaced.
        """
        self._check_name(layer)
        if self._blank is None:
            raise ValueError("features(images) comes first: it tells the size of the images")

        def replace(module, inputs, output):
            if output.shape[1:] != features.shape[1:]:
                raise ValueError(f"a map of {tuple(features.shape)} cannot replace one of {tuple(output.shape)}")
            return features.clone()  # the module may go on in place

        blanks = self._blank.expand(len(features), -1, -1, -1)
        with _hook(self.module.get_submodule(self.layer), replace):
            return self._vectors(self.module(blanks))

    def embed_features(self, features, layer=LAST):
        """Feature map (N, C, h, w) at the layer to embeddings, float (N, D), of length 1."""
        return F.normalize(self.project_features(features, layer), dim=1)

    def _read(self, images):
        """The output of the layer, which must be one map (N, C, h, w)."""
        outputs = []

        def keep(module, inputs, output):
            outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)

        with _hook(self.module.get_submodule(self.layer), keep):
            self.module(images)
        kind = type(self.module).__name__
        if len(outputs) != 1:
            raise ValueError(f"layer {self.layer!r} of {kind} runs {len(outputs)} times: name one that runs once")
        (output,) = outputs
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"layer {self.layer!r} of {kind} gives {found}: name one that gives a map (N, C, h, w)")
        height, width = images.shape[2:]
        if abs(output.shape[2] * width - output.shape[3] * height) > PADDING * max(height, width):
            raise ValueError(
                f"layer {self.layer!r} of {kind} gives {tuple(output.shape)} for images of {(height, width)}: no map "
                "(N, C, h, w) in their proportions. If channels come last, name a layer where they come second."
            )
        return output

    @torch.no_grad()
    def _check_that_the_map_decides(self):
        """A second way around the layer would leave the embedding to the blank image: tried with images of noise."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(NOISE, *self._blank.shape[1:], generator=generator)
        colours = torch.randn(NOISE, self._blank.shape[1], 1, 1, generator=generator)
        images = (noise + colours).to(self._blank)
        with evaluating(self):
            found = self.embed_features(self._read(images))
            expected = self(images)
        if (found - expected).abs().max() > TOLERANCE:
            raise ValueError(
                f"layer {self.layer!r} of {type(self.module).__name__} is not all that the embedding depends on: "
                "other layers go around it. Name one behind the place where they meet."
            )

    def _check_name(self, layer):
        if layer not in (LAST, self.layer):
            raise ValueError(f"this Cut reads {self.layer!r}: for {layer!r} make Cut(module, layer={layer!r})")

    def _vectors(self, output):
        """The one tensor of an output, as float32 or longer, (N, D)."""
        kind = type(self.module).__name__
        tensors = _tensors_in(output)
        if len(tensors) != 1:
            raise ValueError(f"{kind} returns {len(tensors)} tensors: wrap it so that it returns the embedding alone")
        (vectors,) = tensors
        if vectors.dim() > 2 and vectors.shape[2:].numel() == 1:
            vectors = vectors.flatten(1)
        if vectors.dim() != 2:
            raise ValueError(f"{kind} returns {tuple(vectors.shape)}, no embeddings (N, D): pool them first")
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


@contextmanager
def _hook(module, function):
    """A forward hook that is there for the block alone."""
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()


def _tensors_in(output) -> list[torch.Tensor]:
    """The tensors of an output: itself, or those in a tuple, list, dict or object."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    else:
        parts = getattr(output, "__dict__", {}).values()
    found = []
    for part in parts:
        if isinstance(part, torch.Tensor | Mapping | tuple | list):
            found += _tensors_in(part)
    return found
