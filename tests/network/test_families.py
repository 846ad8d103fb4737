"""One backbone of each family that users bring, without weights: forward, folded, every layer, gradients, matches."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import warmed
from timm.layers import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from utils import decompose, explain
from utils.config import ConfigError
from utils.network.distance import distance, evaluating, unit
from utils.network.siamese import SiameseNetwork
from utils.network.variants import folded
from utils.train.runs import load_checkpoint, save_checkpoint

FAMILIES = {  # and a size of images, in pixels
    "resnet18": (64, 96),
    "resnext50_32x4d": (64, 64),
    "mobilenetv2_035": (64, 96),
    "mobilenetv3_small_050": (64, 96),
    "efficientnet_b0": (64, 64),
    "tf_efficientnet_lite0": (64, 96),
    "convnext_atto": (64, 96),
    "regnety_002": (64, 96),
    "densenet121": (64, 64),
    "vit_tiny_patch16_224": (64, 96),
    "vit_small_patch14_reg4_dinov2": (56, 56),
    "vit_tiny_patch16_dinov3_qkvb": (64, 96),
    "swin_tiny_patch4_window7_224": (64, 96),
    "mambaout_femto": (64, 96),
}
SMALLER = {  # fewer blocks of the same kinds, of fewer channels
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1), "cardinality": 4},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "vit_tiny_patch16_224": {"depth": 3},
    "vit_small_patch14_reg4_dinov2": {"depth": 3},
    "vit_tiny_patch16_dinov3_qkvb": {"depth": 3},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2), "embed_dim": 24},
    "mambaout_femto": {"depths": (1, 1, 1, 1)},
}
NORMS_THAT_STAY = {"densenet121": 12}  # behind a concatenation, not a convolution


@pytest.fixture(scope="module", autouse=True)
def smaller_models():
    create_model = timm.create_model

    def smaller(name, **settings):
        return create_model(name, **settings, **SMALLER.get(name, {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", smaller)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    torch.manual_seed(0)
    size = FAMILIES[request.param]
    return warmed(SiameseNetwork(request.param, 8, image_size=size), size)


@pytest.fixture
def images(network):
    return torch.randn(2, 3, *network.image_size)


@torch.no_grad()
def test_forward_is_the_mean_over_places_of_timms_last_map_then_one_linear_layer(network, images):
    output = network.backbone.forward_features(images)
    tokens = output.dim() == 3
    channels_last = getattr(network.backbone, "output_fmt", "NCHW") == "NHWC"
    vectors = []
    for one in output:
        if tokens:
            places = list(one[network.backbone.num_prefix_tokens :])
        elif channels_last:
            places = [place for row in one for place in row]
        else:
            places = [one[:, y, x] for y in range(one.shape[1]) for x in range(one.shape[2])]
        vectors.append(network.embedding.weight @ torch.stack(places).mean(dim=0) + network.embedding.bias)
    expected = torch.stack([vector / vector.norm() for vector in vectors])
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-4)
    assert network(images).dtype == torch.float32


@torch.no_grad()
def test_folded_computes_the_same(network, images):
    exact, short = folded(network, torch.float32), folded(network, torch.bfloat16)
    norms = [module for module in exact.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) == NORMS_THAT_STAY.get(network.backbone_model, 0)
    torch.testing.assert_close(exact(images), network(images), atol=1e-4, rtol=0)
    assert F.cosine_similarity(short(images), network(images)).min() > 0.95
    assert short(images).dtype == torch.float32
    assert {weight.dtype for weight in short.backbone.parameters()} == {torch.bfloat16}
    for layer in network.layers:
        expected = network.features(images, layer)
        found = exact.features(images, layer)
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@torch.no_grad()
def test_every_layer_is_a_map_from_which_the_network_goes_on(network, images):
    height, width = network.image_size
    assert len(network.layers) >= 4
    for layer in (*network.layers, "last"):
        features = network.features(images, layer)
        rows, columns = features.shape[2:]
        assert rows * width == columns * height
        torch.testing.assert_close(
            unit(network.project_features(features, layer)), network(images), atol=1e-5, rtol=1e-4
        )


def test_every_layer_is_explained(network, images):
    for layer in network.layers:
        explanation = explain(network, images[None], 0.5, method="integrated", layer=layer, steps=1)
        assert torch.isfinite(explanation.evidence).all()
        assert explanation.evidence.std() > 0


def test_gradients_at_each_layer_against_finite_differences(network, images):
    exact = copy.deepcopy(network).double()
    step = 1e-10  # or a ReLU turns in between
    for layer in exact.layers:
        with torch.no_grad():
            features = exact.features(images.double(), layer)
            direction = torch.randn_like(features) * features.std() * (features != 0)  # a ReLU stands at 0
        features.requires_grad_()
        (gradient,) = torch.autograd.grad(distance(*unit(exact.project_features(features, layer))), features)
        with torch.no_grad():
            ahead = distance(*unit(exact.project_features(features + step * direction, layer)))
            behind = distance(*unit(exact.project_features(features - step * direction, layer)))
        expected = (ahead - behind) / (2 * step)
        slope = (gradient * direction).sum()
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-6)


def test_the_matches_add_up(network, images):
    matches = decompose(network, explain(network, images[None], 0.5, layer="last"))
    assert abs(matches.residual) <= 1e-5


def test_checkpoint_round_trip(network, images, tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"network": network.state_dict()})
    again = SiameseNetwork(network.backbone_model, 8, image_size=network.image_size).eval()
    again.load_state_dict(load_checkpoint(tmp_path / "best.pt")["network"])
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_stages_part_all_parameters_and_can_be_frozen(network, images):
    network = copy.deepcopy(network)
    stages = network.stages()
    assert list(stages) == network.layers
    modules = [module for stage in stages.values() for module in stage]
    parts = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    assert {id(parameter) for parameter in parts} == {id(parameter) for parameter in network.backbone.parameters()}
    assert len(parts) == len(list(network.backbone.parameters()))
    network.freeze("last")
    network.train()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    network(images).sum().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed
    first = "conv1" if hasattr(network.backbone, "maxpool") else network.layers[0]  # `stem` is no name of timm's there
    assert [name for name in kept if name.startswith(f"backbone.{first}.")]
    assert not [name for name in changed if name.startswith(f"backbone.{first}.")]
    with evaluating(network):
        assert not any(module.training for module in network.modules())


def test_channels_last_are_known_where_the_shape_does_not_tell():
    network = SiameseNetwork("mambaout_femto", 8, image_size=(192, 192)).eval()  # 48 channels on 48 x 48 places
    images = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        (expected,) = network.backbone.forward_intermediates(images, [0], intermediates_only=True)
        torch.testing.assert_close(network.features(images, "stride4"), expected)


def test_strides_are_timms_whatever_the_size_of_the_images():
    network = SiameseNetwork("resnet18", 8, image_size=(150, 150)).eval()
    for stride, name in ((4, "layer1"), (8, "layer2"), (16, "layer3"), (32, "layer4")):
        with torch.no_grad():
            images = torch.randn(1, 3, 150, 150)
            assert torch.equal(network.features(images, f"stride{stride}"), network.features(images, name))


def test_a_layer_may_be_the_activation_that_a_norm_holds():
    network = SiameseNetwork("mobilenetv2_035", 8, image_size=(64, 64)).eval()
    network.check_layer("blocks.1.0.bn1.act")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = folded(network, torch.float32).features(images, "blocks.1.0.bn1.act")
        torch.testing.assert_close(found, network.features(images, "blocks.1.0.bn1.act"), atol=1e-4, rtol=1e-3)


def test_what_is_frozen_stays_so_when_batch_norms_are_replaced():
    """As under torchrun on GPUs."""
    network = SiameseNetwork("mobilenetv2_035", 8, image_size=(64, 64))
    network.freeze("last")
    convert_sync_batchnorm(network)
    network.train()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert norms
    assert not norms[0].training
    assert norms[-1].training


def test_transformers_take_no_output_stride():
    network = SiameseNetwork("vit_tiny_patch16_224", 8, image_size=(32, 32))
    with pytest.raises(ConfigError, match="output_stride: 16 is refused for vit_tiny_patch16_224, which timm does not"):
        explain(network, torch.randn(1, 2, 3, 32, 32), 0.5, output_stride=16)


def test_a_class_token_is_dropped_and_registers_too():
    network = SiameseNetwork("vit_small_patch14_reg4_dinov2", 8, image_size=(28, 42)).eval()
    images = torch.randn(1, 3, 28, 42)
    with torch.no_grad():
        assert network.features(images).shape == (1, 384, 2, 3)
        assert network.features(images, "blocks.1").shape == (1, 6 * 384, 2, 3)  # they ride along in channels
        (expected,) = network.backbone.forward_intermediates(images, 1, norm=True, intermediates_only=True)
    torch.testing.assert_close(network.features(images), expected)
