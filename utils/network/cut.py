"""Any torch module, cut at one of its layers, so that its pairs of images can be explained."""

import difflib
from collections.abc import Mapping

import torch
from torch import nn

from utils.config import LAST
from utils.network.explainable import evaluating, unit
from utils.network.hooks import example_of, hooked, read, resume, watched
from utils.network.maps import layout_of

NOISE = 4  # images that try whether the map decides
TOLERANCE = 5e-3  # of the values of an embedding of length 1, computed twice in the same way


class Cut(nn.Module):
    """A module as explanations take it: its feature map at `layer` is read or replaced, its output has length 1.

    module: from images, float (N, 3, H, W), to one tensor of embeddings (N, D), alone or in a tuple, dict or object: a
    torchvision or timm classifier without its head, for one. layer: the name of the submodule, as `named_modules` has
    it, whose output is a feature map (N, C, h, w) or (N, h, w, C), or the tokens of a transformer, (N, T, C), of which
    those that have no place are at the front. Where channels may stand first or last by the shape, they stand first,
    unless the module has an `output_fmt` that says "NHWC". The map is read and replaced by hooks that are there for one
    call only; weights, gradients, modes and hooks of the module stay as they are.

    Raises ValueError, saying what the module lacks: at once for a layer that it has not; when images go through, for a
    layer that gives no map, a map of a single place, or runs more or less than once, an output that is not one tensor
    (N, D), and an embedding that the map at `layer` does not determine, or whose places it does not depend on.
    """

    def __init__(self, module: nn.Module, layer: str):
        super().__init__()
        self.module = module
        self.layer = layer
        self._blank = None  # an image (1, 3, H, W) of zeros, as the module was last given them
        self._layout = None  # of the map, as it was last read
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
        return unit(self._vectors(self.module(images)))

    def features(self, images, layer=LAST):
        """images (N, 3, H, W) to the feature map (N, C, h, w) at the layer."""
        self._check_name(layer)
        self._blank = images.new_zeros(1, *images.shape[1:])
        if not self._checked:
            self._check_that_it_runs_once()
            self._check_that_the_map_decides()
            self._checked = True
        return self._read(images)

    def project_features(self, features, layer=LAST):
        """Feature map (N, C, h, w) at the layer to what the module makes of it: float (N, D), of any length.

        What stands before the layer runs on a blank image meanwhile: its result is replaced.
        """
        self._check_name(layer)
        if self._layout is None:
            raise ValueError("features(images) comes first: it tells the size of the images")
        blanks = self._blank.expand(len(features), -1, -1, -1)
        output = self._layout.to_output(features.clone())  # the module may go on in place
        return self._vectors(resume(self.module, self._submodule, blanks, output))

    def embed_features(self, features, layer=LAST):
        """Feature map (N, C, h, w) at the layer to embeddings, float (N, D), of length 1."""
        return unit(self.project_features(features, layer))

    @property
    def _submodule(self):
        return self.module.get_submodule(self.layer)

    def _read(self, images):
        """The output of the layer, which must be one map, as (N, C, h, w)."""
        output = read(self.module, self._submodule, images)
        output = output.clone() if isinstance(output, torch.Tensor) else output
        self._layout = layout_of(output, images.shape[2:], getattr(self.module, "output_fmt", "NCHW"))
        if self._layout is None:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(
                f"layer {self.layer!r} of {type(self.module).__name__} gives {found} for images of "
                f"{tuple(images.shape[2:])}: name one that gives a map (N, C, h, w), (N, h, w, C) or tokens (N, T, C) "
                "in their proportions"
            )
        if self._layout.grid == (1, 1):
            size = " x ".join(map(str, images.shape[2:]))
            names = ", ".join(self._with_places()) or "none: pass larger images"
            raise ValueError(
                f"layer {self.layer!r} of {type(self.module).__name__} gives maps of 1 x 1 for images of {size}, which "
                f"have no places to tell apart. Layers whose maps have places: {names}"
            )
        return self._layout.to_map(output)

    @torch.no_grad()
    def _with_places(self) -> list[str]:
        """The outermost layers whose output is a map of several places for the blank image, in the order they run."""
        found = []
        order = getattr(self.module, "output_fmt", "NCHW")

        def see(path, module, inputs, output):
            layout = layout_of(output, self._blank.shape[2:], order)
            if path and layout is not None and layout.grid != (1, 1):
                found.append(path)

        with evaluating(self), watched(self.module, see):
            self.module(self._blank)
        return [path for path in dict.fromkeys(found) if not any(path.startswith(f"{other}.") for other in found)]

    @torch.no_grad()
    def _check_that_it_runs_once(self):
        runs = []

        def count(module, inputs, output):
            runs.append(module)

        with evaluating(self), hooked(self._submodule, count):
            self.module(self._blank)
        if len(runs) != 1:
            kind = type(self.module).__name__
            raise ValueError(f"layer {self.layer!r} of {kind} runs {len(runs)} times: name one that runs once")

    def _check_that_the_map_decides(self):
        """A second way around the layer would leave the embedding to the blank image, and a class token alone would
        leave nothing to the places: tried with images of noise.
        """
        images = example_of(self._blank.shape[2:], NOISE).to(self._blank)
        place = f"layer {self.layer!r} of {type(self.module).__name__}"
        with evaluating(self), torch.no_grad():
            features = self._read(images)
            expected = self(images)
        if not expected.isfinite().all():
            raise ValueError(f"{place}: embeddings of noise are not finite, or have no length to speak of")
        with evaluating(self), torch.enable_grad():
            features.requires_grad_()
            found = self.embed_features(features)
            (gradient,) = torch.autograd.grad(found.square().sum() + found.sum(), features, allow_unused=True)
        if not (found - expected).abs().max() <= TOLERANCE:  # NaN included
            raise ValueError(
                f"{place} is not all that the embedding depends on: "
                "other layers go around it. Name one behind the place where they meet."
            )
        if gradient is None or not self._layout.without_prefix(gradient).any():
            raise ValueError(
                f"{place} is read at tokens without a place alone: no place of the image counts there. "
                "Name an earlier block, or pool the places."
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
