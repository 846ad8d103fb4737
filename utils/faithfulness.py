"""Can a heatmap be believed? What hiding and showing its strongest places does to the decision, beside chance."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap

from utils.explanation import Explanation, stacked
from utils.siamese import distance, distances_of, evaluating, similarity
from utils.transforms import blurred

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the pixels, strongest first
RANDOM_MAPS = 20  # to beat all of them by luck has a chance of 1 in 21
CELLS = 7  # a random map has as many along each side: lumps, as a heatmap has
BELIEVABLE, WEAK = 100, 80  # least percentiles among random maps


@dataclass(frozen=True)
class Gap:
    """Insertion less deletion of B pairs, float32 (B,) each, in [-1, 1]: in both images at once, in image 1 or 2 alone.

    different: the decisions, bool (B,).
    """

    joint: torch.Tensor
    image1: torch.Tensor
    image2: torch.Tensor
    different: torch.Tensor

    @property
    def alone(self) -> torch.Tensor:
        """Mean of both images, each changed beside the other as it is."""
        return (self.image1 + self.image2) / 2

    @property
    def telling(self) -> torch.Tensor:
        """The gap that the decision hangs on: joint if "different", alone if "same".

        Two images that have lost their evidence look alike: only that undoes "different", and it never undoes "same".
        """
        return torch.where(self.different, self.joint, self.alone)


@torch.no_grad()
def gaps(network, images1, images2, explanation: Explanation, hide=blurred) -> Gap:
    """Insertion and deletion for pairs (after Petsiuk et al. 2018, section 3.2).

    images1, images2: (B, 3, H, W). Pixels are ranked by the evidence for the decision. For each of SHARES, the
    strongest pixels of an image are blurred (deletion), or shown in the blurred image (insertion). The support for the
    decision, the similarity if "same" and 1 less the similarity if "different", is averaged over the shares; the gap is
    that of insertion less that of deletion. hide: images to what hidden pixels show. A blank map has a gap of its own
    order of pixels: hold it against chance.
    """
    images = stacked(images1, images2)
    count, (height, width) = len(images1), images.shape[2:]
    ranks = _ranks(explanation.ranking)  # (2B, H, W), 0 for the strongest
    hidden, total = hide(images), 0
    with evaluating(network):
        untouched = network(images)
        for share in SHARES:
            strongest = (ranks < share * height * width)[:, None]  # (2B, 1, H, W)
            for sign, shown in ((1, strongest), (-1, ~strongest)):
                changed = network(torch.where(shown, images, hidden))
                pairs = (changed, changed), (changed, untouched), (untouched, changed)
                similar = torch.stack(
                    [similarity(distance(one[:count], other[count:])) for one, other in pairs]
                )  # (3, B): joint, image 1 alone, image 2 alone
                total = total + sign * torch.where(explanation.different, 1 - similar, similar) / len(SHARES)
    return Gap(*total, explanation.different)


def mean_colour(images) -> torch.Tensor:
    """Each image (B, 3, H, W) as its mean colour: hides pixels otherwise than the methods that blur do."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def explain_at_random(network, images1, images2, threshold: float, seed=0) -> Explanation:
    """Maps that know nothing, smooth as heatmaps are, drawn from `seed`: what any explanation must beat."""
    random = torch.rand(len(images1), 4, CELLS, CELLS, generator=torch.Generator().manual_seed(seed))
    maps = F.interpolate(random.to(images1.device), size=images1.shape[2:], mode="bilinear", align_corners=False)
    return Explanation(distances_of(network, images1, images2), threshold, maps[:, :2], maps[:, 2:])


def explain_by_centre(network, images1, images2, threshold: float) -> Explanation:
    """The maps of one who looks at the middle, whatever is there."""
    (height, width), device = images1.shape[2:], images1.device
    y, x = torch.linspace(-1, 1, height, device=device)[:, None], torch.linspace(-1, 1, width, device=device)
    maps = torch.exp(-2 * (y**2 + x**2)).expand(len(images1), 2, -1, -1)
    return Explanation(distances_of(network, images1, images2), threshold, maps, maps)


@dataclass(frozen=True)
class Verdict:
    """What can be said of the maps of B pairs.

    gap: of the explanation. random: gaps of RANDOM_MAPS random maps, float32 (RANDOM_MAPS, B), and centre: of the
    centre prior, float32 (B,), each the telling one.
    """

    gap: Gap
    random: torch.Tensor
    centre: torch.Tensor

    @property
    def percentile(self) -> torch.Tensor:
        """Share of random maps with a smaller gap, float32 (B,) in [0, 100]."""
        return 100 * (self.random < self.gap.telling).float().mean(dim=0)

    def word(self, index=0) -> str:
        """believable: better than all random maps and than the centre prior, and insertion beats deletion."""
        percentile, gap = self.percentile[index], self.gap.telling[index]
        if percentile >= BELIEVABLE and gap > max(0, self.centre[index]):
            return "believable"
        return "weak" if percentile >= WEAK and gap > 0 else "not better than chance"

    def sentence(self, index=0) -> str:
        """Gap, percentile and word for one pair."""
        gap = self.gap
        return (
            f"Telling gap {gap.telling[index]:+.3f} (image 1 {gap.image1[index]:+.3f}, image 2 "
            f"{gap.image2[index]:+.3f}, both at once {gap.joint[index]:+.3f}), above {self.percentile[index]:.0f} % of "
            f"{len(self.random)} random maps: {self.word(index)}."
        )


def chance(network, images1, images2, threshold: float, seed=0):
    """Gaps that need no knowledge: (RANDOM_MAPS, B) of random maps and (B,) of the centre prior; for `Verdict`."""
    pairs = network, images1, images2
    random = [gaps(*pairs, explain_at_random(*pairs, threshold, seed + draw)).telling for draw in range(RANDOM_MAPS)]
    return torch.stack(random), gaps(*pairs, explain_by_centre(*pairs, threshold)).telling


def judge(network, images1, images2, explanation: Explanation, seed=0) -> Verdict:
    """Hold the maps of B pairs against random maps and the centre prior: 22 times the cost of their gaps."""
    pairs = network, images1, images2
    return Verdict(gaps(*pairs, explanation), *chance(*pairs, explanation.threshold, seed))


def interval(values, seed=0) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the mean of `values` (N,), percentile method, 2000 resamples.

    Of fewer than two values, or equal ones, both ends are their mean.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=seed).confidence_interval
    return float(found.low), float(found.high)


def _ranks(ranking):
    """(B, 2, H, W) to the place of each pixel within its image, all images 1, then all images 2: (2B, H, W)."""
    flat = torch.cat(ranking.unbind(1)).flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(-1, *ranking.shape[2:])
