"""Maps lie in their places, for every order in which a layer may give them: right, or refused with what was seen."""

import pytest
import timm
import torch
from faults.outcomes import REFUSED, RIGHT
from faults.places import FAMILIES
from network.libraries import LIBRARIES
from network.orders import ORDERS
from network.planted import outcome_of_case, plant

QUICK = (  # of the libraries; all of them are tried by `make faults`
    "timm's Hiera, blocks.0",
    "timm's Hiera, blocks.2",
    "timm's Hiera, blocks.4",
    "timm's SAM, blocks.0",
    "timm's SAM, blocks.0.attn, windows",
    "torchvision's Swin, features.1, C = h = w",
    "ViT, layers.1, as a function",
    "CLIP, vision_model.encoder.layers.1, as a function",
    "SigLIP, post_layernorm, as a function",
    "DINOv2 with registers, encoder.layer.1, as a function",
    "Swin, encoder.layers.0.downsample, in a module",
    "ResNet, encoder.stages.2, as a function",
)


@pytest.mark.parametrize("name", ORDERS)
def test_a_map_lies_in_its_places_in_whatever_order_it_stands(name):
    outcome = outcome_of_case(name, ORDERS[name])
    assert outcome.kind in (RIGHT, REFUSED), outcome.note


@pytest.mark.parametrize("name", QUICK)
def test_maps_of_other_libraries_lie_in_their_places(name):
    outcome = outcome_of_case(name, LIBRARIES[name])
    assert outcome.kind in (RIGHT, REFUSED), outcome.note


def test_every_family_of_timm_is_on_the_list():
    assert list(FAMILIES) == timm.list_modules()
    for family, name in FAMILIES.items():
        assert name in timm.list_models(module=family)


WRONG_ORDERS = {
    "mirrored": lambda maps: maps.flip(3),
    "upside down": lambda maps: maps.flip(2),
    "transposed": lambda maps: maps.mT,
    "shifted by one": lambda maps: maps.flatten(2).roll(1, 2).unflatten(2, maps.shape[2:]),
    "shuffled": lambda maps: maps.flatten(2)[:, :, [3, 8, 1, 6, 4, 0, 7, 2, 5]].unflatten(2, (3, 3)),
    "of the middle alone": lambda maps: maps[:, :, 1:2, 1:2].expand(-1, -1, 3, 3) * torch.rand(3, 3),
    "of the other image of the batch": lambda maps: maps.flip(0),
    "of all images of the batch": lambda maps: maps - maps.mean(dim=0, keepdim=True),
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_the_planted_patches_tell_a_wrong_order(name):
    convolution = torch.nn.Conv2d(3, 8, 16, stride=16)
    assert plant(convolution, (48, 48)).complaint == ""
    assert plant(lambda images: WRONG_ORDERS[name](convolution(images)), (48, 48)).complaint != ""
