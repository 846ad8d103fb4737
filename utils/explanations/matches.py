"""What matches what: the inner product of two embeddings as a sum over pairs of places, one in each image."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from scipy.ndimage import label

from ..config import LAST, MORE
from ..device import deterministic_or_refused, progress
from ..network.distance import Explainable, blurred, evaluating
from .explanation import Explanation, embed_explained, only_pair

EXACT = 5e-3  # of the length of the vectors: rounding of the parts, TF32 and bfloat16 included
LARGEST = 56  # places along the longer side: the pairs of 56 x 56 places take 40 MB, those of 224 x 224 take 10 GB
HALF = 0.5  # of the strongest place of an area: what belongs to it
FAINT = 0.1  # of the strongest match: what adds less is no match


@dataclass(frozen=True)
class Match:
    """A region of each image, and what the two add to the inner product."""

    place1: tuple[float, float]
    """Middle (y, x) of the region of image 1, in [0, 1)."""
    place2: tuple[float, float]
    """The same in image 2."""
    value: float


@dataclass(frozen=True, eq=False)
class Area:
    """Places of both images that match each other, and what they add to the inner product."""

    match: Match
    """Its strongest places."""
    places1: torch.Tensor
    """Bool (h, w), in image 1."""
    places2: torch.Tensor
    """Bool (h, w), in image 2."""
    value: float
    """The sum over all pairs of these places."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The inner product of two embeddings of length 1, which is 1 - distance ** 2 / 2, as a sum.

    Tensors are float32, or float64 from a network of that precision.
    """

    explanation: Explanation
    """Of the one pair."""
    layer: str
    """Whose places they are; in words, if neighbouring places were added up."""
    places: torch.Tensor
    """(h, w, h, w): of position [y, x] in image 1 with position [y, x] in image 2."""
    bias1: torch.Tensor
    """(h, w): of a position in image 1 with the start of image 2."""
    bias2: torch.Tensor
    """(h, w): of a position in image 2 with the start of image 1."""
    bias: float
    """Of both starts."""
    cosine: float
    """The inner product as the network computes it."""

    @property
    def residual(self) -> float:
        """The inner product less the sum: rounding at the last layer, at others also the error of the steps."""
        return self.cosine - _total(self.places) - self._biases()

    @property
    def side(self) -> int:
        """Places along each side of a region: odd, an eighth of the map's shorter side or a little more."""
        return 2 * ((min(self.bias1.shape) + 7) // 16) + 1

    def bounds(self, place) -> tuple[float, float, float, float]:
        """Return top, left, bottom and right end, in [0, 1], of the region around a point (y, x) in [0, 1)."""
        half = self.side // 2
        starts, ends = [], []
        for share, count in zip(place, self.bias1.shape, strict=True):
            middle = int(share * count)
            starts.append(max(middle - half, 0) / count)
            ends.append(min(middle + half + 1, count) / count)
        return *starts, *ends

    def mutual(self, count=5) -> list[Match]:
        """Find up to `count` matches, strongest first: each of two regions is the strongest match of the other.

        Later matches do not overlap the regions of earlier ones, so no pair of places counts twice. At least one match
        is returned; further ones only while they add FAINT of the strongest, and more than 0.
        """
        height, width = self.bias1.shape
        values = self._regions.clone()  # (h, w, h, w)
        matches = []
        for _ in range(count):
            flat = values.argmax()
            value = values.flatten()[flat].item()
            if matches and value <= max(FAINT * matches[0].value, 0):
                break
            y1, x1, y2, x2 = torch.stack(torch.unravel_index(flat, values.shape)).tolist()
            place1 = (y1 + 0.5) / height, (x1 + 0.5) / width
            place2 = (y2 + 0.5) / height, (x2 + 0.5) / width
            matches.append(Match(place1, place2, value))
            values[self._near(y1), self._near(x1)] = -torch.inf
            values[:, :, self._near(y2), self._near(x2)] = -torch.inf
        return matches

    def areas(self, count=5) -> list[Area]:
        """Return the places around each mutual match, those that add most first.

        Around a place of image 1 lie those that match the region of image 2 at least HALF as strongly, are connected
        with it, and nearer to it than to the place of another match; in image 2 likewise. So no pair of places counts
        twice.
        """
        values = self._regions
        matches = self.mutual(count)
        places1 = [self._index(match.place1) for match in matches]
        places2 = [self._index(match.place2) for match in matches]
        areas1 = _areas(torch.stack([values[:, :, y, x] for y, x in places2]), places1)
        areas2 = _areas(torch.stack([values[y, x] for y, x in places1]), places2)
        areas = []
        for match, area1, area2 in zip(matches, areas1, areas2, strict=True):
            areas.append(Area(match, area1, area2, _total(self.places[area1][:, area2])))
        return sorted(areas, key=lambda area: area.value, reverse=True)

    def _index(self, place) -> tuple[int, int]:
        """The row and column of a point (y, x) in [0, 1)."""
        height, width = self.bias1.shape
        return int(place[0] * height), int(place[1] * width)

    def parts_in_words(self, shown: list[Match] | list[Area]) -> str:
        """Return what some matches and all other parts add to the inner product, in words."""
        together = self.sum_of(shown)
        matches = "strongest mutual match" if len(shown) == 1 else f"{len(shown)} strongest mutual matches"
        parts = {
            f"the {matches}": together,
            "all other pairs of places": _total(self.places) - together,
            "biases, which have no place": self._biases(),
            "error of the sum": self.residual,
        }
        words = []
        for name, value in parts.items():
            share = f" ({value / self.cosine:.0%})" if self.cosine > 0 else ""
            words.append(f"{name} {value:+.3f}{share}")
        return f"inner product of the embeddings {self.cosine:.3f}: {', '.join(words)}"

    def sum_of(self, shown: list[Match] | list[Area]) -> float:
        """Return what some matches together add to the inner product."""
        return sum(match.value for match in shown)

    def _biases(self):
        return _total(self.bias1) + _total(self.bias2) + self.bias

    @cached_property
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
            f"similarity {self.explanation.similarity[0]:.3f}, matches at {self.layer}\n"
            f"{self.parts_in_words(self.mutual())}"
        )


