"""Insertion and deletion: what hiding and showing the strongest places of a map does to the decision."""

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..device import progress
from ..explanations.choice import Choice, margins
from ..explanations.explanation import ROUNDING, Explanation, embed_explained, pairs_of, ranks_of, sentences_of
from ..explanations.maps import Task
from ..explanations.paths import thorough
from ..network.distance import (
    Explainable,
    blurred,
    distance,
    distances_of,
    embed_pairs,
    evaluating,
    path_layer,
    similarity,
)

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels, strongest first; symmetric, or the gap of chance would not be 0
DRAWS = 2  # random maps drawn for each image
BLIND_MAPS = 2 * (DRAWS + 1)  # with the centre prior, and opposites, whose gaps have the other sign, without passes
CELLS = 7  # along each side of a random map, which is as smooth as a heatmap
LEAST_SHARE = 0.8  # of what is possible, for "faithful": at 0.75, 4.4 % of the maps of another pair were called so
LEAST_SPAN = 0.1  # of similarity: below, hiding everything changes next to nothing
LEAST_BEATEN = 0.8  # share of the blind maps that a weak map is above
UNLIKELY = 123_456  # a seed that no chance is drawn from, or a random map would be compared with itself
PARTS = ("pair", "image 1", "image 2")  # what is hidden
FAITHFUL = "faithful"
WEAK = "weak"
CHANCE = "not better than chance"
HARDLY = "nothing to explain"


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
    return _lost(hidden, untouched, explanation.different)


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


def _lost(hidden, untouched, different) -> Effect:
    """Return the support that is lost, from embeddings (B, 2, D) of hidden and of unchanged images."""
    return Effect(*(support(untouched, untouched, different) - support(hidden, untouched, different)), different)


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
    """The support that hiding everything takes."""
    blind: Effect
    """The gaps of R maps that ignore the network, float32 (R, B): random ones and the centre prior."""
    thorough: Effect
    """The gaps of the maps of the method `thorough`."""

    def __len__(self):
        return len(self.explanation)

    def __getitem__(self, index: int | slice) -> "Verdict":
        effects = (self.gap, self.span, self.blind, self.thorough)
        return Verdict(self.explanation[index], *[effect[index] for effect in effects])

    def possible(self, part="pair") -> torch.Tensor:
        """Return the largest gap of all maps that were measured for each pair, or half of the span, float32 (B,).

        These maps are its own, that of the method `thorough`, and the blind ones. A better one may exist, so less than
        half of the span counts as half of it.
        """
        gaps = torch.stack([self.gap.of(part), self.thorough.of(part), self.span.of(part) / 2])
        return torch.cat([gaps, self.blind.of(part)]).amax(dim=0)

    def share(self, part="pair") -> torch.Tensor:
        """Return the gap as a share of what is possible, float32 (B,) in [0, 1]; NaN for a span below LEAST_SPAN.

        Args:
            part: What is hidden: "pair", "image 1" or "image 2".
        """
        share = (self.gap.of(part) / self.possible(part)).clamp(min=0)
        return share.where(self.span.of(part) >= LEAST_SPAN, torch.nan)

    def word(self, index=0) -> str:
        """Say in a word how well the maps of a pair show what the network decides by; never whether it is correct.

        faithful: the gap is at least LEAST_SHARE of what is possible, and above those of all blind maps.
        weak: positive, and above those of LEAST_BEATEN of the blind maps.

        The maps of `thorough` are mostly the best that was measured: for them, half of the span is what is possible.
        Only DRAWS random maps are drawn for an image; the others are the centre prior, the opposites and combinations.
        So the rank by itself proves little: a gap that is one more draw is above all of them in 1 of 20 pairs decided
        "same", and weak or better in 1 of 5. The share makes "faithful" rarer: `make faithfulness` measures how often
        maps that ignore the network are called so.
        """
        gap, share = self.gap.decisive[index], self.share()[index]
        beaten, count = self._beaten(index)
        if torch.isnan(share):
            return HARDLY
        if gap <= 0 or beaten < LEAST_BEATEN * count:
            return CHANCE
        if share < LEAST_SHARE or beaten < count:
            return WEAK
        return FAITHFUL

    def words(self) -> list[str]:
        """Return the word for each pair."""
        return [self.word(index) for index in range(len(self))]

    def __repr__(self):
        return sentences_of(self)

    def sentence(self, index=0) -> str:
        """Return the word for a pair with the numbers behind it, then those of each image by itself."""
        word = self.word(index)
        text = self._in_numbers(index)
        if word != HARDLY:
            beaten, count = self._beaten(index)
            above = "all" if beaten == count else f"{beaten / count:.0%}"
            text = f"{word}, {text}; better than {above} of {count} maps that know nothing"
        lines = [f"Maps: {text}."]
        for part in PARTS[1:]:
            lines.append(f"{part.capitalize()} alone: {self._in_numbers(index, part)}.")
        return "\n".join(lines)

    def _in_numbers(self, index, part="pair") -> str:
        """The share of what is possible, and the gap that it is computed from."""
        share = self.share(part)[index]
        if share.isnan():
            return f"{HARDLY} (hiding all of it takes {self.span.of(part)[index]:.3f} from its support)"
        gap, possible = self.gap.of(part)[index], self.possible(part)[index]
        return f"{share:.2f} of what is possible (insertion minus deletion {gap:+.3f} of {possible:+.3f})"

    def _beaten(self, index) -> tuple[int, int]:
        """How many blind maps have a smaller gap, and how many there are."""
        blind = self.blind.decisive[:, index]
        return int((blind < self.gap.decisive[index]).sum()), len(blind)


