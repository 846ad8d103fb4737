"""What every explanation of a pair holds: its distance, the decision, and the evidence at each place of both images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.siamese import similarity

EXTREME = 1e-3  # distances this close to 0 or 2 have next to no gradient


@dataclass(frozen=True)
class Explanation:
    """Scores and evidence of B pairs.

    distance: float32 (B,) in [0, 2]. threshold: distance up to which a pair is "same". towards_different,
    towards_same: float32 (B, 2, H, W) for image 1 and image 2, at least 0: how much a place pushes either way.
    """

    distance: torch.Tensor
    threshold: float
    towards_different: torch.Tensor
    towards_same: torch.Tensor

    @property
    def similarity(self) -> torch.Tensor:
        """float32 (B,) in [0, 1]."""
        return similarity(self.distance)

    @property
    def different(self) -> torch.Tensor:
        """The decisions: bool (B,), True where the pair is decided "different"."""
        return self.distance > self.threshold

    @property
    def evidence(self) -> torch.Tensor:
        """float32 (B, 2, H, W); positive values push towards "different", negative ones towards "same"."""
        return self.towards_different - self.towards_same

    @property
    def factual(self) -> torch.Tensor:
        """Evidence for the decision: float32 (B, 2, H, W) in [0, 1]."""
        return self._scaled(self.different)

    @property
    def counterfactual(self) -> torch.Tensor:
        """Evidence against the decision: float32 (B, 2, H, W) in [0, 1], on one scale with `factual`."""
        return self._scaled(~self.different)

    @property
    def ranking(self) -> torch.Tensor:
        """Order of all places by their word for the decision: float32 (B, 2, H, W) in [-1, 1].

        The factual map; where it is 0, the counterfactual one, negative.
        """
        factual = self.factual
        return torch.where(factual > 0, factual, -self.counterfactual)

    def __getitem__(self, index: slice) -> "Explanation":
        """The explanation of some of the pairs."""
        return Explanation(
            self.distance[index], self.threshold, self.towards_different[index], self.towards_same[index]
        )

    def sentence(self, index=0) -> str:
        """Score and decision of one pair in words."""
        decision = "different" if self.different[index] else "same"
        return (
            f'Similarity {self.similarity[index]:.3f}, "same" from {1 - self.threshold / 2:.3f} on '
            f'(distance {self.distance[index]:.3f}, threshold {self.threshold:.3f}): decided "{decision}".'
        )

    def cause_of_blank(self, index=0, image=0) -> str:
        """Why a map of an image (0 or 1) holds nothing, in words."""
        if self.evidence[index, image].any():
            return "no such evidence"
        if self.distance[index] < EXTREME:
            return "blank: both embeddings are one, where the distance has no slope"
        if self.distance[index] > 2 - EXTREME:
            return "blank: the embeddings are opposite, where the distance has no slope"
        return "blank: the distance does not react to this image"

    def _scaled(self, towards_different):
        """Evidence towards "different" (True) or "same" (False), as a share of the strongest value of the image."""
        chosen = torch.where(towards_different[:, None, None, None], self.towards_different, self.towards_same)
        strongest = torch.maximum(self.towards_different, self.towards_same).amax(dim=(2, 3), keepdim=True)
        return chosen / torch.where(strongest > 0, strongest, 1)  # no evidence: all zeros, never NaN


def explained(distances, threshold: float, different, same, size) -> Explanation:
    """The Explanation from coarse maps, enlarged to `size` (H, W) of the images; what is negative counts as 0.

    distances: (B,). different, same: (2B, h, w), all images 1, then all images 2: evidence towards either decision.
    """
    both = torch.stack([different, same], dim=1)  # (2B, 2, h, w)
    both = F.interpolate(both, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    return Explanation(distances, threshold, *torch.stack(both.chunk(2), dim=1).unbind(2))


def stacked(images1, images2) -> torch.Tensor:
    """Both images of B pairs as one batch (2B, 3, H, W). Raises ValueError when their shapes differ."""
    if images1.shape != images2.shape:
        raise ValueError(f"images1 {tuple(images1.shape)} and images2 {tuple(images2.shape)} must have one shape")
    return torch.cat([images1, images2])
