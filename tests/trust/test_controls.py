from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import quantus
import torch
import torch.nn.functional as F
from helpers import by_pillow, network_and_images
from scipy.stats import spearmanr

from utils.data.batches import to_pixels
from utils.data.reading import through_jpeg
from utils.explanations.explanation import Explanation
from utils.explanations.methods import explain
from utils.network.distance import distances_of
from utils.network.variants import randomised
from utils.trust.controls import (
    QUALITY,
    agreement,
    cascading_randomisation,
    choose_partners,
    copies,
    disturbed,
    partner_agreement,
    pointing,
    random_network,
    rank_correlation,
    sanity,
    stability,
)
from utils.trust.faithfulness import explain_at_random


def brightness(network, images, threshold, references=None):
    """An "explanation" that never asks the network where to look."""
    maps = images.mean(dim=2).clamp(min=0)
    return Explanation(images, distances_of(network, images), threshold, maps, maps)


def first_filters(network, images, threshold, references=None):
    """An "explanation" that asks the first convolution alone."""
    with torch.no_grad():
        maps = network.backbone.conv1(images.flatten(0, 1)).abs().mean(dim=1, keepdim=True)
    maps = F.interpolate(maps, size=images.shape[-2:])[:, 0].unflatten(0, (-1, 2))
    return Explanation(images, distances_of(network, images), threshold, maps, maps)


