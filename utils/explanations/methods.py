"""From pairs of images to their explanation, by the method that `explanation.method` in config.yml names.

To add a method: write its formula in `maps.py`, or any function from a `Task` to an `Explanation`; add a row to
METHODS, its name to `Method` in config.py and to the comment in config.yml, and a line to the table in README.md. A
test then asks for its equation in loops, in tests/formulas/test_gradient_maps.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..config import AUTO, LAST, MORE, ExplanationSettings, Normalization
from ..device import deterministic_or_refused
from ..files import ExplanationError
from ..network.distance import Explainable, distances_of, pairs_for, path_layer
from . import maps, paths
from .explanation import UNKNOWN, Explanation, Source, check_shown
from .maps import Task
from .references import References

PAPER = {"method": "gradcam", "layer": LAST, "output_stride": 32}  # the settings of the paper's explanation
UNUSUAL = 20  # a value that normalised pixels hardly reach
BEYOND = 0.1  # of the range of normalised pixels, by which values may leave it


@dataclass(frozen=True)
class Recipe:
    """How a method of explanation is computed."""

    explain: Callable[[Task], Explanation]
    reads_layer: bool = True
    takes_steps: bool = False
    reads_several: bool = False
    """Whether it reads later layers too, where the name of the layer ends in MORE."""


METHODS = {
    "gradcam": Recipe(partial(maps.at_layer, maps.gradcam)),
    "gradcam++": Recipe(partial(maps.at_layer, maps.gradcam_plus_plus)),
    "layercam": Recipe(partial(maps.at_layer, maps.layercam)),
    "hirescam": Recipe(partial(maps.at_layer, maps.hirescam)),
    "integrated": Recipe(partial(paths.along_path, maps.hirescam, paths.to_other), takes_steps=True),
    "path_layercam": Recipe(partial(paths.along_path, maps.layercam, paths.to_other), takes_steps=True),
    "contrastive": Recipe(
        partial(paths.along_path, maps.hirescam, paths.contrast), takes_steps=True, reads_several=True
    ),
    "thorough": Recipe(paths.thorough, reads_several=True),
    "occlusion": Recipe(maps.occlusion, reads_layer=False),
}


def explain(
    network: Explainable,
    images,
    threshold: float,
    references: References | None = None,
    source: Source = UNKNOWN,
    **settings,
) -> Explanation:
    """Explain B pairs of images.

    Args:
        network: A SiameseNetwork, or any module in a `Cut`.
        images: Float (B, 2, C, H, W), as the network takes them; a tensor, an array or a list of pairs.
        threshold: Distance in [0, 2] up to which a pair is decided "same".
        references: Training images that the method `contrastive` contrasts with.
        source: What is known of the pairs beside their values; a doubt about the values is added to its warning.
        settings: The keys of `explanation` in config.yml: method, layer, steps, output_stride. The layer `auto` is the
            last one or, for methods that read several, the path of `path_layer`.

    Raises:
        ConfigError: A key, a value or a layer is unknown.
        ValueError: The network is a module without `Cut`.
        ExplanationError: The images cannot be explained, the map of the layer has only one place, or the maps are not
            finite.
    """
    settings = ExplanationSettings().changed(**settings)
    if not hasattr(network, "project_features"):
        kind = type(network).__name__
        raise ValueError(f"{kind} cannot be read at a layer: pass Cut(module, layer=...), or a SiameseNetwork")
    settings = replace_auto(settings, network)
    method = METHODS[settings.method]
    images = pairs_for(network, images)
    check_shown(images, source)
    task = Task(network, images, threshold, references, settings.layer, settings.steps)
    with deterministic_or_refused():
        if method.reads_layer and settings.output_stride != 32:
            explanation = _explain_finer(method, task, settings.output_stride)
        else:
            explanation = method.explain(task)
    if not (explanation.towards_different.isfinite().all() and explanation.towards_same.isfinite().all()):
        raise ExplanationError("The maps are not finite: the values of the images or of the network are too large.")
    layer = ""
    details = []
    if method.reads_layer:
        layer = network.layers[-1] if settings.layer == LAST else settings.layer
        if settings.output_stride != 32:
            details.append(f"output stride {settings.output_stride}")
    if method.takes_steps:
        details.append("1 step" if settings.steps == 1 else f"{settings.steps} steps")
    return replace(
        explanation,
        method=settings.method,
        layer=layer,
        details=", ".join(details),
        names=(),
        source=replace(source, warning=f"{source.warning} {_doubt(images, source.normalization)}".strip()),
    )


def methods_of(settings: ExplanationSettings) -> dict:
    """Return all methods by name: Grad-CAM at the last layer, as in the paper, then each at `explanation.layer`.

    Each is a function of (network, images, threshold, references, source) that explains as `explain` does.
    """
    methods = {"gradcam, last": partial(explain, **PAPER)}
    for name in METHODS:
        own = replace_auto(settings.changed(method=name))
        methods[name_of(own)] = partial(explain, **own.model_dump())
    return methods


def name_of(settings: ExplanationSettings) -> str:
    """Return the name, among those of `methods_of`, of the method of the settings."""
    settings = replace_auto(settings)
    if not METHODS[settings.method].reads_layer:
        return settings.method
    name = f"{settings.method}, {settings.layer}"
    if settings.output_stride != 32:
        name += f", stride {settings.output_stride}"
    return name


def replace_auto(settings: ExplanationSettings, network: Explainable | None = None) -> ExplanationSettings:
    """Return the settings with a layer in place of `auto`.

    That is the path through several layers of the network, or the last layer where the method or the output stride
    allows no such path. A method that reads one layer takes the first one of several (MORE) that are named.
    """
    reads_several = METHODS[settings.method].reads_several
    if settings.layer == AUTO:
        layer = LAST
        if reads_several and settings.output_stride == 32 and network is not None:
            layer = path_layer(network)
        settings = settings.changed(layer=layer)
    if not reads_several:
        settings = settings.changed(layer=settings.layer.removesuffix(MORE))
    return settings


def _explain_finer(method, task, stride):
    """Explain by the network with dilated convolutions; score and decision stay those of the network itself."""
    from ..network.variants import dilated  # loads timm

    distances = distances_of(task.network, task.images)
    finer = dilated(task.network, stride)
    explanation = method.explain(replace(task, network=finer, decisions=distances > task.threshold))
    return replace(explanation, distance=distances)


def _doubt(images, normalization: Normalization | None) -> str:
    """Return why the values of images may not be those that the network takes, in words; "" without a doubt."""
    if not images.numel():
        return ""
    low, high = images.min().item(), images.max().item()
    held = f"CAUTION: the images hold values from {low:.4g} to {high:.4g}"
    if normalization is not None:
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        least = (-mean / std).min().item()  # of black
        most = ((1 - mean) / std).max().item()  # of white
        slack = BEYOND * (most - least)
        if low >= least - slack and high <= most + slack:
            return ""
        return f"{held}, but pixels normalised by the normalization that is given lie from {least:.4g} to {most:.4g}."
    of_pixels = high > UNUSUAL or (high > 2 and torch.equal(images, images.round()))
    if low < 0 or not of_pixels:
        return ""
    count = images.shape[2]
    white = 255 if high <= 255 else math.ceil(high)
    return (
        f"{held}: most networks take normalised ones. If this one takes them, say so by source=Source(normalization="
        f"Normalization(mean=(0,) * {count}, std=(1 / {white},) * {count}))."
    )
