"""What matches what: the inner product of two embeddings, exactly, as a sum over pairs of places, one in each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.explain.explanation import Explanation, embed_explained, only_pair
from utils.network import Explainable, evaluating

EXACT = 5e-3  # of the length of the vectors: what the parts may miss by rounding, TF32 and bfloat16 included


@dataclass(frozen=True)
class Match:
    """A place (y, x) of each image, in [0, 1), and what the two add to the inner product."""

    place1: tuple[float, float]
    place2: tuple[float, float]
    value: float


@dataclass(frozen=True, eq=False)
class Matches:
    """The inner product of two embeddings of length 1, which is 1 - distance ** 2 / 2, as a sum.

    explanation: of the one pair. layer: whose places they are. places: float32 (h, w, h, w), of position [y, x] in
    image 1 with position [y, x] in image 2. bias1, bias2: float32 (h, w), of a position with the bias of the linear
    layer. bias: of the bias with itself. cosine: the inner product as the network computes it.
    """

    explanation: Explanation
    layer: str
    places: torch.Tensor
    bias1: torch.Tensor
    bias2: torch.Tensor
    bias: float
    cosine: float

    @property
    def residual(self) -> float:
        """What the sum misses: 0 but for rounding."""
        parts = [part.cpu().double().sum() for part in (self.places, self.bias1, self.bias2)]
        return self.cosine - float(sum(parts)) - self.bias

    @property
    def regions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each position of image 1, and of image 2, adds to the inner product: (h, w) each.

        A position carries all its pairs and its bias term, so the positions of one image and the other's bias terms
        add up to the whole.
        """
        return self.places.sum(dim=(2, 3)) + self.bias1, self.places.sum(dim=(0, 1)) + self.bias2

    def matches_of(self, y: float, x: float) -> torch.Tensor:
        """What the point (y, x) of image 1, each in [0, 1), matches in image 2: (h, w)."""
        height, width = self.bias1.shape
        return self.places[int(y * height), int(x * width)]

    def strongest(self, count=5) -> list[Match]:
        """The `count` strongest matches, from the middle of a place to the middle of a place."""
        height, width = self.bias1.shape
        values, flat = self.places.flatten().topk(min(count, self.places.numel()))
        found = []
        for value, (y1, x1, y2, x2) in zip(values.tolist(), _indices(flat, self.places.shape), strict=True):
            place1 = (y1 + 0.5) / height, (x1 + 0.5) / width
            place2 = (y2 + 0.5) / height, (x2 + 0.5) / width
            found.append(Match(place1, place2, value))
        return found

    def __str__(self):
        biases = float(self.bias1.sum() + self.bias2.sum()) + self.bias
        return (
            f"inner product {self.cosine:.4f} (similarity {self.explanation.similarity[0]:.3f})\n"
            f"places with places {self.places.sum():+.4f}, bias terms {biases:+.4f}\n"
            f"residual {self.residual:.1e}"
        )


@torch.no_grad()
def decompose(network: Explainable, explanation: Explanation) -> Matches:
    """Take the inner product of the embeddings of one explained pair apart, at the last layer.

    Behind that layer stand average pooling and one linear layer: a vector is the mean over places of what each place
    alone gives, and an embedding is that vector at length 1, so the inner product of two is a sum over pairs of places,
    bias terms included, divided by both lengths. Exact to 1e-5 in float32.

    Raises ValueError for more than one pair, for another network than the explained one, and for a network in which
    something else stands behind the last layer.
    """
    images = only_pair(explanation).images[0]  # (2, 3, H, W)
    with evaluating(network):
        embed_explained(network, explanation)
        maps = network.features(images)  # (2, C, h, w)
        vectors = network.project_features(maps)  # (2, D)
        bias = network.project_features(torch.zeros_like(maps[:1]))[0]  # (D,)
        parts = [_parts(network, one, bias) for one in maps]  # (h * w, D) each
    for vector, part in zip(vectors, parts, strict=True):
        if (part.sum(dim=0) + bias - vector).norm() > EXACT * vector.norm():
            raise ValueError(
                f"matches need average pooling and one linear layer behind {network.layers[-1]!r}: there is something "
                "else, so the score is no sum over pairs of places. Name the layer before the pooling."
            )
    one, two = parts
    lengths = vectors.norm(dim=1).prod()
    height, width = maps.shape[2:]
    return Matches(
        explanation,
        network.layers[-1],
        (one @ two.T / lengths).reshape(height, width, height, width),
        (one @ bias / lengths).reshape(height, width),
        (two @ bias / lengths).reshape(height, width),
        float(bias @ bias / lengths),
        F.cosine_similarity(*vectors[:, None]).item(),
    )


def _parts(network, features, bias):
    """What each place of a map (C, h, w) adds to the vector: (h * w, D), from maps that are this place all over."""
    height, width = features.shape[1:]
    vectors = []
    for row in features.unbind(1):  # (C, w); row by row, for all places at once would take too much memory
        everywhere = row.T[:, :, None, None].expand(-1, -1, height, width)  # (w, C, h, w)
        vectors.append(network.project_features(everywhere))
    return (torch.cat(vectors) - bias) / (height * width)


def _indices(flat, shape):
    """Positions in a flattened tensor as lists of its indices, one list each."""
    return torch.stack(torch.unravel_index(flat, shape), dim=1).tolist()
