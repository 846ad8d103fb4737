"""Gradients on the path from the blurred image to the image, in loops, with differences for gradients.

Written without reading the implementation.
"""

import math

import pytest
import torch
from plain_network import (
    CHANNELS,
    DIMENSIONS,
    HEIGHT,
    WIDTH,
    PlainNetwork,
    TinyNetwork,
    as_map,
    distance_between,
    gradient,
    inner,
    length,
    mean_gradient,
    places,
    scaled,
)

from utils.explanations.methods import explain
from utils.explanations.paths import _strongest
from utils.explanations.references import References
from utils.network.cut import Cut
from utils.network.distance import blurred


@pytest.fixture
def network():
    return TinyNetwork(bend=0.5)


@pytest.fixture
def images():
    return torch.randn(2, 2, 3, HEIGHT, WIDTH, dtype=torch.float64)


def both_ends(plain, images):
    """The feature maps of the blurred image and of the image, by (pair, image)."""
    starts, ends = {}, {}
    for pair in range(len(images)):
        for image in range(2):
            starts[pair, image] = plain.features(blurred(images)[pair, image].tolist())
            ends[pair, image] = plain.features(images[pair, image].tolist())
    return starts, ends


@pytest.mark.parametrize("steps", [1, 3])
def test_contributions_to_the_distance(network, images, steps):
    """Sundararajan et al. 2017 (Axiomatic Attribution), equation 1, by the midpoint rule; channels of positive and of
    negative mean gradient apart. Written without reading the implementation.
    """
    plain = PlainNetwork(network)
    split = explain(Cut(network, "lift"), images, 0.5, method="path_layercam", steps=steps)
    signed = explain(Cut(network, "lift"), images, 0.5, method="integrated", steps=steps)
    starts, ends = both_ends(plain, images)
    for (pair, image), end in ends.items():
        start = starts[pair, image]
        partner = plain.embedding(ends[pair, 1 - image])

        def distance_from(features, partner=partner):
            return distance_between(plain.embedding(features), partner)

        slopes = mean_gradient(distance_from, start, end, steps)
        up, down = dict.fromkeys(places(), 0.0), dict.fromkeys(places(), 0.0)
        for channel in range(CHANNELS):
            for y, x in places():
                slope = slopes[channel, y, x]
                gained = end[channel, y, x] - start[channel, y, x]
                if slope > 0:
                    up[y, x] += gained * slope
                else:
                    down[y, x] -= gained * slope
        raising = split.towards_different[pair, image].double()
        lowering = split.towards_same[pair, image].double()
        torch.testing.assert_close(raising, as_map(up).clamp(min=0), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(lowering, as_map(down).clamp(min=0), rtol=1e-5, atol=1e-8)
        evidence = as_map(up) - as_map(down)
        torch.testing.assert_close(signed.evidence[pair, image].double(), evidence, rtol=1e-4, atol=1e-6)
    for pair in range(2):
        added, changed = 0.0, 0.0
        for image in range(2):
            partner = plain.embedding(ends[pair, 1 - image])
            added += float(signed.evidence[pair, image].sum())
            changed += distance_between(plain.embedding(ends[pair, image]), partner)
            changed -= distance_between(plain.embedding(starts[pair, image]), partner)
        for explanation in (split, signed):
            assert explanation.completeness[pair].tolist() == pytest.approx([added, changed], rel=1e-5)


def test_many_steps_are_complete(network, images):
    """Sundararajan et al. 2017, proposition 1: the attributions add up to the change of the distance. Written without
    reading the implementation.
    """
    plain = PlainNetwork(network)
    explanation = explain(Cut(network, "lift"), images, 0.5, method="integrated", steps=60)
    starts, ends = both_ends(plain, images)
    for pair, image in ends:
        partner = plain.embedding(ends[pair, 1 - image])
        changed = distance_between(plain.embedding(ends[pair, image]), partner)
        changed -= distance_between(plain.embedding(starts[pair, image]), partner)
        assert float(explanation.evidence[pair, image].sum()) == pytest.approx(changed, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("with_references", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_contrastive_target(network, images, threshold, with_references, steps):
    """Integrated gradients (Sundararajan et al. 2017, equation 1) of <e, e* - o> if "different" and <e, c - o> if
    "same", as the docstring of `contrast` has them after Lin et al. 2023 (COCOA), section 3. Written
    without reading the implementation.
    """
    plain = PlainNetwork(network)
    centre = [0.0] * DIMENSIONS
    references = None
    if with_references:
        vectors = torch.nn.functional.normalize(torch.randn(5, DIMENSIONS, dtype=torch.float64), dim=1)
        references = References(vectors)
        for vector in vectors.tolist():
            for dimension in range(DIMENSIONS):
                centre[dimension] += vector[dimension] / 5
    explanation = explain(Cut(network, "lift"), images, threshold, references, steps=steps)
    starts, ends = both_ends(plain, images)
    completeness = [[0.0, 0.0], [0.0, 0.0]]
    for (pair, image), end in ends.items():
        partner = plain.embedding(ends[pair, 1 - image])
        own = plain.embedding(end)
        if threshold == 0.0:  # any pair is decided "different"
            direction = [own[dimension] - partner[dimension] for dimension in range(DIMENSIONS)]
        else:
            direction = [centre[dimension] - partner[dimension] for dimension in range(DIMENSIONS)]
        length_at_the_end = length(plain.vector(end))

        def target(features, direction=direction, divisor=length_at_the_end):
            return inner(scaled(plain.vector(features), divisor), direction)

        slopes = mean_gradient(target, starts[pair, image], end, steps)
        values = dict.fromkeys(places(), 0.0)
        for channel, y, x in end:
            gained = end[channel, y, x] - starts[pair, image][channel, y, x]
            values[y, x] += gained * slopes[channel, y, x]
        completeness[pair][0] += sum(values.values())
        completeness[pair][1] += target(end) - target(starts[pair, image])
        evidence = explanation.evidence[pair, image].double()
        torch.testing.assert_close(evidence, as_map(values), rtol=1e-4, atol=1e-6)
        neither = torch.minimum(explanation.towards_different, explanation.towards_same)
        assert not neither.any()
    for pair in range(2):
        assert explanation.completeness[pair].tolist() == pytest.approx(completeness[pair], rel=1e-4, abs=1e-6)


def strongest_places(values, share):
    """1 at the strongest places of a map by (y, x), a share of all, and 0 at the others, with soft edges."""
    order = sorted(values, key=lambda place: -values[place])
    return {place: 1 / (1 + math.exp(-(share - rank / len(order)) / 0.1)) for rank, place in enumerate(order)}


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_thorough(network, images, threshold):
    """The docstring of `thorough`, step by step: the map is too small for its blur to change anything."""
    plain = PlainNetwork(network)
    explanation = explain(Cut(network, "lift"), images, threshold, method="thorough")
    starts, ends = both_ends(plain, images)
    for pair in range(2):
        embeddings = [plain.embedding(ends[pair, image]) for image in range(2)]
        totals = [dict.fromkeys(places(), 0.0) for _ in range(2)]

        def mixed(image, shown, pair=pair):
            point = {}
            for channel, y, x in ends[pair, image]:
                start, end = starts[pair, image][channel, y, x], ends[pair, image][channel, y, x]
                point[channel, y, x] = start + shown[y, x] * (end - start)
            return point

        def add(image, target, shown, states, pair=pair, totals=totals, mixed=mixed):
            for (channel, y, x), slope in gradient(target, mixed(image, shown)).items():
                gained = ends[pair, image][channel, y, x] - starts[pair, image][channel, y, x]
                totals[image][y, x] += gained * slope / states

        for image in range(2):
            towards = embeddings[image] if threshold == 0 else [0.0] * DIMENSIONS
            direction = [own - other for own, other in zip(towards, embeddings[1 - image], strict=True)]
            divisor = length(plain.vector(ends[pair, image]))

            def contrast(features, direction=direction, divisor=divisor):
                return inner(scaled(plain.vector(features), divisor), direction)

            for share in (0.7, 0.9):
                add(image, contrast, dict.fromkeys(places(), share), 2)
        sign = 1 if threshold == 0 else -1
        for _ in range(3):
            supports = [{place: sign * value for place, value in total.items()} for total in totals]
            for share in (0.3, 0.7):
                shown = [strongest_places(support, share) for support in supports]
                hidden = [{place: 1 - value for place, value in mask.items()} for mask in shown]
                for masks in (shown, hidden):
                    for image in range(2):
                        other = embeddings[1 - image]
                        if threshold == 0:  # any pair is decided "different": both images are changed
                            other = plain.embedding(mixed(1 - image, masks[1 - image]))

                        def dissimilar(features, other=other):
                            return -inner(plain.embedding(features), other)

                        add(image, dissimilar, masks[image], 12)
        for image in range(2):
            evidence = explanation.evidence[pair, image].double()
            torch.testing.assert_close(evidence, as_map(totals[image]), rtol=1e-4, atol=1e-6)


def test_strongest_places_of_a_map_by_hand():
    maps = torch.tensor([[[9.0, 3.0, 5.0], [2.0, 8.0, 1.0], [7.0, 4.0, 6.0]]])
    ranks = torch.tensor([[0.0, 6.0, 4.0], [7.0, 1.0, 8.0], [2.0, 5.0, 3.0]])
    for share in (0.3, 0.7):
        expected = 1 / (1 + torch.exp(-(share - ranks / 9) / 0.1))
        torch.testing.assert_close(_strongest(maps, share)[0, 0], expected)
        assert (_strongest(maps, share) > 0.5).sum() == math.ceil(9 * share)


def test_a_lone_place_ranks_below_a_region():
    maps = torch.zeros(1, 40, 40)
    maps[0, 5, 5] = 1.2
    maps[0, 20:30, 20:30] = 1.0
    shown = _strongest(maps, 0.05)[0, 0]
    assert shown[5, 5] < shown[25, 25]
