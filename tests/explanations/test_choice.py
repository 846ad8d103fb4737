import math

import pytest
import torch
from helpers import CHEQUERED, Coloured, ReadAtPixels, board, network_and_images, patterned

from utils import judge_choice
from utils.explanations.choice import choose, margins
from utils.files import ExplanationError
from utils.network.distance import blurred
from utils.network.variants import fully_random
from utils.trust.faithfulness import SHARES, _centre_map, _random_maps

SIZE = (6, 6)
GREEN = torch.tensor([[math.cos(0.5), math.sin(0.5)]])  # embeddings of images that are rather green, or red
RED = torch.tensor([[math.cos(-0.5), math.sin(-0.5)]])


def half_green_half_red():
    image = torch.zeros(3, *SIZE)
    image[1, :, :3] = 0.5
    image[0, :, 3:] = 0.5
    return image


def test_evidence_lies_where_each_class_is():
    choice = choose(Coloured(), half_green_half_red(), GREEN, RED)
    assert (choice.evidence[:, :2] > 0).all()
    assert (choice.evidence[:, 4:] < 0).all()
    assert choice.margin == pytest.approx(0, abs=1e-5)
    other = choose(Coloured(), half_green_half_red(), RED, GREEN)
    assert torch.allclose(other.evidence, -choice.evidence, atol=1e-5)
    assert choice.shares.abs().max() == pytest.approx(1)


class TwoElements(ReadAtPixels):
    """An angle for each of two channels, as the one of a Chequered network."""

    def forward(self, images):
        angles = (images[:, :2] * board(*images.shape[2:])).sum(dim=(2, 3))  # (N, 2)
        return torch.cat([angles.cos(), angles.sin()], dim=1) / 2**0.5


def two_elements(common_at, own_at, own_angle):
    """An image with one element that all classes have, and another one, and where the latter is."""
    image, _ = patterned(CHEQUERED, common_at, 0.7)
    own, mask = patterned(CHEQUERED, own_at, own_angle)
    image[1] = own[0]
    return image, mask


def test_of_two_elements_only_the_one_that_differs_decides():
    """Both classes have the common element: a map of what makes two images of one class similar marks it too."""
    network = TwoElements()
    generator = torch.Generator().manual_seed(0)
    hits = on_common = 0
    for _ in range(20):
        y, x, other_y, other_x = torch.randint(0, 17, (4,), generator=generator).tolist()
        image, mask = two_elements((y, x), (other_y, other_x), 0.7)
        nearer, farther = (two_elements((4, 4), (12, 12), angle)[0] for angle in (0.7, 0))
        embeddings = network(torch.stack([nearer, farther]))
        choice = choose(network, image, embeddings[:1], embeddings[1:])
        hits += mask.flatten()[choice.evidence.argmax()].item()
        no_class = choose(network, image, embeddings[:1], -embeddings[:1])
        on_common += (~mask & (no_class.evidence > no_class.evidence.max() / 2)).any().item()
    assert hits >= 18
    assert on_common >= 15  # or the test above would show nothing


def test_a_margin_is_the_difference_of_mean_similarities():
    torch.manual_seed(0)
    one, nearer, farther = (torch.nn.functional.normalize(torch.randn(count, 4), dim=1) for count in (1, 3, 2))
    similar = [1 - (one[0] - other).norm().item() / 2 for other in nearer]
    others = [1 - (one[0] - other).norm().item() / 2 for other in farther]
    assert margins(one, nearer, farther).item() == pytest.approx(sum(similar) / 3 - sum(others) / 2, abs=1e-6)


def test_embeddings_of_another_network():
    with pytest.raises(ExplanationError, match=r"embeddings \(1, 3\) are refused"):
        choose(Coloured(), half_green_half_red(), torch.ones(1, 3), RED)
    network, images = network_and_images(size=(32, 32), count=1)
    with torch.no_grad():
        nearer, farther = network(images[0]).split(1)
    choice = choose(network, images[0, 0], nearer, farther)
    with pytest.raises(ValueError, match="the choice is of another network"):
        judge_choice(fully_random(network), choice)


def test_its_verdict_is_that_of_plain_loops():
    """Insertion and deletion of the margin, pixel by pixel, of its own map and of those that know nothing."""
    network = Coloured()
    image = half_green_half_red()
    image[1, :, :3] = 0.9
    choice = choose(network, image, GREEN, RED)
    verdict = judge_choice(network, choice, seed=3)
    hidden = blurred(image[None])[0]
    twice = image[None, None].expand(1, 2, -1, -1, -1)
    maps = [choice.evidence, _centre_map(twice)[0, 0], *_random_maps(twice, 3)[0][0], *_random_maps(twice, 4)[0][0]]
    gaps = []
    measured = []
    for heatmap in maps:
        order = sorted(range(36), key=lambda pixel: -heatmap.flatten()[pixel].item())
        total = 0
        for share in SHARES:
            inserted, deleted = hidden.clone(), image.clone()
            for pixel in order[: math.ceil(share * 36)]:
                y, x = divmod(pixel, 6)
                inserted[:, y, x] = image[:, y, x]
                deleted[:, y, x] = hidden[:, y, x]
            measured.append(margins(network(inserted[None]), GREEN, RED).item())
            measured.append(margins(network(deleted[None]), GREEN, RED).item())
            total += measured[-2] - measured[-1]
        gaps.append(total / len(SHARES))
    assert verdict.gap.decisive.item() == pytest.approx(gaps[0], abs=1e-5)
    expected = sorted(gaps[1:] + [-gap for gap in gaps[1:]])
    assert sorted(verdict.blind.decisive[:, 0].tolist()) == pytest.approx(expected, abs=1e-5)
    for end in (image, hidden):
        measured.append(margins(network(end[None]), GREEN, RED).item())
    assert verdict.span.decisive.item() == pytest.approx(max(measured) - min(measured), abs=1e-5)


def test_a_verdict_takes_62_passes(monkeypatch):
    network = Coloured()
    choice = choose(network, half_green_half_red(), GREEN, RED)
    seen = []
    monkeypatch.setattr(network, "forward", lambda batch: seen.append(len(batch)) or Coloured.forward(network, batch))
    judge_choice(network, choice)
    assert f"in {sum(seen)} passes of one image" in judge_choice.__doc__


def test_nothing_to_explain_where_nothing_changes_the_margin():
    choice = choose(Coloured(), half_green_half_red(), GREEN, GREEN)
    verdict = judge_choice(Coloured(), choice)
    assert verdict.sentence() == "Nothing to explain: whatever is hidden, the margin changes by 0.000 at most."
