"""Images of any number of channels: against plain hooks, and against networks that must say the same of others."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.config import Normalization
from utils.explanations.edits import smallest_edit
from utils.explanations.explanation import Explanation, Source
from utils.explanations.matches import decompose
from utils.explanations.methods import METHODS, explain
from utils.explanations.references import embed_references
from utils.files import ExplanationError
from utils.network.cut import Cut
from utils.network.distance import mean_colour
from utils.network.siamese import SiameseNetwork
from utils.trust.faithfulness import insertion_deletion, judge

SIZE = (24, 30)
THRESHOLDS = {"same": 1.9, "different": 0.01}


def small(channels):
    """A network whose second layer gives maps of 6 x 8."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 6, 5, stride=4, padding=2)
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return nn.Sequential(first, *head).double()


def with_weights(module, weights):
    """The same network with other weights of its first convolution, for images of as many channels as these have."""
    changed = copy.deepcopy(module)
    changed[0].weight = nn.Parameter(weights)
    return changed


def pairs(channels, count=2):
    torch.manual_seed(1)
    return torch.randn(count, 2, channels, *SIZE, dtype=torch.float64)


def explained(module, images, method, threshold=0.3):
    """With references of its own, which every method but one ignores."""
    network = Cut(module, layer="1")
    references = embed_references(network, images.flatten(0, 1) / 2)
    return explain(network, images, threshold, references, method=method)


def summed(module, images):
    """A network of one channel and grey images; one of three channels, which sees these in colour, says the same."""
    return with_weights(module, module[0].weight.sum(dim=1, keepdim=True).detach()), images.mean(dim=2, keepdim=True)


