"""Grad-CAM for a pair and its kin: evidence from one feature map and the gradient of the distance at it.

Each formula takes activations and gradients, float (N, C, h, w), to a map (N, h, w) of what raises the quantity that
the gradients are of. Given the negative gradients it maps what lowers it.
"""

import torch

from ..config import LAST
from ..network.distance import Explainable, distance, evaluating, paired, unit
from .explanation import Explanation, check_places, explained


def gradcam(activations, gradients):
    """Selvaraju et al. 2017, equations 1 and 2 without the ReLU: a channel's weight is its mean gradient."""
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1)


def gradcam_plus_plus(activations, gradients):
    """Weigh each channel by its positive gradients, each with a certainty of its own, and add up the channels.

    Equation 19 gives a place of gradient g the certainty g^2 / (2 g^2 + S g^3), where S is the sum of the channel's
    activations over all places: 1 / (2 + S g). Activations below 0, which the paper's networks do not have, can bring
    2 + S g near 0: weights are unsteady there.

    Args:
        activations: Float (N, C, h, w).
        gradients: Float (N, C, h, w), of the quantity at them.

    Returns:
        The map, (N, h, w).

    Source: Chattopadhay et al. 2018, Grad-CAM++, equations 10 and 19.
    """
    below = 2 + activations.sum(dim=(2, 3), keepdim=True) * gradients
    certainties = 1 / torch.where(below != 0, below, 1)
    weights = (certainties * gradients.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1)


def layercam(activations, gradients):
    """Jiang et al. 2021, equations 5 and 6: each activation times its own gradient where that is positive."""
    return (gradients.clamp(min=0) * activations).sum(dim=1)


def hirescam(activations, gradients):
    """Draelos and Carin 2020, section 3.2: each activation times its own gradient, never averaged over places."""
    return (gradients * activations).sum(dim=1)


FORMULAS = {"gradcam": gradcam, "gradcam++": gradcam_plus_plus, "layercam": layercam, "hirescam": hirescam}


def explain_by_gradient(network: Explainable, images, threshold: float, layer=LAST, formula=gradcam) -> Explanation:
    """Explain B pairs by one of the FORMULAS at a layer, each image with its own gradient.

    images: (B, 2, C, H, W), as the network takes them. All images go through the network once, in evaluation mode; only
    what stands behind `layer` is differentiated. Modes, parameters and their gradients stay as they were. Raises
    ConfigError or ValueError for an unknown layer.
    """
    with evaluating(network), torch.enable_grad():
        activations, vectors = network.features_and_vectors(images.flatten(0, 1), layer)  # (2B, C, h, w), (2B, D)
        check_places(network, layer, images.flatten(0, 1), activations)
        distances = distance(*paired(unit(vectors)).unbind(1))  # (B,)
        (gradients,) = torch.autograd.grad(distances.sum(), activations)
    distances = distances.detach()
    activations = activations.detach().to(distances.dtype)
    gradients = gradients.to(distances.dtype)
    different = paired(formula(activations, gradients))  # (B, 2, h, w)
    same = paired(formula(activations, -gradients))
    return explained(images, distances, threshold, different, same)
