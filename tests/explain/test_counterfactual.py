import pytest
import torch
from helpers import Chequered, Coloured, patterned

from utils.explain import counterfactual
from utils.explain import Explanation
from utils.trust.faithfulness import explain_at_random
from utils.network import distance, distances_of, similarity

SIZE = (24, 24)


def same_pair():
    (image1, mask1), (image2, mask2) = patterned(SIZE, (2, 3), 1.2), patterned(SIZE, (14, 12), 1.2)
    maps = torch.stack([mask1, mask2])[None].float()
    return image1, image2, Explanation(distances_of(Chequered(), image1, image2), 0.5, torch.zeros_like(maps), maps)


def different_pair():
    images, maps = [torch.zeros(1, 3, *SIZE), torch.zeros(1, 3, *SIZE)], torch.zeros(1, 2, *SIZE)
    images[0][:, 0, 2:8, 12:18], images[1][:, 1, 14:20, 3:9] = 1, 1  # a red square, a green square
    maps[0, 0, 2:8, 12:18], maps[0, 1, 14:20, 3:9] = 1, 1
    return *images, Explanation(distances_of(Coloured(), *images), 0.5, maps, torch.zeros_like(maps))


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_the_change_flips_the_decision_and_touches_nothing_else(network, pair):
    image1, image2, explanation = pair()
    found = counterfactual(network, image1, image2, explanation)
    assert found.flipped
    after = distance(network(found.edited[:1]), network(found.edited[1:]))  # run again, from outside
    assert (after > explanation.threshold).item() != explanation.different.item()
    assert found.after == pytest.approx(similarity(after).item(), abs=1e-5)
    assert found.before == pytest.approx(explanation.similarity.item(), abs=1e-5)
    for image, edited, region in zip((image1, image2), found.edited, found.regions, strict=True):
        assert torch.equal(edited[:, ~region], image[0][:, ~region])
    assert "the decision flips" in found.sentence()


def test_blurring_the_pattern_of_one_image_is_enough():
    image1, image2, explanation = same_pair()
    found = counterfactual(Chequered(), image1, image2, explanation)
    assert found.area <= 0.5 * 36 / 24**2 + 0.01  # at most one of the two patterns
    assert found.area == pytest.approx(found.regions.float().mean().item())


def test_the_swapped_window_covers_the_square():
    image1, image2, explanation = different_pair()
    found = counterfactual(Coloured(), image1, image2, explanation)
    assert found.regions[0, 2:8, 12:18].float().mean() > 0.5
    assert not found.regions[1].any()
    assert found.area <= 0.2


@pytest.mark.parametrize(("network", "pair"), [(Chequered(), same_pair), (Coloured(), different_pair)])
def test_random_regions_need_more(network, pair):
    image1, image2, explanation = pair()
    ours = counterfactual(network, image1, image2, explanation)
    random = [
        counterfactual(network, image1, image2, explain_at_random(network, image1, image2, 0.5, seed))
        for seed in range(10)
    ]
    assert ours.area < sum(found.area for found in random) / 10


def test_what_cannot_flip_says_so():
    image1, image2, explanation = same_pair()
    never = Explanation(explanation.distance, 2.0, explanation.towards_different, explanation.towards_same)
    found = counterfactual(Chequered(), image1, image2, never)
    assert not found.flipped
    assert "the decision stays" in found.sentence()
