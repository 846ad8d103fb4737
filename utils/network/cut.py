"""Any torch module, cut at one of its layers, so that its pairs of images can be explained."""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock, get_ident

import torch
from torch import nn

from ..config import LAST
from .distance import evaluating, example_of, unit
from .layers import FailsError, Layers, Reading
from .places import changed, close

SLOPE = 1e-4  # of the embedding along the whole feature map: less is rounding
SIZES = 128  # of images and of maps, that are remembered
_lock = Lock()  # around what a Cut remembers


class Cut(nn.Module):
    """A module as explanations take it: its feature map at `layer` is read or replaced, its output has length 1.

    The output of the layer may be a map (N, C, h, w) or (N, h, w, C), or a sequence with its images first or second and
    its places in any order, with tokens that have no place (class token, registers) anywhere. Which it is, is measured:
    when the first images of a size go through, bands of the first of them are changed, and the output of the layer
    shows where its places stand. Hooks are there for one call and one thread only; weights, gradients, modes and hooks
    of the module do not change.

    Args:
        module: From images, float (N, C, H, W), to a tensor of embeddings (N, D), or a tuple, dict or object with no
            other tensor: a torchvision or timm classifier without its head, for example.
        layer: The submodule whose output is read, or its name in `named_modules`.
        forward: Function from images to embeddings in place of `module` itself: `module.encode_image` or
            `module.forward_once`, or a function that takes the embedding out of what the module returns.

    Raises:
        ValueError: The message says what the module lacks. At once for a layer that it does not have. When the first
            images of a size go through, for a module that fails on them, returns no embeddings or others at each call,
            for a layer that runs more or less than once, whose output is no map in the places of the image, behind
            which there is no gradient, or which other layers go around.
    """

    def __init__(self, module: nn.Module, layer: str | nn.Module, forward: Callable | None = None):
        super().__init__()
        self.module = getattr(module, "_orig_mod", module)  # of torch.compile, whose compiled code no hook can read
        self._function = forward
        self._layers = Layers(self.module, self._run, self._vectors)
        self.layer = self._layers.find(layer)
        self._readings = {}  # of each size, type and device of images, and of the maps that each thread has read

    @property
    def layers(self) -> list[str]:
        """The only layer that is read."""
        return [self.layer]

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part of the module, in the order of their making: of each child, with all below.

        A module that only wraps another one counts with its own parameters, as the first part, and so does this one.
        """
        module = self.module
        outer = [module]
        while len(list(module.children())) == 1:
            (module,) = module.children()
            outer.append(module)
        stages = {type(self.module).__name__: outer}
        for name, child in module.named_children():
            stages[name] = list(child.modules())
        return stages

    def forward(self, images):
        """Return the embeddings of images (N, C, H, W), float (N, D), of length 1."""
        return unit(self._layers(images))

    def features(self, images, layer=LAST):
        """Return the feature map of images (N, C, H, W) at the layer, (N, channels, h, w)."""
        reading = self._reading(images, layer)
        return self._remembered(self._layers.read(reading, images), reading)

    def features_and_vectors(self, images, layer=LAST):
        """Return the same, and what the module makes of the images, float (N, D), of any length.

        Where gradients are recorded, they flow from the vectors to the map.

        Raises:
            ValueError: The map does not lead to the vectors: other layers go around it for these images.
        """
        reading = self._reading(images, layer)
        with torch.no_grad():
            features, expected = self._layers.read_with_vectors(reading, images)
        features = self._remembered(features, reading).requires_grad_(torch.is_grad_enabled())
        vectors = self._layers.resume(reading, features)
        if not close(unit(expected), unit(vectors.detach()), features.dtype):
            raise ValueError(
                f"{self._place} is not all that the embeddings of these images depend on: other layers go around it. "
                "Name one behind the place where they meet."
            )
        return features, vectors

    def project_features(self, features, layer=LAST):
        """Return what the module makes of a feature map (N, channels, h, w) at the layer: float (N, D), of any length.

        What stands before the layer runs on an image that was read before: its result is replaced.
        """
        self._check_name(layer)
        size = tuple(features.shape[1:])
        reading = self._readings.get((size, get_ident())) or self._readings.get(size)
        if reading is None:
            raise ValueError("call features(images) first: it sets the size of the images")
        return self._layers.resume(reading, features)

    @property
    def _place(self):
        return f"layer {self.layer!r} of {self._layers.kind}"

    def _run(self, images):
        if self._function is None:
            return self.module(images)
        return self._function(images)

    def _vectors(self, output, count):
        return vectors_in(output, count, self._layers.kind)

    def _check_name(self, layer):
        if layer not in (LAST, self.layer):
            raise ValueError(f"this Cut reads {self.layer!r}: for {layer!r} make Cut(module, layer={layer!r})")

    def _remembered(self, features, reading):
        """Copy a map, so that `project_features` knows it and torch can record gradients at it."""
        size = tuple(features.shape[1:])
        self._remember((size, get_ident()), reading)
        self._remember(size, reading)  # for other threads
        return features.clone()  # the module may run the layer in torch.inference_mode

    def _remember(self, key, reading):
        """Keep the newest readings, in a new dict: other threads may go through the one that is there."""
        with _lock:
            readings = dict(self._readings)
            readings.pop(key, None)
            if len(readings) == SIZES:
                del readings[next(iter(readings))]
            readings[key] = reading
            self._readings = readings

    def _reading(self, images, layer) -> Reading:
        """Return how maps of images of this size are read; measured when the first of them go through."""
        self._check_name(layer)
        kind = (images.shape[1:], images.dtype, images.device)
        reading = self._readings.get(kind)
        if reading is None:
            reading = self._measured(images[:1])
            self._remember(kind, reading)
        return reading

    def _measured(self, image) -> Reading:
        with evaluating(self):
            with torch.no_grad():
                self(image)  # fails on what the module does not accept, before anything is changed
            try:
                reading = self._layers.measure(self.layer, _with_contrast(image).clone())
            except FailsError as error:
                raise ValueError(
                    f"{self._place} cannot be measured: {self._layers.kind} takes the image, but fails on copies with "
                    f"a part set to the lowest or highest of its values, so these lie outside what it accepts: {error}"
                ) from error
            self._check_gradient(reading)
        return reading

    def _check_gradient(self, reading):
        """Raise ValueError where the embedding has no gradient at the map, or none in its places."""
        with torch.no_grad():
            both = torch.cat([reading.image, changed(reading.image)])
            features = self._layers.read(reading, both).clone()
        try:
            gradient = self._gradient(features, reading)
        except (RuntimeError, ValueError) as error:
            cause = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{self._place} has no gradient behind it that torch can compute: {cause}. Name a layer behind what "
                "stops it (torch.no_grad, inference_mode, detach, checkpointing, rounding), or take that out"
            ) from error
        if not reading.layout.without_placeless(gradient).norm() * features.norm() > SLOPE:
            raise ValueError(
                f"no place of {self._place} counts for the embedding: it depends on nothing of it, or only on tokens "
                "without a place, such as a class token. Name an earlier layer, or pool the places."
            )

    @torch.enable_grad()
    def _gradient(self, features, reading):
        """Return the gradient of some direction of the embeddings at a map.

        Raises:
            RuntimeError: Torch records none.
            ValueError: The layer runs again meanwhile: what it gives then is not what was put in.
        """

        def refuse(module, inputs, output):
            raise ValueError("gradient checkpointing runs the layer again, so turn it off")

        embeddings = unit(self._layers.resume(reading, features.requires_grad_()))
        value = embeddings.flatten() @ torch.linspace(-1, 1, embeddings.numel()).to(embeddings)
        with (
            self._layers.hooked(self.layer, refuse),
            torch.autograd.set_multithreading_enabled(False),
        ):  # hooks act in one thread
            (gradient,) = torch.autograd.grad(value, features, allow_unused=True, materialize_grads=True)
        return gradient


def _with_contrast(image) -> torch.Tensor:
    """Return the image (1, C, H, W), or noise where it is of one colour or there is none, (0, C, H, W)."""
    if len(image) and image.min() < image.max():
        return image
    return example_of(image.shape[2:], 1, image.shape[1]).to(image)


def vectors_in(output, count: int, kind: str) -> torch.Tensor:
    """Return the embeddings in what a module returns.

    Args:
        output: A tensor (N, D), (N, D, 1, 1) or, of one image, (D,); alone or in a tuple, list, dict or object.
        count: How many images went in.
        kind: The name of the module's class, for errors.

    Returns:
        Float32 or longer (count, D).

    Raises:
        ValueError: There are several tensors or none, one number an image, or no row for each image.
    """
    tensors = dict(_tensors_in(output))
    if len(tensors) != 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"{kind} returns {len(tensors)} tensors ({shapes or type(output).__name__}): pass forward=, a function "
            "that returns only the embedding, such as lambda images: module(images)[0]"
        )
    (vectors,) = tensors.values()
    if vectors.dim() == 1 and count == 1 and len(vectors) > 1:
        vectors = vectors[None]  # the module squeezes its output
    if vectors.dim() > 2 and vectors.shape[2:].numel() == 1:
        vectors = vectors.flatten(1)
    if vectors.numel() == count > 0:
        raise ValueError(
            f"{kind} returns one number an image, which has no direction: every distance would be 0 or 2. Pass "
            "forward=, a function that returns what stands before it, an embedding (N, D)"
        )
    if vectors.dim() != 2 or len(vectors) != count:
        raise ValueError(
            f"{kind} returns {tuple(vectors.shape)} for {count} images, no embeddings (N, D): pool them first, or pass "
            "forward=, a function that does"
        )
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _tensors_in(output, name="") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an output, alone or in tuples, lists, dicts or an object, and how each is named in code."""
    if isinstance(output, torch.Tensor):
        yield name, output
        return
    if isinstance(output, Mapping):
        parts, access = output.items(), "[{!r}]"
    elif isinstance(output, tuple | list):
        parts, access = enumerate(output), "[{}]"
    else:
        parts, access = getattr(output, "__dict__", {}).items(), ".{}"
    for key, part in parts:
        if isinstance(part, torch.Tensor | Mapping | tuple | list):
            yield from _tensors_in(part, name + access.format(key))
