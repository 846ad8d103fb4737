"""From pairs of images to their explanation, by the method that `explanation.method` names."""

import math
from dataclasses import replace
from functools import partial

import torch

from ..config import AUTO, LAST, ExplanationSettings, Normalization
from ..device import deterministic_or_refused
from ..files import ExplanationError
from ..network.distance import Explainable, distances_of
from ..network.inputs import pairs_for
from ..network.variants import dilated
from .explanation import UNKNOWN, Explanation, Source, check_shown
from .gradient import FORMULAS, explain_by_gradient
from .occlusion import explain_by_occlusion
from .path import References, explain_by_contrast, explain_by_path

BY_PATH = ("integrated", "path_layercam", "contrastive")  # the methods that take steps
STEPS = 4  # where `steps: auto` was never measured
UNUSUAL = 20  # a value that normalised pixels hardly reach
BEYOND = 0.1  # of the range of normalised pixels, by which values may leave it
PAPER = {"method": "gradcam", "layer": LAST, "output_stride": 32}  # the settings of the paper's explanation


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
        settings: The keys of `explanation` in config.yml: method, layer, steps, output_stride; `auto` is the last layer
            and STEPS.

    Raises:
        ConfigError: A key, a value or a layer is unknown.
        ValueError: The network is a module without `Cut`.
        ExplanationError: The images cannot be explained, the map of the layer has only one place, or the maps are not
            finite.
    """
    settings = measured(ExplanationSettings().changed(**settings))
    _check_network(network)
    images = pairs_for(network, images)
    check_shown(images, source)
    with deterministic_or_refused():
        explanation = _by_method(network, images, threshold, references, settings)
    if not (explanation.towards_different.isfinite().all() and explanation.towards_same.isfinite().all()):
        raise ExplanationError("The maps are not finite: the values of the images or of the network are too large.")
    doubt = _doubts(images, source.normalization)
    return replace(
        explanation,
        method=settings.method,
        layer=_layer(network, settings),
        details=_details(settings),
        names=(),
        source=replace(source, warning=f"{source.warning} {doubt}".strip()),
    )


def methods_of(settings: ExplanationSettings) -> dict:
    """All methods by name: Grad-CAM at the last layer, as in the paper, then each at `explanation.layer`.

    Each is a function of (network, images, threshold, references) that explains as `explain` does.
    """
    settings = measured(settings)
    place = _place(settings)
    own = settings.model_dump(include={"layer", "output_stride", "steps"})
    methods = {"gradcam, last": partial(explain, **PAPER)}
    for name in (*FORMULAS, *BY_PATH):
        methods[f"{name}, {place}"] = partial(explain, method=name, **own)
    methods["occlusion"] = partial(explain, method="occlusion")
    return methods


def name_of(settings: ExplanationSettings) -> str:
    """The name, among those of `methods_of`, of the method of the settings."""
    settings = measured(settings)
    return "occlusion" if settings.method == "occlusion" else f"{settings.method}, {_place(settings)}"


def measured(settings: ExplanationSettings, layer=LAST, steps=STEPS) -> ExplanationSettings:
    """The settings with `auto` replaced by what was measured."""
    found = {"layer": layer} if settings.layer == AUTO else {}
    found |= {"steps": steps} if settings.steps == AUTO else {}
    return settings.changed(**found)


def _by_method(network, images, threshold, references, settings) -> Explanation:
    if settings.method == "occlusion":
        return explain_by_occlusion(network, images, threshold)
    if settings.output_stride == 32:
        return _by_layer(network, images, threshold, references, settings)
    distances = distances_of(network, images)  # score and decision stay the network's own
    finer = dilated(network, settings.output_stride)
    explanation = _by_layer(finer, images, threshold, references, settings, distances > threshold)
    return replace(explanation, distance=distances)


def _by_layer(network, images, threshold, references, settings, different=None) -> Explanation:
    place = settings.layer, settings.steps
    if settings.method == "contrastive":
        return explain_by_contrast(network, images, threshold, references, *place, different)
    if settings.method in FORMULAS:
        return explain_by_gradient(network, images, threshold, settings.layer, FORMULAS[settings.method])
    split = settings.method == "path_layercam"
    return explain_by_path(network, images, threshold, *place, split)


def _place(settings) -> str:
    """The layer as it stands in the names of methods."""
    return settings.layer if settings.output_stride == 32 else f"{settings.layer}, stride {settings.output_stride}"


def _layer(network, settings) -> str:
    """The name of the layer that is read, if one is."""
    if settings.method == "occlusion":
        return ""
    return network.layers[-1] if settings.layer == LAST else settings.layer


def _details(settings) -> str:
    """What else the maps depend on, in words."""
    if settings.method == "occlusion":
        return ""
    details = []
    if settings.output_stride != 32:
        details.append(f"output stride {settings.output_stride}")
    if settings.method in BY_PATH:
        details.append("1 step" if settings.steps == 1 else f"{settings.steps} steps")
    return ", ".join(details)


def _check_network(network):
    if not hasattr(network, "embed_features"):
        kind = type(network).__name__
        raise ValueError(f"{kind} cannot be read at a layer: pass Cut(module, layer=...), or a SiameseNetwork")


def _doubts(images, normalization: Normalization | None) -> str:
    """Why the values of images may not be those that the network takes, in words; "" where nothing tells so."""
    if not images.numel():
        return ""
    low, high = (value.item() for value in images.aminmax())
    if normalization is not None:
        black, white = -torch.tensor(normalization.mean), 1 - torch.tensor(normalization.mean)
        darkest, brightest = ((values / torch.tensor(normalization.std)) for values in (black, white))
        least, most = darkest.min().item(), brightest.max().item()
        slack = BEYOND * (most - least)
        if low < least - slack or high > most + slack:
            return (
                f"CAUTION: the images hold values from {low:.4g} to {high:.4g}, but pixels normalised by the "
                f"normalization that is given lie from {least:.4g} to {most:.4g}."
            )
    elif low >= 0 and (high > UNUSUAL or (high > 2 and torch.equal(images, images.round()))):
        count = images.shape[2]
        white = 255 if high <= 255 else math.ceil(high)
        return (
            f"CAUTION: the images hold values from {low:.4g} to {high:.4g}: most networks take normalised ones. If "
            f"this one takes them, say so by normalization=Normalization(mean=(0,) * {count}, "
            f"std=(1 / {white},) * {count})."
        )
    return ""
