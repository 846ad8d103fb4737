from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CHEQUERED, Chequered, Coloured, different_pairs, explanation_of, network_and_images

from utils.explanations.explanation import Explanation
from utils.explanations.methods import explain
from utils.explanations.paths import ROUNDS, SHOWN, STRONGEST
from utils.network.distance import distances_of
from utils.network.variants import fully_random
from utils.trust.faithfulness import (
    BLIND_MAPS,
    CHANCE,
    DRAWS,
    FAITHFUL,
    HARDLY,
    LEAST_SHARE,
    LEAST_SPAN,
    PARTS,
    Effect,
    Verdict,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    judge,
    judge_all,
    span_of,
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
    assert verdicts["right"].words().count(FAITHFUL) >= 19  # one object lies in the middle: so does the centre
    assert verdicts["noise"].words().count(FAITHFUL) <= 1
    assert verdicts["blank"].words().count(FAITHFUL) <= 3  # its order of pixels, from top to bottom, is chance
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
    assert of_another.words().count(HARDLY) > 0


def test_a_map_that_is_false_on_one_image_carries_nothing_there():
    network = Chequered()
    images, right = different_pairs(5)
    half = torch.stack([right[:, 0], -right[:, 1]], dim=1)
    verdict = judge(network, explanation_of(network, images, half))
    assert (verdict.share("image 1") > 0.9).all()
    assert not verdict.share("image 2").any()
    assert "Image 2 alone: 0.00 of what is possible" in verdict.sentence()


def test_random_maps_depend_on_the_seed_alone_and_the_centre_is_in_the_middle():
    pairs = Chequered(), different_pairs(2)[0], 0.5
    assert torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=3).evidence)
    assert not torch.equal(explain_at_random(*pairs, seed=3).evidence, explain_at_random(*pairs, seed=4).evidence)
    centre = explain_by_centre(*pairs).factual[0, 0]
    assert divmod(int(centre.argmax()), CHEQUERED[1]) in [(y, x) for y in (11, 12) for x in (14, 15)]
    torch.testing.assert_close(centre, centre.flip(0, 1))


def test_the_yardsticks_one_after_another():
    """Each mask of image 1 beside each of image 2, explained and measured alone; the span; the thorough maps."""
    network = Chequered()
    images, right = different_pairs(2)
    explanation = explanation_of(network, images, right)
    verdict = judge(network, explanation, seed=5)
    maps = [explain_by_centre(network, images, 0.5).towards_different]
    maps += [explain_at_random(network, images, 0.5, seed=5 + draw).towards_different for draw in range(DRAWS)]
    maps += [1 - drawn for drawn in maps]  # the same places in the opposite order; ties at a border are broken again
    for row, first in enumerate(maps):
        for column, second in enumerate(maps):
            combined = explanation_of(network, images, torch.stack([first[:, 0], second[:, 1]], dim=1))
            gap = insertion_deletion(network, combined)
            for part in PARTS:
                measured = verdict.blind.of(part)[row * BLIND_MAPS + column]
                torch.testing.assert_close(measured, gap.of(part), atol=2e-3, rtol=0)
    assert len(verdict.blind.both) == BLIND_MAPS**2
    thorough = insertion_deletion(network, explain(network, images, 0.5, method="thorough"))
    span = span_of(network, explanation)
    for part in PARTS:
        torch.testing.assert_close(verdict.thorough.of(part), thorough.of(part))
        torch.testing.assert_close(verdict.span.of(part), span.of(part))


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
    torch.testing.assert_close(alone.blind.both, together[1].blind.both)


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
        assert together[name].words() == alone.words()
        assert torch.equal(together[name].share(), alone.share())
    counterpart = explanation_of(network, images.flip(0), right)
    with pytest.raises(ValueError, match="of different pairs"):
        judge_all(network, explanations | {"other": counterpart})


def test_a_verdict_takes_108_passes_a_pair(monkeypatch):
    network = Chequered()
    explanation = explanation_of(network, *different_pairs(4))
    seen = []
    monkeypatch.setattr(network, "forward", lambda batch: seen.append(len(batch)) or Chequered.forward(network, batch))
    judge(network, explanation)
    in_thorough = 4 * (4 + 2 * (len(SHOWN) + 2 * len(STRONGEST) * ROUNDS))  # here the layer is the image itself
    assert sum(seen) == 4 * 104 + in_thorough
    assert in_thorough == 4 * (4 + 28)


