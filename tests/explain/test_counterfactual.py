import math
from dataclasses import replace

import pytest
import torch
from helpers import Chequered, Coloured, explanation_of, patterned

from utils.explain import blurred, counterfactual
from utils.explain.counterfactual import AREAS
from utils.network import distance, similarity
from utils.trust import explain_at_random

SIZE = (24, 24)


def same_pair():
    (image1, mask1), (image2, mask2) = patterned(SIZE, (2, 3), 1.2), patterned(SIZE, (14, 12), 1.2)
    images = torch.stack([image1, image2])[None]
    return explanation_of(Chequered(), images, torch.stack([mask1, mask2])[None].float())


def different_pair():
    images, maps = torch.zeros(1, 2, 3, *SIZE), torch.zeros(1, 2, *SIZE)
    images[0, 0, 0, 2:8, 12:18] = 1  # a red square
    images[0, 1, 1, 14:20, 3:9] = 1  # a green square
    maps[0, 0, 2:8, 12:18], maps[0, 1, 14:20, 3:9] = 1, 1
    return explanation_of(Coloured(), images, maps)


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_the_change_flips_the_decision_and_touches_nothing_else(network, pair):
    explanation = pair()
    found = counterfactual(network, explanation)
    assert found.flipped
    after = distance(network(found.edited[:1]), network(found.edited[1:]))  # run again, from outside
    assert (after > explanation.threshold).item() != explanation.different.item()
    assert found.after == pytest.approx(similarity(after).item(), abs=1e-5)
    assert found.before == pytest.approx(explanation.similarity.item(), abs=1e-5)
    for image, edited, region in zip(explanation.images[0], found.edited, found.regions, strict=True):
        assert torch.equal(edited[:, ~region], image[:, ~region])
    assert "the decision flips" in found.sentence()


def test_blurring_the_pattern_of_one_image_is_enough():
    explanation = same_pair()
    found = counterfactual(Chequered(), explanation)
    assert found.area <= 0.5 * 36 / 24**2 + 0.01  # at most one of the two patterns
    assert found.area == pytest.approx(found.regions.float().mean().item())


def test_the_swapped_window_covers_the_square():
    explanation = different_pair()
    found = counterfactual(Coloured(), explanation)
    assert found.regions[0, 2:8, 12:18].float().mean() > 0.5
    assert not found.regions[1].any()
    assert found.area <= 0.2


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_random_regions_need_more(network, pair):
    explanation = pair()
    ours = counterfactual(network, explanation)
    random = [counterfactual(network, explain_at_random(network, explanation.images, 0.5, seed)) for seed in range(10)]
    assert ours.area < sum(found.area for found in random) / 10


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_what_cannot_flip_says_so(network, pair):
    explanation = pair()
    threshold = 0.0 if explanation.different else 2.0
    found = counterfactual(network, replace(explanation, threshold=threshold))
    assert not found.flipped
    assert "the decision stays" in found.sentence()


def test_every_blurred_region_against_one_at_a_time():
    """The smallest flip, found by blurring region after region and asking the network for each alone."""
    explanation = same_pair()
    images = explanation.images[0]
    order = [
        sorted(range(24 * 24), key=lambda place, one=one: -one[place]) for one in explanation.ranking[0].flatten(1)
    ]
    smallest = None
    for share in AREAS:
        for which in ((0, 1), (0,), (1,)):
            edited = images.clone()
            for image in which:
                hidden = blurred(images[image][None])[0]
                for place in order[image][: math.ceil(share * 24 * 24)]:
                    y, x = divmod(place, 24)
                    edited[image, :, y, x] = hidden[:, y, x]
            apart = distance(Chequered()(edited[:1]), Chequered()(edited[1:])).item()
            area = math.ceil(share * 24 * 24) * len(which) / (2 * 24 * 24)
            if apart > explanation.threshold and (smallest is None or area < smallest[0]):
                smallest = area, apart
    found = counterfactual(Chequered(), explanation)
    assert (found.area, found.distance) == pytest.approx(smallest, abs=1e-5)


def test_one_pair_at_a_time():
    one = same_pair()
    both = replace(
        one,
        images=one.images.repeat(2, 1, 1, 1, 1),
        distance=one.distance.repeat(2),
        towards_different=one.towards_different.repeat(2, 1, 1, 1),
        towards_same=one.towards_same.repeat(2, 1, 1, 1),
        names=one.names * 2,
    )
    with pytest.raises(ValueError, match="one pair, not 2"):
        counterfactual(Chequered(), both)
    assert counterfactual(Chequered(), both[1]).area == counterfactual(Chequered(), one).area