def assert_equal(found, expected):
    torch.testing.assert_close(found.distance, expected.distance)
    torch.testing.assert_close(found.evidence, expected.evidence, atol=1e-7, rtol=1e-4)
    assert expected.evidence.abs().max() > 1e-4


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_hirescam_against_plain_hooks(channels):
    module, images = small(channels), pairs(channels)
    kept = []
    handle = module[1].register_forward_hook(lambda layer, inputs, output: kept.append(output))
    vectors = F.normalize(module(images.flatten(0, 1)), dim=1)
    handle.remove()
    distances = (vectors[0::2] - vectors[1::2]).norm(dim=1)
    (gradients,) = torch.autograd.grad(distances.sum(), kept[0])
    maps = (kept[0] * gradients).sum(dim=1).unflatten(0, (-1, 2)).detach()
    expected = F.interpolate(maps, size=SIZE, mode="bilinear")
    found = explained(module, images, "hirescam")
    torch.testing.assert_close(found.distance, distances.detach())
    torch.testing.assert_close(found.evidence, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_channels_says_nothing(method, channels):
    module, images = small(channels), pairs(channels)
    order = torch.arange(channels).roll(1)
    turned = with_weights(module, module[0].weight[:, order].detach())
    assert_equal(explained(turned, images[:, :, order], method), explained(module, images, method))


@pytest.mark.parametrize("method", METHODS)
def test_one_channel_says_what_the_same_in_three_says(method):
    module = small(3)
    grey, images = summed(module, pairs(3))
    assert_equal(explained(grey, images, method), explained(module, images.expand(-1, -1, 3, -1, -1), method))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("method", METHODS)
def test_a_channel_given_twice_at_half_weight_says_the_same(method, channels):
    module, images = small(channels), pairs(channels)
    doubled = with_weights(module, (module[0].weight / 2).repeat(1, 2, 1, 1).detach())
    assert_equal(explained(doubled, images.repeat(1, 1, 2, 1, 1), method), explained(module, images, method))


@pytest.mark.parametrize("decision", THRESHOLDS)
def test_verdicts_matches_and_changes_of_one_channel_are_those_of_three(decision):
    module = small(3)
    grey, images = summed(module, pairs(3, count=1))
    results = []
    for one, seen in ((grey, images), (module, images.expand(-1, -1, 3, -1, -1))):
        network = Cut(one, layer="1")
        explanation = explain(network, seen, THRESHOLDS[decision], method="path_layercam")
        assert explanation.decision() == decision
        change = smallest_edit(network, explanation)
        assert torch.equal(change.edited[:, :1].expand_as(change.edited), change.edited)
        results.append(
            {
                "gap": judge(network, explanation).gap.both,
                "span": judge(network, explanation).span.each,
                "colour": insertion_deletion(network, explanation, mean_colour).both,
                "places": decompose(network, explanation).places,
                "regions": change.regions,
                "edited": change.edited[:, :1],
                "distance": torch.tensor(change.distance),
            }
        )
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("channels", [2, 4])
def test_pixels_of_a_donor_come_with_all_their_channels(channels):
    """Where an image is nothing but one value in each channel, what is put in is that value, channel by channel."""
    images = torch.zeros(1, 2, channels, *SIZE, dtype=torch.float64)
    values = torch.arange(1.0, channels + 1, dtype=torch.float64)
    images[:, 1] += values[:, None, None]
    network = Cut(small(channels), layer="1")
    change = smallest_edit(network, explain(network, images, 0.01, method="gradcam"))
    put_in = change.edited[0].amax(dim=(1, 2))
    torch.testing.assert_close(put_in, values, atol=1e-6, rtol=0)
    assert not change.edited[0][:, ~change.regions[0]].any()


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_a_network_of_three_channels_says_so(channels):
    network = SiameseNetwork("test_resnet", 8, image_size=(64, 64))
    images = torch.randn(2, 2, channels, 64, 64)
    with pytest.raises(ExplanationError, match=rf"of the images: {channels}; channels of the network: 3") as one:
        explain(network, images, 0.5)
    cure = str(one.value).partition("say ")[2].partition(", or explain")[0]
    assert explain(network, eval(cure), 0.5, method="gradcam").images.shape[2] == 3
    with pytest.raises(ExplanationError, match="channels of the network: 3"):
        embed_references(network, images.flatten(0, 1))


@pytest.mark.parametrize(
    "channels",
    [(0, 1), (0, 1, 4), (-1, 0, 1), (0, 1, 2, 3), 3, "012", (0.5, 1, 2), (0.0, 1, 2), (0, 1, None), ("a", "b", "c")],
)
def test_what_are_not_three_channels_of_the_images_is_refused(channels):
    images = pairs(4, count=1)
    network = Cut(small(4), layer="1")
    with pytest.raises(ExplanationError, match=r"^channels: .* is refused: name three .* from 0 to 3$"):
        explain(network, images, 0.5, source=Source(channels=channels))
    maps = torch.zeros(1, 2, *SIZE)
    with pytest.raises(ExplanationError, match="name three"):
        Explanation(images, torch.ones(1), 0.5, maps, maps, source=Source(channels=channels))


def test_named_channels_are_carried():
    network = Cut(small(4), layer="1")
    found = explain(network, pairs(4), 0.5, source=Source(channels=(3, 2, 1)))
    assert found.source.channels == found[1].source.channels == (3, 2, 1)
    assert explain(network, pairs(4), 0.5).source.channels is None
    assert explain(network, pairs(4), 0.5, source=Source(channels=list(np.argsort([2, 1, 0])))).source.channels == [
        2,
        1,
        0,
    ]


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (4, 3), (3, 1), (12, 1)])
def test_a_normalization_of_another_number_of_channels_is_refused(channels, given):
    network = Cut(small(channels), layer="1")
    normalization = Normalization(mean=(0.5,) * given, std=(0.5,) * given)
    with pytest.raises(ExplanationError, match=f"normalization of {given} channels, but images of {channels}: give"):
        explain(network, pairs(channels), 0.5, source=Source(normalization=normalization))
    enough = Normalization(mean=(0.5,) * channels, std=(0.5,) * channels)
    assert explain(network, pairs(channels), 0.5, source=Source(normalization=enough)).source.normalization is enough


def test_a_normalization_has_as_many_values_of_both_kinds():
    with pytest.raises(ValueError, match="as many values of mean as of std, not 4 and 3"):
        Normalization(mean=(0.5,) * 4, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="mean"):
        Normalization(mean=(), std=())


@pytest.mark.parametrize(("channels", "white"), [(1, 255), (1, 4095), (12, 10_000), (4, 65_535)])
def test_pixels_are_doubted_until_their_normalization_is_given(channels, white):
    """X-rays of 12 bits, reflectances of satellites, 16 bits: the warning names what ends it."""
    network = Cut(small(channels), layer="1")
    images = torch.rand(1, 2, channels, *SIZE, dtype=torch.float64) * white
    images[0, 0, 0, 0, :2] = torch.tensor([0, white])
    warning = explain(network, images, 0.5, source=Source(warning="")).source.warning
    assert warning.startswith(f"CAUTION: the images hold values from 0 to {white:.4g}")
    cure = eval(warning.partition("say so by source=")[2].removesuffix("."))
    assert len(cure.normalization.mean) == channels
    assert explain(network, images, 0.5, source=replace(cure, warning="")).source.warning == ""
