"""Modules as users have them: which layers they have, what they take and what they return."""

import difflib
import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import nn

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # kinds of parameters


def name_of(module, layer) -> str:
    """The name of a layer, given as it or as itself, alone or in a list. Raises ValueError where there is none."""
    if isinstance(layer, list | tuple) and len(layer) == 1:
        (layer,) = layer
    names = {name: part for name, part in module.named_modules() if name}
    kind = type(module).__name__
    if isinstance(layer, nn.Module):
        for name, part in names.items():
            if part is layer:
                return name
        raise ValueError(f"layer: this {type(layer).__name__} is no part of {kind}: pass a part of the same module")
    if isinstance(layer, list | tuple):
        raise ValueError(f"layer: {len(layer)} layers are given: name one, and make a Cut for each other one")
    if layer not in names:
        near = difflib.get_close_matches(str(layer), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(list(names)[:20])}"
        raise ValueError(f"{kind} has no layer {layer!r}: {hint}")
    return layer


def check_compiled(module, layer):
    """Raises ValueError where a module around the layer was compiled by torch.jit: no hook sees what is inside."""
    for name, part in module.named_modules():
        around = not name or layer.startswith(f"{name}.")
        if around and isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{type(module).__name__} was compiled by torch.jit, which hides its layers: pass the module that it "
                "was made from, with the same weights"
            )


def check_inputs(module, forward):
    """Raises ValueError for a function that needs more than images."""
    function = module.forward if forward is None else forward
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C does not tell
        return
    needed = [one.name for one in parameters if one.default is one.empty and one.kind in (0, 1)]
    if len(needed) > 1:
        name = type(module).__name__ if forward is None else "forward"
        raise ValueError(
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}), but each image is embedded alone: pass "
            f"forward=, a function from images to embeddings. {other_functions(module)}"
        )


def other_functions(module) -> str:
    """The methods of a module that take one input, and its parts, in words; "" where there are none."""
    names = []
    for name, method in inspect.getmembers(type(module), inspect.isfunction):
        if name.startswith("_") or hasattr(nn.Module, name) or method.__module__.startswith("torch."):
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        others_have_defaults = all(one.default is not one.empty or one.kind in VARIABLE for one in parameters[1:])
        if parameters and _may_be_images(parameters[0]) and others_have_defaults:
            names.append(name)
    if names:
        return f"Its methods that take images, perhaps: {', '.join(f'module.{name}' for name in names)}"
    return f"Its parts: {', '.join(name for name, _ in module.named_children())}"


def _may_be_images(parameter):
    """Whether a parameter is written as a tensor, or as nothing that it could not be."""
    if parameter.annotation is parameter.empty:
        return parameter.default is parameter.empty and parameter.kind not in VARIABLE
    return "Tensor" in str(parameter.annotation)


def vectors_in(output, count: int, kind: str, function: str) -> torch.Tensor:
    """Return the embeddings in what a module returns.

    Args:
        output: A tensor (N, D), (N, D, 1, 1) or, of one image, (D,); alone or in a tuple, list, dict or object.
        count: How many images went in.
        kind: The name of the module's class, for errors.
        function: What returned the output, for errors: "module", or "forward" of a Cut.

    Returns:
        Float32 or longer (count, D).

    Raises:
        ValueError: There are several tensors or none, one number an image, or no row for each image.
    """
    tensors = dict(_tensors_in(output))
    if len(tensors) != 1:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in tensors.items())
        raise ValueError(
            f"{kind} returns {len(tensors)} tensors: pass forward=, a function that returns the embedding alone, say "
            f"lambda images: {function}(images){_likely(tensors, count)}{f'. They are {shapes}' if shapes else ''}"
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


def _likely(tensors, count) -> str:
    """The name of what may be the embedding, the last tensor (N, D); of the first one where there is none."""
    names = [name for name, part in tensors.items() if part.dim() == 2 and len(part) == count < part.numel()]
    return names[-1] if names else next(iter(tensors), "[0]")


def _tensors_in(output, name="") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an output and how each is named in code: itself, or those in a tuple, list, dict or object."""
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
