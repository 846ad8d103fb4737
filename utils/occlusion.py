"""Occlusion: how the distance changes when a window of an image is blurred. Slow, but it needs no look inside."""

import torch

from utils.explanation import Explanation, explained, stacked
from utils.siamese import distance, evaluating
from utils.transforms import blurred

GRID = 7  # windows along each side
WINDOW = 0.3  # of each side


@torch.no_grad()
def explain_by_occlusion(network, images1, images2, threshold: float) -> Explanation:
    """Explain B pairs by blurring windows on a 7x7 grid (after Zeiler and Fergus 2014, section 4.2).

    network: any module from images (B, 3, H, W) to embeddings (B, embedding_size). A window's evidence is the distance
    with it less the distance without it, the other image as it is; a pixel's is the mean over the windows that it lies
    in. It takes 98 passes of the network for a pair.
    """
    images = stacked(images1, images2)
    height, width = images.shape[2:]
    tall, wide = round(WINDOW * height), round(WINDOW * width)
    blurry = blurred(images)
    with evaluating(network):
        embeddings = network(images)
        others = embeddings.roll(len(images1), 0)
        distances = distance(embeddings, others)
        evidence, covered = distances.new_zeros(len(images), height, width), distances.new_zeros(height, width)
        for row in range(GRID):
            for column in range(GRID):
                top, left = round(row * (height - tall) / (GRID - 1)), round(column * (width - wide) / (GRID - 1))
                window = (..., slice(top, top + tall), slice(left, left + wide))
                hidden = images.clone()
                hidden[window] = blurry[window]
                evidence[window] += (distances - distance(network(hidden), others))[:, None, None]
                covered[window] += 1
    evidence = evidence / covered.clamp(min=1)
    return explained(distances[: len(images1)], threshold, evidence, -evidence, images.shape[2:])
