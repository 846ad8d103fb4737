"""Counterfactuals that are checked: the smallest change found that flips the decision, by running the network again."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d

from ..network.distance import Explainable, distance, embed_pairs, evaluating, similarity
from .explanation import Explanation, embed_explained, only_pair, ranks_of
from .occlusion import blurred
from .path import References

AREAS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
PLACES = 3  # of the strongest windows: where pixels are taken from, and where they go
SCALES = (1.0, 1.4, 2.0)  # of what is put in: objects differ in size
REACH = 0.6  # standard deviation of a region's Gaussian, as a share of the side of a square of its area
BORDER = 0.02  # standard deviation of the blending at the border, as a share of the image's sides
TINY = 1e-12  # a map that is zero everywhere still has places
NEAREST = 5  # reference images that say what an image looks like


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one pair and what the network says to it.

    explanation: of the pair as it was. edited: float (2, C, H, W), both images after the change. regions: bool (2, H,
    W), what was changed in each. distance: of the edited pair. donor: the pair whose image 2 gave the pixels that were
    put into image 1, None where pixels were blurred. donor_region: bool (H, W), where in that image they were.
    nearest_before, nearest_after: names of the nearest references of both images, nearest first; None without
    references.
    """

    explanation: Explanation
    edited: torch.Tensor
    regions: torch.Tensor
    distance: float
    donor: Explanation | None = None
    donor_region: torch.Tensor | None = None
    nearest_before: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    nearest_after: tuple[tuple[str, ...], tuple[str, ...]] | None = None

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
        """What was changed, how much, what came of it, and which references the changed images are nearest to."""
        touched = self.regions.flatten(1).any(dim=1).tolist()
        what = "both images" if all(touched) else f"image {1 + touched.index(True)}"
        how = "blurred" if self.donor is None else f"replaced by pixels of {self.donor.names[0][1]}"
        changed = self.regions[touched].float().mean()
        outcome = "the decision flips" if self.flipped else "the decision stays: no change that was tried flips it"
        lines = [f"{changed:.1%} of {what} {how}: similarity {self.before:.3f} to {self.after:.3f}, {outcome}."]
        if self.nearest_before is not None:
            for image in (number for number in range(2) if touched[number]):
                lines.append(
                    f"Of the training images nearest to image {image + 1}, {in_classes(self.nearest_before[image])} "
                    f"before, {in_classes(self.nearest_after[image])} after."
                )
        return " ".join(lines)


@torch.no_grad()
def smallest_edit(
    network: Explainable,
    explanation: Explanation,
    references: References | None = None,
    donors: Explanation | None = None,
) -> Edit:
    """The smallest change along the maps of one explained pair that flips its decision, of those tried.

    "different": a region of image 1 takes the pixels of a region of image 2, blended at the border (after Goyal et al.
    2019, Counterfactual Visual Explanations, section 3, whose regions are found by trying all). Regions lie around the
    places where the evidence of each map, for and against together, is strongest: there the network looks. "same": a
    region is blurred, the strongest factual places first, in both images or in one of them; or, with `donors`, image 1
    takes pixels of image 2 of one of them, if that is smaller.

    references: what an image looks like is the class of most of its nearest ones. With them, pixels are put in until
    image 1 looks like the image that they are from. donors: pairs of any image and one of another class, explained.

    Without a flip, the change that came nearest is returned. Raises ValueError for more than one pair, and for another
    network than the explained one.
    """
    different = only_pair(explanation).different.item()
    if references is not None and not references.names:
        references = None  # they say nothing of classes
    with evaluating(network):
        embeddings = embed_explained(network, explanation)
        if different:
            found = _replaced(network, explanation, explanation, references)
        else:
            found = _blurred(network, explanation)
        if not different and donors is not None:
            embed_explained(network, donors)
            others = [_replaced(network, explanation, donor, references) for donor in donors]
            found = min(found, *others, key=_cost)
        if references is None:
            return found
        after = embed_pairs(network, found.edited[None])
    nearest_before, nearest_after = (tuple(nearest(references, one) for one in pair[0]) for pair in (embeddings, after))
    return replace(found, nearest_before=nearest_before, nearest_after=nearest_after)


