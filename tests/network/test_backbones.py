"""Backbones and their weights: from the hub's cache, from files, and what is refused."""

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from utils.config import ConfigError
from utils.network.backbones import build_backbone, load_weights
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
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_weights_from_the_cache_of_the_hub(make_config, hub, weights):
    folder = hub / "models--timm--resnet18.tv_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(weights, folder / "snapshots" / "abc" / "model.safetensors")
    assert is_loaded(build_network(make_config({"pretrained": True})), weights)
    assert not is_loaded(build_network(make_config({"pretrained": False})), weights)


def test_weights_that_cannot_be_fetched(make_config, hub):
    with pytest.raises(ConfigError, match=r"weights of resnet18\.tv_in1k cannot be fetched") as caught:
        build_network(make_config({"pretrained": True}))
    assert "Download https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors" in str(caught.value)
    assert "set `pretrained` to the path of that file" in str(caught.value)
    with pytest.raises(ConfigError, match="timm has no weights for efficientnetv2_s"):
        load_weights(build_backbone("efficientnetv2_s", (64, 64)), "efficientnetv2_s", True)


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


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in the file was executed",))


def test_files_that_do_not_fit(make_config, weights, tmp_path):
    path = tmp_path / "weights.pth"
    config = make_config({"pretrained": str(path)})
    with pytest.raises(ConfigError, match="does not exist"):
        build_network(config)
    path.write_text("no weights")
    with pytest.raises(ConfigError, match="is not a safetensors or state dict file"):
        build_network(config)
    torch.save(Trap(), path)
    with pytest.raises(ConfigError, match="is not a safetensors or state dict file"):
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
