"""Looking into any module: the output of a layer, going on from another one in its place, what every part gives.

Hooks stand on a module that other threads may run meanwhile: each acts in the thread that has set it alone.
"""

import copy
import threading
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

_lock = threading.Lock()  # torch numbers hooks without one: two of one number would be one
_set = set()  # numbers of the hooks that are set


class _Reached(BaseException):
    """The layer has been reached; the rest of the pass is not needed."""


class NotRun(ValueError):  # noqa: N818
    """A layer does not run."""


def read(run, layer: nn.Module, images):
    """What `layer` gives while `run(images)` runs, which goes no further. Raises NotRun where it does not get there."""

    def stop(module, inputs, output):
        raise _Reached(output)

    with hooked(layer, stop):
        try:
            run(images)
        except _Reached as reached:
            return reached.args[0]
    raise NotRun("the layer does not run")


def read_all(run, layer: nn.Module, images) -> tuple[list, object]:
    """Return what `layer` gives each time that it runs, and what `run(images)` gives in the end."""
    outputs = []

    def keep(module, inputs, output):
        outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)  # `run` may go on in place

    with hooked(layer, keep):
        result = run(images)
    return outputs, result


def pass_through(run, layer: nn.Module, images, replace) -> tuple[object, bool]:
    """What `run(images)` gives when replace(output) stands in the place of what `layer` gives, and whether gradients
    are recorded all the way from there as they are where this is called; in front of the layer they are not.

    A module that switches them off or on in a part around the layer ends that part as it began it: without them.
    """
    recording = torch.is_grad_enabled()

    def put(module, inputs, output):
        torch.set_grad_enabled(recording)
        return replace(output)

    with torch.no_grad(), hooked(layer, put):
        result = run(images)
        return result, torch.is_grad_enabled() == recording


def resume(run, layer: nn.Module, image, output):
    """What `run` gives when `output` stands in the place of what `layer` gives for `image`.

    Gradients are recorded behind the layer as they are where this is called, also where `run` stops that around the
    layer, as frozen backbones do.
    """
    recording = torch.is_grad_enabled()

    def replace(module, inputs, unused):
        torch.set_grad_enabled(recording)
        return output

    try:
        with hooked(layer, replace):
            return run(image)
    finally:
        torch.set_grad_enabled(recording)


@contextmanager
def hooked(module: nn.Module, function):
    """A forward hook, function(module, inputs, output), that is there for the block and for this thread alone."""
    thread = threading.get_ident()
    inside = True

    def in_this_thread(*call):
        if inside and threading.get_ident() == thread:
            return function(*call)
        return None

    with _lock:
        handle = module.register_forward_hook(in_this_thread)
        _set.add(handle.id)
    try:
        yield
    finally:
        inside = False  # a copy that a user has made of the module meanwhile keeps its hooks
        with _lock:
            handle.remove()
            _set.remove(handle.id)


@contextmanager
def watched(module: nn.Module, see):
    """Hooks on a module and all below it, for the block alone: see(path, module, inputs, output) after each has run."""
    with ExitStack() as hooks:
        for path, part in module.named_modules():
            hooks.enter_context(hooked(part, partial(see, path)))
        yield


def copy_without_hooks(module: nn.Module, shared=()) -> nn.Module:
    """Copy a module without the hooks that threads have set on it meanwhile. shared: its tensors that both keep."""
    with _lock:  # hooks that come and go would end the copying
        copied = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        for part in copied.modules():
            for number in _set & part._forward_hooks.keys():
                del part._forward_hooks[number]
    return copied


def example_of(image_size, count=2, channels=3) -> torch.Tensor:
    """Images of noise (count, channels, height, width) on the CPU, the same each time, to try a module with."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, *image_size, generator=generator, device="cpu")
    colours = torch.randn(count, channels, 1, 1, generator=generator, device="cpu")
    return noise + colours
