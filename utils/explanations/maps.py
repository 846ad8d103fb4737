"""Maps of evidence: what a method is asked, and the methods.

Most explain by the gradient of a target at the feature map of a layer. Such a method is a formula, the feature maps at
which gradients are taken (`at_layer` or `along_path`), and a target. A formula takes activations and gradients, float
(N, C, h, w), to a map (N, h, w) of what raises the target; with the opposite gradients it maps what lowers it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import LAST, MORE
from ..files import ExplanationError
from ..network.distance import (
    Explainable,
    blurred,
    distance,
    embed_pairs,
    evaluating,
    paired,
    project_through,
    unit,
)
from .explanation import Explanation
from .references import References

GRID = 7  # windows of occlusion along each side
WINDOW = 0.3  # of each side


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that a method may use. A method is a function of a Task that returns an Explanation."""

    network: Explainable
    images: torch.Tensor
    """Float (B, 2, C, H, W), as the network takes them."""
    threshold: float
    """Distance up to which a pair is decided "same"."""
    references: References | None = None
    layer: str = LAST
    """The layer whose feature map is read."""
    steps: int = 1
    """Steps of an integral along a path."""
    decisions: torch.Tensor | None = None
    """Bool (B,), True for "different", where another network than this one decides."""

    def different(self, distances) -> torch.Tensor:
        """Return the decisions on pairs of these distances (B,): bool (B,), True for "different"."""
        return distances > self.threshold if self.decisions is None else self.decisions


