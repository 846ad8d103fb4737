"""The inner product of two embeddings as a sum over pairs of places, in loops.

Written without reading the implementation.
"""

import pytest
import torch
from plain_network import (
    CHANNELS,
    DIMENSIONS,
    HEIGHT,
    WIDTH,
    PlainNetwork,
    TinyNetwork,
    inner,
    length,
    mean_gradient,
    places,
    scaled,
)

from utils.explanations.matches import Matches, decompose
from utils.explanations.methods import explain
from utils.network.cut import Cut
from utils.network.distance import blurred


def parts_of(plain, start, end, steps):
    """What each place adds to the vector on the way, of the vector's length at the end, and the same of the start."""
    parts = {}
    for y, x in places():
        parts[y, x] = [0.0] * DIMENSIONS
    for dimension in range(DIMENSIONS):

        def entry(features, dimension=dimension):
            return plain.vector(features)[dimension]

        slopes = mean_gradient(entry, start, end, steps)
        for channel in range(CHANNELS):
            for y, x in places():
                gained = end[channel, y, x] - start[channel, y, x]
                parts[y, x][dimension] += gained * slopes[channel, y, x]
    divisor = length(plain.vector(end))
    scaled_parts = {place: scaled(part, divisor) for place, part in parts.items()}
    return scaled_parts, scaled(plain.vector(start), divisor)


