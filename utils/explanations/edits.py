"""Edits that are checked: the smallest change of the images that flips the decision, by running the network again."""

import math
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from ..device import progress
from ..network.distance import Explainable, blurred, distance, embed_pairs, evaluating, similarity
from .explanation import Explanation, embed_explained, only_pair, ranks_of
from .references import References, in_classes, most_frequent_class

AREAS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
PLACES = 3  # of the strongest windows: where pixels are taken from, and where they go
SCALES = (1.0, 1.4, 2.0)  # of what is put in: objects differ in size
REACH = 0.6  # standard deviation of a region's Gaussian, as a share of the side of a square of its area
BORDER = 0.02  # standard deviation of the blending at the border, as a share of the image's sides
TINY = 1e-12  # a map that is zero everywhere still has strongest places


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one pair, and what the network says of the result."""

    explanation: Explanation
    """Of the pair before the change."""
    edited: torch.Tensor
    """Float (2, C, H, W): both images after the change."""
    regions: torch.Tensor
    """Bool (2, H, W): what was changed in each image."""
    distance: float
    """Of the edited pair."""
    donor: Explanation | None = None
    """The pair whose image 2 gave the pixels that were put into image 1; None where pixels were blurred."""
    donor_region: torch.Tensor | None = None
    """Bool (H, W): where these pixels were in that image."""
    nearest_before: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Names of the references nearest to each image before the change, nearest first; None without references."""
    nearest_after: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """The same after the change."""
    corrected: dict[str, str] = field(default_factory=dict)
    """Of the references, as `References` has it."""

    @property
    def before(self) -> float:
        """Similarity before the change, in [0, 1]."""
        return self.explanation.similarity.item()

    @property
    def after(self) -> float:
        """Similarity after the change, in [0, 1]."""
        return similarity(torch.tensor(self.distance)).item()

    @property
    def flipped(self) -> bool:
        """Whether the change flips the decision."""
        return (self.distance > self.explanation.threshold) != self.explanation.different.item()

    @property
    def area(self) -> float:
        """Changed share of the pixels, in [0, 1]: of image 1 if the pair was "different", else of both images."""
        shares = self.regions.float().mean(dim=(1, 2))
        return (shares[0] if self.explanation.different else shares.mean()).item()

    def sentence(self) -> str:
        """Return what was changed, how much, with what result, and the classes of the nearest references."""
        changed = self.regions.flatten(1).any(dim=1)
        numbers = changed.nonzero()[:, 0].tolist()
        what = "both images" if len(numbers) == 2 else f"image {1 + numbers[0]}"
        how = "blurred" if self.donor is None else f"replaced by pixels of {self.donor.names[0][1]}"
        share = self.regions[changed].float().mean()
        outcome = "the decision flips" if self.flipped else "the decision stays: no change that was tried flips it"
        text = f"{share:.1%} of {what} {how}: similarity {self.before:.3f} to {self.after:.3f}, {outcome}."
        if self.nearest_before is None:
            return text
        for number in numbers:
            before = in_classes(self.nearest_before[number], self.corrected)
            after = in_classes(self.nearest_after[number], self.corrected)
            text += f" Of the training images nearest to image {number + 1}, {before} before, {after} after."
        return text


