"""Insertion and deletion: what hiding and showing the strongest places of a map does to the decision."""

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..device import progress
from ..explanations.explanation import Explanation, embed_explained, pairs_of, ranks_of
from ..network.distance import Explainable, blurred, distance, distances_of, embed_pairs, evaluating, similarity

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels, strongest first; symmetric, or the gap of chance would not be 0
DRAWS = 3  # random maps drawn for each image
RANDOM_MAPS = 2 * DRAWS  # with their opposites, whose gaps have the other sign: these need no passes, and add less
CELLS = 7  # along each side of a random map, which is as smooth as a heatmap
LEAST_SHARE = 0.5  # of the span, for "faithful"
LEAST_SPAN = 0.1  # of similarity: below, hiding everything changes next to nothing
LEAST_BEATEN = 0.8  # share of the random maps that a weak map is above
UNLIKELY = 123_456  # a seed that no chance is drawn from, or a random map would be compared with itself
PARTS = ("pair", "image 1", "image 2")  # what a word is about
FAITHFUL = "faithful"
WEAK = "weak"
CHANCE = "not better than chance"
HARDLY = "nothing to explain, because hiding it barely moves the score"
ALONE = "hiding it alone barely moves the score"  # of one image of a pair whose maps may be faithful


@dataclass(frozen=True, eq=False)
class Effect:
    """What changing the images of B pairs does to the support for the decision, in [-1, 1]."""

    both: torch.Tensor
    """float32 (..., B): with both images changed at once."""
    image1: torch.Tensor
    """float32 (..., B): with only image 1 changed."""
    image2: torch.Tensor
    """float32 (..., B): with only image 2 changed."""
    different: torch.Tensor
    """bool (B,): the decisions."""

    @property
    def each(self) -> torch.Tensor:
        """The mean effect of changing one image."""
        return (self.image1 + self.image2) / 2

    @property
    def decisive(self) -> torch.Tensor:
        """What can undo the decision: of both images if "different", of each image if "same".

        Two images that have lost their evidence look similar: only that undoes "different", and never undoes "same".
        """
        return torch.where(self.different, self.both, self.each)

    def of(self, part: str) -> torch.Tensor:
        """Return the decisive effect of the "pair", or that of "image 1" or "image 2"."""
        return {"pair": self.decisive, "image 1": self.image1, "image 2": self.image2}[part]

    def __getitem__(self, index: int | slice) -> "Effect":
        part = pairs_of(index, len(self.different))
        return Effect(self.both[..., part], self.image1[..., part], self.image2[..., part], self.different[part])


