import pytest
import torch
from helpers import network_and_images

from utils.config import ConfigError
from utils.network import dilated
from utils.network import folded


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
@pytest.mark.parametrize("stride", [16, 8])
def test_the_cells_that_were_there_stay_as_they_were(backbone, stride):
    network, images1, _ = network_and_images(backbone, (64, 96), count=1)
    finer = dilated(network, stride)
    with torch.no_grad():
        coarse, fine = network.features(images1), finer.features(images1)
    assert fine.shape[2:] == (64 // stride, 96 // stride)
    every = 32 // stride
    scale = coarse.abs().max()
    if backbone in ("resnet18", "resnet50", "mobilenet_v2"):  # the others weigh channels by means over all cells
        torch.testing.assert_close(fine[..., ::every, ::every] / scale, coarse / scale, atol=1e-5, rtol=1e-4)


def test_the_network_itself_and_its_stride_of_32_are_untouched():
    network, images1, _ = network_and_images()
    with torch.no_grad():
        before = network(images1)
        dilated(network, 8)
        assert torch.equal(network(images1), before)
        assert torch.equal(dilated(network, 32)(images1), before)
        torch.testing.assert_close(dilated(folded(network, torch.float32), 8).features(images1).shape[2:], (8, 8))


def test_convnext_is_refused():
    network, *_ = network_and_images("convnext_tiny")
    with pytest.raises(ConfigError, match=r"explanation.output_stride: 16 is refused"):
        dilated(network, 16)