@torch.no_grad()
def smallest_edit(
    network: Explainable,
    explanation: Explanation,
    references: References | None = None,
    donors: Explanation | None = None,
) -> Edit:
    """Find the smallest change along the maps of one explained pair that flips its decision, of those tried.

    "different": a region of image 1 takes the pixels of a region of image 2, blended at the border. Regions lie around
    the places where the evidence of both maps together is strongest: there the network looks. "same": a region is
    blurred, the strongest factual places first, in both images or in one of them; or, with `donors`, image 1 takes
    pixels of image 2 of one of them, if that is smaller.

    Args:
        network: The network that was explained.
        explanation: Of one pair.
        references: With names: pixels are put in until the nearest references of image 1 are of the class of those
            of the image that gave the pixels.
        donors: Explained pairs of any image and one of another class.

    Returns:
        The smallest change that flips the decision; without any, the one that comes nearest to it.

    Raises:
        ValueError: The explanation is of several pairs, or of another network.

    Source: after Goyal et al. 2019, Counterfactual Visual Explanations, section 3, which tries all regions.
    """
    only_pair(explanation)
    if references is not None and not references.names:
        references = None
    with evaluating(network):
        embeddings = embed_explained(network, explanation)[0]  # (2, D)
        if explanation.different:
            edits = [_replace_region(network, explanation, explanation, references)]
        else:
            edits = _blur_regions(network, explanation)
            if donors is not None:
                embed_explained(network, donors)
                edits += [_replace_region(network, explanation, donor, references) for donor in donors]
        edit = min(edits, key=_cost)
        if references is None:
            return edit
        embeddings_after = network(edit.edited)
    before = references.nearest(embeddings[0]), references.nearest(embeddings[1])
    after = references.nearest(embeddings_after[0]), references.nearest(embeddings_after[1])
    return replace(edit, nearest_before=before, nearest_after=after, corrected=references.corrected)


def _cost(edit: Edit):
    """Order edits: the smallest that flips the decision first, then the one that comes nearest to it."""
    if edit.flipped:
        return 0, edit.area
    return 1, abs(edit.distance - edit.explanation.threshold)


def _blur_regions(network, explanation) -> list[Edit]:
    """Blur growing regions of both images, of image 1 alone and of image 2 alone."""
    images = explanation.images[0]  # (2, C, H, W)
    ranks = ranks_of(explanation.ranking)[0]  # (2, H, W)
    regions = torch.stack([ranks < area * ranks[0].numel() for area in (0, *AREAS)])  # (1 + A, 2, H, W)
    blurry = torch.where(regions[:, :, None], blurred(images), images)  # (1 + A, 2, C, H, W)
    embeddings = embed_pairs(network, blurry)  # (1 + A, 2, D)
    edits = []
    for area in range(1, len(regions)):
        for first, second in ((area, area), (area, 0), (0, area)):
            edited = torch.stack([blurry[first, 0], blurry[second, 1]])
            changed = torch.stack([regions[first, 0], regions[second, 1]])
            after = distance(embeddings[first, 0], embeddings[second, 1])
            edits.append(Edit(explanation, edited, changed, after.item()))
    return edits


def _replace_region(network, explanation, donor, references) -> Edit:
    """Put regions of the donor's image 2 into image 1, from small to large, up to the first that flips the decision."""
    image1, image2 = explanation.images[0]  # (C, H, W) each
    given = donor.images[0, 1]
    embedding2, goal = network(torch.stack([image2, given]))
    strength, given_strength = _strength(explanation)[0], _strength(donor)[1]
    sign = -1 if explanation.different else 1  # which way the distance must go
    edits = []
    for area in progress(AREAS, "Edits"):
        edited, regions, donor_regions = _transplants(image1, given, strength, given_strength, area)
        embeddings = network(edited)  # (N, D)
        distances = distance(embeddings, embedding2)
        changed = regions.flatten(1).any(dim=1)
        enough = changed & ((distances > explanation.threshold) != explanation.different)
        if references is not None:
            enough &= _look_like(goal, embeddings, references)
        candidates = enough if enough.any() else changed
        best = int((sign * distances).masked_fill(~candidates, -torch.inf).argmax())
        images = torch.stack([edited[best], image2])
        both = torch.stack([regions[best], torch.zeros_like(regions[best])])
        edit = Edit(explanation, images, both, distances[best].item(), donor, donor_regions[best])
        if enough.any():
            return edit
        edits.append(edit)
    return min(edits, key=_cost)  # it flips, but looks like another class; or it does not flip


