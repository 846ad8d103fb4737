from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CHEQUERED, Chequered, Coloured, different_pairs, explanation_of, network_and_images

from utils.explanations.explanation import Explanation
from utils.explanations.methods import explain
from utils.network.distance import distances_of
from utils.network.variants import fully_random
from utils.trust.faithfulness import (
    CHANCE,
    DRAWS,
    FAITHFUL,
    HARDLY,
    LEAST_SHARE,
    LEAST_SPAN,
    PARTS,
    RANDOM_MAPS,
    Effect,
    Verdict,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    judge,
    judge_all,
    measure_chance,
)

NOISE = 99  # a seed that no random map of a verdict has


def noise_maps(count):
    return torch.rand(count, 2, *CHEQUERED, generator=torch.Generator().manual_seed(NOISE))


def test_the_right_map_noise_and_a_blank_map():
    network = Chequered()
    images, right = different_pairs(20)
    verdicts = {
        name: judge(network, explanation_of(network, images, maps))
        for name, maps in (("right", right), ("noise", noise_maps(20)), ("blank", torch.zeros_like(right)))
    }
    for part in PARTS:
        assert verdicts["right"].words(part).count(FAITHFUL) >= 19  # one object lies in the middle: so does the centre
        assert verdicts["noise"].words(part).count(FAITHFUL) <= 1
        assert verdicts["blank"].words(part).count(FAITHFUL) <= 3  # its order of pixels, from top to bottom, is chance
    assert (verdicts["right"].share() > 0.9).all()


def test_at_most_one_in_twenty_that_ignore_the_network_is_called_faithful():
    """Random maps of a network that has much to explain, and maps of another network than the one that is judged."""
    network = Chequered()
    images, _ = different_pairs(200)
    at_random = judge(network, explain_at_random(network, images, 0.5, seed=NOISE))
    by_centre = judge(network, explain_by_centre(network, images, 0.5))
    untrained, noise = network_and_images(size=(32, 32), count=100)
    threshold = distances_of(untrained, noise).median().item()
    foreign = explain(fully_random(untrained), noise, threshold, layer="layer2")
    of_another = judge(untrained, replace(foreign, distance=distances_of(untrained, noise)))
    for verdict in (at_random, by_centre, of_another):
        assert verdict.words().count(FAITHFUL) <= 0.05 * len(verdict)
        for image in ("image 1", "image 2"):  # beside fewer random maps
            assert verdict.words(image).count(FAITHFUL) <= 0.1 * len(verdict)
    assert of_another.words().count(HARDLY) > 0


def test_a_map_that_is_false_on_one_image_is_not_called_faithful_there():
    network = Chequered()
    images, right = different_pairs(5)
    half = torch.stack([right[:, 0], -right[:, 1]], dim=1)
    verdict = judge(network, explanation_of(network, images, half))
    assert verdict.words("image 1").count(FAITHFUL) >= 4
    assert set(verdict.words("image 2")) == {CHANCE}
    assert "Image 2: not better than chance" in verdict.sentence()


def test_random_maps_depend_on_the_seed_alone_and_the_centre_is_in_the_middle():
    pairs = Chequered(), different_pairs(2)[0], 0.5
    assert torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=3).evidence)
    assert not torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=4).evidence)
    centre = explain_by_centre(*pairs).factual[0, 0]
    assert divmod(int(centre.argmax()), CHEQUERED[1]) in [(y, x) for y in (11, 12) for x in (14, 15)]
    torch.testing.assert_close(centre, centre.flip(0, 1))


def test_chance_against_one_random_map_after_another():
    """Each mask of image 1 beside each of image 2, explained and measured alone."""
    network = Chequered()
    images, right = different_pairs(2)
    explanation = explanation_of(network, images, right)
    random_maps, centre_prior = measure_chance(network, explanation, seed=5)
    maps = [explain_at_random(network, images, 0.5, seed=5 + draw).towards_different for draw in range(DRAWS)]
    maps += [1 - drawn for drawn in maps]  # the same places in the opposite order; ties at a border are broken again
    for row, first in enumerate(maps):
        for column, second in enumerate(maps):
            combined = explanation_of(network, images, torch.stack([first[:, 0], second[:, 1]], dim=1))
            gap = insertion_deletion(network, combined)
            for part in PARTS:
                measured = random_maps.of(part)[row * RANDOM_MAPS + column]
                torch.testing.assert_close(measured, gap.of(part), atol=1e-3, rtol=0)
    centre = insertion_deletion(network, explain_by_centre(network, images, 0.5))
    for part in PARTS:
        torch.testing.assert_close(centre_prior.of(part), centre.of(part))


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
    alone = judge(network, explanation[1])  # random maps are those of the pair, whatever stands beside it
    torch.testing.assert_close(alone.random.both, together[1].random.both)


def test_several_explanations_are_judged_as_one_by_one():
    network = Chequered()
    images, right = different_pairs(2)
    explanations = {
        "right": explanation_of(network, images, right),
        "noise": explanation_of(network, images, noise_maps(2)),
    }
    together = judge_all(network, explanations, seed=4)
    for name, explanation in explanations.items():
        alone = judge(network, explanation, seed=4)
        assert together[name].explanation is explanation
        for part in PARTS:
            assert together[name].words(part) == alone.words(part)
    counterpart = explanation_of(network, images.flip(0), right)
    with pytest.raises(ValueError, match="of different pairs"):
        judge_all(network, explanations | {"other": counterpart})


