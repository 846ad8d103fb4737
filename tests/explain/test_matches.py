import pytest
import torch
from helpers import network_and_images

from utils.explain import Explanation, Match, Matches, decompose, explain


def explained_pair(**settings):
    network, images = network_and_images(count=1, **settings)
    return network, images, explain(network, images, 0.5)


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_the_terms_add_up_to_the_inner_product(size):
    network, images, explanation = explained_pair(size=size)
    found = decompose(network, explanation)
    one, two = network(images[0]).double()
    assert found.cosine == pytest.approx((one @ two).item(), abs=1e-5)
    assert abs(found.residual) < 1e-5
    assert found.places.shape == (size[0] // 32, size[1] // 32) * 2
    for regions, other in zip(found.regions, (found.bias2, found.bias1), strict=True):
        total = regions.sum() + other.sum() + found.bias
        assert float(total) == pytest.approx(found.cosine, abs=1e-5)


def test_every_term_against_plain_loops():
    network, images, explanation = explained_pair()
    found = decompose(network, explanation)
    maps1, maps2 = network.features(images[0])
    weight, bias = network.embedding.weight, network.embedding.bias
    lengths = (weight @ maps1.mean(dim=(1, 2)) + bias).norm() * (weight @ maps2.mean(dim=(1, 2)) + bias).norm()
    for y1 in range(2):
        for x1 in range(2):
            part = weight @ maps1[:, y1, x1] / 4
            torch.testing.assert_close(found.bias1[y1, x1], part @ bias / lengths, atol=1e-6, rtol=1e-4)
            for y2 in range(2):
                for x2 in range(2):
                    expected = part @ (weight @ maps2[:, y2, x2] / 4) / lengths
                    torch.testing.assert_close(found.places[y1, x1, y2, x2], expected, atol=1e-6, rtol=1e-4)


def test_points_and_strongest_matches():
    places = torch.zeros(2, 4, 2, 4)
    places[1, 3, 0, 1], places[0, 0, 0, 0], places[1, 0, 1, 2] = 0.5, -0.9, 0.2
    nothing = torch.zeros(1, 2, 4, 4)
    explanation = Explanation(torch.zeros(1, 2, 3, 4, 4), torch.tensor([0.4]), 0.5, nothing, nothing)
    found = Matches(explanation, "layer4", places, torch.zeros(2, 4), torch.zeros(2, 4), 0.0, -0.2)
    assert torch.equal(found.matches_of(0.99, 0.8), places[1, 3])
    first, second = found.strongest(2)
    assert first == Match((0.75, 0.875), (0.25, 0.375), 0.5)
    assert (second.place1, second.place2) == ((0.75, 0.125), (0.75, 0.625))
    assert len(found.strongest(100)) == 64
    assert "similarity 0.800" in str(found)
    assert "residual" in str(found)


def test_one_pair_at_a_time():
    network, images = network_and_images(count=3)
    explanation = explain(network, images, 0.5)
    with pytest.raises(ValueError, match="one pair, not 3"):
        decompose(network, explanation)
    assert abs(decompose(network, explanation[2]).residual) < 1e-5
