"""The peers of the benchmark, each against its formula in plain loops and on pairs whose evidence is planted."""

import importlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, Chequered, board, network_and_images, patterned
from torch import nn
from torch.autograd.functional import jacobian

from utils.network.cut import Cut
from utils.network.distance import blurred, distance, distances_of, unit

sys.path.append(str(ROOT / "tests" / "benchmarks"))
import peers

BLACK_BOX = [peers.corr_rise, peers.sbsm]
AT_A_LAYER = [peers.pair_x, peers.integrated_jacobians]
ALL = [peers.paper_repository, peers.fggb, *BLACK_BOX, *AT_A_LAYER]
THRESHOLD = 0.5


class Tiny(nn.Module):
    """Two convolutions, the mean over places, one linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Linear(5, 6)

    def forward(self, images):
        maps = F.elu(self.second(F.elu(self.first(2 * images))))
        return self.last(maps.mean(dim=(2, 3)))


class Lit(nn.Module):
    """The embedding is how much of each colour stands out of the dark: only bright pixels have a gradient. It is not
    brought to length 1, so that a channel depends on its own colour alone.
    """

    def forward(self, images):
        return F.relu(images - 0.5).sum(dim=(2, 3)) / 4


class Coded(nn.Module):
    """The embedding is the mean colour at length 1, read from the image itself at the layer `image`."""

    def __init__(self):
        super().__init__()
        self.image = nn.Identity()

    def forward(self, images):
        return self.image(images).mean(dim=(2, 3))


class Angled(Chequered):
    """The same, read from the image itself at the layer `image`."""

    def __init__(self):
        super().__init__()
        self.image = nn.Identity()

    def forward(self, images):
        return super().forward(self.image(images))


def tiny_and_images(count=2, size=(8, 10)):
    return Cut(Tiny(), "first").eval().requires_grad_(False), torch.randn(count, 2, 3, *size)


def chequered_pair(angle1, angle2, size=(24, 24)):
    """Images (1, 2, 3, H, W) with a pattern each, and where these are: bool (1, 2, H, W)."""
    (image1, mask1), (image2, mask2) = patterned(size, (1, 2), angle1), patterned(size, (15, 14), angle2)
    return torch.stack([image1, image2])[None], torch.stack([mask1, mask2])[None]


def energy(maps, mask):
    return float((maps * mask).sum() / maps.sum())


@pytest.mark.parametrize("peer", ALL)
def test_one_pair_alone_or_among_others_and_modes_as_they_were(peer, monkeypatch):
    for name, few in {"MASKS": 20, "WINDOWS": 4, "STEPS": 3}.items():
        monkeypatch.setattr(peers, name, few)
    network, images = network_and_images(count=2)
    network.train()
    both = peer(network, images, THRESHOLD)
    alone = peer(network, images[1:], THRESHOLD, references=None)
    assert network.training
    assert both.factual.shape == (2, 2, 64, 64)
    assert not both.images.requires_grad
    assert not both.evidence.requires_grad
    torch.testing.assert_close(both.distance, distances_of(network, images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1].evidence, alone.evidence, atol=2e-4, rtol=1e-2)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("peer", [peers.paper_repository, peers.fggb, *AT_A_LAYER])
def test_they_explain_where_gradients_are_off(peer):
    network, images = tiny_and_images()
    with torch.no_grad():
        result = peer(network, images, THRESHOLD)
    torch.testing.assert_close(result.evidence, peer(network, images, THRESHOLD).evidence)


def test_the_papers_repository_takes_image_1s_gradient_for_both_whatever_the_decision():
    network, images = tiny_and_images(count=1)
    maps = [network.features(image).detach() for image in images[0, :, None]]
    other = unit(network.project_features(maps[1]))
    gradient = jacobian(lambda features: distance(unit(network.project_features(features)), other), maps[0])[0]
    for threshold, name in ((0, "towards_different"), (2, "towards_same")):
        explanation = peers.paper_repository(network, images, threshold)
        for image, features in enumerate(maps):
            expected = sum(gradient[0, channel].mean() * features[0, channel] for channel in range(4))
            expected = F.interpolate(expected[None, None], size=(8, 10), mode="bilinear")[0, 0].clamp(min=0)
            torch.testing.assert_close(getattr(explanation, name)[0, image], expected)


def test_the_grad_cam_package_is_no_part_of_the_peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)  # as where it is not installed
    assert importlib.reload(peers).PEERS["pytorch-grad-cam"] is peers.pytorch_grad_cam


def test_fggb_against_one_channel_at_a_time():
    network, images = tiny_and_images()
    explanation = peers.fggb(network, images, THRESHOLD)
    for pair in range(2):
        for image in range(2):
            own, other = images[pair, image, None], images[pair, 1 - image, None]
            embedding, others = network(own)[0], network(other)[0]
            total = torch.zeros(8, 10)
            for channel in range(6):
                gradient = jacobian(lambda pixels, channel=channel: network(pixels)[0, channel], own)[0]
                sizes = (gradient[0].abs() + gradient[1].abs() + gradient[2].abs()) / 3
                share = embedding[channel] * others[channel] - (1 - THRESHOLD**2 / 2) / 6
                total += (share * sizes / sizes.norm()).detach()
            torch.testing.assert_close(explanation.evidence[pair, image], -total, atol=1e-6, rtol=1e-4)


def test_fggb_parts_what_both_images_show_from_what_one_shows():
    images = torch.zeros(1, 2, 3, 12, 12)
    shared, alone = torch.zeros(12, 12, dtype=torch.bool), torch.zeros(12, 12, dtype=torch.bool)
    shared[1:4, 1:4] = True
    alone[7:11, 6:10] = True
    images[0, :, 0, shared] = 1
    images[0, 0, 1, alone] = 1  # green, in image 1 alone
    explanation = peers.fggb(Lit(), images, THRESHOLD)
    assert torch.equal(explanation.towards_same[0, 0] > 0, shared)
    assert torch.equal(explanation.towards_different[0, 0] > 0, alone)
    assert torch.equal(explanation.towards_same[0, 1] > 0, shared)
    assert not explanation.towards_different[0, 1].any()


def test_masks_hide_patches_within_the_image():
    masks = peers._random_patches((40, 60))
    assert masks.shape == (peers.MASKS, 40, 60)
    assert set(masks.unique().tolist()) == {0, 1}
    hidden = (1 - masks).flatten(1).sum(dim=1)
    assert hidden.max() <= peers.PATCHES * 11 * 16
    assert hidden.min() >= 11 * 16
    assert (masks.mean(dim=0) < 1).float().mean() > 0.9
    assert torch.equal(masks, peers._random_patches((40, 60)))


def test_corr_rise_against_the_correlation_of_each_pixel(monkeypatch):
    monkeypatch.setattr(peers, "MASKS", 11)  # no multiple of those that go through at once
    network, images = tiny_and_images(count=1)
    network, images = network.double(), images.double()  # cosines near 1 differ in their last digits alone
    explanation = peers.corr_rise(network, images, THRESHOLD)
    masks = peers._random_patches((8, 10))
    for image in range(2):
        other = network(images[0, 1 - image, None])[0]
        scores = [float(network((images[0, image] * mask)[None])[0] @ other) for mask in masks]
        for y in range(8):
            for x in range(10):
                visible = masks[:, y, x].numpy()
                expected = 0 if np.ptp(visible) == 0 else np.corrcoef(visible, scores)[0, 1]
                assert explanation.evidence[0, image, y, x] == pytest.approx(-expected, abs=1e-6)


def test_sbsm_against_windows_one_at_a_time():
    network, size = Chequered(), (20, 30)
    (image1, _), (image2, _) = patterned(size, (2, 3), 0.9), patterned(size, (10, 20), -0.4)
    image2[0] += 0.01 * board(*size) * torch.randn(size)  # some windows add to the distance and some take from it
    explanation = peers.sbsm(network, torch.stack([image1, image2])[None], THRESHOLD)
    base = distance(network(image1[None]), network(image2[None])).item()
    rises = [[[] for _ in range(30)] for _ in range(20)]  # of each pixel, what its windows say
    last = peers.WINDOWS - 1
    for row in range(peers.WINDOWS):
        for column in range(peers.WINDOWS):
            top, left = round(row * 16 / last), round(column * 24 / last)
            hidden = image2.clone()
            hidden[:, top : top + 4, left : left + 6] = 0
            rise = distance(network(image1[None]), network(hidden[None])).item() - base
            for y in range(top, top + 4):
                for x in range(left, left + 6):
                    rises[y][x].append(rise)
    same = torch.tensor([[sum(max(rise, 0) for rise in result) / len(result) for result in line] for line in rises])
    different = torch.tensor(
        [[sum(max(-rise, 0) for rise in result) / len(result) for result in line] for line in rises]
    )
    assert same.any()
    torch.testing.assert_close(explanation.towards_same[0, 1], same, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(explanation.towards_different[0, 1], different, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("peer", BLACK_BOX)
@pytest.mark.parametrize(("angle2", "decision"), [(-0.8, "different"), (0.8, "same")])
def test_masks_find_the_pattern_of_each_image(peer, angle2, decision):
    images, masks = chequered_pair(0.8, angle2)
    explanation = peer(Chequered(), images, THRESHOLD)
    assert explanation.decision() == decision
    for heatmap, mask in zip(explanation.factual[0], masks[0], strict=True):
        assert mask.flatten()[heatmap.argmax()]
        assert energy(heatmap, mask) > 3 * mask.float().mean()


def test_pair_x_against_matches_one_at_a_time(monkeypatch):
    monkeypatch.setattr(peers, "MATCHES", 4)
    network, images = tiny_and_images(count=1)
    explanation = peers.pair_x(network, images, 2)
    features = [network.features(image).detach() for image in images[0, :, None]]  # (1, 4, 4, 5) each
    relevances = []
    for image in range(2):
        other = unit(network.project_features(features[1 - image]))[0].detach()
        cosine = jacobian(lambda part, other=other: unit(network.project_features(part))[0] @ other, features[image])
        relevances.append((features[image] * cosine).abs().sum(dim=1).flatten())
    one, two = (part[0].flatten(1).T for part in features)
    result = []
    for i in range(20):
        j = min(range(20), key=lambda j: float((one[i] - two[j]).norm()))
        back = min(range(20), key=lambda k: float((one[k] - two[j]).norm()))
        if back == i:
            result.append((float(relevances[0][i] * relevances[1][j]), i, j))
    assert 4 < len(result) < 20
    maps = torch.zeros(2, 20)
    for weight, i, j in sorted(result)[-4:]:
        maps[0, i] = weight
        maps[1, j] = weight
    expected = F.interpolate(maps.reshape(1, 2, 4, 5), size=(8, 10), mode="bilinear")
    torch.testing.assert_close(explanation.towards_same, expected)
    assert not explanation.towards_different.any()


def test_fewer_mutual_matches_than_are_shown_add_nothing():
    features = torch.tensor([[[[0.0, 1.0, 2.0]]], [[[0.1, 9.0, 9.5]]]])  # all of image 1 are nearest to 0.1
    maps = peers._heaviest_matches(features, torch.tensor([[[2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0]]]))
    assert maps.tolist() == [[[10.0, 0.0, 0.0]], [[10.0, 0.0, 0.0]]]


def test_pair_x_finds_the_patch_that_both_images_share():
    images = 0.1 * torch.rand(1, 2, 3, 12, 12)
    masks = torch.zeros(1, 2, 12, 12, dtype=torch.bool)
    patch = 1 + torch.rand(3, 3, 3)
    for image, (top, left) in enumerate([(1, 2), (8, 6)]):
        place = (..., slice(top, top + 3), slice(left, left + 3))
        images[0, image][place] = patch
        masks[0, image][place] = True
    factual = peers.pair_x(Cut(Coded(), "image"), images, THRESHOLD).factual
    for heatmap, mask in zip(factual[0], masks[0], strict=True):
        assert energy(heatmap, mask) > 0.95


def test_integrated_jacobians_against_the_sum_over_pairs_of_places(monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 40)
    network, images = tiny_and_images(count=1)
    network, images = network.double(), images.double()
    result = peers.integrated_jacobians(network, images, THRESHOLD).evidence
    with torch.no_grad():
        ends = [network.features(image) for image in images[0, :, None]]
        starts = [network.features(blurred(image)) for image in images[0, :, None]]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        total = torch.zeros_like(end).expand(6, -1, -1, -1).clone()
        for step in range(40):
            between = start + (end - start) * (step + 0.5) / 40
            total += jacobian(lambda features: unit(network.project_features(features))[0], between)[:, 0] / 40
        parts.append(total * (end - start)[0])  # (6, 4, 4, 5): what each place adds to each channel of the embedding
    places1, places2 = (part.sum(dim=1).flatten(1) for part in parts)  # (6, 20)
    pairs = places1.T @ places2  # (20, 20), of a place of image 1 with a place of image 2
    same = torch.stack([pairs.sum(dim=1), pairs.sum(dim=0)]).reshape(1, 2, 4, 5)
    expected = F.interpolate(same, size=(8, 10), mode="bilinear")
    assert (result + expected).norm() < 1e-3 * expected.norm()
    shares = [
        unit(network.project_features(end)) - unit(network.project_features(start))
        for start, end in zip(starts, ends, strict=True)
    ]
    assert float(pairs.sum()) == pytest.approx(float((shares[0] * shares[1]).sum()), rel=1e-3)


@pytest.mark.parametrize(("angle2", "decision"), [(-0.8, "different"), (0.8, "same")])
def test_integrated_jacobians_find_the_pattern_of_each_image(angle2, decision):
    images, masks = chequered_pair(0.8, angle2)
    explanation = peers.integrated_jacobians(Cut(Angled(), "image"), images, THRESHOLD)
    assert explanation.decision() == decision
    for heatmap, mask in zip(explanation.factual[0], masks[0], strict=True):
        assert energy(heatmap, mask) > 0.9