def test_a_verdict_takes_108_passes_a_pair(monkeypatch):
    network = Chequered()
    explanation = explanation_of(network, *different_pairs(4))
    seen = []
    monkeypatch.setattr(network, "forward", lambda batch: seen.append(len(batch)) or Chequered.forward(network, batch))
    judge(network, explanation)
    assert sum(seen) == 4 * 108


def test_what_the_rank_by_itself_proves():
    """The rates of the docstring of `Verdict.word`, by simulation: the gap of each image is one more draw.

    The gaps of opposite maps have the other sign; those of a pair decided "same" are means of one gap an image.
    """
    random = torch.Generator().manual_seed(0)
    count = 2000
    own = torch.randn(2, count, generator=random)
    drawn = torch.randn(2, DRAWS, count, generator=random)
    drawn = torch.cat([drawn, -drawn], dim=1)  # (2, RANDOM_MAPS, B)
    decided = torch.zeros(count, dtype=torch.bool)
    image1 = drawn[0].repeat_interleave(RANDOM_MAPS, dim=0)  # each beside each of image 2
    image2 = drawn[1].repeat(RANDOM_MAPS, 1)
    random_maps = Effect(torch.zeros_like(image1), image1, image2, decided)
    nothing = torch.zeros(count, 2, 1, 1)
    explanation = Explanation(torch.zeros(count, 2, 3, 1, 1), torch.full((count,), 0.1), 0.5, nothing, nothing)
    span = Effect(*torch.full((3, count), LEAST_SPAN), decided)  # so small that the share is no hurdle
    centre = Effect(*torch.full((3, count), -10.0), decided)
    gap = Effect(torch.zeros(count), *own, decided)
    verdict = Verdict(explanation, gap, span, random_maps, centre)
    for part, all_beaten, weak_or_better in (
        ("pair", 1 / 20, 1 / 5),
        ("image 1", 1 / 8, 1 / 4),
        ("image 2", 1 / 8, 1 / 4),
    ):
        words = verdict.words(part)
        above_all = (gap.of(part) > random_maps.of(part).amax(dim=0)).float().mean()
        assert above_all.item() == pytest.approx(all_beaten, abs=0.02)
        assert 1 - words.count(CHANCE) / count == pytest.approx(weak_or_better, abs=0.03)


def verdict_of(gap, beaten, centre=0.0, span=1.0, different=True):
    """A verdict on one pair, made up: of ten random maps `beaten` are below the gap."""
    nothing = torch.zeros(1, 2, 4, 4)
    distances = torch.tensor([1.0 if different else 0.1])
    explanation = Explanation(torch.zeros(1, 2, 3, 4, 4), distances, 0.5, nothing, nothing)
    decided = torch.tensor([different])
    gaps = Effect(*torch.tensor([[gap], [gap + 0.2], [gap - 0.2]]), decided)
    spans = Effect(*torch.full((3, 1), span), decided)
    random = torch.full((10, 1), gap + 1)
    random[:beaten] = gap - 1
    random_maps = Effect(random, random, random, decided)
    return Verdict(explanation, gaps, spans, random_maps, Effect(*torch.full((3, 1), centre), decided))


def test_words_by_random_maps_centre_share_and_span():
    assert verdict_of(0.5, 10).word() == FAITHFUL
    assert verdict_of(0.5, 10, centre=0.6).word() == "weak"  # the centre prior does better
    assert verdict_of(0.5, 9).word() == "weak"
    assert verdict_of(LEAST_SHARE - 0.01, 10).word() == "weak"  # most of the span is missed
    assert verdict_of(0.5, 7).word() == verdict_of(-0.1, 10).word() == CHANCE
    small = verdict_of(0.02, 10, span=LEAST_SPAN - 0.001)
    assert small.word() == HARDLY
    assert HARDLY in small.sentence()
    assert "carry no more than the others (gap -0.100, span 1.000)" in verdict_of(-0.1, 10).sentence()
    assert np.isnan(small.share().item())


@pytest.mark.parametrize(("different", "words"), [(True, "both images"), (False, "each image")])
def test_the_sentence_says_what_was_judged(different, words):
    sentence = verdict_of(0.5, 10, different=different).sentence()
    carried = f"the strongest pixels carry 50% of what hiding {words} would change (gap +0.500, span 1.000)"
    assert f"Maps faithful: {carried}; better than all of 10 combinations of random maps." in sentence
    assert (
        "Image 1: faithful: the strongest pixels carry 70% of what hiding it would change (gap +0.700, span 1.000)."
        in sentence
    )
    assert "Image 2: " in sentence


def test_another_network_than_the_explained_one_is_refused():
    images, right = different_pairs(2)
    explanation = explanation_of(Chequered(), images, right)
    with pytest.raises(ValueError, match="explanation is of another network"):
        judge(Coloured(), explanation)


def test_no_pair_has_no_word():
    """As where no mistake was made: the figure and page of mistakes are judged all the same."""
    images, right = different_pairs(2)
    network, pairs = network_and_images(size=(32, 32), count=2)
    for judged, explanation in (
        (Chequered(), explanation_of(Chequered(), images, right)),
        (network, explain(network, pairs, 0.5, layer="layer2")),
    ):
        assert judge(judged, explanation[0:0]).words() == []