def nearest(references: References, embedding: torch.Tensor, count=NEAREST) -> tuple[str, ...]:
    """Names of the `count` references nearest to an embedding (D,), nearest first."""
    apart = distance(references.embeddings.to(embedding), embedding)  # (R,)
    return tuple(references.names[index] for index in apart.argsort()[:count].tolist())


def in_classes(names) -> str:
    """How many references are of the class that most of them are of, in words: "4 of 5 are rose"."""
    most, count = _most_frequent(names)
    return f"{count} of {len(names)} {'is' if count == 1 else 'are'} {most}"


def _blurred(network, explanation) -> Edit:
    """Blurs growing regions of both images, of image 1 alone and of image 2 alone."""
    images = explanation.images[0]  # (2, C, H, W)
    regions = torch.stack([_strongest_places(explanation, share) for share in (0, *AREAS)])  # (1 + A, 2, H, W)
    edited = torch.where(regions[:, :, None], blurred(images), images)  # (1 + A, 2, C, H, W)
    embeddings = embed_pairs(network, edited)  # (1 + A, 2, D)
    steps = range(1, len(regions))
    tried = [change for step in steps for change in ((step, step), (step, 0), (0, step))]
    first, second = torch.tensor(tried).unbind(1)  # which step of image 1 beside which of image 2
    distances = distance(embeddings[first, 0], embeddings[second, 1])  # (3A,)
    touched = torch.stack([regions[first, 0], regions[second, 1]], dim=1)  # (3A, 2, H, W)
    best = _best(distances, touched.float().mean(dim=(1, 2, 3)), explanation)
    images = torch.stack([edited[first[best], 0], edited[second[best], 1]])
    return Edit(explanation, images, touched[best], distances[best].item())


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


def _replaced(network, explanation, donor, references) -> Edit:
    """Puts regions of the donor's image 2 into image 1, from small to large, up to the first that flips."""
    image1, image2 = explanation.images[0]  # (C, H, W) each
    given = donor.images[0, 1]
    fixed, goal = network(torch.stack([image2, given]))
    sign = -1 if explanation.different else 1  # which way the distance must go
    found = []
    for area in AREAS:
        edited, regions, sources = _edits(image1, given, _strength(explanation)[0], _strength(donor)[1], area)
        embeddings = network(edited)  # (N, D)
        distances = distance(embeddings, fixed)
        touched = regions.flatten(1).any(dim=1)
        enough = ((distances > explanation.threshold) != explanation.different) & touched
        if references is not None:
            enough &= _alike(references, embeddings, goal)
        chosen = enough if enough.any() else touched
        best = int((sign * distances).masked_fill(~chosen, -torch.inf).argmax())
        images = torch.stack([edited[best], image2])
        region = torch.stack([regions[best], torch.zeros_like(regions[best])])
        change = Edit(explanation, images, region, distances[best].item(), donor, sources[best])
        if enough.any():
            return change
        found.append(change)
    return min(found, key=_cost)  # it flips, but looks like another class; or it does not flip


def _cost(change: Edit):
    """What orders changes: the smallest that flips first, then the one that comes nearest to it."""
    missed = abs(change.distance - change.explanation.threshold)
    return not change.flipped, change.area if change.flipped else missed


