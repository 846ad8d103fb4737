"""Hooks on modules that other threads may run at the same time: each acts only in the thread that has set it."""

import copy
import threading
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn

_lock = threading.Lock()  # torch numbers hooks without one: two of one number would be one
_set = set()  # numbers of the hooks that are set


@contextmanager
def hooked(module: nn.Module, function):
    """Set a forward hook, function(module, inputs, output), for the block and for this thread only."""
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
    """Call see(path, module, inputs, output) after each run of a module and of all below it, for the block only."""
    with ExitStack() as hooks:
        for path, part in module.named_modules():
            hooks.enter_context(hooked(part, partial(see, path)))
        yield


def copy_without_hooks(module: nn.Module, shared=()) -> nn.Module:
    """Copy a module without the hooks that threads have set on it meanwhile. shared: tensors that are not copied."""
    memo = {id(tensor): tensor for tensor in shared}
    with _lock:  # hooks that come and go would end the copying
        copied = copy.deepcopy(module, memo)
        for part in copied.modules():
            for number in _set & part._forward_hooks.keys():
                del part._forward_hooks[number]
    return copied
