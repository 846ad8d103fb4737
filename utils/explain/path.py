"""Path-integrated evidence: what each place adds to the distance on the way from the blurred image to the image."""

import torch

from utils.config import LAST
from utils.explain.explanation import Explanation, explained
from utils.explain.hiding import blurred
from utils.network import Explainable, distance, evaluating, paired


def contributions(network: Explainable, images, layer=LAST, steps=1):
    """What raises and what lowers the distance, place by place of a layer's feature map.

    images: (B, 2, 3, H, W). Integrated gradients (Sundararajan et al. 2017, equation 1) of the distance, from the
    feature map of the blurred image to that of the image, by the midpoint rule in `steps` steps; the other image is
    held fixed. Completeness: the first map less the second adds up to the change of the distance between the two, but
    for an error that shrinks with `steps`.

    Returns (distances (B,), raising (B, 2, h, w), lowering (B, 2, h, w)): the activation difference of each channel
    times its mean gradient where that is positive, and times its opposite where negative.
    """
    images = images.flatten(0, 1)  # (2B, 3, H, W)
    with evaluating(network):
        with torch.no_grad():
            ends, starts = network.features(torch.cat([images, blurred(images)]), layer).chunk(2)  # (2B, C, h, w)
            embeddings = paired(network.embed_features(ends, layer))  # (B, 2, D)
            others = embeddings.flip(1)
        gradients = torch.zeros_like(ends, dtype=embeddings.dtype)
        for step in range(steps):
            with torch.enable_grad():
                between = torch.lerp(starts, ends, (step + 0.5) / steps).requires_grad_()
                distances = distance(paired(network.embed_features(between, layer)), others)  # (B, 2)
                (gradient,) = torch.autograd.grad(distances.sum(), between)
            gradients += gradient.to(embeddings.dtype) / steps
    change = (ends - starts).to(embeddings.dtype)
    raising = (change * gradients.clamp(min=0)).sum(dim=1)
    lowering = (change * (-gradients).clamp(min=0)).sum(dim=1)
    return distance(*embeddings.unbind(1)), paired(raising), paired(lowering)


def explain_by_path(network: Explainable, images, threshold: float, layer=LAST, steps=1, split=True) -> Explanation:
    """Explain B pairs by the `contributions` of the places of a layer.

    images: (B, 2, 3, H, W), as the network takes them. split: channels of positive and of negative gradient are kept
    apart, as LayerCAM does, so that a place can speak for both decisions; else the map is their difference, which is
    complete. Raises ConfigError or ValueError for an unknown layer.
    """
    distances, raising, lowering = contributions(network, images, layer, steps)
    if split:
        return explained(images, distances, threshold, raising, lowering)
    evidence = raising - lowering
    return explained(images, distances, threshold, evidence, -evidence)
