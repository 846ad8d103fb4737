"""The layers of a module: each is found by its name, measured, read and replaced as a feature map."""

import difflib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .distance import place_of, unit
from .hooks import hooked, watched
from .places import Layout, PlacesError, changed, close, likely_layout, measure_layout

NAMED = 12  # layers, the last ones, in an error


class FailsError(ValueError):
    """The module fails on images."""


class _Reached(BaseException):
    """The layer has been reached; the rest of the pass is not needed."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How maps of a layer are read and replaced."""

    name: str
    """Of the layer, in `named_modules`."""
    layout: Layout
    """Of its output."""
    image: torch.Tensor
    """(1, C, H, W): what runs through the layers in front while maps are put in the place of theirs."""
    repeated: bool
    """Whether it must run as often as there are maps, for a module that counts its images."""


class Layers:
    """The layers of a module, read and replaced as feature maps while it runs.

    Hooks are there for one call and one thread only; weights, gradients, modes and hooks of the module do not change.

    Args:
        module: The module; its submodules are the layers.
        run: Function from images (N, C, H, W) to what the module makes of them.
        vectors: Function from what `run` returns, and the number of images, to vectors, float (N, D).
    """

    def __init__(self, module: nn.Module, run, vectors):
        self.module = module
        self.run = run
        self.vectors = vectors
        self.kind = type(module).__name__  # for errors

    def find(self, layer: str | nn.Module) -> str:
        """Return the name in `named_modules` of a layer, given by its name or as itself.

        Raises:
            ValueError: The module has no such layer.
        """
        parts = dict(self.module.named_modules())
        del parts[""]
        for name, part in parts.items():
            if part is not layer and name != layer:
                continue
            if isinstance(part, torch.jit.ScriptModule):
                raise ValueError(
                    f"{self.kind} was compiled by torch.jit, which hides its layers: pass the module that it was made "
                    "from, with the same weights"
                )
            return name
        if isinstance(layer, nn.Module):
            raise ValueError(
                f"layer: this {type(layer).__name__} is no part of {self.kind}: pass a part of the same module"
            )
        hint = f"it has {', '.join(list(parts)[:20])}"
        for near in difflib.get_close_matches(str(layer), parts, n=1):
            hint = f"did you mean {near!r}?"
        raise ValueError(f"{self.kind} has no layer {layer!r}: {hint}")

    def __call__(self, images) -> torch.Tensor:
        """Return the vectors (N, D) of images (N, C, H, W).

        Raises:
            FailsError: The module fails on them.
        """
        return self.vectors(self._run(images), len(images))

    def output(self, name, images):
        """Return what a layer gives for images. The module runs no further than this layer."""

        def stop(module, inputs, output):
            raise _Reached(output)

        with self.hooked(name, stop):
            try:
                self._run(images)
            except _Reached as reached:
                return reached.args[0]
        raise self._runs(name, 0)

    def read(self, reading, images) -> torch.Tensor:
        """Return the feature map of images at a layer, (N, channels, h, w)."""
        return reading.layout.to_map(self.output(reading.name, images))

    def read_with_vectors(self, reading, images) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the feature map of images at a layer and their vectors.

        Raises:
            ValueError: The layer runs more or less than once.
        """
        outputs = []

        def keep(module, inputs, output):
            outputs.append(output.clone())  # the module may go on in place

        with self.hooked(reading.name, keep):
            vectors = self(images)
        if len(outputs) != 1:
            raise self._runs(reading.name, len(outputs))
        return reading.layout.to_map(outputs[0]), vectors

    def resume(self, reading, features) -> torch.Tensor:
        """Return the vectors (N, D) that the module makes of feature maps (N, channels, h, w) at a layer.

        Gradients are recorded behind the layer as they are where this is called, also where the module stops that
        around the layer, as frozen backbones do.
        """
        vectors, _ = self.resume_through(reading, features, ())
        return vectors

    def resume_through(self, reading, features, later) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and the maps of later layers on the way, which gradients flow through.

        later: Readings of these layers, in the order in which they run.
        """
        recording = torch.is_grad_enabled()
        output = reading.layout.to_output(features.clone())  # the module may go on in place
        images = reading.image.to(features.device)
        if reading.repeated:
            images = images.expand(len(features), -1, -1, -1)

        def replace(module, inputs, unused):
            torch.set_grad_enabled(recording)
            return output

        maps = []

        def pass_through(layout, module, inputs, given):
            maps.append(layout.to_map(given))
            return layout.to_output(maps[-1].clone())  # the module may go on in place

        try:
            with ExitStack() as hooks:
                hooks.enter_context(self.hooked(reading.name, replace))
                for behind in later:
                    hooks.enter_context(self.hooked(behind.name, partial(pass_through, behind.layout)))
                result = self._run(images)
        finally:
            torch.set_grad_enabled(recording)
        return self.vectors(result, len(features)), maps

    @torch.no_grad()
    def measure(self, name, image, layout=None) -> Reading:
        """Measure how maps of a layer are read and replaced; the module is in evaluation mode.

        Args:
            name: Of the layer, as `find` returns it.
            image: (1, C, H, W), not of one colour.
            layout: Of the layer's output; None where it is to be measured.

        Raises:
            FailsError: The module fails on changed copies of the image.
            ValueError: The layer runs more or less than once, has no places that can be measured, or other layers go
                around it; or the module returns vectors that are not finite, or others at each call.
        """
        layer = f"layer {name!r} of {self.kind}"
        both = torch.cat([image, changed(image)])
        embeddings = unit(self(both))
        if not embeddings.isfinite().all():
            raise ValueError(f"{self.kind} gives embeddings that are not finite, or all zeros")
        if not close(embeddings, unit(self(both)), image.dtype):
            raise ValueError(
                f"{self.kind} is random at each call: the same images gave other embeddings, in evaluation mode. "
                "Dropout as a function needs training=self.training"
            )
        if layout is None:
            try:
                layout = measure_layout(partial(self.output, name), image)
            except PlacesError as error:
                raise ValueError(f"{layer} {error}. {self._with_places(name, image)}") from error
        for repeated in (False, True):
            reading = Reading(name, layout, image, repeated)
            features, _ = self.read_with_vectors(reading, both)
            try:
                resumed = self.resume(reading, features)
            except ValueError:  # the module counts its images
                continue
            if close(embeddings, unit(resumed), features.dtype):
                return reading
        raise ValueError(
            f"{layer} is not all that the embedding depends on: other layers go around it. Name one behind the place "
            "where they meet."
        )

    def hooked(self, name, function):
        """Set a forward hook on a layer, for a block and for this thread only."""
        return hooked(self.module.get_submodule(name), function)

    def _run(self, images):
        try:
            return self.run(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a module of the user's raises
            low, high = images.aminmax()
            shape = f"images {tuple(images.shape)} of {images.dtype}, values from {low:.4g} to {high:.4g}"
            cause = str(error).partition("\n")[0]
            hint = "It is called with images only: a Cut takes another function of images as forward="
            place = place_of(self.module)
            if place and place[1] != images.dtype:
                hint = f"Its weights are {place[1]}: pass images.to({place[1]})"
            raise FailsError(f"{self.kind} fails on {shape}: {type(error).__name__}: {cause}. {hint}") from error

    def _runs(self, name, count) -> ValueError:
        hint = ""
        if count == 0:
            hint = ", of this module itself: forward= may call a copy"
        return ValueError(f"layer {name!r} of {self.kind} runs {count} times: name one that runs once{hint}")

    def _with_places(self, name, image) -> str:
        """Name the outermost layers whose output has the shape of a map of several places, in the order they run."""
        paths = []

        def see(path, module, inputs, output):
            layout = likely_layout(output, image.shape[2:], self.module)
            if path not in ("", name, *paths) and layout is not None and layout.grid != (1, 1):
                paths.append(path)

        with watched(self.module, see):
            self._run(image)
        outermost = [path for path in paths if not any(path.startswith(f"{around}.") for around in paths)]
        named = ", ".join(outermost[-NAMED:]) or "none: pass larger images"
        return f"Layers whose maps have places: {named}"
