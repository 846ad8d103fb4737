"""The contrastive loss: of pairs, and of a batch of images for each value of the key `pairs`."""

import torch

from ..network.distance import EPSILON, distance, paired


def contrastive_loss(distances, labels, margin: float):
    """Pull positive pairs together and push negative pairs away from each other, up to a margin.

    loss = (1 - y) / 2 * d^2 + y / 2 * max(0, margin - d)^2, with the label y = 0 for similar and 1 for different.

    Args:
        distances: d, float, of any shape.
        labels: y, of the same shape.
        margin: The distance from which a different pair adds no loss.

    Returns:
        The loss of each pair, of the same shape.

    Source: Hadsell, Chopra and LeCun 2006, equation 4.
    """
    labels = labels.to(distances.dtype)
    pulled = distances.square()
    pushed = (margin - distances).clamp(min=0).square()
    return (1 - labels) / 2 * pulled + labels / 2 * pushed


def loss_of_all_pairs(embeddings, classes, margin: float):
    """Return the contrastive loss of every pair of images of a batch, a scalar.

    Positive and negative pairs have the same weight, however many there are of each: the mean of the two mean losses,
    or the loss of the only kind in the batch.

    Args:
        embeddings: float (B, D), of length 1.
        classes: int (B,).
        margin: As in `contrastive_loss`.
    """
    # (B, B): gathering pairs would add up their gradients in no fixed order, and runs would not repeat
    squared = (2 - 2 * embeddings @ embeddings.T).clamp(min=0)
    distances = (squared + EPSILON).sqrt()
    different = classes[:, None] != classes[None, :]
    same = ~different & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    losses = contrastive_loss(distances, different, margin)
    means = []
    for kind in (same, different):
        if kind.any():
            means.append((losses * kind).sum() / kind.sum())
    return torch.stack(means).mean()


def loss_of_drawn_pairs(embeddings, classes, margin: float):
    """Return the mean contrastive loss of a batch in which each anchor is followed by its partner; as above."""
    anchors, partners = paired(embeddings).unbind(1)
    different = classes[0::2] != classes[1::2]
    return contrastive_loss(distance(anchors, partners), different, margin).mean()


LOSSES = {"batch": loss_of_all_pairs, "paper": loss_of_drawn_pairs}  # by the key `pairs`
