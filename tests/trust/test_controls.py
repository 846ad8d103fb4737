from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import network_and_images
from scipy.stats import spearmanr

from utils.explain import Explanation, explain
from utils.network import distances_of, randomised
from utils.trust import pointing, rank_correlation, sanity_curve, stability
from utils.trust.controls import disturbed


def brightness(network, images, threshold):
    """An "explanation" that never asks the network where to look."""
    maps = images.mean(dim=2).clamp(min=0)
    return Explanation(images, distances_of(network, images), threshold, maps, maps)


def first_filters(network, images, threshold):
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
    blind = sanity_curve(brightness, network, images, 0.5)
    assert list(blind) == stages
    assert list(blind.values()) == pytest.approx([1.0] * 6)
    shallow = list(sanity_curve(first_filters, network, images, 0.5).values())
    assert shallow[:5] == pytest.approx([1.0] * 5)
    assert shallow[5] < 0.9
    hirescam = partial(explain, method="hirescam")
    deep = list(sanity_curve(hirescam, network, images, 0.5).values())
    assert max(deep) < 0.9  # the embedding alone decides where its gradient goes


def test_the_curve_is_the_mean_over_all_maps():
    network, images = network_and_images(count=3)
    method = partial(explain, method="hirescam", layer="layer2")
    found = sanity_curve(method, network, images, 0.5, seed=3)
    factual = method(network, images, 0.5).factual
    for stage, random in randomised(network, seed=3):
        other = method(random, images, 0.5).factual
        total = 0
        for pair in range(3):
            for image in range(2):
                total += spearmanr(factual[pair, image].flatten(), other[pair, image].flatten()).statistic
        assert found[stage] == pytest.approx(total / 6, abs=1e-6)


def test_stability_undoes_the_shift_and_leaves_out_changed_scores(make_config):
    settings = make_config().image
    network, images = network_and_images(size=settings.size)
    images = F.avg_pool2d(images.flatten(0, 1), 9, 1, 4).unflatten(0, (-1, 2))  # smooth
    scores = {"first": 0.3, "second": 0.3}

    def method(network, images, threshold):
        explanation = brightness(network, images, threshold)
        return replace(explanation, distance=torch.tensor(list(scores.values())))

    found = stability(method, network, images, 0.5, settings)
    assert found["shift"] == (pytest.approx(1.0), 1.0)
    assert 0.5 < found["noise"][0] < 1
    assert 0.5 < found["JPEG"][0] < 1
    alone = {name: rank_of_first(images, changed, name) for name, changed in disturbed(images, settings).items()}

    def unsteady(network, images, threshold):
        scores["second"] += 0.2  # the score of the second pair moves with every look
        return method(network, images, threshold)

    for name, (agreement, share) in stability(unsteady, network, images, 0.5, settings).items():
        assert share == 0.5
        assert agreement == pytest.approx(alone[name])


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
    found = disturbed(images, settings)
    assert torch.equal(found["shift"][..., 2:, 2:], images[..., :-2, :-2])
    for name in ("noise", "JPEG"):
        change = (found[name] - images).abs()
        assert 0 < change.mean() < 0.15


def test_hits_and_energy_by_hand():
    maps = torch.tensor([[[[4.0, 0.0], [3.0, 1.0]], [[1.0, 2.0], [1.0, 0.0]]]])
    explanation = Explanation(torch.zeros(1, 2, 3, 2, 2), torch.tensor([1.0]), 0.5, maps, torch.zeros_like(maps))
    top = torch.tensor([[True, True], [False, False]])
    hits, energies = pointing(explanation, torch.stack([top, ~top])[None])
    assert hits.tolist() == [[1.0, 0.0]]  # the peak of image 2 lies in the upper row, its object in the lower one
    torch.testing.assert_close(energies, torch.tensor([[0.5, 0.25]]))


def test_no_object_and_a_blank_map():
    maps = torch.zeros(1, 2, 2, 2)
    masks = torch.tensor([False, True])[None, :, None, None].expand(1, 2, 2, 2)
    explanation = Explanation(torch.zeros(1, 2, 3, 2, 2), torch.tensor([1.0]), 0.5, maps, maps)
    hits, energies = pointing(explanation, masks)
    assert hits.isnan().tolist() == energies.isnan().tolist() == [[True, False]]
    assert hits[0, 1] == energies[0, 1] == 0
