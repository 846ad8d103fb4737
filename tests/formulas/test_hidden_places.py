"""What hiding, showing and exchanging pixels does, pixel by pixel. Written without reading the implementation."""

import math

import pytest
import torch
from torch import nn

from utils.explanations.edits import AREAS, smallest_edit
from utils.explanations.explanation import Explanation
from utils.explanations.maps import Task, occlusion
from utils.explanations.references import References
from utils.network.cut import Cut
from utils.network.distance import blurred, distances_of, mean_colour
from utils.trust.faithfulness import insertion_deletion, span_of


class WeightedColour(nn.Module):
    """The embedding is the direction of (1, weighted sum of red, weighted sum of green); every place has a weight."""

    def __init__(self, weights):
        super().__init__()
        self.lift = nn.Identity()
        self.register_buffer("weights", weights)

    def forward(self, images):
        seen = self.lift(images)
        red = (seen[:, 0] * self.weights).sum(dim=(1, 2))
        green = (seen[:, 1] * self.weights).sum(dim=(1, 2))
        return torch.stack([torch.ones_like(red), red, green], dim=1)


def distance_by_hand(weights, image, other):
    """The distance that such a network finds, in loops over pixels. images: nested lists [colour][y][x]."""
    embeddings = []
    for seen in (image, other):
        vector = [1.0, 0.0, 0.0]
        for y, row in enumerate(weights):
            for x, weight in enumerate(row):
                vector[1] += weight * seen[0][y][x]
                vector[2] += weight * seen[1][y][x]
        size = math.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
        embeddings.append([value / size for value in vector])
    total = 0.0
    for value, counterpart in zip(*embeddings, strict=True):
        total += (value - counterpart) ** 2
    return math.sqrt(total)


def mixed(image, hidden, shown):
    """The pixels of `shown`, a set of (y, x), from the image, all others from the hidden one."""
    result = []
    for colour, rows in enumerate(image):
        result.append([])
        for y, row in enumerate(rows):
            result[colour].append([])
            for x, value in enumerate(row):
                result[colour][y].append(value if (y, x) in shown else hidden[colour][y][x])
    return result


def strongest_first(explanation, pair, image, different):
    """All places (y, x) by the evidence for the decision; where there is none, those of least evidence against it."""
    towards, against = explanation.towards_same[pair, image], explanation.towards_different[pair, image]
    if different:
        towards, against = against, towards
    scored = []
    for y in range(towards.shape[0]):
        for x in range(towards.shape[1]):
            strength = float(towards[y, x])
            if strength == 0:
                strength = -float(against[y, x])
            scored.append((strength, y, x))
    scored.sort(reverse=True)
    return [(y, x) for _, y, x in scored]


def support(weights, image, other, different):
    similarity = 1 - distance_by_hand(weights, image, other) / 2
    return 1 - similarity if different else similarity


def signed_explanation(network, images, threshold):
    """Maps of random evidence, some places for and some against the decision, no two places alike."""
    evidence = torch.randn(*images.shape[:2], *images.shape[-2:])
    distances = distances_of(network, images)
    return Explanation(images, distances, threshold, evidence.clamp(min=0), (-evidence).clamp(min=0))


@pytest.mark.parametrize("hide", [lambda images: torch.full_like(images, 0.3), mean_colour, blurred])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_insertion_and_deletion(threshold, hide):
    """Petsiuk et al. 2018 (RISE), section 3.2: the mean of the output while the strongest pixels are shown, less that
    while they are hidden, at the shares 0.1, 0.3, 0.5, 0.7 and 0.9 of 20 pixels that `insertion_deletion` names in
    place of every step; of both images at once, and of each beside the other as it is. And what hiding all of it does.
    Written without reading the implementation.
    """
    weights = torch.rand(4, 5) - 0.3
    network = Cut(WeightedColour(weights), "lift")
    images = torch.randn(3, 2, 3, 4, 5)
    explanation = signed_explanation(network, images, threshold)
    gap = insertion_deletion(network, explanation, hide=hide)
    span = span_of(network, explanation, hide=hide)
    different = threshold == 0.0
    for pair in range(3):
        untouched, hidden, orders = [], [], []
        for image in range(2):
            untouched.append(images[pair, image].tolist())
            hidden.append(hide(images)[pair, image].tolist())
            orders.append(strongest_first(explanation, pair, image, different))
        for changed, effect, lost in (
            ((0, 1), gap.both, span.both),
            ((0,), gap.image1, span.image1),
            ((1,), gap.image2, span.image2),
        ):
            total = 0.0
            for count in (2, 6, 10, 14, 18):
                inserted, deleted = list(untouched), list(untouched)
                for image in changed:
                    inserted[image] = mixed(untouched[image], hidden[image], set(orders[image][:count]))
                    deleted[image] = mixed(untouched[image], hidden[image], set(orders[image][count:]))
                total += support(weights.tolist(), *inserted, different) / 5
                total -= support(weights.tolist(), *deleted, different) / 5
            assert effect[pair].item() == pytest.approx(total, abs=1e-5)
            covered = list(untouched)
            for image in changed:
                covered[image] = hidden[image]
            loss = support(weights.tolist(), *untouched, different) - support(weights.tolist(), *covered, different)
            assert lost[pair].item() == pytest.approx(loss, abs=1e-5)


