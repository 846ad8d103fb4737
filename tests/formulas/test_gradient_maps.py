"""Grad-CAM and its kin from the papers' equations, in loops. Written without reading the implementation."""

import pytest
import torch
from helpers import formulas_at_layer
from plain_network import CHANNELS, HEIGHT, WIDTH, PlainNetwork, TinyNetwork, as_map, distance_between, gradient, places

from utils.explanations.methods import explain
from utils.network.cut import Cut


def by_gradcam(activations, slopes):
    values = dict.fromkeys(places(), 0.0)
    for channel in range(CHANNELS):
        weight = 0.0
        for y, x in places():
            weight += slopes[channel, y, x] / (HEIGHT * WIDTH)  # equation 1
        for y, x in places():
            values[y, x] += weight * activations[channel, y, x]  # equation 2
    return values


def by_gradcam_plus_plus(activations, slopes):
    values = dict.fromkeys(places(), 0.0)
    for channel in range(CHANNELS):
        total = 0.0
        for y, x in places():
            total += activations[channel, y, x]
        weight = 0.0
        for y, x in places():
            slope = slopes[channel, y, x]
            alpha = slope**2 / (2 * slope**2 + total * slope**3)  # equation 19
            weight += alpha * max(0.0, slope)  # equation 10
        for y, x in places():
            values[y, x] += weight * activations[channel, y, x]
    return values


def by_layercam(activations, slopes):
    values = dict.fromkeys(places(), 0.0)
    for channel in range(CHANNELS):
        for y, x in places():
            values[y, x] += max(0.0, slopes[channel, y, x]) * activations[channel, y, x]
    return values


def by_hirescam(activations, slopes):
    values = dict.fromkeys(places(), 0.0)
    for channel in range(CHANNELS):
        for y, x in places():
            values[y, x] += slopes[channel, y, x] * activations[channel, y, x]
    return values


PLAIN = {
    "gradcam": by_gradcam,
    "gradcam++": by_gradcam_plus_plus,
    "layercam": by_layercam,
    "hirescam": by_hirescam,
}


FORMULAS = formulas_at_layer()


def as_dict(tensor):
    values = {}
    for channel in range(CHANNELS):
        for y, x in places():
            values[channel, y, x] = float(tensor[channel, y, x])
    return values


def test_every_formula_is_tried():
    assert set(PLAIN) == set(FORMULAS)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("name", PLAIN)
def test_formulas(name, scale):
    """Selvaraju et al. 2017 (Grad-CAM), equations 1 and 2 without the ReLU; Chattopadhay et al. 2018 (Grad-CAM++),
    equations 10 and 19; Jiang et al. 2021 (LayerCAM), equations 5 and 6; Draelos and Carin 2020 (HiResCAM), section
    3.2. Activations are at least 0, as after a ReLU, of which the papers speak. Written without reading the
    implementation.
    """
    activations = torch.rand(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    slopes = torch.randn(2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64) * scale
    maps = FORMULAS[name](activations, slopes)
    assert maps.shape == (2, HEIGHT, WIDTH)
    for image in range(2):
        right = as_map(PLAIN[name](as_dict(activations[image]), as_dict(slopes[image])))
        torch.testing.assert_close(maps[image], right, rtol=1e-4, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["gradcam", "layercam", "hirescam"])
def test_maps_of_a_pair(name):
    """Selvaraju et al. 2017, equation 2 with the ReLU, of the distance of Livieris et al. 2023: each image has the
    gradient of the distance at its own feature map, here by differences; the opposite gradient maps what lowers the
    distance. Written without reading the implementation.
    """
    network = TinyNetwork(bend=0.5)
    plain = PlainNetwork(network)
    images = torch.randn(2, 2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    explanation = explain(Cut(network, "lift"), images, 0.5, method=name, layer="last")
    for pair in range(2):
        maps = [plain.features(image.tolist()) for image in images[pair]]
        embeddings = [plain.embedding(features) for features in maps]
        assert explanation.distance[pair].item() == pytest.approx(distance_between(*embeddings), rel=1e-6)
        for image in range(2):
            partner = embeddings[1 - image]

            def distance_from(features, partner=partner):
                return distance_between(plain.embedding(features), partner)

            slopes = gradient(distance_from, maps[image])
            opposite = {place: -slope for place, slope in slopes.items()}
            raising = as_map(PLAIN[name](maps[image], slopes)).clamp(min=0)
            lowering = as_map(PLAIN[name](maps[image], opposite)).clamp(min=0)
            raised = explanation.towards_different[pair, image].double()
            lowered = explanation.towards_same[pair, image].double()
            torch.testing.assert_close(raised, raising, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(lowered, lowering, rtol=1e-4, atol=1e-7)