@pytest.mark.parametrize(("bend", "steps"), [(0.0, 1), (0.5, 2), (0.5, 5)])
def test_decompose(bend, steps):
    """One step, from an empty map: Eberle et al. 2020 (BiLRP), where the second-order relevance of two places is the
    inner product of what each adds to the embedding. More steps, from the blurred image: Moeller et al. 2023, section
    3, with integrated Jacobians, here by differences. Written without reading the implementation.
    """
    network = TinyNetwork(bend)
    plain = PlainNetwork(network)
    images = torch.randn(1, 2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    cut = Cut(network, "lift")
    matches = decompose(cut, explain(cut, images, 0.5, method="gradcam"), steps=steps)
    parts, starts, embeddings = [], [], []
    for image in range(2):
        end = plain.features(images[0, image].tolist())
        start = dict.fromkeys(end, 0.0)
        if steps > 1:
            start = plain.features(blurred(images)[0, image].tolist())
        of_places, of_start = parts_of(plain, start, end, steps)
        parts.append(of_places)
        starts.append(of_start)
        embeddings.append(plain.embedding(end))
    added = inner(*starts)
    for place in places():
        assert float(matches.bias1[place]) == pytest.approx(inner(parts[0][place], starts[1]), abs=1e-6)
        assert float(matches.bias2[place]) == pytest.approx(inner(parts[1][place], starts[0]), abs=1e-6)
        added += inner(parts[0][place], starts[1]) + inner(parts[1][place], starts[0])
        for other in places():
            value = inner(parts[0][place], parts[1][other])
            added += value
            assert float(matches.places[(*place, *other)]) == pytest.approx(value, abs=1e-6)
    assert float(matches.bias) == pytest.approx(inner(*starts), abs=1e-6)
    assert float(matches.cosine) == pytest.approx(inner(*embeddings), abs=1e-6)
    assert float(matches.residual) == pytest.approx(inner(*embeddings) - added, abs=1e-6)
    if steps == 1:
        assert added == pytest.approx(inner(*embeddings), abs=1e-8)  # the paper's sum is exact


def window(middle, side, height, width):
    """All places of a square around one, cut off at the border."""
    reach = side // 2
    found = []
    for y in range(max(0, middle[0] - reach), min(height, middle[0] + reach + 1)):
        for x in range(max(0, middle[1] - reach), min(width, middle[1] + reach + 1)):
            found.append((y, x))
    return found


@pytest.mark.parametrize(("height", "width"), [(4, 5), (9, 10)])
def test_mutual_matches(height, width):
    """As the docstring of `Matches.mutual` has them: the strongest pair of regions, both taken, then the next one that
    overlaps none, down to a tenth of the first. The strongest of all pairs that are left is the strongest that either
    of its regions finds. Written without reading the implementation.
    """
    network = TinyNetwork(0.0)
    images = torch.randn(1, 2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    explanation = explain(Cut(network, "lift"), images, 0.5, method="gradcam")
    values = torch.randn(height, width, height, width, dtype=torch.float64)
    nothing = torch.zeros(height, width, dtype=torch.float64)
    matches = Matches(explanation, "lift", values, nothing, nothing, 0.0, 0.5)
    side = matches.side
    assert side % 2 == 1
    assert side >= min(height, width) / 8
    windows = {}
    for y in range(height):
        for x in range(width):
            windows[y, x] = window((y, x), side, height, width)
    numbers = values.tolist()
    sums = {}
    for place, region in windows.items():
        for other, region_of_other in windows.items():
            total = 0.0
            for y, x in region:
                for v, u in region_of_other:
                    total += numbers[y][x][v][u]
            sums[place, other] = total
    right, taken1, taken2 = [], set(), set()
    for _ in range(4):
        best = None
        for (place, other), total in sums.items():
            if taken1.intersection(windows[place]) or taken2.intersection(windows[other]):
                continue
            if best is None or total > sums[best]:
                best = (place, other)
        if right and sums[best] < 0.1 * right[0][1]:
            break
        right.append((best, sums[best]))
        taken1.update(windows[best[0]])
        taken2.update(windows[best[1]])
    found = matches.mutual(4)
    assert len(found) == len(right)
    for match, ((place, other), value) in zip(found, right, strict=True):
        assert match.place1 == pytest.approx(((place[0] + 0.5) / height, (place[1] + 0.5) / width))
        assert match.place2 == pytest.approx(((other[0] + 0.5) / height, (other[1] + 0.5) / width))
        assert float(match.value) == pytest.approx(value, rel=1e-6)


def test_areas_around_matches():
    """As the docstring of `Matches.areas` has them, in loops."""
    height, width = 6, 7
    images = torch.randn(1, 2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    explanation = explain(Cut(TinyNetwork(0.0), "lift"), images, 0.5, method="gradcam")
    values = torch.rand(height, width, height, width, dtype=torch.float64) + torch.eye(42).view(6, 7, 6, 7)
    nothing = torch.zeros(height, width, dtype=torch.float64)
    matches = Matches(explanation, "lift", values, nothing, nothing, 0.0, 0.5)
    assert matches.side == 1  # a region is one place
    mutual = matches.mutual(4)
    middles1 = [(int(match.place1[0] * height), int(match.place1[1] * width)) for match in mutual]
    middles2 = [(int(match.place2[0] * height), int(match.place2[1] * width)) for match in mutual]
    for area in matches.areas(4):
        number = mutual.index(area.match)
        middle1, middle2 = middles1[number], middles2[number]
        places1 = area_of({place: values[place][middle2].item() for place in grid(height, width)}, middles1, number)
        places2 = area_of({place: values[middle1][place].item() for place in grid(height, width)}, middles2, number)
        assert {tuple(place) for place in area.places1.nonzero().tolist()} == places1
        assert {tuple(place) for place in area.places2.nonzero().tolist()} == places2
        total = sum(values[place1][place2].item() for place1 in places1 for place2 in places2)
        assert area.value == pytest.approx(total)
        assert area.match == mutual[number]


def grid(height, width):
    return [(y, x) for y in range(height) for x in range(width)]


def area_of(strengths, middles, number):
    """The places around a middle that are half as strong, nearest to it of all middles, and connected."""
    strong = set()
    for (y, x), strength in strengths.items():
        distances = [(y - v) ** 2 + (x - u) ** 2 for v, u in middles]
        if strength >= strengths[middles[number]] / 2 and distances.index(min(distances)) == number:
            strong.add((y, x))
    reached, border = set(), {middles[number]}
    while border:
        reached |= border
        near = {(y + v, x + u) for y, x in border for v, u in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        border = near & strong - reached
    return reached
