"""Grad-CAM for a pair and its kin: evidence from one feature map and the gradient of the distance at it.

Each formula takes activations and gradients, float (N, C, h, w), to a map (N, h, w) of what raises the quantity that
the gradients are of. Given the negative gradients it maps what lowers it.
"""

import torch

from utils.explanation import Explanation, explained, stacked
from utils.siamese import SiameseNetwork, distance, evaluating


def gradcam(activations, gradients):
    """Selvaraju et al. 2017, equations 1 and 2 without the ReLU: a channel's weight is its mean gradient."""
    return (gradients.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1)


def gradcam_plus_plus(activations, gradients):
    """Chattopadhay et al. 2018, equations 10 and 19: the mean of positive gradients, weighted by their certainty."""
    squares, cubes = gradients.square(), gradients**3
    below = 2 * squares + (activations * cubes).sum(dim=(2, 3), keepdim=True)
    alphas = squares / torch.where(below != 0, below, 1)
    return ((alphas * gradients.clamp(min=0)).sum(dim=(2, 3), keepdim=True) * activations).sum(dim=1)


def layercam(activations, gradients):
    """Jiang et al. 2021, equations 5 and 6: each activation times its own gradient where that is positive."""
    return (gradients.clamp(min=0) * activations).sum(dim=1)


def hirescam(activations, gradients):
    """Draelos and Carin 2020, section 3.2: each activation times its own gradient, never averaged over places."""
    return (gradients * activations).sum(dim=1)


FORMULAS = {"gradcam": gradcam, "gradcam++": gradcam_plus_plus, "layercam": layercam, "hirescam": hirescam}


def explain_by_gradient(
    network: SiameseNetwork, images1, images2, threshold: float, layer="last", formula=gradcam
) -> Explanation:
    """Explain B pairs by one of the FORMULAS at a stage of the backbone, each branch with its own gradient.

    images1, images2: (B, 3, H, W), as the network takes them. All images go through the network once, in evaluation
    mode; only the stages behind `layer` are differentiated. Modes, parameters and their gradients stay as they were.
    Raises ConfigError for an unknown layer, ValueError for images of different shapes.
    """
    images = stacked(images1, images2)
    with evaluating(network):
        with torch.no_grad():
            activations = network.features(images, layer)  # (2B, C, h, w)
        with torch.enable_grad():
            distances = distance(*network.embed_features(activations.requires_grad_(), layer).chunk(2))  # (B,)
            (gradients,) = torch.autograd.grad(distances.sum(), activations)
    distances = distances.detach()
    activations, gradients = activations.detach().to(distances.dtype), gradients.to(distances.dtype)
    different, same = formula(activations, gradients), formula(activations, -gradients)  # (2B, h, w)
    return explained(distances, threshold, different, same, images.shape[2:])