def judge(network: Explainable, explanation: Explanation, seed=0) -> Verdict:
    """Compare the factual maps of B pairs with maps that ignore the network, and with those of the method `thorough`.

    A pair takes 108 network passes, and the 28 of `thorough` forwards and backwards behind its layer.

    Raises:
        ValueError: The explanation is of another network.
    """
    return judge_all(network, {explanation.method: explanation}, seed)[explanation.method]


def judge_all(network: Explainable, explanations: dict[str, Explanation], seed=0) -> dict[str, Verdict]:
    """Judge several explanations of the same pairs; what they are compared with is measured once.

    Raises:
        ValueError: They are of different images or thresholds, or of another network.
    """
    first = next(iter(explanations.values()))
    yardsticks = None
    verdicts = {}
    for name, explanation in progress(explanations.items(), "Verdicts", len(explanations) > 1):
        if explanation.threshold != first.threshold or not torch.equal(explanation.images, first.images):
            raise ValueError("these explanations are of different pairs: judge them one by one")
        masked, untouched = embed_evidence(network, explanation)
        yardsticks = yardsticks or measure_yardsticks(network, explanation, untouched, seed)
        verdicts[name] = Verdict(explanation, gap_of(masked, untouched, explanation.different), *yardsticks)
    return verdicts


@torch.no_grad()
def measure_yardsticks(network: Explainable, explanation: Explanation, untouched, seed=0) -> tuple[Effect, ...]:
    """Measure what the gap of an explanation is compared with, as a Verdict holds it: `span`, `blind`, `thorough`.

    Args:
        network: The network that was explained.
        explanation: Of B pairs.
        untouched: The embeddings of their images, (B, 2, D).
        seed: Of the random maps.
    """
    images, different = explanation.images, explanation.different
    with evaluating(network):
        span = _lost(embed_pairs(network, blurred(images)), untouched, different)
        blind = _measure_blind(network, explanation, untouched, seed)
        best = thorough(Task(network, images, explanation.threshold, layer=path_layer(network)))
        gap_of_best = gap_of(embed_masked(network, images, best.ranking), untouched, different)
    return span, blind, gap_of_best


