import numpy as np
import pytest
import torch
from helpers import Chequered, board, patterned
from scipy.stats import norm

from utils.explain import Explanation
from utils.trust.faithfulness import SHARES, Gap, Verdict, explain_at_random, explain_by_centre, gaps, interval, judge
from utils.network import distance, distances_of
from utils.data.transforms import blurred

SIZE = (24, 30)


def different_pairs(count=1):
    """Pairs of a Chequered network that are "different", and the right maps: float32 (B, 2, H, W)."""
    random = np.random.default_rng(0)
    images, maps = ([], []), []
    for _ in range(count):
        made = [patterned(SIZE, (random.integers(1, 17), random.integers(1, 23)), angle) for angle in (0.7, -0.7)]
        for part, (image, _) in zip(images, made, strict=True):
            part.append(image)
        maps.append(torch.stack([mask.float() for _, mask in made]))
    return torch.cat(images[0]), torch.cat(images[1]), torch.stack(maps)


def explanation_of(network, images1, images2, maps, threshold=0.5):
    distances = distances_of(network, images1, images2)
    towards = maps.clamp(min=0), (-maps).clamp(min=0)
    different = (distances > threshold)[:, None, None, None]
    return Explanation(distances, threshold, torch.where(different, *towards), torch.where(different, *towards[::-1]))


def plain_gap(network, image1, image2, maps, different, joint=True):
    """Deletion and insertion of one pair, pixel after pixel."""
    images, total = (image1[0], image2[0]), 0
    for share in SHARES:
        for sign in (1, -1):  # insertion, deletion
            changed = []
            for image, heatmap in zip(images, maps, strict=True):
                blurry = blurred(image[None])[0]
                order = sorted(range(heatmap.numel()), key=lambda place, heatmap=heatmap: -heatmap.flatten()[place])
                result = (blurry if sign == 1 else image).clone()
                for rank, place in enumerate(order):
                    if rank < share * heatmap.numel():
                        y, x = divmod(place, heatmap.shape[1])
                        result[:, y, x] = (image if sign == 1 else blurry)[:, y, x]
                changed.append(result)
            second = changed[1] if joint else images[1]
            apart = distance(network(changed[0][None]), network(second[None])).item()
            total += sign * (apart / 2 if different else 1 - apart / 2)
    return total / len(SHARES)


@pytest.mark.parametrize("threshold", [0.1, 1.5])  # the same pair, decided "different" and "same"
def test_against_pixel_after_pixel(threshold):
    network = Chequered()
    images1, images2, _ = different_pairs()
    maps = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    explanation = explanation_of(network, images1, images2, maps, threshold)
    found = gaps(network, images1, images2, explanation)
    different = bool(explanation.different)
    assert found.joint.item() == pytest.approx(plain_gap(network, images1, images2, maps[0], different), abs=1e-5)
    alone = plain_gap(network, images1, images2, maps[0], different, joint=False)
    assert found.image1.item() == pytest.approx(alone, abs=1e-5)


def test_the_right_map_scores_best_and_its_negative_worst():
    network = Chequered()
    images1, images2, right = different_pairs(6)
    random = [torch.rand(right.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    scores = [
        gaps(network, images1, images2, explanation_of(network, images1, images2, maps))
        for maps in (right, -right, *random)
    ]
    for name in ("joint", "image1", "image2"):
        best, worst, *others = (getattr(score, name) for score in scores)
        assert (best > 0.1).all()
        for other in others:
            assert (best > other).all()
            assert (worst < other).all()


def test_verdicts_on_the_right_map_on_noise_and_on_a_blank_map(device):
    network = Chequered()
    images1, images2, right = different_pairs(20)
    words = {}
    for name, maps in (
        ("right", right),
        ("noise", torch.rand(right.shape, generator=torch.Generator().manual_seed(99))),
        ("blank", torch.zeros_like(right)),
    ):
        verdict = judge(network, images1, images2, explanation_of(network, images1, images2, maps))
        words[name] = [verdict.word(index) for index in range(20)]
        percentile = verdict.percentile.mean()
        assert percentile == 100 if name == "right" else percentile < 80
    assert set(words["right"]) == {"believable"}
    assert words["noise"].count("not better than chance") >= 15
    assert words["blank"].count("not better than chance") >= 12


def test_random_maps_depend_on_the_seed_alone_and_the_centre_is_in_the_middle():
    network = Chequered()
    pairs = network, *different_pairs(2)[:2], 0.5
    assert torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=3).evidence)
    assert not torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=4).evidence)
    centre = explain_by_centre(*pairs).factual[0, 0]
    assert divmod(int(centre.argmax()), SIZE[1]) in [(y, x) for y in (11, 12) for x in (14, 15)]
    torch.testing.assert_close(centre, centre.flip(0, 1))


def test_batched_equals_one_by_one():
    network = Chequered()
    images1, images2, right = different_pairs(3)
    explanation = explanation_of(network, images1, images2, right)
    together = gaps(network, images1, images2, explanation)
    for index in range(3):
        part = slice(index, index + 1)
        alone = gaps(network, images1[part], images2[part], explanation[part])
        torch.testing.assert_close(together.joint[part], alone.joint)


def test_words_by_percentile_and_centre():
    def word(gap, beaten, centre=0.0):
        gaps_alone = Gap(*torch.full((3, 1), gap), torch.tensor([True]))
        random = torch.full((20, 1), gap + 1)
        random[:beaten] = gap - 1
        return Verdict(gaps_alone, random, torch.tensor([centre])).word()

    assert word(0.3, 20) == "believable"
    assert word(0.3, 20, centre=0.4) == "weak"  # one who looks at the middle does better
    assert word(0.3, 17) == "weak"
    assert word(0.3, 15) == word(-0.1, 20) == "not better than chance"
    sentence = Verdict(
        Gap(*torch.full((3, 1), 0.3), torch.tensor([True])), torch.zeros(20, 1), torch.zeros(1)
    ).sentence()
    assert "gap +0.300" in sentence
    assert "100 % of 20 random maps: believable" in sentence


def test_the_telling_gap_is_the_one_that_can_undo_the_decision():
    gap = Gap(*torch.tensor([[0.1, 0.2], [0.5, 0.6], [0.7, 0.8]]), torch.tensor([True, False]))
    torch.testing.assert_close(gap.telling, torch.tensor([0.1, 0.7]))
    network = Chequered()
    images1, images2, right = different_pairs(4)
    same = gaps(network, images1, images1, explanation_of(network, images1, images1, right[:, [0, 0]]))
    assert (same.telling > 0.1).all()
    assert same.joint.abs().max() < 1e-5  # an image beside itself: both lose the same, and stay alike
    different = gaps(network, images1, images2, explanation_of(network, images1, images2, right))
    assert (different.telling > different.alone).all()  # each object holds "different" up without the other


def test_interval_covers_as_the_normal_approximation_does():
    values = np.random.default_rng(0).normal(0.3, 0.2, 400)
    low, high = interval(values)
    expected = norm.interval(0.95, values.mean(), values.std() / 20)
    np.testing.assert_allclose((low, high), expected, atol=0.004)
    assert interval([0.5]) == interval([0.5, 0.5]) == (0.5, 0.5)


def test_the_board_is_wiped_out_by_blurring():
    image = board(24, 24)[None, None].expand(1, 3, -1, -1)
    assert blurred(image).abs().max() < 0.05 * image.abs().max()