def explained(images, distances, threshold: float, different, same, completeness=None) -> Explanation:
    """Make an Explanation of coarse maps, enlarged to the size of the images; what is negative counts as 0.

    Args:
        images: (B, 2, C, H, W).
        distances: (B,).
        threshold: Distance up to which a pair is decided "same".
        different: Evidence towards "different", (B, 2, h, w).
        same: Evidence towards "same", (B, 2, h, w).
        completeness: (B, 2), as an Explanation has it.
    """
    size = images.shape[-2:]
    different = F.interpolate(different, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    same = F.interpolate(same, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    return Explanation(images, distances, threshold, different, same, completeness=completeness)


def gradcam(activations, gradients):
    """Weigh each channel by its mean gradient.

    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2 without the ReLU.
    """
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1)


def gradcam_plus_plus(activations, gradients):
    """Weigh each channel by its positive gradients, each with a certainty of its own.

    Equation 19 gives a place of gradient g the certainty g^2 / (2 g^2 + S g^3), where S is the sum of the channel's
    activations over all places: 1 / (2 + S g). Activations below 0, which the paper's networks do not have, can bring
    2 + S g near 0: weights are unsteady there.

    Source: Chattopadhay et al. 2018, Grad-CAM++, equations 10 and 19.
    """
    below = 2 + activations.sum(dim=(2, 3), keepdim=True) * gradients
    certainties = 1 / torch.where(below != 0, below, 1)
    weights = (certainties * gradients.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1)


def layercam(activations, gradients):
    """Weigh each activation by its own gradient where that is positive.

    Source: Jiang et al. 2021, LayerCAM, equations 5 and 6.
    """
    return (gradients.clamp(min=0) * activations).sum(dim=1)


def hirescam(activations, gradients):
    """Weigh each activation by its own gradient.

    Source: Draelos and Carin 2020, HiResCAM, section 3.2.
    """
    return (gradients * activations).sum(dim=1)


def at_layer(formula, task: Task) -> Explanation:
    """Explain by a formula of the feature maps of the images and of the gradient of the distance at them.

    All images go through the network once, in evaluation mode; only what stands behind the layer is differentiated.
    """
    images = task.images.flatten(0, 1)
    with evaluating(task.network), torch.enable_grad():
        activations, vectors = task.network.features_and_vectors(images, task.layer)  # (2B, C, h, w), (2B, D)
        distances = distance(*paired(unit(vectors)).unbind(1))  # (B,)
        (gradients,) = torch.autograd.grad(distances.sum(), activations)
    distances = distances.detach()
    activations = activations.detach().to(distances.dtype)
    gradients = gradients.to(distances.dtype)
    different = paired(formula(activations, gradients))  # (B, 2, h, w)
    same = paired(formula(activations, -gradients))
    return explained(task.images, distances, task.threshold, different, same)


@torch.no_grad()
def along_path(formula, target, task: Task) -> Explanation:
    """Explain by a formula of what the activations gain on a path, and of the mean gradient of a target on it.

    The path is the straight one from the feature map of the blurred image to that of the image. The mean gradient is
    taken by the midpoint rule in `task.steps` steps. Gains times mean gradients add up to the change of the target, but
    for an error that shrinks with the steps.

    Later layers that `task.layer` names too (MORE) are read in the same passes: their gains are from the map of the
    blurred image to that of the image. The map of each layer is brought to the size and the root mean square of the
    first one, which keeps its signs, and all are averaged.

    Args:
        formula: As the module has it.
        target: A function of the task and of the images' vectors (B, 2, D), before they are brought to length 1. It
            returns a function from vectors (B, 2, D) on the path to one number for each image, (B, 2).
        task: What is explained.

    Source: Sundararajan et al. 2017, Axiomatic Attribution, equation 1.
    """
    network, layer, steps = task.network, task.layer, task.steps
    images = task.images.flatten(0, 1)  # (2B, C, H, W)
    with evaluating(network):
        features, vectors = network.features_and_vectors(torch.cat([blurred(images), images]), layer)
        maps = [features]  # (4B, C, h, w) of each layer
        if layer.endswith(MORE):
            maps += project_through(network, features, layer)[1]
        starts, ends = features.chunk(2)  # (2B, C, h, w)
        vectors_at_start, vectors = paired(vectors).chunk(2)  # (B, 2, D), float32 or longer
        quantity = target(task, vectors)
        gains = []
        for both in maps:
            start, end = both.to(vectors.dtype).chunk(2)
            gains.append(end - start)
        gradients = [torch.zeros_like(gain) for gain in gains]
        for step in range(steps):
            with torch.enable_grad():
                between = torch.lerp(starts, ends, (step + 0.5) / steps).requires_grad_()
                projected, later = project_through(network, between, layer)
                slopes = torch.autograd.grad(quantity(paired(projected)).sum(), [between, *later])
            for gradient, slope in zip(gradients, slopes, strict=True):
                gradient += slope.to(gradient.dtype) / steps
    different = []
    same = []
    for gain, gradient in zip(gains, gradients, strict=True):
        different.append(formula(gain, gradient))  # (2B, h, w)
        same.append(formula(gain, -gradient))
    total = paired(gains[0] * gradients[0]).flatten(1).sum(dim=1)  # (B,)
    change = (quantity(vectors) - quantity(vectors_at_start)).sum(dim=1)
    completeness = torch.stack([total, change], dim=1)
    distances = distance(*unit(vectors).unbind(1))
    evidence = paired(_averaged(different)), paired(_averaged(same))  # (B, 2, h, w) each
    return explained(task.images, distances, task.threshold, *evidence, completeness)


def _averaged(layers) -> torch.Tensor:
    """Average maps (N, h, w) of several layers, each brought to the size and root mean square of the first."""
    first = layers[0]
    strength = _strength(first)
    total = first
    for maps in layers[1:]:
        scaled = maps * strength / _strength(maps).clamp(min=torch.finfo(maps.dtype).tiny)
        total = total + F.interpolate(scaled[:, None], size=first.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return total / len(layers)


def _strength(maps):
    """The root mean square of maps (N, h, w): (N, 1, 1)."""
    return maps.square().mean(dim=(1, 2), keepdim=True).sqrt()


def to_other(task: Task, vectors):
    """Target: the distance of each image to the other one, which is held fixed."""
    others = unit(vectors).flip(1)

    def quantity(between):
        return distance(unit(between), others)

    return quantity


def contrast(task: Task, vectors):
    """Target: how much more an image is like itself, or like the references, than like the other image.

    For an image of embedding e beside one of embedding o, the target is <e, e* - o> if the pair is decided "different",
    where e* is e itself, held fixed, and <e, c - o> if "same", where c is the mean embedding of the references, 0
    without them. Unlike the distance, it has a slope where both embeddings are equal. On the path the vector is divided
    by its length at the end, not by its own: short ones would have steep slopes.

    Raises:
        ExplanationError: The references are those of another network.

    Source: after Lin et al. 2023, COCOA, section 3.
    """
    embeddings = unit(vectors)
    centre = torch.zeros_like(embeddings)
    if task.references is not None:
        dimensions = task.references.embeddings.shape[1]
        if dimensions != embeddings.shape[2]:
            raise ExplanationError(
                f"references: embeddings of {dimensions} dimensions, but those of the network have "
                f"{embeddings.shape[2]}: pass embed_references(network, images) of this network"
            )
        centre = task.references.centre.to(embeddings)
    different = task.different(distance(*embeddings.unbind(1)))
    direction = torch.where(different[:, None, None], embeddings, centre) - embeddings.flip(1)  # (B, 2, D)
    lengths = vectors.norm(dim=2)

    def quantity(between):
        return (between * direction).sum(dim=2) / lengths

    return quantity


@torch.no_grad()
def occlusion(task: Task) -> Explanation:
    """Explain by what blurring windows on a 7x7 grid takes from the distance, the other image as it is.

    The windows of a row lie evenly from border to border and overlap. The evidence of a pixel is the mean over its
    windows. A pair takes 98 passes of the network.

    Source: after Zeiler and Fergus 2014, Visualizing Convolutional Networks, section 4.2.
    """
    images = task.images
    height, width = images.shape[-2:]
    tall, wide = round(WINDOW * height), round(WINDOW * width)
    hidden = blurred(images)
    with evaluating(task.network):
        embeddings = embed_pairs(task.network, images)  # (B, 2, D)
        partners = embeddings.flip(1)
        distances = distance(*embeddings.unbind(1))  # (B,)
        evidence = distances.new_zeros(len(images), 2, height, width)
        windows = distances.new_zeros(height, width)  # how many each pixel lies in
        for row in range(GRID):
            for column in range(GRID):
                top = round(row * (height - tall) / (GRID - 1))
                left = round(column * (width - wide) / (GRID - 1))
                window = (..., slice(top, top + tall), slice(left, left + wide))
                changed = images.clone()
                changed[window] = hidden[window]
                without = distance(embed_pairs(task.network, changed), partners)  # (B, 2): in image 1, in image 2
                evidence[window] += (distances[:, None] - without)[:, :, None, None]
                windows[window] += 1
    evidence = evidence / windows.clamp(min=1)
    return explained(images, distances, task.threshold, evidence, -evidence)
