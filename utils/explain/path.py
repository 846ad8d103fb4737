"""Path-integrated evidence: what each place adds to the distance on the way from the blurred image to the image."""

from dataclasses import dataclass, replace

import torch

from utils.config import LAST
from utils.explain.explanation import Explanation, check_places, explained
from utils.explain.hiding import blurred
from utils.network import Explainable, distance, evaluating, paired, unit


@dataclass(frozen=True, eq=False)
class Path:
    """The straight path between two feature maps of B pairs, of the blurred images and of the images.

    starts, ends: (2B, C, h, w). vectors_before, vectors: (B, 2, D), float32 or longer, at both ends: embeddings before
    they are brought to length 1.
    """

    network: Explainable
    layer: str
    starts: torch.Tensor
    ends: torch.Tensor
    vectors_before: torch.Tensor
    vectors: torch.Tensor

    @property
    def embeddings(self) -> torch.Tensor:
        """Those of the images: (B, 2, D), of length 1."""
        return unit(self.vectors)

    @property
    def change(self) -> torch.Tensor:
        """What the activations gain on the way: (2B, C, h, w), float32 or longer."""
        return self.ends.to(self.vectors.dtype) - self.starts.to(self.vectors.dtype)

    def mean_gradient(self, quantity, steps: int) -> torch.Tensor:
        """The gradient of a quantity at the feature map, by the midpoint rule in `steps` steps: (2B, C, h, w).

        quantity: a function of the vectors (B, 2, D) between the ends, to one number for each image (B, 2).
        """
        mean = torch.zeros_like(self.ends, dtype=self.vectors.dtype)
        for step in range(steps):
            with torch.enable_grad():
                between = torch.lerp(self.starts, self.ends, (step + 0.5) / steps).requires_grad_()
                vectors = paired(self.network.project_features(between, self.layer))
                (gradient,) = torch.autograd.grad(quantity(vectors).sum(), between)
            mean += gradient.to(mean.dtype) / steps
        return mean

    def completeness(self, quantity, evidence) -> torch.Tensor:
        """What maps (B, 2, h, w) add up to, and the change of the quantity that they should: (B, 2)."""
        change = quantity(self.vectors) - quantity(self.vectors_before)  # (B, 2)
        return torch.stack([evidence.sum(dim=(1, 2, 3)), change.sum(dim=1)], dim=1)


@torch.no_grad()
def path_of(network: Explainable, images, layer=LAST) -> Path:
    """The path at a layer for B pairs of images (B, 2, C, H, W); the network is in evaluation mode."""
    images = images.flatten(0, 1)  # (2B, C, H, W)
    both, vectors = network.features_and_vectors(torch.cat([blurred(images), images]), layer)
    check_places(network, layer, images, both)
    before, after = vectors.chunk(2)
    return Path(network, layer, *both.chunk(2), paired(before), paired(after))


def contributions(network: Explainable, images, layer=LAST, steps=1):
    """What raises and what lowers the distance, place by place of a layer's feature map.

    images: (B, 2, C, H, W). Integrated gradients (Sundararajan et al. 2017, equation 1) of the distance, from the
    feature map of the blurred image to that of the image, by the midpoint rule in `steps` steps; the other image is
    held fixed. Completeness: the first map less the second adds up to the change of the distance between the two, but
    for an error that shrinks with `steps`.

    Returns (raising (B, 2, h, w), lowering (B, 2, h, w), path, completeness (B, 2) as `Path` has it): the activation
    difference of each channel times its mean gradient where that is positive, and times its opposite where negative.
    """
    with evaluating(network):
        path = path_of(network, images, layer)
        others = path.embeddings.flip(1)

        def to_other(vectors):
            return distance(unit(vectors), others)

        gradients = path.mean_gradient(to_other, steps)
    raising = paired((path.change * gradients.clamp(min=0)).sum(dim=1))
    lowering = paired((path.change * (-gradients).clamp(min=0)).sum(dim=1))
    return raising, lowering, path, path.completeness(to_other, raising - lowering)


def explain_by_path(network: Explainable, images, threshold: float, layer=LAST, steps=1, split=True) -> Explanation:
    """Explain B pairs by the `contributions` of the places of a layer.

    images: (B, 2, C, H, W), as the network takes them. split: channels of positive and of negative gradient are kept
    apart, as LayerCAM does, so that a place can speak for both decisions; else the map is their difference, which is
    complete. Raises ConfigError or ValueError for an unknown layer.
    """
    raising, lowering, path, completeness = contributions(network, images, layer, steps)
    if not split:
        raising, lowering = raising - lowering, lowering - raising
    explanation = explained(images, distance(*path.embeddings.unbind(1)), threshold, raising, lowering)
    return replace(explanation, completeness=completeness)
