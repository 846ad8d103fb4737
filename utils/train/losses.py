"""The contrastive loss, on pairs and on every pair of a batch."""

import torch
from torch import nn

from ..network.distance import EPSILON


class ContrastiveLoss(nn.Module):
    """Pull positive pairs together and push negative pairs away from each other, up to a margin.

    loss = (1 - y) / 2 * d^2 + y / 2 * max(0, margin - d)^2, averaged over the pairs, with the label y = 0 for similar
    and 1 for different.

    Source: Hadsell, Chopra and LeCun 2006, equation 4.
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, distances, labels):
        """Return a scalar for distances, float (P,), and labels (P,) of 0 and 1."""
        return pair_losses(distances, labels, self.margin).mean()


class BatchContrastiveLoss(ContrastiveLoss):
    """The contrastive loss of every pair of images of a batch.

    Positive and negative pairs have the same weight, however many there are of each: the mean of the two mean losses,
    or the loss of the only kind in the batch.
    """

    def forward(self, embeddings, classes):
        """Return a scalar for embeddings, float (B, D) of length 1, and classes, int (B,)."""
        # (B, B): gathering pairs would add up their gradients in no fixed order, and runs would not repeat
        squared = (2 - 2 * embeddings @ embeddings.T).clamp(min=0)
        distances = (squared + EPSILON).sqrt()
        different = classes[:, None] != classes[None, :]
        same = ~different & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
        losses = pair_losses(distances, different, self.margin)
        means = []
        for kind in (same, different):
            if kind.any():
                means.append((losses * kind).sum() / kind.sum())
        return torch.stack(means).mean()


def pair_losses(distances, labels, margin):
    """Return the contrastive loss of each pair, (P,)."""
    labels = labels.to(distances.dtype)
    pulled = distances.square()
    pushed = (margin - distances).clamp(min=0).square()
    return (1 - labels) / 2 * pulled + labels / 2 * pushed