@torch.no_grad()
def insertion_deletion(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """Return insertion minus deletion for pairs, the gap.

    Pixels are ranked by the evidence for the decision. For each of SHARES, the strongest pixels of an image are hidden
    (deletion), or shown in the hidden image (insertion). The support for the decision, the similarity if "same" and 1
    minus the similarity if "different", is averaged over the shares; the gap is that of insertion minus that of
    deletion. A blank map has the gap of its order of pixels: compare it with chance.

    Args:
        network: The network that was explained.
        explanation: Of B pairs.
        hide: A function of images (B, 2, C, H, W) to what hidden pixels show.

    Raises:
        ValueError: The explanation is of another network.

    Source: after Petsiuk et al. 2018, RISE, section 3.2.
    """
    masked, untouched = embed_evidence(network, explanation, hide)
    return gap_of(masked, untouched, explanation.different)


@torch.no_grad()
def span_of(network: Explainable, explanation: Explanation, hide=blurred) -> Effect:
    """Return the largest possible change: the support of the pair minus that with all pixels hidden."""
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        hidden = embed_pairs(network, hide(explanation.images))
    lost = support(untouched, untouched, explanation.different) - support(hidden, untouched, explanation.different)
    return Effect(*lost, explanation.different)


@torch.no_grad()
def embed_evidence(network: Explainable, explanation: Explanation, hide=blurred) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed the explained images with their evidence shown and hidden, as `embed_masked`, and unchanged, (B, 2, D)."""
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        return embed_masked(network, explanation.images, explanation.ranking, hide), untouched


def embed_masked(network: Explainable, images, ranking, hide=blurred) -> torch.Tensor:
    """Embed images with their strongest pixels shown, and hidden, at each of S shares of pixels.

    Args:
        network: That embeds them.
        images: (B, 2, C, H, W).
        ranking: Of their pixels, (B, 2, H, W).
        hide: A function of images to what hidden pixels show.

    Returns:
        (2, S, B, 2, D): inserted and deleted.
    """
    hidden = hide(images)
    ranks = ranks_of(ranking)  # (B, 2, H, W), 0 for the strongest
    pixels = images.shape[-2] * images.shape[-1]
    inserted = []
    deleted = []
    for share in SHARES:
        strongest = (ranks < share * pixels)[:, :, None]  # (B, 2, 1, H, W)
        inserted.append(embed_pairs(network, torch.where(strongest, images, hidden)))
        deleted.append(embed_pairs(network, torch.where(strongest, hidden, images)))
    return torch.stack([torch.stack(inserted), torch.stack(deleted)])


def gap_of(masked, untouched, different) -> Effect:
    """Return the gap from embeddings: of masked images (2, S, B, 2, D), and of the unchanged images (B, 2, D)."""
    inserted, deleted = support(masked, untouched, different).unbind(1)  # (3, S, B)
    return Effect(*(inserted - deleted).mean(dim=1), different)


def support(changed, untouched, different) -> torch.Tensor:
    """Return the support for the decision with both images, image 1 or image 2 changed.

    Args:
        changed: Embeddings, (..., B, 2, D).
        untouched: Embeddings, (B, 2, D).
        different: The decisions, bool (B,).

    Returns:
        (3, ..., B), in [0, 1].
    """
    both = distance(changed[..., 0, :], changed[..., 1, :])
    image1 = distance(changed[..., 0, :], untouched[:, 1])
    image2 = distance(untouched[:, 0], changed[..., 1, :])
    similar = similarity(torch.stack([both, image1, image2]))
    return torch.where(different, 1 - similar, similar)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether the factual maps of an explanation of B pairs are faithful. `verdict[3]` is that on one pair."""

    explanation: Explanation
    gap: Effect
    """Insertion minus deletion."""
    span: Effect
    """The largest change that hiding could make."""
    random: Effect
    """The gaps of R random maps, float32 (R, B)."""
    centre: Effect
    """The gaps of the centre prior."""

    def __len__(self):
        return len(self.explanation)

    def __getitem__(self, index: int | slice) -> "Verdict":
        explanation, gap, span = self.explanation[index], self.gap[index], self.span[index]
        return Verdict(explanation, gap, span, self.random[index], self.centre[index])

    def share(self, part="pair") -> torch.Tensor:
        """Return the gap as a share of the span, float32 (B,); NaN where the span is below LEAST_SPAN."""
        span = self.span.of(part)
        share = self.gap.of(part) / span
        return share.where(span >= LEAST_SPAN, torch.nan)

    def word(self, index=0, part="pair") -> str:
        """Say in a word how well the map shows what the network decides by; never whether the decision is correct.

        faithful: its gap is at least LEAST_SHARE of the span, above those of all random maps and of the centre.
        weak: positive, and above LEAST_BEATEN of the random maps.

        Only DRAWS random maps are drawn for an image: the others are their opposites and, for the pair, combinations.
        So the rank itself proves little: a gap that is one more draw is above all of them in 1 of 8 images and in 1 of
        20 pairs decided "same", and weak or better in 1 of 4 and 1 of 5. The share of the span and the centre make
        "faithful" rarer: `make faithfulness` measures how often maps that ignore the network are called so.

        Args:
            index: Of the pair.
            part: What the word is about: "pair", "image 1" or "image 2".
        """
        gap, share = self.gap.of(part)[index], self.share(part)[index]
        beaten, count = self._beaten(index, part)
        if torch.isnan(share):
            return HARDLY
        if gap <= 0 or beaten < LEAST_BEATEN * count:
            return CHANCE
        if share < LEAST_SHARE or beaten < count or gap <= self.centre.of(part)[index]:
            return WEAK
        return FAITHFUL

    def words(self, part="pair") -> list[str]:
        """Return the word for each pair."""
        return [self.word(index, part) for index in range(len(self))]

    def sentence(self, index=0) -> str:
        """Return the word for the pair with the numbers behind it, then those for each image."""
        hidden = "both images" if self.gap.different[index] else "each image"
        text = f"Maps {self._in_words(index, 'pair', hidden)}"
        beaten, count = self._beaten(index, "pair")
        above = "all" if beaten == count else f"{beaten / count:.0%}"
        text += f"; better than {above} of {count} combinations of random maps"
        for part in PARTS[1:]:
            text += f".\n{part.capitalize()}: {self._in_words(index, part, 'it')}"
        return f"{text}."

    def _in_words(self, index, part, hidden) -> str:
        """The word, and what the strongest pixels carry of what hiding `hidden` changes."""
        word = self.word(index, part)
        gap, span = self.gap.of(part)[index], self.span.of(part)[index]
        share = self.share(part)[index]
        if torch.isnan(share):
            return f"{in_sentence(word, part)} (by {span:+.3f})"
        numbers = f"(gap {gap:+.3f}, span {span:.3f})"
        if gap <= 0:
            return f"{word}: the strongest pixels carry no more than the others {numbers}"
        carried = "all" if share >= 1 else f"{share:.0%}"
        return f"{word}: the strongest pixels carry {carried} of what hiding {hidden} would change {numbers}"

    def _beaten(self, index, part) -> tuple[int, int]:
        """How many random maps have a smaller gap, and how many there are."""
        random = self.random.of(part)[:, index]
        return int((random < self.gap.of(part)[index]).sum()), len(random)


def in_sentence(word: str, part: str) -> str:
    """Return a word as it reads in a sentence: of one image, HARDLY says nothing of the pair, so it becomes ALONE."""
    if word == HARDLY and part != "pair":
        return ALONE
    return word


def judge(network: Explainable, explanation: Explanation, seed=0) -> Verdict:
    """Compare the factual maps of B pairs with random maps and the centre prior.

    A pair takes 108 network passes.
    """
    gap = insertion_deletion(network, explanation)
    span = span_of(network, explanation)
    return Verdict(explanation, gap, span, *measure_chance(network, explanation, seed))


def judge_all(network: Explainable, explanations: dict[str, Explanation], seed=0) -> dict[str, Verdict]:
    """Judge several explanations of the same pairs; chance is measured once.

    Raises:
        ValueError: They are of different images or thresholds.
    """
    first = next(iter(explanations.values()))
    chance = measure_chance(network, first, seed)
    span = span_of(network, first)
    verdicts = {}
    for name, explanation in progress(explanations.items(), "Verdicts"):
        if explanation.threshold != first.threshold or not torch.equal(explanation.images, first.images):
            raise ValueError("these explanations are of different pairs: judge them one by one")
        verdicts[name] = Verdict(explanation, insertion_deletion(network, explanation), span, *chance)
    return verdicts


@torch.no_grad()
def measure_chance(network: Explainable, explanation: Explanation, seed=0) -> tuple[Effect, Effect]:
    """Measure the gaps of maps that ignore the network: random maps, (R, B), and the centre prior, (B,).

    Random maps of image 1 and of image 2 are embedded once; each combination of two is a random map of the pair.
    """
    images = explanation.images
    with evaluating(network):
        untouched = embed_explained(network, explanation)
        centre = embed_masked(network, images, _centre_map(images))
        masked = []
        for draw in progress(range(DRAWS), "Random maps"):
            masked.append(embed_masked(network, images, _random_maps(images, seed + draw)[0]))
    for draw in range(DRAWS):
        masked.append(masked[draw].flip(0, 1))  # of the opposite map: nine deleted tenths leave its strongest tenth
    gaps = []
    for first in masked:
        for second in masked:
            combined = torch.stack([first[..., 0, :], second[..., 1, :]], dim=-2)
            gap = gap_of(combined, untouched, explanation.different)
            gaps.append(torch.stack([gap.both, gap.image1, gap.image2]))
    random = Effect(*torch.stack(gaps, dim=1), explanation.different)
    return random, gap_of(centre, untouched, explanation.different)


def explain_at_random(network: Explainable, images, threshold: float, references=None, seed=UNLIKELY) -> Explanation:
    """Draw maps that ignore the network, smooth as heatmaps are, from `seed`: any explanation must beat them."""
    different, same = _random_maps(images, seed)
    return Explanation(images, distances_of(network, images), threshold, different, same, method="random map")


def explain_by_centre(network: Explainable, images, threshold: float, references=None) -> Explanation:
    """Return maps of the centre prior, which is highest in the middle of any image."""
    maps = _centre_map(images)
    return Explanation(images, distances_of(network, images), threshold, maps, maps, method="centre prior")


def _random_maps(images, seed) -> torch.Tensor:
    """Two maps an image, (2, B, 2, H, W) in [0, 1), that depend on no other image."""
    maps = torch.empty(2, 2 * len(images), *images.shape[-2:])
    for number, image in enumerate(images.flatten(0, 1)):
        digest = zlib.crc32(image.float().cpu().contiguous().numpy())
        generator = torch.Generator().manual_seed(digest + seed + UNLIKELY * (number % 2))  # also beside itself
        coarse = torch.rand(1, 2, CELLS, CELLS, generator=generator)
        maps[:, number] = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)[0]
    return maps.unflatten(1, (len(images), 2)).to(images.device)


def _centre_map(images) -> torch.Tensor:
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, device=images.device)[:, None]
    x = torch.linspace(-1, 1, width, device=images.device)
    return torch.exp(-2 * (y**2 + x**2)).expand(len(images), 2, -1, -1)