def test_occlusion():
    """Zeiler and Fergus 2014, section 4.2, as the docstring of `occlusion` has it: windows of 0.3 of each
    side, on a 7 x 7 grid from border to border, are blurred; a window's evidence is what that adds to the distance, a
    pixel's the mean over its windows. Taken with the sides of 60 pixels, where no window needs rounding. What makes the
    images more distant when hidden speaks for "same". Written without reading the implementation.
    """
    weights = torch.randn(60, 60) / 20
    network = WeightedColour(weights)
    module = Cut(network, "lift")
    images = torch.randn(1, 2, 3, 60, 60)
    explanation = occlusion(Task(module, images, 0.5))
    assert explanation.distance.item() == pytest.approx(
        distance_by_hand(weights.tolist(), images[0, 0].tolist(), images[0, 1].tolist()), abs=1e-5
    )
    without = distances_of(module, images).item()
    hidden = blurred(images)
    for image in range(2):
        totals, counts = torch.zeros(60, 60), torch.zeros(60, 60)
        for row in range(7):
            for column in range(7):
                window = (slice(7 * row, 7 * row + 18), slice(7 * column, 7 * column + 18))
                occluded = images.clone()
                occluded[0, image][:, window[0], window[1]] = hidden[0, image][:, window[0], window[1]]
                added = distances_of(module, occluded).item() - without
                totals[window] += added
                counts[window] += 1
        towards_same = totals / counts
        torch.testing.assert_close(explanation.evidence[0, image], -towards_same, rtol=1e-3, atol=1e-5)


def test_blur_weighs_as_a_gaussian():
    """Of two pixels the weights are as exp(-d ** 2 / (2 s ** 2)) at their distances d, s a twelfth of the side, as far
    as the blur reaches, and all weights add up to 1. Written without reading the implementation.
    """
    images = torch.zeros(1, 2, 3, 60, 48)
    images[:, :, :, 30, 24] = 1
    spread = blurred(images)[0, 1, 2]
    middle = float(spread[30, 24])
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    reached = 0
    for y in range(60):
        for x in range(48):
            if spread[y, x] > 0:
                weight = math.exp(-((y - 30) ** 2) / (2 * 5**2)) * math.exp(-((x - 24) ** 2) / (2 * 4**2))
                assert float(spread[y, x]) == pytest.approx(weight * middle, rel=1e-4)
                reached += 1
    assert reached >= 4 * 5 * 4 * 4  # two standard deviations to each side
    torch.testing.assert_close(blurred(torch.ones(1, 2, 3, 12, 24)), torch.ones(1, 2, 3, 12, 24))


def test_mean_colour():
    """The mean over pixels of each colour, in loops. Written without reading the implementation."""
    images = torch.randn(1, 2, 3, 4, 5)
    hidden = mean_colour(images)
    for image in range(2):
        for colour in range(3):
            total = 0.0
            for y in range(4):
                for x in range(5):
                    total += float(images[0, image, colour, y, x])
            expected = torch.full((4, 5), total / 20)
            torch.testing.assert_close(hidden[0, image, colour], expected, rtol=1e-5, atol=1e-6)


def chequered(height, width):
    weights = torch.ones(height, width)
    for y in range(height):
        for x in range(width):
            if (y + x) % 2:
                weights[y, x] = -1
    return weights


