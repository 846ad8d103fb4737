import pytest
import torch
from helpers import Chequered, network_and_images

from utils.config import ConfigError
from utils.network.variants import dilated, folded, randomised


@pytest.mark.parametrize("backbone", ["resnet18", "resnet26", "mobilenetv2_035", "efficientnet_b0", "regnetx_002"])
@pytest.mark.parametrize("stride", [16, 8])
def test_the_cells_that_were_there_stay_as_they_were(backbone, stride):
    network, pairs = network_and_images(backbone, (64, 96), count=1)
    images = pairs[0]
    finer = dilated(network, stride)
    with torch.no_grad():
        coarse, fine = network.features(images), finer.features(images)
    assert fine.shape[2:] == (64 // stride, 96 // stride)
    every = 32 // stride
    scale = coarse.abs().max()
    if backbone != "efficientnet_b0":  # which weighs channels by means over all cells
        torch.testing.assert_close(fine[..., ::every, ::every] / scale, coarse / scale, atol=1e-5, rtol=1e-4)


def test_the_network_itself_and_its_stride_of_32_are_untouched():
    network, pairs = network_and_images()
    images = pairs[0]
    with torch.no_grad():
        before = network(images)
        dilated(network, 8)
        assert torch.equal(network(images), before)
        assert torch.equal(dilated(network, 32)(images), before)
        torch.testing.assert_close(dilated(folded(network, torch.float32), 8).features(images).shape[2:], (8, 8))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "convnext_atto", "resnetblur18"])
def test_what_timm_does_not_dilate_is_refused(backbone):
    network, _ = network_and_images(backbone)
    with pytest.raises(ConfigError, match=f"output_stride: 16 is refused for {backbone}, which timm does not dilate"):
        dilated(network, 16)


def test_the_dilated_network_shares_its_weights_and_so_is_never_out_of_date():
    network, pairs = network_and_images()
    finer = dilated(network, 16)
    for one, other in zip(network.parameters(), finer.parameters(), strict=True):
        assert one is other
    with torch.no_grad():
        before = finer(pairs[0])
        network.embedding.bias += 1
        assert not torch.equal(finer(pairs[0]), before)


def test_only_a_siamese_network_can_be_dilated():
    with pytest.raises(ConfigError, match=r"output_stride: 16 needs a SiameseNetwork, not Chequered"):
        dilated(Chequered(), 16)


def test_weights_are_shuffled_from_the_top_down_and_the_network_stays():
    network, _ = network_and_images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages = []
    for stage, random in randomised(network):
        stages.append(stage)
        for name, parameter in random.named_parameters():
            part = "stem" if name.startswith(("backbone.conv1", "backbone.bn1")) else name.removeprefix("backbone.")
            done = part.startswith(tuple(stages))
            constant = parameter.min() == parameter.max()
            assert constant or torch.equal(parameter, before[name]) != done
    for name, parameter in random.named_parameters():  # each keeps its values, but not their places
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
    assert stages == ["embedding", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