def test_rank_correlation_by_hand():
    maps = torch.tensor([[[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]])
    others = torch.tensor([[[[1.0, 8.0, 27.0]], [[3.0, 2.0, 1.0]]]])
    assert rank_correlation(maps, others).tolist() == pytest.approx([1.0, -1.0])
    assert rank_correlation(maps, torch.zeros_like(maps)).tolist() == [0.0, 0.0]


def test_the_curve_falls_at_the_stage_that_a_map_depends_on_and_not_before():
    network, images = network_and_images(count=3)
    stages = ["embedding", "layer4", "layer3", "layer2", "layer1", "stem"]
    methods = {"blind": brightness, "shallow": first_filters, "deep": partial(explain, method="hirescam")}
    curves = cascading_randomisation(methods, network, images, 0.5)
    blind = curves["blind"]
    assert list(blind) == stages
    assert list(blind.values()) == pytest.approx([1.0] * 6)
    shallow = list(curves["shallow"].values())
    assert shallow[:5] == pytest.approx([1.0] * 5)
    assert shallow[5] < 0.9
    assert max(curves["deep"].values()) < 0.9  # the embedding alone decides where its gradient goes


def test_the_curve_is_the_mean_over_all_maps_of_both_polarities():
    network, images = network_and_images(count=3)
    method = partial(explain, method="hirescam", layer="layer2")
    result = cascading_randomisation({"method": method}, network, images, 0.5, seed=3)["method"]
    trained = method(network, images, 0.5)
    for stage, random in randomised(network, seed=3):
        counterpart = method(random, images, 0.5)
        total = 0
        for pair in range(3):
            for image in range(2):
                for polarity in ("towards_different", "towards_same"):
                    maps = (getattr(first, polarity)[pair, image].flatten() for first in (trained, counterpart))
                    total += spearmanr(*maps).statistic
        assert result[stage] == pytest.approx(total / 12, abs=1e-6)


def test_like_is_held_against_like_whatever_is_decided():
    """Maps that are the same, of networks that decide otherwise: the factual maps are each other's opposite."""
    maps = torch.rand(2, 2, 5, 6)
    first = Explanation(torch.zeros(2, 2, 3, 5, 6), torch.tensor([0.1, 0.9]), 0.5, maps, 1 - maps)
    counterpart = replace(first, distance=torch.tensor([0.9, 0.1]))
    assert agreement(first, counterpart).tolist() == pytest.approx([1.0] * 4)
    assert rank_correlation(first.factual, counterpart.factual).tolist() == pytest.approx([-1.0] * 4)


def test_copies_are_seen_and_opposites_too():
    maps = torch.rand(2, 2, 5, 6)
    copied = Explanation(torch.zeros(2, 2, 3, 5, 6), torch.tensor([0.1, 0.9]), 0.5, maps, 2 * maps)
    assert copies(copied).tolist() == pytest.approx([1.0] * 4)
    assert copies(replace(copied, towards_same=1 - maps)).tolist() == pytest.approx([-1.0] * 4)


def partner_alone(network, images, threshold, references=None):
    """An "explanation" of each image that shows the other one alone."""
    maps = images.mean(dim=2).flip(1)
    maps = maps - maps.amin()
    return Explanation(images, distances_of(network, images), threshold, maps, maps)


def test_a_map_that_is_blind_to_network_and_partner_scores_one(trained):
    """The positive control: what never asks the network, and what never looks at the partner."""
    splits = trained.load_splits()
    partners = choose_partners(splits, 4)
    images = trained.load_pairs(*partners["own"])
    for blind in (explain_at_random, brightness):
        assert sanity(blind, trained, images, random_network(trained)) == pytest.approx(1.0)
        assert partner_agreement(blind, trained, partners) == pytest.approx((1.0, 1.0))
    same, counterpart = partner_agreement(partner_alone, trained, partners)
    assert max(same, counterpart) < 0.5  # noise images of another draw
    assert sanity(partial(explain, method="hirescam"), trained, images, random_network(trained)) < 0.9


def test_partners_are_of_the_classes_that_their_names_say(trained):
    splits = trained.load_splits()
    partners = choose_partners(splits, 5, seed=2)
    test = {splits.folder.paths[index] for index in splits.test}
    for own, same, counterpart in zip(*partners.values(), strict=True):
        assert own[0] == same[0] == counterpart[0]
        assert len({own[0], own[1], same[1]}) == 3
        classes = [path.split("/")[-2] for path in (own[0], own[1], same[1], counterpart[1])]
        assert classes[0] == classes[1] == classes[2] != classes[3]
        assert {*own, *same, *counterpart} <= test
    assert partners == choose_partners(splits, 5, seed=2)
    assert partners != choose_partners(splits, 5, seed=3)


def test_stability_undoes_the_shift_and_leaves_out_changed_scores(make_config):
    settings = make_config().image
    network, images = network_and_images(size=settings.size)
    images = F.avg_pool2d(images.flatten(0, 1), 9, 1, 4).unflatten(0, (-1, 2))  # smooth
    scores = {"first": 0.3, "second": 0.3}

    def method(network, images, threshold, references):
        explanation = brightness(network, images, threshold)
        return replace(explanation, distance=torch.tensor(list(scores.values())))

    result = stability(method, network, images, 0.5, settings)
    assert result["shift"] == pytest.approx(1.0)
    assert 0.5 < result["noise"] < 1
    assert 0.5 < result["JPEG"] < 1
    alone = {name: rank_of_first(images, changed, name) for name, changed in disturbed(images, settings).items()}

    def unsteady(network, images, threshold, references):
        scores["second"] += 0.2  # the score of the second pair moves with every look
        return method(network, images, threshold, references)

    for name, agreed in stability(unsteady, network, images, 0.5, settings).items():
        assert agreed == pytest.approx(alone[name])


def rank_of_first(images, changed, name):
    """The mean agreement of both maps of the first pair, by hand."""
    maps, others = (part[:1].mean(dim=2).clamp(min=0) for part in (images, changed))
    if name == "shift":
        maps, others = maps[..., :-2, :-2], others[..., 2:, 2:]
    agreements = [spearmanr(maps[0, image].flatten(), others[0, image].flatten()).statistic for image in range(2)]
    return sum(agreements) / 2


def test_disturbances_are_small(make_config):
    settings = make_config().image
    images = F.avg_pool2d(torch.randn(4, 3, *settings.size), 9, 1, 4).unflatten(0, (-1, 2))
    result = disturbed(images, settings)
    assert torch.equal(result["shift"][..., 2:, 2:], images[..., :-2, :-2])
    for name in ("noise", "JPEG"):
        change = (result[name] - images).abs()
        assert 0 < change.mean() < 0.15


def colourful():
    """One colour fades into another, with mild noise, uint8 (40, 48, 3) each: red, blue, and both side by side."""
    random = np.random.default_rng(0)
    shade = np.linspace(0.4, 1, 40)[:, None, None]
    red, blue = (
        shade * np.array(colour) + random.normal(0, 8, (40, 48, 3)) for colour in ((220, 30, 20), (20, 40, 230))
    )
    both = np.where(np.arange(48)[None, :, None] < 21, red, blue)
    return [image.round().clip(0, 255).astype(np.uint8) for image in (red, blue, both)]


@pytest.mark.parametrize("quality", [20, 50, 90])
def test_jpeg_is_that_of_pillow(quality):
    for image in colourful():
        gaps = through_jpeg(image, quality).astype(int) - by_pillow(image, quality)
        assert abs(gaps).max() <= 2  # decoders round


def test_jpegs_of_disturbed_images_are_those_of_pillow(make_config):
    settings = make_config({"image.size": [40, 48]}).image
    normalise = settings.normalization
    pixels = np.stack(colourful()[:2])
    shown = torch.from_numpy(pixels).movedim(-1, 1) / 255
    mean, std = (torch.tensor(part)[:, None, None] for part in (normalise.mean, normalise.std))
    result = to_pixels(disturbed(((shown - mean) / std)[None], settings)["JPEG"][0], normalise).numpy()
    for image, expected in zip(result, pixels, strict=True):
        assert abs(image.astype(int) - by_pillow(expected, QUALITY)).max() <= 2


def test_hits_and_energy_by_hand():
    maps = torch.tensor([[[[4.0, 0.0], [3.0, 1.0]], [[1.0, 2.0], [1.0, 0.0]]]])
    top = torch.tensor([[True, True], [False, False]])
    hits, energies = pointing(maps, torch.stack([top, ~top])[None])
    assert hits.tolist() == [[1.0, 0.0]]  # the peak of image 2 lies in the upper row, its object in the lower one
    torch.testing.assert_close(energies, torch.tensor([[0.5, 0.25]]))


def test_hits_and_energy_against_quantus():
    maps = torch.rand(3, 2, 8, 9)
    masks = torch.rand(3, 2, 8, 9) > 0.5
    settings = {"abs": False, "normalise": False, "disable_warnings": True}
    for result, peer in zip(pointing(maps, masks), (quantus.PointingGame, quantus.RelevanceMassAccuracy), strict=True):
        batch = {"a_batch": maps.flatten(0, 1)[:, None].numpy(), "s_batch": masks.flatten(0, 1)[:, None].numpy()}
        expected = np.array(peer(**settings).evaluate_batch(**batch), float)
        assert result.flatten().numpy() == pytest.approx(expected, abs=1e-6)


def test_no_object_and_a_blank_map():
    masks = torch.tensor([False, True])[None, :, None, None].expand(1, 2, 2, 2)
    hits, energies = pointing(torch.zeros(1, 2, 2, 2), masks)
    assert hits.isnan().tolist() == energies.isnan().tolist() == [[True, False]]
    assert hits[0, 1] == energies[0, 1] == 0
