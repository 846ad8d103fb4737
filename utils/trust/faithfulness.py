"""Insertion and deletion: what hiding and showing the strongest places of a map does to the decision."""

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..explanations.explanation import Explanation, embed_explained, pairs_of, ranks_of
from ..explanations.occlusion import blurred
from ..network.distance import Explainable, distance, distances_of, embed_pairs, evaluating, similarity

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels, strongest first; alike from both ends, or chance would not be 0


@dataclass(frozen=True, eq=False)
class Effect:
    """What changing the images of B pairs does to the support for the decision, float32 (B,) each, in [-1, 1].

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

    def of(self, part: str) -> torch.Tensor:
        """What counts for the pair, "pair", or is of one image alone, "image 1" or "image 2"."""
        return {"pair": self.decisive, "image 1": self.image1, "image 2": self.image2}[part]

    def __getitem__(self, index: int | slice) -> "Effect":
        part = pairs_of(index, len(self.both))
        return Effect(self.both[part], self.image1[part], self.image2[part], self.different[part])


@dataclass(frozen=True, eq=False)
class Masked:
    """Embeddings (S, B, 2, D) of B pairs of images, at each of S shares of pixels shown or hidden."""

    inserted: torch.Tensor
    deleted: torch.Tensor

    def reversed(self) -> "Masked":
        """The same of the opposite ranking: its strongest tenth is what is left when nine tenths are deleted."""
        return Masked(self.deleted.flip(0), self.inserted.flip(0))


@torch.no_grad()
def insertion_deletion(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """Insertion minus deletion for pairs (after Petsiuk et al. 2018, section 3.2): the gap.

    Pixels are ranked by the evidence for the decision. For each of SHARES, the strongest pixels of an image are blurred
    (deletion), or shown in the blurred image (insertion). The support for the decision, the similarity if "same" and 1
    less the similarity if "different", is averaged over the shares; the gap is that of insertion less that of deletion.
    hide: images (B, 2, C, H, W) to what hidden pixels show. A blank map has a gap of its own order of pixels: hold it
    against chance. Raises ValueError when `network` is not the one that was explained.
    """
    masked, untouched = embed_evidence(network, explanation, hide)
    return gap_of(masked, untouched, explanation.different)


@torch.no_grad()
def span_of(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """What there is to be had: the support of the untouched pair less that of the pair whose pixels are all hidden."""
    images = explanation.images
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        hidden = embed_pairs(network, hide(images))
    lost = support(untouched, untouched, explanation.different) - support(hidden, untouched, explanation.different)
    return Effect(*lost, explanation.different)


@torch.no_grad()
def embed_evidence(network: Explainable, explanation: Explanation, hide=blurred) -> tuple[Masked, torch.Tensor]:
    """Embeddings of the explained images with their evidence shown and hidden, and as they are: (B, 2, D)."""
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        return embed_masked(network, explanation.images, explanation.ranking, hide), untouched


def embed_masked(network: Explainable, images, ranking, hide=blurred) -> Masked:
    """Embeddings of images (B, 2, C, H, W) with the strongest pixels of a ranking (B, 2, H, W) shown, and hidden."""
    hidden = hide(images)
    ranks = ranks_of(ranking)  # (B, 2, H, W), 0 for the strongest
    pixels = images.shape[-2] * images.shape[-1]
    inserted = []
    deleted = []
    for share in SHARES:
        strongest = (ranks < share * pixels)[:, :, None]  # (B, 2, 1, H, W)
        inserted.append(embed_pairs(network, torch.where(strongest, images, hidden)))
        deleted.append(embed_pairs(network, torch.where(strongest, hidden, images)))
    return Masked(torch.stack(inserted), torch.stack(deleted))


def gap_of(masked: Masked, untouched, different) -> Effect:
    """The gap from embeddings: of masked images, and of the images as they are (B, 2, D)."""
    shown, hidden = (support(part, untouched, different) for part in (masked.inserted, masked.deleted))
    gained = shown - hidden  # (3, S, B)
    return Effect(*gained.mean(dim=1), different)


def support(changed, untouched, different) -> torch.Tensor:
    """What speaks for the decision when both images, image 1 or image 2 are changed: (3, ..., B), in [0, 1].

    changed: (..., B, 2, D). untouched: (B, 2, D). different: the decisions, bool (B,).
    """
    both = distance(changed[..., 0, :], changed[..., 1, :])
    image1 = distance(changed[..., 0, :], untouched[:, 1])
    image2 = distance(untouched[:, 0], changed[..., 1, :])
    similar = similarity(torch.stack([both, image1, image2]))
    return torch.where(different, 1 - similar, similar)


DRAWS = 3  # random maps drawn for each image
RANDOM_MAPS = 2 * DRAWS  # those and their opposites, whose gaps have the other sign: they need no passes, and tell less
CELLS = 7  # a random map has as many along each side: lumps, as a heatmap has
LEAST_SHARE = 0.5  # of the span, for "faithful"
LEAST_SPAN = 0.1  # of similarity: below, hiding everything changes next to nothing
UNLIKELY = 123_456  # a seed that no chance is drawn from, or a random map would have to beat itself
WEAK = 0.8  # least share of the random maps that a weak map is above
FAITHFUL = "faithful"
HARDLY = "this score hardly depends on what is hidden"
CHANCE = "not better than chance"
PARTS = ("pair", "image 1", "image 2")  # what a word is about


@dataclass(frozen=True, eq=False)
class Chance:
    """Gaps of B pairs that need no knowledge of the network, by what they are about: "pair", "image 1", "image 2".

    random: float32 (R, B) each, of R random maps; NaN where they were not needed. centre: float32 (B,) each, of one who
    looks at the middle.
    """

    random: dict[str, torch.Tensor]
    centre: dict[str, torch.Tensor]

    def __getitem__(self, index: int | slice) -> "Chance":
        part = pairs_of(index, len(self.centre["pair"]))
        random = {name: gaps[:, part] for name, gaps in self.random.items()}
        return Chance(random, {name: gaps[part] for name, gaps in self.centre.items()})


@dataclass(frozen=True, eq=False)
class Verdict:
    """What can be said of the factual maps of an explanation of B pairs. `verdict[3]` is that on one pair.

    gap: insertion minus deletion. span: the most that hiding could change. chance: gaps of maps that know nothing.
    """

    explanation: Explanation
    gap: Effect
    span: Effect
    chance: Chance

    def __len__(self):
        return len(self.explanation)

    def __getitem__(self, index: int | slice) -> "Verdict":
        return Verdict(self.explanation[index], self.gap[index], self.span[index], self.chance[index])

    def share(self, part="pair") -> torch.Tensor:
        """The gap as a share of the span, float32 (B,); NaN where the span is below LEAST_SPAN."""
        span = self.span.of(part)
        share = self.gap.of(part) / span
        return share.where(span >= LEAST_SPAN, torch.nan)

    def word(self, index=0, part="pair") -> str:
        """Say in a word how well the map holds what the network decides by; never whether the decision is correct.

        faithful: its gap is at least LEAST_SHARE of the span, above those of all random maps and of the centre.
        weak: positive, and above WEAK of the random maps.

        Only DRAWS random maps are drawn for an image: the others are their opposites and, for the pair, combinations.
        So the rank alone proves little: a gap that is one more draw is above all of them in 1 of 8 images and in 1 of
        20 pairs decided "same", and weak or better in 1 of 4 and 1 of 5. The share of the span and the centre make
        "faithful" rarer: `make faithfulness` measures how often maps that know nothing are called so.

        Args:
            index: Of the pair.
            part: What the word is about: "pair", "image 1" or "image 2".
        """
        if torch.isnan(self.share(part)[index]):
            return HARDLY
        gap = self.gap.of(part)[index]
        beaten, tried = self._beaten(index, part)
        if gap <= 0 or beaten < WEAK * tried:
            return CHANCE
        enough = self.share(part)[index] >= LEAST_SHARE
        return FAITHFUL if enough and beaten == tried and gap > self.chance.centre[part][index] else "weak"

    def words(self, part="pair") -> list[str]:
        """The word for each pair."""
        return [self.word(index, part) for index in range(len(self))]

    def sentence(self, index=0) -> str:
        """The word for the pair with the numbers behind it, then those for each image."""
        changed = "both images" if self.gap.different[index] else "each image"
        beaten, tried = self._beaten(index, "pair")
        above = "all" if beaten == tried else f"{beaten / max(tried, 1):.0%}"
        drawn = f"combinations of {DRAWS} random maps an image and their opposites"
        beside = f", above {above} of the {tried} {drawn}" if tried else ""
        lines = [
            f"Factual maps, {changed} changed: {self.word(index)}. "
            f"Insertion minus deletion {self._numbers(index)}{beside}."
        ]
        for part in ("image 1", "image 2"):
            lines.append(f"{part.capitalize()} alone: {self.word(index, part)}, {self._numbers(index, part)}.")
        return "\n".join(lines)

    def _numbers(self, index, part="pair") -> str:
        gap = self.gap.of(part)[index]
        span = self.span.of(part)[index]
        share = self.share(part)[index]
        of_span = "" if torch.isnan(share) else f", {share:.0%}"
        return f"{gap:+.3f} of {span:.3f}{of_span}"

    def _beaten(self, index, part) -> tuple[int, int]:
        """How many random maps have a smaller gap, and how many were tried."""
        random = self.chance.random[part][:, index]
        gap = self.gap.of(part)[index]
        return int((random < gap).sum()), int((~random.isnan()).sum())


def judge(network: Explainable, explanation: Explanation, seed=0) -> Verdict:
    """Hold the factual maps of B pairs against random maps and the centre prior.

    At most 108 network passes a pair; one whose words are certain without chance takes 26.
    """
    gap = insertion_deletion(network, explanation)
    span = span_of(network, explanation)
    open_pairs = torch.zeros(len(explanation), dtype=torch.bool)
    for part in PARTS:
        could_be_faithful = (gap.of(part) > 0) & (span.of(part) >= LEAST_SPAN)
        open_pairs |= could_be_faithful.cpu()
    return Verdict(explanation, gap, span, measure_chance(network, explanation, seed, open_pairs))


def judge_all(network: Explainable, explanations: dict[str, Explanation], seed=0) -> dict[str, Verdict]:
    """The same for several explanations of the same pairs, whose chance is measured once.

    Raises ValueError when they are of different images or thresholds.
    """
    first, *others = explanations.values()
    for other in others:
        if other.threshold != first.threshold or not torch.equal(other.images, first.images):
            raise ValueError("these explanations are of different pairs: judge them one by one")
    chance = measure_chance(network, first, seed)
    span = span_of(network, first)
    return {
        name: Verdict(explanation, insertion_deletion(network, explanation), span, chance)
        for name, explanation in explanations.items()
    }


@torch.no_grad()
def measure_chance(network: Explainable, explanation: Explanation, seed=0, needed=None) -> Chance:
    """The gaps of random maps and of the centre prior on the pairs of an explanation.

    Masks of image 1 and of image 2 are embedded once; each beside each is a random map of the pair.
    needed: bool (B,), the pairs for which they are measured; None: all.
    """
    images = explanation.images
    needed = torch.ones(len(images), dtype=torch.bool) if needed is None else needed
    chosen = needed.nonzero()[:, 0].to(images.device)
    different = explanation.different[chosen]
    empty = explanation.distance.new_full((len(images),), torch.nan)
    random = {name: empty.repeat(count, 1) for name, count in _counts()}
    centre = {name: empty.clone() for name in PARTS}
    if not len(chosen):
        return Chance(random, centre)
    images = images[chosen]
    with evaluating(network):
        untouched = embed_explained(network, explanation)[chosen]
        middle = embed_masked(network, images, _centre_map(images))
        drawn = [_random_maps(images, seed + draw)[0] for draw in range(DRAWS)]
        masked = [embed_masked(network, images, maps) for maps in drawn]
    masked += [one.reversed() for one in masked]
    gap = gap_of(middle, untouched, different)
    for part in PARTS:
        centre[part][chosen] = gap.of(part)
    for row, one in enumerate(masked):
        for column, other in enumerate(masked):
            gap = gap_of(_beside(one, other), untouched, different)
            random["pair"][row * RANDOM_MAPS + column, chosen] = gap.decisive
            if row == column:
                random["image 1"][row, chosen] = gap.image1
                random["image 2"][row, chosen] = gap.image2
    return Chance(random, centre)


def explain_at_random(network: Explainable, images, threshold: float, references=None, seed=UNLIKELY) -> Explanation:
    """Maps that know nothing, smooth as heatmaps are, drawn from `seed`: what any explanation must beat."""
    different, same = _random_maps(images, seed)
    return Explanation(images, distances_of(network, images), threshold, different, same, method="random map")


def explain_by_centre(network: Explainable, images, threshold: float, references=None) -> Explanation:
    """The maps of one who looks at the middle, whatever is there."""
    maps = _centre_map(images)
    return Explanation(images, distances_of(network, images), threshold, maps, maps, method="centre prior")


def _counts():
    return ("pair", RANDOM_MAPS**2), ("image 1", RANDOM_MAPS), ("image 2", RANDOM_MAPS)


def _beside(one: Masked, other: Masked) -> Masked:
    """Image 1 of the one beside image 2 of the other."""
    inserted = torch.stack([one.inserted[:, :, 0], other.inserted[:, :, 1]], dim=2)
    return Masked(inserted, torch.stack([one.deleted[:, :, 0], other.deleted[:, :, 1]], dim=2))


def _random_maps(images, seed) -> torch.Tensor:
    """Two maps an image, (2, B, 2, H, W) in [0, 1): of its own, whatever images stand beside it."""
    drawn = []
    for number, image in enumerate(images.flatten(0, 1)):
        digest = zlib.crc32(image.float().cpu().contiguous().numpy())
        generator = torch.Generator().manual_seed(digest + seed + UNLIKELY * (number % 2))  # also beside itself
        drawn.append(torch.rand(2, CELLS, CELLS, generator=generator))
    coarse = torch.stack(drawn, dim=1).to(images.device)  # (2, 2B, CELLS, CELLS)
    maps = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return maps.unflatten(1, (-1, 2))


def _centre_map(images) -> torch.Tensor:
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, device=images.device)[:, None]
    x = torch.linspace(-1, 1, width, device=images.device)
    return torch.exp(-2 * (y**2 + x**2)).expand(len(images), 2, -1, -1)
