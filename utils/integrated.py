"""Path-integrated evidence: what each place adds to the distance on the way from the blurred image to the image."""

import torch

from utils.explanation import Explanation, explained, stacked
from utils.siamese import SiameseNetwork, distance, evaluating
from utils.transforms import blurred


def contributions(network: SiameseNetwork, images1, images2, layer: str, steps=1):
    """What raises and what lowers the distance, place by place of a stage's feature map.

    Integrated gradients (Sundararajan et al. 2017, equation 1) of the distance, from the feature map of the blurred
    image to that of the image, by the midpoint rule in `steps` steps; the other image is held fixed. Completeness: the
    first map less the second adds up to the change of the distance between the two, but for an error that shrinks with
    `steps`.

    Returns (distances (B,), raising (2B, h, w), lowering (2B, h, w)), all images 1, then all images 2: the activation
    difference of each channel times its mean gradient where that is positive, and times its opposite where negative.
    """
    images = stacked(images1, images2)
    with evaluating(network):
        with torch.no_grad():
            ends, starts = network.features(torch.cat([images, blurred(images)]), layer).chunk(2)  # (2B, C, h, w)
            embeddings = network.embed_features(ends, layer)  # (2B, embedding_size)
            others = embeddings.roll(len(images1), 0)
        gradients = 0
        for step in range(steps):
            with torch.enable_grad():
                between = torch.lerp(starts, ends, (step + 0.5) / steps).requires_grad_()
                apart = distance(network.embed_features(between, layer), others)
                gradients = gradients + torch.autograd.grad(apart.sum(), between)[0].to(embeddings.dtype) / steps
    change = (ends - starts).to(embeddings.dtype)
    raising, lowering = ((change * sign.clamp(min=0)).sum(dim=1) for sign in (gradients, -gradients))
    return distance(*embeddings.chunk(2)), raising, lowering


def explain_by_path(
    network: SiameseNetwork, images1, images2, threshold: float, layer="layer1", steps=1, apart=True
) -> Explanation:
    """Explain B pairs by the `contributions` of the places of a stage.

    images1, images2: (B, 3, H, W), as the network takes them. apart: channels of positive and of negative gradient are
    kept apart, as LayerCAM does, so that a place can speak for both decisions; else the map is their difference, which
    is complete. Raises ConfigError for an unknown layer, ValueError for images of
    different shapes.
    """
    distances, raising, lowering = contributions(network, images1, images2, layer, steps)
    if not apart:
        raising, lowering = raising - lowering, lowering - raising
    return explained(distances, threshold, raising, lowering, images1.shape[2:])
