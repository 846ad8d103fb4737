import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerIntegratedGradients
from helpers import ToOther, network_and_images

from utils.config import ConfigError
from utils.explanations.occlusion import blurred
from utils.explanations.path import contributions, explain_by_path
from utils.network.distance import distance


def completeness_errors(network, images, layer, steps):
    """What each map's sum misses of the change in distance from the blurred image to the image, (B, 2)."""
    raising, lowering, path, _ = contributions(network, images, layer, steps)
    distances = distance(*path.embeddings.unbind(1))
    image1, image2 = images.unbind(1)
    embeddings1, embeddings2 = network(image1), network(image2)
    blurry1 = distance(network(blurred(image1)), embeddings2)
    blurry2 = distance(embeddings1, network(blurred(image2)))
    changes = distances[:, None] - torch.stack([blurry1, blurry2], dim=1)
    return ((raising - lowering).sum(dim=(2, 3)) - changes).abs().detach()


@pytest.mark.parametrize("layer", ["layer1", "layer3"])
def test_a_map_adds_up_to_the_change_in_distance(layer):
    network, images = (part.double() for part in network_and_images(size=(48, 64)))
    errors = [completeness_errors(network, images, layer, steps).max().item() for steps in (1, 16, 128)]
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 3 * errors[2]
    assert errors[2] < 0.03


def test_one_step_against_a_full_backward_pass():
    network, images = (part.double() for part in network_and_images(count=1))
    raising, lowering, _, _ = contributions(network, images, "layer2", steps=1)
    image1, image2 = images.unbind(1)
    start, end = (network.features(part, "layer2").detach() for part in (blurred(image1), image1))
    middle = ((start + end) / 2).requires_grad_()
    distance(network.embed_features(middle, "layer2"), network(image2).detach()).sum().backward()
    up, down = torch.zeros(raising.shape[2:]).double(), torch.zeros(raising.shape[2:]).double()
    for channel in range(middle.shape[1]):
        for y in range(middle.shape[2]):
            for x in range(middle.shape[3]):
                slope, change = middle.grad[0, channel, y, x], (end - start)[0, channel, y, x]
                up[y, x] += slope * change if slope > 0 else 0
                down[y, x] -= slope * change if slope < 0 else 0
    torch.testing.assert_close(raising[0, 0], up)
    torch.testing.assert_close(lowering[0, 0], down)


@pytest.mark.parametrize(("layer", "steps"), [("layer1", 2), ("layer2", 4), ("layer4", 5)])
def test_maps_against_captum(layer, steps):
    """Integrated gradients at a layer by hooks, and its mean gradients alone, for the channels kept apart."""
    network, images = (part.double() for part in network_and_images(size=(48, 64)))
    complete = explain_by_path(network, images, 0.5, layer, steps, split=False)
    split = explain_by_path(network, images, 0.5, layer, steps)
    module = network.backbone.get_submodule(layer)
    settings = {"n_steps": steps, "method": "riemann_middle"}
    for pair in range(2):
        for image in range(2):
            with torch.no_grad():
                to_other = ToOther(network, network(images[pair, 1 - image, None]))
            one = images[pair, image, None]
            added, gradients = (
                LayerIntegratedGradients(to_other, module, multiply_by_inputs=multiply)
                .attribute(one, blurred(one), **settings)
                .detach()
                for multiply in (True, False)
            )
            total = added.sum(dim=1)
            raising = torch.where(gradients > 0, added, 0).sum(dim=1)
            lowering = torch.where(gradients < 0, -added, 0).sum(dim=1)
            enlarged = F.interpolate(
                torch.stack([total, raising, lowering], dim=1), (48, 64), mode="bilinear", align_corners=False
            )[0]
            scale = enlarged[0].abs().max()
            torch.testing.assert_close(complete.evidence[pair, image] / scale, enlarged[0] / scale, atol=1e-6, rtol=0)
            found = split.towards_different[pair, image], split.towards_same[pair, image]
            for maps, expected in zip(found, enlarged[1:].clamp(min=0), strict=True):
                torch.testing.assert_close(maps / scale, expected / scale, atol=1e-6, rtol=0)


def test_signs_of_gradient_kept_apart_or_not():
    network, images = network_and_images()
    split = explain_by_path(network, images, 0.5, "layer2")
    one = explain_by_path(network, images, 0.5, "layer2", split=False)
    assert torch.minimum(split.towards_different, split.towards_same).amax() > 0
    assert torch.minimum(one.towards_different, one.towards_same).amax() == 0
    assert (one.towards_different > 0).any()


def test_the_explanation_says_what_its_sum_misses():
    network, images = (part.double() for part in network_and_images(size=(48, 64)))
    found = explain_by_path(network, images, 0.5, "layer2", steps=2, split=False)
    raising, lowering, _, _ = contributions(network, images, "layer2", 2)
    errors = (found.completeness[:, 0] - found.completeness[:, 1]).abs()
    torch.testing.assert_close(found.completeness[:, 0], (raising - lowering).sum(dim=(1, 2, 3)))
    blurry = [distance(network(blurred(images[:, one])), network(images[:, 1 - one])) for one in range(2)]
    torch.testing.assert_close(found.completeness[:, 1], 2 * found.distance - sum(blurry).detach())
    assert (errors > 0).all()


def test_batched_equals_one_by_one(device):
    network, images = network_and_images(size=(64, 96), count=4, device=device)
    together = explain_by_path(network, images, 0.5, "layer2", steps=2)
    assert together.evidence.shape == (4, 2, 64, 96)
    for index in range(4):
        part = slice(index, index + 1)
        alone = explain_by_path(network, images[part], 0.5, "layer2", steps=2)
        torch.testing.assert_close(together.evidence[part], alone.evidence, atol=1e-5, rtol=1e-3)


def test_identical_and_blank_images_give_finite_maps():
    network, images = network_and_images()
    identical = explain_by_path(network, images[:, [0, 0]], 0.5, "layer1")
    assert torch.isfinite(identical.factual).all()
    blank = explain_by_path(network, torch.zeros_like(images), 0.5, "layer1")
    assert torch.isfinite(blank.factual).all()
    assert not blank.factual.any()  # a blank image is its own blurred version: nothing is added on the way
    with pytest.raises(ConfigError, match="should be last, stem"):
        explain_by_path(network, images, 0.5, "layer9")
