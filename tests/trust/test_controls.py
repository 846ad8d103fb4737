from functools import partial

import pytest
import torch
from helpers import network_and_images

from utils.explain import Explanation
from utils.explain import explain_by_path
from utils.trust.controls import disturbed, randomised, rank_correlation, sanity_curve, stability
from utils.network import distances_of


def brightness(network, images1, images2, threshold):
    """An "explanation" that never asks the network where to look."""
    maps = torch.stack([images1.mean(dim=1), images2.mean(dim=1)], dim=1).clamp(min=0)
    return Explanation(distances_of(network, images1, images2), threshold, maps, maps)


def test_rank_correlation_by_hand():
    maps = torch.tensor([[[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]])
    others = torch.tensor([[[[1.0, 8.0, 27.0]], [[3.0, 2.0, 1.0]]]])
    assert rank_correlation(maps, others).tolist() == pytest.approx([1.0, -1.0])
    assert rank_correlation(maps, torch.zeros_like(maps)).tolist() == [0.0, 0.0]


def test_weights_are_shuffled_from_the_top_down_and_the_network_stays():
    network, *_ = network_and_images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages = []
    for stage, random in randomised(network):
        stages.append(stage)
        for name, parameter in random.named_parameters():
            done = any(name.startswith((stage, f"backbone.{stage}")) for stage in stages)
            if parameter.unique().numel() > 1:
                assert torch.equal(parameter, before[name]) != done
            torch.testing.assert_close(parameter.flatten().sort().values, before[name].flatten().sort().values)
    assert stages == ["embedding", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_maps_that_depend_on_the_network_lose_their_likeness_and_others_do_not():
    network, images1, images2 = network_and_images(count=3)
    ours = sanity_curve(partial(explain_by_path, apart=False), network, images1, images2, 0.5)
    blind = sanity_curve(brightness, network, images1, images2, 0.5)
    assert abs(ours["stem"]) < 0.3
    assert list(blind.values()) == pytest.approx([1.0] * 6)


def test_stability_undoes_the_shift_and_leaves_out_changed_scores(make_config):
    settings = make_config().image
    network, images1, images2 = network_and_images(size=settings.size)
    images1, images2 = (torch.nn.functional.avg_pool2d(part, 9, 1, 4) for part in (images1, images2))  # smooth
    network.embed_features = lambda features, layer="last": torch.ones(len(features), 2) / 2**0.5  # one score for all
    found = stability(brightness, network, images1, images2, 0.5, settings)
    assert found["shift"] == (pytest.approx(1.0), 1.0)
    assert 0.5 < found["noise"][0] < 1
    assert 0.5 < found["JPEG"][0] < 1
    network.embed_features = lambda features, layer="last": torch.nn.functional.normalize(torch.randn(len(features), 2))
    assert found != stability(brightness, network, images1, images2, 0.5, settings)


def test_disturbances_are_small(make_config):
    settings = make_config().image
    images = torch.nn.functional.avg_pool2d(torch.randn(2, 3, *settings.size), 9, 1, 4)
    found = disturbed(images, settings)
    assert torch.equal(found["shift"][..., 2:, 2:], images[..., :-2, :-2])
    for name in ("noise", "JPEG"):
        change = (found[name] - images).abs()
        assert 0 < change.mean() < 0.15
