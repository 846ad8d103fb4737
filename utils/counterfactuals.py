"""Counterfactuals that are checked: the smallest change found that flips the decision, by running the network again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.evaluation import Trained
from utils.explanation import Explanation
from utils.siamese import distance, evaluating, similarity
from utils.transforms import blurred

AREAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SIDES = (
    0.15,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.45,
    0.5,
    0.6,
    0.7,
    0.85,
)  # of a swapped window, in sides of the image: all of it would flip any pair
PLACES = 7  # windows of image 2 along each side that are tried


@dataclass(frozen=True)
class Counterfactual:
    """A change of one pair and what the network says to it.

    edited: float32 (2, 3, H, W), both images after the change. regions: bool (2, H, W), what was changed in each. area:
    changed share of the pixels that might be changed, in [0, 1]: of both images if blurred, of image 1 if swapped.
    before, after: similarity. flipped: whether the decision is another one.
    """

    edited: torch.Tensor
    regions: torch.Tensor
    area: float
    before: float
    after: float
    flipped: bool

    def sentence(self) -> str:
        """What was changed, how much, and what came of it."""
        touched = self.regions.flatten(1).any(dim=1)
        what = "both images" if touched.all() else f"image {1 + int(touched[1])}"
        changed = self.regions[touched].float().mean()
        outcome = "the decision flips" if self.flipped else "the decision stays: no change that was tried flips it"
        return f"{changed:.1%} of {what} changed: similarity {self.before:.3f} to {self.after:.3f}, {outcome}."


@torch.no_grad()
def counterfactual(network, image1, image2, explanation: Explanation, index=0) -> Counterfactual:
    """The smallest change along the maps of a pair that flips its decision, of those tried.

    image1, image2: (1, 3, H, W). "same": a region is blurred, the strongest factual places first, in both images or in
    one of them. "different": a window of image 1, where its factual map is strongest, takes the pixels of the window of
    image 2 that brings the pair closest (after Goyal et al. 2019, section 3: by trial of every place). Without a flip,
    the change that came nearest is returned.
    """
    search = _swapped if explanation.different[index] else _blurred
    with evaluating(network):
        edits = list(search(network, image1, image2, explanation, explanation.ranking[index]))
    before = explanation.similarity[index].item()
    return min(
        (Counterfactual(*edit[:3], before, *edit[3:]) for edit in edits),
        key=lambda found: (found.area, 0) if found.flipped else (2, abs(found.after - (1 - explanation.threshold / 2))),
    )


def counterfactual_of_files(trained: Trained, explanation: Explanation, path1, path2) -> Counterfactual:
    """The same for two image files and their explanation."""
    return counterfactual(trained.network, trained.load_images(path1), trained.load_images(path2), explanation)


def _blurred(network, image1, image2, explanation, ranking):
    """Yields (edited, regions, area, similarity, flipped) for every region that was blurred."""
    images = torch.cat([image1, image2])
    ranks = ranking.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(ranking)  # (2, H, W)
    regions = torch.stack([ranks < area * ranks[0].numel() for area in (0, *AREAS)])  # (1 + A, 2, H, W)
    edited = torch.where(regions[:, :, None], blurred(images), images)  # (1 + A, 2, 3, H, W)
    ones, twos = network(edited.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)  # (1 + A, E) each
    last = len(AREAS)
    for step in range(1, last + 1):
        for first, second in ((step, step), (step, 0), (0, step)):
            apart = distance(ones[first], twos[second])
            pair = torch.stack([edited[first, 0], edited[second, 1]])
            region = torch.stack([regions[first, 0], regions[second, 1]])
            yield (
                pair,
                region,
                region.float().mean().item(),
                similarity(apart).item(),
                bool(apart > explanation.threshold),
            )


def _swapped(network, image1, image2, explanation, ranking):
    """The same for windows of growing side, up to the first that flips."""
    height, width = image1.shape[2:]
    other = network(image2)
    for side in SIDES:
        tall, wide = round(side * height), round(side * width)
        inside = F.avg_pool2d(ranking[:1].clamp(min=0)[None], (tall, wide), stride=1)[0, 0]
        top, left = divmod(int(inside.argmax()), inside.shape[1])
        tops, lefts = (
            torch.linspace(0, room, PLACES).round().int().unique().tolist() for room in (height - tall, width - wide)
        )
        patches = torch.cat([image2[..., y : y + tall, x : x + wide] for y in tops for x in lefts])
        edited = image1.repeat(len(patches), 1, 1, 1)
        edited[..., top : top + tall, left : left + wide] = patches
        apart = distance(network(edited), other)
        best = int(apart.argmin())
        region = torch.zeros(2, height, width, dtype=torch.bool)
        region[0, top : top + tall, left : left + wide] = True
        flipped = bool(apart[best] <= explanation.threshold)
        pair = torch.stack([edited[best], image2[0]])
        yield pair, region, region[0].float().mean().item(), similarity(apart[best]).item(), flipped
        if flipped:
            return
