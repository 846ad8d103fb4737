"""Reference images: what a pair is contrasted with, and what its images are like."""

from dataclasses import dataclass, replace

import torch

from ..config import LAST
from ..files import ExplanationError
from ..network.distance import Explainable, distance, evaluating, paired, unit
from ..network.inputs import images_for
from .explanation import Explanation, check_places, explained
from .occlusion import blurred

BATCH = 32  # images


@dataclass(frozen=True, eq=False)
class References:
    """Some hundred training images as a network sees them.

    embeddings: float32 (R, D), of length 1. names: of the images, "class/file"; empty where they have none.
    """

    embeddings: torch.Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self):
        found = self.embeddings
        if not isinstance(found, torch.Tensor) or found.dim() != 2 or not found.is_floating_point():
            kind = f"{found.dtype} {tuple(found.shape)}" if hasattr(found, "shape") else type(found).__name__
            raise ExplanationError(
                f"References: embeddings are {kind}, but must be a float tensor (R, D): torch.as_tensor(array, "
                "dtype=torch.float32), or embed_references(network, images)"
            )
        if self.names and len(self.names) != len(found):
            raise ExplanationError(f"References: {len(self.names)} names of {len(found)} embeddings: give each its own")

    @property
    def centre(self) -> torch.Tensor:
        """Their mean embedding: float32 (D,), of a length below 1."""
        return self.embeddings.mean(dim=0)


@torch.no_grad()
def embed_references(network: Explainable, images, names=()) -> References:
    """The references that these images, (R, C, H, W) as the network takes them, are to a network.

    images: a tensor, an array or a list, as `explain` takes them. Raises ExplanationError as `explain` does.
    """
    images = images_for(network, images)
    with evaluating(network):
        embeddings = torch.cat([network(part) for part in images.split(BATCH)])
    return References(embeddings.float(), tuple(names))


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


TINY = 1e-12  # a vector of length 0 has no direction


def explain_by_contrast(
    network: Explainable,
    images,
    threshold: float,
    references: References | None = None,
    layer=LAST,
    steps=4,
    different=None,
) -> Explanation:
    """Explain B pairs by the path-integrated gradient of a target that is linear in the embedding.

    For an image of embedding e beside one of embedding o, the target is <e, e* - o> if the pair is decided "different",
    where e* is e itself, held fixed, and <e, c - o> if "same", where c is the mean embedding of the references, 0
    without them. It is integrated from the feature map of the blurred image to that of the image, in `steps` steps; the
    activation difference times the mean gradient, summed over channels, is the evidence of a place. On the way the
    vector is divided by its length at the end, not by its own: short ones would have steep slopes.

    Unlike the distance, the target has a slope where two images are alike. After integrated gradients (Sundararajan et
    al. 2017, equation 1) of the contrastive targets of Lin et al. 2023 (COCOA), section 3.

    images: (B, 2, C, H, W), as the network takes them. different: the decisions, bool (B,), where another network than
    this one makes them. The maps are signed: a place speaks for one decision. Raises ConfigError or ValueError for an
    unknown layer.
    """
    with evaluating(network):
        path = path_of(network, images, layer)
        embeddings = path.embeddings
        distances = distance(*embeddings.unbind(1))
        different = distances > threshold if different is None else different
        if references is not None and references.embeddings.shape[1] != embeddings.shape[2]:
            raise ExplanationError(
                f"references: embeddings of {references.embeddings.shape[1]} dimensions, but those of the network have "
                f"{embeddings.shape[2]}: pass embed_references(network, images) of this network"
            )
        centre = torch.zeros_like(embeddings) if references is None else references.centre.to(embeddings)
        direction = torch.where(different[:, None, None], embeddings, centre) - embeddings.flip(1)  # (B, 2, D)
        lengths = path.vectors.norm(dim=2).clamp(min=TINY)

        def target(vectors):
            return (vectors * direction).sum(dim=2) / lengths

        gradients = path.mean_gradient(target, steps)
    evidence = paired((path.change * gradients).sum(dim=1))  # (B, 2, h, w)
    explanation = explained(images, distances, threshold, evidence, -evidence)
    return replace(explanation, completeness=path.completeness(target, evidence))
