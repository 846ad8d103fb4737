"""Maps of evidence: what a method is asked, and the methods.

Most explain by the gradient of a target at the feature map of a layer. Such a method is a formula, the feature maps at
which gradients are taken (`at_layer` here, or those of `paths.py`), and a target. A formula takes activations and
gradients, float (N, C, h, w), to a map (N, h, w) of what raises the target; with the opposite gradients it maps what
lowers it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import LAST
from ..network.distance import (
    Explainable,
    blurred,
    distance,
    embed_pairs,
    evaluating,
    paired,
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
def occlusion(task: Task) -> Explanation:
    """Explain by what blurring windows on a 7x7 grid takes from the distance, the other image as it is.

    The windows of a row lie evenly from border to border and overlap. The evidence of a pixel is the mean over its
    windows. A pair takes 98 passes of the network.

    Source: after Zeiler and Fergus 2014, Visualizing Convolutional Networks, section 4.2.
    """
    images = task.images
    with evaluating(task.network):
        embeddings = embed_pairs(task.network, images)  # (B, 2, D)
        without = distances_without_windows(task.network, images, embeddings)  # (B, 2, 49)
    distances = distance(*embeddings.unbind(1))  # (B,)
    changes = distances[:, None, None] - without
    evidence = distances.new_zeros(len(images), 2, *images.shape[-2:])
    windows = distances.new_zeros(images.shape[-2:])  # how many each pixel lies in
    for number, (top, left, bottom, right) in enumerate(windows_of(images)):
        evidence[..., top:bottom, left:right] += changes[..., number, None, None]
        windows[top:bottom, left:right] += 1
    evidence = evidence / windows.clamp(min=1)
    return explained(images, distances, task.threshold, evidence, -evidence)


def windows_of(images) -> list[tuple[int, int, int, int]]:
    """Return top, left, bottom and right end in pixels of the GRID x GRID windows of images (..., H, W), row by row."""
    height, width = images.shape[-2:]
    tall, wide = round(WINDOW * height), round(WINDOW * width)
    windows = []
    for row in range(GRID):
        top = round(row * (height - tall) / (GRID - 1))
        for column in range(GRID):
            left = round(column * (width - wide) / (GRID - 1))
            windows.append((top, left, top + tall, left + wide))
    return windows


def distances_without_windows(network: Explainable, images, embeddings) -> torch.Tensor:
    """Return the distances of pairs with each of the windows blurred, in image 1 and in image 2: (B, 2, windows).

    Args:
        network: In evaluation mode.
        images: (B, 2, C, H, W).
        embeddings: Of these images, (B, 2, D).
    """
    partners = embeddings.flip(1)
    hidden = blurred(images)
    distances = []
    for top, left, bottom, right in windows_of(images):
        window = (..., slice(top, bottom), slice(left, right))
        changed = images.clone()
        changed[window] = hidden[window]
        distances.append(distance(embed_pairs(network, changed), partners))
    return torch.stack(distances, dim=-1)
