import pytest
import torch
from helpers import CHEQUERED, Chequered, different_pairs, explanation_of

from utils.network.distance import blurred, mean_colour
from utils.trust.faithfulness import SHARES, Effect, insertion_deletion, span_of


def plain_gap(network, images, maps, different, hide, which):
    """Deletion and insertion of one pair, pixel after pixel, in the images that `which` names."""
    total = 0
    for share in SHARES:
        for sign in (1, -1):  # insertion, deletion
            changed = [images[0], images[1]]
            for number in which:
                image, heatmap, hidden = images[number], maps[number], hide(images[number][None])[0]
                order = sorted(range(heatmap.numel()), key=lambda place, heatmap=heatmap: -heatmap.flatten()[place])
                result = (hidden if sign == 1 else image).clone()
                for rank, place in enumerate(order):
                    if rank < share * heatmap.numel():
                        y, x = divmod(place, heatmap.shape[1])
                        result[:, y, x] = (image if sign == 1 else hidden)[:, y, x]
                changed[number] = result
            first, two = (network(part[None])[0] for part in changed)
            apart = (first - two).norm().item()
            total += sign * (apart / 2 if different else 1 - apart / 2)
    return total / len(SHARES)


@pytest.mark.parametrize("hide", [blurred, mean_colour])
@pytest.mark.parametrize("threshold", [0.1, 1.5])  # the same pair, decided "different" and "same"
def test_against_pixel_after_pixel(threshold, hide):
    network = Chequered()
    images, _ = different_pairs()
    images = images + 0.3 * torch.randn(1, 2, 3, 1, 1, generator=torch.Generator().manual_seed(1))  # a colour each
    maps = torch.randn(1, 2, *CHEQUERED, generator=torch.Generator().manual_seed(0))
    explanation = explanation_of(network, images, maps, threshold)
    found = insertion_deletion(network, explanation, hide)
    different = bool(explanation.different)
    for name, which in (("both", (0, 1)), ("image1", (0,)), ("image2", (1,))):
        expected = plain_gap(network, images[0], maps[0], different, hide, which)
        assert getattr(found, name).item() == pytest.approx(expected, abs=1e-5)


def test_the_right_map_scores_best_and_its_negative_worst():
    network = Chequered()
    images, right = different_pairs(6)
    random = [torch.rand(right.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    scores = [insertion_deletion(network, explanation_of(network, images, maps)) for maps in (right, -right, *random)]
    for name in ("both", "image1", "image2"):
        best, worst, *others = (getattr(score, name) for score in scores)
        assert (best > 0.1).all()
        for counterpart in others:
            assert (best > counterpart).all()
            assert (worst < counterpart).all()


@pytest.mark.parametrize("threshold", [0.1, 1.5])
def test_the_span_is_what_hiding_everything_changes(threshold):
    network = Chequered()
    images, right = different_pairs(3)
    explanation = explanation_of(network, images, right, threshold)
    found = span_of(network, explanation)
    for pair in range(3):
        hidden = blurred(images[pair])
        for name, which in (("both", (0, 1)), ("image1", (0,)), ("image2", (1,))):
            changed = [hidden[number] if number in which else images[pair, number] for number in range(2)]
            apart = [(network(first[None]) - network(two[None])).norm() / 2 for first, two in (images[pair], changed)]
            lost = apart[0] - apart[1] if explanation.different[pair] else apart[1] - apart[0]
            assert getattr(found, name)[pair].item() == pytest.approx(lost.item(), abs=1e-5)
    if threshold == 0.1:  # decided "different", which only what is hidden can undo
        gap = insertion_deletion(network, explanation).decisive
        assert (gap > 0.9 * found.decisive).all()
        assert (gap < 1.01 * found.decisive).all()


def test_the_decisive_gap_is_the_one_that_can_undo_the_decision():
    gap = Effect(*torch.tensor([[0.1, 0.2], [0.5, 0.6], [0.7, 0.8]]), torch.tensor([True, False]))
    torch.testing.assert_close(gap.decisive, torch.tensor([0.1, 0.7]))
    network = Chequered()
    images, right = different_pairs(4)
    same = insertion_deletion(network, explanation_of(network, images[:, [0, 0]], right[:, [0, 0]]))
    assert (same.decisive > 0.1).all()
    assert same.both.abs().max() < 1e-5  # an image beside itself: both lose the same, and stay alike
    different = insertion_deletion(network, explanation_of(network, images, right))
    assert (different.decisive > different.each).all()  # each object holds "different" up without the other
