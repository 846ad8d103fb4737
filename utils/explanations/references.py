"""Reference images: what pairs are contrasted with, and what their images look like."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from ..files import ExplanationError
from ..network.distance import Explainable, distance, evaluating, images_for

BATCH = 32  # images


@dataclass(frozen=True, eq=False)
class References:
    """Some hundred training images as a network sees them.

    Raises:
        ExplanationError: The embeddings are no float tensor (R, D), or the names are not as many.
    """

    embeddings: torch.Tensor
    """Float32 (R, D), of length 1."""
    names: tuple[str, ...] = ()
    """Of the images, "class/file"; empty where they have none."""
    corrected: dict[str, str] = field(default_factory=dict)
    """By name: the actual class of images that are of another one than their name says."""

    def __post_init__(self):
        embeddings, names = self.embeddings, self.names
        if not isinstance(embeddings, torch.Tensor) or embeddings.dim() != 2 or not embeddings.is_floating_point():
            raise ExplanationError(
                "References: embeddings must be a float tensor (R, D): torch.as_tensor(array, dtype=torch.float32), or "
                "embed_references(network, images)"
            )
        if names and len(names) != len(embeddings):
            raise ExplanationError(f"References: {len(names)} names of {len(embeddings)} embeddings: give each a name")

    @property
    def centre(self) -> torch.Tensor:
        """The mean embedding: float32 (D,), of a length below 1."""
        return self.embeddings.mean(dim=0)

    def nearest(self, embedding: torch.Tensor, count=5) -> tuple[str, ...]:
        """Return the names of the `count` references nearest to an embedding (D,), nearest first."""
        distances = distance(self.embeddings.to(embedding), embedding)  # (R,)
        return tuple(self.names[index] for index in distances.argsort()[:count].tolist())


@torch.no_grad()
def embed_references(network: Explainable, images, names=()) -> References:
    """Embed images (R, C, H, W), as the network takes them, as references.

    Args:
        network: The network that is explained.
        images: A tensor, an array or a list, as `explain` takes them.
        names: Of the images, "class/file".

    Raises:
        ExplanationError: The images cannot be explained.
    """
    images = images_for(network, images)
    with evaluating(network):
        embeddings = torch.cat([network(part) for part in images.split(BATCH)])
    return References(embeddings.float(), tuple(names))


def class_of(name: str, corrected: dict[str, str]) -> str:
    """Return the actual class of an image named "class/file", as `References.corrected` has it."""
    return corrected.get(name, name.split("/")[0])


def most_frequent_class(names, corrected: dict[str, str]) -> tuple[str, int]:
    """Return the most frequent class among names "class/file", the first of equally frequent ones, and its count."""
    classes = [class_of(name, corrected) for name in names]
    return Counter(classes).most_common(1)[0]


def in_classes(names, corrected: dict[str, str]) -> str:
    """Return how many names "class/file" are of the most frequent class, in words: "4 of 5 are rose"."""
    name, count = most_frequent_class(names, corrected)
    return f"{count} of {len(names)} {'is' if count == 1 else 'are'} {name}"
