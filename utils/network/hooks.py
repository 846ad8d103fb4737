"""Looking into any module: the output of a layer, going on from another one in its place, what every part gives."""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn


class _Reached(Exception):  # noqa: N818 - no error: it ends a pass early
    """The layer has been reached; the rest of the pass is not needed."""


def read(run, layer: nn.Module, images):
    """What `layer` gives while `run(images)` runs, which goes no further."""

    def stop(module, inputs, output):
        raise _Reached(output)

    with hooked(layer, stop):
        try:
            run(images)
        except _Reached as reached:
            return reached.args[0]
    raise ValueError("the layer does not run")


def resume(run, layer: nn.Module, blank, output):
    """What `run` gives when `output` stands in the place of what `layer` gives for the `blank` image."""
    recording = torch.is_grad_enabled()

    def replace(module, inputs, unused):
        torch.set_grad_enabled(recording)  # of what comes before the layer no gradient is needed
        return output

    with torch.no_grad(), hooked(layer, replace):
        return run(blank)


@contextmanager
def hooked(module: nn.Module, function):
    """A forward hook that is there for the block alone."""
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched(module: nn.Module, see):
    """Hooks on a module and all below it, for the block alone: see(path, module, inputs, output) after each has run."""
    with ExitStack() as hooks:
        for path, part in module.named_modules():
            hooks.enter_context(hooked(part, partial(see, path)))
        yield


def example_of(image_size, count=2) -> torch.Tensor:
    """Images of noise (count, 3, height, width) on the CPU, the same each time, to try a module with."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, *image_size, generator=generator, device="cpu")
    colours = torch.randn(count, 3, 1, 1, generator=generator, device="cpu")
    return noise + colours
