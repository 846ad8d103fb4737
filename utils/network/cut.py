"""Any torch module, cut at one of its layers, so that its pairs of images can be explained."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, get_ident

import torch
from torch import nn

from ..config import LAST
from .distance import evaluating, same_embeddings, unit
from .hooks import NotRun, hooked, pass_through, read, read_all, resume, watched
from .inputs import place_of
from .modules import check_compiled, check_inputs, name_of, other_functions, vectors_in
from .places import Layout, PlacesError, changed, likely_layout, measure_layout, possible_layouts, with_contrast

SLOPE = 1e-4  # of the embedding along the whole feature map: less is rounding
NAMED = 12  # layers, the last ones, in an error
SIZES = 64  # of images, that are remembered
_lock = Lock()  # around what a Cut remembers


@dataclass(frozen=True, eq=False)
class _Reading:
    """How maps of one size of images are read and replaced."""

    layout: Layout
    image: torch.Tensor
    """(1, C, H, W): what runs through the layers before the map that is put in the place of theirs."""
    copies: bool
    """Whether it must run as often as there are maps, for a module that counts its images."""

    def images(self, count):
        """What runs while `count` maps are put in."""
        return self.image.expand(count, -1, -1, -1) if self.copies else self.image


class Cut(nn.Module):
    """A module as explanations take it: its feature map at `layer` is read or replaced, its output has length 1.

    The output of the layer may be a map (N, C, h, w) or (N, h, w, C), or a sequence with its images first or second and
    its places in any order, with tokens that have no place (class token, registers) anywhere. Which it is, is measured:
    when the first images go through, bands of the first of them are changed, and what answers in the output of the
    layer is seen. Hooks are there for one call and one thread only; weights, gradients, modes and hooks of the module
    stay as they are.

    Args:
        module: From images, float (N, C, H, W), to one tensor of embeddings (N, D), alone or in a tuple, dict or
            object: a torchvision or timm classifier without its head, for one.
        layer: The submodule whose output is read, or its name in `named_modules`.
        forward: Function from images to embeddings in place of `module` itself: `module.encode_image` or
            `module.forward_once`, or one that takes the embedding out of what the module returns.

    Raises:
        ValueError: The message says what the module lacks. At once for a layer that it has not, a module that takes two
            inputs, or one compiled by `torch.jit`. When the first images go through, for a module that fails on them,
            returns no embeddings or others at each call, for a layer that runs more or less than once, whose output is
            no map in the places of the image, behind which there is no gradient, or which other layers go around.
    """

    def __init__(self, module: nn.Module, layer: str | nn.Module, forward: Callable | None = None):
        super().__init__()
        self.module = getattr(module, "_orig_mod", module)  # of torch.compile, whose compiled code no hook can read
        self.layer = name_of(self.module, layer)
        self._function = forward
        self._by_image = {}  # the _Reading of each size (C, H, W), type and device of images
        self._by_map = {}  # the _Reading of each size of maps (C, h, w) that each thread has read
        check_compiled(self.module, self.layer)
        check_inputs(self.module, forward)

    @property
    def layers(self) -> list[str]:
        """The one layer that is read."""
        return [self.layer]

    def forward(self, images):
        """images (N, C, H, W) to embeddings, float (N, D), of length 1."""
        return unit(self._vectors(self._call(images), len(images)))

    def features(self, images, layer=LAST):
        """images (N, C, H, W) to the feature map (N, channels, h, w) at the layer."""
        reading = self._reading(images, layer)
        output = read(self._call, self._submodule, images).clone()
        return self._remembered(reading.layout.to_map(output), reading)

    def features_and_vectors(self, images, layer=LAST):
        """The same, and what the module makes of the images, float (N, D), of any length; gradients flow to the map.

        For the second half of the images, the map alone is put in too. Raises ValueError where that leads elsewhere:
        other layers go around the layer for these images.
        """
        reading = self._reading(images, layer)
        maps = []

        def through_the_map(output):
            features = reading.layout.to_map(output.detach().clone())
            maps.append(features.requires_grad_(torch.is_grad_enabled()))
            return reading.layout.to_output(features.clone())  # the module may go on in place

        result, recorded = pass_through(self._call, self._submodule, images, through_the_map)
        self._check_runs(len(maps))
        features = self._remembered(maps[0], reading).requires_grad_(torch.is_grad_enabled())
        vectors = self._vectors(result, len(images))
        half = slice(len(images) // 2, None)
        with torch.no_grad():
            again = self._resumed(features[half], reading)
        if not same_embeddings(unit(again), unit(vectors[half].detach()), features.dtype):
            raise ValueError(
                f"{self._place} is not all that the embeddings of these images depend on: other layers go around it. "
                "Name one behind the place where they meet."
            )
        if not recorded:
            vectors = self._resumed(features, reading)
        return features, vectors

    def project_features(self, features, layer=LAST):
        """Feature map (N, channels, h, w) at the layer to what the module makes of it: float (N, D), of any length.

        What stands before the layer runs on an image that was read before: its result is replaced.
        """
        self._check_name(layer)
        size = tuple(features.shape[1:])
        readings = self._by_map
        newest_first = reversed([reading for (thread, other), reading in readings.items() if other == size])
        reading = readings.get((get_ident(), size)) or next(newest_first, None)
        if reading is None:
            raise ValueError("features(images) comes first: it tells the size of the images")
        return self._resumed(features, reading)

    def embed_features(self, features, layer=LAST):
        """Feature map (N, channels, h, w) at the layer to embeddings, float (N, D), of length 1."""
        return unit(self.project_features(features, layer))

    @property
    def _submodule(self):
        return self.module.get_submodule(self.layer)

    @property
    def _kind(self):
        return type(self.module).__name__

    @property
    def _place(self):
        return f"layer {self.layer!r} of {self._kind}"

    def _call(self, images):
        """What the module makes of images. Raises ValueError, with the cause, where it fails."""
        function = self.module if self._function is None else self._function
        try:
            return function(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a module of the user's raises
            low, high = (value.item() for value in images.aminmax())
            shape = f"images {tuple(images.shape)} of {images.dtype}, values from {low:.4g} to {high:.4g}"
            cause = str(error).partition("\n")[0]
            raise ValueError(
                f"{self._kind} fails on {shape}: {type(error).__name__}: {cause}. {self._hint(images)}"
            ) from error

    def _hint(self, images) -> str:
        """What to pass in place of images that the module fails on."""
        place = place_of(self.module)
        if place and place[1] != images.dtype:
            return f"Its weights are {place[1]}: pass images.to({place[1]})"
        return "Call forward(images) alone to see where" if self._function else other_functions(self.module)

    def _remembered(self, features, reading):
        """A map, whose images `project_features` will know."""
        if features.is_inference():  # the module runs the layer in torch.inference_mode
            features = features.clone()
        with _lock:
            self._by_map = _with(self._by_map, (get_ident(), tuple(features.shape[1:])), reading)
        return features

    def _resumed(self, features, reading):
        """What the module makes of maps, float (N, D), of any length."""
        output = reading.layout.to_output(features.clone())  # the module may go on in place
        result = resume(self._call, self._submodule, reading.images(len(features)), output)
        return self._vectors(result, len(features))

    def _reading(self, images, layer) -> _Reading:
        """How maps of images of this size are read: measured for the first, of the same kind for other sizes."""
        self._check_name(layer)
        kind = (*images.shape[1:], images.dtype, images.device)
        reading = self._by_image.get(kind)
        if reading is None:
            reading = self._as_other_sizes(images) or self._measured(images)
            with _lock:
                self._by_image = _with(self._by_image, kind, reading)
        return reading

    @torch.no_grad()
    def _as_other_sizes(self, images) -> _Reading | None:
        known = next(iter(self._by_image.values()), None)
        if known is None:
            return None
        output = read(self._call, self._submodule, images[:1])
        for layout in possible_layouts(output.shape, images.shape[2:], known.layout.batch):
            if layout.of_same_kind(known.layout) and layout.grid != (1, 1):
                return _Reading(layout, images[:1].clone(), known.copies)
        return None

    @torch.no_grad()
    def _measured(self, images) -> _Reading:
        """Tries the module with the first image and with changed copies of it. Raises ValueError with what was seen."""
        image = with_contrast(images[:1]).clone()
        with evaluating(self):
            self(images[:1])  # fails on what the module does not accept, before anything is changed
            try:
                return self._tried(image)
            except _FailsOnCopies as error:
                raise ValueError(
                    f"{self._place} cannot be measured: {self._kind} takes the image, but fails on copies with a part "
                    f"set to the lowest or highest of its values, so these lie outside what it accepts: {error}"
                ) from error

    def _tried(self, image) -> _Reading:
        both = torch.cat([image, changed(image)])
        outputs, result = self._on_copies(read_all, both)
        self._check_runs(len(outputs))
        embeddings = unit(self._vectors(result, 2))
        if not embeddings.isfinite().all():
            raise ValueError(f"{self._kind} gives embeddings that are not finite, or all zeros")
        again = unit(self._vectors(self._on_copies(read_all, both)[1], 2))
        if not same_embeddings(again, embeddings, embeddings.dtype):
            raise ValueError(
                f"{self._kind} is random at each call: the same images gave other embeddings, in evaluation mode. "
                "Dropout as a function needs training=self.training"
            )
        try:
            layout = measure_layout(lambda images: self._on_copies(read, images), image)
        except PlacesError as error:
            raise ValueError(f"{self._place} {error}. {self._named_layers(image)}") from error
        if layout.grid == (1, 1):
            size = " x ".join(map(str, image.shape[2:]))
            raise ValueError(
                f"{self._place} gives maps of 1 x 1 for images of {size}, which have no places to tell apart. "
                f"{self._named_layers(image)}"
            )
        features = layout.to_map(outputs[0])
        reading = self._deciding(features, embeddings, layout, image)
        self._check_gradient(features, reading)
        return reading

    def _check_runs(self, count):
        if count == 1:
            return
        other = ", of this module and no other: forward= may call a copy" if self._function and not count else ""
        raise ValueError(f"{self._place} runs {count} times: name one that runs once{other}")

    def _on_copies(self, look, images):
        """What `read` or `read_all` sees of changed copies of an image."""
        try:
            return look(self._call, self._submodule, images)
        except NotRun:
            raise
        except ValueError as error:
            raise _FailsOnCopies(str(error)) from error

    def _deciding(self, features, embeddings, layout, image) -> _Reading:
        """The way to put maps in that leads to the embeddings of the module itself."""
        for copies in (False, True):
            reading = _Reading(layout, image, copies)
            try:
                found = unit(self._resumed(features, reading))
            except ValueError:  # with one image in front, where the module counts its images
                if copies:
                    raise
                continue
            if same_embeddings(found, embeddings, features.dtype):
                return reading
        raise ValueError(
            f"{self._place} is not all that the embedding depends on: other layers go around it. Name one behind the "
            "place where they meet."
        )

    def _check_gradient(self, features, reading):
        with torch.enable_grad():
            features = features.clone().requires_grad_()
            try:
                found = unit(self._resumed(features, reading))
                if found.requires_grad:
                    direction = torch.linspace(-1, 1, found.numel()).view_as(found).to(found)
                    gradient = self._gradient((found * direction).sum(), features)
            except (RuntimeError, ValueError) as error:
                cause = str(error).partition("\n")[0]
                raise ValueError(f"{self._place} has no gradient behind it that torch can compute: {cause}") from error
        if not found.requires_grad:
            raise ValueError(
                f"{self._place} has no gradient behind it: the module stops it there (torch.no_grad, inference_mode, "
                "detach, reentrant checkpointing, rounding). Name a layer behind that place, or take it out"
            )
        if gradient is None or not _counts(gradient, features):
            raise ValueError(f"{self._place} is nothing that the embedding depends on: it stays as it is without it")
        if not _counts(reading.layout.without_placeless(gradient), features):
            raise ValueError(
                f"{self._place} is read at tokens without a place alone: no place of the image counts there. "
                "Name an earlier block, or pool the places."
            )

    def _gradient(self, value, features):
        """The gradient at a map that was put in; None where the value does not depend on it.

        Raises ValueError where the layer runs once more meanwhile: what it gives then is not what was put in.
        """
        runs = []
        with hooked(self._submodule, lambda *call: runs.append(call)), torch.autograd.set_multithreading_enabled(False):
            try:
                (gradient,) = torch.autograd.grad(value, features, allow_unused=True)
            except RuntimeError:
                if not runs:
                    raise
        if runs:
            raise ValueError(
                "gradient checkpointing runs the layer again. Turn it off, or name a layer behind what it runs again"
            )
        return gradient

    def _named_layers(self, image) -> str:
        """The outermost layers whose output has the shape of a map of several places, in the order they run."""
        names = []
        order = getattr(self.module, "output_fmt", "NCHW")

        def see(path, module, inputs, output):
            layout = likely_layout(output, image.shape[2:], order)
            if path not in ("", self.layer, *names) and layout is not None and layout.grid != (1, 1):
                names.append(path)

        with watched(self.module, see):
            self._call(image)
        outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
        more = f" and {len(outermost) - NAMED} more" if len(outermost) > NAMED else ""
        return f"Layers whose maps have places: {', '.join(outermost[-NAMED:]) or 'none: pass larger images'}{more}"

    def _vectors(self, output, count):
        return vectors_in(output, count, self._kind, "forward" if self._function else "module")

    def _check_name(self, layer):
        if layer not in (LAST, self.layer):
            raise ValueError(f"this Cut reads {self.layer!r}: for {layer!r} make Cut(module, layer={layer!r})")


def _with(readings, key, reading):
    """The newest readings with this one: another dict, since threads may go through the one that is there."""
    readings = dict(readings)
    readings.pop(key, None)
    if len(readings) == SIZES:
        del readings[next(iter(readings))]
    return readings | {key: reading}


class _FailsOnCopies(Exception):  # noqa: N818
    """The module fails on changed copies of an image that it takes."""


def _counts(gradient, features) -> bool:
    """Whether a gradient at a map is more than rounding."""
    return bool(gradient.norm() * features.norm() > SLOPE)