def test_what_the_rank_by_itself_proves():
    """The rates of the docstring of `Verdict.word`, by simulation: the gap of each image is one more draw.

    The gaps of opposite maps have the other sign; those of a pair decided "same" are means of one gap an image.
    """
    random = torch.Generator().manual_seed(0)
    count = 4000
    own = torch.randn(2, count, generator=random)
    drawn = torch.randn(2, DRAWS + 1, count, generator=random)  # the centre prior is one more
    drawn = torch.cat([drawn, -drawn], dim=1)  # (2, BLIND_MAPS, B)
    decided = torch.zeros(count, dtype=torch.bool)
    image1 = drawn[0].repeat_interleave(BLIND_MAPS, dim=0)  # each beside each of image 2
    image2 = drawn[1].repeat(BLIND_MAPS, 1)
    blind = Effect(torch.zeros_like(image1), image1, image2, decided)
    nothing = torch.zeros(count, 2, 1, 1)
    explanation = Explanation(torch.zeros(count, 2, 3, 1, 1), torch.full((count,), 0.1), 0.5, nothing, nothing)
    span = Effect(*torch.full((3, count), LEAST_SPAN), decided)
    lowest = Effect(*torch.full((3, count), -10.0), decided)  # `thorough` is no hurdle
    gap = Effect(torch.zeros(count), *own, decided)
    verdict = Verdict(explanation, gap, span, blind, lowest)
    above_all = (gap.decisive > blind.decisive.amax(dim=0)).float().mean()
    assert above_all.item() == pytest.approx(1 / 20, abs=0.02)
    assert 1 - verdict.words().count(CHANCE) / count == pytest.approx(1 / 5, abs=0.02)


def verdict_of(gap, beaten, span=1.0, different=True, thorough=1.0):
    """A verdict on one pair, made up: of ten blind maps `beaten` are below the gap."""
    nothing = torch.zeros(1, 2, 4, 4)
    distances = torch.tensor([1.0 if different else 0.1])
    explanation = Explanation(torch.zeros(1, 2, 3, 4, 4), distances, 0.5, nothing, nothing)
    decided = torch.tensor([different])
    gaps = Effect(*torch.tensor([[gap], [gap + 0.2], [gap - 0.2]]), decided)
    spans = Effect(*torch.full((3, 1), span), decided)
    blind = torch.full((10, 1), gap + 0.001)
    blind[:beaten] = gap - 1
    best = Effect(*torch.full((3, 1), thorough), decided)
    return Verdict(explanation, gaps, spans, Effect(blind, blind, blind, decided), best)


def test_words_by_blind_maps_share_and_span():
    assert verdict_of(0.8, 10).word() == FAITHFUL
    assert verdict_of(0.8, 9).word() == "weak"
    assert verdict_of(LEAST_SHARE - 0.01, 10).word() == "weak"  # a much better map was found
    assert verdict_of(LEAST_SHARE - 0.01, 10, thorough=0.8).word() == FAITHFUL
    assert verdict_of(0.3, 10, thorough=0.3).word() == "weak"  # of half of the span
    assert verdict_of(0.5, 7).word() == verdict_of(-0.1, 10).word() == CHANCE
    small = verdict_of(0.02, 10, span=LEAST_SPAN - 0.001)
    assert small.word() == HARDLY
    assert "nothing to explain (hiding all of it takes 0.099 from its support)" in small.sentence()
    assert np.isnan(small.share().item())


def test_the_share_is_of_the_best_map_and_never_above_1_or_below_0():
    for gap, best, share in ((0.3, 0.6, 0.5), (0.6, 0.2, 1.0), (-0.1, 0.6, 0.0), (-0.1, -0.5, 0.0)):
        assert verdict_of(gap, 10, thorough=best).share().item() == pytest.approx(share)
    assert verdict_of(0.6, 9, thorough=0.2).possible().item() == pytest.approx(0.601)  # a blind map is the best
    assert verdict_of(0.2, 10, thorough=0.2).share().item() == pytest.approx(0.4)  # none reaches half of the span


@pytest.mark.parametrize("different", [True, False])
def test_the_sentence_says_what_was_judged(different):
    lines = verdict_of(0.8, 10, different=different).sentence().splitlines()
    assert lines[0] == (
        "Maps: faithful, 0.80 of what is possible (insertion minus deletion +0.800 of +1.000); better than all of 10 "
        "maps that know nothing."
    )
    assert lines[1] == "Image 1 alone: 1.00 of what is possible (insertion minus deletion +1.000 of +1.000)."
    assert lines[2].startswith("Image 2 alone: 0.60 of what is possible")


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
