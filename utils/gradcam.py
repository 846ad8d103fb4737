"""Grad-CAM for a pair: where each of the two images speaks for the decision, and where against it."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from utils.evaluation import Trained
from utils.siamese import SiameseNetwork, distance, evaluating, similarity


@dataclass(frozen=True)
class Explanation:
    """Scores and evidence of B pairs.

    distance: float32 (B,) in [0, 2]. similarity: float32 (B,) in [0, 1]. threshold: distance up to which a pair is
    "same". evidence: float32 (B, 2, H, W) for image 1 and image 2; positive values push towards "different".
    """

    distance: torch.Tensor
    similarity: torch.Tensor
    threshold: float
    evidence: torch.Tensor

    @property
    def different(self) -> torch.Tensor:
        """The decisions: bool (B,), True where the pair is decided "different"."""
        return self.distance > self.threshold

    @property
    def factual(self) -> torch.Tensor:
        """Evidence for the decision: float32 (B, 2, H, W) in [0, 1]."""
        return self._scaled(1)

    @property
    def counterfactual(self) -> torch.Tensor:
        """Evidence against the decision: float32 (B, 2, H, W) in [0, 1], on one scale with `factual`."""
        return self._scaled(-1)

    def sentence(self, index=0) -> str:
        """Score and decision of one pair in words."""
        decision = "different" if self.different[index] else "same"
        return (
            f'Similarity {self.similarity[index]:.3f}, "same" from {1 - self.threshold / 2:.3f} on '
            f'(distance {self.distance[index]:.3f}, threshold {self.threshold:.3f}): decided "{decision}".'
        )

    def _scaled(self, sign):
        """The evidence for (1) or against (-1) the decision, as a share of the strongest value of the image."""
        towards = torch.where(self.different, 1, -1)[:, None, None, None] * self.evidence * sign
        strongest = self.evidence.abs().amax(dim=(2, 3), keepdim=True)
        return towards.clamp(min=0) / torch.where(strongest > 0, strongest, 1)  # no evidence: all zeros, never NaN


def explain(network: SiameseNetwork, images1, images2, threshold: float, layer: str = "last") -> Explanation:
    """Explain B pairs with Grad-CAM (Selvaraju et al. 2017, section 3), each branch with its own gradient.

    images1, images2: (B, 3, H, W), as the network takes them. The weight of a channel is the spatial mean of the
    gradient of the distance with respect to its feature map; the evidence is the weighted sum of the channels.

    All images go through the network once, in evaluation mode; only the stages behind `layer` are differentiated.
    Modes, parameters and their gradients stay as they were. Raises ConfigError for an unknown layer, ValueError for
    images of different shapes.
    """
    if images1.shape != images2.shape:
        raise ValueError(f"images1 {tuple(images1.shape)} and images2 {tuple(images2.shape)} must have one shape")
    with evaluating(network):
        with torch.no_grad():
            features = network.features(torch.cat([images1, images2]), layer)  # (2B, C, h, w)
        with torch.enable_grad():
            features.requires_grad_()
            distances = distance(*network.embed_features(features, layer).chunk(2))  # (B,)
            (gradients,) = torch.autograd.grad(distances.sum(), features)
    distances = distances.detach()
    features, gradients = features.detach().to(distances.dtype), gradients.to(distances.dtype)
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (2B, C, 1, 1)
    evidence = (weights * features).sum(dim=1, keepdim=True)  # (2B, 1, h, w)
    evidence = F.interpolate(evidence, size=images1.shape[2:], mode="bilinear", align_corners=False)
    evidence = torch.stack(evidence.squeeze(1).chunk(2), dim=1)  # (B, 2, H, W)
    return Explanation(distances, similarity(distances), threshold, evidence)


def explain_files(trained: Trained, *pairs: tuple[Path, Path]) -> Explanation:
    """Explain pairs of image files with a trained network, on the layer that `explanation.layer` names."""
    images1, images2 = (trained.load_images(*paths) for paths in zip(*pairs, strict=True))
    return explain(trained.network, images1, images2, trained.threshold, trained.config.explanation.layer)
