import pytest
import torch
from helpers import network_and_images

from utils.config import ConfigError
from utils.explain import contributions, explain_by_path
from utils.network import distance
from utils.data.transforms import blurred


def completeness_errors(network, images1, images2, layer, steps):
    """What each map's sum misses of the change in distance from the blurred image to the image, (2B,)."""
    distances, raising, lowering = contributions(network, images1, images2, layer, steps)
    embeddings1, embeddings2 = network(images1), network(images2)
    blurry = torch.cat(
        [distance(network(blurred(images1)), embeddings2), distance(embeddings1, network(blurred(images2)))]
    )
    return ((raising - lowering).sum(dim=(1, 2)) - (distances.repeat(2) - blurry)).abs().detach()


@pytest.mark.parametrize("layer", ["layer1", "layer3"])
def test_a_map_adds_up_to_the_change_in_distance(layer):
    network, images1, images2 = (part.double() for part in network_and_images(size=(48, 64)))
    errors = [completeness_errors(network, images1, images2, layer, steps).max().item() for steps in (1, 16, 128)]
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 3 * errors[2]
    assert errors[2] < 0.03


def test_one_step_against_a_full_backward_pass():
    network, images1, images2 = (part.double() for part in network_and_images(count=1))
    _, raising, lowering = contributions(network, images1, images2, "layer2", steps=1)
    start, end = (network.features(images, "layer2").detach() for images in (blurred(images1), images1))
    middle = ((start + end) / 2).requires_grad_()
    distance(network.embed_features(middle, "layer2"), network(images2).detach()).sum().backward()
    up, down = torch.zeros(raising.shape[1:]).double(), torch.zeros(raising.shape[1:]).double()
    for channel in range(middle.shape[1]):
        for y in range(middle.shape[2]):
            for x in range(middle.shape[3]):
                slope, change = middle.grad[0, channel, y, x], (end - start)[0, channel, y, x]
                up[y, x] += slope * change if slope > 0 else 0
                down[y, x] -= slope * change if slope < 0 else 0
    torch.testing.assert_close(raising[0], up)
    torch.testing.assert_close(lowering[0], down)


def test_kept_apart_or_not():
    network, images1, images2 = network_and_images()
    apart = explain_by_path(network, images1, images2, 0.5, "layer2")
    one = explain_by_path(network, images1, images2, 0.5, "layer2", apart=False)
    assert torch.minimum(apart.towards_different, apart.towards_same).amax() > 0
    assert torch.minimum(one.towards_different, one.towards_same).amax() == 0
    assert (one.towards_different > 0).any()


def test_batched_equals_one_by_one(device):
    network, images1, images2 = network_and_images(size=(64, 96), count=4, device=device)
    together = explain_by_path(network, images1, images2, 0.5, "layer2", steps=2)
    assert together.evidence.shape == (4, 2, 64, 96)
    for index in range(4):
        part = slice(index, index + 1)
        alone = explain_by_path(network, images1[part], images2[part], 0.5, "layer2", steps=2)
        torch.testing.assert_close(together.evidence[part], alone.evidence, atol=1e-5, rtol=1e-3)


def test_identical_and_blank_images_give_finite_maps():
    network, images1, _ = network_and_images()
    for pair in ((images1, images1), (torch.zeros_like(images1), torch.zeros_like(images1))):
        explanation = explain_by_path(network, *pair, 0.5)
        assert torch.isfinite(explanation.factual).all()
    assert not explanation.factual.any()  # a blank image is its own blurred version: nothing is added on the way
    with pytest.raises(ConfigError, match="should be last, stem"):
        explain_by_path(network, images1, images1, 0.5, "layer9")
