import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerIntegratedGradients
from helpers import ToOther, network_and_images

from utils.config import ConfigError
from utils.explanations.methods import explain
from utils.network.distance import blurred, distance, unit


def enlarged(maps, size=(48, 64)):
    """Maps (N, h, w) at the size of the images."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def changes_in_distance(network, images):
    """What both images of each pair change in the distance, from the blurred image to the image: (B,)."""
    with torch.no_grad():
        image1, image2 = images.unbind(1)
        embeddings1, embeddings2 = network(image1), network(image2)
        blurry1 = distance(network(blurred(image1)), embeddings2)
        blurry2 = distance(embeddings1, network(blurred(image2)))
        return 2 * distance(embeddings1, embeddings2) - blurry1 - blurry2


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.3"])
def test_a_map_adds_up_to_the_change_in_distance(layer):
    smooth = network_and_images("test_efficientnet", size=(32, 32))  # in its activations
    network, images = (part.double() for part in smooth)
    errors = []
    for steps in (1, 8, 32):
        totals, changes = explain(
            network, images, 0.5, method="integrated", layer=layer, steps=steps
        ).completeness.unbind(1)
        torch.testing.assert_close(changes, changes_in_distance(network, images))
        errors.append((totals - changes).abs().max().item())
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 10 * errors[2]  # the midpoint rule: a quarter of the steps, 16 times the error
    assert errors[2] < 0.005


def test_one_step_against_a_full_backward_pass():
    network, images = (part.double() for part in network_and_images(count=1, size=(48, 64)))
    found = explain(network, images, 0.5, method="path_layercam", layer="layer2", steps=1)
    image1, image2 = images.unbind(1)
    start, end = (network.features(part, "layer2").detach() for part in (blurred(image1), image1))
    middle = ((start + end) / 2).requires_grad_()
    distance(unit(network.project_features(middle, "layer2")), network(image2).detach()).sum().backward()
    up, down = torch.zeros(2, *middle.shape[2:]).double()
    for channel in range(middle.shape[1]):
        for y in range(middle.shape[2]):
            for x in range(middle.shape[3]):
                slope, change = middle.grad[0, channel, y, x], (end - start)[0, channel, y, x]
                up[y, x] += slope * change if slope > 0 else 0
                down[y, x] -= slope * change if slope < 0 else 0
    raising, lowering = enlarged(torch.stack([up, down])).clamp(min=0)
    torch.testing.assert_close(found.towards_different[0, 0], raising)
    torch.testing.assert_close(found.towards_same[0, 0], lowering)


@pytest.mark.parametrize(("layer", "steps"), [("layer1", 2), ("layer2", 4), ("layer4", 5)])
def test_maps_against_captum(layer, steps):
    """Integrated gradients at a layer by hooks, and its mean gradients alone, for the channels kept apart."""
    network, images = (part.double() for part in network_and_images(size=(48, 64)))
    complete = explain(network, images, 0.5, method="integrated", layer=layer, steps=steps)
    split = explain(network, images, 0.5, method="path_layercam", layer=layer, steps=steps)
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
            evidence, raised, lowered = enlarged(torch.cat([total, raising, lowering]))
            found = complete.evidence, split.towards_different, split.towards_same
            for maps, expected in zip(found, (evidence, raised.clamp(min=0), lowered.clamp(min=0)), strict=True):
                scale = evidence.abs().max()
                torch.testing.assert_close(maps[pair, image] / scale, expected / scale, atol=1e-6, rtol=0)


def test_signs_of_gradient_kept_apart_or_not():
    network, images = network_and_images()
    split = explain(network, images, 0.5, method="path_layercam", layer="layer2")
    signed = explain(network, images, 0.5, method="integrated", layer="layer2")
    assert torch.minimum(split.towards_different, split.towards_same).amax() > 0
    assert torch.minimum(signed.towards_different, signed.towards_same).amax() == 0
    assert (signed.towards_different > 0).any()


def test_batched_equals_one_by_one(device):
    network, images = network_and_images(size=(64, 96), count=4, device=device)
    together = explain(network, images, 0.5, method="path_layercam", layer="layer2", steps=2)
    assert together.evidence.shape == (4, 2, 64, 96)
    for index in range(4):
        part = slice(index, index + 1)
        alone = explain(network, images[part], 0.5, method="path_layercam", layer="layer2", steps=2)
        torch.testing.assert_close(together.evidence[part], alone.evidence, atol=1e-5, rtol=1e-3)


def test_identical_and_blank_images_give_finite_maps():
    network, images = network_and_images()
    identical = explain(network, images[:, [0, 0]], 0.5, method="path_layercam", layer="layer1")
    assert torch.isfinite(identical.factual).all()
    blank = explain(network, torch.zeros_like(images), 0.5, method="path_layercam", layer="layer1")
    assert torch.isfinite(blank.factual).all()
    assert not blank.factual.any()  # a blank image is its own blurred version: nothing is added on the way
    with pytest.raises(ConfigError, match=r"'layer\d' is refused"):
        explain(network, images, 0.5, method="path_layercam", layer="layer9")
