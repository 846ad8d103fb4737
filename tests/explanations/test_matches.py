import pytest
import torch
from captum.attr import LayerIntegratedGradients
from helpers import Squared, network_and_images

from utils.explanations import matches
from utils.explanations.explanation import Explanation
from utils.explanations.matches import Match, Matches, decompose
from utils.explanations.methods import explain
from utils.network.cut import Cut
from utils.network.distance import blurred


def explained_pair(**settings):
    network, images = network_and_images(count=1, **settings)
    return network, images, explain(network, images, 0.5)


def planted(places):
    """Matches of these places, (h, w, h, w), and no biases."""
    nothing = torch.zeros(1, 2, 4, 4)
    explanation = Explanation(torch.zeros(1, 2, 3, 4, 4), torch.tensor([0.4]), 0.5, nothing, nothing)
    biases = torch.zeros(places.shape[:2])
    return Matches(explanation, "layer4", places, biases, biases, 0.0, -0.2)


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_the_terms_add_up_to_the_inner_product(size):
    network, images, explanation = explained_pair(size=size)
    found = decompose(network, explanation)
    one, two = network(images[0]).double()
    assert found.cosine == pytest.approx((one @ two).item(), abs=1e-5)
    assert abs(found.residual) < 1e-5
    assert found.layer == "layer4"
    assert found.places.shape == (size[0] // 32, size[1] // 32) * 2


def test_every_term_against_plain_loops():
    network, images, explanation = explained_pair()
    found = decompose(network, explanation)
    maps1, maps2 = network.features(images[0])
    weight, bias = network.embedding.weight, network.embedding.bias
    lengths = (weight @ maps1.mean(dim=(1, 2)) + bias).norm() * (weight @ maps2.mean(dim=(1, 2)) + bias).norm()
    assert found.bias == pytest.approx((bias @ bias / lengths).item(), abs=1e-6)
    for y1 in range(2):
        for x1 in range(2):
            part = weight @ maps1[:, y1, x1] / 4
            torch.testing.assert_close(found.bias1[y1, x1], part @ bias / lengths, atol=1e-6, rtol=1e-4)
            for y2 in range(2):
                for x2 in range(2):
                    expected = part @ (weight @ maps2[:, y2, x2] / 4) / lengths
                    torch.testing.assert_close(found.places[y1, x1, y2, x2], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_integrated_jacobians_of_squares_are_differences_of_squares(dtype, close):
    """Slopes are straight here, so that the midpoint rule is exact."""
    images = torch.randn(1, 2, 3, 12, 18).to(dtype)
    network = Cut(Squared(), layer="map")
    found = decompose(network, explain(network, images, 0.5), "map", steps=3)
    starts = blurred(images)[0].double()
    parts = images[0].double().square() - starts.square()  # (2, 3, 12, 18): channels are the dimensions
    lengths = images[0].double().square().sum(dim=(2, 3)).norm(dim=1).prod()
    expected = torch.einsum("cyx,cvu->yxvu", *parts) / lengths
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.places.double(), expected, atol=close * scale, rtol=0)
    base2 = starts[1].square().sum(dim=(1, 2))
    expected = torch.einsum("cyx,c->yx", parts[0], base2) / lengths
    torch.testing.assert_close(found.bias1.double(), expected, atol=close * expected.abs().max().item(), rtol=0)
    assert abs(found.residual) < close


def test_integrated_jacobians_against_captum():
    """Integrated gradients at a layer of each dimension of the vectors, one after another, by hooks."""
    network, images = (part.double() for part in network_and_images(count=1, size=(48, 64)))
    found = decompose(network, explain(network, images, 0.5), "layer2", steps=3)
    parts = []
    for one in images[0, :, None]:
        vector = network.project_features(network.features(one)).detach()[0]
        rows = []
        for dimension in range(len(vector)):

            def target(inputs, dimension=dimension):
                return network.project_features(network.features(inputs))[:, dimension]

            peer = LayerIntegratedGradients(target, network.backbone.layer2)
            added = peer.attribute(one, blurred(one), n_steps=3, method="riemann_middle").detach()
            rows.append(added[0].sum(dim=0) / vector.norm())
        parts.append(torch.stack(rows))
    expected = torch.einsum("dyx,dvu->yxvu", *parts)
    scale = expected.abs().max()
    torch.testing.assert_close(found.places / scale, expected / scale, atol=1e-6, rtol=0)


def test_the_residual_of_earlier_layers_shrinks_with_the_steps():
    network, _, explanation = explained_pair()
    for layer in ("layer1", "layer3"):
        coarse, fine = (decompose(network, explanation, layer, steps) for steps in (2, 16))
        assert abs(fine.residual) < abs(coarse.residual)
        assert abs(fine.residual) < 0.1 * abs(float(fine.places.sum()))
        assert fine.layer == layer


def test_one_step_is_for_what_is_exact():
    network, _, explanation = explained_pair()
    with pytest.raises(ValueError, match=r"one linear layer behind 'layer3'.*pass more steps"):
        decompose(network, explanation, "layer3")


def test_the_strongest_match_joins_planted_objects():
    images = torch.zeros(1, 2, 3, 30, 30)
    images[0, 0, :, 2:8, 20:26] = images[0, 1, :, 18:24, 4:10] = 1
    masks = images[0, :, 0] > 0
    network = Cut(Squared(), layer="map")
    found = decompose(network, explain(network, images, 0.5), "map", steps=2)
    (match,) = found.mutual(1)
    for mask, (y, x) in zip(masks, (match.place1, match.place2), strict=True):
        assert mask[int(y * 30), int(x * 30)]


def test_a_match_of_regions_is_the_sum_of_its_pairs_of_places():
    places = torch.randn(16, 18, 16, 18)
    found = planted(places)
    assert found.side == 3
    for match in found.mutual(4):
        (top1, left1, bottom1, right1), (top2, left2, bottom2, right2) = (
            [round(share * side) for share, side in zip(found.bounds(place), (16, 18, 16, 18), strict=True)]
            for place in (match.place1, match.place2)
        )
        total = 0.0
        for y1 in range(top1, bottom1):
            for x1 in range(left1, right1):
                total += places[y1, x1, top2:bottom2, left2:right2].sum().item()
        assert match.value == pytest.approx(total, abs=1e-4)


def test_matches_are_mutual_and_take_their_regions():
    places = torch.randn(16, 16, 16, 16)
    found = planted(places)
    matches = found.mutual(5)
    assert [match.value for match in matches] == sorted((match.value for match in matches), reverse=True)
    grid = [((y + 0.5) / 16, (x + 0.5) / 16) for y in range(16) for x in range(16)]
    inside = torch.zeros(256, 16, 16)  # of the region around each place
    for index, place in enumerate(grid):
        top, left, bottom, right = (round(16 * end) for end in found.bounds(place))
        inside[index, top:bottom, left:right] = 1
    values = inside.flatten(1) @ places.reshape(256, 256) @ inside.flatten(1).T
    free1, free2 = [True] * 256, [True] * 256
    for match in matches:
        left = values[free1][:, free2]
        assert match.value == pytest.approx(left.max().item(), abs=1e-4)  # and so the strongest of both its ends
        for free, taken in ((free1, match.place1), (free2, match.place2)):
            for index, place in enumerate(grid):
                apart = max(abs(place[0] - taken[0]), abs(place[1] - taken[1]))
                free[index] = free[index] and apart > 2.5 / 16  # three cells and more


def test_regions_of_small_maps_are_places():
    places = torch.zeros(2, 4, 2, 4)
    places[1, 3, 0, 1], places[0, 0, 0, 0], places[1, 0, 1, 2] = 0.5, -0.9, 0.25
    found = planted(places)
    assert found.bounds((0.99, 0.8)) == (0.5, 0.75, 1, 1)
    assert found.mutual(100) == [Match((0.75, 0.875), (0.25, 0.375), 0.5), Match((0.75, 0.125), (0.75, 0.625), 0.25)]
    assert "similarity 0.800" in str(found)
    assert "error of the sum" in str(found)


def test_there_is_one_match_at_least():
    (match,) = planted(torch.full((2, 2, 2, 2), -0.5)).mutual()
    assert match.value == -0.5
    (match,) = planted(torch.zeros(1, 1, 1, 1)).mutual()
    assert match == Match((0.5, 0.5), (0.5, 0.5), 0.0)


def blocks_of(side, count):
    """The first and the last place but one of each of `count` blocks, as even as can be, by hand."""
    ends = [place for place in range(1, side + 1) if place * count // side != (place - 1) * count // side]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.parametrize(("size", "grid"), [((12, 18), (3, 5)), ((17, 8), (5, 2)), ((10, 10), (5, 5))])
def test_maps_of_many_places_are_pooled_and_every_sum_stays(monkeypatch, size, grid):
    network = Cut(Squared(), layer="map")
    explanation = explain(network, torch.randn(1, 2, 3, *size, dtype=torch.float64), 0.5)
    whole = decompose(network, explanation, "map", steps=2)
    monkeypatch.setattr(matches, "LARGEST", 5)
    found = decompose(network, explanation, "map", steps=2)
    assert found.places.shape == grid * 2
    rows, columns = blocks_of(size[0], grid[0]), blocks_of(size[1], grid[1])
    for y1, (top1, bottom1) in enumerate(rows):
        for x1, (left1, right1) in enumerate(columns):
            of_block = whole.places[top1:bottom1, left1:right1]
            part = whole.bias1[top1:bottom1, left1:right1].sum()
            torch.testing.assert_close(found.bias1[y1, x1], part)
            for y2, (top2, bottom2) in enumerate(rows):
                for x2, (left2, right2) in enumerate(columns):
                    part = of_block[:, :, top2:bottom2, left2:right2].sum()
                    torch.testing.assert_close(found.places[y1, x1, y2, x2], part)
    assert found.residual == pytest.approx(whole.residual, abs=1e-12)
    assert f"at map, pooled to {grid[0]} x {grid[1]} places" in str(found)
    assert "pooled" not in str(whole)


def test_a_map_of_448_x_224_places_takes_40_megabytes_at_most():
    """All pairs of its places would take 40 gigabytes."""
    network = Cut(Squared(), layer="map")
    explanation = explain(network, torch.randn(1, 2, 3, 448, 224), 0.5, steps=1)
    found = decompose(network, explanation, "map", steps=2)
    assert found.places.shape == (56, 28, 56, 28)
    assert found.places.untyped_storage().nbytes() <= 40e6
    assert abs(found.residual) < 1e-4


def test_one_pair_at_a_time():
    network, images = network_and_images(count=3)
    explanation = explain(network, images, 0.5)
    with pytest.raises(ValueError, match="one pair, not 3"):
        decompose(network, explanation)
    assert abs(decompose(network, explanation[2]).residual) < 1e-5
