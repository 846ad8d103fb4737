"""Counterfactuals that are checked: the smallest change found that flips the decision, by running the network again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.explain.explanation import Explanation, embed_explained, only_pair
from utils.explain.hiding import blurred
from utils.network import Explainable, distance, embed_pairs, evaluating, similarity

AREAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SIDES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85)  # of a swapped window; all of it flips any pair
PLACES = 7  # windows of image 2 along each side that are tried


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """A change of one pair and what the network says to it.

    explanation: of the pair as it was. edited: float (2, 3, H, W), both images after the change. regions: bool (2, H,
    W), what was changed in each. distance: of the edited pair.
    """

    explanation: Explanation
    edited: torch.Tensor
    regions: torch.Tensor
    distance: float

    @property
    def before(self) -> float:
        """Similarity before the change, in [0, 1]."""
        return self.explanation.similarity.item()

    @property
    def after(self) -> float:
        """Similarity after it, in [0, 1]."""
        return similarity(torch.tensor(self.distance)).item()

    @property
    def flipped(self) -> bool:
        """Whether the decision is another one."""
        return (self.distance > self.explanation.threshold) != self.explanation.different.item()

    @property
    def area(self) -> float:
        """Changed share of the pixels that might be changed, in [0, 1]: of both images, or of image 1 where it alone
        takes pixels of the other.
        """
        changeable = self.regions[:1] if self.explanation.different else self.regions
        return changeable.float().mean().item()

    def sentence(self) -> str:
        """What was changed, how much, and what came of it."""
        touched = self.regions.flatten(1).any(dim=1)
        what = "both images" if touched.all() else f"image {1 + int(touched[1])}"
        changed = self.regions[touched].float().mean()
        outcome = "the decision flips" if self.flipped else "the decision stays: no change that was tried flips it"
        return f"{changed:.1%} of {what} changed: similarity {self.before:.3f} to {self.after:.3f}, {outcome}."


@torch.no_grad()
def counterfactual(network: Explainable, explanation: Explanation) -> Counterfactual:
    """The smallest change along the maps of one explained pair that flips its decision, of those tried.

    "same": a region is blurred, the strongest factual places first, in both images or in one of them. "different": a
    window of image 1, where its factual map is strongest, takes the pixels of the window of image 2 that brings the
    pair closest (after Goyal et al. 2019, section 3: by trial of every place). Without a flip, the change that came
    nearest is returned. Raises ValueError for more than one pair, and for another network than the explained one.
    """
    search = _swapped if only_pair(explanation).different else _blurred
    with evaluating(network):
        embed_explained(network, explanation)
        return search(network, explanation)


def _blurred(network, explanation) -> Counterfactual:
    """Blurs growing regions of both images, of image 1 alone and of image 2 alone."""
    images = explanation.images[0]  # (2, 3, H, W)
    regions = torch.stack([_strongest_places(explanation, share) for share in (0, *AREAS)])  # (1 + A, 2, H, W)
    edited = torch.where(regions[:, :, None], blurred(images), images)  # (1 + A, 2, 3, H, W)
    embeddings = embed_pairs(network, edited)  # (1 + A, 2, D)
    steps = range(1, len(regions))
    tried = [change for step in steps for change in ((step, step), (step, 0), (0, step))]
    first, second = torch.tensor(tried).unbind(1)  # which step of image 1 beside which of image 2
    distances = distance(embeddings[first, 0], embeddings[second, 1])  # (3A,)
    touched = torch.stack([regions[first, 0], regions[second, 1]], dim=1)  # (3A, 2, H, W)
    best = _best(distances, touched.float().mean(dim=(1, 2, 3)), explanation)
    images = torch.stack([edited[first[best], 0], edited[second[best], 1]])
    return Counterfactual(explanation, images, touched[best], distances[best].item())


def _swapped(network, explanation) -> Counterfactual:
    """Puts windows of image 2 into image 1, from small to large, up to the first that flips."""
    image1, image2 = explanation.images[0]  # (3, H, W) each
    height, width = image1.shape[-2:]
    other = network(image2[None])
    found = []
    for side in SIDES:
        size = round(side * height), round(side * width)
        target = _strongest_window(explanation, size)
        windows = _windows_everywhere(height, width, size)
        edited = torch.stack([_pasted(image1, target, image2, window) for window in windows])
        distances = distance(network(edited), other)
        best = int(distances.argmin())
        region = torch.zeros(2, height, width, dtype=torch.bool)
        region[0][target] = True
        change = Counterfactual(explanation, torch.stack([edited[best], image2]), region, distances[best].item())
        if change.flipped:
            return change
        found.append(change)
    return min(found, key=lambda change: change.distance)


def _best(distances, areas, explanation) -> int:
    """The index of the smallest change that flips the decision, else of the one that comes nearest to it."""
    flips = (distances > explanation.threshold) != explanation.different
    if flips.any():
        return int(areas.masked_fill(~flips, float("inf")).argmin())
    return int((distances - explanation.threshold).abs().argmin())


def _strongest_places(explanation: Explanation, share: float) -> torch.Tensor:
    """The share, in [0, 1], of the pixels of each image of one pair that rank highest: bool (2, H, W)."""
    ranks = ranks_of(explanation.ranking)[0]
    return ranks < share * ranks[0].numel()


def ranks_of(maps: torch.Tensor) -> torch.Tensor:
    """The rank of each pixel within its image, 0 for the highest: (..., H, W) to int64 (..., H, W)."""
    order = maps.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1).view_as(maps)


def _strongest_window(explanation, size):
    """The window of image 1 that holds most of its factual map."""
    factual = explanation.factual[0, :1]  # (1, H, W)
    inside = F.avg_pool2d(factual, size, stride=1)[0]
    top, left = divmod(int(inside.argmax()), inside.shape[1])
    return _window(top, left, size)


def _windows_everywhere(height, width, size):
    """PLACES windows along each side, fewer where they would coincide."""
    tops = torch.linspace(0, height - size[0], PLACES).round().int().unique().tolist()
    lefts = torch.linspace(0, width - size[1], PLACES).round().int().unique().tolist()
    return [_window(top, left, size) for top in tops for left in lefts]


def _window(top, left, size):
    return ..., slice(top, top + size[0]), slice(left, left + size[1])


def _pasted(image, target, source, window):
    """The image with the pixels of a window of another one."""
    edited = image.clone()
    edited[target] = source[window]
    return edited