class InexactError(ValueError):
    """The sum over places would not be exact in one step."""


def decompose_exactly(network: Explainable, explanation: Explanation) -> Matches | None:
    """Decompose one explained pair at the last layer in one step; None where the sum would not be exact."""
    try:
        return decompose(network, explanation)
    except InexactError:
        return None


def decompose(network: Explainable, explanation: Explanation, layer=LAST, steps=1) -> Matches:
    """Decompose the inner product of the embeddings of one explained pair, place by place of a layer.

    In one step, the start is an empty map and the sum is exact. In more steps, Jacobians are integrated along the
    straight path from the feature map of the blurred image, by the midpoint rule; the error shrinks with the steps and
    stands in `residual`. Each step takes a backward pass for each dimension of the embedding. The lengths of both
    vectors are held fixed, so the path is that of the vectors before normalisation. Where a side of the map has more
    than LARGEST places, neighbouring ones are added up.

    Args:
        network: The network that was explained.
        explanation: Of one pair.
        layer: The layer whose places are matched; of several (MORE), the first.
        steps: 1 if average pooling and one linear layer stand behind the layer, as behind the last one; else more.

    Raises:
        ConfigError: The layer is unknown.
        ValueError: The explanation is of several pairs or of another network, or one step would not be exact.

    Source: in one step Eberle et al. 2020, BiLRP; in more Moeller et al. 2023, "An Attribution Method for Siamese
    Encoders", section 3.
    """
    layer = layer.removesuffix(MORE)
    name = network.layers[-1] if layer == LAST else layer
    images = only_pair(explanation).images[0]  # (2, C, H, W)
    with evaluating(network):
        with torch.no_grad():
            embed_explained(network, explanation)
            ends, vectors = network.features_and_vectors(images, layer)  # (2, C, h, w), (2, D)
            starts = torch.zeros_like(ends)
            if steps > 1:
                starts = network.features(blurred(images), layer)
            biases = network.project_features(starts, layer)  # (2, D)
            if steps == 1:  # before a backward pass for each dimension
                halves = network.project_features(ends / 2, layer)
                _check_exact(halves - (vectors + biases) / 2, vectors, name)
        with deterministic_or_refused():
            parts = _integrated(network, starts, ends, vectors, layer, steps)
    if steps == 1:
        _check_exact(parts.sum(dim=(2, 3)) + biases - vectors, vectors, name)
    lengths = vectors.norm(dim=1)
    pooled = _pooled(parts)
    if pooled.shape != parts.shape:
        height, width = pooled.shape[2:]
        name = f"{name}, pooled to {height} x {width} places"
    part1, part2 = pooled / lengths[:, None, None, None]
    bias1, bias2 = biases / lengths[:, None]
    places = torch.einsum("dyx,dvu->yxvu", part1, part2)
    with_bias2 = torch.einsum("dyx,d->yx", part1, bias2)
    with_bias1 = torch.einsum("dyx,d->yx", part2, bias1)
    cosine = F.cosine_similarity(*vectors, dim=0).item()
    return Matches(explanation, name, places, with_bias2, with_bias1, float(bias1 @ bias2), cosine)


