"""The contrastive loss, on pairs and on every pair of a batch."""

import torch
from torch import nn

from utils.siamese import distance


class ContrastiveLoss(nn.Module):
    """Pulls positive pairs together and pushes negative pairs apart, up to a margin.

    loss = (1 - y) / 2 * d^2 + y / 2 * max(0, margin - d)^2, averaged over the pairs, with the label y = 0 for similar
    and 1 for different (Hadsell, Chopra & LeCun 2006, equation 4).
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, distances, labels):
        """distances float (P,), labels (P,) of 0 and 1; returns a scalar."""
        return pair_losses(distances, labels, self.margin).mean()


class BatchContrastiveLoss(ContrastiveLoss):
    """The contrastive loss of every pair among the images of a batch.

    Positive and negative pairs weigh the same, however many there are of each: the mean of the two mean losses.
    """

    def forward(self, embeddings, classes):
        """embeddings float (B, D) of length 1, classes int (B,); returns a scalar."""
        first, second = torch.triu_indices(len(classes), len(classes), offset=1, device=classes.device)
        labels = (classes[first] != classes[second]).long()  # (P,), P = B (B - 1) / 2
        losses = pair_losses(distance(embeddings[first], embeddings[second]), labels, self.margin)
        kinds = [losses[labels == kind] for kind in (0, 1)]
        return torch.stack([kind.mean() for kind in kinds if len(kind)]).mean()


def pair_losses(distances, labels, margin):
    """The contrastive loss of each pair, (P,)."""
    labels = labels.to(distances.dtype)
    return (1 - labels) / 2 * distances.square() + labels / 2 * (margin - distances).clamp(min=0).square()
