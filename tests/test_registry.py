"""Backbone names, however they are spelt, and the weights that they mean."""

import pytest

from utils.vision import backbone_name, normalization_of, restriction_of, weights_name

EARLIER = [  # what this project accepted before timm: torchvision's names
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"),
    *("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "mobilenet_v2", "mobilenet_v3_large"),
    *("mobilenet_v3_small", "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    *(f"efficientnet_b{number}" for number in range(8)),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
]


@pytest.mark.parametrize("name", EARLIER)
def test_names_that_worked_before_still_do(name):
    assert backbone_name(backbone_name(name)) == backbone_name(name)


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [
        ("ResNet50", "resnet50"),
        ("EfficientNet-B0", "efficientnet_b0"),
        ("EfficientNet_B0", "efficientnet_b0"),
        ("MobileNet", "mobilenetv2_100"),
        ("MobileNetV2", "mobilenetv2_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s"),
        ("efficientnetv2_s", "efficientnetv2_s"),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("ViT_Small_Patch14_Reg4_DINOv2", "vit_small_patch14_reg4_dinov2"),
    ],
)
def test_spellings(spelt, meant):
    assert backbone_name(spelt) == meant


def test_near_misses_are_suggested():
    with pytest.raises(ValueError, match=r"unknown backbone; did you mean .*resnet50"):
        backbone_name("resnet5O")
    with pytest.raises(ValueError, match=r"unknown weights; timm has .*resnet50\.tv_in1k"):
        backbone_name("resnet50.imagenet")
    with pytest.raises(ValueError, match=r"any of timm's \d+ models can be named"):
        backbone_name("???")


def test_torchvisions_weights_where_timm_has_them():
    assert weights_name("resnet50") == "resnet50.tv_in1k"
    assert weights_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert weights_name("efficientnet_b0") == "efficientnet_b0"


def test_normalisation_belongs_to_the_weights():
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert normalization_of("resnet18") == normalization_of("efficientnetv2_s") == imagenet
    assert normalization_of("tf_efficientnet_lite0") == normalization_of("vit_tiny_patch16_224") == half


def test_licences_that_do_not_allow_every_use():
    assert restriction_of("vit_small_patch16_dinov3") == "dinov3-license"
    assert restriction_of("convnextv2_atto") == "cc-by-nc-4.0"
    assert restriction_of("resnet50") is None
    assert restriction_of("vit_small_patch14_reg4_dinov2") is None