def _check_exact(errors, vectors, name):
    """Raise InexactError where errors (2, D) are more than rounding of the vectors (2, D)."""
    if (errors.norm(dim=1) > EXACT * vectors.norm(dim=1)).any():
        raise InexactError(
            f"matches in one step need average pooling and one linear layer behind {name!r}: there is something else, "
            "so the sum would not be exact. Name the layer before the pooling, or pass more steps."
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
    for dimension in progress(dimensions, "Matches", show=steps > 1):
        (slopes,) = torch.autograd.grad(dimension, between, retain_graph=True)
        slope = slopes.unflatten(0, (steps, 2)).to(change.dtype).mean(dim=0)  # (2, C, h, w)
        parts.append((change * slope).sum(dim=1))
    return torch.stack(parts, dim=1)


def _pooled(parts):
    """Add up parts (2, D, h, w) over blocks of neighbouring places, so that no side has more than LARGEST.

    The blocks of a side differ by one place at most, and every place is in one block.
    """
    largest = max(parts.shape[-2:])
    if largest <= LARGEST:
        return parts
    for dim in (2, 3):
        side = parts.shape[dim]
        count = max(round(side * LARGEST / largest), 1)
        block = torch.arange(side, device=parts.device) * count // side
        parts = torch.zeros_like(parts).index_add_(dim, block, parts).narrow(dim, 0, count)
    return parts


def _summed(maps, side):
    """Sums over windows of `side` places a side, cut off at the border, of maps (N, h, w)."""
    return side**2 * F.avg_pool2d(maps[:, None], side, stride=1, padding=side // 2)[:, 0]


def _areas(values, places) -> list[torch.Tensor]:
    """Return the area around each of K places, bool (h, w): see `Matches.areas`. values: (K, h, w), of each place."""
    rows, columns = torch.meshgrid(*map(torch.arange, values.shape[1:]), indexing="ij")
    nearest = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 for y, x in places]).argmin(dim=0).to(values.device)
    areas = []
    for number, (y, x) in enumerate(places):
        high = (values[number] >= HALF * values[number, y, x]) & (nearest == number)
        high[y, x] = True  # also where its value is negative
        numbers, _ = label(high.cpu().numpy())
        areas.append(torch.from_numpy(numbers == numbers[y, x]).to(values.device))
    return areas


def _total(values) -> float:
    return values.cpu().double().sum().item()