def test_smallest_blur_that_undoes_same():
    """`smallest_edit` of a pair decided "same", as its docstring has it: of the shares AREAS of the pixels, the
    strongest factual places first, blurred in both images, in image 1 or in image 2, the smallest that flips the
    decision; no smaller one does. Of 600 pixels every share is a whole number. Written without reading the
    implementation.
    """
    weights = chequered(20, 30) / 100
    network = Cut(WeightedColour(weights), "lift")
    pattern = chequered(20, 30) * torch.rand(20, 30)
    image1, image2 = torch.zeros(3, 20, 30), torch.zeros(3, 20, 30)
    image1[0], image2[0] = pattern, pattern.flip(0).flip(1) * 1.05
    image1[1], image2[1] = torch.randn(2, 20, 30) / 10
    images = torch.stack([image1, image2])[None]
    strength = torch.rand(1, 2, 20, 30) + 0.1
    threshold = 0.25
    explanation = Explanation(images, distances_of(network, images), threshold, strength * 0, strength)
    assert explanation.decision() == "same"
    references = References(network(torch.randn(9, 3, 20, 30)), tuple(f"class/{number}" for number in range(9)))
    change = smallest_edit(network, explanation, references)
    hidden = blurred(images)[0]
    flips = []
    for area in AREAS:
        for chosen in ((0, 1), (0,), (1,)):
            changed = [images[0, 0].tolist(), images[0, 1].tolist()]
            for image in chosen:
                order = strongest_first(explanation, 0, image, different=False)
                kept = set(order[round(area * 600) :])
                changed[image] = mixed(changed[image], hidden[image].tolist(), kept)
            after = distance_by_hand(weights.tolist(), *changed)
            if after > threshold:
                flips.append((area * len(chosen) / 2, after, chosen, changed))
    assert change.flipped
    chosen_by_it = tuple(image for image in range(2) if change.regions[image].any())
    smallest = min(flips)[0]
    area, after, chosen, changed = min(
        flips, key=lambda flip: (flip[0], flip[2] != chosen_by_it)
    )  # two may be as small
    assert area == smallest < 1
    assert chosen == chosen_by_it
    assert change.area == pytest.approx(area)
    assert change.distance == pytest.approx(after, abs=1e-5)
    assert change.before == pytest.approx(1 - explanation.distance.item() / 2)
    assert change.after == pytest.approx(1 - after / 2, abs=1e-5)
    torch.testing.assert_close(change.edited, torch.tensor(changed))
    for image in range(2):
        order = []
        embedding = network(change.edited[image][None])[0].tolist()
        for number, reference in enumerate(references.embeddings.tolist()):
            distance = 0.0
            for value, counterpart in zip(embedding, reference, strict=True):
                distance += (value - counterpart) ** 2
            order.append((distance, f"class/{number}"))
        assert change.nearest_after[image] == tuple(name for _, name in sorted(order)[:5])


def test_exchange_that_undoes_different():
    """`smallest_edit` of a pair decided "different": applied by hand, the change flips the decision; it is in image 1
    alone, and its area is the share of pixels of image 1 that changed. Each pixel lies between what it was and what
    image 2 shows somewhere. Written without reading the implementation.
    """
    weights = torch.zeros(20, 30)
    weights[4:10, 5:12] = 0.05
    network = Cut(WeightedColour(weights), "lift")
    images = torch.rand(1, 2, 3, 20, 30) / 10
    images[0, 0, 0] += 1
    images[0, 1, 1] += 1
    maps = torch.zeros(1, 2, 20, 30)
    maps[:, :, 4:10, 5:12] = torch.rand(1, 2, 6, 7) + 0.5
    threshold = 0.5
    explanation = Explanation(images, distances_of(network, images), threshold, maps, maps * 0)
    assert explanation.decision() == "different"
    change = smallest_edit(network, explanation)
    assert change.flipped
    after = distance_by_hand(weights.tolist(), change.edited[0].tolist(), change.edited[1].tolist())
    assert after <= threshold
    assert change.distance == pytest.approx(after, abs=1e-5)
    torch.testing.assert_close(change.edited[1], images[0, 1], rtol=0, atol=0)
    changed = 0
    for y in range(20):
        for x in range(30):
            differs = False
            for colour in range(3):
                before, now = float(images[0, 0, colour, y, x]), float(change.edited[0, colour, y, x])
                differs = differs or before != now
                lowest = min(before, float(images[0, 1, colour].min()))
                highest = max(before, float(images[0, 1, colour].max()))
                assert lowest - 1e-6 <= now <= highest + 1e-6
            assert bool(change.regions[0, y, x]) == differs
            changed += differs
    assert change.area == pytest.approx(changed / 600)
    assert changed < 600