def _look_like(goal, embeddings, references):
    """Whether embeddings (N, D) are nearest to references of the class that `goal` (D,) is nearest to: bool (N,)."""
    wanted, _ = most_frequent_class(references.nearest(goal), references.corrected)
    alike = []
    for embedding in embeddings:
        name, _ = most_frequent_class(references.nearest(embedding), references.corrected)
        alike.append(name == wanted)
    return torch.tensor(alike, device=embeddings.device)


def _transplants(image, given, strength, given_strength, area):
    """Put regions of another image into an image, for all places and scales.

    Returns:
        The edited images (N, C, H, W), which of their pixels changed, and which of the other image's pixels were put
        in, bool (N, H, W) each.
    """
    sources, targets = _strongest_windows(given_strength, area), _strongest_windows(strength, area)
    solid, matrices = [], []
    for source, target, scale in product(sources, targets, SCALES):
        solid.append(_region(given_strength, source, area / scale**2))
        y, x = 2 * (np.array(source) - np.array(target) / scale) - 1 + 1 / scale
        matrices.append([[1 / scale, 0, x], [0, 1 / scale, y]])  # from the edited image to the other one
    soft = _softened(torch.stack(solid).float())  # (N, H, W)
    pixels = torch.cat([given.expand(len(solid), -1, -1, -1), soft[:, None]], dim=1)  # (N, C + 1, H, W)
    matrices = torch.tensor(matrices, device=pixels.device, dtype=pixels.dtype)
    grid = F.affine_grid(matrices, pixels.shape, align_corners=False)
    moved = F.grid_sample(pixels, grid, align_corners=False)
    cover = _ramp(moved[:, -1:])  # (N, 1, H, W)
    edited = cover * moved[:, :-1] + (1 - cover) * image
    return edited, cover[:, 0] > 0, _ramp(soft) > 0


def _ramp(soft):
    """How much of what is put in shows, in [0, 1]: 0 from the border of its region on, so that nothing else changes."""
    return (2 * soft - 1).clamp(0, 1)


def _strength(explanation) -> torch.Tensor:
    """How much each place of both images of a pair counts towards either decision: float (2, H, W), smoothed."""
    return _softened((explanation.towards_different + explanation.towards_same)[0])


def _softened(maps):
    """Maps (N, H, W) after a narrow Gaussian blur."""
    from kornia.filters import gaussian_blur2d  # slow to import

    height, width = maps.shape[-2:]
    sigma = BORDER * height, BORDER * width
    kernel = 2 * math.ceil(3 * sigma[0]) + 1, 2 * math.ceil(3 * sigma[1]) + 1
    return gaussian_blur2d(maps[None], kernel, sigma)[0]


def _strongest_windows(strength, area):
    """The centres, (y, x) in [0, 1], of PLACES windows of that area that hold most of a map (H, W), some way apart."""
    height, width = strength.shape
    tall, wide = max(round(area**0.5 * height), 1), max(round(area**0.5 * width), 1)
    inside = F.avg_pool2d(strength[None], (tall, wide), stride=1)[0]
    centres = []
    while len(centres) < PLACES and inside.max() >= 0:
        top, left = divmod(int(inside.argmax()), inside.shape[1])
        centres.append(((top + tall / 2) / height, (left + wide / 2) / width))
        rows = slice(max(top - tall // 3, 0), top + tall // 3 + 1)
        columns = slice(max(left - wide // 3, 0), left + wide // 3 + 1)
        inside[rows, columns] = -1  # strengths are at least 0
    return centres


def _region(strength, centre, area):
    """The share `area` of the pixels of a map (H, W) that is strongest around a place: bool (H, W)."""
    height, width = strength.shape
    y = (torch.arange(height, device=strength.device)[:, None] + 0.5) / height - centre[0]
    x = (torch.arange(width, device=strength.device) + 0.5) / width - centre[1]
    around = torch.exp(-(y**2 + x**2) / (2 * area * REACH**2))
    return ranks_of((strength + TINY) * around) < area * strength.numel()