def _edits(image, given, strength, given_strength, area):
    """An image with regions of another one put in, for all places and scales: (N, C, H, W); which of its pixels
    changed, bool (N, H, W), and which of the other image's were put in, bool (N, H, W).
    """
    places = _strongest_places_of(strength, area)
    choices = list(product(_strongest_places_of(given_strength, area), places, SCALES))
    solid = torch.stack([_region(given_strength, place, area / scale**2) for place, _, scale in choices])  # (N, H, W)
    soft = _softened(solid.float())
    pixels = torch.cat([given.expand(len(choices), -1, -1, -1), soft[:, None]], dim=1)  # (N, C + 1, H, W)
    moved = F.grid_sample(pixels, _grids(choices, pixels), align_corners=False)
    cover = _ramp(moved[:, -1:])  # (N, 1, H, W)
    edited = cover * moved[:, :-1] + (1 - cover) * image
    return edited, cover[:, 0] > 0, _ramp(soft) > 0


def _ramp(soft):
    """How much of what is put in shows, in [0, 1]: 0 from the border of its region on, so that nothing else changes."""
    return (2 * soft - 1).clamp(0, 1)


def _grids(choices, images):
    """Where each pixel of the edited images (N, C, H, W) comes from, (N, H, W, 2), as `grid_sample` takes it."""
    matrices = []
    for (from_y, from_x), (to_y, to_x), scale in choices:
        x = 2 * (from_x - to_x / scale) - 1 + 1 / scale  # places in [0, 1] to coordinates in [-1, 1]
        y = 2 * (from_y - to_y / scale) - 1 + 1 / scale
        matrices.append([[1 / scale, 0, x], [0, 1 / scale, y]])
    matrices = torch.tensor(matrices, device=images.device, dtype=images.dtype)
    return F.affine_grid(matrices, images.shape, align_corners=False)


def _strength(explanation) -> torch.Tensor:
    """How much each place of both images of a pair counts, either way: float (2, H, W), smoothed."""
    return _softened((explanation.towards_different + explanation.towards_same)[0])


def _softened(maps):
    """Maps (N, H, W) after a narrow Gaussian blur."""
    sigma = tuple(BORDER * side for side in maps.shape[-2:])
    kernel = tuple(2 * math.ceil(3 * side) + 1 for side in sigma)
    return gaussian_blur2d(maps[None], kernel, sigma)[0]


def _strongest_places_of(strength, area):
    """The centres, (y, x) in [0, 1], of the PLACES windows of that area that hold most of a map (H, W), apart."""
    height, width = strength.shape
    down, across = (max(round(area**0.5 * side), 1) for side in (height, width))
    inside = F.avg_pool2d(strength[None], (down, across), stride=1)[0]
    places = []
    while len(places) < PLACES and inside.max() >= 0:
        top, left = divmod(int(inside.argmax()), inside.shape[1])
        places.append(((top + down / 2) / height, (left + across / 2) / width))
        rows = slice(max(top - down // 3, 0), top + down // 3 + 1)
        columns = slice(max(left - across // 3, 0), left + across // 3 + 1)
        inside[rows, columns] = -1  # strengths are at least 0
    return places


def _region(strength, place, area):
    """The share `area` of the pixels of a map (H, W) that is strongest around a place: bool (H, W)."""
    height, width = strength.shape
    y = (torch.arange(height, device=strength.device)[:, None] + 0.5) / height - place[0]
    x = (torch.arange(width, device=strength.device) + 0.5) / width - place[1]
    around = torch.exp(-(y**2 + x**2) / (2 * area * REACH**2))
    return ranks_of((strength + TINY) * around) < area * strength.numel()


def _alike(references, embeddings, goal):
    """Which of N embeddings (N, D) are nearest to references of the class that `goal` (D,) is nearest to: bool (N,)."""
    wanted = _most_frequent(nearest(references, goal))[0]
    found = [_most_frequent(nearest(references, one))[0] == wanted for one in embeddings]
    return torch.tensor(found, device=embeddings.device)


def _most_frequent(names):
    """The most frequent class among references and how many are of it; of equally many, that of the nearest one."""
    classes = [name.split("/")[0] for name in names]
    return Counter(classes).most_common(1)[0]
