"""What matches what: the inner product of two embeddings as a sum over pairs of places, one in each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import LAST
from ..device import deterministic_or_refused, progress
from ..network.distance import Explainable, evaluating
from .explanation import Explanation, embed_explained, only_pair
from .occlusion import blurred
from .task import Task

EXACT = 5e-3  # of the length of the vectors: what the parts may miss by rounding, TF32 and bfloat16 included

LARGEST = 56  # places along the longer side: the pairs of 56 x 56 places take 40 MB, those of 224 x 224 take 10 GB
FAINT = 0.1  # of the strongest match: what adds less is none


@dataclass(frozen=True)
class Match:
    """A region of each image, by the (y, x) of its middle in [0, 1), and what the two add to the inner product."""

    place1: tuple[float, float]
    place2: tuple[float, float]
    value: float


@dataclass(frozen=True, eq=False)
class Matches:
    """The inner product of two embeddings of length 1, which is 1 - distance ** 2 / 2, as a sum.

    explanation: of the one pair. layer: whose places they are. places: float (h, w, h, w), of position [y, x] in
    image 1 with position [y, x] in image 2. bias1, bias2: float (h, w), of a position with what the other image starts
    from. bias: of both starts. cosine: the inner product as the network computes it. Floats are float32, or float64
    from a network of that precision. pooled: whether the layer has more places, of which each of these is a sum.
    """

    explanation: Explanation
    layer: str
    places: torch.Tensor
    bias1: torch.Tensor
    bias2: torch.Tensor
    bias: float
    cosine: float
    pooled: bool = False

    @property
    def description(self) -> str:
        """The layer, and how many places there are where it has more, in words."""
        height, width = self.bias1.shape
        return f"{self.layer}, pooled to {height} x {width} places" if self.pooled else self.layer

    @property
    def residual(self) -> float:
        """What the sum misses: rounding at the last layer, at others also the error of the steps."""
        parts = [part.cpu().double().sum() for part in (self.places, self.bias1, self.bias2)]
        return self.cosine - float(sum(parts)) - self.bias

    @property
    def side(self) -> int:
        """Places along each side of a region: odd, an eighth of the map's shorter side or a little more."""
        return 2 * ((min(self.bias1.shape) + 7) // 16) + 1

    def bounds(self, place) -> tuple[float, float, float, float]:
        """Top, left, bottom and right end, in [0, 1], of the region around a point (y, x) in [0, 1)."""
        half = self.side // 2
        starts, ends = [], []
        for share, count in zip(place, self.bias1.shape, strict=True):
            middle = int(share * count)
            starts.append(max(middle - half, 0) / count)
            ends.append(min(middle + half + 1, count) / count)
        return *starts, *ends

    def matches_of(self, y: float, x: float) -> torch.Tensor:
        """What the region around the point (y, x) of image 1, each in [0, 1), matches in image 2: (h, w).

        Of each place, what the region around it adds together with the first; at the border, regions are cut off.
        """
        height, width = self.bias1.shape
        return self._regions()[int(y * height), int(x * width)]

    def mutual(self, count=5) -> list[Match]:
        """Up to `count` matches, strongest first: each of two regions is the strongest that the other finds.

        After each match its regions are taken: later ones do not overlap them, so no pair of places counts twice. At
        least one match; further ones only while they add a tenth of the strongest, and more than 0.
        """
        height, width = self.bias1.shape
        values = self._regions().clone()  # (h, w, h, w)
        found = []
        for _ in range(count):
            flat = values.argmax()
            value = values.flatten()[flat].item()
            if found and value <= max(FAINT * found[0].value, 0):
                break
            y1, x1, y2, x2 = (int(index) for index in torch.unravel_index(flat, values.shape))
            place1 = (y1 + 0.5) / height, (x1 + 0.5) / width
            place2 = (y2 + 0.5) / height, (x2 + 0.5) / width
            found.append(Match(place1, place2, value))
            values[self._near(y1), self._near(x1)] = -torch.inf
            values[:, :, self._near(y2), self._near(x2)] = -torch.inf
        return found

    def parts_in_words(self, shown: list[Match]) -> str:
        """What share of the inner product some matches are, and what the rest is, in words; all parts add up to it."""
        together = sum(match.value for match in shown)
        places, bias1, bias2 = (float(part.cpu().double().sum()) for part in (self.places, self.bias1, self.bias2))
        share = f" ({together / self.cosine:.0%})" if self.cosine > 0 else ""
        matches = "strongest mutual match adds" if len(shown) == 1 else f"{len(shown)} strongest mutual matches add"
        return (
            f"of {self.cosine:.3f} the {matches} {together:+.3f}{share}, "
            f"all other pairs of places {places - together:+.3f}, the biases {bias1 + bias2 + self.bias:+.3f}, "
            f"residual {self.residual:+.3f}"
        )

    def _regions(self):
        """The sums of `places` over both regions, by the middles of the regions: (h, w, h, w)."""
        height, width = self.bias1.shape
        over1 = _summed(self.places.reshape(height, width, -1).movedim(2, 0), self.side).movedim(0, 2)
        over2 = _summed(over1.reshape(-1, height, width), self.side)
        return over2.reshape(self.places.shape)

    def _near(self, index):
        """Rows or columns whose regions overlap the one at `index`."""
        return slice(max(index - self.side + 1, 0), index + self.side)

    def __str__(self):
        return (
            f"inner product {self.cosine:.4f} (similarity {self.explanation.similarity[0]:.3f}) at {self.description}\n"
            f"{self.parts_in_words(self.mutual())}"
        )


def decompose(network: Explainable, explanation: Explanation, layer=LAST, steps=1) -> Matches:
    """Take the inner product of the embeddings of one explained pair apart, place by place of a layer.

    steps: 1 where average pooling and one linear layer stand behind the layer, as behind the last one: the sum is then
    exact (second order as BiLRP, Eberle et al. 2020), its start is an empty map, and the biases are those of the linear
    layer. More at any other layer: Jacobians are integrated along the straight path from the feature map of the blurred
    image, by the midpoint rule (Moeller et al. 2023, "An Attribution Method for Siamese Encoders", section 3); the
    error shrinks with `steps` and stands in `residual`. Each step takes a backward pass for each of the embedding's
    dimensions. The lengths of both vectors are held fixed, so the path is that of the vectors before normalisation.
    Of a map with a side of more than LARGEST places, neighbouring places are added up to at most so many along a side.

    Raises ValueError for more than one pair, for another network than the explained one, and where one step is not
    exact. Raises ConfigError or ValueError for an unknown layer.
    """
    images = only_pair(explanation).images[0]  # (2, C, H, W)
    with evaluating(network):
        with torch.no_grad():
            embed_explained(network, explanation)
            ends = network.features(images, layer)  # (2, C, h, w)
            Task(network, explanation.images, explanation.threshold, layer=layer).check_places(ends)
            starts = torch.zeros_like(ends) if steps == 1 else network.features(blurred(images), layer)
            vectors, biases = (network.project_features(maps, layer) for maps in (ends, starts))  # (2, D) each
        with deterministic_or_refused():
            parts = _integrated(network, starts, ends, vectors, layer, steps)
    name = network.layers[-1] if layer == LAST else layer
    missed = (parts.sum(dim=(2, 3)) + biases - vectors).norm(dim=1)
    if steps == 1 and (missed > EXACT * vectors.norm(dim=1)).any():
        raise ValueError(
            f"matches in one step need average pooling and one linear layer behind {name!r}: there is something else, "
            "so the sum would not be exact. Name the layer before the pooling, or pass more steps."
        )
    lengths = vectors.norm(dim=1, keepdim=True)
    pooled = _pooled(parts)
    part1, part2 = pooled / lengths[:, :, None, None]
    bias1, bias2 = biases / lengths
    return Matches(
        explanation,
        name,
        torch.einsum("dyx,dvu->yxvu", part1, part2),
        torch.einsum("dyx,d->yx", part1, bias2),
        torch.einsum("dyx,d->yx", part2, bias1),
        float(bias1 @ bias2),
        F.cosine_similarity(*vectors[:, None]).item(),
        pooled.shape != parts.shape,
    )


def _integrated(network, starts, ends, vectors, layer, steps):
    """What each place adds to each dimension of the vectors (2, D) between two maps (2, C, h, w): (2, D, h, w)."""
    change = ends.to(vectors.dtype) - starts.to(vectors.dtype)
    levels = (torch.arange(steps, dtype=vectors.dtype, device=ends.device) + 0.5) / steps
    with torch.enable_grad():
        between = torch.lerp(starts, ends, levels[:, None, None, None, None].to(ends.dtype))  # (steps, 2, C, h, w)
        between = between.flatten(0, 1).requires_grad_()
        dimensions = network.project_features(between, layer).sum(dim=0)  # (D,), of all steps and both images at once
    parts = []
    for one in progress(dimensions, "Matches", show=steps > 1):
        (slopes,) = torch.autograd.grad(one, between, retain_graph=True)
        slope = slopes.unflatten(0, (steps, 2)).to(change.dtype).mean(dim=0)  # (2, C, h, w)
        parts.append((change * slope).sum(dim=1))
    return torch.stack(parts, dim=1)


def _pooled(parts):
    """Parts (2, D, h, w) added up over blocks of neighbouring places, so that no side has more than LARGEST; the blocks
    of a side differ by one place at most, and every place is in one block.
    """
    largest = max(parts.shape[-2:])
    if largest <= LARGEST:
        return parts
    for dim in (2, 3):
        side = parts.shape[dim]
        count = max(round(side * LARGEST / largest), 1)
        shape = list(parts.shape)
        shape[dim] = count
        block = torch.arange(side, device=parts.device) * count // side
        parts = parts.new_zeros(shape).index_add_(dim, block, parts)
    return parts


def _summed(maps, side):
    """Sums over windows of `side` places a side, cut off at the border, of maps (N, h, w)."""
    return side**2 * F.avg_pool2d(maps[:, None], side, stride=1, padding=side // 2)[:, 0]
