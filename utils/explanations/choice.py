"""Why an image is more similar to some images than to others: the evidence at each place of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import MORE
from ..device import deterministic_or_refused
from ..files import ExplanationError
from ..network.distance import Explainable, distance, evaluating, images_for, path_layer, unit
from .paths import BlurPath, refined


@dataclass(frozen=True, eq=False)
class Choice:
    """An image, images that it is nearer to, and images that it is farther from."""

    image: torch.Tensor
    """Float (1, C, H, W), as the network takes it."""
    nearer: torch.Tensor
    """Embeddings of length 1, float (K, D)."""
    farther: torch.Tensor
    """The same, (L, D)."""
    margin: float
    """Mean similarity to the nearer images minus that to the farther ones, in [-1, 1]."""
    evidence: torch.Tensor
    """Float32 (H, W): how much each place makes the image more similar to the nearer images than to the others."""
    layer: str
    """The layer that was read."""

    def __len__(self):
        return 1

    def __repr__(self):
        return f"nearer by {self.margin:.3f} in similarity, {self.description}"

    @property
    def shares(self) -> torch.Tensor:
        """The evidence as a share of the strongest: float32 (H, W) in [-1, 1]."""
        strongest = self.evidence.abs().max()
        return self.evidence / strongest.clamp(min=torch.finfo(strongest.dtype).tiny)

    @property
    def description(self) -> str:
        """Method and layer in words."""
        return f"thorough at {self.layer.replace(MORE, ' and coarser layers')}"


def choose(network: Explainable, image, nearer, farther, layer: str | None = None) -> Choice:
    """Explain why an image is more similar to some images than to others.

    The map is made as the method `thorough` makes it. Its target is <e, a - b>, where e is the embedding of the image,
    a the mean embedding of the nearer images and b that of the others, both held fixed.

    Args:
        network: A SiameseNetwork, or any module in a `Cut`.
        image: Float (C, H, W), as the network takes it.
        nearer: Embeddings of length 1, float (K, D).
        farther: Embeddings of length 1, float (L, D).
        layer: Where the map is read, with later ones where it ends in MORE; by default that of `path_layer`.

    Raises:
        ConfigError: The layer is unknown.
        ExplanationError: The image cannot be explained, or an embedding is of another network.
    """
    image = images_for(network, [image])
    layer = layer or path_layer(network)
    with evaluating(network), torch.no_grad(), deterministic_or_refused():
        path = BlurPath(network, image, layer)
        length = path.vectors.norm()
        embedding = path.vectors / length  # (1, D)
        for embeddings in (nearer, farther):
            if embeddings.shape[1:] != embedding.shape[1:]:
                raise ExplanationError(
                    f"embeddings {tuple(embeddings.shape)} are refused: those of this network are "
                    f"(K, {embedding.shape[1]}): pass network(images)"
                )
        nearer, farther = nearer.to(embedding), farther.to(embedding)
        direction = nearer.mean(dim=0) - farther.mean(dim=0)  # (D,)

        def target(between):
            return between @ direction / length

        def decisive(between):
            return unit(between) @ direction

        evidence = refined(path, target, decisive, torch.ones_like(length[None]))
    evidence = F.interpolate(evidence[None].float(), size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return Choice(image, nearer, farther, margins(embedding, nearer, farther).item(), evidence, layer)


def margins(embeddings, nearer, farther) -> torch.Tensor:
    """Return the mean similarity to the nearer images minus that to the farther ones: (...,) in [-1, 1].

    Args:
        embeddings: (..., D).
        nearer: (K, D).
        farther: (L, D).
    """
    to_nearer = distance(embeddings[..., None, :], nearer).mean(dim=-1)
    to_farther = distance(embeddings[..., None, :], farther).mean(dim=-1)
    return (to_farther - to_nearer) / 2
