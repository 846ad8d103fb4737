"""What a decision loses when windows of an image are blurred."""

import torch

from ..network.distance import distance, embed_pairs, evaluating
from ..network.inputs import blurred
from .explanation import Explanation
from .task import Task, explained

GRID = 7  # windows along each side
WINDOW = 0.3  # of each side


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
