import numpy as np
import pytest
import torch
from helpers import Chequered, Coloured, explanation_of, patterned
from scipy.stats import norm

from utils.explain import Explanation, blurred, mean_colour
from utils.trust import explain_at_random, explain_by_centre, insertion_deletion, interval, judge, judge_all
from utils.trust.faithfulness import SHARES, Chance, Gap, Verdict

SIZE = (24, 30)


def different_pairs(count=1):
    """Pairs (B, 2, 3, H, W) that a Chequered network tells apart, and the right maps: float32 (B, 2, H, W)."""
    random = np.random.default_rng(0)
    images, maps = [], []
    for _ in range(count):
        made = [patterned(SIZE, (random.integers(1, 17), random.integers(1, 23)), angle) for angle in (0.7, -0.7)]
        images.append(torch.stack([image for image, _ in made]))
        maps.append(torch.stack([mask.float() for _, mask in made]))
    return torch.stack(images), torch.stack(maps)


def made_up(gap, different=(True,)):
    """An explanation of pairs that are decided so, to go with a gap or a verdict."""
    count = len(different)
    distances = torch.where(torch.tensor(different), 1.0, 0.1)
    nothing = torch.zeros(count, 2, 4, 4)
    return Explanation(torch.zeros(count, 2, 3, 4, 4), distances, 0.5, nothing, nothing)


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
            one, two = (network(part[None])[0] for part in changed)
            apart = (one - two).norm().item()
            total += sign * (apart / 2 if different else 1 - apart / 2)
    return total / len(SHARES)


@pytest.mark.parametrize("hide", [blurred, mean_colour])
@pytest.mark.parametrize("threshold", [0.1, 1.5])  # the same pair, decided "different" and "same"
def test_against_pixel_after_pixel(threshold, hide):
    network = Chequered()
    images, _ = different_pairs()
    images = images + 0.3 * torch.randn(1, 2, 3, 1, 1, generator=torch.Generator().manual_seed(1))  # a colour each
    maps = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
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
        for other in others:
            assert (best > other).all()
            assert (worst < other).all()


def test_verdicts_on_the_right_map_on_noise_and_on_a_blank_map():
    network = Chequered()
    images, right = different_pairs(20)
    words = {}
    for name, maps in (
        ("right", right),
        ("noise", torch.rand(right.shape, generator=torch.Generator().manual_seed(99))),
        ("blank", torch.zeros_like(right)),
    ):
        verdict = judge(network, explanation_of(network, images, maps))
        words[name] = [verdict.word(index) for index in range(20)]
        percentile = verdict.percentile.mean()
        assert percentile == 100 if name == "right" else percentile < 80
    assert set(words["right"]) == {"believable"}
    assert words["noise"].count("not better than chance") >= 15
    assert words["blank"].count("not better than chance") >= 12


def test_random_maps_depend_on_the_seed_alone_and_the_centre_is_in_the_middle():
    pairs = Chequered(), different_pairs(2)[0], 0.5
    assert torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=3).evidence)
    assert not torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=4).evidence)
    centre = explain_by_centre(*pairs).factual[0, 0]
    assert divmod(int(centre.argmax()), SIZE[1]) in [(y, x) for y in (11, 12) for x in (14, 15)]
    torch.testing.assert_close(centre, centre.flip(0, 1))


def test_one_pair_of_a_verdict_is_the_verdict_on_that_pair():
    network = Chequered()
    images, right = different_pairs(3)
    explanation = explanation_of(network, images, right)
    together = judge(network, explanation)
    assert len(together) == 3
    gap = insertion_deletion(network, explanation[1])
    torch.testing.assert_close(together[1].gap.both, gap.both)
    torch.testing.assert_close(together[1].gap.each, gap.each)
    assert together[1].explanation.same_as(explanation[1])
    assert together[1].sentence() == together.sentence(1)


def test_several_explanations_are_judged_as_one_by_one():
    network = Chequered()
    images, right = different_pairs(2)
    explanations = {
        "right": explanation_of(network, images, right),
        "noise": explanation_of(network, images, torch.rand(right.shape, generator=torch.Generator().manual_seed(9))),
    }
    together = judge_all(network, explanations, seed=4)
    for name, explanation in explanations.items():
        alone = judge(network, explanation, seed=4)
        assert together[name].explanation is explanation
        assert [together[name].sentence(index) for index in range(2)] == [alone.sentence(index) for index in range(2)]
    other = explanation_of(network, images.flip(0), right)
    with pytest.raises(ValueError, match="of different pairs"):
        judge_all(network, explanations | {"other": other})


def test_words_by_percentile_and_centre():
    def word(gap, beaten, centre=0.0):
        random = torch.full((20, 1), gap + 1)
        random[:beaten] = gap - 1
        measured = Gap(*torch.full((3, 1), gap), torch.tensor([True]))
        return Verdict(made_up(gap), measured, Chance(random, torch.tensor([centre]))).word()

    assert word(0.3, 20) == "believable"
    assert word(0.3, 20, centre=0.4) == "weak"  # one who looks at the middle does better
    assert word(0.3, 17) == "weak"
    assert word(0.3, 15) == word(-0.1, 20) == "not better than chance"


@pytest.mark.parametrize(("different", "words"), [(True, "both images: +0.300"), (False, "each image: +0.400")])
def test_the_sentence_says_which_gap_was_judged(different, words):
    gap = Gap(torch.tensor([0.3]), torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([different]))
    verdict = Verdict(made_up(0.3, (different,)), gap, Chance(torch.zeros(20, 1), torch.zeros(1)))
    assert words in verdict.sentence()
    assert "image 1 +0.500, image 2 +0.300" in verdict.sentence()
    assert "100 % of 20 random maps: believable" in verdict.sentence()


def test_the_decisive_gap_is_the_one_that_can_undo_the_decision():
    gap = Gap(*torch.tensor([[0.1, 0.2], [0.5, 0.6], [0.7, 0.8]]), torch.tensor([True, False]))
    torch.testing.assert_close(gap.decisive, torch.tensor([0.1, 0.7]))
    network = Chequered()
    images, right = different_pairs(4)
    same = insertion_deletion(network, explanation_of(network, images[:, [0, 0]], right[:, [0, 0]]))
    assert (same.decisive > 0.1).all()
    assert same.both.abs().max() < 1e-5  # an image beside itself: both lose the same, and stay alike
    different = insertion_deletion(network, explanation_of(network, images, right))
    assert (different.decisive > different.each).all()  # each object holds "different" up without the other


def test_interval_covers_as_the_normal_approximation_does():
    values = np.random.default_rng(0).normal(0.3, 0.2, 400)
    low, high = interval(values)
    expected = norm.interval(0.95, values.mean(), values.std() / 20)
    np.testing.assert_allclose((low, high), expected, atol=0.004)
    assert interval([0.5]) == interval([0.5, 0.5]) == (0.5, 0.5)


def test_another_network_than_the_explained_one_is_refused():
    images, right = different_pairs(2)
    explanation = explanation_of(Chequered(), images, right)
    with pytest.raises(ValueError, match="explanation is of another network"):
        judge(Coloured(), explanation)
