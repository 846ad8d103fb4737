"""Can a heatmap be believed? What hiding and showing its strongest places does to the decision, beside chance."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap

from utils.explain import Explanation, blurred, embed_explained, pairs_of, ranks_of
from utils.network import Explainable, distance, distances_of, embed_pairs, evaluating, similarity

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the pixels, strongest first
RANDOM_MAPS = 20  # to beat all of them by luck has a chance of 1 in 21
CELLS = 7  # a random map has as many along each side: lumps, as a heatmap has
BELIEVABLE, WEAK = 100, 80  # least percentiles among random maps


@dataclass(frozen=True, eq=False)
class Gap:
    """Insertion minus deletion of B pairs, float32 (B,) each, in [-1, 1].

    both: with both images changed at once. image1, image2: with that one changed beside the other as it is. different:
    the decisions, bool (B,).
    """

    both: torch.Tensor
    image1: torch.Tensor
    image2: torch.Tensor
    different: torch.Tensor

    @property
    def each(self) -> torch.Tensor:
        """Mean of image 1 alone and image 2 alone."""
        return (self.image1 + self.image2) / 2

    @property
    def decisive(self) -> torch.Tensor:
        """What can undo the decision: of both images if "different", of each image if "same".

        Two images that have lost their evidence look alike: only that undoes "different", and it never undoes "same".
        """
        return torch.where(self.different, self.both, self.each)

    def __getitem__(self, index: int | slice) -> "Gap":
        part = pairs_of(index, len(self.both))
        return Gap(self.both[part], self.image1[part], self.image2[part], self.different[part])


@dataclass(frozen=True, eq=False)
class Chance:
    """Decisive gaps of B pairs that need no knowledge of the network.

    random: float32 (RANDOM_MAPS, B), of random maps. centre: float32 (B,), of one who looks at the middle.
    """

    random: torch.Tensor
    centre: torch.Tensor

    def __getitem__(self, index: int | slice) -> "Chance":
        part = pairs_of(index, len(self.centre))
        return Chance(self.random[:, part], self.centre[part])


@dataclass(frozen=True, eq=False)
class Verdict:
    """What can be said of the factual maps of an explanation of B pairs. `verdict[3]` is that on one pair."""

    explanation: Explanation
    gap: Gap
    chance: Chance

    def __len__(self):
        return len(self.explanation)

    def __getitem__(self, index: int | slice) -> "Verdict":
        return Verdict(self.explanation[index], self.gap[index], self.chance[index])

    @property
    def percentile(self) -> torch.Tensor:
        """Share of random maps with a smaller gap, float32 (B,) in [0, 100]."""
        return 100 * (self.chance.random < self.gap.decisive).float().mean(dim=0)

    def word(self, index=0) -> str:
        """believable: better than all random maps and than the centre prior, and insertion beats deletion."""
        percentile = self.percentile[index]
        gap = self.gap.decisive[index]
        if percentile >= BELIEVABLE and gap > max(0, self.chance.centre[index]):
            return "believable"
        return "weak" if percentile >= WEAK and gap > 0 else "not better than chance"

    def sentence(self, index=0) -> str:
        """Gap, percentile and word for one pair."""
        gap = self.gap
        changed = "both images" if gap.different[index] else "each image"
        return (
            f"Factual maps, insertion minus deletion, {changed}: {gap.decisive[index]:+.3f} (image 1 "
            f"{gap.image1[index]:+.3f}, image 2 {gap.image2[index]:+.3f}, both at once {gap.both[index]:+.3f}), above "
            f"{self.percentile[index]:.0f} % of {len(self.chance.random)} random maps: {self.word(index)}."
        )


def judge(network: Explainable, explanation: Explanation, seed=0) -> Verdict:
    """Hold the factual maps of B pairs against random maps and the centre prior: 22 times the cost of their gaps."""
    gap = insertion_deletion(network, explanation)
    return Verdict(explanation, gap, measure_chance(network, explanation, seed))


def judge_all(network: Explainable, explanations: dict[str, Explanation], seed=0) -> dict[str, Verdict]:
    """The same for several explanations of the same pairs, whose chance is measured once.

    Raises ValueError when they are of different images or thresholds.
    """
    first, *others = explanations.values()
    for other in others:
        if other.threshold != first.threshold or not torch.equal(other.images, first.images):
            raise ValueError("these explanations are of different pairs: judge them one by one")
    chance = measure_chance(network, first, seed)
    return {
        name: Verdict(explanation, insertion_deletion(network, explanation), chance)
        for name, explanation in explanations.items()
    }


@torch.no_grad()
def insertion_deletion(network: Explainable, explanation: Explanation, hide=blurred) -> Gap:
    """Insertion minus deletion for pairs (after Petsiuk et al. 2018, section 3.2).

    Pixels are ranked by the evidence for the decision. For each of SHARES, the strongest pixels of an image are blurred
    (deletion), or shown in the blurred image (insertion). The support for the decision, the similarity if "same" and 1
    less the similarity if "different", is averaged over the shares; the gap is that of insertion less that of deletion.
    hide: images (B, 2, 3, H, W) to what hidden pixels show. A blank map has a gap of its own order of pixels: hold it
    against chance. Raises ValueError when `network` is not the one that was explained.
    """
    images = explanation.images
    hidden = hide(images)
    ranks = ranks_of(explanation.ranking)  # (B, 2, H, W), 0 for the strongest
    pixels = images.shape[-2] * images.shape[-1]
    differences = []
    with evaluating(network):
        untouched = embed_explained(network, explanation)  # (B, 2, D)
        for share in SHARES:
            strongest = (ranks < share * pixels)[:, :, None]  # (B, 2, 1, H, W)
            inserted = embed_pairs(network, torch.where(strongest, images, hidden))
            deleted = embed_pairs(network, torch.where(strongest, hidden, images))
            support_inserted = _support(inserted, untouched, explanation.different)
            support_deleted = _support(deleted, untouched, explanation.different)
            differences.append(support_inserted - support_deleted)
    both, image1, image2 = torch.stack(differences).mean(dim=0)
    return Gap(both, image1, image2, explanation.different)


def measure_chance(network: Explainable, explanation: Explanation, seed=0) -> Chance:
    """The gaps of RANDOM_MAPS random maps and of the centre prior on the pairs of an explanation."""
    images = explanation.images
    threshold = explanation.threshold
    random = []
    for draw in range(RANDOM_MAPS):
        blind = explain_at_random(network, images, threshold, seed + draw)
        random.append(insertion_deletion(network, blind).decisive)
    centre = insertion_deletion(network, explain_by_centre(network, images, threshold))
    return Chance(torch.stack(random), centre.decisive)


def explain_at_random(network: Explainable, images, threshold: float, seed=0) -> Explanation:
    """Maps that know nothing, smooth as heatmaps are, drawn from `seed`: what any explanation must beat."""
    random = torch.rand(len(images), 4, CELLS, CELLS, generator=torch.Generator().manual_seed(seed))
    maps = F.interpolate(random.to(images.device), size=images.shape[-2:], mode="bilinear", align_corners=False)
    distances = distances_of(network, images)
    return Explanation(images, distances, threshold, maps[:, :2], maps[:, 2:], method="random map")


def explain_by_centre(network: Explainable, images, threshold: float) -> Explanation:
    """The maps of one who looks at the middle, whatever is there."""
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, device=images.device)[:, None]
    x = torch.linspace(-1, 1, width, device=images.device)
    maps = torch.exp(-2 * (y**2 + x**2)).expand(len(images), 2, -1, -1)
    return Explanation(images, distances_of(network, images), threshold, maps, maps, method="centre prior")


def interval(values, seed=0) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the mean of `values` (N,), percentile method, 2000 resamples.

    Of fewer than two values, or equal ones, both ends are their mean.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=seed).confidence_interval
    return float(found.low), float(found.high)


def _support(changed, untouched, different):
    """What speaks for the decision when both images, image 1 or image 2 are changed: embeddings to (3, B)."""
    both = distance(changed[:, 0], changed[:, 1])
    image1 = distance(changed[:, 0], untouched[:, 1])
    image2 = distance(untouched[:, 0], changed[:, 1])
    similar = similarity(torch.stack([both, image1, image2]))
    return torch.where(different, 1 - similar, similar)
