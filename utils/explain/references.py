"""Reference images: what a pair is contrasted with, and what its images are like."""

from dataclasses import dataclass

import torch

from utils.errors import ExplanationError
from utils.network import Explainable, evaluating, images_for

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