def _measure_blind(network, explanation, untouched, seed) -> Effect:
    """Measure the gaps of maps that ignore the network, (R, B): random maps, the centre prior, and their opposites.

    Maps of image 1 and of image 2 are embedded once; each combination of two is a map of the pair.
    """
    images = explanation.images
    masked = [embed_masked(network, images, _centre_map(images))]
    for draw in range(DRAWS):
        masked.append(embed_masked(network, images, _random_maps(images, seed + draw)[0]))
    for maps in masked[:]:
        masked.append(maps.flip(0, 1))  # of the opposite map: nine deleted tenths leave its strongest tenth
    gaps = []
    for first in masked:
        for second in masked:
            combined = torch.stack([first[..., 0, :], second[..., 1, :]], dim=-2)
            gap = gap_of(combined, untouched, explanation.different)
            gaps.append(torch.stack([gap.both, gap.image1, gap.image2]))
    return Effect(*torch.stack(gaps, dim=1), explanation.different)


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceVerdict(Verdict):
    """Whether the map of a Choice is faithful.

    Effects are of the margin between both candidates, on the one image. The span is from the lowest to the highest
    margin of all that was hidden: where both candidates are near, hiding everything may change next to nothing.
    """

    turns_without: float | None
    """The smallest of SHARES of the strongest pixels without which the other candidate is nearer; None if it never is.
    """

    def sentence(self, index=0) -> str:
        """Return the word with the numbers behind it, and whether hiding the strongest pixels turns the order."""
        if self.word(index) == HARDLY:
            return (
                f"{HARDLY.capitalize()}: whatever is hidden, the margin changes by {self.span.both[index]:.3f} at most."
            )
        text = super().sentence(index).splitlines()[0]
        if self.turns_without is None:
            return f"{text} Hiding its strongest pixels does not turn the order of both candidates."
        return f"{text} Without its strongest {self.turns_without:.0%} of the pixels the other candidate is nearer."


@torch.no_grad()
def judge_choice(network: Explainable, choice: Choice, seed=0) -> ChoiceVerdict:
    """Compare the map of a choice with maps that ignore the network, in 62 passes of one image.

    Args:
        network: The network that was explained.
        choice: Of one image.
        seed: Of the random maps.

    Raises:
        ValueError: The choice is of another network.
    """
    twice = choice.image[:, None].expand(-1, 2, -1, -1, -1)  # two maps go through the network as a pair
    rankings = [torch.stack([choice.evidence, _centre_map(twice)[0, 0]])[None]]
    for draw in range(DRAWS):
        rankings.append(_random_maps(twice, seed + draw)[0])
    rankings = torch.cat(rankings)  # (M / 2, 2, H, W)
    with evaluating(network):
        ends = margins(network(torch.cat([choice.image, blurred(choice.image)])), choice.nearer, choice.farther)
        if abs(ends[0].item() - choice.margin) > ROUNDING:
            raise ValueError("the choice is of another network: pass the one that was explained, in its Cut if in one")
        masked = embed_masked(network, twice.expand(len(rankings), -1, -1, -1, -1), rankings).flatten(2, 3)
    inserted, deleted = margins(masked, choice.nearer, choice.farther)  # (S, M) each
    gaps = (inserted - deleted).mean(dim=0)
    turned = torch.nonzero(deleted[:, 0] < 0).flatten()
    different = torch.ones_like(gaps[:1], dtype=torch.bool)

    def effect(values):
        return Effect(values, values, values, different)

    blind = effect(torch.cat([gaps[1:], -gaps[1:]])[:, None])
    measured = torch.cat([inserted.flatten(), deleted.flatten(), ends])
    span = effect((measured.max() - measured.min())[None])
    turns_without = SHARES[turned[0]] if choice.margin > 0 and len(turned) else None
    return ChoiceVerdict(choice, effect(gaps[:1]), span, blind, effect(gaps[:1]), turns_without)


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
