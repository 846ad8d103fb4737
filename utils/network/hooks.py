"""Reading the output of a layer of any module, and going on from another one in its place."""

from contextlib import contextmanager

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
