"""Images without their content: what pixels show when they are hidden."""

import torch
from kornia.filters import gaussian_blur2d

from ..network.distance import distance, embed_pairs, evaluating
from .explanation import Explanation, explained


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Images (B, ..., C, H, W) after a Gaussian blur with a twelfth of each side as sigma, cut off at two sigma.

    Unlike a grey patch it brings no edge of its own, and it looks like no class.
    """
    height, width = images.shape[-2:]
    sigma = height / 12, width / 12
    kernel = tuple(2 * int(2 * side) + 1 for side in sigma)
    return gaussian_blur2d(images.flatten(0, -4), kernel, sigma).reshape(images.shape)


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    """Each image (B, ..., C, H, W) as its mean colour: hides pixels otherwise than the methods that blur do."""
    return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)


GRID = 7  # windows along each side
WINDOW = 0.3  # of each side


@torch.no_grad()
def explain_by_occlusion(network, images, threshold: float) -> Explanation:
    """Explain B pairs by blurring windows on a 7x7 grid (after Zeiler and Fergus 2014, section 4.2).

    A window has WINDOW of each side; those of a row lie evenly from border to border, and overlap.

    network: any module from images (N, C, H, W) to embeddings (N, D) of length 1. images: (B, 2, C, H, W). A window's
    evidence is the distance with it less the distance without it, the other image as it is; a pixel's is the mean over
    the windows that it lies in. It takes 98 passes of the network for a pair.
    """
    height, width = images.shape[-2:]
    tall, wide = round(WINDOW * height), round(WINDOW * width)
    hidden = blurred(images)
    with evaluating(network):
        embeddings = embed_pairs(network, images)  # (B, 2, D)
        others = embeddings.flip(1)
        distances = distance(*embeddings.unbind(1))  # (B,)
        evidence = distances.new_zeros(len(images), 2, height, width)
        covered = distances.new_zeros(height, width)  # how many windows each pixel lies in
        for row in range(GRID):
            for column in range(GRID):
                top = round(row * (height - tall) / (GRID - 1))
                left = round(column * (width - wide) / (GRID - 1))
                window = (..., slice(top, top + tall), slice(left, left + wide))
                changed = images.clone()
                changed[window] = hidden[window]
                without = distance(embed_pairs(network, changed), others)  # (B, 2): in image 1, in image 2
                evidence[window] += (distances[:, None] - without)[:, :, None, None]
                covered[window] += 1
    evidence = evidence / covered.clamp(min=1)
    return explained(images, distances, threshold, evidence, -evidence)
